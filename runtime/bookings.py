"""Bookings: workers that are registered in this process's name before they begin, so that everybody counts them at once."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.stores.records import LIVE_WORKER
from flatmachines import WorkerRecord, WorkerRegistration

if TYPE_CHECKING:
    from flatfleet.runtime.fleet import Fleet

logger = logging.getLogger(__name__)


class Bookings:
    """The workers that this process has booked, and that have not begun.

    A booking is a registration whose metadata says `booked`; it is renewed by this process's heartbeat until its worker
    registers itself, here or in another process, or it is ended. `booked_by` stays in the metadata for good.
    `on_order(worker_id)` is called where one is told to end.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._names: set[str] = set()
        self.on_order: Callable[[str], None] = lambda worker_id: None

    async def book(self, worker_id: str, about: dict[str, Any]) -> None:
        """Register a worker that is going to be launched; raises WorkerConflict if the id is alive elsewhere."""
        await register(self._fleet, worker_id, {**about, "booked": True, "booked_by": self._fleet.store.owner})
        self._fleet.enlist(worker_id)
        self._names.add(worker_id)

    def begun(self, worker_id: str) -> None:
        """A worker is no booking any more."""
        self._names.discard(worker_id)

    def told(self, worker_id: str) -> None:
        """A worker's status has changed: if it is a booking that was told to end, whoever is to launch it hears so."""
        if self.told_to_end(worker_id):
            self.on_order(worker_id)

    def told_to_end(self, worker_id: str) -> bool:
        """True for a booking of this process that somebody has told to end, so that it need not begin."""
        return worker_id in self._names and self._fleet.workers.get(worker_id) == "terminating"

    def hand_over(self, worker_id: str) -> None:
        """Let another process begin with a worker: from now on this one does not renew it."""
        if worker_id in self._names:
            self._fleet.discharge(worker_id)

    def take_back(self, worker_id: str) -> None:
        """The other process did not begin: this one goes on to renew the booking."""
        if worker_id in self._names:
            self._fleet.enlist(worker_id)
            self._names.add(worker_id)

    async def end(self, worker_id: str, why: str) -> None:
        """Deregister a worker that was booked here and is not going to begin; nothing if it has, or was not."""
        if worker_id not in self._names:
            return
        self._names.discard(worker_id)
        self._fleet.discharge(worker_id)
        store = self._fleet.store
        try:
            record = await store.registration.get(worker_id)
            told = (record.metadata or {}) if record is not None and record.status in LIVE_WORKER else {}
            if told.get("booked") and told.get("owner") == store.owner:
                await store.driver.set_status(worker_id, "terminated", {"ended": why, "processed": 0, "booked": False})
        except StoreError as error:
            logger.warning("worker %s could not be deregistered: %s", worker_id, error)

    async def end_all(self) -> None:
        """Deregister the workers that were never launched: nobody is going to."""
        while self._names:
            await self.end(next(iter(self._names)), "never launched")


def register(fleet: Fleet, worker_id: str, about: dict[str, Any]) -> Awaitable[WorkerRecord]:
    """Register a worker of this process, with metadata; it is counted from now on, and beats once it is enlisted."""
    worker = WorkerRegistration(
        worker_id=worker_id, host=socket.gethostname(), pid=os.getpid(), capabilities=sorted(fleet.capabilities)
    )
    return fleet.store.registration.register(worker, about)
