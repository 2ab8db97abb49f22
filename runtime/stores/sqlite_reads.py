"""What is asked about items in the SQLite store: plain functions of one transaction that change nothing."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flatfleet.runtime.stores.records import Attempt, Counts, Item, State

if TYPE_CHECKING:
    from flatfleet.runtime.stores.group import Tx


def item(tx: Tx, item_id: str) -> Item | None:
    row = _rows(tx, "item", (item_id,))
    return row[0] if row else None


def items(tx: Tx, pool: str, state: State | None, limit: int, after: str | None) -> list[Item]:
    start = 0
    if after is not None:
        row = tx.run("item_seq", (after,)).fetchone()
        if row is None:
            raise KeyError(f"no item '{after}' in this store")
        start = row[0]
    return _rows(tx, "items", {"pool": pool, "state": state, "limit": limit, "after": start})


def attempts(tx: Tx, item_id: str) -> list[Attempt]:
    rows = tx.run("attempts", {"id": item_id}).fetchall()
    return [replace(Attempt(*row[:-1]), walked=tuple(json.loads(row[-1] or "[]"))) for row in rows]


def counts(tx: Tx, pool: str) -> Counts:
    n = dict(tx.run("counts", {"pool": pool, "now": tx.now}).fetchall())
    return Counts(
        waiting=n.get("ready", 0) + n["due"],
        delayed=n.get("delayed", 0) - n["due"],
        claimed=n.get("claimed", 0) - n["expired"],
        expired=n["expired"],
        completed=n.get("completed", 0),
        dead=n.get("dead", 0),
    )


def requirements(tx: Tx, pool: str) -> dict[tuple[str, ...], int]:
    return {tuple(json.loads(text)): n for text, n in tx.run("requirements", (pool,))}


def next_due(tx: Tx, pool: str) -> float | None:
    due: float | None = tx.run("next_due", {"pool": pool}).fetchone()[0]
    return due


def pools(tx: Tx) -> list[str]:
    return [row[0] for row in tx.run("pools")]


def errors(tx: Tx, pool: str) -> dict[str, int]:
    return dict(tx.run("errors", (pool,)).fetchall())


def paused(tx: Tx, pool: str) -> float | None:
    row = tx.run("paused", (pool, tx.now)).fetchone()
    return row[0] if row else None


def _rows(tx: Tx, statement: str, args: Any) -> list[Item]:
    cursor = tx.run(statement, args)
    cursor.row_factory = sqlite3.Row
    return [
        Item(
            id=row["id"],
            pool=row["pool"],
            key=row["key"],
            state=row["state"],
            data=json.loads(row["data"]),
            result=json.loads(row["result"]) if row["result"] is not None else None,
            priority=row["priority"],
            due=row["due"],
            token=row["token"],
            attempts=row["attempts"],
            crashes=row["crashes"],
            max_attempts=row["max_attempts"],
            max_crashes=row["max_crashes"],
            requires=tuple(json.loads(row["requires"])) if row["requires"] else (),
            worker=row["worker"],
            owner=row["owner"],
            error_type=row["error_type"],
            error=row["error"],
            created=row["created"],
            started=row["started"],
            finished=row["finished"],
        )
        for row in cursor.fetchall()
    ]
