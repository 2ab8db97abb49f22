"""The contract of a store: the atomic operations that every driver implements.

A driver is one object with the operations below; each is one atomic step, whatever is killed when. `store.Store` wraps
a driver in the SDK's protocols (WorkBackend, RegistrationBackend, SignalBackend, ResultBackend, PersistenceBackend,
ConfigStore, ExecutionLock). Times are seconds since the epoch on the store's own clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from flatfleet.runtime.stores.buckets import Activity
from flatfleet.runtime.stores.records import (
    Attempt,
    Beat,
    Claim,
    Counts,
    Failure,
    Item,
    NewItem,
    SnapshotRow,
    State,
)
from flatmachines import Signal, WorkerRecord, WorkerRegistration


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
        self,
        pool: str,
        worker: str,
        owner: str,
        n: int,
        lease: float,
        capabilities: Collection[str],
        limit: int | None = None,
    ) -> list[Claim]:
        """Atomically claim up to `n` items, highest priority first, then oldest; only those whose `requires` ⊆ capabilities.

        Never so many that the pool's live claims, of all workers together, exceed `limit`; none while the pool is paused.
        """
        ...

    async def complete(
        self, item_id: str, result: Any, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> None:
        """Atomically commit the result: state, result, attempt; drops the item's checkpoints.

        `walked` are the names of the states that the attempt went through; the last WALKED of them are kept with it.
        """
        ...

    async def fail(
        self, item_id: str, failure: Failure, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> State:
        """Atomically end the attempt as failed; return the item's new state (ready, delayed or dead).

        A finished snapshot (`machine_end`) of the item is dropped; an unfinished one is kept for the next attempt.
        """
        ...

    async def release(self, item_id: str, token: int | None, walked: Sequence[str] = ()) -> None:
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

    async def cancel(self, pool: str, ids: Sequence[str]) -> int:
        """Atomically make items of the pool that are ready, delayed or claimed dead, of error type `Cancelled`.

        A claimed one's attempt ends as `cancelled`, and its holder has lost the lease. Checkpoints are dropped. Unknown and
        finished ids are left alone; returns how many were cancelled.
        """
        ...

    async def pause(self, pool: str, until: float | None) -> None:
        """Atomically let nobody claim from the pool until then (math.inf: until it is resumed; None: resume it now)."""
        ...

    async def paused(self, pool: str) -> float | None:
        """Until when the pool is paused (math.inf: until it is resumed); None if it is not, or not any more."""
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

    async def metrics(self, pool: str, since: float, most: int) -> Activity:
        """The pool and its live workers now, and what was measured of it from the second of `since` on.

        At most the newest `most` seconds, of the last buckets.KEPT. Costs by the seconds and the workers, never by the
        items. A worker counts as starting until it has asked for an item once: its metadata has that time as `asked`.
        """
        ...

    # -- workers ---------------------------------------------------------------------------------------------------

    async def register(
        self, worker: WorkerRegistration, owner: str, lease: float, metadata: Mapping[str, Any]
    ) -> WorkerRecord:
        """Atomically register a worker; raises WorkerConflict if the id is alive under another owner.

        A booking is taken over all the same: a live registration whose metadata has `booked` true, which a launcher has made
        for a worker that begins elsewhere. Its status, its start and its metadata stay, and the new metadata is merged in.
        Whoever registers a booking without saying `booked` again has begun: it becomes false.
        """
        ...

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        """Atomically renew registrations and the leases {item_id: token} of one process; tell which are gone."""
        ...

    async def set_status(self, worker_id: str, status: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Set a worker's status (the SDK's words) and merge metadata; KeyError for an unknown worker.

        Whoever has ended cannot be told to end: `terminating` leaves a worker that is terminated or lost as it is.
        """
        ...

    async def workers(self, worker_id: str | None = None) -> list[WorkerRecord]:
        """All workers, or the one; `current_task_id` is the item it holds. metadata has `owner` and `lease_until`."""
        ...

    async def draining(self, owner: str) -> dict[str, float | None]:
        """The owner's workers that were told to end (status `terminating`), and by when: their metadata's `drain_until`.

        Costs nothing for the others: it is asked once a second.
        """
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

    async def save_snapshot(
        self, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None, acks: Sequence[str] = ()
    ) -> None:
        """Atomically replace the execution's snapshot and delete those whose execution id starts with `drop`.

        With a fence (item id, token) it raises LeaseLost unless that token is the item's live claim. `acks` are the ids of
        messages that leave the execution's inbox by it: what they caused is in the snapshot. With event `machine_end` all
        that is in its inbox goes: it waits for nothing any more.
        """
        ...

    async def load_snapshot(self, execution_id: str) -> SnapshotRow | None: ...

    async def drop_snapshots(self, execution_id: str) -> None:
        """Delete the snapshots and the inboxes of an execution and of its descendants ({execution_id}:…)."""
        ...

    async def snapshots(self, event: str | None, channel: str | None) -> list[SnapshotRow]:
        """The latest snapshots (bodies left empty) that match, oldest first."""
        ...

    # -- signals -----------------------------------------------------------------------------------------------------

    async def send(self, channel: str, data: Any) -> str:
        """Append a message to the channel; return its id. Channels are first in, first out.

        The waiters of a channel are the executions whose snapshot names it with event `waiting` (parked) or `woken` (a
        message has woken them, and they have not parked again or ended). When a message leaves the channel, it goes to
        all who are waiters at that moment, so that none misses what comes while it is busy with the one before. Who parks
        on another channel, ends, or fails is a waiter no more, and who comes later gets what is still in the channel.
        """
        ...

    async def take(self, channel: str, waiter: str, skip: Collection[str] = ()) -> Signal | None:
        """Atomically return the oldest message of the channel in the waiter's inbox whose id is not in `skip`.

        If there is none, the channel's oldest message moves into the inboxes of all its waiters and of `waiter`, and is
        returned. It stays in an inbox until a `save_snapshot` of that execution acknowledges it, so that whoever dies before
        that gets it again.
        """
        ...

    async def deliver(self, skip: Collection[str] = ()) -> list[str]:
        """Atomically hand out messages to those who wait; return the parked ones that have something to wake up for.

        For each channel with messages, if somebody is parked there whose inbox holds nothing of it, the oldest message
        moves into the inboxes of all its waiters, behind what they hold. Returns the ids, longest parked first and at most
        DELIVERED, of the parked executions whose inbox holds a message of the channel they wait on, but for those in
        `skip`. Costs by what is pending, not by what is parked.
        """
        ...

    async def consume(self, channel: str) -> Signal | None:
        """Atomically take the oldest message out of the channel, for good: if the caller dies, it is gone."""
        ...

    async def peek(self, channel: str) -> list[Signal]: ...

    async def channels(self) -> list[str]: ...

    # -- locks -------------------------------------------------------------------------------------------------------

    async def lock(self, key: str, owner: str, lease: float) -> bool:
        """Atomically take the lock if it is free, expired, or already `owner`'s; `beat` by the owner renews it."""
        ...

    async def unlock(self, key: str, owner: str) -> None: ...

    async def locks(self, prefix: str) -> list[tuple[str, str, float]]:
        """(key, owner, lease's end) of the locks that are held, whose key starts with `prefix`."""
        ...

    # -- fleets ------------------------------------------------------------------------------------------------------

    async def decide(self, fleet: str, decision: Mapping[str, Any]) -> None:
        """Atomically note a decision under its `id`; again under the same id replaces it where it stands.

        Sets `at` if it has none (that of the one it replaces, if any); keeps the newest DECISIONS of a fleet. A decision with
        outcome `applied` and a `target` that is not None makes that the fleet's target.
        """
        ...

    async def decisions(self, fleet: str, last: int) -> list[dict[str, Any]]:
        """The last so many decisions of the fleet, newest last."""
        ...

    async def decision(self, fleet: str, decision_id: str) -> dict[str, Any] | None: ...

    async def target(self, fleet: str) -> int | None:
        """The parallelism that the fleet was told to have; None if nobody said."""
        ...

    async def set_target(self, fleet: str, target: int | None) -> None:
        """Set the fleet's target, or forget it (None)."""
        ...

    async def fleets(self) -> list[str]:
        """The names of fleets that have a target or a decision, but for those that end in POLICY."""
        ...

    # -- housekeeping ------------------------------------------------------------------------------------------------

    async def gc(self, before: float) -> dict[str, int]:
        """Delete what ended before that time and nobody needs, in short atomic steps; return how many of each kind.

        workers: terminated or lost ones with their `{worker}/result` entries; executions: snapshots at `machine_end` that
        belong to no item that is left, and snapshots and inboxes of children whose parent is gone; decisions: beyond a
        fleet's newest 100; attempts: of completed items, beyond their newest 10; configs: that no snapshot refers to, a
        day after they were put last.
        Items, results, dead items, messages that wait, parked machines and live workers are never touched.
        """
        ...

    async def vacuum(self) -> int:
        """Give the space of what was deleted back to the disk; return the bytes won.

        Raises StoreUnavailable, having changed nothing, while another process holds it.
        """
        ...

    async def close(self) -> None: ...
