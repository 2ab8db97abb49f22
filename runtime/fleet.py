"""This process's part in the fleet: its leases, its workers, one heartbeat for them all, and where the idle ones wait."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar, cast

from flatfleet.runtime.errors import LeaseLost, StoreError
from flatfleet.runtime.guard import Guard
from flatfleet.runtime.lounge import Lounge
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.contract import LIVE_WORKER, Claim
from flatfleet.runtime.stores.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 4
"""Threads for blocking code (reading documents, writing files) in one process."""


class Lease:
    """One claimed item while this process holds it. `lost` says why it no longer does."""

    __slots__ = ("cost", "expires", "item_id", "lost", "pool", "task", "token", "worker")

    def __init__(self, claim: Claim, worker: str, seconds: float) -> None:
        self.item_id = claim.id
        self.pool = claim.pool
        self.token = claim.token
        self.worker = worker
        self.expires = time.monotonic() + seconds
        self.cost = 0.0
        self.task: asyncio.Task[object] | None = None
        self.lost: str | None = None

    def check(self) -> None:
        """Raise LeaseLost if the lease is lost."""
        if self.lost is not None:
            raise LeaseLost(self.lost)

    def lose(self, why: str) -> None:
        """Mark the lease lost and cancel the work that runs under it."""
        self.lost = why
        if self.task is not None:
            self.task.cancel(why)


class Fleet:
    """What actions and engines share in one process: the store, the leases, the workers, and whether to stop.

    `served` fleets wait for work up to their idle time-out; others are done when their pool is empty.
    """

    def __init__(self, store: Store, *, capabilities: Collection[str] = (), served: bool = False) -> None:
        self.store = store
        self.capabilities = frozenset(capabilities)
        self.served = served
        self.leases: dict[str, Lease] = {}
        self.workers: dict[str, str] = {}
        self.lounge = Lounge(store)
        self.draining = False
        self._heart: asyncio.Task[None] | None = None
        self.guard = Guard(store, self._held_now)
        self._threads = asyncio.Semaphore(THREADS)
        store.lock.on_taken = self._start_heart

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run blocking code in a thread, at most `THREADS` of this process at once.

        The thread is a daemon: one that is still busy when its item has timed out does not keep the process.
        """
        async with self._threads:
            return await _in_daemon(function)

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
            self.let_go(lease.item_id)
            try:
                await self.store.work.pool(lease.pool).release(lease.item_id, token=lease.token)
                n += 1
            except (LeaseLost, StoreError) as error:
                logger.warning("item %s could not be handed back: %s", lease.item_id, error)
        return n

    # -- workers ---------------------------------------------------------------------------------------------------

    def enlist(self, worker_id: str) -> None:
        """Send heartbeats for a registered worker."""
        self.workers[worker_id] = "active"
        self._start_heart()

    def discharge(self, worker_id: str) -> None:
        self.workers.pop(worker_id, None)

    def must_stop(self, worker_id: str) -> bool:
        """True if this worker, or the whole process, was told to stop claiming."""
        return self.draining or self.workers.get(worker_id, "active") != "active"

    def drain(self) -> None:
        """Stop claiming; workers finish the item they hold and end."""
        self.draining = True
        self.lounge.dismiss()

    async def recover(self) -> tuple[int, list[str]]:
        """Hand back what dead processes of this machine held, and mark their workers lost: (items, worker ids).

        Atomic for each dead process; running it twice changes nothing. Elsewhere lease expiry does the same, later.
        """
        items, lost = 0, []
        for owner in await self.store.driver.owners():
            if is_dead(owner):
                items += await self.store.driver.hand_back(owner=owner, crashed=True)
                lost += await self.store.driver.mark_lost(owner)
        lost += await self.store.driver.mark_lost(None)
        return items, lost

    async def close(self) -> None:
        """Stop the heartbeat and close the store."""
        self.guard.stop()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.wait([self._heart])
        await self.lounge.close()
        await self.store.close()

    # -- heartbeat -------------------------------------------------------------------------------------------------

    def _start_heart(self) -> None:
        if self._heart is None or self._heart.done():
            self._heart = asyncio.create_task(self._beat_forever(), name="flatfleet-heartbeat")
            self.guard.start()

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self.store.lease / 3)
            await self.beat()

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
                leases[item_id].lose(f"item {item_id} was taken over: token {leases[item_id].token} is no longer valid")
        for worker, status in answer.workers.items():
            if worker in self.workers:
                self.workers[worker] = status or "lost"
                if status not in LIVE_WORKER:
                    logger.warning("worker %s is %s in the registry; it stops after its item", worker, status)
                    self.lounge.dismiss()


def _in_daemon(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in a daemon thread; nobody waits for it who does not await the future."""
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def answer(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(answer, result, error)

    threading.Thread(target=run, name="flatfleet-blocking", daemon=True).start()
    return future
