"""`thresholds`: one step up where any sign of overload shows, one step down where all signs are quiet for long enough."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.policies.clamps import steps
from flatfleet.runtime.policies.observation import Observation, Want
from flatfleet.runtime.policies.settings import Settings


def want(o: Observation, s: Settings, state: dict[str, Any]) -> Want:
    """Want a step up on *any* of utilisation, depth, wait and response; down only if *all* signs are quiet.

    Quiet are: utilisation < `scale_down_threshold`, nothing queued, and both for `idle_terminate` seconds, in which so
    many workers had nothing to do. State: `quiet_since`, s.
    """
    depth = o.queued or 0
    busy = o.utilisation
    if busy is None and o.claimed is not None and o.workers:
        busy = min(1.0, o.claimed / o.workers)
    seen = {"utilisation": busy, "depth": depth, "wait_mean": o.wait_mean, "response": o.response}
    if over := _overload(o, s, depth, busy):
        state.pop("quiet_since", None)
        return Want("thresholds", o.target + steps(s.scale_up_rate or (1,), o.target), "; ".join(over), seen)
    if busy is None and o.workers:
        state.pop("quiet_since", None)
        return Want("thresholds", None, "the utilisation is not known", seen)
    if depth or (busy or 0.0) >= s.scale_down_threshold:
        state.pop("quiet_since", None)
        return Want("thresholds", o.target, "between the thresholds", seen)
    since = state.setdefault("quiet_since", o.at)
    quiet = max(o.at - since, o.idle or 0.0)
    seen["quiet"] = round(quiet, 3)
    if quiet < s.idle_terminate or not o.target:
        return Want("thresholds", o.target, f"quiet for {quiet:.0f} of {s.idle_terminate:g} s", seen)
    down = steps(s.scale_down_rate or (1,), o.target)
    reason = f"utilisation < {s.scale_down_threshold:g} and nothing queued for {quiet:.0f} s"
    return Want("thresholds", max(0, o.target - down), reason, seen)


def _overload(o: Observation, s: Settings, depth: int, busy: float | None) -> list[str]:
    over = []
    if busy is not None and busy > s.scale_up_threshold:
        over.append(f"utilisation {busy:.2f} > {s.scale_up_threshold:g}")
    if depth > s.queue_depth:
        over.append(f"depth {depth} > {s.queue_depth}")
    if depth and o.wait_mean is not None and o.wait_mean > s.max_wait:
        over.append(f"mean wait {o.wait_mean:.3g} s > {s.max_wait:g} s with {depth} queued")
    if s.sla is not None and o.response is not None and o.response > s.sla:
        over.append(f"response {o.response:.3g} s > sla {s.sla:g} s")
    return over
