"""This process's part in the fleet: its leases, its workers, one heartbeat for them all, and where the idle ones wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from flatfleet.runtime.bookings import Bookings
from flatfleet.runtime.errors import LeaseLost, StoreError
from flatfleet.runtime.guard import Guard
from flatfleet.runtime.heart import POLL, SELDOM, TOPIC, Heart
from flatfleet.runtime.lease import Lease
from flatfleet.runtime.lounge import Lounge
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.policies.costs import ON_DEMAND, SPOT
from flatfleet.runtime.stores.keys import check_capabilities
from flatfleet.runtime.stores.records import LIVE_WORKER, Claim
from flatfleet.runtime.stores.store import Store
from flatfleet.runtime.threads import in_daemon

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 4
"""Threads for blocking code (reading documents, writing files) in one process."""


class Fleet:
    """What actions and engines share in one process: the store, the leases, the workers, and whether to stop.

    `served` fleets wait for work up to their idle time-out; others are done when their pool is empty. Where a policy prefers
    spot workers, `spot_wait` is how many seconds a launch waits for one; `places_spot` says that the engine finds them.
    """

    def __init__(self, store: Store, *, capabilities: Collection[str] = (), served: bool = False) -> None:
        self.store = store
        self.capabilities = frozenset(check_capabilities(capabilities, "capabilities"))
        self.served = served
        self.spot_wait: float | None = None
        self.places_spot = False
        self.leases: dict[str, Lease] = {}
        self.workers: dict[str, str] = {}
        self.bookings = Bookings(self)
        self.lounge = Lounge(store, lambda: self.capabilities)
        self.draining = False
        self._stopping = asyncio.Event()
        self._heart = Heart(store, self)
        self.guard = Guard(store, self._held_now)
        self._threads = asyncio.Semaphore(THREADS)
        store.lock.on_taken = self._start_heart

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run blocking code in a thread, at most `THREADS` of this process at once.

        The thread is a daemon: one that is still busy when its item has timed out does not keep the process.
        """
        async with self._threads:
            return await in_daemon(function)

    @property
    def offers(self) -> frozenset[str]:
        """The capabilities that workers launched here may have."""
        return self.capabilities | ({SPOT, ON_DEMAND} if self.places_spot and self.spot_wait is not None else set())

    # -- leases ----------------------------------------------------------------------------------------------------

    def hold(self, claim: Claim, worker: str) -> Lease:
        """Start to renew the lease of a claim; an older lease of this process on the same item is lost by it."""
        old = self.leases.get(claim.id)
        if old is not None:
            old.lose(f"item {claim.id} was taken over: token {old.token} is no longer valid")
        lease = self.leases[claim.id] = Lease(claim, worker, self.store.lease)
        self._start_heart()
        return lease

    def held(self, item_id: str, worker: str | None = None) -> Lease:
        """The live lease of an item; LeaseLost if this process (or this worker of it) does not hold it any more."""
        lease = self.leases.get(item_id)
        if lease is None or worker not in (None, lease.worker):
            raise LeaseLost(
                f"item {item_id} is not held by this process" + (f", not by its worker {worker}" if lease else "")
            )
        lease.check()
        return lease

    def let_go(self, item_id: str, worker: str | None = None) -> None:
        """Stop to renew the lease of an item, if it is this worker's."""
        if item_id in self.leases and worker in (None, self.leases[item_id].worker):
            del self.leases[item_id]

    async def hand_back(self, worker: str | None = None) -> int:
        """Give back every item still held (by one worker, or by all), burning no attempt; return how many."""
        n = 0
        for lease in list(self.leases.values()):
            if worker is not None and lease.worker != worker:
                continue
            n += await self._release(lease)
            self.let_go(lease.item_id, lease.worker)
        return n

    async def _release(self, lease: Lease) -> bool:
        try:
            await self.store.work.pool(lease.pool).release(lease.item_id, token=lease.token, walked=tuple(lease.walked))
        except (LeaseLost, StoreError) as error:
            logger.warning("item %s could not be handed back: %s", lease.item_id, error)
            return False
        return True

    # -- workers ---------------------------------------------------------------------------------------------------

    def enlist(self, worker_id: str, status: str = "active") -> None:
        """Send heartbeats for a registered worker."""
        self.bookings.begun(worker_id)
        self.workers[worker_id] = status
        self._start_heart()

    def discharge(self, worker_id: str) -> None:
        self.workers.pop(worker_id, None)

    def must_stop(self, worker_id: str) -> bool:
        """True if this worker, or the whole process, was told to stop claiming."""
        return self.draining or self.workers.get(worker_id, "active") != "active"

    def drain(self) -> None:
        """Stop claiming; workers finish the item they hold and end."""
        self.draining = True
        self._stopping.set()
        self.lounge.dismiss()

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until this process is told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def recover(self) -> tuple[int, list[str]]:
        """Hand back what dead processes of this machine held, and mark their workers lost: (items, worker ids).

        Atomic for each dead process; twice changes nothing. Elsewhere leases run out; those of this process are renewed.
        """
        items, lost = 0, []
        for owner in await self.store.driver.owners():
            if is_dead(owner):
                items += await self.store.driver.hand_back(owner=owner, crashed=True)
                lost += await self.store.driver.mark_lost(owner)
        lost += (await asyncio.gather(self.beat(), self.store.driver.mark_lost(None)))[1]
        topics = [*(await self.store.driver.pools() if items else ()), *([TOPIC] if lost else ())]
        self.store.bell.announce(*topics)
        return items, lost

    async def close(self) -> None:
        """Stop the heartbeat and close the store."""
        self.guard.stop()
        await self._heart.stop()
        await self.lounge.close()
        await self.store.close()

    # -- heartbeat -------------------------------------------------------------------------------------------------

    def _start_heart(self) -> None:
        self._heart.start()
        self.guard.start()

    async def catch_up(self) -> None:
        """Beat now if the event loop was blocked for so long that a beat is late: before anybody here claims anything.

        Otherwise a worker would take what its neighbours hold for abandoned.
        """
        if self.guard.late() and self.leases:
            await self.beat()

    def _held_now(self) -> tuple[list[str], dict[str, int]]:
        leases = [lease for lease in list(self.leases.values()) if lease.lost is None]
        return list(self.workers), {lease.item_id: lease.token for lease in leases}

    async def beat(self) -> None:
        """Renew all leases and registrations of this process; cancel the work of leases that are gone."""
        sent = time.monotonic()
        self.guard.heard()
        leases = {lease.item_id: lease for lease in self.leases.values() if lease.lost is None}
        try:
            answer = await self.store.driver.beat(
                self.store.owner,
                list(self.workers),
                {lease.item_id: lease.token for lease in leases.values()},
                self.store.lease,
            )
        except StoreError as error:
            logger.warning("heartbeat failed: %s", error)
            for lease in leases.values():
                if time.monotonic() >= lease.expires:
                    lease.lose(f"the lease of item {lease.item_id} ran out while the store could not be reached")
            return
        for lease in leases.values():
            lease.expires = sent + self.store.lease
        for item_id in answer.lost:
            if self.leases.get(item_id) is leases[item_id]:
                leases[item_id].lose(
                    f"item {item_id} was taken over, or cancelled: token {leases[item_id].token} is no longer valid"
                )
        for worker, status in answer.workers.items():
            self._told(worker, status or "lost")

    async def look(self) -> float:
        """Hear which workers were told to end, and hand back what they hold where their time is up.

        Returns the seconds until the next look.
        """
        pause = SELDOM if self.store.bell.hears or not self.store.durable else POLL
        if not self.workers:
            return pause
        try:
            told = await self.store.driver.draining(self.store.owner)
        except StoreError as error:
            logger.warning("the orders of the workers could not be read: %s", error)
            return pause
        now, late = time.time(), set()
        for worker, until in told.items():
            self._told(worker, "terminating")
            if until is not None and until <= now:
                late.add(worker)
            elif until is not None:
                pause = min(pause, until - now)
        if late:
            leases = [lease for lease in self.leases.values() if lease.worker in late and lease.lost is None]
            await asyncio.gather(*map(self._take_back, leases))
        return pause

    async def _take_back(self, lease: Lease) -> None:
        """Hand an item back in the midst of its work, and cancel that; nothing is changed if it has just ended."""
        if await self._release(lease):
            lease.lose(f"worker {lease.worker} was told to end by now: item {lease.item_id} has been handed back")

    def _told(self, worker: str, status: str) -> None:
        if self.workers.get(worker, status) == status:
            return
        self.workers[worker] = status
        if status not in LIVE_WORKER:
            logger.warning("worker %s is %s in the registry; it stops after its item", worker, status)
        if status != "active":
            self.lounge.dismiss(worker)
            self.bookings.told(worker)
