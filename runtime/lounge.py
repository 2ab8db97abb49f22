"""Where idle workers wait: one watcher a pool looks for work on behalf of all of this process's idle workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import islice
from typing import Literal, NamedTuple

from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.store import Store

Why = Literal["woken", "empty", "timeout", "dismissed"]

POLL = 1.0
"""Seconds between two looks at a pool that nobody rang for: the safety net for what other processes did."""


class _Wish(NamedTuple):
    """How a waiter waits: `stays` when the pool is empty, and was woken in vain just before (`again`)."""

    stays: bool
    again: bool


_Waiters = dict[asyncio.Future[Why], _Wish]


class _Seen:
    """What was ready in a pool when its waiters were last woken, and when that was."""

    __slots__ = ("at", "ready")

    def __init__(self) -> None:
        self.ready, self.at = 0, 0.0


class Lounge:
    """Idle workers by pool. A waiting worker costs a future; a pool with waiters costs one task."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[str, _Waiters] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, _Seen] = {}

    async def wait(self, pool: str, timeout: float | None = None, *, again: bool = False) -> Why:
        """Wait until there may be work ("woken"), or `timeout` seconds have passed ("timeout").

        Without a time-out it ends also when nothing is left in the pool, not even claimed or delayed ("empty").
        `again` says that the waiter was woken and could claim nothing: what was ready then (items that need other
        capabilities, say) does not wake it a second time within the second.
        """
        waiter: asyncio.Future[Why] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(pool, {})
        waiters[waiter] = _Wish(timeout is not None, again)
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
            waiters.pop(waiter, None)

    def dismiss(self) -> None:
        """Let every waiter go, so that each looks whether it was told to stop."""
        for waiters in self._waiters.values():
            _release(waiters, len(waiters), "dismissed")

    async def close(self) -> None:
        self.dismiss()
        watchers = [task for task in self._watchers.values() if not task.done()]
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    async def _watch(self, name: str) -> None:
        pool, waiters, seen = self._store.work.pool(name), self._waiters[name], self._seen.setdefault(name, _Seen())
        try:
            with self._store.bell.listen(name) as rung:
                while waiters:
                    counts = await pool.counts()
                    pause = POLL
                    ready = counts.waiting + counts.expired
                    if ready > seen.ready or (ready and time.monotonic() >= seen.at + POLL):
                        seen.at = time.monotonic()
                        _release(waiters, ready, "woken")
                    elif ready:
                        _release(waiters, ready, "woken", lambda wish: not wish.again)
                    elif counts.left == 0:
                        _release(waiters, len(waiters), "empty", lambda wish: not wish.stays)
                    elif counts.delayed:
                        due = await pool.next_due()
                        pause = min(POLL, max(0.001, (due or 0.0) - time.time()))
                    seen.ready = ready
                    if waiters:
                        await heard(rung, pause)
        except Exception as error:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
            waiters.clear()


def _release(waiters: _Waiters, n: int, why: Why, which: Callable[[_Wish], bool] = lambda wish: True) -> None:
    """Wake the `n` who have waited longest, of those that it is for."""
    waiting = (waiter for waiter, wish in waiters.items() if not waiter.done() and which(wish))
    for waiter in list(islice(waiting, n)):
        del waiters[waiter]
        waiter.set_result(why)
