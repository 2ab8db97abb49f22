"""drain: workers finish the item that they hold and end; nobody replaces them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, decided, exits, finding
from flatfleet.commands.durations import seconds, span
from flatfleet.commands.terminal import document, plain, show
from flatfleet.runtime import decisions, scaling
from flatfleet.runtime.errors import UsageError

DEADLINE = 300.0
"""Seconds that a drained worker has to finish its item."""


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = "Let workers finish the item that they hold, and end: these, or all of a pool. They are not replaced."
    made = cli.parser("drain", about, "[WORKER …]")
    made.add_argument("workers", nargs="*", metavar="WORKER", help="worker ids (default: all workers of the pool)")
    finding.add_pool(made)
    made.add_argument(
        "--drain-deadline",
        type=seconds,
        metavar="S",
        help="how long they have; then items are handed back, no attempt burnt: seconds, or 90s, 10m, 2h (default: 5m)",
    )
    made.add_argument("--reason", metavar="TEXT", help="why; it is kept with the decision")
    options = cli.on_store(made, argv, "drain", command)
    options.deadline = DEADLINE if options.drain_deadline is None else options.drain_deadline
    wrong = decisions.problem({"target": 0, "drain_deadline": options.deadline, "reason": options.reason or ""})
    if wrong is not None:
        raise UsageError(wrong)
    return options


async def command(options: argparse.Namespace, parts: Any) -> int:
    from flatfleet.commands import draining, roster
    from flatfleet.runtime.stores.records import LIVE_WORKER

    store = parts.store
    if options.workers:
        records = await store.registration.list()
        pool = (await finding.pool(options, store)).name if options.pool is not None else None
        named = draining.named(options.workers, records, pool)
        by_pool: dict[str, list[Any]] = {}
        for record in named:
            by_pool.setdefault(scaling.pool_of(record), []).append(record)
    else:
        name = (await finding.pool(options, store)).name
        by_pool = {name: await store.registration.list(statuses=LIVE_WORKER, pool=name)}
        named = []
    drains = [await draining.drain(options, store, name, chosen) for name, chosen in by_pool.items()]
    told = {worker for each in drains for worker in (*each["drained"], *each["hurried"])}
    ended = {row["id"]: row["status"] for row in roster.rows(named, ended=True) if row["id"] not in told}
    code = max((decided.code(each["decision"]) for each in drains), default=exits.DONE)
    if options.json:
        document({"store": store.shown, "pools": drains, "left_alone": ended})
        return code
    lines = [line for each in drains for line in _lines(options, each)]
    lines += [f"{plain(worker)} is {status}: left alone" for worker, status in ended.items()]
    show("\n".join(lines))
    return code


def _lines(options: argparse.Namespace, drained: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    pool = drained["pool"]
    name = f"{pool}: " if pool else ""
    if drained["decision"] is not None:
        lines.append(f"{name}{decided.told(drained['decision'])}")
    elif drained["drained"]:
        lines.append(f"{name}draining {finding.count(len(drained['drained']), 'worker')}")
    if drained["waits"]:
        then = "the target is lowered" if options.workers else "what it launches for that is drained"
        lines.append(f"{name}the scaler is at work on another message; {then} after it")
    told = [*drained["drained"], *drained["hurried"]]
    if told:
        lines.append(f"  {plain(finding.few(told))}: {span(options.deadline)} for what they hold")
    elif not options.workers:
        lines.append(f"pool {pool} has no worker to drain")
    return lines
