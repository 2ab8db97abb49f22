"""What a policy is compared with: a fixed fleet, Kubernetes' rule, seasonal naive."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from flatfleet.runtime.policies import forecast
from flatfleet.runtime.replay.contract import Terms
from flatfleet.runtime.replay.simulator import Fleet

MOST = 100_000


class _Baseline:
    """A candidate without a price for items, and that does not observe."""

    initial = 1
    interval: float | None = None
    window: float | None = None
    per_item = 0.0
    prefers_spot = False

    def __init__(self, name: str, price: float | None = None) -> None:
        self.name, self.price = name, price

    def decide(self, at: float, fleet: Fleet) -> int:
        return fleet.target

    def terms(self) -> Terms:
        return Terms(self.price)


class Fixed(_Baseline):
    """Always so many workers, all of them ready at the start."""

    def __init__(self, workers: int, price: float | None = None) -> None:
        super().__init__(f"fixed:{workers}", price)
        self.initial = workers


class Hpa(_Baseline):
    """Kubernetes' HorizontalPodAutoscaler (autoscaling/v2) with its defaults on (waiting + claimed) per worker.

    Every 15 s: ⌈demand / target⌉, or no change where demand / (target × current) is within 0.1 of 1; of the
    recommendations of the last 300 s the largest; up by 100 % or 4 at most in 15 s, whichever is more; down without a
    limit but the window; what is there at first counts as recommended then. Source: Kubernetes, "Horizontal Pod
    Autoscaling" and `horizontal.go` (recordInitialRecommendation, stabilizeRecommendationWithBehaviors,
    convertDesiredReplicasWithBehaviorRate).
    """

    TOLERANCE, DOWN_WINDOW, PERIOD, UP_SHARE, UP_PODS = 0.1, 300.0, 15.0, 1.0, 4

    def __init__(self, target: float = 0.7, low: int = 1, high: int = MOST, price: float | None = None) -> None:
        super().__init__(f"hpa:{target:g}", price)
        self.metric, self.low, self.high = target, low, high
        self.initial, self.interval = low, self.PERIOD
        self._recommended: deque[tuple[float, int]] = deque()
        self._ups: deque[tuple[float, int]] = deque()
        self._begun = False

    def decide(self, at: float, fleet: Fleet) -> int:
        if not self._begun:
            self._begun = True
            self._recommended.append((at, fleet.target))
        return self.rule(at, fleet.target, fleet.waiting + fleet.claimed)

    def rule(self, at: float, current: int, demand: int) -> int:
        """The replicas from now on, where `current` are asked for and `demand` items wait or are claimed."""
        while self._recommended and self._recommended[0][0] <= at - self.DOWN_WINDOW:
            self._recommended.popleft()
        while self._ups and self._ups[0][0] <= at - self.PERIOD:
            self._ups.popleft()
        wanted = current
        if current == 0 or abs(demand / (self.metric * current) - 1) > self.TOLERANCE:
            wanted = math.ceil(demand / self.metric - 1e-9)
        self._recommended.append((at, wanted))
        if wanted < current:
            wanted = min(current, max(each for _, each in self._recommended))
        if wanted > current:
            before = current - sum(each for _, each in self._ups)
            wanted = min(wanted, max(math.ceil(before * (1 + self.UP_SHARE)), before + self.UP_PODS))
            wanted = max(current, wanted)
        wanted = max(self.low, min(self.high, wanted))
        if wanted > current:
            self._ups.append((at, wanted - current))
        return wanted


class SeasonalNaive(_Baseline):
    """As many workers as keep the rate of one season ago, a start-up time ahead, at `utilisation`; no queue is looked at.

    Without a season behind it: the rate of the last 10 minutes, which is the naive forecast. Decides once a minute.
    """

    SEASON, WINDOW, INTERVAL = 86_400.0, 600.0, 60.0

    def __init__(self, utilisation: float = 0.7, startup: float = 30.0, price: float | None = None) -> None:
        super().__init__(f"seasonal:{utilisation:g}", price)
        self.utilisation, self.startup = utilisation, startup
        self.interval, self.window = self.INTERVAL, self.WINDOW
        self._state: dict[str, Any] = {}
        self._work = self._items = 0.0

    def decide(self, at: float, fleet: Fleet) -> int:
        seen = fleet.observe(at)
        if seen.service_mean is not None and seen.throughput is not None:
            self._work += seen.throughput * seen.service_mean
            self._items += seen.throughput
        rate, _ = forecast.seasonal(self._state, at, seen.arrival_rate, self.startup + self.INTERVAL, self.SEASON)
        rate = seen.arrival_rate if rate is None else rate
        if rate is None or not self._items:
            return fleet.target
        return max(1, math.ceil(rate * self._work / self._items / self.utilisation - 1e-9))
