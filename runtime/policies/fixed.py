"""`fixed`: always the same number of workers, whatever the demand."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.policies.observation import Observation, Want
from flatfleet.runtime.policies.settings import Settings


def want(o: Observation, s: Settings, state: dict[str, Any]) -> Want:
    """Want `workers`, or the stored target where the settings name no number."""
    if s.workers is None:
        return Want("fixed", o.target, f"the target stays at {o.target}")
    return Want("fixed", s.workers, f"workers = {s.workers}")
