"""Group commit for SQLite: whatever operations are pending run in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
from flatfleet.runtime.errors import FleetError, StoreUnavailable
from flatfleet.runtime.stores.advice import advice
from flatfleet.runtime.stores.buckets import Event, Kind
from flatfleet.runtime.stores.busy import is_busy, patiently
from flatfleet.runtime.stores.same_file import SameFile
from flatfleet.runtime.stores.sqlite_metrics import keep

T = TypeVar("T")

SCHEMA_VERSION = 3
APPLICATION_ID = 0x666C6565  # "flee"
OLDEST_SQLITE = (3, 35)
CACHED_STATEMENTS = 256
_OF_ONE_CALL = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError)


@functools.cache
def statements() -> dict[str, str]:
    """The named blocks of sqlite.sql."""
    text = resources.files("flatfleet.runtime.stores").joinpath("sqlite.sql").read_text(encoding="utf-8")
    blocks = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(blocks[1::2], blocks[2::2], strict=True)}


class Tx:
    """What an operation sees: the connection inside a transaction, the time, and the counters to move."""

    __slots__ = ("counts", "db", "events", "now", "once", "sql")

    def __init__(self, db: sqlite3.Connection, now: float) -> None:
        self.db = db
        self.now = now
        self.sql = statements()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.once: set[str] = set()
        self.events: list[Event] = []

    def run(self, name: str, args: Any = ()) -> sqlite3.Cursor:
        """Execute the named statement."""
        return self.db.execute(self.sql[name], args)

    def move(self, pool: str, source: str | None, target: str | None, n: int = 1) -> None:
        """Note that `n` items of the pool changed their state (None: pushed, or removed), or what waiting ones require."""
        if source is not None:
            self.counts[pool, source] -= n
        if target is not None:
            self.counts[pool, target] += n

    def note(self, pool: str, kind: Kind, value: float, more: float = 0.0) -> None:
        """Measure something that happened in the pool: `buckets.Bucket.add`."""
        self.events.append((pool, kind, value, more))


@dataclass(slots=True)
class _Call:
    op: Callable[..., Any]
    args: tuple[Any, ...]
    writes: bool
    future: asyncio.Future[Any]
    undo: Callable[[Any], Awaitable[Any]] | None
    result: Any = None
    done: bool = False
    error: BaseException | None = None


@dataclass
class GroupCommit:
    """One SQLite file, one connection, one thread; callers are answered after the commit.

    `run(op, *args)` queues `op(tx, *args)`. What is queued while a batch commits makes the next batch, so the cost of
    a commit is shared by as many callers as there are. An operation that raises has no effect; the others of its batch
    are not touched by it. A busy database is retried with 1–5 ms of jitter, and surfaces only after a minute.
    """

    path: Path
    synchronous: str = "NORMAL"
    clock: Callable[[], float] = time.time
    must_exist: bool = False
    _queue: list[_Call] = field(default_factory=list)
    _connection: aiosqlite.Connection | None = None
    _reader: aiosqlite.Connection | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _flusher: asyncio.Task[None] | None = None
    _undoing: set[asyncio.Task[Any]] = field(default_factory=set)
    _file: SameFile | None = None

    async def run(
        self, op: Callable[..., T], *args: Any, writes: bool = True, undo: Callable[[T], Awaitable[Any]] | None = None
    ) -> T:
        """Run `op(tx, *args)` in the next transaction and return its result once it is committed.

        If the caller is cancelled the operation is dropped if it has not begun; if it is done, `undo(result)` runs.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Call(op, args, writes, future, undo))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name="flatfleet-group-commit")
        try:
            return await future
        except asyncio.CancelledError:
            if undo is not None and future.done() and not future.cancelled() and future.exception() is None:
                self._start_undo(undo, future.result())
            raise

    async def read(self, op: Callable[..., T], *args: Any) -> T:
        """Run a long read on a second connection, so that writers do not wait for it."""
        await self._open()
        if self._reader is None:
            async with self._opening:
                self._reader = self._reader or await self._connect()
        try:
            return await _in_thread(self._reader, self._read, op, args)
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    async def alone(self, act: Callable[[Path], T]) -> T:
        """Run `act(path)` in a thread while no connection of this object is open; operations wait until it is done."""
        await self._open()
        async with self._opening:
            await self._hang_up()
            try:
                return await asyncio.to_thread(act, self.path)
            except (sqlite3.Error, OSError) as error:
                raise self._unavailable(error) from error

    async def close(self) -> None:
        """Commit what is queued and close; the write-ahead log is folded into the file."""
        while self._flusher is not None and not self._flusher.done():
            await asyncio.wait([self._flusher])
        if self._undoing:
            await asyncio.gather(*self._undoing, return_exceptions=True)
        await self._hang_up()

    async def _hang_up(self) -> None:
        connections, self._connection, self._reader = (self._reader, self._connection), None, None
        for connection in connections:
            if connection is not None:
                await connection.close()
        if self._file is not None:
            self._file.close()

    # -- the event loop's side -----------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        while self._queue:
            batch = [call for call in self._queue if not call.future.cancelled()]
            self._queue = []
            try:
                connection = await self._open()
                await _in_thread(connection, self._commit, batch)
            except Exception as error:
                fault = self._unavailable(error) if isinstance(error, sqlite3.Error | OSError) else error
                for call in batch:
                    call.error = call.error or fault
            for call in batch:
                self._answer(call)

    def _answer(self, call: _Call) -> None:
        if call.future.cancelled():
            if call.undo is not None and call.done and call.error is None:
                self._start_undo(call.undo, call.result)
        elif call.error is not None:
            error = call.error
            call.future.set_exception(self._unavailable(error) if _fatal(error) else error)
        else:
            call.future.set_result(call.result)

    def _start_undo(self, undo: Callable[[Any], Awaitable[Any]], result: Any) -> None:
        async def run() -> None:
            with contextlib.suppress(FleetError):  # a claim that cannot be given back runs out by itself
                await undo(result)

        task = asyncio.create_task(run(), name="flatfleet-undo")
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _open(self) -> aiosqlite.Connection:
        if self._connection is None:
            async with self._opening:
                self._connection = self._connection or await self._begin()
        return self._connection

    async def _begin(self) -> aiosqlite.Connection:
        if self.must_exist and not self.path.exists():
            raise StoreUnavailable(
                f"there is no store {self.path}: run a launcher first, or name the right one with --store"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = await self._connect()
            try:
                await _in_thread(connection, lambda db: patiently(lambda: self._prepare(db)))
            except BaseException:
                await connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error
        return connection

    async def _connect(self) -> aiosqlite.Connection:
        connection = aiosqlite.connect(
            self.path, isolation_level=None, timeout=0, cached_statements=CACHED_STATEMENTS, check_same_thread=False
        )
        connection._thread.daemon = True  # a program that forgets to close its store can still end
        try:
            return await connection
        except BaseException:
            await asyncio.to_thread(connection._thread.join)  # it still has to tell this loop that it has ended
            raise

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        return StoreUnavailable(f"the store {self.path} cannot be used: {error}. {advice(str(error))}")

    # -- the connection thread's side ------------------------------------------------------------------------------------

    def _prepare(self, db: sqlite3.Connection) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreUnavailable(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or later is needed (RETURNING)")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {self.synchronous}")
        db.execute("PRAGMA journal_size_limit = 16777216")
        db.execute("BEGIN IMMEDIATE")
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            if tables and db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise StoreUnavailable(f"{self.path} is a database of another program; name another file with --store")
            if tables and version != SCHEMA_VERSION:
                age = "a newer" if version > SCHEMA_VERSION else "an older"
                raise StoreUnavailable(
                    f"{self.path} was made by {age} flatfleet (schema {version}, this one has {SCHEMA_VERSION}); "
                    "go on with that one, or name another file with --store"
                )
            if not tables:
                for statement in statements()["schema"].split(";"):
                    if statement.strip():
                        db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._file = SameFile(self.path)

    def _commit(self, db: sqlite3.Connection, batch: list[_Call]) -> None:
        assert self._file is not None
        self._file.check()
        while not patiently(lambda: self._try(db, batch)):
            pass

    def _try(self, db: sqlite3.Connection, batch: list[_Call]) -> bool:
        """Commit the batch, without the operations that have failed; False if one failed after it had changed something."""
        db.execute("BEGIN IMMEDIATE" if any(call.writes for call in batch) else "BEGIN")
        try:
            tx = Tx(db, self.clock())
            counts: Counter[tuple[str, str]] = Counter()
            for call in batch:
                call.done = call.error is None and not call.future.cancelled()
                if not call.done:
                    continue
                tx.counts, changes, noted = Counter(), db.total_changes, len(tx.events)
                try:
                    call.result = call.op(tx, *call.args)
                except BaseException as error:
                    call.error = error
                    if db.in_transaction and db.total_changes == changes and not _fatal(error):
                        del tx.events[noted:]
                        continue  # it changed nothing, as nearly all that fail
                    raise
                counts.update(tx.counts)
            moved = [(pool, state, n) for (pool, state), n in counts.items() if n]
            if moved:
                db.executemany(tx.sql["count"], moved)
            if tx.events:
                keep(tx)
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            failed = [call for call in batch if call.error is error]
            if is_busy(error):
                for call in failed:
                    call.error = None
            elif failed and not _fatal(error):
                return False
            raise
        return True

    def _read(self, db: sqlite3.Connection, op: Callable[..., T], args: tuple[Any, ...]) -> T:
        def look() -> T:
            db.execute("BEGIN")
            try:
                return op(Tx(db, self.clock()), *args)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

        return patiently(look)


async def _in_thread(connection: Any, function: Callable[..., T], *args: Any) -> T:
    """Run `function(db, *args)` on the connection's own thread: aiosqlite's executor, with the raw connection."""
    return await connection._execute(function, connection._conn, *args)


def _fatal(error: BaseException) -> bool:
    """True for faults of the database itself, which the other operations of a batch would meet, too."""
    return isinstance(error, sqlite3.Error) and not isinstance(error, _OF_ONE_CALL)
