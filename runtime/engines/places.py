"""One host as its pool sees it: its state, how much of it is taken; whose turn it is; and a tally of times."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

from flatfleet.runtime.engines.hosts import Host
from flatfleet.runtime.engines.spec import Assignment, PoolSettings

State = Literal["starting", "ready", "leaving", "stopping", "gone"]
"""`leaving`: it was told to go by others, and drains; `stopping`: its pool lets it go; `gone`: it has died."""


class Place:
    """A host, its number in the order of starts, and how many machines it was given (`reserved`)."""

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.state: State = "starting"
        self.reserved = self.usage_count = 0
        self.last_used = self.since = time.time()
        self.idle_since = self._up_at = time.monotonic()
        self.asked: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def age(self) -> float:
        """Seconds since it came up."""
        return time.monotonic() - self._up_at

    def up(self) -> None:
        self.state = "ready"
        self.idle_since = self._up_at = time.monotonic()

    def enter(self) -> None:
        self.reserved += 1
        self.usage_count += 1
        self.last_used = time.time()

    def leave(self) -> None:
        self.reserved -= 1
        self.last_used, self.idle_since = time.time(), time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        state = "idle" if self.ready and not self.reserved else "busy" if self.ready else self.state
        return {
            "id": self.host.id,
            "state": state,
            "reserved": self.reserved,
            "usage_count": self.usage_count,
            "last_used": self.last_used,
            "since": self.since,
            "owner": self.host.owner,
            **self.host.about(),
        }


class Tally:
    """How many times there were, their mean and the longest, in seconds."""

    def __init__(self) -> None:
        self._n, self._sum, self._most = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        self._n += 1
        self._sum += seconds
        self._most = max(self._most, seconds)

    def as_dict(self) -> dict[str, Any]:
        return {
            "count": self._n,
            "mean": round(self._sum / self._n, 4) if self._n else None,
            "max": round(self._most, 4),
        }


def room(counted: Sequence[Place], waiting: int, settings: PoolSettings) -> float:
    """Machines that a host may run: its slots; without them an equal share, and any number once all hosts are up."""
    if settings.slots:
        return settings.slots
    if len(counted) >= settings.max_size and all(place.ready for place in counted):
        return math.inf
    wanted = waiting + sum(place.reserved for place in counted)
    return max(1, wanted // settings.max_size)


def turn(places: Sequence[Place], room: float, assignment: Assignment, last: int) -> Place | None:
    """The ready host, of those with room, that gets the next machine; `last` is the number of who got the one before."""
    free = [place for place in places if place.ready and place.reserved < room]
    if not free:
        return None
    if assignment == "least_loaded":
        return min(free, key=lambda place: (place.reserved, place.last_used))
    later = [place for place in free if place.number > last]
    return min(later or free, key=lambda place: place.number)


def full_of(settings: PoolSettings) -> str:
    """What to say to whom a pool refuses."""
    return (
        f"the engine's pool is full (max_size={settings.max_size}, slots={settings.slots}), and queue=false lets nobody "
        "wait: give it more, or launch fewer workers"
    )


def measured(places: Sequence[Place], slots: int) -> dict[str, Any]:
    """The hosts, how many machines they run, and the share of their slots that is taken.

    Without `slots` that is the share of the hosts that run something.
    """
    active = sum(place.reserved for place in places)
    taken = active if slots else sum(place.reserved > 0 for place in places)
    utilisation = min(1.0, taken / max(1, (slots or 1) * len(places)))
    return {"hosts": [place.as_dict() for place in places], "active": active, "utilisation": round(utilisation, 3)}
