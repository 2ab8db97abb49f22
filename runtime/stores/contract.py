"""The contract of a store: the records, and the atomic operations that every driver implements.

A driver is one object with the operations below; each is one atomic step, whatever is killed when. `store.Store` wraps
a driver in the SDK's protocols (WorkBackend, RegistrationBackend, SignalBackend, ResultBackend, PersistenceBackend,
ConfigStore, ExecutionLock). Times are seconds since the epoch on the store's own clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from flatmachines import Signal, WorkerRecord, WorkerRegistration, WorkItem

State = Literal["ready", "delayed", "claimed", "completed", "dead"]
Outcome = Literal["completed", "failed", "crashed", "released", "provider"]

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
    """One ended attempt at an item: who, when, how it ended, and at what cost (USD)."""

    token: int
    worker: str
    started: float
    ended: float
    outcome: Outcome
    error_type: str | None = None
    error: str | None = None
    cost: float = 0.0


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


class Driver(Protocol):
    """The atomic operations of a store. All raise StoreUnavailable where the store cannot be reached.

    Items. A claim moves a *ready* item (or a delayed one that is due) to *claimed*, raises its token by one and lets
    the lease run. Expired claims are handed back by whoever claims or reaps next: recorded as a `crashed` attempt and,
    at `max_crashes`, dead. An item with SUSPECT crashes or more is not claimed by an owner who holds another such item:
    whichever kills its process, it takes no other suspect along, so that an innocent neighbour survives it.
    `complete`, `fail` and `release` with a token raise LeaseLost unless that token is the
    item's newest and the item is still claimed under it; without a token they act as the SDK's callers expect and are
    refused only where the item is not claimed. State, result, attempt and the item's checkpoints change together.
    """

    durable: bool

    async def push(self, pool: str, items: Sequence[NewItem]) -> list[bool]:
        """Atomically add the items whose id is new; answer for each whether it was added."""
        ...

    async def claim(
        self, pool: str, worker: str, owner: str, n: int, lease: float, capabilities: Collection[str]
    ) -> list[Claim]:
        """Atomically claim up to `n` items, highest priority first, then oldest; only those whose `requires` ⊆ capabilities."""
        ...

    async def complete(self, item_id: str, result: Any, token: int | None, cost: float) -> None:
        """Atomically commit the result: state, result, attempt; drops the item's checkpoints."""
        ...

    async def fail(self, item_id: str, failure: Failure, token: int | None, cost: float) -> State:
        """Atomically end the attempt as failed; return the item's new state (ready, delayed or dead).

        A finished snapshot (`machine_end`) of the item is dropped; an unfinished one is kept for the next attempt.
        """
        ...

    async def release(self, item_id: str, token: int | None) -> None:
        """Atomically hand an item back unburnt: attempt recorded as `released`, no limit counts it."""
        ...

    async def hand_back(
        self, *, pool: str | None = None, worker: str | None = None, owner: str | None = None, crashed: bool
    ) -> int:
        """Atomically hand back all claims that match every given filter (at least one); return how many."""
        ...

    async def retry(self, pool: str, ids: Sequence[str] | None) -> int:
        """Atomically make dead items ready again (all of the pool if `ids` is None) with fresh limits; tokens go on."""
        ...

    async def item(self, item_id: str) -> Item | None: ...

    async def items(self, pool: str, state: State | None, limit: int, after: str | None) -> list[Item]:
        """Items of a pool in push order, from behind the item `after`."""
        ...

    async def attempts(self, item_id: str) -> list[Attempt]:
        """The ended attempts of an item, oldest first."""
        ...

    async def counts(self, pool: str) -> Counts: ...

    async def pools(self) -> list[str]: ...

    async def errors(self, pool: str) -> dict[str, int]:
        """Dead items of a pool by error type."""
        ...

    async def next_due(self, pool: str) -> float | None:
        """The earliest time at which a delayed item becomes due or a claim expires; None if there is neither."""
        ...

    # -- workers ---------------------------------------------------------------------------------------------------

    async def register(
        self, worker: WorkerRegistration, owner: str, lease: float, metadata: Mapping[str, Any]
    ) -> WorkerRecord:
        """Atomically register a worker; raises WorkerConflict if the id is alive under another owner."""
        ...

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        """Atomically renew registrations and the leases {item_id: token} of one process; tell which are gone."""
        ...

    async def set_status(self, worker_id: str, status: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Set a worker's status (the SDK's words) and merge metadata; KeyError for an unknown worker."""
        ...

    async def workers(self, worker_id: str | None = None) -> list[WorkerRecord]:
        """All workers, or the one; `current_task_id` is the item it holds. metadata has `owner` and `lease_until`."""
        ...

    async def owners(self) -> list[str]:
        """The owners (process identities) of live claims and live registrations."""
        ...

    async def claims(self, owner: str) -> dict[str, int]:
        """{item id: token} of all that an owner has claimed."""
        ...

    async def mark_lost(self, owner: str | None) -> list[str]:
        """Atomically mark live workers lost: those of `owner`, or (None) those whose lease has run out; return their ids."""
        ...

    # -- entries: results of executions, configs, anything by key ------------------------------------------------------

    async def put(self, key: str, value: Any) -> None: ...

    async def get(self, key: str) -> tuple[bool, Any]:
        """(found, value)."""
        ...

    async def drop(self, key: str) -> None: ...

    # -- snapshots -------------------------------------------------------------------------------------------------

    async def save_snapshot(self, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None) -> None:
        """Atomically replace the execution's snapshot and delete those whose execution id starts with `drop`.

        With a fence (item id, token) it raises LeaseLost unless that token is the item's live claim.
        """
        ...

    async def load_snapshot(self, execution_id: str) -> SnapshotRow | None: ...

    async def drop_snapshots(self, execution_id: str) -> None:
        """Delete the snapshots of an execution and of its descendants ({execution_id}:…)."""
        ...

    async def snapshots(self, event: str | None, channel: str | None) -> list[SnapshotRow]:
        """The latest snapshots (bodies left empty) that match, oldest first."""
        ...

    # -- signals -----------------------------------------------------------------------------------------------------

    async def send(self, channel: str, data: Any) -> str: ...

    async def consume(self, channel: str) -> Signal | None:
        """Atomically take the oldest message of the channel."""
        ...

    async def peek(self, channel: str) -> list[Signal]: ...

    async def channels(self) -> list[str]: ...

    # -- locks -------------------------------------------------------------------------------------------------------

    async def lock(self, key: str, owner: str, lease: float) -> bool:
        """Atomically take the lock if it is free, expired, or already `owner`'s; `beat` by the owner renews it."""
        ...

    async def unlock(self, key: str, owner: str) -> None: ...

    async def close(self) -> None: ...
