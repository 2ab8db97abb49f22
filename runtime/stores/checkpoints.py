"""The SDK's PersistenceBackend: one row an execution, so that snapshot and pointer cannot disagree and nothing piles up."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.records import WAITING, WAITING_STOCK, SnapshotRow
from flatmachines.persistence import PersistenceBackend

_SNAPSHOT = re.compile(r"(?P<id>.+)/(?P<name>step_\d+_\w+\.json)")


def split_key(key: str) -> tuple[str, str] | None:
    """(execution id, snapshot name) of the SDK's key for a snapshot; None for any other key."""
    match = _SNAPSHOT.fullmatch(key)
    return (match["id"], match["name"]) if match else None


def row_of(key: str, value: bytes) -> SnapshotRow | None:
    """The row for a snapshot that the SDK saves under `key`; None if it is not one."""
    parts = split_key(key)
    if parts is None:
        return None
    snapshot = json.loads(value)
    return SnapshotRow(*parts, value, snapshot.get("event"), snapshot.get("waiting_channel"))


class Checkpoints(PersistenceBackend):
    """Checkpoints for whoever speaks the SDK's protocol; flatfleet's own machines go through `journal.Journal`.

    A machine that parks through this one is found by its channel, as the SDK's dispatcher does; ours leaves it alone, and
    what is sent to it stays in the channel, where it consumes it.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    async def save(self, key: str, value: bytes) -> None:
        row = row_of(key, value)
        if row is not None:
            event = WAITING_STOCK if row.event == WAITING else row.event
            await self.driver.save_snapshot(replace(row, event=event), None, None)
        elif not key.endswith("/latest"):
            await self.driver.put(f"blob:{key}", value.decode("latin-1"))

    async def load(self, key: str) -> bytes | None:
        if key.endswith("/latest"):
            row = await self.driver.load_snapshot(key.removesuffix("/latest"))
            return f"{row.execution_id}/{row.name}".encode() if row else None
        parts = split_key(key)
        if parts is not None:
            row = await self.driver.load_snapshot(parts[0])
            return row.body if row and row.name == parts[1] else None
        found, value = await self.driver.get(f"blob:{key}")
        return value.encode("latin-1") if found else None

    async def delete(self, key: str) -> None:
        parts = split_key(key)
        if parts is None:
            await self.driver.drop(f"blob:{key}")
        elif await self.load(key) is not None:
            await self.delete_execution(parts[0])

    async def list_execution_ids(self, *, event: str | None = None, waiting_channel: str | None = None) -> list[str]:
        parked = event == WAITING or (event is None and waiting_channel is not None)
        events = (WAITING, WAITING_STOCK) if parked else (event,)
        return [row.execution_id for each in events for row in await self.driver.snapshots(each, waiting_channel)]

    async def delete_execution(self, execution_id: str) -> None:
        await self.driver.drop_snapshots(execution_id)

    async def prune(self, *, max_age_seconds: float | None = None, max_count: int | None = None) -> int:
        """Drop whole executions: those older than `max_age_seconds`, then all but the `max_count` newest."""
        for name, limit in (("max_age_seconds", max_age_seconds), ("max_count", max_count)):
            if limit is not None and limit < 0:
                raise ValueError(f"{name} is {limit}; it must be 0 or more")
        rows = await self.driver.snapshots(None, None)
        keep = [row for row in rows if max_age_seconds is None or row.updated >= time.time() - max_age_seconds]
        if max_count is not None:
            keep = keep[len(keep) - min(max_count, len(keep)) :]
        gone = [row.execution_id for row in rows if row not in keep]
        for execution_id in gone:
            await self.driver.drop_snapshots(execution_id)
        return len(gone)
