"""The memory store: the reference implementation of `contract.Driver`, in plain dicts and heaps of one process.

Atomic because nothing here awaits: an operation runs to its end before another coroutine does. Nothing survives it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flatfleet.runtime.errors import LeaseLost, WorkerConflict
from flatfleet.runtime.stores.memory_fleets import MemoryFleets
from flatfleet.runtime.stores.memory_gc import MemoryGc
from flatfleet.runtime.stores.memory_items import MemoryItems
from flatfleet.runtime.stores.memory_signals import MemorySignals
from flatfleet.runtime.stores.memory_tables import Worker
from flatfleet.runtime.stores.records import LIVE_WORKER, Beat, SnapshotRow
from flatfleet.runtime.stores.text import dump, moment, stamp
from flatmachines import WorkerRecord, WorkerRegistration


class MemoryDriver(MemoryItems, MemorySignals, MemoryFleets, MemoryGc):
    """A store for one process and one run; `clock` returns seconds since the epoch."""

    durable = False

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)

    # -- workers ---------------------------------------------------------------------------------------------------

    async def register(
        self, worker: WorkerRegistration, owner: str, lease: float, metadata: Mapping[str, Any]
    ) -> WorkerRecord:
        now, name = self._clock(), worker.worker_id
        told = _metadata(name, metadata)
        known = self._workers.get(name)
        if known is not None and known.status in LIVE_WORKER:
            booked = bool(known.metadata.get("booked"))
            if known.owner != owner and known.lease_until > now and not booked:
                raise WorkerConflict(
                    f"worker {name!r} is {known.status} under {known.owner!r} until {stamp(known.lease_until)} "
                    f"— {owner!r} needs another id, or has to wait until that lease runs out"
                )
            known = known if known.owner == owner or known.lease_until > now else None
            if booked and known is not None:
                told["booked"] = bool(told.get("booked"))
        else:
            known = None
        if known is None:
            self._workers.pop(name, None)
            known = self._workers[name] = Worker(name, "active", owner, worker.started_at, now, now + lease)
        known.owner = owner
        known.host, known.pid = worker.host, worker.pid
        known.capabilities = list(worker.capabilities) if worker.capabilities is not None else None
        known.heartbeat, known.lease_until = now, now + lease
        known.metadata |= told
        return self._worker_record(known, self._tasks())

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        now = self._clock()
        until = now + lease
        lost = [item_id for item_id, token in leases.items() if not self._holds(item_id, token)]
        for item_id in leases.keys() - set(lost):
            entry = self._items[item_id]
            self._pools[entry.pool].renew(entry, until)
        own = {name: self._workers[name] for name in workers if name in self._workers}
        own = {name: worker for name, worker in own.items() if worker.owner == owner}
        for worker in own.values():
            if worker.status in LIVE_WORKER:
                worker.heartbeat, worker.lease_until = now, until
        for key, (holder, _) in self._locks.items():
            if holder == owner:
                self._locks[key] = (owner, until)
        return Beat(tuple(lost), {name: own[name].status if name in own else None for name in workers})

    async def set_status(self, worker_id: str, status: str, metadata: Mapping[str, Any] | None = None) -> None:
        told = _metadata(worker_id, metadata or {})
        if worker_id not in self._workers:
            raise KeyError(f"no worker {worker_id!r} in this store")
        worker = self._workers[worker_id]
        if status == "terminating" and worker.status not in LIVE_WORKER:
            return
        worker.status = status
        worker.metadata |= told

    async def workers(self, worker_id: str | None = None) -> list[WorkerRecord]:
        chosen = self._workers.values() if worker_id is None else filter(None, [self._workers.get(worker_id)])
        tasks = self._tasks()
        return [self._worker_record(worker, tasks) for worker in chosen]

    async def draining(self, owner: str) -> dict[str, float | None]:
        told = [w for w in self._workers.values() if w.status == "terminating" and w.owner == owner]
        return {worker.id: moment(worker.metadata.get("drain_until")) for worker in told}

    async def owners(self) -> list[str]:
        claiming = {entry.owner for pool in self._pools.values() for entry in pool.claims.values() if entry.owner}
        registered = {worker.owner for worker in self._workers.values() if worker.status in LIVE_WORKER}
        locking = {holder for holder, _ in self._locks.values()}
        return sorted(claiming | registered | locking)

    async def claims(self, owner: str) -> dict[str, int]:
        entries = [entry for pool in self._pools.values() for entry in pool.claims.values()]
        return {entry.id: entry.token for entry in entries if entry.owner == owner}

    async def mark_lost(self, owner: str | None) -> list[str]:
        now = self._clock()
        live = [worker for worker in self._workers.values() if worker.status in LIVE_WORKER]
        lost = [w for w in live if (w.lease_until <= now if owner is None else w.owner == owner)]
        for worker in lost:
            worker.status = "lost"
        if owner is not None:
            self._locks = {key: lock for key, lock in self._locks.items() if lock[0] != owner}
        return [worker.id for worker in lost]

    # -- entries ---------------------------------------------------------------------------------------------------

    async def put(self, key: str, value: Any) -> None:
        self._entries[key] = dump(value, f"the entry {key!r}")
        self._written[key] = self._clock()

    async def get(self, key: str) -> tuple[bool, Any]:
        text = self._entries.get(key)
        return (False, None) if text is None else (True, json.loads(text))

    async def drop(self, key: str) -> None:
        self._entries.pop(key, None)
        self._written.pop(key, None)

    # -- snapshots -------------------------------------------------------------------------------------------------

    async def save_snapshot(
        self, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None, acks: Sequence[str] = ()
    ) -> None:
        if fence is not None and not self._holds(*fence):
            raise LeaseLost(
                f"the checkpoint of {row.execution_id!r}: token {fence[1]} does not hold item {fence[0]!r} any more; "
                "nothing was changed"
            )
        self._snapshots.save(replace(row, body=bytes(row.body), updated=self._clock()))
        if drop:
            self._snapshots.drop(drop, keep=row.execution_id)
        if row.event == "machine_end":
            self._snapshots.inboxes.delete(row.execution_id)
        elif acks:
            self._snapshots.inboxes.acknowledge(row.execution_id, acks)

    async def load_snapshot(self, execution_id: str) -> SnapshotRow | None:
        return self._snapshots.rows.get(execution_id)

    async def drop_snapshots(self, execution_id: str) -> None:
        self._snapshots.drop_tree(execution_id)

    async def snapshots(self, event: str | None, channel: str | None) -> list[SnapshotRow]:
        rows = self._snapshots.rows.values()
        return [replace(r, body=b"") for r in rows if event in (None, r.event) and channel in (None, r.channel)]

    # -- locks -----------------------------------------------------------------------------------------------------

    async def lock(self, key: str, owner: str, lease: float) -> bool:
        now = self._clock()
        holder, until = self._locks.get(key, (owner, now))
        if holder != owner and until > now:
            return False
        self._locks[key] = (owner, now + lease)
        return True

    async def unlock(self, key: str, owner: str) -> None:
        if key in self._locks and self._locks[key][0] == owner:
            del self._locks[key]

    async def locks(self, prefix: str) -> list[tuple[str, str, float]]:
        now = self._clock()
        held = [(key, *lock) for key, lock in self._locks.items() if key.startswith(prefix) and lock[1] > now]
        return sorted(held)

    async def close(self) -> None:
        """Do nothing: there is nothing to close, and what is stored can still be read."""

    # -- records ---------------------------------------------------------------------------------------------------

    def _tasks(self) -> dict[str, str]:
        """Return the item that each worker holds."""
        claims = (entry for pool in self._pools.values() for entry in pool.claims.values())
        return {entry.worker: entry.id for entry in claims if entry.worker is not None}

    @staticmethod
    def _worker_record(worker: Worker, tasks: Mapping[str, str]) -> WorkerRecord:
        told = json.loads(json.dumps(worker.metadata))
        return WorkerRecord(
            worker_id=worker.id,
            status=worker.status,
            last_heartbeat=stamp(worker.heartbeat),
            host=worker.host,
            pid=worker.pid,
            capabilities=list(worker.capabilities) if worker.capabilities is not None else None,
            started_at=worker.started,
            current_task_id=tasks.get(worker.id),
            metadata={**told, "owner": worker.owner, "lease_until": worker.lease_until},
        )


def _metadata(worker_id: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the metadata that a caller may set."""
    copy: dict[str, Any] = json.loads(dump(dict(metadata), f"the metadata of worker {worker_id!r}"))
    return copy
