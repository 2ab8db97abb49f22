"""What a process with hosts tells of its pool, in the store, so that anybody can look at it."""

from __future__ import annotations

import asyncio
import logging
import time

from flatfleet.runtime.engine_notes import ENGINE, swept
from flatfleet.runtime.engines.pool import HostPool
from flatfleet.runtime.engines.spec import EngineSpec
from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.stores.store import Store

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two notes, where something has changed."""


class Showing:
    """Notes the metrics of a pool under `engine/{owner}` while its process lives."""

    def __init__(self, store: Store, spec: EngineSpec, pool: HostPool) -> None:
        self._store = store
        self._spec = spec
        self._pool = pool
        self._key = f"{ENGINE}{store.owner}"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="flatfleet-engine")

    async def stop(self) -> None:
        """Take back what was noted."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            await self._store.driver.drop(self._key)
            await self._store.lock.release(self._key)
        except StoreError as error:
            logger.warning("what was noted of the engine could not be taken back: %s", error)

    async def _run(self) -> None:
        noted, held = None, False
        settings = self._spec.pool
        fixed = {
            "engine": self._spec.kind,
            "address": self._spec.address,
            **{name: getattr(settings, name) for name in settings.__slots__},
        }
        while True:
            try:
                if not held:
                    await swept(self._store)
                    held = await self._store.lock.acquire(self._key)
                metrics = self._pool.metrics()
                if metrics != noted:
                    await self._store.driver.put(self._key, {**fixed, **metrics, "at": time.time()})
                    noted = metrics
            except StoreError as error:
                logger.warning("the engine could not be noted: %s", error)
            await asyncio.sleep(EVERY)
