"""Checkpoints of one running machine: one row, fenced by the item's token, resumed only under the same bundle."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.fleet import Lease
from flatfleet.runtime.stores.checkpoints import Checkpoints, row_of, split_key
from flatfleet.runtime.stores.contract import SnapshotRow
from flatfleet.runtime.stores.keys import item_of
from flatmachines.persistence import PersistenceBackend

logger = logging.getLogger(__name__)


class Journal(PersistenceBackend):
    """The PersistenceBackend that a Machine gives to the SDK's CheckpointManager.

    Each save replaces the execution's one row and, in the same transaction, deletes the rows of the children of the
    state just left (`drop`). Under an item's id it needs the lease that the item had when this was made to be live still:
    LeaseLost otherwise, and nothing is changed.
    """

    def __init__(self, checkpoints: Checkpoints, execution_id: str, leases: Mapping[str, Lease]) -> None:
        self._driver = checkpoints.driver
        self._checkpoints = checkpoints
        self._id = execution_id
        item_id = item_of(execution_id)
        self._lease = leases.get(item_id) if item_id is not None else None
        self._row: SnapshotRow | None = None
        self.drop: str | None = None

    async def resumable(self, config_hash: str) -> bool:
        """True if there is a snapshot to resume from. One taken under another bundle is dropped, and said so."""
        if self._lease is not None and self._lease.item_id == self._id and self._lease.token == 1:
            return False
        self._row = await self._driver.load_snapshot(self._id)
        if self._row is None:
            return False
        snapshot: dict[str, Any] = json.loads(self._row.body)
        if snapshot.get("config_hash") == config_hash:
            return True
        logger.warning(
            "%s starts afresh: its checkpoint in state '%s' was taken under another version of the machine",
            self._id,
            snapshot.get("current_state"),
        )
        await self._driver.drop_snapshots(self._id)
        self._row = None
        return False

    async def save(self, key: str, value: bytes) -> None:
        row = row_of(key, value)
        if row is None:
            return
        fence = (self._lease.item_id, self._lease.token) if self._lease is not None else None
        await self._driver.save_snapshot(row, fence, self.drop)
        self.drop = None

    async def load(self, key: str) -> bytes | None:
        if self._row is None:
            self._row = await self._driver.load_snapshot(self._id)
        if self._row is None:
            return None
        return self._row.body if split_key(key) else f"{self._id}/{self._row.name}".encode()

    async def delete(self, key: str) -> None:
        await self._checkpoints.delete(key)

    async def list_execution_ids(self, *, event: str | None = None, waiting_channel: str | None = None) -> list[str]:
        return await self._checkpoints.list_execution_ids(event=event, waiting_channel=waiting_channel)

    async def delete_execution(self, execution_id: str) -> None:
        await self._checkpoints.delete_execution(execution_id)
