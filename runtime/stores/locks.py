"""The SDK's ExecutionLock: held by a process, renewed by its heartbeat, free again when its lease runs out."""

from __future__ import annotations

from flatfleet.runtime.stores.contract import Driver
from flatmachines.locking import ExecutionLock


class Locks(ExecutionLock):
    """Locks by key. The same process does not get one twice, so one machine never runs twice at once."""

    def __init__(self, driver: Driver, owner: str, lease: float) -> None:
        self._driver = driver
        self._owner = owner
        self._lease = lease
        self._held: set[str] = set()

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
        return taken

    async def release(self, key: str) -> None:
        if key in self._held:
            self._held.discard(key)
            await self._driver.unlock(key, self._owner)
