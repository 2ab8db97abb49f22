"""A store: one driver behind the SDK's protocols, and the superset that flatfleet's own machines use."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.redact import shown
from flatfleet.runtime.stores.bell import Bell, Wire
from flatfleet.runtime.stores.checkpoints import Checkpoints
from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.fleets import FleetRecord
from flatfleet.runtime.stores.locks import Locks
from flatfleet.runtime.stores.pool import Pool, Work
from flatfleet.runtime.stores.records import LEASE
from flatfleet.runtime.stores.results import Results
from flatmachines import WorkerFilter, WorkerRecord, WorkerRegistration
from flatmachines.persistence import config_hash

__all__ = ["Configs", "FleetRecord", "Pool", "Registration", "Signals", "Store", "Work"]

CONFIG_FRESH = 3600.0
"""Seconds for which a config that was put is not put again; housekeeping keeps it for longer than that."""


class Registration:
    """The SDK's RegistrationBackend; a registration is a lease that its owner's heartbeat renews."""

    def __init__(self, driver: Driver, bell: Bell, owner: str, lease: float) -> None:
        self._driver = driver
        self._bell = bell
        self._owner = owner
        self._lease = lease

    async def register(self, worker: WorkerRegistration, metadata: Mapping[str, Any] | None = None) -> WorkerRecord:
        """Atomically register; raises WorkerConflict if the id is alive under another owner, and no booking."""
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
        """Set a worker's status, and let the process that it runs in know at once."""
        await self._driver.set_status(worker_id, status)
        self._bell.announce("workers")

    async def get(self, worker_id: str) -> WorkerRecord | None:
        found = await self._driver.workers(worker_id)
        return found[0] if found else None

    async def list(
        self, filter: WorkerFilter | None = None, *, statuses: Collection[str] | None = None, pool: str | None = None
    ) -> list[WorkerRecord]:
        """Workers by status, pool, capability and age of the last heartbeat, oldest first."""
        if filter is not None and filter.status:
            statuses = {filter.status}.intersection(statuses or (filter.status,))
        workers = await self._driver.workers(statuses=statuses, pool=pool)
        if filter is None:
            return workers
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
        self._bell.announce(channel, "signals")
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
        self._known: dict[str, float] = {}

    async def put(self, raw: str) -> str:
        digest: str = config_hash(raw)
        now = time.monotonic()
        if now >= self._known.get(digest, now):
            await self._driver.put(f"config:{digest}", raw)
            self._known[digest] = now + CONFIG_FRESH
        return digest

    async def get(self, hash_key: str) -> str | None:
        found, value = await self._driver.get(f"config:{hash_key}")
        return value if found else None

    async def delete(self, hash_key: str) -> None:
        self._known.pop(hash_key, None)
        await self._driver.drop(f"config:{hash_key}")


class Store:
    """Everything durable behind one URL. `owner` is the identity of the process that uses it.

    `shown` is the URL without its password, for people; `wire` leads to the other processes that use the store, if there
    can be any: they are woken by what is done here.
    """

    def __init__(self, driver: Driver, url: str, owner: str, lease: float = LEASE, wire: Wire | None = None) -> None:
        self.driver = driver
        self.url = url
        self.shown = shown(url)
        self.owner = owner
        self.lease = lease
        self.durable = driver.durable
        self.bell = Bell(wire)
        self.work = Work(driver, self.bell, owner, lease)
        self.registration = Registration(driver, self.bell, owner, lease)
        self.signals = Signals(driver, self.bell)
        self.results = Results(driver, self.bell)
        self.checkpoints = Checkpoints(driver)
        self.configs = Configs(driver)
        self.lock = Locks(driver, owner, lease)

    def fleet(self, name: str) -> FleetRecord:
        """What is kept of a fleet, whether it runs or not."""
        return FleetRecord(self.driver, self.bell, name)

    async def close(self) -> None:
        await self.bell.close()
        await self.driver.close()
