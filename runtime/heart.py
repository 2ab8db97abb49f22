"""The heart: the one task of a process that renews what it holds, and hears what others told its workers."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.store import Store

TOPIC = "workers"
"""Rung when somebody else changed the status of a worker, or took an item out of its hands."""
POLL, SELDOM = 1.0, 5.0
"""Seconds between two looks that nobody rang for: where other processes cannot ring here, and where they can."""
PAUSE = 0.05
"""Seconds between two beats that a ring asked for: rings in between are answered by one beat."""


class Body(Protocol):
    """What the heart serves: `look` returns the seconds until it wants to be called again."""

    async def beat(self) -> None: ...

    async def look(self) -> float: ...


class Heart:
    """Beats each third of a lease, and at once when `workers` is rung; looks before each beat and whenever it is time."""

    def __init__(self, store: Store, body: Body) -> None:
        self._store = store
        self._body = body
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="flatfleet-heartbeat")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        third = self._store.lease / 3
        with self._store.bell.listen(TOPIC) as rung:
            due, told = time.monotonic() + third, False
            while True:
                pause = await self._body.look()
                if told or time.monotonic() >= due:
                    due = time.monotonic() + third
                    await self._body.beat()
                if told:
                    await asyncio.sleep(PAUSE)
                told = await heard(rung, max(0.0, min(pause, due - time.monotonic())))
