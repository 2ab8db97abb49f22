"""status: items by state, targets and decisions, and workers with what they do, once, from any process."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from flatfleet.commands import cli, decided, engines, exits, figures, finding
from flatfleet.commands.durations import span, until
from flatfleet.commands.finding import count
from flatfleet.commands.terminal import document, plain, show
from flatfleet.runtime import engine_notes, orders, routing, scaling, spending
from flatfleet.runtime.owner import is_dead

SHOWN = 20
"""Workers that are shown at most; `workers` shows them all."""
_STATES = ("waiting", "delayed", "claimed", "expired", "completed", "dead")


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser(
        "status", "Show items by state, pauses, targets, the last decision, and workers with what they do."
    )
    finding.add_pool(made, "only this pool (default: all of them)")
    made.add_argument("--all", action="store_true", help="workers that have ended, too")
    return cli.on_store(made, argv, "status", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    from flatfleet.commands import roster

    store = parts.store
    names = [(await finding.pool(options, store)).name] if options.pool else await finding.pools(store)
    records = await store.registration.list(pool=options.pool)
    pools = {name: await _pool(store, name, records) for name in names}
    everyone = roster.rows(records, ended=True, pool=options.pool)
    ended = len(everyone) - len(roster.rows(records, pool=options.pool))
    workers = everyone if options.all else roster.rows(records, pool=options.pool)
    hosting = [engines.row(each) for each in await engine_notes.engines(store)]
    if options.json:
        about = {"store": store.shown, "pools": pools, "workers": workers, "ended_workers": ended, "engines": hosting}
        document(about)
        return exits.DONE
    lines = [f"store {plain(store.shown)}"]
    for name, about in pools.items():
        lines += _lines(name, about)
    lines += [line for each in hosting for line in engines.lines(each)]
    hint = f" ({ended} ended; --all shows them)" if ended and not options.all else ""
    lines.append(f"{count(len(everyone) - ended, 'worker')}{hint}")
    shown = roster.by_status(workers)
    lines += map(roster.line, shown if options.all else shown[:SHOWN])
    if len(shown) > SHOWN and not options.all:
        lines.append(f"  and {len(shown) - SHOWN} more: {cli.again(options, 'workers')}")
    show("\n".join(lines))
    return exits.DONE


async def _pool(store: Any, name: str, records: Sequence[Any]) -> dict[str, Any]:
    from flatfleet.commands.roster import process

    pool, fleet = store.work.pool(name), store.fleet(name)
    counts, until, decisions = await pool.counts(), await pool.paused(), await fleet.decisions(1)
    needs = await pool.requirements()
    unserved = routing.among(needs, records, name)
    draining = [each for each in records if each.status == "terminating" and scaling.pool_of(each) == name]
    return {
        **asdict(counts),
        "left": counts.left,
        "total": counts.total,
        "errors": await pool.errors() if counts.dead else {},
        "requires": [
            {"requires": list(k), "items": n, "served": k not in unserved.needs} for k, n in sorted(needs.items())
        ],
        "unserved": unserved.lines(),
        "paused": until is not None,
        "paused_until": until,
        "target": await fleet.target(),
        "live": scaling.parallelism(scaling.alive(records, name, time.time(), is_dead)),
        "draining": sum(map(scaling.size, draining)),
        "hosts": [process(owner) for owner in await fleet.hosts()],
        "messages": len(await store.signals.peek(fleet.channel)),
        "at_work": await decided.at_work(store, name),
        "last_decision": decisions[-1] if decisions else None,
        "scaling": await orders.in_force(fleet, time.time()),
        "cost": await spending.account(fleet),
    }


def _lines(name: str, about: dict[str, Any]) -> list[str]:
    by_state = " · ".join(f"{about[state]:,} {state}" for state in _STATES if about[state])
    lines = [f"pool {name}: {count(about['total'], 'item')}" + (f": {by_state}" if by_state else "")]
    lines += [f"  {n:,} × {plain(error)}" for error, n in about["errors"].items()]
    lines += [f"  {plain(line)}" for line in about["unserved"]]
    if about["paused"]:
        lines.append(f"  paused until {until(about['paused_until'])}")
    decision = about["last_decision"]
    lines += [f"  {plain(line)}" for line in _orders(about["scaling"])]
    if about["target"] is not None or about["hosts"] or about["messages"]:
        lines.append("  " + " · ".join(_fleet(about)))
    if (cost := about["cost"]) is not None:
        lines.append(f"  costs {figures.costs(cost)}, {span(max(0.0, time.time() - cost['at']))} ago")
    if about["at_work"] is not None:
        lines.append(f"  {decided.doing(about['at_work'], about['live'], hosted=bool(about['hosts']))}")
    if decision is not None:
        lines.append(f"  last decision, {span(max(0.0, time.time() - decision['at']))} ago: {decided.told(decision)}")
    return lines


def _orders(scaling: dict[str, Any]) -> Iterator[str]:
    by = {name: f" by {scaling[name]}" if scaling[name] else "" for name in ("paused_by", "held_by")}
    if scaling["policy"]:
        yield f"scaled by policy {scaling['policy']}"
    if scaling["paused"]:
        ends = scaling["paused_until"]
        yield f"scaling is paused{by['paused_by']} until {until(math.inf if ends is None else ends)}"
    if scaling["held_until"] is not None:
        yield f"the target is held{by['held_by']} until {until(scaling['held_until'])}"
    if scaling["fault"]:
        yield f"the autoscaler cannot decide, {decided.since(scaling['fault'])}"


def _fleet(about: dict[str, Any]) -> list[str]:
    said = ["no target" if about["target"] is None else f"target {about['target']}", f"{about['live']} live"]
    if about["draining"]:
        said.append(f"{about['draining']} draining")
    hosts = [f"pid {host['pid']} on {plain(host['host'])}" for host in about["hosts"]]
    said.append(f"hosted by {finding.few(hosts, 3)}" if hosts else "no process hosts it")
    if about["messages"]:
        said.append(f"{count(about['messages'], 'message')} waiting")
    return said
