"""What a fleet measures of itself, over a bounded window: the numbers of an `Observation`, as a store would have them."""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

MOST = 10_000
"""Entries that a window keeps at most; of more it keeps the last ones, and measures over their time."""
STARTS = 20
"""Starts that the start-up time is the mean of."""


class Windows:
    """Arrivals, claims and completions of the last `length` seconds. Times are arguments, and do not fall."""

    def __init__(self, length: float, start: float) -> None:
        self.length, self.start = length, start
        self.arrivals: deque[float] = deque(maxlen=MOST)
        self.claims: deque[tuple[float, float]] = deque(maxlen=MOST)
        """When, and after which wait."""
        self.completions: deque[tuple[float, float, float]] = deque(maxlen=MOST)
        """When, after which service, and how long after the arrival."""
        self.startups: deque[float] = deque(maxlen=STARTS)

    def measure(self, at: float) -> dict[str, Any]:
        """What an observation says of arrivals, waits and service at this time; what was not measured is left out."""
        since = at - self.length
        arrivals, claims, completions = self.arrivals, self.claims, self.completions
        while arrivals and arrivals[0] <= since:
            arrivals.popleft()
        while claims and claims[0][0] <= since:
            claims.popleft()
        while completions and completions[0][0] <= since:
            completions.popleft()
        found: dict[str, Any] = {}
        if self.startups:
            found["startup"] = sum(self.startups) / len(self.startups)
        passed = min(self.length, at - self.start)
        if passed > 0:
            found["arrival_rate"] = len(arrivals) / _span(arrivals, arrivals and arrivals[0], at, passed)
            found["throughput"] = len(completions) / _span(completions, completions and completions[0][0], at, passed)
        gaps = list(map(operator.sub, islice(arrivals, 1, None), arrivals))
        if len(gaps) > 1 and (cv2 := _cv2(gaps)) is not None:
            found["arrival_cv2"] = cv2
        if completions:
            services = [each[1] for each in completions]
            found["service_mean"] = sum(services) / len(services)
            found["response"] = sum(each[2] for each in completions) / len(services)
            if len(services) > 1 and (cv2 := _cv2(services)) is not None:
                found["service_cv2"] = cv2
        if claims:
            waits = sorted(each[1] for each in claims)
            found["wait_mean"] = sum(waits) / len(waits)
            found["wait_p50"], found["wait_p95"] = percentile(waits, 0.5), percentile(waits, 0.95)
        return found


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of them does not exceed (nearest rank); nan of none."""
    return ordered[max(0, math.ceil(part * len(ordered) - 1e-9) - 1)] if ordered else math.nan


def _span(entries: deque[Any], first: Any, at: float, passed: float) -> float:
    """The time that the entries stand for: less than the window where it was too full to keep them all."""
    return max(at - first, 1e-9) if len(entries) == MOST else passed


def _cv2(values: Sequence[float]) -> float | None:
    """Variance ÷ squared mean; None where the mean is 0."""
    mean = sum(values) / len(values)
    if mean <= 0:
        return None
    return sum((value / mean - 1) ** 2 for value in values) / (len(values) - 1)
