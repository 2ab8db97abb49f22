"""The records of a store, and the words for their states. Times are seconds since the epoch on the store's clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flatmachines import WorkItem

State = Literal["ready", "delayed", "claimed", "completed", "dead"]
Outcome = Literal["completed", "failed", "crashed", "released", "provider", "cancelled"]

#: Our states of an item → the SDK's words on the wire. The only place where they meet.
WIRE_ITEM: Mapping[State, str] = {
    "ready": "pending",
    "delayed": "pending",
    "claimed": "claimed",
    "completed": "completed",
    "dead": "poisoned",
}
#: The SDK's words for a worker → the words on the screen.
SCREEN_WORKER: Mapping[str, str] = {
    "active": "active",
    "terminating": "draining",
    "terminated": "terminated",
    "lost": "lost",
}
LIVE_WORKER = frozenset({"active", "terminating"})

LEASE = 60.0
"""Seconds that a lease lasts without renewal; the holder renews at a third of it."""

WALKED = 50
"""States of an attempt that are kept with it."""

DECISIONS = 1000
"""Decisions that are kept of a fleet."""

POLICY = "/autoscaler"
"""How the name ends under which the decisions of a fleet's autoscaler stand beside those of its scaler; no pool has it."""

DELIVERED = 1000
"""Executions that one `deliver` names at most."""

WAITING, WOKEN = "waiting", "woken"
"""The events of the snapshots of those who wait on a channel: parked there, or between the message that woke them and
their next park or their end."""
CUT_OFF = ("machine_start", "state_enter")
"""The events of the snapshots of those who have not parked since they were begun."""
WAITING_STOCK = "waiting (stock)"
"""The event of a parked machine of the SDK's own class: whoever runs it takes its messages from the channel."""

SUSPECT = 3
"""Crashes from which on an item is claimed alone: at most one such item is in the hands of one process at a time."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to push. `id` is final; `not_before` is a time on the store's clock, 0 for now."""

    id: str
    key: str
    data: Any
    priority: int = 0
    not_before: float = 0.0
    requires: tuple[str, ...] = ()
    max_attempts: int = 3
    max_crashes: int = 10


@dataclass
class Claim(WorkItem):
    """A claimed item: the SDK's WorkItem plus what fences and bounds the claim."""

    pool: str = ""
    key: str = ""
    token: int = 0
    crashes: int = 0
    lease_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt went wrong.

    `consume` counts it against the item's attempts; `permanent` makes the item dead at once; `retry_after` is seconds
    until the item may be claimed again (None: exponential backoff by attempts).
    """

    type: str
    text: str
    consume: bool = True
    permanent: bool = False
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One ended attempt at an item: who, when, how it ended, at what cost (USD), and the states it `walked`, the last 50."""

    token: int
    worker: str
    started: float
    ended: float
    outcome: Outcome
    error_type: str | None = None
    error: str | None = None
    cost: float = 0.0
    walked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """Everything about one item but its attempts. `due` is when a delayed item may run, or when a claim's lease ends."""

    id: str
    pool: str
    key: str
    state: State
    data: Any
    result: Any
    priority: int
    due: float
    token: int
    attempts: int
    crashes: int
    max_attempts: int
    max_crashes: int
    requires: tuple[str, ...]
    worker: str | None
    owner: str | None
    error_type: str | None
    error: str | None
    created: float
    started: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of a pool by what they need: `waiting` may run now, `expired` are claims whose lease has run out."""

    waiting: int = 0
    delayed: int = 0
    claimed: int = 0
    expired: int = 0
    completed: int = 0
    dead: int = 0

    @property
    def left(self) -> int:
        """Items that are neither completed nor dead."""
        return self.waiting + self.delayed + self.claimed + self.expired

    @property
    def total(self) -> int:
        return self.left + self.completed + self.dead


@dataclass(frozen=True, slots=True)
class Beat:
    """Answer to a heartbeat: the leases that are gone, and the status of each worker (None: unknown)."""

    lost: tuple[str, ...] = ()
    workers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """The latest snapshot of an execution: the SDK's key for it and its bytes."""

    execution_id: str
    name: str
    body: bytes
    event: str | None = None
    channel: str | None = None
    updated: float = 0.0
