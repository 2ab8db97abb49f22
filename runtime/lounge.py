"""Where idle workers wait: one watcher a pool looks for work on behalf of all of this process's idle workers."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from itertools import islice
from typing import Literal

from flatfleet.runtime.routing import missing, unserved
from flatfleet.runtime.stores.records import Counts
from flatfleet.runtime.stores.store import Store

Why = Literal["woken", "empty", "timeout", "dismissed", "paused"]

POLL = 1.0
"""Seconds between two looks at a pool that nobody rang for: the safety net for what other processes did."""


_Waiter = asyncio.Future[Why]


class _Waiters:
    """Who waits for one pool, each kind in the order in which they came: who wakes one kind looks at no other.

    `fresh` are those that were not woken in vain just before, `leaving` those that do not stay once the pool is empty.
    `limit` (0 for none) bounds what may be claimed of the pool at once; `upstream` are the pools that it is filled from.
    `paused` says that there is work which nobody may claim yet.
    """

    __slots__ = ("everyone", "fresh", "leaving", "limit", "paused", "upstream")

    def __init__(self) -> None:
        self.everyone: dict[_Waiter, None] = {}
        self.fresh: dict[_Waiter, None] = {}
        self.leaving: dict[_Waiter, None] = {}
        self.limit = 0
        self.upstream: tuple[str, ...] = ()
        self.paused = False

    def __len__(self) -> int:
        return len(self.everyone)

    def enter(self, waiter: _Waiter, *, stays: bool, again: bool) -> None:
        self.everyone[waiter] = None
        if not again:
            self.fresh[waiter] = None
        if not stays:
            self.leaving[waiter] = None

    def leave(self, waiter: _Waiter) -> None:
        for kind in (self.everyone, self.fresh, self.leaving):
            kind.pop(waiter, None)

    def release(self, kind: dict[_Waiter, None], why: Why, n: int | None = None) -> None:
        """Wake the `n` of a kind who have waited longest; all of them without `n`."""
        for waiter in list(islice((waiter for waiter in kind if not waiter.done()), n)):
            self.leave(waiter)
            waiter.set_result(why)


class _Seen:
    """What was ready in a pool when its waiters were last woken, and when that was."""

    __slots__ = ("at", "ready")

    def __init__(self) -> None:
        self.ready, self.at = 0, 0.0


class Lounge:
    """Idle workers by pool. A waiting worker costs a future; a pool with waiters costs one task.

    `able()` are the capabilities of this process: what requires others wakes nobody here.
    """

    def __init__(self, store: Store, able: Callable[[], Collection[str]] = tuple) -> None:
        self._store = store
        self._able = able
        self._waiters: defaultdict[str, _Waiters] = defaultdict(_Waiters)
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, _Seen] = {}
        self._workers: dict[str, _Waiter] = {}

    async def wait(
        self,
        pool: str,
        timeout: float | None = None,
        *,
        again: bool = False,
        worker: str = "",
        limit: int | None = None,
        upstream: tuple[str, ...] = (),
    ) -> Why:
        """Wait until there may be work ("woken"), or `timeout` seconds have passed ("timeout").

        Without a time-out it ends also when nothing is left in the pool, not even claimed or delayed ("empty"), nor in
        the pools `upstream` that it is filled from; the first of them comes first. What no live worker can serve does
        not keep it.
        `again` says that the waiter was woken and could claim nothing: what was ready then does not wake it a second
        time within the second.
        A pool that is paused wakes nobody, and a time-out that passes then ends in "paused". One in which `limit` items
        are claimed wakes nobody until one of them has ended. `limit` and `upstream` are those of the last who came.
        """
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiters[pool]
        waiters.limit, waiters.upstream = limit or 0, upstream
        if worker:
            self._workers[worker] = waiter
        waiters.enter(waiter, stays=timeout is not None, again=again)
        if pool not in self._watchers or self._watchers[pool].done():
            self._watchers[pool] = asyncio.create_task(self._watch(pool), name=f"flatfleet-watch-{pool}")
        else:
            self._store.bell.ring(pool)  # what the watcher saw last is older than this waiter
        try:
            async with asyncio.timeout(max(timeout, POLL) if timeout is not None and waiters.paused else timeout):
                return await waiter
        except TimeoutError:
            return "paused" if waiters.paused else "timeout"
        finally:
            waiters.leave(waiter)
            if self._workers.get(worker) is waiter:
                del self._workers[worker]

    def dismiss(self, worker: str | None = None) -> None:
        """Let every waiter go, or this worker alone, so that each looks whether it was told to stop."""
        if worker is None:
            for waiters in self._waiters.values():
                waiters.release(waiters.everyone, "dismissed")
        elif (waiter := self._workers.get(worker)) is not None and not waiter.done():
            waiter.set_result("dismissed")

    async def close(self) -> None:
        self.dismiss()
        watchers = [task for task in self._watchers.values() if not task.done()]
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    async def _watch(self, name: str) -> None:
        waiters, loop = self._waiters[name], asyncio.get_running_loop()
        try:
            while waiters:
                topics = (name, *waiters.upstream)
                with self._store.bell.listen(*topics) as rung:
                    while waiters and topics == (name, *waiters.upstream):
                        pause = await self._look(name, waiters)
                        if waiters:
                            alarm = loop.call_later(pause, rung.set)
                            await rung.wait()
                            rung.clear()
                            alarm.cancel()
        except Exception as error:
            for waiter in list(waiters.everyone):
                waiters.leave(waiter)
                if not waiter.done():
                    waiter.set_exception(error)

    async def _look(self, name: str, waiters: _Waiters) -> float:
        """Wake whom the state of the pool concerns; return the seconds after which to look again at the latest."""
        pool, seen = self._store.work.pool(name), self._seen.setdefault(name, _Seen())
        counts = await pool.counts()
        foreign = await self._foreign(name, counts)
        ready = min(counts.waiting, counts.waiting + counts.delayed - foreign) + counts.expired
        if waiters.limit:
            ready = min(ready, max(0, waiters.limit - counts.claimed))
        until = await pool.paused() if ready else None
        waiters.paused = until is not None
        if until is not None:
            seen.ready = 0
            return min(POLL, max(0.001, until - time.time()))
        pause = POLL
        if ready > seen.ready or (ready and time.monotonic() >= seen.at + POLL):
            seen.at = time.monotonic()
            waiters.release(waiters.everyone, "woken", ready)
        elif ready:
            waiters.release(waiters.fresh, "woken", ready)
        elif counts.left == foreign:
            if waiters.leaving and await self._settled(name, waiters.upstream):
                waiters.release(waiters.leaving, "empty")
        elif counts.waiting + counts.delayed > foreign:
            due = await pool.next_due()
            pause = min(POLL, max(0.001, (due or 0.0) - time.time()))
        seen.ready = ready
        return pause

    async def _settled(self, name: str, upstream: tuple[str, ...]) -> bool:
        """True if an empty pool stays so: nothing is left in those before it, and it was empty still after they were.

        Items that wait for what no live worker offers are left to nobody.
        """
        for each in (*upstream, name):
            left = (await self._store.work.pool(each).counts()).left
            if left and left > (await unserved(self._store, each, self._able())).items:
                return False
        return True

    async def _foreign(self, name: str, counts: Counts) -> int:
        """How many of the items that wait require what this process does not offer."""
        if not counts.waiting + counts.delayed:
            return 0
        needs = await self._store.work.pool(name).requirements()
        return min(sum(missing(needs, [frozenset(self._able())]).values()), counts.waiting + counts.delayed)
