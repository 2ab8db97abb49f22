"""Metrics in the memory store: one bucket for each pool and second."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from flatfleet.runtime.stores.buckets import KEPT, Activity, Bucket, Kind, current
from flatfleet.runtime.stores.memory_tables import Tables
from flatfleet.runtime.stores.records import LIVE_WORKER, Counts

OLDEST = 10
"""Items at the head of each line that are looked at for the one that has waited longest."""


class MemoryMetrics(Tables):
    """The part of `contract.Driver` under "metrics"."""

    async def metrics(self, pool: str, since: float, most: int) -> Activity:
        now, line, kept = self._clock(), self._pools.get(pool), self._buckets.get(pool, [])
        found = [each.copy() for each in kept if each.at >= int(since)]
        last = kept[-1] if kept else Bucket(0)
        crew: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for worker in self._workers.values():
            if worker.pool == pool and worker.status in LIVE_WORKER and worker.lease_until >= now:
                numbers = crew[worker.owner]
                if worker.status != "active":
                    numbers[2] += worker.size
                    continue
                numbers[0] += worker.size
                if "asked" not in worker.metadata:
                    numbers[1] += worker.size
        return Activity(
            at=now,
            counts=Counts() if line is None else line.counts(now),
            buckets=tuple(found[max(0, len(found) - max(0, most)) :]),
            last_arrival=last.last_arrival,
            last_end=last.last_end,
            startup=last.startup,
            oldest=None if line is None else line.oldest(now, OLDEST),
            crew={owner: (live, starting, draining) for owner, (live, starting, draining) in crew.items()},
        )

    def _note(self, pool: str, now: float, kind: Kind, value: float, more: float = 0.0) -> None:
        kept = self._buckets.setdefault(pool, [])
        bucket, new = current(kept[-1] if kept else None, now)
        bucket.add(kind, now, value, more)
        if new:
            kept.append(bucket)
            while kept[0].at < bucket.at - KEPT:
                del kept[0]

    def _first_ask(self, pool: str, name: str, now: float) -> None:
        worker = self._workers.get(name)
        if worker is not None and worker.status in LIVE_WORKER and "asked" not in worker.metadata:
            worker.tell({"asked": now})
            began = _seconds(worker.started)
            if began is not None:
                self._note(pool, now, "started", now - began)


def _seconds(stamp: str) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None
