"""Metrics in the SQLite store: the events of a transaction go into one row for each pool and second."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from flatfleet.runtime.stores.buckets import KEPT, Activity, Bucket, Event, current, enter
from flatfleet.runtime.stores.sqlite_reads import counts

if TYPE_CHECKING:
    from flatfleet.runtime.stores.group import Tx


def keep(tx: Tx) -> None:
    """Enter the transaction's events; where a second begins, those that are too old go."""
    by_pool: defaultdict[str, list[Event]] = defaultdict(list)
    for event in tx.events:
        by_pool[event[0]].append(event)
    for pool, events in by_pool.items():
        bucket, new = current(_last(tx, pool), tx.now)
        enter(bucket, tx.now, events)
        tx.run("put_bucket", (pool, bucket.at, bucket.text()))
        if new:
            tx.run("trim_buckets", (pool, bucket.at - KEPT))


def first_ask(tx: Tx, pool: str, worker: str) -> None:
    """Note that a worker asks for an item, if it is registered and this is its first time."""
    row = tx.run("first_ask", {"worker": worker, "now": tx.now}).fetchone()
    if row is not None:
        tx.note(pool, "started", tx.now - row[0])


def metrics(tx: Tx, pool: str, since: float, most: int) -> Activity:
    rows = tx.run("buckets", (pool, int(since), max(0, most))).fetchall()
    last = _last(tx, pool) or Bucket(0)
    crew: dict[str, tuple[int, int, int]] = {}
    for owner, status, size, fresh in tx.run("crew", {"pool": pool, "now": tx.now}):
        live, starting, draining = crew.get(owner, (0, 0, 0))
        active = status == "active"
        crew[owner] = (live + size, starting + fresh, draining) if active else (live, starting, draining + size)
    return Activity(
        at=tx.now,
        counts=counts(tx, pool),
        buckets=tuple(Bucket.of(*row) for row in reversed(rows)),
        last_arrival=last.last_arrival,
        last_end=last.last_end,
        startup=last.startup,
        oldest=tx.run("oldest_wait", {"pool": pool, "now": tx.now}).fetchone()[0],
        crew=crew,
    )


def _last(tx: Tx, pool: str) -> Bucket | None:
    row = tx.run("last_bucket", (pool,)).fetchone()
    return Bucket.of(*row) if row else None
