"""A store: one driver behind the SDK's protocols, and the superset that flatfleet's own machines use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.bell import Bell
from flatfleet.runtime.stores.checkpoints import Checkpoints
from flatfleet.runtime.stores.contract import (
    LEASE,
    Attempt,
    Claim,
    Counts,
    Driver,
    Failure,
    Item,
    NewItem,
    State,
)
from flatfleet.runtime.stores.keys import check_pool, item_id
from flatfleet.runtime.stores.locks import Locks
from flatfleet.runtime.stores.results import Results
from flatfleet.runtime.stores.text import storable
from flatmachines import WorkerFilter, WorkerRecord, WorkerRegistration
from flatmachines.persistence import config_hash

PAGE = 500


class Pool:
    """A named pool: the SDK's WorkPool, with tokens, batches and records."""

    def __init__(self, driver: Driver, bell: Bell, name: str, owner: str, lease: float) -> None:
        self.name = check_pool(name)
        self._driver = driver
        self._bell = bell
        self._owner = owner
        self._lease = lease

    async def push(self, item: Any, options: Mapping[str, Any] | None = None) -> str:
        """Add one item and return its id; options: key, priority, not_before, requires, max_retries, max_crashes."""
        new = self.new(item, **dict(options or {}))
        await self.push_many([new])
        return new.id

    def new(
        self,
        data: Any,
        *,
        key: str | None = None,
        priority: int = 0,
        not_before: float = 0.0,
        requires: Iterable[str] = (),
        max_retries: int = 3,
        max_crashes: int = 10,
    ) -> NewItem:
        """Make an item of this pool, ready to push. One key is one item, ever; without a key each item is its own."""
        new_id = item_id(self.name, key)
        text = storable(key if key is not None else new_id.split(":", 1)[1], 4_000)
        return NewItem(new_id, text, data, priority, not_before, tuple(requires), max_retries, max_crashes)

    async def push_many(self, items: Iterable[NewItem]) -> list[bool]:
        """Atomically (a thousand at a time) add the items that are new; answer for each whether it was."""
        added = await self._driver.push(self.name, list(items))
        if any(added):
            self._bell.ring(self.name)
        return added

    async def claim(self, worker_id: str) -> Claim | None:
        """Atomically claim the next item, or None."""
        claims = await self.claim_many(worker_id, 1)
        return claims[0] if claims else None

    async def claim_many(self, worker_id: str, n: int, capabilities: Collection[str] = ()) -> list[Claim]:
        """Atomically claim up to `n` items whose requirements the capabilities cover."""
        return await self._driver.claim(self.name, worker_id, self._owner, n, self._lease, capabilities)

    async def complete(self, item_id: str, result: Any = None, *, token: int | None = None, cost: float = 0.0) -> None:
        """Atomically commit the result, guarded by the token; raises LeaseLost for anybody but the holder."""
        await self._driver.complete(item_id, result, token, cost)
        self._bell.ring(self.name, item_id)

    async def fail(
        self,
        item_id: str,
        error: str | None = None,
        *,
        token: int | None = None,
        error_type: str = "Error",
        consume_attempt: bool = True,
        permanent: bool = False,
        retry_after: float | None = None,
        cost: float = 0.0,
    ) -> State:
        """Atomically end the attempt as failed and return the item's new state; raises LeaseLost as `complete` does."""
        failure = Failure(error_type, storable(str(error or "")), consume_attempt, permanent, retry_after)
        state = await self._driver.fail(item_id, failure, token, cost)
        self._bell.ring(self.name, item_id)
        return state

    async def release(self, item_id: str, *, token: int | None = None) -> None:
        """Atomically hand the item back without burning an attempt."""
        await self._driver.release(item_id, token)
        self._bell.ring(self.name)

    async def release_by_worker(self, worker_id: str) -> int:
        """Atomically hand back all that a dead worker holds (each recorded as a crash); return how many."""
        n = await self._driver.hand_back(pool=self.name, worker=worker_id, crashed=True)
        if n:
            self._bell.ring(self.name)
        return n

    async def retry(self, ids: list[str] | None = None) -> int:
        """Atomically make dead items (all, or those named) ready again with fresh limits; return how many."""
        n = await self._driver.retry(self.name, ids)
        if n:
            self._bell.ring(self.name)
        return n

    async def size(self) -> int:
        """Items that nobody has claimed."""
        counts = await self._driver.counts(self.name)
        return counts.waiting + counts.delayed

    async def counts(self) -> Counts:
        return await self._driver.counts(self.name)

    async def errors(self) -> dict[str, int]:
        """Dead items by error type."""
        return await self._driver.errors(self.name)

    async def items(self, state: State | None = None) -> AsyncIterator[Item]:
        """All items in push order, read in pages."""
        after = None
        while page := await self._driver.items(self.name, state, PAGE, after):
            for item in page:
                yield item
            after = page[-1].id

    async def attempts(self, item_id: str) -> list[Attempt]:
        return await self._driver.attempts(item_id)

    async def next_due(self) -> float | None:
        """When the next delayed item becomes due or the next lease runs out (seconds since the epoch)."""
        return await self._driver.next_due(self.name)


