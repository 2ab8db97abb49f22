"""What becomes of workers whose host has gone: their items are handed back, they are marked lost, others take their place."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flatfleet.runtime.engines.hosts import Order
from flatfleet.runtime.engines.places import Place
from flatfleet.runtime.errors import HostDied, StoreError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.stores.records import LIVE_WORKER
from flatmachines import WorkerRecord
from flatmachines.backends import make_uri

logger = logging.getLogger(__name__)

SHORT, STRIKES = 1.0, 10
"""A worker whose host died before it had run for SHORT seconds is replaced STRIKES times in a row at most."""

How = Literal["leaving", "ended", "cut off"]
"""How a worker loses its host: that leaves, and lets it finish what it holds; it has ended by that; or it was cut off."""


@dataclass(slots=True, eq=False)
class Launched:
    """A machine that was launched: its order (None: another one on that host launched it), and where it is.

    `first` is the worker that it takes the place of, by so many `lives`; `sent` once a host has it; `task` sends it, and
    `heir` launches another in its place, while its host leaves.
    """

    order: Order | None
    name: str = ""
    place: Place | None = None
    sent: bool = False
    since: float = field(default_factory=time.monotonic)
    first: str = ""
    lives: int = 1
    strikes: int = 0
    task: asyncio.Task[None] | None = None
    heir: asyncio.Task[bool] | None = None

    def __post_init__(self) -> None:
        if self.order is not None:
            self.name = self.order.machine_id
        self.first = self.first or self.name

    @property
    def worker(self) -> bool:
        """True if another worker could take its place."""
        return self.order is not None and bool(self.order.input.get("worker_id"))

    def unqueue(self) -> bool:
        """Let it wait for a place no longer; False if it has one by now."""
        waits = self.place is None and self.task is not None and not self.task.done()
        return waits and self.task is not None and self.task.cancel()

    async def followed(self) -> bool:
        """True if another one has its place already."""
        return self.heir is not None and await self.heir

    def next(self, order: Order) -> Launched:
        """The one that takes its place."""
        strikes = self.strikes + 1 if time.monotonic() - self.since < SHORT else 0
        return Launched(order, first=self.first, lives=self.lives + 1, strikes=strikes)


class Undertaker:
    """Settles in the store what a host has left behind. Where the store is away, leases run out instead."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._store = fleet.store

    async def hand_back(self, owner: str | None) -> int:
        """Hand back the items of a dead host, as crashed; return how many. Without an owner it never came up: none."""
        if owner is None:
            return 0
        try:
            n = await self._store.driver.hand_back(owner=owner, crashed=True)
            if n:
                self._store.bell.announce(*await self._store.driver.pools())
        except StoreError as error:
            logger.warning("the items of a host that died wait until their leases are over: %s", error)
            return 0
        return n

    async def report(self, name: str, ended: str, result: Mapping[str, Any] | None) -> None:
        """End the booking of a machine that does not begin, or is lost, and the wait for its result (None: nobody waits)."""
        try:
            await self._fleet.bookings.end(name, ended)
            if result is not None:
                await self._store.results.write(make_uri(name, "result"), dict(result))
        except StoreError as error:
            logger.warning("the store could not be told that %s has ended (%s): %s", name, ended, error)

    async def mark_lost(self, owner: str | None) -> None:
        """Mark the workers of a dead host lost."""
        try:
            if owner is not None and await self._store.driver.mark_lost(owner):
                self._store.bell.announce("workers")
        except StoreError as error:
            logger.warning("the workers of a host that died are marked lost later: %s", error)

    async def settle(self, owners: Set[str]) -> int:
        """Hand back, burning no attempt, what hosts still hold that were stopped, and deregister their workers."""
        n, driver = 0, self._store.driver
        try:
            left = owners & set(await driver.owners())
            for owner in left:
                n += await driver.hand_back(owner=owner, crashed=False)
            for record in await driver.workers(statuses=LIVE_WORKER) if left else ():
                if record.metadata["owner"] in left:
                    await driver.set_status(record.worker_id, "terminated", {"ended": "drained"})
        except StoreError as error:
            logger.warning("what hosts held waits until their leases are over: %s", error)
        return n

    async def successor(self, launched: Launched, how: How) -> Order | None:
        """The order for a worker in the place of one that loses its host, booked already; None if none is due.

        None is due for one that somebody had told to end, and one that had nothing left to do. One whose host leaves is
        draining from now on. HostDied is raised for a machine that is no worker, if it was cut off, and for a worker whose
        hosts die of it, as it seems.
        """
        order = launched.order
        if order is None or not launched.worker:
            if how == "cut off":
                raise HostDied("it is no worker")
            return None
        if launched.strikes >= STRIKES:
            raise HostDied(f"{STRIKES} hosts have died within {SHORT:g} s of its start, one after the other")
        name = f"{launched.first}.{launched.lives + 1}"
        record = await self._store.registration.get(launched.name)
        if record is None and how == "ended" and not await self._drained(launched.name):
            return None
        if record is not None:
            if not await self._noted(record, name, how):
                return None
            told, kept = record.metadata or {}, ("pool", "parallelism", "decision", "machine")
            await self._fleet.bookings.book(name, {key: told[key] for key in kept if key in told})
        return replace(order, machine_id=name, input={**order.input, "worker_id": name})

    async def _noted(self, record: WorkerRecord, name: str, how: How) -> bool:
        """Note in a worker's record, in one step, that it is lost, or draining, and who replaces it; False if nobody should."""
        told = record.metadata or {}
        live = record.status in LIVE_WORKER
        ended = not live and record.status != "lost" and told.get("ended") not in ("drained", "CancelledError")
        if ended or told.get("drained_by") or told.get("replaced_by") or record.status == "terminating":
            return False
        status = {"cut off": "lost", "leaving": "terminating"}.get(how, record.status) if live else record.status
        await self._store.driver.set_status(record.worker_id, status, {"replaced_by": name})
        return True

    async def _drained(self, name: str) -> bool:
        """True if a worker that does not register itself ended because it was told to."""
        result = await self._store.results.read(make_uri(name, "result"), block=False)
        return isinstance(result, dict) and result.get("status") == "drained"
