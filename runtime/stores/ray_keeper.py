"""The actor of the Ray store: SQLite databases on the head node, for all processes of the cluster."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatfleet.runtime.errors import StoreUnavailable
from flatfleet.runtime.stores.datagrams import Topics
from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.ray_cluster import state_dir
from flatfleet.runtime.stores.records import Beat
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatfleet.runtime.stores.sqlite_workers import Crew
from flatfleet.runtime.stores.text import dump

PROTOCOL = 1
"""Raised by every change after which a client of before would misunderstand the actor."""
HEAR = 20.0
"""Seconds after which somebody who listens is answered that nothing was rung."""
RINGS = 1000
"""Announcements that are kept for those who are between two calls; who missed more looks at everything."""
SWEEP = 64
"""Calls of a client after which the answers are dropped that it has had."""
OWNERS = 1000
"""Processes whose workers are remembered."""
OLD = 86400.0
"""Seconds after which the answers to a client that has not come back are dropped."""
_CALL: ContextVar[_Call | None] = ContextVar("flatfleet-ray-call")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS ray_store (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ray_answers (
    client TEXT NOT NULL, call INTEGER NOT NULL, part INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (client, call, part)) WITHOUT ROWID;
"""


@dataclass(slots=True)
class _Call:
    """One operation of a client, which may consist of several transactions; `again`: its first answer was lost."""

    client: str
    number: int
    again: bool
    parts: int = 0


class Clock:
    """The head node's time, or (in tests) what the client says that it is."""

    told: float | None = None

    def __call__(self) -> float:
        return time.time() if self.told is None else self.told


class Once(SQLiteDriver):
    """The SQLite driver, but a call that is repeated because its answer was lost has its effect once, and its answer.

    Every change is committed together with its answer; the client says which answers it has had.
    """

    def __init__(self, path: Path, synchronous: str) -> None:
        self.clock = Clock()
        super().__init__(path, synchronous, self.clock)
        self._crews: dict[str, Crew] = {}
        self._commit = self._write
        self._write = self._once  # type: ignore[assignment]

    async def _once(
        self, op: Callable[..., Any], *args: Any, undo: Callable[[Any], Awaitable[Any]] | None = None
    ) -> Any:
        call = _CALL.get(None)
        if call is None:
            return await self._commit(op, *args, undo=undo)
        call.parts += 1
        return await self._commit(_answered, (call.client, call.number, call.parts), call.again, op, *args, undo=undo)

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        """Twice is as good as once; `Crew` is what each process alone knows of its workers."""
        _CALL.set(None)
        if len(self._crews) > OWNERS:
            self._crews.clear()
        self._crew = self._crews.setdefault(owner, Crew())
        return await super().beat(owner, workers, leases, lease)

    async def send(self, channel: str, data: Any) -> str:
        text: str = dump(data, f"the message to {channel}")
        return await self._write(_sent, channel, text)

    def same_file(self) -> bool:
        """False if the file was deleted, or is another one by now."""
        path = self._group.path
        return path.exists() and path.stat().st_ino == self._group._inode

    async def prepare(self) -> str:
        """Make what the actor needs beside the store's own tables; return the store's id, which it has for good."""
        return await self._commit(_prepare)

    async def had(self, client: str, below: int | None) -> None:
        """Drop the answers to a client, all or those to calls below a number."""
        await self._commit(_had, client, below)


def _answered(tx: Tx, key: tuple[str, int, int], again: bool, op: Callable[..., Any], *args: Any) -> Any:
    if again:
        row = tx.db.execute("SELECT body FROM ray_answers WHERE client = ? AND call = ? AND part = ?", key).fetchone()
        if row:
            return pickle.loads(row[0])
    changes = tx.db.total_changes
    answer = op(tx, *args)
    if tx.db.total_changes != changes:
        row = (*key, tx.now, pickle.dumps(answer))
        tx.db.execute("INSERT OR REPLACE INTO ray_answers (client, call, part, at, body) VALUES (?, ?, ?, ?, ?)", row)
    return answer


def _sent(tx: Tx, channel: str, text: str) -> str:
    signal_id = uuid.uuid4().hex
    tx.run("send", (signal_id, channel, text, tx.now))
    return signal_id


def _prepare(tx: Tx) -> str:
    for statement in _SCHEMA.split(";"):
        tx.db.execute(statement)
    tx.db.execute("DELETE FROM ray_answers WHERE at < ?", (tx.now - OLD,))
    found = tx.db.execute("SELECT id FROM ray_store").fetchone()
    if found is None:
        found = (uuid.uuid4().hex,)
        tx.db.execute("INSERT INTO ray_store (id) VALUES (?)", found)
    return str(found[0])


def _had(tx: Tx, client: str, below: int | None) -> None:
    tx.db.execute("DELETE FROM ray_answers WHERE client = ? AND call < ?", (client, below or 2**62))


def _expanded(path: str) -> Path:
    return Path(path).expanduser()


