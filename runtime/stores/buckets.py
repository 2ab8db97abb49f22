"""What a store measures of a pool: one bucket a second, of sums and a histogram, kept for an hour."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from flatfleet.runtime.stores.records import Counts

KEPT = 3600
"""Seconds for which buckets are kept, and so the longest window that can be measured."""
_SMOOTH = 0.2
"""What the newest start-up time counts in their moving mean."""

Kind = Literal["pushed", "claimed", "completed", "failed", "provider", "started"]
Event = tuple[str, Kind, float, float]
"""Pool, what happened, and up to two numbers: see `Bucket.add`."""

_LEAST, _STEPS = 0.001, 4
"""The histogram's first bin ends at 1 ms; each further one is 2^(1/4) = 1.19 times as wide, so that it errs by 9 %."""


@dataclass(slots=True)
class Bucket:
    """One second of a pool: numbers of events, and sums (of squares, too) of seconds."""

    at: int
    """Its second, since the epoch."""
    arrivals: int = 0
    gaps: int = 0
    gap: float = 0.0
    gap2: float = 0.0
    """Between an item and the one before it; none before the first of all."""
    completed: int = 0
    failed: int = 0
    provider: int = 0
    """Attempts that ended by a provider's fault."""
    service: float = 0.0
    service2: float = 0.0
    """Of the completed and failed attempts."""
    response: float = 0.0
    """Of the completed items, from their push."""
    waits: int = 0
    wait: float = 0.0
    startup: float | None = None
    """Of the latest workers, from their registration to the first time that they asked for an item: a moving mean."""
    last_arrival: float | None = None
    last_end: float | None = None
    """These three are of all time, not of this second."""
    hist: dict[str, int] = field(default_factory=dict)
    """Waits by `bin`."""

    def next(self, at: int) -> Bucket:
        return Bucket(at, startup=self.startup, last_arrival=self.last_arrival, last_end=self.last_end)

    def add(self, kind: Kind, now: float, value: float, more: float = 0.0) -> None:
        """Enter an event: `pushed` so many items, `claimed` after a wait, `completed` after a service and a response time,
        `failed` or `provider` after a service time, `started` (a worker) after a start-up time. Seconds.
        """
        value = max(0.0, value)
        if kind == "claimed":
            self.waits += 1
            self.wait += value
            name = bin_of(value)
            self.hist[name] = self.hist.get(name, 0) + 1
        elif kind == "pushed":
            self.arrivals += int(value)
            self.gaps += int(value) - (self.last_arrival is None)
            if self.last_arrival is not None:
                gap = max(0.0, now - self.last_arrival)
                self.gap, self.gap2 = self.gap + gap, self.gap2 + gap * gap
            self.last_arrival = now
        elif kind == "started":
            self.startup = value if self.startup is None else self.startup + _SMOOTH * (value - self.startup)
        else:
            self._end(kind, now, value, max(0.0, more))

    def _end(self, kind: Kind, now: float, service: float, response: float) -> None:
        self.last_end = now
        if kind == "provider":
            self.provider += 1
            return
        self.service += service
        self.service2 += service * service
        if kind == "completed":
            self.completed += 1
            self.response += response
        else:
            self.failed += 1

    def text(self) -> str:
        return json.dumps([getattr(self, name) for name in _NAMES], separators=(",", ":"))

    @classmethod
    def of(cls, at: int, text: str) -> Bucket:
        return cls(at, *json.loads(text))

    def copy(self) -> Bucket:
        return Bucket.of(self.at, self.text())


_NAMES = tuple(each.name for each in fields(Bucket))[1:]


@dataclass(frozen=True, slots=True)
class Activity:
    """A pool and its workers at one moment of the store's clock, and what was measured before it."""

    at: float
    counts: Counts
    buckets: tuple[Bucket, ...] = ()
    """Of the seconds asked for in which something happened, oldest first."""
    last_arrival: float | None = None
    last_end: float | None = None
    startup: float | None = None
    oldest: float | None = None
    """Since when the item waits that has waited longest; None if none waits."""
    crew: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """By process: the parallelism that is live, how much of it has not asked for an item yet, and what is draining."""


def bin_of(seconds: float) -> str:
    """The histogram's bin of a time, as the text that JSON makes of a key."""
    return "0" if seconds < _LEAST else str(1 + math.floor(_STEPS * math.log2(seconds / _LEAST)))


def quantile(hist: Mapping[str, int], level: float) -> float | None:
    """The time, s, that a part `level` (0 to 1) of a histogram does not exceed; the middle of its bin. None: it is empty."""
    rest = math.ceil(level * sum(hist.values()))
    for number, n in sorted((int(name), n) for name, n in hist.items()):
        rest -= n
        if rest <= 0:
            return 0.0 if number == 0 else float(_LEAST * 2 ** ((number - 0.5) / _STEPS))
    return None


def merged(hists: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for hist in hists:
        for name, n in hist.items():
            found[name] = found.get(name, 0) + n
    return found


def current(last: Bucket | None, now: float) -> tuple[Bucket, bool]:
    """The bucket of this second, and whether it is new; `last` is the pool's newest. A clock set back starts none."""
    second = int(now)
    if last is not None and last.at >= second:
        return last, False
    return (Bucket(second) if last is None else last.next(second)), True


def enter(bucket: Bucket, now: float, events: Iterable[tuple[Any, ...]]) -> None:
    for _, kind, value, more in events:
        bucket.add(kind, now, value, more)
