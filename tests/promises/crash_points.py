"""Kill each operation of the SQLite store at each of its statements: `crash_points.py`, JSON lines on stdout.

For every operation and every k: a copy of the same store, a child process that dies after the k-th statement (`exit`),
or a disk error (`error`) or a busy database (`busy`) in its place; then what is in the store. One line each:
{"op", "how", "k", "found": "before" | "after" | the difference, "said": how an error came out}.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite
from flatfleet.runtime.errors import StoreUnavailable
from flatfleet.runtime.stores import group
from flatfleet.runtime.stores.records import Failure, NewItem, SnapshotRow
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatmachines import WorkerRegistration

NOW = 1_700_000_000.0
LATER = NOW + 100
WORKER = WorkerRegistration("w1", "host", 1, ["gpu"], "2026-01-01T00:00:00+00:00")
NEW_WORKER = WorkerRegistration("w9", "host", 9, None, "2026-01-01T00:00:00+00:00")

Op = Callable[[SQLiteDriver], Awaitable[Any]]


class Plan:
    """Which statement is the last one, and how it ends. 0: none, only count."""

    k, how, n, armed = 0, "count", 0, False


class Connection(sqlite3.Connection):
    def execute(self, *args: Any) -> sqlite3.Cursor:
        return self._step(super().execute, args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        return self._step(super().executemany, args)

    def _step(self, execute: Callable[..., sqlite3.Cursor], args: Any) -> sqlite3.Cursor:
        if not Plan.armed or args[0] == "ROLLBACK":
            return execute(*args)
        Plan.n += 1
        if Plan.n == Plan.k and Plan.how == "error":
            raise sqlite3.OperationalError("disk I/O error")
        if Plan.n == Plan.k and Plan.how == "busy":
            Plan.k = 0
            busy = sqlite3.OperationalError("database is locked")
            busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise busy
        cursor = execute(*args)
        if Plan.n == Plan.k and Plan.how == "exit":
            os._exit(9)
        return cursor


async def _connect(self: group.GroupCommit) -> aiosqlite.Connection:
    return await aiosqlite.connect(
        self.path, isolation_level=None, timeout=0, check_same_thread=False, factory=Connection
    )


async def prepare(path: Path) -> None:
    """A store with items in every state, workers, locks, messages, snapshots of parents and children."""
    driver = SQLiteDriver(path, clock=lambda: NOW)
    await driver.push("p", [NewItem(f"p:{n}", str(n), {"n": n}, max_attempts=2, max_crashes=2) for n in range(12)])
    await driver.push("p", [NewItem("p:late", "late", None, not_before=NOW + 50)])
    await driver.register(WORKER, "o1", 60, {"pool": "p"})
    await driver.claim("p", "w1", "o1", 5, 60, [])
    await driver.claim("p", "w2", "o2", 2, 300, [])
    await driver.fail("p:3", Failure("E", "x", permanent=True), 1, 0.0)
    await driver.fail("p:4", Failure("E", "x", permanent=True), 1, 0.0)
    for name in ("p:0", "p:0:s:1", "p:0:s:2", "p:1", "p:3"):
        event = "machine_end" if name == "p:3" else "state_enter"
        await driver.save_snapshot(SnapshotRow(name, "k", b"{}", event), None, None)
    await driver.lock("key", "o1", 60)
    await driver.close()


def operations() -> dict[str, Op]:
    many = [NewItem(f"p:new{n}", f"new{n}", n) for n in range(3)]
    return {
        "push": lambda d: d.push("p", many),
        "push in a new pool": lambda d: d.push("q", [NewItem("q:1", "1", None, not_before=LATER + 9)]),
        "claim": lambda d: d.claim("p", "w3", "o3", 2, 60, []),
        "complete": lambda d: d.complete("p:0", {"r": 1}, 1, 0.5),
        "fail": lambda d: d.fail("p:1", Failure("E", "x"), 1, 0.0),
        "fail for good": lambda d: d.fail("p:0", Failure("E", "x", permanent=True), 1, 0.0),
        "release": lambda d: d.release("p:1", 1),
        "hand_back": lambda d: d.hand_back(owner="o1", crashed=False),
        "hand_back crashed": lambda d: d.hand_back(owner="o1", crashed=True),
        "retry": lambda d: d.retry("p", None),
        "cancel": lambda d: d.cancel("p", ["p:0", "p:9", "p:late", "p:3"]),
        "pause": lambda d: d.pause("p", LATER + 60),
        "save_snapshot": lambda d: d.save_snapshot(
            SnapshotRow("p:0", "k2", b"{2}", "state_enter"), ("p:0", 1), "p:0:s:"
        ),
        "drop_snapshots": lambda d: d.drop_snapshots("p:0"),
        "register": lambda d: d.register(NEW_WORKER, "o3", 60, {}),
        "set_status": lambda d: d.set_status("w1", "terminated", {"processed": 3}),
        "beat": lambda d: d.beat("o1", ["w1"], {"p:0": 1, "p:1": 1, "p:2": 7}, 60),
        "mark_lost": lambda d: d.mark_lost("o1"),
        "lock": lambda d: d.lock("other", "o1", 60),
        "two at once": lambda d: asyncio.gather(
            d.complete("p:0", 0, 1, 0.0), d.complete("p:1", 1, 1, 0.0), d.claim("p", "w3", "o3", 1, 60, [])
        ),
    }


async def perform(path: Path, op: Op, how: str, k: int) -> str:
    """Run the operation with the plan; after an error, say what came out."""
    driver, said = SQLiteDriver(path, clock=lambda: LATER), ""
    await driver.counts("p")
    Plan.k, Plan.how, Plan.n, Plan.armed = k, how, 0, True
    try:
        await op(driver)
    except StoreUnavailable as error:
        said = str(error)
    Plan.armed = False
    await driver.close()
    return said


def dump(path: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    db = sqlite3.connect(path)
    try:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        found = {table: sorted(map(repr, db.execute(f"SELECT * FROM {table}"))) for table in tables}
        recount = db.execute("SELECT pool, state, COUNT(*) FROM items GROUP BY 1, 2").fetchall()
        counted = db.execute("SELECT pool, state, n FROM counters WHERE n <> 0").fetchall()
        assert sorted(recount) == sorted(counted), f"counters {counted} are not a recount {recount}"
        return found
    finally:
        db.close()


def in_child(work: Callable[[], Any]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copy(source: Path, target: Path) -> Path:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    shutil.copy(source, target)
    return target


def main(folder: Path) -> None:
    group.GroupCommit._connect = _connect
    original, work = folder / "original.db", folder / "work.db"
    in_child(lambda: asyncio.run(prepare(original)))
    before = dump(copy(original, work))
    ends: dict[str, tuple[Op, int, Any]] = {}
    for name, op in operations().items():  # first all that fork, while this process has no thread
        k, code = 0, 9
        while code == 9:
            k += 1
            copy(original, work)
            code = in_child(lambda op=op, k=k: asyncio.run(perform(work, op, "exit", k)))
            found = dump(work)
            if code == 9:
                ends[name] = op, k, found
                show(name, "exit", k, "before" if found == before else found, "")
        assert (code, found) == (0, ends[name][2]), f"{name}: exit code {code}"
        assert found != before, f"{name} changes nothing"
    for name, (op, steps, after) in ends.items():
        for how in ("error", "busy"):
            for k in range(1, steps + 1):
                said = asyncio.run(perform(copy(original, work), op, how, k))
                found = dump(work)
                show(name, how, k, "before" if found == before else "after" if found == after else found, said)


def show(op: str, how: str, k: int, found: Any, said: str) -> None:
    print(json.dumps({"op": op, "how": how, "k": k, "found": found, "said": said}))  # noqa: T201


if __name__ == "__main__":
    memory = Path("/dev/shm")  # a disk would spend most of the time on fsync, which SIGKILL does not ask for
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        main(Path(folder))
