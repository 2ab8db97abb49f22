"""The right to run one machine: its lock in the store, which no two living processes have at once."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flatfleet.runtime.errors import LeaseLost, StoreError
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.store import Store

logger = logging.getLogger(__name__)


class Hold:
    """The lock of a machine while this process has it; `lost` once that is over."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._sure = time.time()
        self.lost = False

    async def check(self) -> None:
        """Raise LeaseLost if the lock is gone: this process stood still for longer than its lease, and another took it.

        The store is asked only if a third of a lease has passed since it was asked last. A lock that has run out, and that
        nobody has taken since, is renewed: the heartbeat was late, as where the store did not answer for a while.
        """
        now = time.time()
        if 0 <= now - self._sure < self._store.lease / 3:
            return
        if not await self._held():
            await self._store.driver.beat(self._store.owner, (), {}, self._store.lease)
            self.lost = not await self._held()
        if self.lost:
            raise LeaseLost(f"machine {self._key} is no longer this process's to run: it stood still for too long")
        self._sure = now

    async def _held(self) -> bool:
        found = await self._store.driver.locks(self._key)
        return any(key == self._key and owner == self._store.owner for key, owner, _ in found)


@asynccontextmanager
async def hold(store: Store, key: str) -> AsyncIterator[Hold | None]:
    """Take the lock of a machine and yield it; None if a living process, this one included, has it."""
    taken = await store.lock.acquire(key) or (await _freed(store, key) and await store.lock.acquire(key))
    try:
        yield Hold(store, key) if taken else None
    finally:
        if taken:
            try:
                await store.lock.release(key)
            except StoreError as error:
                logger.warning("the lock of %s could not be released: %s", key, error)


async def _freed(store: Store, key: str) -> bool:
    """Take the lock away from a process of this host that has died; True if it had one."""
    for found, owner, _ in await store.driver.locks(key):
        if found == key and is_dead(owner):
            await store.driver.unlock(key, owner)
            return True
    return False
