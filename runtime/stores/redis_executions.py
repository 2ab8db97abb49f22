"""Entries, snapshots and signals in the Redis store (lua/executions.lua)."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.records import DELIVERED, WAITING, SnapshotRow
from flatfleet.runtime.stores.redis_base import Base, decoded, lease_lost, loaded, operation, optional, told
from flatfleet.runtime.stores.text import dump, stamp
from flatmachines import Signal

PEEK = 100
"""Messages that are read at one go: each may be large."""


class RedisExecutions(Base):
    """The parts of `contract.Driver` under "entries", "snapshots" and "signals"."""

    async def put(self, key: str, value: Any) -> None:
        await self._run("put", key, dump(value, f"the entry {key!r}"), int(key.startswith("config:")))

    async def get(self, key: str) -> tuple[bool, Any]:
        found = await self._run("get", key)
        return (False, None) if found is None else (True, json.loads(found))

    async def drop(self, key: str) -> None:
        await self._run("drop", key)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    async def save_snapshot(
        self, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None, acks: Sequence[str] = ()
    ) -> None:
        item, token = fence or (None, None)
        what = (row.execution_id, row.name, bytes(row.body), optional(row.event), optional(row.channel))
        answer = await self._run("save_snapshot", *what, optional(item), token, optional(drop or None), *acks)
        if answer != 1:
            why = lease_lost(item or "", token, answer)
            raise LeaseLost(f"the checkpoint of {row.execution_id!r} was refused: {why.args[0]}") from why

    async def load_snapshot(self, execution_id: str) -> SnapshotRow | None:
        found = await self._run("load_snapshot", execution_id)
        if found is None:
            return None
        name, event, channel, updated = loaded(found[0])
        return SnapshotRow(execution_id, name, found[1], told(event or None), _given(channel), float(updated))

    async def drop_snapshots(self, execution_id: str) -> None:
        await self._run("drop_snapshots", execution_id)

    async def snapshots(self, event: str | None, channel: str | None) -> list[SnapshotRow]:
        if event == WAITING and channel is not None:
            rows = await self._run("parked", channel)
        else:
            rows = await self._pages("snapshots", b"-", optional(event), optional(channel))
        found = []
        for row in rows:
            name, kind, where, updated, execution_id = loaded(row)
            found.append(SnapshotRow(execution_id, name, b"", told(kind or None), _given(where), float(updated)))
        return sorted(found, key=lambda each: each.updated)

    # -- signals -------------------------------------------------------------------------------------------------------

    async def send(self, channel: str, data: Any) -> str:
        text, signal_id = dump(data, f"the message to {channel!r}"), uuid.uuid4().hex
        await self._run("send", signal_id, channel, text)
        return signal_id

    async def take(self, channel: str, waiter: str, skip: Collection[str] = ()) -> Signal | None:
        return _signal(await self._run("take", channel, waiter, *skip))

    async def deliver(self, skip: Collection[str] = ()) -> list[str]:
        return [decoded(name) for name in await self._run("deliver", DELIVERED, *skip)]

    async def consume(self, channel: str) -> Signal | None:
        return _signal(await self._run("consume", operation(), channel))

    async def peek(self, channel: str) -> list[Signal]:
        found: list[Signal] = []
        while True:
            page = await self._run("peek", channel, len(found), len(found) + PEEK - 1)
            found += filter(None, map(_signal, page))
            if len(page) < PEEK:
                return found
            await asyncio.sleep(0)

    async def channels(self) -> list[str]:
        return [decoded(name) for name in await self._run("channels")]


def _given(value: Any) -> str | None:
    return None if value is False else value


def _signal(row: list[bytes] | None) -> Signal | None:
    if not row or row[0] is None:
        return None
    signal_id, channel, data, created = row
    return Signal(
        id=decoded(signal_id), channel=decoded(channel), data=json.loads(data), created_at=stamp(float(created))
    )
