"""What a memory store holds: its tables, its clock, and the one lookup that needs an order (snapshots by prefix)."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime.stores.contract import SnapshotRow
from flatfleet.runtime.stores.memory_pool import Entry, Pool
from flatmachines import Signal


@dataclass(slots=True)
class Worker:
    """A registration; `metadata` is what the callers gave, without the owner and the lease."""

    id: str
    status: str
    owner: str
    started: str
    heartbeat: float
    lease_until: float
    host: str | None = None
    pid: int | None = None
    capabilities: list[str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Snapshots:
    """The latest snapshot of each execution, oldest first, with their ids in order for lookups by prefix."""

    def __init__(self) -> None:
        self.rows: dict[str, SnapshotRow] = {}
        self._ids: list[str] = []

    def save(self, row: SnapshotRow) -> None:
        if self.rows.pop(row.execution_id, None) is None:
            insort(self._ids, row.execution_id)
        self.rows[row.execution_id] = row

    def drop(self, prefix: str, keep: str | None = None) -> None:
        """Delete all executions whose id starts with `prefix`, but not `keep`."""
        start = end = bisect_left(self._ids, prefix)
        while end < len(self._ids) and self._ids[end].startswith(prefix):
            end += 1
        kept = [name for name in self._ids[start:end] if name == keep]
        for name in self._ids[start:end]:
            if name != keep:
                del self.rows[name]
        self._ids[start:end] = kept

    def drop_tree(self, execution_id: str) -> None:
        """Delete the snapshots of an execution and of its descendants."""
        if self.rows.pop(execution_id, None) is not None:
            del self._ids[bisect_left(self._ids, execution_id)]
        self.drop(f"{execution_id}:")

    def drop_finished(self, execution_id: str) -> None:
        """Delete the tree of an execution that has reached its end; keep one that can be resumed."""
        row = self.rows.get(execution_id)
        if row is not None and row.event == "machine_end":
            self.drop_tree(execution_id)


class Tables:
    """The tables that the operations of `MemoryDriver` work on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sequence = itertools.count()
        self._pools: dict[str, Pool] = {}
        self._items: dict[str, Entry] = {}
        self._workers: dict[str, Worker] = {}
        self._entries: dict[str, str] = {}
        self._snapshots = Snapshots()
        self._signals: dict[str, deque[Signal]] = {}
        self._locks: dict[str, tuple[str, float]] = {}

    def _holds(self, item_id: str, token: int) -> bool:
        """Tell whether `token` is the item's live claim."""
        entry = self._items.get(item_id)
        return entry is not None and entry.state == "claimed" and entry.token == token
