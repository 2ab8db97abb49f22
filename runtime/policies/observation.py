"""What a policy is told about a fleet at one moment, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SHORTEST = 1e-9
"""No mean service time is taken for shorter, s: its inverse is to be a rate."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a fleet and its pool. Seconds and rates per second throughout; None says: not measured.

    Workers count as parallelism. A number that is not finite counts as not measured, a shorter service as `SHORTEST`.
    """

    at: float
    """When it was looked at, s."""
    workers: int = 0
    """Live parallelism: running, with those that are starting, without those that are draining."""
    starting: int = 0
    """Of these, launched and not yet claiming."""
    draining: int = 0
    target: int = 0
    """The stored target: what the fleet was last told to have."""
    waiting: int | None = None
    claimed: int | None = None
    expired: int | None = None
    """Claimed, and the lease has run out: waits for another worker."""
    delayed: int | None = None
    """To be retried later; no demand yet."""
    arrival_rate: float | None = None
    arrival_cv2: float | None = None
    """Squared coefficient of variation of the time between arrivals."""
    service_mean: float | None = None
    service_cv2: float | None = None
    startup: float | None = None
    """From the launch of a worker to its first claim."""
    dispatch: float | None = None
    """What handing one item to a worker takes beside its service."""
    wait_mean: float | None = None
    wait_p50: float | None = None
    wait_p95: float | None = None
    oldest_wait: float | None = None
    response: float | None = None
    """Mean time from the push of an item to its result."""
    throughput: float | None = None
    utilisation: float | None = None
    """Busy parallelism / live parallelism, 0 to 1."""
    idle: float | None = None
    """Since the last demand."""
    provider_faults: float | None = None
    """Attempts that ended by a provider's fault: too many requests, an error of its own, no answer in time. Per second."""
    measured: float | None = None
    """When the demand was measured; None where it was not."""
    spot: int | None = None
    """Of `workers` and `draining`, what runs on spot hosts; None where there can be none, or nobody prefers them."""
    completed: int | None = None
    """Items of the pool that are done; measured where an item has a price."""
    cost_per_hour: float | None = None
    """What the workers cost, and, while there are some, the items at the present throughput."""
    spent: float | None = None
    """Since the fleet's first decision."""

    def __post_init__(self) -> None:
        for name in _FLOATS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (value >= 0 or name == "measured")):
                object.__setattr__(self, name, None)
        if self.service_mean and self.service_mean < SHORTEST:
            object.__setattr__(self, "service_mean", SHORTEST)

    @property
    def demand(self) -> int | None:
        """Items that want a worker now: waiting + claimed + expired; None where one of them is missing."""
        if self.waiting is None or self.claimed is None or self.expired is None:
            return None
        return self.waiting + self.claimed + self.expired

    @property
    def queued(self) -> int | None:
        """Items that no worker serves: waiting + expired."""
        return None if self.waiting is None or self.expired is None else self.waiting + self.expired

    def missing(self, stale_after: float) -> str | None:
        """Why the demand cannot be relied on: not measured, or longer than `stale_after` seconds ago. None if it can."""
        if self.demand is None:
            return "the demand was not measured"
        if self.measured is not None and self.at - self.measured > stale_after:
            return f"the demand was measured {self.at - self.measured:.0f} s ago"
        return None

    def data(self) -> dict[str, Any]:
        """This as JSON data, without what is missing."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Observation:
        """The observation that `data()` gave, also of a decision's `seen`; unknown names are passed over."""
        return cls(**{name: value for name, value in data.items() if name in _NAMES})


_NAMES = tuple(each.name for each in fields(Observation))
_FLOATS = tuple(each.name for each in fields(Observation) if each.type == "float | None")


@dataclass(frozen=True, slots=True)
class Want:
    """What one policy wants. `desired` None: it cannot tell, so the fleet must not shrink, unless it `abstains`."""

    policy: str
    desired: float | None
    reason: str
    seen: dict[str, Any] = field(default_factory=dict)
    """The numbers that it looked at."""
    abstains: bool = False
    """It has no objection to whatever the others want."""

    def data(self) -> dict[str, Any]:
        return {"policy": self.policy, "desired": _tidy(self.desired), "reason": self.reason, "seen": self.seen}


def _tidy(value: float | None) -> float | None:
    return value if value is None else round(value, 3)
