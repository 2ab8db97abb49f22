"""What a fleet costs, as its store tells: which workers are spot, who ran while nobody looked, and what is spent by now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from flatfleet.runtime import scaling
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.policies.costs import SPOT, Mix, Ran
from flatfleet.runtime.stores.buckets import Activity
from flatfleet.runtime.stores.fleets import FleetRecord
from flatfleet.runtime.stores.records import LIVE_WORKER


async def spot(fleet: Fleet, pool: str, activity: Activity, known: dict[str, bool]) -> int:
    """The parallelism on spot hosts, live or draining, where `known` says of each process whether it is one.

    Workers are read only where a process has come that is not known yet; `known` is brought up to date.
    """
    crew = {owner: live + draining for owner, (live, _, draining) in activity.crew.items() if not is_dead(owner)}
    for owner in known.keys() - crew.keys():
        del known[owner]
    if fleet.store.owner in crew:
        known[fleet.store.owner] = SPOT in fleet.capabilities
    if crew.keys() - known.keys():
        for record in await fleet.store.registration.list(statuses=LIVE_WORKER, pool=pool):
            if (owner := str(record.metadata.get("owner"))) in crew:
                known.setdefault(owner, _is_spot(record))
    return sum(n for owner, n in crew.items() if known.get(owner))


async def ran(fleet: Fleet, pool: str, since: float, until: float) -> Ran:
    """How long the workers that are live at `until` ran after `since`, and which were there by then. Costs by the workers."""
    seconds, still = [0.0, 0.0], [0, 0]
    for record in await fleet.store.registration.list(statuses=LIVE_WORKER, pool=pool):
        ends = record.metadata.get("lease_until") or until
        if ends < until or is_dead(str(record.metadata.get("owner"))):
            continue
        kind, begun = _is_spot(record), _begun(record)
        seconds[kind] += scaling.size(record) * (until - max(since, min(begun, until)))
        still[kind] += scaling.size(record) if begun <= since else 0
    return Ran(Mix(*seconds), Mix(*still))


async def account(record: FleetRecord) -> dict[str, Any] | None:
    """What a fleet costs an hour and what it has `spent`, `at` its last look, with its `budget` and the `workers` that are paid
    for, `spot` among them (None: none can be); None where its policy has no price.
    """
    (*_, decision), state = await record.policy_decisions(1) or [{}], await record.policy_state()
    told, policy, seen = state.get("cost"), decision.get("cost") or {}, decision.get("seen") or {}
    if not told or seen.get("spent") is None:
        return None
    return {
        "at": told["at"],
        "per_hour": told["per_hour"],
        "spent": told["spent"],
        "budget": policy.get("budget"),
        "cost_threshold": policy.get("cost_threshold"),
        "workers": int(told["on_demand"] + told["spot"]),
        "spot": None if seen.get("spot") is None else int(told["spot"]),
    }


async def broke(record: FleetRecord, since: float) -> dict[str, Any] | None:
    """The account of a fleet without workers whose budget was found to be spent after `since` (s); None if it was not."""
    found, decisions = await account(record), await record.policy_decisions(1)
    if found is None or found["budget"] is None or decisions[-1]["at"] < since:
        return None
    last: Mapping[str, Any] = decisions[-1]
    return found if not last["desired"] and last["seen"]["spent"] >= found["budget"] else None


def _is_spot(record: Any) -> bool:
    return SPOT in (record.capabilities or ())


def _begun(record: Any) -> float:
    try:
        return datetime.fromisoformat(record.started_at).timestamp()
    except (TypeError, ValueError):
        return 0.0
