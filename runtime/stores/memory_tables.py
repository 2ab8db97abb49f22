"""What a memory store holds: its tables and its clock."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime.stores.buckets import Bucket
from flatfleet.runtime.stores.memory_executions import Snapshots
from flatfleet.runtime.stores.memory_pool import Entry, Pool
from flatfleet.runtime.values import size_of
from flatmachines import Signal


@dataclass(slots=True)
class Worker:
    """A registration; `metadata` is what the callers gave, without the owner and the lease; `pool` and `size` are of it."""

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
    pool: Any = None
    size: int = 1

    def tell(self, metadata: Mapping[str, Any]) -> None:
        self.metadata.update(metadata)
        self.pool, self.size = self.metadata.get("pool"), size_of(self.metadata)


class Tables:
    """The tables that the operations of `MemoryDriver` work on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sequence = itertools.count()
        self._pools: dict[str, Pool] = {}
        self._pauses: dict[str, float] = {}
        self._items: dict[str, Entry] = {}
        self._workers: dict[str, Worker] = {}
        self._entries: dict[str, str] = {}
        self._written: dict[str, float] = {}
        self._snapshots = Snapshots()
        self._signals: dict[str, deque[Signal]] = {}
        self._locks: dict[str, tuple[str, float]] = {}
        self._decisions: dict[str, dict[str, str]] = {}
        self._targets: dict[str, int] = {}
        self._buckets: dict[str, list[Bucket]] = {}

    def _holds(self, item_id: str, token: int) -> bool:
        """Tell whether `token` is the item's live claim."""
        entry = self._items.get(item_id)
        return entry is not None and entry.state == "claimed" and entry.token == token
