"""Housekeeping of the memory store: what ended before a time and nobody needs goes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from flatfleet.runtime.stores.leftovers import ATTEMPTS_KEPT, CONFIG_GRACE, DECISIONS_KEPT, ENDED_WORKER, needless
from flatfleet.runtime.stores.memory_tables import Tables
from flatfleet.runtime.stores.records import State
from flatfleet.runtime.stores.text import moment
from flatmachines import Signal


class MemoryGc(Tables):
    """The part of `contract.Driver` under "housekeeping"; no operation awaits anything, so each is one atomic step."""

    async def gc(self, before: float) -> dict[str, int]:
        return {
            "workers": self._gc_workers(before),
            "executions": self._gc_executions(before),
            "decisions": self._gc_decisions(before),
            "attempts": self._gc_attempts(before),
            "configs": self._gc_configs(before),
        }

    async def vacuum(self) -> int:
        """Return 0: what was deleted is not there any more."""
        return 0

    def _gc_workers(self, before: float) -> int:
        busy = {entry.worker for pool in self._pools.values() for entry in pool.claims.values()}
        ended = [w.id for w in self._workers.values() if w.status in ENDED_WORKER and w.heartbeat < before]
        gone = [name for name in ended if name not in busy]
        for name in gone:
            del self._workers[name]
            self._forget(f"{name}/result")
        return len(gone)

    def _gc_executions(self, before: float) -> int:
        rows, inboxes, now, n = self._snapshots.rows, self._snapshots.inboxes.rows, self._clock(), 0
        locked = {key for key, (_, until) in self._locks.items() if until > now}
        for name in sorted((rows.keys() | inboxes.keys()) - locked):  # parents come before their children
            row, times = (
                rows.get(name),
                [_sent(each) for box in inboxes.get(name, {}).values() for each in box.values()],
            )
            since = max([*times, row.updated] if row is not None else times)
            if since < before and needless(name, row.event if row else None, self._state, rows.__contains__):
                self._snapshots.drop_one(name)
                n += 1
        return n

    def _gc_decisions(self, before: float) -> int:
        n = 0
        for known in self._decisions.values():
            for name in list(known)[: max(0, len(known) - DECISIONS_KEPT)]:
                at = moment(json.loads(known[name])["at"])
                if at is not None and at < before:
                    del known[name]
                    n += 1
        return n

    def _gc_attempts(self, before: float) -> int:
        n = 0
        for entry in self._items.values():
            extra = len(entry.history) - ATTEMPTS_KEPT
            if entry.state == "completed" and entry.finished is not None and entry.finished < before and extra > 0:
                del entry.history[:extra]
                n += extra
        return n

    def _gc_configs(self, before: float) -> int:
        until = min(before, self._clock() - CONFIG_GRACE)
        old = [key for key in self._entries if key.startswith("config:") and self._written[key] < until]
        used = {f"config:{_config_of(row.body)}" for row in self._snapshots.rows.values()} if old else set()
        gone = [key for key in old if key not in used]
        for key in gone:
            self._forget(key)
        return len(gone)

    def _forget(self, key: str) -> None:
        self._entries.pop(key, None)
        self._written.pop(key, None)

    def _state(self, item_id: str) -> State | None:
        entry = self._items.get(item_id)
        return entry.state if entry is not None else None


def _sent(signal: Signal) -> float:
    return datetime.fromisoformat(signal.created_at or "").timestamp()


def _config_of(body: bytes) -> Any:
    """The hash of the config that a snapshot was taken under; None if it tells of none."""
    try:
        snapshot = json.loads(body)
    except ValueError:
        return None
    return snapshot.get("config_hash") if isinstance(snapshot, dict) else None
