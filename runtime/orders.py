"""What people have ordered of an autoscaler: scaling is paused, or a message of theirs holds the target for a time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.policies import memory
from flatfleet.runtime.stores.fleets import FleetRecord

BY = "autoscaler"
"""Who sends the messages of autoscalers."""
_DONE = ("applied", "unchanged")


def ordered(state: Mapping[str, Any], orders: Mapping[str, Any], hold: Mapping[str, Any], at: float) -> dict[str, Any]:
    """The policies' state with what people have ordered: `FleetRecord.orders` and `hold`, as of a time (s)."""
    if paused(orders, at):
        return memory.pause({name: value for name, value in state.items() if name != "hold_until"})
    found = memory.pause(state, False)
    return memory.hold(found, hold["until"]) if held(orders, hold, at) else found


def paused(orders: Mapping[str, Any], at: float) -> bool:
    until = orders.get("until")
    return bool(orders.get("paused")) and (until is None or at < until)


def held(orders: Mapping[str, Any], hold: Mapping[str, Any], at: float) -> bool:
    """Whether a message holds the target, and scaling was not resumed since it was decided on."""
    return at < hold.get("until", 0.0) and hold["at"] > orders.get("resumed_at", 0.0)


async def keep_hold(record: FleetRecord, decision: Mapping[str, Any]) -> None:
    """Note the hold that a decision of the scaler asks for, if it does; of two the later one counts, also a shorter."""
    message = decision["message"]
    span = message.get("hold") if isinstance(message, Mapping) else None
    if span is None or decision["outcome"] not in _DONE or decision["by"] == BY:
        return
    if (await record.hold()).get("id") != decision["id"]:  # else it is recorded once more
        now = time.time()
        await record.keep_hold({"id": decision["id"], "at": now, "until": now + span, "by": decision["by"]})


async def in_force(record: FleetRecord, at: float) -> dict[str, Any]:
    """What holds at a time (s): `paused`, `paused_until` (None: until it is resumed), `paused_by`, `held_until`, `held_by`,
    the `policy` that decided last, and the `fault` for which nothing can be decided (None: it can)."""
    orders, hold, last = await record.orders(), await record.hold(), await record.policy_decisions(1)
    off, fixed = paused(orders, at), held(orders, hold, at)
    return {
        "paused": off,
        "paused_until": orders.get("until") if off else None,
        "paused_by": orders.get("by") if off else None,
        "held_until": hold["until"] if fixed else None,
        "held_by": hold.get("by") if fixed else None,
        "policy": last[-1].get("policy") if last else None,
        "fault": await record.fault() or None,
    }