@dataclass
class _Open:
    """A database that is open here, who uses it, and what was rung in it."""

    driver: Once
    id: str
    clients: set[str] = field(default_factory=set)
    swept: dict[str, int] = field(default_factory=dict)
    rings: deque[tuple[int, str, Topics]] = field(default_factory=lambda: deque(maxlen=RINGS))
    rung: int = 0
    listeners: set[asyncio.Event] = field(default_factory=set)


class Keeper:
    """The actor. One for each name; a file of the head node's is open once, whoever uses it.

    A file that was deleted or replaced is another store: who used the one before is refused.
    """

    def __init__(self, name: str) -> None:
        self._default = state_dir() / f"{name}.db"
        self._open: dict[str, _Open] = {}
        self._opening = asyncio.Lock()
        self._boot = uuid.uuid4().hex

    async def open(self, path: str | None, synchronous: str, must_exist: bool, client: str) -> bytes:
        """Open a database (None: the name's own) for a client; answers like `calls`, with a dict about it."""
        try:
            return pickle.dumps((True, await self._opened(path, synchronous, must_exist, client)))
        except Exception as error:
            return pickle.dumps((False, error))

    async def _opened(self, path: str | None, synchronous: str, must_exist: bool, client: str) -> dict[str, Any]:
        file = _expanded(path) if path else self._default
        async with self._opening:
            found = self._open.get(str(file))
            if found is None:
                if must_exist and not file.exists():
                    raise StoreUnavailable(
                        f"there is no store {file} on the head node of the Ray cluster: run a launcher first, or name "
                        "the right one with --store"
                    )
                driver = Once(file, synchronous)
                try:
                    found = _Open(driver, await driver.prepare())
                except BaseException:
                    await driver.close()
                    raise
                self._open[str(file)] = found
        found.clients.add(client)
        return {"protocol": PROTOCOL, "file": str(file), "id": found.id, "boot": self._boot, "pid": os.getpid()}

    async def calls(
        self, file: str, store: str, client: str, done: int, now: float | None, calls: Sequence[tuple[int, bool, bytes]]
    ) -> list[bytes] | None:
        """Carry out operations at once, each by itself; their answers are pickled (worked?, value or error).

        `done`: the client waits for no call below that number. None: the database has to be opened again.
        """
        found = self._open.get(file)
        if found is None or found.id != store or client not in found.clients:
            return None
        found.driver.clock.told = now
        swept = found.swept.setdefault(client, 0)
        if done - swept >= SWEEP:
            found.swept[client] = done
            await found.driver.had(client, done)
        return await asyncio.gather(*(self._call(file, found, client, *call) for call in calls))

    async def _call(self, file: str, found: _Open, client: str, number: int, again: bool, body: bytes) -> bytes:
        _CALL.set(_Call(client, number, again))
        try:
            op, args, kwargs = pickle.loads(body)
            answer = True, await getattr(found.driver, op)(*args, **kwargs)
        except StoreUnavailable as error:
            answer = False, error
            if self._open.get(file) is found and not found.driver.same_file():
                del self._open[file]  # nobody will be served by this one again
        except Exception as error:
            answer = False, error
        try:
            return pickle.dumps(answer)
        except Exception:
            return pickle.dumps((False, StoreUnavailable(f"the store's answer cannot be sent: {answer[1]!r}")))

    async def leave(self, file: str, client: str) -> None:
        """Forget a client; with the last one the database is closed."""
        found = self._open.get(file)
        if found is None or client not in found.clients:
            return
        found.clients.discard(client)
        found.swept.pop(client, None)
        await found.driver.had(client, None)
        if not found.clients:
            async with self._opening:
                if not found.clients and self._open.get(file) is found:
                    del self._open[file]
                    await found.driver.close()

    # -- waking --------------------------------------------------------------------------------------------------------

    async def tell(self, file: str, client: str, topics: Topics) -> None:
        """Wake the others who listen to one of the topics (None: whatever they listen to)."""
        found = self._open.get(file)
        if found is not None:
            found.rung += 1
            found.rings.append((found.rung, client, topics))
            for event in found.listeners:
                event.set()

    async def hear(self, file: str, client: str, boot: str | None, seen: int) -> tuple[str, int, Topics] | None:
        """Wait until others ring: (this actor's boot, number of the last ring, what was rung since `seen`; None: anything).

        Answers after HEAR seconds at the latest; at once on the first call, and where rings were missed. Like `calls`,
        None if the database has to be opened again.
        """
        found = self._open.get(file)
        if found is None or client not in found.clients:
            return None
        if boot != self._boot:
            return self._boot, found.rung, None
        event = asyncio.Event()
        found.listeners.add(event)
        try:
            async with asyncio.timeout(HEAR):
                while True:
                    event.clear()
                    if found.rung - seen > RINGS:
                        return boot, found.rung, None
                    new = [topics for n, who, topics in found.rings if n > seen and who != client]
                    if new:
                        return boot, found.rung, None if None in new else set().union(*filter(None, new))
                    seen = found.rung
                    await event.wait()
        except TimeoutError:
            return boot, seen, set()
        finally:
            found.listeners.discard(event)
