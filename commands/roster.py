"""Workers, as `status` and `workers` show them."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from flatfleet.commands.durations import span
from flatfleet.commands.terminal import plain
from flatfleet.runtime.owner import is_dead, place_of
from flatfleet.runtime.stores.records import LIVE_WORKER, SCREEN_WORKER

_ORDER = ("draining", "active", "lost", "terminated")


def rows(records: Iterable[Any], *, ended: bool = False, pool: str | None = None) -> list[dict[str, Any]]:
    """The workers as data, of one pool or of all; those that have ended only with `ended`."""
    dead, now = functools.cache(is_dead), time.time()
    return [
        _row(record, dead, now)
        for record in records
        if (ended or record.status in LIVE_WORKER) and pool in (None, (record.metadata or {}).get("pool"))
    ]


def by_status(workers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that drain first, then the active ones, then those that have ended."""
    return sorted(workers, key=lambda row: _ORDER.index(row["status"]) if row["status"] in _ORDER else len(_ORDER))


def line(worker: dict[str, Any]) -> str:
    about = [
        f"pool {worker['pool']}",
        f"parallelism {worker['parallelism']}",
        f"pid {worker['pid']} on {worker['host']}",
    ]
    if worker["capabilities"]:
        about.insert(2, f"offers {', '.join(worker['capabilities'])}")
    heard = f"heard of {span(max(0.0, time.time() - datetime.fromisoformat(worker['heartbeat']).timestamp()))} ago"
    return f"  {plain(worker['id'])}  {worker['status']}  {_doing(worker)}  ({' · '.join(map(plain, [*about, heard]))})"


def _doing(worker: dict[str, Any]) -> str:
    item = plain(worker["item"]) if worker["item"] else None
    if worker["status"] not in SCREEN_WORKER.values() or worker["status"] in ("terminated", "lost"):
        return f"held {item}" if item else f"{worker['processed'] or 0} done"
    doing = f"works on {item}" if item else "not begun" if worker["booked"] else "idle"
    if worker["status"] == "draining" and item and worker["drain_until"] is not None:
        doing += f", {span(max(0.0, worker['drain_until'] - time.time()))} to finish"
    return doing


def _row(worker: Any, dead: Any, now: float) -> dict[str, Any]:
    about = worker.metadata or {}
    status = SCREEN_WORKER.get(worker.status, worker.status)
    if worker.status in LIVE_WORKER and (dead(about.get("owner", "")) or about.get("lease_until", 0) < now):
        status = "lost"  # nobody has said so yet; the next run does
    until = about.get("drain_until")
    return {
        "id": worker.worker_id,
        "status": status,
        "item": worker.current_task_id,
        "pool": about.get("pool"),
        "parallelism": about.get("parallelism"),
        "capabilities": worker.capabilities or [],
        "processed": about.get("processed"),
        "pid": worker.pid,
        "host": worker.host,
        "started": worker.started_at,
        "heartbeat": worker.last_heartbeat or datetime.now(UTC).isoformat(),
        "booked": worker.status in LIVE_WORKER and bool(about.get("booked")),
        "launched_by": about.get("decision"),
        "drained_by": about.get("drained_by"),
        "drain_until": float(until) if isinstance(until, int | float) else None,
    }


def process(owner: str) -> dict[str, Any]:
    """The host and the pid in a process's identity (runtime/owner.py)."""
    host, pid = place_of(owner)
    return {"host": host, "pid": pid, "owner": owner}
