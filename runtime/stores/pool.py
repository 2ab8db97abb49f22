"""A pool of items behind one name: what workers, launchers and people do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any

from flatfleet.runtime.stores.bell import Bell
from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.keys import check_capabilities, check_key, check_pool, check_seconds, check_whole, item_id
from flatfleet.runtime.stores.records import Attempt, Claim, Counts, Failure, Item, NewItem, State
from flatfleet.runtime.stores.text import storable

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
        requires: str | Iterable[str] = (),
        max_retries: int = 3,
        max_crashes: int = 10,
    ) -> NewItem:
        """Make an item of this pool, ready to push. One key is one item, ever; without a key each item is its own.

        `requires` names capabilities: a list, or a text with commas. Raises UsageError for a name that cannot be one, a key
        that is no text, and a number that is none.
        """
        new_id = item_id(self.name, check_key(key))
        check_whole(priority, "an item's priority")
        check_whole(max_retries, "max_retries")
        check_whole(max_crashes, "max_crashes")
        check_seconds(not_before, "not_before")
        text = storable(key if key is not None else new_id.split(":", 1)[1], 4_000)
        needs = check_capabilities(requires, "requires") if requires else ()
        return NewItem(new_id, text, data, priority, not_before, needs, max_retries, max_crashes)

    async def push_many(self, items: Iterable[NewItem]) -> list[bool]:
        """Atomically (a thousand at a time) add the items that are new; answer for each whether it was."""
        added = await self._driver.push(self.name, list(items))
        if any(added):
            self._bell.announce(self.name)
        return added

    async def claim(self, worker_id: str) -> Claim | None:
        """Atomically claim the next item, or None."""
        claims = await self.claim_many(worker_id, 1)
        return claims[0] if claims else None

    async def claim_many(
        self, worker_id: str, n: int, capabilities: Collection[str] = (), limit: int | None = None
    ) -> list[Claim]:
        """Atomically claim up to `n` items whose requirements the capabilities cover; none while the pool is paused.

        Never so many that more than `limit` are claimed of the pool, by all workers together.
        """
        return await self._driver.claim(self.name, worker_id, self._owner, n, self._lease, capabilities, limit)

    async def complete(
        self,
        item_id: str,
        result: Any = None,
        *,
        token: int | None = None,
        cost: float = 0.0,
        walked: Sequence[str] = (),
    ) -> None:
        """Atomically commit the result, guarded by the token; raises LeaseLost for anybody but the holder.

        `walked` are the names of the states that led to it; the last 50 are kept with the attempt, as in `fail` and `release`.
        """
        await self._driver.complete(item_id, result, token, cost, walked)
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
        walked: Sequence[str] = (),
    ) -> State:
        """Atomically end the attempt as failed and return the item's new state; raises LeaseLost as `complete` does."""
        failure = Failure(error_type, storable(str(error or "")), consume_attempt, permanent, retry_after)
        state = await self._driver.fail(item_id, failure, token, cost, walked)
        self._bell.ring(self.name, item_id)
        return state

    async def release(self, item_id: str, *, token: int | None = None, walked: Sequence[str] = ()) -> None:
        """Atomically hand the item back without burning an attempt."""
        await self._driver.release(item_id, token, walked)
        self._bell.announce(self.name)

    async def release_by_worker(self, worker_id: str) -> int:
        """Atomically hand back all that a dead worker holds (each recorded as a crash); return how many."""
        n = await self._driver.hand_back(pool=self.name, worker=worker_id, crashed=True)
        if n:
            self._bell.announce(self.name)
        return n

    async def retry(self, ids: list[str] | None = None) -> int:
        """Atomically make dead items (all, or those named) ready again with fresh limits; return how many."""
        n = await self._driver.retry(self.name, ids)
        if n:
            self._bell.announce(self.name)
        return n

    async def cancel(self, ids: Sequence[str]) -> int:
        """Atomically make these items dead (`Cancelled`) unless they have ended; return how many.

        Whoever holds one has lost its lease, and the work is cancelled at the next beat, which this asks for.
        """
        n = await self._driver.cancel(self.name, ids)
        if n:
            self._bell.announce(self.name, "workers")
            self._bell.ring(*ids)
        return n

    async def pause(self, until: float | None) -> None:
        """Let nobody claim until then (seconds since the epoch; math.inf: until resumed), or resume the pool (None)."""
        await self._driver.pause(self.name, until)
        self._bell.announce(self.name)

    async def paused(self) -> float | None:
        """Until when nobody may claim (math.inf: until the pool is resumed); None if it is not paused."""
        return await self._driver.paused(self.name)

    async def size(self) -> int:
        """Items that nobody has claimed."""
        counts = await self._driver.counts(self.name)
        return counts.waiting + counts.delayed

    async def counts(self) -> Counts:
        return await self._driver.counts(self.name)

    async def requirements(self) -> dict[tuple[str, ...], int]:
        """How many items that wait require each set of capabilities."""
        return await self._driver.requirements(self.name)

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
