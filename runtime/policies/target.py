"""`target`: keep the items per worker at `target_utilization`, by the rule of Kubernetes' HorizontalPodAutoscaler."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.policies.observation import Observation, Want
from flatfleet.runtime.policies.settings import Settings


def want(o: Observation, s: Settings, state: dict[str, Any]) -> Want:
    """Want current × metric / target, where the metric is (waiting + claimed + expired) per worker.

    The current number cancels out. The caller's tolerance applies to the ratio, before it is rounded up.
    Source: Kubernetes, "Horizontal Pod Autoscaling", algorithm details.
    """
    demand = o.demand
    if demand is None:
        return Want("target", None, "the demand is not known")
    seen = {"demand": demand, "per_worker": round(demand / o.target, 3) if o.target else None}
    return Want("target", demand / s.target_utilization, f"{demand} items at {s.target_utilization:g} a worker", seen)
