"""What changes items in the SQLite store: plain functions of one transaction."""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.backoff import PROVIDER_WAIT, backoff, crash_text
from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.records import SUSPECT, WALKED, Claim, Failure, NewItem, Outcome, State
from flatfleet.runtime.stores.sqlite_executions import drop_finished, drop_tree
from flatfleet.runtime.stores.sqlite_metrics import first_ask
from flatfleet.runtime.stores.sqlite_reads import paused
from flatfleet.runtime.stores.text import CANCELLED, dump, stamp, state_in, storable


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
    requires: str | None


def row_to_push(item: NewItem) -> tuple[NewItem, str | None, str]:
    """The item with its requirements and its data as text; TypeError if they are not JSON data."""
    requires = dump(sorted(set(item.requires)), "requires") if item.requires else None
    return item, requires, dump(item.data, f"the data of {item.id}")


def push(tx: Tx, pool: str, rows: Sequence[tuple[NewItem, str | None, str]]) -> list[bool]:
    added = []
    for item, requires, data in rows:
        state: State = "delayed" if item.not_before > tx.now else "ready"
        cursor = tx.run(
            "push",
            (item.id, pool, item.key, state, item.priority, item.not_before, item.max_attempts, item.max_crashes)
            + (requires, tx.now, max(tx.now, item.not_before)),
        )
        new = cursor.rowcount == 1
        added.append(new)
        if new:
            tx.run("push_payload", (cursor.lastrowid, data))
            tx.move(pool, None, state)
            tx.move(pool, None, requires)
    if n := sum(added):
        tx.note(pool, "pushed", n)
    return added


def claim(
    tx: Tx,
    pool: str,
    worker: str,
    owner: str,
    n: int,
    lease: float,
    capabilities: Collection[str],
    limit: int | None = None,
    first: bool = True,
) -> list[Claim]:
    """`first`: the worker may not have asked before."""
    if first:
        first_ask(tx, pool, worker)
    recover(tx, pool)
    if limit is not None:
        n = min(n, limit - tx.run("held_up_to", (pool, max(limit, 0))).fetchone()[0])
    if n < 1 or not _is_open(tx, pool):
        return []
    told = {"worker": worker, "owner": owner, "until": tx.now + lease, "now": tx.now}
    if needs := _servable(tx, pool, capabilities):
        rows = tx.run("claim_these", told | {"seqs": json.dumps(_next(tx, pool, owner, n, needs))}).fetchall()
    else:
        rows = tx.run("claim", told | {"pool": pool, "n": n, "suspect": SUSPECT}).fetchall()
    if not rows:
        return []
    tx.move(pool, "ready", "claimed", len(rows))
    if len(rows) > 1:
        rows.sort(key=lambda row: (-row[8], row[0]))
    claims, claimed_at = [], stamp(tx.now)
    for _, item_id, key, token, attempts, crashes, max_attempts, created, _, data, ready_at, requires in rows:
        tx.move(pool, requires, None)
        tx.note(pool, "claimed", tx.now - ready_at)
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


def _servable(tx: Tx, pool: str, capabilities: Collection[str]) -> list[str]:
    """What ready items require and the capabilities cover, as it stands in `requires`."""
    if not capabilities:
        return []
    able = frozenset(capabilities)
    return [row[0] for row in tx.run("ready_needs", {"pool": pool}) if able.issuperset(json.loads(row[0]))]


def _next(tx: Tx, pool: str, owner: str, n: int, needs: Sequence[str]) -> list[int]:
    """The `seq` of those who are next, out of the line of what requires nothing and the lines of these needs.

    Each line is read only as far as it is needed. Of the suspects there is one, if the owner holds none.
    """
    lines = [tx.run("plain_line", (pool,)), *(tx.run("needy_line", (pool, each)) for each in needs)]
    chosen: list[int] = []
    alone: bool | None = None
    for _, seq, crashes in heapq.merge(*lines):
        if crashes >= SUSPECT:
            if alone is None:
                alone = not tx.run("holds_suspect", (owner, SUSPECT)).fetchone()[0]
            if not alone:
                continue
            alone = False
        chosen.append(seq)
        if len(chosen) == n:
            break
    for line in lines:
        line.close()
    return chosen


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


def complete(tx: Tx, item_id: str, result: Any, token: int | None, cost: float, walked: Sequence[str] = ()) -> None:
    text = dump(result, f"the result of {item_id}")
    row = tx.run("complete", {"id": item_id, "token": token, "now": tx.now}).fetchone()
    if row is None:
        raise _lost(tx, item_id, token)
    seq, pool, held, worker, started, created = row
    tx.run("put_result", (seq, held, worker, started, tx.now, cost, _walked(walked), text))
    drop_tree(tx, item_id)
    tx.move(pool, "claimed", "completed")
    tx.note(pool, "completed", tx.now - started, tx.now - created)


