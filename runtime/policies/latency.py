"""`latency`: so many workers that the backlog of each is one that it works off within the acceptable wait."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.policies.observation import Observation, Want
from flatfleet.runtime.policies.settings import Settings


def want(o: Observation, s: Settings, state: dict[str, Any]) -> Want:
    """Want demand / (1 + `max_wait` / mean service time): the item that a worker has, and its acceptable backlog.

    The acceptable backlog per worker is the acceptable wait over the mean service time (AWS, "Scaling policy based on
    Amazon SQS"). There it counts waiting items alone, so that a fleet which keeps up wants no workers; here claimed
    items count, one a worker.
    """
    demand = o.demand
    if demand is None:
        return Want("latency", None, "the demand is not known")
    if demand == 0:
        return Want("latency", 0.0, "no demand", {"demand": 0})
    if not o.service_mean:
        if o.queued:
            reason = "no service time measured yet, and items wait: one more"
            return Want("latency", o.target + 1, reason, {"demand": demand})
        return Want("latency", None, "no service time measured yet", {"demand": demand})
    backlog = s.max_wait / o.service_mean
    seen: dict[str, Any] = {"demand": demand, "service_mean": o.service_mean, "acceptable_backlog": round(backlog, 3)}
    reason = f"{demand} items; a worker may have 1 in hand and {backlog:.3g} waiting ({s.max_wait:g} s)"
    return Want("latency", demand / (1 + backlog), reason, seen)
