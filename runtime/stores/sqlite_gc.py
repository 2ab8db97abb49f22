"""Housekeeping of the SQLite store: what nobody needs goes, a bounded transaction at a time; and the file shrinks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flatfleet.runtime.errors import StoreUnavailable
from flatfleet.runtime.stores import sqlite_executions as sql_executions
from flatfleet.runtime.stores.busy import is_busy
from flatfleet.runtime.stores.group import GroupCommit, Tx
from flatfleet.runtime.stores.leftovers import ATTEMPTS_KEPT, CONFIG_GRACE, DECISIONS_KEPT, needless

CHUNK = 1000
"""Rows that are looked at, and at most deleted, in one transaction."""


class _Page(NamedTuple):
    """What was found to delete, and after which key to go on (None: at the end)."""

    found: Sequence[Any]
    after: Any


async def gc(group: GroupCommit, before: float) -> dict[str, int]:
    """Look for what can go on a connection that no writer waits for; delete it if it still can when it is its turn."""
    found = {
        "workers": await _sweep(group, _ended_workers, _drop_workers, before),
        "executions": await _sweep(group, _executions, _drop_executions, before)
        + await _sweep(group, _inboxes, _drop_inboxes, before),
        "decisions": await _sweep(group, _fleets, _drop_decisions, before),
        "attempts": await _sweep(group, _attempted, _drop_attempts, before),
        "configs": await _sweep(group, _configs, _drop_configs, before),
    }
    await group.run(lambda tx: tx.run("forget_requirements") and None)
    return found


async def _sweep(
    group: GroupCommit,
    look: Callable[[Tx, float, Any], _Page],
    drop: Callable[[Tx, float, Sequence[Any]], int],
    before: float,
) -> int:
    n, page = 0, _Page((), "")
    while page.after is not None:
        page = await group.read(look, before, page.after)
        if page.found:
            n += await group.run(drop, before, page.found)
    return n


def _page(rows: Sequence[Any], found: Sequence[Any]) -> _Page:
    return _Page(found, rows[-1][0] if len(rows) == CHUNK else None)


# -- workers -----------------------------------------------------------------------------------------------------------


def _ended_workers(tx: Tx, before: float, after: str) -> _Page:
    rows = tx.run("ended_workers", {"before": before, "after": after, "n": CHUNK}).fetchall()
    return _page(rows, [row[0] for row in rows])


def _drop_workers(tx: Tx, before: float, found: Sequence[str]) -> int:
    gone = [row[0] for row in tx.run("drop_ended", {"before": before, "ids": json.dumps(found)}).fetchall()]
    tx.run("drop_results", (json.dumps(gone),))
    return len(gone)


# -- executions --------------------------------------------------------------------------------------------------------


def _needless(tx: Tx, execution_id: str, event: str | None, going: Collection[str] = ()) -> bool:
    def state_of(item_id: str) -> Any:
        row = tx.run("now_is", (item_id,)).fetchone()
        return row[0] if row else None

    def saved(other: str) -> bool:
        return other not in going and tx.run("snapshot_event", (other,)).fetchone() is not None

    return needless(execution_id, event, state_of, saved)


def _executions(tx: Tx, before: float, after: str) -> _Page:
    rows = tx.run("old_snapshots", {"after": after, "before": before, "now": tx.now, "n": CHUNK}).fetchall()
    going: set[str] = set()
    for execution_id, event in rows:  # parents come before their children
        if _needless(tx, execution_id, event, going):
            going.add(execution_id)
    return _page(rows, sorted(going))


def _drop_executions(tx: Tx, before: float, found: Sequence[str]) -> int:
    n = 0
    for execution_id in found:
        row = tx.run("old_snapshot", {"id": execution_id, "before": before, "now": tx.now}).fetchone()
        if row is not None and _needless(tx, execution_id, row[0]):
            sql_executions.drop_one(tx, execution_id)
            n += 1
    return n


def _inboxes(tx: Tx, before: float, after: str) -> _Page:
    rows = tx.run("lone_inboxes", {"after": after, "before": before, "now": tx.now, "n": CHUNK}).fetchall()
    return _page(rows, [row[0] for row in rows if _needless(tx, row[0], None)])


def _drop_inboxes(tx: Tx, before: float, found: Sequence[str]) -> int:
    n = 0
    for execution_id in found:
        row = tx.run("lone_inbox", {"id": execution_id, "before": before, "now": tx.now}).fetchone()
        if row is not None and _needless(tx, execution_id, None):
            sql_executions.drop_one(tx, execution_id)
            n += 1
    return n


# -- decisions, attempts, configs ----------------------------------------------------------------------------------------


def _fleets(tx: Tx, before: float, after: str) -> _Page:
    rows = tx.run("full_fleets", {"after": after, "kept": DECISIONS_KEPT}).fetchall()
    return _Page([row[0] for row in rows], rows[-1][0] if rows else None)  # one fleet at a time


def _drop_decisions(tx: Tx, before: float, found: Sequence[str]) -> int:
    told = {"before": before, "kept": DECISIONS_KEPT}
    return sum(tx.run("drop_decisions", told | {"fleet": fleet}).rowcount for fleet in found)


def _attempted(tx: Tx, before: float, after: Any) -> _Page:
    """Items with more attempts than are kept, as many as have a CHUNK of attempts together; at least one."""
    seqs: list[int] = []
    n = 0
    told = {"before": before, "after": after or -1, "kept": ATTEMPTS_KEPT}
    for seq, count in tx.run("attempted", told):
        if seqs and n + count > CHUNK:
            return _Page(seqs, seqs[-1])
        seqs.append(seq)
        n += count
    return _Page(seqs, None)


def _drop_attempts(tx: Tx, before: float, found: Sequence[int]) -> int:
    return sum(tx.run("drop_attempts", {"seq": seq, "kept": ATTEMPTS_KEPT}).rowcount for seq in found)


def _configs(tx: Tx, before: float, after: str) -> _Page:
    rows = tx.run("old_configs", (min(before, tx.now - CONFIG_GRACE),)).fetchall()
    used = {f"config:{row[0]}" for row in tx.run("configs_in_use")} if rows else set()
    return _Page([row[0] for row in rows if row[0] not in used], None)


def _drop_configs(tx: Tx, before: float, found: Sequence[str]) -> int:
    until = min(before, tx.now - CONFIG_GRACE)
    return tx.run("drop_configs", {"keys": json.dumps(found), "before": until}).rowcount


# -- the file ------------------------------------------------------------------------------------------------------------


async def shrink(group: GroupCommit) -> int:
    """Vacuum, and return the bytes won."""
    before = size(group.path)
    await group.alone(vacuum)
    return max(0, before - size(group.path))


def vacuum(path: Path) -> None:
    """Rebuild the file on a connection that is the only one.

    It is a new one, and has the lock before it reads anything: what an older one has cached may be out of date by then,
    and would be written back.
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        raise StoreUnavailable(
            f"the store {path} cannot be shrunk while another process has it open: end that process first. "
            "Only the file is as large as it was: what was deleted stays deleted"
        ) from error
    finally:
        db.close()


def size(path: Path) -> int:
    """Bytes of the file and of its log."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
