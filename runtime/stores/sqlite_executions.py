"""What the SQLite store keeps of executions, snapshots and inboxes: plain functions of one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.records import WAITING, WOKEN, SnapshotRow

LAST = "\U0010ffff"


def save(tx: Tx, row: SnapshotRow, fence: tuple[str, int] | None, drop: str | None, acks: Sequence[str]) -> None:
    if fence is not None and tx.run("fence", fence).fetchone() is None:
        raise LeaseLost(f"item {fence[0]}: token {fence[1]} no longer holds it; the checkpoint was refused")
    tx.run("save_snapshot", (row.execution_id, row.name, row.body, row.event, row.channel, tx.now))
    if drop:
        tx.run("drop_range", (drop, drop + LAST, row.execution_id))
        _forget(tx, tx.run("drop_inbox_range", (drop, drop + LAST, row.execution_id)))
    if row.event == "machine_end" and tx.run("any_inbox").fetchone():
        _forget(tx, tx.run("drop_inbox", (row.execution_id,)))
    elif acks:
        _forget(tx, tx.run("acknowledge", {"execution": row.execution_id, "ids": json.dumps(acks)}))


def lock(tx: Tx, key: str, owner: str, lease: float) -> bool:
    return tx.run("lock", {"key": key, "owner": owner, "until": tx.now + lease, "now": tx.now}).rowcount == 1


def locks(tx: Tx, prefix: str) -> list[tuple[str, str, float]]:
    return tx.run("locks", (prefix, prefix + LAST, tx.now)).fetchall()


def load(tx: Tx, execution_id: str) -> SnapshotRow | None:
    row = tx.run("load_snapshot", (execution_id,)).fetchone()
    return SnapshotRow(*row) if row else None


def snapshots(tx: Tx, event: str | None, channel: str | None) -> list[SnapshotRow]:
    name = f"snapshots_{event}" if event in (WAITING, WOKEN) else "snapshots"
    rows = tx.run(name, {"event": event, "channel": channel})
    return [SnapshotRow(row[0], row[1], b"", *row[2:]) for row in rows]


def drop_tree(tx: Tx, execution_id: str) -> None:
    """Delete the snapshots and the inboxes of an execution and of its descendants."""
    family = (execution_id, execution_id + ":", execution_id + ":" + LAST)
    tx.run("drop_tree", family)
    if tx.run("any_inbox").fetchone():  # `complete` comes through here, and there hardly ever is one
        _forget(tx, tx.run("drop_inboxes", family))


def drop_one(tx: Tx, execution_id: str) -> None:
    """Delete the snapshot and the inbox of one execution, and nothing of its descendants."""
    tx.run("drop_snapshot", (execution_id,))
    _forget(tx, tx.run("drop_inbox", (execution_id,)))


def drop_finished(tx: Tx, execution_id: str) -> None:
    row = tx.run("snapshot_event", (execution_id,)).fetchone()
    if row is not None and row[0] == "machine_end":
        drop_tree(tx, execution_id)


def _forget(tx: Tx, gone: sqlite3.Cursor) -> None:
    """Delete the messages that have left an inbox and are in no other."""
    numbers = [row[0] for row in gone.fetchall()]
    if numbers:
        tx.run("forget_messages", (json.dumps(numbers),))
