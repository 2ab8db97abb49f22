"""The guard: renews a process's leases from a thread of its own while a state blocks the event loop.

The heartbeat is a task of the event loop. Where an action blocks that loop for longer than a lease, nobody but a thread
can tell the store that the process is alive; else its items would be taken away and, after some rounds, be dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.store import Store

logger = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds that an event loop may be blocked: one that hangs for longer gives its items up."""

Held = Callable[[], tuple[Sequence[str], Mapping[str, int]]]


class Guard:
    """Beats in the place of a heart that is late; over a connection of its own, opened when it is needed.

    `held()` tells, from any thread, what the process holds: (worker ids, {item id: token}).
    """

    def __init__(self, store: Store, held: Held) -> None:
        self._store = store
        self._held = held
        self._heart = self._beaten = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None and self._store.durable:
            self.heard()
            self._thread = threading.Thread(target=self._watch, name="flatfleet-guard", daemon=True)
            self._thread.start()

    def heard(self) -> None:
        """Note that the heart beats."""
        self._heart = self._beaten = time.monotonic()

    def late(self) -> bool:
        """True if the heart has not beaten for more than half a lease."""
        return time.monotonic() - self._heart > self._store.lease / 2

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._store.lease / 6):
            now = time.monotonic()
            if now - self._beaten > self._store.lease / 2 and now - self._heart < PATIENCE:
                self._beaten = now
                self._beat(now - self._heart)

    def _beat(self, silent: float) -> None:
        workers, leases = self._held()
        if not workers and not leases:
            return
        logger.warning(
            "the event loop has been blocked for %.1f s; its leases are renewed from outside. "
            "Move blocking code into fleet.in_thread",
            silent,
        )

        async def renew(store: Store) -> None:
            claimed = await store.driver.claims(store.owner)  # the event loop may not know yet what it has claimed
            await store.driver.beat(store.owner, workers, {**leases, **claimed}, store.lease)

        self._outside(renew)

    def hand_back(self) -> int:
        """Give back, from any thread, every item that this process has claimed, burning no attempt: its last act.

        By owner, not by what the event loop knows to hold: a claim may have been committed after it was blocked.
        """
        workers, n = self._held()[0], 0

        async def leave(store: Store) -> None:
            nonlocal n
            n = await store.driver.hand_back(owner=store.owner, crashed=False)
            for worker in workers:
                with contextlib.suppress(KeyError):
                    await store.driver.set_status(worker, "terminated", {"ended": "drained"})

        if self._store.durable:
            self._outside(leave)
        return n

    def _outside(self, act: Callable[[Store], Awaitable[object]]) -> None:
        """Do this on a store of this thread's own, as the same owner."""

        async def run() -> None:
            store = open_store(self._store.url, owner=self._store.owner, lease=self._store.lease, must_exist=True)
            try:
                await act(store)
            finally:
                await store.close()

        try:
            asyncio.run(run())
        except StoreError as error:
            logger.warning("the store could not be told from outside: %s", error)
