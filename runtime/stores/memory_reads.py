"""What is asked about items in the memory store: nothing here changes any of them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from itertools import islice
from operator import attrgetter

from flatfleet.runtime.stores.memory_pool import Entry
from flatfleet.runtime.stores.memory_tables import Tables
from flatfleet.runtime.stores.records import Attempt, Counts, Item, State


class MemoryReads(Tables):
    """The questions of `contract.Driver` under "Items"."""

    async def item(self, item_id: str) -> Item | None:
        entry = self._items.get(item_id)
        return None if entry is None else _item(entry)

    async def items(self, pool: str, state: State | None, limit: int, after: str | None) -> list[Item]:
        start = -1 if after is None else self._entry(after).sequence
        entries = self._pools[pool].entries if pool in self._pools else []
        rest = islice(entries, bisect_right(entries, start, key=attrgetter("sequence")), None)
        return [_item(entry) for entry in islice((e for e in rest if state in (None, e.state)), limit)]

    async def attempts(self, item_id: str) -> list[Attempt]:
        entry = self._items.get(item_id)
        return [] if entry is None else list(entry.history)

    async def counts(self, pool: str) -> Counts:
        return self._pools[pool].counts(self._clock()) if pool in self._pools else Counts()

    async def requirements(self, pool: str) -> dict[tuple[str, ...], int]:
        return self._pools[pool].requirements() if pool in self._pools else {}

    async def pools(self) -> list[str]:
        return sorted(self._pools)

    async def errors(self, pool: str) -> dict[str, int]:
        dead = self._pools[pool].dead.values() if pool in self._pools else []
        return dict(Counter(entry.error_type or "unknown" for entry in dead).most_common())

    async def next_due(self, pool: str) -> float | None:
        return self._pools[pool].next_due(self._clock()) if pool in self._pools else None

    async def paused(self, pool: str) -> float | None:
        until = self._pauses.get(pool)
        return until if until is not None and until > self._clock() else None

    def _entry(self, item_id: str) -> Entry:
        try:
            return self._items[item_id]
        except KeyError:
            raise KeyError(f"no item {item_id!r} in this store") from None


def _item(entry: Entry) -> Item:
    return Item(
        id=entry.id,
        pool=entry.pool,
        key=entry.key,
        state=entry.state or "ready",
        data=json.loads(entry.data),
        result=json.loads(entry.result),
        priority=entry.priority,
        due=entry.due,
        token=entry.token,
        attempts=entry.attempts,
        crashes=entry.crashes,
        max_attempts=entry.max_attempts,
        max_crashes=entry.max_crashes,
        requires=tuple(sorted(entry.needs)),
        worker=entry.worker,
        owner=entry.owner,
        error_type=entry.error_type,
        error=entry.error,
        created=entry.created,
        started=entry.started,
        finished=entry.finished,
    )
