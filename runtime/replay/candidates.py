"""The production policy as a candidate: decided by the code that decides in production, on what the simulation measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flatfleet.runtime.policies.deciding import Decision, decide
from flatfleet.runtime.policies.settings import Settings
from flatfleet.runtime.replay.contract import Terms
from flatfleet.runtime.replay.simulator import Fleet


class Production:
    """`settings.fleet` under `decide`. It begins with `min` workers, or with `workers` where it is fixed."""

    def __init__(
        self, name: str, settings: Settings, interval: float | None = None, price: float | None = None
    ) -> None:
        """`interval` and `price` (a worker-hour) stand in for those of the settings."""
        if interval is not None:
            settings = replace(settings, interval=interval, stale_after=max(settings.stale_after, 3 * interval))
        if price is not None:
            settings = replace(settings, cost=settings.cost._replace(per_worker_hour=price))
        self.name, self.settings = name, settings
        self.interval: float | None = settings.interval
        self.window: float | None = settings.metrics_window
        self.initial = settings.min if settings.workers is None else settings.workers
        self.per_item, self.prefers_spot = settings.cost.per_item, settings.prefer_spot
        self.state: dict[str, Any] = {}
        self.last: Decision | None = None

    def decide(self, at: float, fleet: Fleet) -> int:
        self.last, self.state = decide(fleet.observe(at), self.settings, self.state)
        return self.last.desired

    def terms(self) -> Terms:
        """The price of what was last asked for; of a fleet that prefers spot workers only those can be lost."""
        cost, first = self.settings.cost, "spot" if self.settings.prefer_spot else None
        capacity = first if self.last is None else self.last.capacity
        spot = capacity == "spot" and cost.per_spot_hour is not None
        return Terms(cost.per_spot_hour if spot else cost.per_worker_hour, safe=capacity == "on-demand")
