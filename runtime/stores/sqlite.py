"""The SQLite driver: one file, durable, shared by all processes of a machine."""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores import sqlite_items as sql_items
from flatfleet.runtime.stores import sqlite_workers as sql_workers
from flatfleet.runtime.stores.contract import (
    Attempt,
    Beat,
    Claim,
    Counts,
    Failure,
    Item,
    NewItem,
    SnapshotRow,
    State,
)
from flatfleet.runtime.stores.group import GroupCommit, Tx
from flatfleet.runtime.stores.text import dump, stamp
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
        self, pool: str, worker: str, owner: str, n: int, lease: float, capabilities: Collection[str]
    ) -> list[Claim]:
        return await self._write(sql_items.claim, pool, worker, owner, n, lease, capabilities, undo=self._unclaim)

    async def _unclaim(self, claims: list[Claim]) -> None:
        for claim in claims:
            await self.release(claim.id, claim.token)

    async def complete(self, item_id: str, result: Any, token: int | None, cost: float) -> None:
        await self._write(sql_items.complete, item_id, result, token, cost)

    async def fail(self, item_id: str, failure: Failure, token: int | None, cost: float) -> State:
        return await self._write(sql_items.fail, item_id, failure, token, cost)

    async def release(self, item_id: str, token: int | None) -> None:
        await self._write(sql_items.release, item_id, token)

    async def hand_back(
        self, *, pool: str | None = None, worker: str | None = None, owner: str | None = None, crashed: bool
    ) -> int:
        if pool is None and worker is None and owner is None:
            raise ValueError("hand_back needs a pool, a worker or an owner")
        return await self._write(sql_items.hand_back, pool, worker, owner, crashed)

    async def retry(self, pool: str, ids: Sequence[str] | None) -> int:
        return await self._write(sql_items.retry, pool, ids)

    async def item(self, item_id: str) -> Item | None:
        return await self._look(sql_items.item, item_id)

    async def items(self, pool: str, state: State | None, limit: int, after: str | None) -> list[Item]:
        return await self._group.read(sql_items.items, pool, state, limit, after)

    async def attempts(self, item_id: str) -> list[Attempt]:
        return await self._look(sql_items.attempts, item_id)

    async def counts(self, pool: str) -> Counts:
        return await self._look(sql_items.counts, pool)

    async def pools(self) -> list[str]:
        return await self._look(sql_items.pools)

    async def errors(self, pool: str) -> dict[str, int]:
        return await self._look(sql_items.errors, pool)

    async def next_due(self, pool: str) -> float | None:
        return await self._look(sql_items.next_due, pool)

    # -- workers ---------------------------------------------------------------------------------------------------

    async def register(
        self, worker: WorkerRegistration, owner: str, lease: float, metadata: Mapping[str, Any]
    ) -> WorkerRecord:
        return await self._write(sql_workers.register, worker, owner, lease, dict(metadata))

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        return await self._write(sql_workers.beat, self._crew, owner, list(workers), dict(leases), lease)

    async def set_status(self, worker_id: str, status: str, metadata: Mapping[str, Any] | None = None) -> None:
        await self._write(sql_workers.set_status, worker_id, status, dict(metadata or {}))

    async def workers(self, worker_id: str | None = None) -> list[WorkerRecord]:
        return await self._look(sql_workers.workers, worker_id)

    async def owners(self) -> list[str]:
        return await self._look(lambda tx: [row[0] for row in tx.run("owners")])

    async def claims(self, owner: str) -> dict[str, int]:
        return await self._look(sql_items.claims, owner)

    async def mark_lost(self, owner: str | None) -> list[str]:
        return await self._write(sql_workers.mark_lost, owner)

    # -- entries, snapshots, signals, locks ----------------------------------------------------------------------------

    async def put(self, key: str, value: Any) -> None:
        text = dump(value, f"the entry {key}")
        await self._write(lambda tx: tx.run("put", (key, text)) and None)

    async def get(self, key: str) -> tuple[bool, Any]:
        row = await self._look(lambda tx: tx.run("get", (key,)).fetchone())
        return (True, json.loads(row[0])) if row else (False, None)

    async def drop(self, key: str) -> None:
        await self._write(lambda tx: tx.run("drop", (key,)) and None)

    async def save_snapshot(self, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None) -> None:
        await self._write(_save_snapshot, row, fence, drop)

    async def load_snapshot(self, execution_id: str) -> SnapshotRow | None:
        row = await self._look(lambda tx: tx.run("load_snapshot", (execution_id,)).fetchone())
        return SnapshotRow(*row) if row else None

    async def drop_snapshots(self, execution_id: str) -> None:
        await self._write(sql_items.drop_tree, execution_id)

    async def snapshots(self, event: str | None, channel: str | None) -> list[SnapshotRow]:
        rows = await self._look(lambda tx: tx.run("snapshots", {"event": event, "channel": channel}).fetchall())
        return [SnapshotRow(row[0], row[1], b"", row[2], row[3], row[4]) for row in rows]

    async def send(self, channel: str, data: Any) -> str:
        text, signal_id = dump(data, f"the message to {channel}"), uuid.uuid4().hex
        await self._write(lambda tx: tx.run("send", (signal_id, channel, text, tx.now)) and None)
        return signal_id

    async def consume(self, channel: str) -> Signal | None:
        row = await self._write(lambda tx: tx.run("consume", (channel,)).fetchone())
        return _signal(row) if row else None

    async def peek(self, channel: str) -> list[Signal]:
        rows = await self._look(lambda tx: tx.run("peek", (channel,)).fetchall())
        return [_signal(row) for row in rows]

    async def channels(self) -> list[str]:
        return await self._look(lambda tx: [row[0] for row in tx.run("channels")])

    async def lock(self, key: str, owner: str, lease: float) -> bool:
        return await self._write(
            lambda tx: (
                tx.run("lock", {"key": key, "owner": owner, "until": tx.now + lease, "now": tx.now}).rowcount == 1
            )
        )

    async def unlock(self, key: str, owner: str) -> None:
        await self._write(lambda tx: tx.run("unlock", (key, owner)) and None)

    async def close(self) -> None:
        await self._group.close()


def _save_snapshot(tx: Tx, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None) -> None:
    if fence is not None and tx.run("fence", fence).fetchone() is None:
        raise LeaseLost(f"item {fence[0]}: token {fence[1]} no longer holds it; the checkpoint was refused")
    tx.run("save_snapshot", (row.execution_id, row.name, row.body, row.event, row.channel, tx.now))
    if drop:
        tx.run("drop_range", (drop, drop + sql_items.LAST, row.execution_id))


def _signal(row: tuple[str, str, str, float]) -> Signal:
    return Signal(id=row[0], channel=row[1], data=json.loads(row[2]), created_at=stamp(row[3]))
