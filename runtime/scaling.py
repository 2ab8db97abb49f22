"""Scaling, as pure functions: what a message means, how far to launch, whom to drain. Targets count parallelism."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from flatfleet.runtime.values import size_of

MAX_TARGET = 100_000
TOLD_AGAIN = 60.0
"""Seconds after which a scaler that was told of a surplus is told again, if there is as much of it still."""

Step = Literal["launch", "drain", "record"]


@dataclass(frozen=True, slots=True)
class Worker:
    """A live worker: its size, the item it holds, since when (seconds since the epoch), and whether it has begun."""

    id: str
    parallelism: int = 1
    item: str | None = None
    since: float = 0.0
    begun: bool = True


@dataclass(frozen=True, slots=True)
class Aim:
    """What a message comes to: the target to store, and the parallelism to launch up to or drain down to (None: neither)."""

    target: int | None
    level: int | None
    refused: str | None = None
    note: str | None = None


# -- planning ----------------------------------------------------------------------------------------------------------


def aim(message: Mapping[str, Any], stored: int | None, live: int, lost: int, drained: int = 0) -> Aim:
    """What a valid message asks for where `stored` is the fleet's target, `live` its parallelism, `lost` that of the
    workers which were lost and not replaced, and `drained` that of those which this message drains by name.

    A reconcile replaces what was lost, as far as the target wants it: whoever was drained is not replaced.
    """
    current = live + drained if stored is None else stored
    wanted = message.get("if_current")
    if wanted is not None and int(wanted) != current:
        return Aim(stored, None, refused=f"if_current is {int(wanted)}, but the target is {current}")
    if "reconcile" in message:
        return Aim(stored, None if stored is None else max(live, min(stored, live + lost)))
    if "drain" in message:
        return Aim(without(drained, stored, live), None)
    if "target" in message:
        return Aim(int(message["target"]), int(message["target"]))
    asked = current + int(message["delta"])
    target = max(0, min(MAX_TARGET, asked))
    return Aim(target, target, note=None if asked == target else f"a target of {asked} was cut to {target}")


def without(drained: int, stored: int | None, live: int) -> int | None:
    """The target once so much was drained and `live` is left: lower by it, and not below what is left unless it was.

    Lost workers that are still to be replaced stay wanted.
    """
    return None if stored is None else max(0, min(stored, max(live, stored - drained)))


def step(live: int, level: int | None, budget: int, most: int, *, drains: bool) -> tuple[Step, int]:
    """What to do next towards `level`, and how much parallelism to launch for it, before the next look.

    At most `most` now, and `budget` in all: a worker that ends while others are launched is not replaced by this.
    """
    if level is None or (live > level and not drains):
        return "record", 0
    if live > level:
        return "drain", 0
    want = max(0, min(level - live, budget, most))
    return ("launch", want) if want else ("record", 0)


def launches(missing: int, parallelism: int) -> int:
    """How many workers of this parallelism it takes; the last one is smaller where it does not come out even."""
    return max(0, -(-missing // parallelism))


def drains(workers: Iterable[Worker], surplus: int) -> list[Worker]:
    """Whom to drain: workers whose parallelism sums up to at most `surplus`, and none could be added.

    The idle ones first, of these who has not begun, then the largest; after them those which have held their item for the
    shortest time.
    """
    chosen = []
    for worker in sorted(workers, key=_loss):
        if worker.parallelism <= surplus:
            chosen.append(worker)
            surplus -= worker.parallelism
    return chosen


def first_target(asked: int | None, stored: int | None, live: int, default: int, *, served: bool) -> int:
    """The target of a fleet that is launched: what is live and what was asked for; else the stored one; else `default`.

    A stored 0 is for a fleet that is served: a batch would never begin.
    """
    if asked is not None:
        return live + asked
    if stored is not None and (stored or served):
        return stored
    return max(default, live)


def told_of(before: Mapping[str, Any] | None, over: int, at: float) -> dict[str, Any] | None:
    """What to remember, as JSON data, of a look at which `over` more parallelism was live than the target: `at` is when
    the scaler was last told to drain it, and `at` of this look where it has to be told now. None without a surplus.

    It is told of what is there at two looks: for a moment a worker and the one in its place both count. And once of each
    number: those that drain do not count, and a worker may be too large to go.
    """
    if over <= 0:
        return None
    if before is None:
        return {"over": 0, "at": None}
    if before["over"] == over and at < before["at"] + TOLD_AGAIN:
        return dict(before)
    return {"over": over, "at": at}


def _loss(worker: Worker) -> tuple[bool, float, bool, int, str]:
    busy = worker.item is not None
    return busy, -worker.since if busy else 0.0, worker.begun, -worker.parallelism, worker.id


# -- the registry: records of the SDK, with our metadata ---------------------------------------------------------------


def pool_of(record: Any) -> str:
    return str((record.metadata or {}).get("pool") or "")


def size(record: Any) -> int:
    """The parallelism that a worker registered with; 1 where it did not say."""
    return size_of(record.metadata or {})


def alive(records: Iterable[Any], pool: str, now: float, is_dead: Callable[[str], bool]) -> list[Worker]:
    """The workers of a pool that count."""
    live = active(records, pool, now, is_dead)
    return [
        Worker(record.worker_id, size(record), record.current_task_id, begun=not record.metadata.get("booked"))
        for record in live
    ]


def active(records: Iterable[Any], pool: str, now: float, is_dead: Callable[[str], bool]) -> list[Any]:
    """The records that count: active, their process not known to be dead, and their lease not over at `now`."""
    dead = functools.cache(is_dead)
    return [
        record
        for record in records
        if record.status == "active"
        and pool_of(record) == pool
        and (record.metadata.get("lease_until") or now) >= now
        and not dead(str(record.metadata.get("owner")))
    ]


def unreplaced(records: Iterable[Any], pool: str | None = None) -> list[Any]:
    """The lost workers (of one pool, or of any) that no decision has taken account of: neither replaced nor drained."""
    return [
        record
        for record in records
        if record.status == "lost"
        and not (record.metadata.get("replaced_by") or record.metadata.get("drained_by"))
        and (pool_of(record) == pool if pool is not None else pool_of(record))
    ]


def holding(workers: Iterable[Worker], items: Iterable[Any]) -> list[Worker]:
    """The workers, with the time since when each has held its item (None among the items: it is gone)."""
    since = {item.id: item.started or 0.0 for item in items if item is not None}
    return [replace(worker, since=since.get(worker.item or "", 0.0)) for worker in workers]


def parallelism(workers: Iterable[Worker]) -> int:
    return sum(worker.parallelism for worker in workers)
