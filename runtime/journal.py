"""Checkpoints of one running machine: one row, fenced by the item's token, resumed only under the same bundle."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from flatfleet.runtime.inbox import Inbox
from flatfleet.runtime.lease import Lease
from flatfleet.runtime.stores.checkpoints import Checkpoints, row_of, split_key
from flatfleet.runtime.stores.keys import item_of
from flatfleet.runtime.stores.records import WOKEN, SnapshotRow
from flatfleet.runtime.stores.store import Signals
from flatmachines.persistence import PersistenceBackend

logger = logging.getLogger(__name__)


class Journal(PersistenceBackend):
    """The PersistenceBackend that a Machine gives to the SDK's CheckpointManager.

    From the message that woke it to its next park or its end its rows have the event WOKEN and the channel of that message:
    it is still a waiter there, and if its process dies, a dispatcher has to take it up.

    Each save replaces the execution's one row and, in the same transaction, deletes the rows of the children of the
    state just left (`drop`), and the messages that the machine has taken out of its inbox. Under an item's id it needs
    the lease that the item had when this was made to be live still: LeaseLost otherwise, and nothing is changed.
    `parks` says whether this machine may be taken up by a dispatcher: a child is its parent's.
    `fence`, if given, is awaited before each save: it raises LeaseLost where somebody else may run this machine by now.
    """

    def __init__(self, checkpoints: Checkpoints, execution_id: str, leases: Mapping[str, Lease]) -> None:
        self._driver = checkpoints.driver
        self._checkpoints = checkpoints
        self._id = execution_id
        item_id = item_of(execution_id)
        self._lease = leases.get(item_id) if item_id is not None else None
        self._row: SnapshotRow | None = None
        self._inbox: Inbox | None = None
        self._woken = self._went_on = False
        self.parks = True
        self.drop: str | None = None
        self.fence: Callable[[], Awaitable[None]] | None = None

    def inbox(self, signals: Any) -> Inbox | None:
        """The inbox of this execution behind a signal backend of ours; None for one of somebody else's."""
        if self._inbox is None and isinstance(signals, Signals):
            self._inbox = Inbox.of(signals, self._id)
        return self._inbox

    @property
    def woken(self) -> bool:
        """True if a message has been taken here that no checkpoint at a park or an end has followed."""
        return self._woken or bool(self._inbox and self._inbox.acks)

    @property
    def took(self) -> bool:
        """True if a message has been taken here at all, or this went on after one."""
        return self._went_on or (self._inbox is not None and self._inbox.last is not None)

    async def resumable(self, config_hash: str) -> bool:
        """True if there is a snapshot to resume from. One taken under another bundle is dropped, and said so."""
        if self._lease is not None and self._lease.item_id == self._id and self._lease.token == 1:
            return False
        await self._load()
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
        if self.fence is not None:
            await self.fence()
        woken = self.woken and row.event not in ("waiting", "machine_end")
        if woken and self.parks:
            row = replace(row, event=WOKEN, channel=self._heard())
        acks = tuple(self._inbox.acks) if self._inbox is not None else ()
        fence = (self._lease.item_id, self._lease.token) if self._lease is not None else None
        await self._driver.save_snapshot(row, fence, self.drop, acks)
        self.drop, self._woken = None, woken
        if self._inbox is not None:
            del self._inbox.acks[: len(acks)]

    async def _load(self) -> None:
        self._row = await self._driver.load_snapshot(self._id)
        self._woken = self._went_on = self._row is not None and self._row.event == WOKEN

    def _heard(self) -> str | None:
        """The channel of the message that woke this machine, here or before it was resumed here."""
        if self._inbox is not None and self._inbox.channel is not None:
            return self._inbox.channel
        return self._row.channel if self._row is not None else None

    async def load(self, key: str) -> bytes | None:
        if self._row is None:
            await self._load()
        if self._row is None:
            return None
        return self._row.body if split_key(key) else f"{self._id}/{self._row.name}".encode()

    async def delete(self, key: str) -> None:
        await self._checkpoints.delete(key)

    async def list_execution_ids(self, *, event: str | None = None, waiting_channel: str | None = None) -> list[str]:
        return await self._checkpoints.list_execution_ids(event=event, waiting_channel=waiting_channel)

    async def delete_execution(self, execution_id: str) -> None:
        await self._checkpoints.delete_execution(execution_id)
