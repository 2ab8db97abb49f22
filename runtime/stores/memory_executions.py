"""What a memory store holds of executions: their latest snapshots, and the messages in their inboxes."""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import replace

from flatfleet.runtime.stores.records import WAITING, WOKEN, SnapshotRow
from flatmachines import Signal


class Inboxes:
    """The messages that were handed out, by execution and channel, each in the channel's order."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, Signal]]] = {}
        self._ids: list[str] = []

    def has(self, execution_id: str, channel: str) -> bool:
        return channel in self.rows.get(execution_id, ())

    def put(self, execution_id: str, signal: Signal) -> None:
        if execution_id not in self.rows:
            insort(self._ids, execution_id)
        messages = self.rows.setdefault(execution_id, {}).setdefault(signal.channel, {})
        messages[str(signal.id)] = signal

    def oldest(self, execution_id: str, channel: str, skip: Collection[str]) -> Signal | None:
        """Return a copy of the oldest message of the channel whose id is not in `skip`."""
        messages = self.rows.get(execution_id, {}).get(channel, {})
        found = next((signal for name, signal in messages.items() if name not in skip), None)
        return replace(found, data=json.loads(json.dumps(found.data))) if found is not None else None

    def acknowledge(self, execution_id: str, ids: Collection[str]) -> None:
        """Delete these messages from the inbox; those that are not in it are nothing."""
        channels = self.rows.get(execution_id, {})
        for channel in list(channels):
            for name in ids:
                channels[channel].pop(name, None)
            if not channels[channel]:
                del channels[channel]
        if not channels:
            self.delete(execution_id)

    def drop(self, prefix: str, keep: str | None = None) -> None:
        """Delete the inboxes of all executions whose id starts with `prefix`, but not that of `keep`."""
        for name in below(self._ids, prefix):
            if name != keep:
                self.delete(name)

    def delete(self, execution_id: str) -> None:
        if self.rows.pop(execution_id, None) is not None:
            del self._ids[bisect_left(self._ids, execution_id)]


class Snapshots:
    """The latest snapshot of each execution, oldest first, with their ids in order for lookups by prefix.

    `waiters` has those that wait for messages, parked or woken, by channel. An inbox ends with its execution.
    """

    def __init__(self) -> None:
        self.rows: dict[str, SnapshotRow] = {}
        self.waiters: dict[str, dict[str, SnapshotRow]] = {}
        self.inboxes = Inboxes()
        self._ids: list[str] = []

    def save(self, row: SnapshotRow) -> None:
        if not self._leave(row.execution_id):
            insort(self._ids, row.execution_id)
        self.rows[row.execution_id] = row
        if row.event in (WAITING, WOKEN) and row.channel is not None:
            self.waiters.setdefault(row.channel, {})[row.execution_id] = row

    def drop(self, prefix: str, keep: str | None = None) -> None:
        """Delete all executions whose id starts with `prefix`, but not `keep`."""
        start = bisect_left(self._ids, prefix)
        found = below(self._ids, prefix)
        for name in found:
            if name != keep:
                self._leave(name)
        self._ids[start : start + len(found)] = [name for name in found if name == keep]
        self.inboxes.drop(prefix, keep)

    def drop_tree(self, execution_id: str) -> None:
        """Delete the snapshots and the inboxes of an execution and of its descendants."""
        if self._leave(execution_id):
            del self._ids[bisect_left(self._ids, execution_id)]
        self.drop(f"{execution_id}:")
        self.inboxes.delete(execution_id)

    def drop_one(self, execution_id: str) -> None:
        """Delete the snapshot and the inbox of one execution, and nothing of its descendants."""
        if self._leave(execution_id):
            del self._ids[bisect_left(self._ids, execution_id)]
        self.inboxes.delete(execution_id)

    def drop_finished(self, execution_id: str) -> None:
        """Delete the tree of an execution that has reached its end; keep one that can be resumed."""
        row = self.rows.get(execution_id)
        if row is not None and row.event == "machine_end":
            self.drop_tree(execution_id)

    def _leave(self, execution_id: str) -> bool:
        """Take the row out of all but the order of the ids; False if there is none."""
        row = self.rows.pop(execution_id, None)
        if row is not None and row.channel is not None and execution_id in self.waiters.get(row.channel, ()):
            del self.waiters[row.channel][execution_id]
            if not self.waiters[row.channel]:
                del self.waiters[row.channel]
        return row is not None


def below(ids: list[str], prefix: str) -> list[str]:
    """The ids that start with `prefix`, out of a sorted list."""
    start = end = bisect_left(ids, prefix)
    while end < len(ids) and ids[end].startswith(prefix):
        end += 1
    return ids[start:end]
