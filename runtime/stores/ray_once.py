"""The SQLite driver in the actor of a Ray store: a call that is sent again has its effect once."""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.records import Beat
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatfleet.runtime.stores.sqlite_workers import Crew
from flatfleet.runtime.stores.text import dump

OWNERS = 1000
"""Processes whose workers are remembered."""
OLD = 86400.0
"""Seconds after which the answers to a client that has not come back are dropped."""
CALL: ContextVar[Call | None] = ContextVar("flatfleet-ray-call")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS ray_store (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ray_answers (
    client TEXT NOT NULL, call INTEGER NOT NULL, part INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (client, call, part)) WITHOUT ROWID;
"""


@dataclass(slots=True)
class Call:
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
        call = CALL.get(None)
        if call is None:
            return await self._commit(op, *args, undo=undo)
        call.parts += 1
        return await self._commit(_answered, (call.client, call.number, call.parts), call.again, op, *args, undo=undo)

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        """Twice is as good as once; `Crew` is what each process alone knows of its workers."""
        CALL.set(None)
        if len(self._crews) > OWNERS:
            self._crews.clear()
        self._crew = self._crews.setdefault(owner, Crew())
        return await super().beat(owner, workers, leases, lease)

    async def send(self, channel: str, data: Any) -> str:
        text: str = dump(data, f"the message to {channel}")
        return await self._write(_sent, channel, text)

    def same_file(self) -> bool:
        """False if the file was deleted, or is another one by now."""
        return self._group._file is not None and self._group._file.there()

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