def fail(tx: Tx, item_id: str, failure: Failure, token: int | None, cost: float, walked: Sequence[str] = ()) -> State:
    held = _claimed(tx, item_id, token)
    attempts = held.attempts + failure.consume
    wait = failure.retry_after
    if wait is None:
        wait = backoff(attempts, item_id) if failure.consume else PROVIDER_WAIT
    dead = failure.consume and (failure.permanent or attempts >= held.max_attempts)
    state: State = "dead" if dead else "delayed" if wait > 0 else "ready"
    outcome: Literal["failed", "provider"] = "failed" if failure.consume else "provider"
    _end(tx, held._replace(attempts=attempts), outcome, state, failure, tx.now + wait, cost, walked)
    drop_finished(tx, item_id)
    tx.note(held.pool, outcome, tx.now - held.started)
    return state


def release(tx: Tx, item_id: str, token: int | None, walked: Sequence[str] = ()) -> None:
    _end(tx, _claimed(tx, item_id, token), "released", "ready", walked=walked)


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
        row = tx.run("redrive", (tx.now, item_id, pool)).fetchone()
        if row is not None:
            tx.move(pool, None, row[0])
            drop_finished(tx, item_id)
            n += 1
    if n:
        tx.move(pool, "dead", "ready", n)
    return n


def cancel(tx: Tx, pool: str, ids: Sequence[str]) -> int:
    n = 0
    for item_id in ids:
        row = tx.run("cancellable", (item_id, pool)).fetchone()
        if row is None:
            continue
        held, state = _Held(*row[:-1]), row[-1]
        if state == "claimed":
            saved = tx.run("load_snapshot", (item_id,)).fetchone()
            _end(tx, held, "cancelled", "dead", Failure(*CANCELLED), walked=state_in(saved[2] if saved else None))
        else:
            tx.run("settle", ("dead", 0.0, held.attempts, held.crashes, *CANCELLED, tx.now, tx.now, held.seq))
            tx.move(pool, state, "dead")
            tx.move(pool, held.requires, None)
        drop_tree(tx, item_id)
        n += 1
    return n


def pause(tx: Tx, pool: str, until: float | None) -> None:
    tx.once.discard(_open_key(pool))
    if until is None:
        tx.run("resume", (pool,))
    else:
        tx.run("pause", (pool, until))


def renew(tx: Tx, leases: Mapping[str, int], until: float) -> list[str]:
    """Renew the leases {item id: token}; return the ids of those that are gone."""
    kept = {row[0] for row in tx.run("renew", {"until": until, "leases": json.dumps(leases)}).fetchall()}
    return [item_id for item_id in leases if item_id not in kept]


def _claimed(tx: Tx, item_id: str, token: int | None) -> _Held:
    row = tx.run("claimed", {"id": item_id, "token": token}).fetchone()
    if row is None:
        raise _lost(tx, item_id, token)
    return _Held(*row)


def _walked(walked: Sequence[str]) -> str | None:
    return dump(list(walked)[-WALKED:], "the states of an attempt") if walked else None


def _open_key(pool: str) -> str:
    return f"{pool} is open"


def _is_open(tx: Tx, pool: str) -> bool:
    """True if the pool is not paused; looked up once a transaction."""
    key = _open_key(pool)
    if key not in tx.once and paused(tx, pool) is None:
        tx.once.add(key)
    return key in tx.once


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
    walked: Sequence[str] = (),
) -> None:
    """End the running attempt without a result: record it, and put the item into its next state."""
    error = (failure.type, storable(failure.text)) if failure else (None, None)
    row = (held.seq, held.token, held.worker, held.started, tx.now, outcome, *error, cost, _walked(walked))
    tx.run("attempt", row)
    due, finished = (due if state == "delayed" else 0.0), (tx.now if state == "dead" else None)
    tx.run("settle", (state, due, held.attempts, held.crashes, *error, finished, max(due, tx.now), held.seq))
    tx.move(held.pool, "claimed", state)
    if state in ("ready", "delayed"):
        tx.move(held.pool, None, held.requires)


def _lost(tx: Tx, item_id: str, token: int | None) -> Exception:
    row = tx.run("now_is", (item_id,)).fetchone()
    if row is None:
        return KeyError(f"no item '{item_id}' in this store")
    state, newest, worker = row
    held = f"claimed by {worker} under token {newest}" if state == "claimed" else f"{state} (newest token {newest})"
    return LeaseLost(f"item {item_id}: token {token} no longer holds it; it is {held}")
