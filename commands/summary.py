"""What a run says when it has ended, and its exit code."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flatfleet.commands import cli, exits, figures
from flatfleet.commands.terminal import lines, plain
from flatfleet.runtime import scaling
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.redact import shown
from flatfleet.runtime.routing import Unserved
from flatfleet.runtime.stores.records import Counts, Item

DEAD_SHOWN = 5
REASON_SHOWN = 200


@dataclass(frozen=True)
class Summary:
    """The end of one run, for people and (as_dict) for programs. `dead` holds the first dead items; `store` is a URL.

    `drained` are the workers of this process, or of its hosts, that somebody told to end, where they have left items;
    `ended` are those that are gone for whatever reason, where items are left and no worker is live anywhere;
    `unserved` are the items that wait for what no worker offers; `broke` is the account of a fleet whose budget is spent.
    """

    machine: str
    output: dict[str, Any]
    counts: Counts | None
    errors: Mapping[str, int]
    failures: Mapping[str, str]
    seconds: float
    store: str = field(repr=False)
    durable: bool
    pool: str | None
    out: str
    interrupted: bool
    handed_back: int
    dead: Sequence[Item] = field(default_factory=list)
    drained: int = 0
    ended: int = 0
    unserved: Unserved = field(default_factory=Unserved)
    broke: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        counts = asdict(self.counts) | {"left": self.counts.left, "total": self.counts.total} if self.counts else None
        return {
            "machine": self.machine,
            "output": self.output,
            "pool": self.pool,
            "counts": counts,
            "errors": dict(self.errors),
            "dead_first": [
                {"id": item.id, "key": item.key, "error_type": item.error_type, "error": item.error}
                for item in self.dead
            ],
            "failures": dict(self.failures),
            "seconds": round(self.seconds, 3),
            "store": shown(self.store),
            "out": self.out,
            "interrupted": self.interrupted,
            "handed_back": self.handed_back,
            "drained": self.drained,
            "ended": self.ended,
            "unserved": self._unserved().rows(),
            "broke": self.broke,
        }

    def text(self) -> str:
        if self.output.get("_waiting"):
            return self._parked()
        if self.counts is None or not self.counts.total:
            return "stopped" if self.interrupted else _fields(self.output)
        counts = self.counts
        said = [self._head(counts), *self._faults(counts)]
        if self.out and counts.completed and Path(self.out).is_dir():
            said.append(f"Reports are in {plain(self.out.rstrip('/'))}/")
        said += self._for_others()
        if self.broke:
            said.append(
                f"{counts.left} left, and {figures.spent(self.broke)} spent: "
                "raise cost.budget in the policy, and run the same command again"
            )
        elif self.drained and not self.interrupted:
            said.append(f"{counts.left} left: the workers here were drained; the same command goes on")
        elif self._deserted() and not self.interrupted:
            said.append(
                f"{counts.left} left: the workers here have ended, and no other is live; the same command goes on"
            )
        if self.durable and counts.completed + counts.dead:
            said.append(f"Results: {self._command()}")
        if self.interrupted:
            back = f", {self.handed_back} handed back" if self.handed_back else ""
            more = " The same command goes on from here." if counts.left and not self.broke else ""
            said.append(f"Stopped{back}.{more}")
        return "\n".join(said)

    def exit_code(self, failures: Mapping[str, BaseException]) -> int:
        if self.interrupted:
            return exits.INTERRUPTED
        if failures:
            return max(exits.code_of(error) for error in failures.values())
        if (self.drained or self._deserted()) and not self.broke:
            return exits.INTERRUPTED
        if (
            (self.counts is not None and self.counts.dead)
            or self.output.get("skipped")
            or self._unserved()
            or self.broke
        ):
            return exits.SOME_FAILED
        return exits.DONE

    def _unserved(self) -> Unserved:
        """What was left to nobody, where workers have run."""
        return Unserved() if self.output.get("workers") == 0 and not self.ended else self.unserved

    def _deserted(self) -> bool:
        """True if items that the workers here could have served are left to nobody, and no failure says why."""
        left = self.counts.left if self.counts is not None else 0
        return bool(self.ended) and left > self.unserved.items and not self.failures

    def _for_others(self) -> list[str]:
        left = self._unserved()
        said = [f"  {plain(line)}" for line in left.lines()]
        return [*said, f"  A worker that can serve them: the same command with {plain(left.flag())}"] if left else []

    def _parked(self) -> str:
        where = f"{self.machine} is parked at '{plain(str(self.output.get('_channel')))}'"
        if not self.durable:
            return f"{where} in a store that ends with this process: nothing will wake it"
        return f"{where}: a message there wakes it in any run over {shown(self.store)} (--stay keeps one for that)"

    def _head(self, counts: Counts) -> str:
        ended = counts.completed + counts.dead > (self.output.get("done") or 0) + (self.output.get("dead") or 0)
        none = self.output.get("workers") == 0 and not self.drained and not self._deserted()
        if none and not ended and not self.interrupted:
            if counts.left:
                waiting = "item is" if counts.left == 1 else "items are"
                return f"{counts.left} {waiting} waiting in pool {self.pool}; no worker was launched"
            return f"Nothing is left to do: {counts.completed} done, {counts.dead} dead before"
        before = self.output.get("done") or 0
        now = f" ({counts.completed - before} now)" if before else ""
        return f"{counts.completed} done{now}, {counts.dead} dead, {counts.left} left in {self.seconds:.1f} s"

    def _faults(self, counts: Counts) -> list[str]:
        said = [f"  {n} × {plain(name)}" for name, n in self.errors.items()] if len(self.errors) > 1 else []
        said += [f"  {_reason(item)}" for item in self.dead]
        if counts.dead > len(self.dead):
            shown = f": {self._command('--state dead')}" if self.durable else ""
            said.append(f"  and {counts.dead - len(self.dead)} more{shown}")
        if counts.dead and self.machine == "launcher":
            said.append(
                "  To try the dead ones again once the cause is mended: the same command with --retry-dead true"
            )
        return said + [f"  {_few(who)} ended: {lines(why)}" for why, who in list(self._ended().items())[:5]]

    def _ended(self) -> dict[str, list[str]]:
        """The machines that ended with an error, by the error."""
        by_why: dict[str, list[str]] = {}
        for name, why in self.failures.items():
            by_why.setdefault(why, []).append(name)
        return by_why

    def _command(self, *more: str) -> str:
        words = ["flatfleet results", *more]
        if self.pool != "papers":
            words.append(f"--pool {self.pool}")
        return " ".join([*words, *cli.store_flag(self.store)])


class Gone(NamedTuple):
    """How many workers of a run are gone though items are left: those that were drained, and all, where nobody is live."""

    drained: int = 0
    ended: int = 0


async def gone(store: Any, pool: str, counts: Counts | None, owners: Collection[str], *, served: bool) -> Gone:
    """Count the workers of these owners that have left items in the pool; where a fleet is `served`, only those drained.

    A worker that was drained counts if its process died over it, too, but not if another one took its place.
    """
    if counts is None or not counts.left:
        return Gone()
    records = await store.registration.list(pool=pool)
    ours = [each.metadata for each in records if (each.metadata or {}).get("owner") in owners]
    told = [each for each in ours if each.get("ended", "drained" if each.get("drained_by") else "") == "drained"]
    live = served or scaling.active(records, pool, time.time(), is_dead)
    return Gone(sum(not each.get("replaced_by") for each in told), 0 if live else len(ours))


async def first_dead(pool: Any) -> list[Item]:
    """The dead items of the pool that a summary names."""
    found: list[Item] = []
    async with contextlib.aclosing(pool.items("dead")) as items:
        async for item in items:
            found.append(item)
            if len(found) == DEAD_SHOWN:
                break
    return found


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return plain(", ".join(names[:3])) + more


def _reason(item: Item) -> str:
    """What was wrong with an item; its key stands in front unless the error begins with it."""
    error = item.error or ""
    reason = plain(error if error.startswith(f"{item.key} ") else f"{item.key}: {item.error_type}: {error}")
    return reason if len(reason) <= REASON_SHOWN else reason[: REASON_SHOWN - 1] + "…"


def _fields(output: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{plain(name)}: {lines(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in output.items()
    )