class Work:
    """The SDK's WorkBackend."""

    def __init__(self, driver: Driver, bell: Bell, owner: str, lease: float) -> None:
        self._parts = (driver, bell)
        self._owner = owner
        self._lease = lease
        self._pools: dict[str, Pool] = {}

    def pool(self, name: str) -> Pool:
        if name not in self._pools:
            self._pools[name] = Pool(*self._parts, name, self._owner, self._lease)
        return self._pools[name]


class Registration:
    """The SDK's RegistrationBackend; a registration is a lease that its owner's heartbeat renews."""

    def __init__(self, driver: Driver, owner: str, lease: float) -> None:
        self._driver = driver
        self._owner = owner
        self._lease = lease

    async def register(self, worker: WorkerRegistration, metadata: Mapping[str, Any] | None = None) -> WorkerRecord:
        """Atomically register; raises WorkerConflict if the id is alive under another owner."""
        return await self._driver.register(worker, self._owner, self._lease, dict(metadata or {}))

    async def heartbeat(self, worker_id: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Renew one registration; LeaseLost if it is no longer this owner's, KeyError if it never was."""
        record = await self.get(worker_id)
        if record is None:
            raise KeyError(f"no worker '{worker_id}' in this store")
        beat = await self._driver.beat(self._owner, [worker_id], {}, self._lease)
        if beat.workers[worker_id] not in ("active", "terminating"):
            raise LeaseLost(f"worker {worker_id} is {record.status} under {record.metadata['owner']}")
        if metadata:
            await self._driver.set_status(worker_id, record.status, metadata)

    async def update_status(self, worker_id: str, status: str) -> None:
        await self._driver.set_status(worker_id, status)

    async def get(self, worker_id: str) -> WorkerRecord | None:
        found = await self._driver.workers(worker_id)
        return found[0] if found else None

    async def list(self, filter: WorkerFilter | None = None) -> list[WorkerRecord]:
        """Workers by status, capability and age of the last heartbeat, oldest first."""
        workers = await self._driver.workers()
        if filter is None:
            return workers
        if filter.status:
            workers = [w for w in workers if w.status == filter.status]
        if filter.capability:
            workers = [w for w in workers if filter.capability in (w.capabilities or ())]
        if filter.stale_threshold_seconds is not None:
            cutoff = datetime.now(UTC) - timedelta(seconds=filter.stale_threshold_seconds)
            workers = [w for w in workers if datetime.fromisoformat(w.last_heartbeat) < cutoff]
        return workers


class Signals:
    """The SDK's SignalBackend: durable, FIFO by channel."""

    def __init__(self, driver: Driver, bell: Bell) -> None:
        self._driver = driver
        self._bell = bell

    async def send(self, channel: str, data: Any) -> str:
        signal_id = await self._driver.send(channel, data)
        self._bell.ring(channel)
        return signal_id

    async def consume(self, channel: str) -> Any:
        return await self._driver.consume(channel)

    async def peek(self, channel: str) -> Any:
        return await self._driver.peek(channel)

    async def channels(self) -> list[str]:
        return await self._driver.channels()


class Configs:
    """The SDK's ConfigStore: machine configs by the SHA-256 of their text."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._known: set[str] = set()

    async def put(self, raw: str) -> str:
        digest: str = config_hash(raw)
        if digest not in self._known:
            await self._driver.put(f"config:{digest}", raw)
            self._known.add(digest)
        return digest

    async def get(self, hash_key: str) -> str | None:
        found, value = await self._driver.get(f"config:{hash_key}")
        return value if found else None

    async def delete(self, hash_key: str) -> None:
        self._known.discard(hash_key)
        await self._driver.drop(f"config:{hash_key}")


class Store:
    """Everything durable behind one URL. `owner` is the identity of the process that uses it."""

    def __init__(self, driver: Driver, url: str, owner: str, lease: float = LEASE) -> None:
        self.driver = driver
        self.url = url
        self.owner = owner
        self.lease = lease
        self.durable = driver.durable
        self.bell = Bell()
        self.work = Work(driver, self.bell, owner, lease)
        self.registration = Registration(driver, owner, lease)
        self.signals = Signals(driver, self.bell)
        self.results = Results(driver, self.bell)
        self.checkpoints = Checkpoints(driver)
        self.configs = Configs(driver)
        self.lock = Locks(driver, owner, lease)

    async def close(self) -> None:
        await self.driver.close()
