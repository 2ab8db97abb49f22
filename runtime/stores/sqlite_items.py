"""The item operations of the SQLite store: plain functions of one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.backoff import PROVIDER_WAIT, backoff, crash_text
from flatfleet.runtime.stores.contract import (
    SUSPECT,
    Attempt,
    Claim,
    Counts,
    Failure,
    Item,
    NewItem,
    Outcome,
    State,
)
from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.text import dump, stamp, storable

LAST = "\U0010ffff"


class _Held(NamedTuple):
    """A claimed item, as the statements `claimed`, `expired` and `held` return it."""

    seq: int
    id: str
    pool: str
    token: int
    worker: str
    started: float
    attempts: int
    crashes: int
    max_attempts: int
    max_crashes: int


def row_to_push(item: NewItem) -> tuple[NewItem, str | None, str]:
    """The item with its requirements and its data as text; TypeError if they are not JSON data."""
    requires = dump(sorted(item.requires), "requires") if item.requires else None
    return item, requires, dump(item.data, f"the data of {item.id}")


def push(tx: Tx, pool: str, rows: Sequence[tuple[NewItem, str | None, str]]) -> list[bool]:
    added = []
    for item, requires, data in rows:
        state: State = "delayed" if item.not_before > tx.now else "ready"
        cursor = tx.run(
            "push",
            (item.id, pool, item.key, state, item.priority, item.not_before, item.max_attempts, item.max_crashes)
            + (requires, tx.now),
        )
        new = cursor.rowcount == 1
        added.append(new)
        if new:
            tx.run("push_payload", (cursor.lastrowid, data))
            tx.move(pool, None, state)
    return added


def claim(
    tx: Tx, pool: str, worker: str, owner: str, n: int, lease: float, capabilities: Collection[str]
) -> list[Claim]:
    recover(tx, pool)
    rows = tx.run(
        "claim",
        {
            "worker": worker,
            "owner": owner,
            "until": tx.now + lease,
            "now": tx.now,
            "pool": pool,
            "capabilities": json.dumps(sorted(capabilities)),
            "n": n,
            "suspect": SUSPECT,
        },
    ).fetchall()
    if not rows:
        return []
    tx.move(pool, "ready", "claimed", len(rows))
    if len(rows) > 1:
        rows.sort(key=lambda row: (-row[8], row[0]))
    claims, claimed_at = [], stamp(tx.now)
    for _, item_id, key, token, attempts, crashes, max_attempts, created, _, data in rows:
        claims.append(
            Claim(
                id=item_id,
                data=json.loads(data),
                claimed_by=worker,
                attempts=attempts,
                max_retries=max_attempts,
                status="claimed",
                created_at=stamp(created),
                claimed_at=claimed_at,
                pool=pool,
                key=key,
                token=token,
                crashes=crashes,
                lease_until=tx.now + lease,
            )
        )
    return claims


def recover(tx: Tx, pool: str) -> None:
    """Make due delayed items ready, and hand back expired claims; once a transaction and pool."""
    if pool in tx.once:
        return
    tx.once.add(pool)
    woken = tx.run("wake_delayed", (pool, tx.now)).rowcount
    if woken:
        tx.move(pool, "delayed", "ready", woken)
    for row in tx.run("expired", (pool, tx.now)).fetchall():
        _crash(tx, _Held(*row), "the lease ran out")


def complete(tx: Tx, item_id: str, result: Any, token: int | None, cost: float) -> None:
    text = dump(result, f"the result of {item_id}")
    row = tx.run("complete", {"id": item_id, "token": token, "now": tx.now}).fetchone()
    if row is None:
        raise _lost(tx, item_id, token)
    seq, pool, held, worker, started = row
    tx.run("put_result", (seq, held, worker, started, tx.now, cost, text))
    drop_tree(tx, item_id)
    tx.move(pool, "claimed", "completed")


def fail(tx: Tx, item_id: str, failure: Failure, token: int | None, cost: float) -> State:
    held = _claimed(tx, item_id, token)
    attempts = held.attempts + failure.consume
    wait = failure.retry_after
    if wait is None:
        wait = backoff(attempts, item_id) if failure.consume else PROVIDER_WAIT
    dead = failure.consume and (failure.permanent or attempts >= held.max_attempts)
    state: State = "dead" if dead else "delayed" if wait > 0 else "ready"
    outcome: Outcome = "failed" if failure.consume else "provider"
    _end(tx, held._replace(attempts=attempts), outcome, state, failure, due=tx.now + wait, cost=cost)
    drop_finished(tx, item_id)
    return state


def release(tx: Tx, item_id: str, token: int | None) -> None:
    _end(tx, _claimed(tx, item_id, token), "released", "ready")


def hand_back(tx: Tx, pool: str | None, worker: str | None, owner: str | None, crashed: bool) -> int:
    rows = tx.run("held", {"pool": pool, "worker": worker, "owner": owner}).fetchall()
    for row in rows:
        if crashed:
            _crash(tx, _Held(*row), "its process died")
        else:
            _end(tx, _Held(*row), "released", "ready")
    return len(rows)


def claims(tx: Tx, owner: str) -> dict[str, int]:
    rows = tx.run("held", {"pool": None, "worker": None, "owner": owner}).fetchall()
    return {held.id: held.token for held in (_Held(*row) for row in rows)}


def retry(tx: Tx, pool: str, ids: Sequence[str] | None) -> int:
    if ids is None:
        ids = [row[0] for row in tx.run("dead_ids", (pool,)).fetchall()]
    n = 0
    for item_id in ids:
        if tx.run("redrive", (item_id, pool)).rowcount:
            drop_finished(tx, item_id)
            n += 1
    if n:
        tx.move(pool, "dead", "ready", n)
    return n


def renew(tx: Tx, leases: Mapping[str, int], until: float) -> list[str]:
    """Renew the leases {item id: token}; return the ids of those that are gone."""
    kept = {row[0] for row in tx.run("renew", {"until": until, "leases": json.dumps(leases)}).fetchall()}
    return [item_id for item_id in leases if item_id not in kept]


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
    return [Attempt(*row) for row in tx.run("attempts", {"id": item_id})]


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


def next_due(tx: Tx, pool: str) -> float | None:
    due: float | None = tx.run("next_due", {"pool": pool}).fetchone()[0]
    return due


def pools(tx: Tx) -> list[str]:
    return [row[0] for row in tx.run("pools")]


def errors(tx: Tx, pool: str) -> dict[str, int]:
    return dict(tx.run("errors", (pool,)).fetchall())


def drop_tree(tx: Tx, execution_id: str) -> None:
    """Delete the snapshots of an execution and of its descendants."""
    tx.run("drop_tree", (execution_id, execution_id + ":", execution_id + ":" + LAST))


def drop_finished(tx: Tx, execution_id: str) -> None:
    row = tx.run("snapshot_event", (execution_id,)).fetchone()
    if row is not None and row[0] == "machine_end":
        drop_tree(tx, execution_id)


def _claimed(tx: Tx, item_id: str, token: int | None) -> _Held:
    row = tx.run("claimed", {"id": item_id, "token": token}).fetchone()
    if row is None:
        raise _lost(tx, item_id, token)
    return _Held(*row)


def _crash(tx: Tx, held: _Held, why: str) -> None:
    held = held._replace(crashes=held.crashes + 1)
    failure = Failure("WorkerCrashed", crash_text(held.crashes, why))
    _end(tx, held, "crashed", "dead" if held.crashes >= held.max_crashes else "ready", failure)


def _end(
    tx: Tx,
    held: _Held,
    outcome: Outcome,
    state: State,
    failure: Failure | None = None,
    due: float = 0.0,
    cost: float = 0.0,
) -> None:
    """End the running attempt without a result: record it, and put the item into its next state."""
    error = (failure.type, storable(failure.text)) if failure else (None, None)
    tx.run("attempt", (held.seq, held.token, held.worker, held.started, tx.now, outcome, *error, cost))
    due, finished = (due if state == "delayed" else 0.0), (tx.now if state == "dead" else None)
    tx.run("settle", (state, due, held.attempts, held.crashes, *error, finished, held.seq))
    tx.move(held.pool, "claimed", state)


def _lost(tx: Tx, item_id: str, token: int | None) -> Exception:
    row = tx.run("now_is", (item_id,)).fetchone()
    if row is None:
        return KeyError(f"no item '{item_id}' in this store")
    state, newest, worker = row
    held = f"claimed by {worker} under token {newest}" if state == "claimed" else f"{state} (newest token {newest})"
    return LeaseLost(f"item {item_id}: token {token} no longer holds it; it is {held}")


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
