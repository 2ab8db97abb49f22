"""The worker operations of the SQLite store: plain functions of one transaction."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Collection
from itertools import islice
from typing import Any

from flatfleet.runtime.errors import WorkerConflict
from flatfleet.runtime.stores import sqlite_items as sql_items
from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.records import LIVE_WORKER, Beat
from flatfleet.runtime.stores.text import dump, moment, stamp
from flatmachines import WorkerRecord, WorkerRegistration

REMEMBERED = 10_000
"""Workers of which a process remembers that they have asked for items."""


def register(tx: Tx, worker: WorkerRegistration, owner: str, lease: float, metadata: dict[str, Any]) -> WorkerRecord:
    started, status, holder, booked = worker.started_at, "active", owner, bool(metadata.get("booked"))
    row, fresh = tx.run("registration", (worker.worker_id,)).fetchone(), True
    if row is not None:
        known, since, holder, until, _, told, _ = row
        before = json.loads(told)
        if known in LIVE_WORKER and (holder == owner or (until > tx.now and before.get("booked"))):
            started, status, fresh = since, known, False
            metadata = before | metadata | ({"booked": booked} if before.get("booked") else {})
        elif known in LIVE_WORKER and until > tx.now:
            raise WorkerConflict(
                f"worker '{worker.worker_id}' is alive under {holder}; this process is {owner}. "
                "Give the worker another id, or wait until that one has ended"
            )
    capabilities = dump(worker.capabilities, "capabilities") if worker.capabilities is not None else None
    text = dump(metadata, "the metadata of a worker")
    if row is not None and fresh:
        tx.run("drop_worker", (worker.worker_id,))
    tx.run(
        "put_worker",
        (worker.worker_id, status, tx.now, started, worker.host, worker.pid, capabilities, owner, tx.now + lease, text),
    )
    _changed(tx, holder)
    return workers(tx, worker.worker_id)[0]


def remember(asked: set[str], worker: str) -> None:
    """Note that a worker has asked for items here, so that nobody looks again; beyond REMEMBERED all are forgotten."""
    if len(asked) >= REMEMBERED:
        asked.clear()
    asked.add(worker)


class Crew:
    """The workers that a process last beat for, all live and all following it, and the name of that beat.

    While the store's row of the owner bears this name nothing has changed, and nobody needs to be looked at.
    """

    def __init__(self) -> None:
        self.beat, self.names = "", list[str]()
        self.statuses: dict[str, str | None] = {}


def beat(tx: Tx, crew: Crew, owner: str, names: list[str], leases: dict[str, int], lease: float) -> Beat:
    until = tx.now + lease
    lost = tuple(sql_items.renew(tx, leases, until)) if leases else ()
    tx.run("beat_locks", (until, owner))
    told = {"owner": owner, "now": tx.now, "until": until, "beat": crew.beat}
    if names and names == crew.names and tx.run("beat_again", told).rowcount:
        return Beat(lost, crew.statuses.copy())
    statuses: dict[str, str | None] = dict.fromkeys(names)
    live = 0
    if len(statuses) == 1:
        tx.run("beat_worker", told | {"worker": names[0]})
        _changed(tx, owner)
    elif statuses:
        live = _follow(tx, owner, statuses)
        crew.beat, crew.names, crew.statuses = uuid.uuid4().hex, names, statuses
        tx.run("beat_owner", told | {"beat": crew.beat if live == len(statuses) else None})
        tx.run("forget_owner", (owner,))
    if len(statuses) > live:
        rest = _json([name for name, status in statuses.items() if status is None])
        statuses.update(tx.run("worker_statuses", {"owner": owner, "workers": rest}).fetchall())
    return Beat(lost, statuses.copy())


def set_status(tx: Tx, worker_id: str, status: str, metadata: dict[str, Any]) -> None:
    row = tx.run("registration", (worker_id,)).fetchone()
    if row is None:
        raise KeyError(f"no worker '{worker_id}' in this store")
    before, _, owner, until, heartbeat, told, follows = row
    if status == "terminating" and before not in LIVE_WORKER:
        return
    merged = dump(json.loads(told) | metadata, "the metadata of a worker")
    follows = follows and status in LIVE_WORKER
    tx.run("set_status", (status, merged, heartbeat, until, follows, worker_id))
    _changed(tx, owner)


def workers(tx: Tx, worker_id: str | None) -> list[WorkerRecord]:
    cursor = tx.run("all_workers") if worker_id is None else tx.run("workers", (worker_id,))
    cursor.row_factory = sqlite3.Row
    return [
        WorkerRecord(
            worker_id=row["id"],
            status=row["status"],
            last_heartbeat=stamp(row["heartbeat"]),
            host=row["host"],
            pid=row["pid"],
            capabilities=json.loads(row["capabilities"]) if row["capabilities"] else None,
            started_at=row["started"],
            current_task_id=row["item"],
            metadata=json.loads(row["metadata"]) | {"owner": row["owner"], "lease_until": row["lease_until"]},
        )
        for row in cursor.fetchall()
    ]


def draining(tx: Tx, owner: str) -> dict[str, float | None]:
    return {worker: moment(until) for worker, until in tx.run("draining", (owner,))}


def mark_lost(tx: Tx, owner: str | None) -> list[str]:
    if owner is None:
        found = tx.run("expired_workers", {"now": tx.now}).fetchall()
    else:
        found = tx.run("workers_of", (owner,)).fetchall()
        tx.run("unlock_owner", (owner,))
    lost = [row[0] for row in found]
    _unfollow(tx, lost, "lost")
    for holder in {row[1] for row in found}:
        _changed(tx, holder)
    return lost


def _follow(tx: Tx, owner: str, statuses: dict[str, str | None]) -> int:
    """Let the named workers, and no others, follow their owner; fill in the statuses of the live ones, and count these."""
    named, live = len(statuses), 0
    for follows, status, text in tx.run("live_workers", (owner,)).fetchall():
        names = json.loads(text)
        statuses.update(dict.fromkeys(names, status))
        if len(statuses) > named:  # by some that were not named
            strangers = list(islice(statuses, named, None))
            for name in strangers:
                del statuses[name]
            if follows:
                _unfollow(tx, strangers)
            names = [name for name in names if name in statuses]
        if names and not follows:
            tx.run("follow", (_json(names),))
        live += len(names)
    return live


def _unfollow(tx: Tx, names: Collection[str], status: str | None = None) -> None:
    """Give the workers a heartbeat and a lease of their own: those that held until now."""
    if names:
        tx.run("unfollow", {"workers": _json(names), "status": status})


def _changed(tx: Tx, owner: str) -> None:
    """Note that an owner's workers have changed; forget it if nobody follows it any more."""
    tx.run("changed", (owner,))
    tx.run("forget_owner", (owner,))


def _json(names: Collection[str]) -> str:
    return json.dumps(list(names))
