"""The SQLite driver: one file, durable, shared by all processes of a machine."""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatfleet.runtime.stores import sqlite_executions as sql_executions
from flatfleet.runtime.stores import sqlite_fleets as sql_fleets
from flatfleet.runtime.stores import sqlite_gc as sql_gc
from flatfleet.runtime.stores import sqlite_items as sql_items
from flatfleet.runtime.stores import sqlite_metrics as sql_metrics
from flatfleet.runtime.stores import sqlite_reads as sql_reads
from flatfleet.runtime.stores import sqlite_signals as sql_signals
from flatfleet.runtime.stores import sqlite_workers as sql_workers
from flatfleet.runtime.stores.buckets import Activity
from flatfleet.runtime.stores.group import GroupCommit
from flatfleet.runtime.stores.records import Attempt, Beat, Claim, Counts, Failure, Item, NewItem, SnapshotRow, State
from flatfleet.runtime.stores.text import dump
from flatmachines import Signal, WorkerRecord, WorkerRegistration

PUSH_CHUNK = 1000


class SQLiteDriver:
    """contract.Driver over one SQLite file. `synchronous` NORMAL survives kill -9, FULL survives power loss."""

    durable = True

    def __init__(
        self,
        path: Path | str,
        synchronous: str = "NORMAL",
        clock: Callable[[], float] = time.time,
        must_exist: bool = False,
    ) -> None:
        self._group = GroupCommit(Path(path).expanduser().absolute(), synchronous, clock, must_exist)
        self._crew = sql_workers.Crew()
        self._asked: set[str] = set()
        self._write = self._group.run
        self._look = functools.partial(self._group.run, writes=False)

    # -- items -----------------------------------------------------------------------------------------------------

    async def push(self, pool: str, items: Sequence[NewItem]) -> list[bool]:
        rows = [sql_items.row_to_push(item) for item in items]
        added: list[bool] = []
        for start in range(0, len(rows), PUSH_CHUNK):
            added += await self._write(sql_items.push, pool, rows[start : start + PUSH_CHUNK])
        return added

    async def claim(
        self,
        pool: str,
        worker: str,
        owner: str,
        n: int,
        lease: float,
        capabilities: Collection[str],
        limit: int | None = None,
    ) -> list[Claim]:
        told = (pool, worker, owner, n, lease, capabilities, limit, worker not in self._asked)
        claims = await self._write(sql_items.claim, *told, undo=self._unclaim)
        sql_workers.remember(self._asked, worker)
        return claims

    async def _unclaim(self, claims: list[Claim]) -> None:
        for claim in claims:
            await self.release(claim.id, claim.token)

    async def complete(
        self, item_id: str, result: Any, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> None:
        await self._write(sql_items.complete, item_id, result, token, cost, walked)

    async def fail(
        self, item_id: str, failure: Failure, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> State:
        return await self._write(sql_items.fail, item_id, failure, token, cost, walked)

    async def release(self, item_id: str, token: int | None, walked: Sequence[str] = ()) -> None:
        await self._write(sql_items.release, item_id, token, walked)

    async def hand_back(
        self, *, pool: str | None = None, worker: str | None = None, owner: str | None = None, crashed: bool
    ) -> int:
        if pool is None and worker is None and owner is None:
            raise ValueError("hand_back needs a pool, a worker or an owner")
        return await self._write(sql_items.hand_back, pool, worker, owner, crashed)

    async def retry(self, pool: str, ids: Sequence[str] | None) -> int:
        return await self._write(sql_items.retry, pool, ids)

    async def cancel(self, pool: str, ids: Sequence[str]) -> int:
        return await self._write(sql_items.cancel, pool, ids)

    async def pause(self, pool: str, until: float | None) -> None:
        await self._write(sql_items.pause, pool, until)

    async def paused(self, pool: str) -> float | None:
        return await self._look(sql_reads.paused, pool)

    async def item(self, item_id: str) -> Item | None:
        return await self._look(sql_reads.item, item_id)

    async def items(self, pool: str, state: State | None, limit: int, after: str | None) -> list[Item]:
        return await self._group.read(sql_reads.items, pool, state, limit, after)

    async def attempts(self, item_id: str) -> list[Attempt]:
        return await self._look(sql_reads.attempts, item_id)

    async def counts(self, pool: str) -> Counts:
        return await self._look(sql_reads.counts, pool)

    async def requirements(self, pool: str) -> dict[tuple[str, ...], int]:
        return await self._look(sql_reads.requirements, pool)

    async def pools(self) -> list[str]:
        return await self._look(sql_reads.pools)

    async def errors(self, pool: str) -> dict[str, int]:
        return await self._look(sql_reads.errors, pool)

    async def next_due(self, pool: str) -> float | None:
        return await self._look(sql_reads.next_due, pool)

    async def metrics(self, pool: str, since: float, most: int) -> Activity:
        return await self._group.read(sql_metrics.metrics, pool, since, most)

    # -- workers ---------------------------------------------------------------------------------------------------

    async def register(
        self, worker: WorkerRegistration, owner: str, lease: float, metadata: Mapping[str, Any]
    ) -> WorkerRecord:
        self._asked.discard(worker.worker_id)
        return await self._write(sql_workers.register, worker, owner, lease, dict(metadata))

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        return await self._write(sql_workers.beat, self._crew, owner, list(workers), dict(leases), lease)

    async def set_status(self, worker_id: str, status: str, metadata: Mapping[str, Any] | None = None) -> None:
        await self._write(sql_workers.set_status, worker_id, status, dict(metadata or {}))

    async def workers(
        self, worker_id: str | None = None, *, statuses: Collection[str] | None = None, pool: str | None = None
    ) -> list[WorkerRecord]:
        return await self._look(sql_workers.workers, worker_id, statuses, pool)

    async def draining(self, owner: str) -> dict[str, float | None]:
        return await self._look(sql_workers.draining, owner)

    async def owners(self) -> list[str]:
        return await self._look(lambda tx: [row[0] for row in tx.run("owners")])

    async def claims(self, owner: str) -> dict[str, int]:
        return await self._look(sql_items.claims, owner)

    async def mark_lost(self, owner: str | None) -> list[str]:
        return await self._write(sql_workers.mark_lost, owner)

    # -- entries, snapshots, signals, locks ----------------------------------------------------------------------------

    async def put(self, key: str, value: Any) -> None:
        text = dump(value, f"the entry {key}")
        await self._write(lambda tx: tx.run("put", (key, text, tx.now)) and None)

    async def get(self, key: str) -> tuple[bool, Any]:
        row = await self._look(lambda tx: tx.run("get", (key,)).fetchone())
        return (True, json.loads(row[0])) if row else (False, None)

    async def drop(self, key: str) -> None:
        await self._write(lambda tx: tx.run("drop", (key,)) and None)

    async def save_snapshot(
        self, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None, acks: Sequence[str] = ()
    ) -> None:
        await self._write(sql_executions.save, row, fence, drop, tuple(acks))

    async def load_snapshot(self, execution_id: str) -> SnapshotRow | None:
        return await self._look(sql_executions.load, execution_id)

    async def drop_snapshots(self, execution_id: str) -> None:
        await self._write(sql_executions.drop_tree, execution_id)

    async def snapshots(self, event: str | None, channel: str | None) -> list[SnapshotRow]:
        return await self._look(sql_executions.snapshots, event, channel)

    async def send(self, channel: str, data: Any) -> str:
        text, signal_id = dump(data, f"the message to {channel}"), uuid.uuid4().hex
        await self._write(lambda tx: tx.run("send", (signal_id, channel, text, tx.now)) and None)
        return signal_id

    async def take(self, channel: str, waiter: str, skip: Collection[str] = ()) -> Signal | None:
        ids = json.dumps(list(skip))
        found, more = await self._look(sql_signals.look, channel, waiter, ids)
        return found if found or not more else await self._write(sql_signals.take, channel, waiter, ids)

    async def deliver(self, skip: Collection[str] = ()) -> list[str]:
        ids = json.dumps(list(skip))
        channels, woken = await self._look(sql_signals.due, ids)
        return await self._write(sql_signals.deliver, ids) if channels else woken

    async def consume(self, channel: str) -> Signal | None:
        return await self._write(sql_signals.consume, channel)

    async def peek(self, channel: str) -> list[Signal]:
        return await self._look(sql_signals.peek, channel)

    async def channels(self) -> list[str]:
        return await self._look(lambda tx: [row[0] for row in tx.run("channels")])

    async def lock(self, key: str, owner: str, lease: float) -> bool:
        return await self._write(sql_executions.lock, key, owner, lease)

    async def unlock(self, key: str, owner: str) -> None:
        await self._write(lambda tx: tx.run("unlock", (key, owner)) and None)

    async def locks(self, prefix: str) -> list[tuple[str, str, float]]:
        return await self._look(sql_executions.locks, prefix)

    # -- fleets ----------------------------------------------------------------------------------------------------

    async def decide(self, fleet: str, decision: Mapping[str, Any]) -> None:
        await self._write(sql_fleets.decide, fleet, dict(decision))

    async def decisions(self, fleet: str, last: int) -> list[dict[str, Any]]:
        return await self._look(sql_fleets.decisions, fleet, last)

    async def decision(self, fleet: str, decision_id: str) -> dict[str, Any] | None:
        return await self._look(sql_fleets.decision, fleet, decision_id)

    async def target(self, fleet: str) -> int | None:
        return await self._look(sql_fleets.target, fleet)

    async def set_target(self, fleet: str, target: int | None) -> None:
        await self._write(sql_fleets.set_target, fleet, target)

    async def fleets(self) -> list[str]:
        return await self._look(sql_fleets.fleets)

    # -- housekeeping ----------------------------------------------------------------------------------------------

    async def gc(self, before: float) -> dict[str, int]:
        return await sql_gc.gc(self._group, before)

    async def vacuum(self) -> int:
        return await sql_gc.shrink(self._group)

    async def close(self) -> None:
        await self._group.close()
