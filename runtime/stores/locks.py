"""The SDK's ExecutionLock: held by a process, renewed by its heartbeat, free again when its lease runs out."""

from __future__ import annotations

from collections.abc import Callable

from flatfleet.runtime.stores.contract import Driver
from flatmachines.locking import ExecutionLock


class Locks(ExecutionLock):
    """Locks by key. The same process does not get one twice, so one machine never runs twice at once.

    `on_taken` is called whenever a lock is taken: whoever sends this process's heartbeats begins to.
    """

    def __init__(self, driver: Driver, owner: str, lease: float) -> None:
        self._driver = driver
        self._owner = owner
        self._lease = lease
        self._held: set[str] = set()
        self.on_taken: Callable[[], None] | None = None

    async def acquire(self, key: str) -> bool:
        """Atomically take the lock; False if anybody, this process included, has it."""
        if key in self._held:
            return False
        self._held.add(key)
        taken = False
        try:
            taken = await self._driver.lock(key, self._owner, self._lease)
        finally:
            if not taken:
                self._held.discard(key)
        if taken and self.on_taken is not None:
            self.on_taken()
        return taken

    async def release(self, key: str) -> None:
        if key in self._held:
            self._held.discard(key)
            await self._driver.unlock(key, self._owner)
