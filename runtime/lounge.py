"""Where idle workers wait: one watcher a pool looks for work on behalf of all of this process's idle workers."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from itertools import islice
from typing import Literal

from flatfleet.runtime.stores.store import Store

Why = Literal["woken", "empty", "timeout", "dismissed"]

POLL = 1.0
"""Seconds between two looks at a pool that nobody rang for: the safety net for what other processes did."""


_Waiter = asyncio.Future[Why]


class _Waiters:
    """Who waits for one pool, each kind in the order in which they came: who wakes one kind looks at no other.

    `fresh` are those that were not woken in vain just before, `leaving` those that do not stay once the pool is empty.
    """

    __slots__ = ("everyone", "fresh", "leaving")

    def __init__(self) -> None:
        self.everyone: dict[_Waiter, None] = {}
        self.fresh: dict[_Waiter, None] = {}
        self.leaving: dict[_Waiter, None] = {}

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
    """Idle workers by pool. A waiting worker costs a future; a pool with waiters costs one task."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: defaultdict[str, _Waiters] = defaultdict(_Waiters)
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, _Seen] = {}

    async def wait(self, pool: str, timeout: float | None = None, *, again: bool = False) -> Why:
        """Wait until there may be work ("woken"), or `timeout` seconds have passed ("timeout").

        Without a time-out it ends also when nothing is left in the pool, not even claimed or delayed ("empty").
        `again` says that the waiter was woken and could claim nothing: what was ready then (items that need other
        capabilities, say) does not wake it a second time within the second.
        """
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiters[pool]
        waiters.enter(waiter, stays=timeout is not None, again=again)
        if pool not in self._watchers or self._watchers[pool].done():
            self._watchers[pool] = asyncio.create_task(self._watch(pool), name=f"flatfleet-watch-{pool}")
        else:
            self._store.bell.ring(pool)  # what the watcher saw last is older than this waiter
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            return "timeout"
        finally:
            waiters.leave(waiter)

    def dismiss(self) -> None:
        """Let every waiter go, so that each looks whether it was told to stop."""
        for waiters in self._waiters.values():
            waiters.release(waiters.everyone, "dismissed")

    async def close(self) -> None:
        self.dismiss()
        watchers = [task for task in self._watchers.values() if not task.done()]
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    async def _watch(self, name: str) -> None:
        waiters, loop = self._waiters[name], asyncio.get_running_loop()
        try:
            with self._store.bell.listen(name) as rung:
                while waiters:
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
        counts, pause = await pool.counts(), POLL
        ready = counts.waiting + counts.expired
        if ready > seen.ready or (ready and time.monotonic() >= seen.at + POLL):
            seen.at = time.monotonic()
            waiters.release(waiters.everyone, "woken", ready)
        elif ready:
            waiters.release(waiters.fresh, "woken", ready)
        elif counts.left == 0:
            waiters.release(waiters.leaving, "empty")
        elif counts.delayed:
            due = await pool.next_due()
            pause = min(POLL, max(0.001, (due or 0.0) - time.time()))
        seen.ready = ready
        return pause
