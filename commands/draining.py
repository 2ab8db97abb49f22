"""Draining workers by hand: the order to end, and what becomes of the fleet's target, so that nobody replaces them."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from flatfleet.commands import finding, messages
from flatfleet.runtime import decisions, scaling
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.owner import is_dead

LISTED = 10_000
"""Characters of worker ids that a message lists."""


def named(names: Iterable[str], records: Sequence[Any], pool: str | None) -> list[Any]:
    known = {record.worker_id: record for record in records if pool in (None, scaling.pool_of(record))}
    for name in names:
        if name not in known:
            where = f"pool '{pool}'" if pool is not None else "this store"
            live = [each.worker_id for each in known.values() if each.status == "active"] or list(known)
            raise UsageError(f"no worker '{name}' in {where}{finding.like(name, live) or ': it has none'}")
    return [known[name] for name in dict.fromkeys(names)]


async def drain(options: argparse.Namespace, store: Any, pool: str, chosen: Sequence[Any]) -> dict[str, Any]:
    """Tell workers of one pool to end, and lower the fleet's target by them, or to what is left if it is all of them.

    Where a process hosts the fleet, its scaler does that, too, told by a message: after those that wait already.
    """
    now, decision_id = time.time(), uuid.uuid4().hex
    until = now + options.deadline
    fresh = scaling.alive(chosen, pool, now, is_dead)
    hurried = [
        record.worker_id
        for record in chosen
        if options.drain_deadline is not None
        and record.status == "terminating"
        and not is_dead(record.metadata["owner"])
    ]
    told = {"drain_until": until, "drained_by": decision_id}
    ids = [worker.id for worker in fresh]
    await _tell(store, dict.fromkeys(ids, told) | {name: {"drain_until": until} for name in hurried})
    everybody, decision, waits = not options.workers, None, False
    message = {"id": decision_id, "by": messages.sender(), "drain_deadline": options.deadline}
    if options.reason:
        message["reason"] = options.reason
    fleet = store.fleet(pool) if pool else None
    if fleet is not None and (ids or everybody) and await fleet.hosts():
        asks = {"target": 0} if everybody else {"drain": _listed(ids)}
        await store.signals.send(fleet.channel, {**message, **asks})
        decision = await messages.answer(store, fleet, decision_id)
        waits = decision is None
    elif fleet is not None and (ids or everybody):
        async with messages.still(store, fleet):
            decision = await _decide(store, fleet, {**message, "drain": ids[:100]}, fresh, everybody=everybody)
    return {
        "pool": pool,
        "drained": ids,
        "hurried": hurried,
        "drain_until": until,
        "decision": decision,
        "waits": waits,
    }


def _listed(ids: Sequence[str]) -> list[str]:
    """As many of the ids as a message has room for; the scaler knows the others by who has told them."""
    listed, room = [], LISTED
    for name in ids[:100]:
        room -= len(json.dumps(name))
        if room >= 0 and len(name) <= 200:
            listed.append(name)
    return listed


async def _tell(store: Any, workers: dict[str, dict[str, Any]]) -> None:
    """Give the order to end; one that has ended by itself meanwhile stays so."""
    driver = store.driver
    await asyncio.gather(*(driver.set_status(name, "terminating", told) for name, told in workers.items()))
    store.bell.announce("workers")


async def _decide(
    store: Any, fleet: Any, message: dict[str, Any], drained: Sequence[scaling.Worker], *, everybody: bool
) -> dict[str, Any] | None:
    """Record who was drained and why, and with it the target: what it was without them; of all, what is left.

    Lost workers that are still to be replaced stay wanted; nobody is launched or drained for the new target.
    """
    before, size = await fleet.target(), scaling.parallelism(drained)
    active = await store.registration.list(statuses=("active",), pool=fleet.name)
    live = scaling.parallelism(scaling.alive(active, fleet.name, time.time(), is_dead))
    after = live if everybody and before is not None else scaling.without(size, before, live)
    if not drained and after == before:
        return None
    decision = decisions.begin(fleet.name, message["id"], message, None)
    decisions.imagine(decision, (), (worker.id for worker in drained))
    decision.update(outcome="applied", target_before=before, target=after, live_before=live + size, live=live)
    await fleet.decide(decision)
    found: dict[str, Any] | None = await fleet.decision(decision["id"])
    return found
