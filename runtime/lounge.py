"""Where idle workers wait: one watcher a pool looks for work on behalf of all of this process's idle workers."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.store import Store

Why = Literal["woken", "empty", "timeout", "dismissed"]

_Waiters = dict[asyncio.Future[Why], bool]

POLL = 1.0
"""Seconds between two looks at a pool that nobody rang for: the safety net for what other processes did."""


class Lounge:
    """Idle workers by pool. A waiting worker costs a future; a pool with waiters costs one task."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[str, _Waiters] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def wait(self, pool: str, timeout: float | None = None) -> Why:
        """Wait until there may be work ("woken"), or `timeout` seconds have passed ("timeout").

        Without a time-out it ends also when nothing is left in the pool, not even claimed or delayed ("empty").
        """
        waiter: asyncio.Future[Why] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(pool, {})
        waiters[waiter] = timeout is not None
        if pool not in self._watchers or self._watchers[pool].done():
            self._watchers[pool] = asyncio.create_task(self._watch(pool), name=f"flatfleet-watch-{pool}")
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
        pool, waiters = self._store.work.pool(name), self._waiters[name]
        try:
            with self._store.bell.listen(name) as rung:
                while waiters:
                    counts = await pool.counts()
                    pause = POLL
                    if ready := counts.waiting + counts.expired:
                        _release(waiters, ready, "woken")
                    elif counts.left == 0:
                        _release({w: stays for w, stays in waiters.items() if not stays}, len(waiters), "empty")
                    elif counts.delayed:
                        due = await pool.next_due()
                        pause = min(POLL, max(0.001, (due or 0.0) - time.time()))
                    if waiters:
                        await heard(rung, pause)
        except Exception as error:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
            waiters.clear()


def _release(waiters: _Waiters, n: int, why: Why) -> None:
    for waiter in list(waiters)[:n]:
        del waiters[waiter]
        if not waiter.done():
            waiter.set_result(why)
