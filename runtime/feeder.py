"""Feeding a pool from a list no faster than it is emptied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Any

from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.sources import Skipped, Source
from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.records import NewItem
from flatfleet.runtime.stores.store import Pool

CHUNK = 500
SHOWN = 20
LOOK = 0.1
"""Seconds after which who waits for room, or for the turn to push, looks again at the latest."""


class Feeder:
    """Pushes what a list holds into a pool of which at most `limit` items may be left at any time (0: any number).

    Each item requires the capabilities `requires`, and those that its source names.
    One feeder pushes at a time, whatever process it is in, so the limit holds for all of them together. `taken` counts
    the entries that are done with; `added`, `known` and `skipped` say what came of them.
    """

    def __init__(self, fleet: Fleet, pool: Pool, limit: int, requires: Collection[str] = ()) -> None:
        self._fleet, self._pool, self._limit, self._requires = fleet, pool, limit, requires
        self.taken = self.added = self.known = self.skipped = 0
        self.reasons: list[str] = []

    async def feed(self, found: Iterator[Source | Skipped], stop: Callable[[], bool]) -> bool:
        """Push until the list ends: True. False if there is no room and `stop()` says to wait for it no longer."""
        with self._fleet.store.bell.listen(self._pool.name) as rung:
            while chunk := await self._fleet.in_thread(lambda: list(islice(found, CHUNK))):
                while chunk:
                    n = await self._push(chunk)
                    del chunk[:n]
                    if chunk and stop():
                        return False
                    if chunk and not n:
                        await heard(rung, LOOK)
        return True

    async def _push(self, chunk: list[Source | Skipped]) -> int:
        """Push as many of the chunk as there is room for; return how many of it are done with."""
        turn, lock = f"feed/{self._pool.name}", self._fleet.store.lock
        if self._limit and not await lock.acquire(turn):
            return 0
        try:
            room = self._limit - (await self._pool.counts()).left if self._limit else len(chunk)
            taken = chunk[: max(0, room)]
            sources = [each for each in taken if isinstance(each, Source)]
            news = await self._pool.push_many([self._new(each) for each in sources])
        finally:
            if self._limit:
                await lock.release(turn)
        self.taken += len(taken)
        self.added += sum(news)
        self.known += len(news) - sum(news)
        self.skipped += len(taken) - len(sources)
        self.reasons += [f"{each.where}: {each.why}" for each in taken if isinstance(each, Skipped)]
        del self.reasons[SHOWN:]
        return len(taken)

    def _new(self, source: Source) -> NewItem:
        return self._pool.new(source.data, key=source.key, requires={*source.requires, *self._requires})

    def told(self) -> dict[str, Any]:
        return {"added": self.added, "known": self.known, "skipped": self.skipped, "skipped_first": self.reasons}
