"""retry: make dead items ready again, with fresh limits; says how many, and asks first."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.asking import add_yes, agreed
from flatfleet.commands.durations import seconds
from flatfleet.commands.finding import count
from flatfleet.commands.terminal import document, plain, show
from flatfleet.runtime import scaling
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.owner import is_dead

if TYPE_CHECKING:
    from flatfleet.runtime.stores.records import Item

AT_ONCE = 500


@dataclass
class _Choice:
    """What is to be retried: by error, and by pool the ids (None: what matches); `alone` are named items not dead."""

    errors: Counter[str]
    pools: dict[str, list[str] | None]
    alone: list[Item] = field(default_factory=list)


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser(
        "retry", "Make dead items ready again, with fresh limits: those named, or all of a pool.", "[ITEM …]"
    )
    made.add_argument("items", nargs="*", metavar="ITEM", help="ids or keys (default: every dead item of the pool)")
    finding.add_pool(made)
    made.add_argument("--error", metavar="TYPE", help="only those that died of this error (see: flatfleet dead)")
    made.add_argument(
        "--since", type=seconds, metavar="SPAN", help="only those that died in the last 90s, 10m, 2h, 1d …"
    )
    add_yes(made)
    options = cli.on_store(made, argv, "retry", command)
    if options.items and (options.error is not None or options.since is not None):
        raise UsageError("retry takes either items or --error and --since, not both")
    return options


async def command(options: argparse.Namespace, parts: Any) -> int:
    store, now = parts.store, time.time()
    choice = await (_named if options.items else _matched)(options, store, now)
    total, retried = sum(choice.errors.values()), 0
    where = f"pool {finding.few(choice.pools)}"
    kinds = finding.few(f"{n:,} × {plain(name)}" for name, n in choice.errors.most_common())
    go = total > 0 and await agreed(options, f"try {count(total, 'dead item')} of {where} again ({kinds})")
    for name, ids in choice.pools.items() if go else ():
        pool = store.work.pool(name)
        retried += await pool.retry(ids) if ids is not None else await _retry(pool, options, now)
    if options.json:
        alone = [{"id": item.id, "state": item.state} for item in choice.alone]
        told = {"matching": total, "errors": dict(choice.errors), "retried": retried, "left_alone": alone}
        document({"store": store.shown, "pools": list(choice.pools), **told})
        return exits.DONE
    lines = [f"{plain(item.id)} is {item.state}: left alone" for item in choice.alone]
    if go:
        lines.append(f"{count(retried, 'item')} of {where} ready again{await _nobody(store, choice.pools)}")
    elif total:
        lines.append("nothing was changed")
    elif not options.items:
        lines.append(f"{where} has no dead item" + (" of these" if options.error or options.since is not None else ""))
    show("\n".join(lines))
    return exits.DONE


async def _named(options: argparse.Namespace, store: Any, now: float) -> _Choice:
    choice = _Choice(Counter(), {})
    for item in await finding.items(options.items, options, store):
        if item.state != "dead":
            choice.alone.append(item)
            continue
        choice.errors[item.error_type or "unknown"] += 1
        ids = choice.pools.setdefault(item.pool, [])
        assert ids is not None
        ids.append(item.id)
    return choice


async def _matched(options: argparse.Namespace, store: Any, now: float) -> _Choice:
    pool = await finding.pool(options, store)
    errors = Counter(await pool.errors())
    if options.error is not None and options.error not in errors:
        like = finding.like(options.error, errors) or ": it has no dead item"
        raise UsageError(f"no dead item of error '{options.error}' in pool '{pool.name}'{like}")
    if options.error is not None or options.since is not None:
        errors = Counter()
        async for item in _matching(pool, options, now):
            errors[item.error_type or "unknown"] += 1
    return _Choice(errors, {pool.name: None})


async def _retry(pool: Any, options: argparse.Namespace, now: float) -> int:
    """Retry what matches, some at a time: what dies again meanwhile is not retried twice."""
    n, ids = 0, []
    async for item in _matching(pool, options, now):
        ids.append(item.id)
        if len(ids) == AT_ONCE:
            n += await pool.retry(ids)
            ids = []
    return n + (await pool.retry(ids) if ids else 0)


async def _matching(pool: Any, options: argparse.Namespace, now: float) -> AsyncGenerator[Item, None]:
    """The dead items that are meant, of those that were dead at `now`."""
    after = now - options.since if options.since is not None else 0.0
    async with contextlib.aclosing(pool.items("dead")) as items:
        async for item in items:
            if after <= (item.finished or 0.0) <= now and options.error in (None, item.error_type or "unknown"):
                yield item


async def _nobody(store: Any, pools: Iterable[str]) -> str:
    """A hint for pools that nobody works on."""
    active = {name: await store.registration.list(statuses=("active",), pool=name) for name in pools}
    idle = [name for name, records in active.items() if not scaling.alive(records, name, time.time(), is_dead)]
    return f"; no worker is there for {finding.few(idle)}: start a launcher" if idle else ""
