"""The connection to a Redis server: whatever is pending goes together, is tried again, and is answered once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime.errors import FleetError, StoreUnavailable
from flatfleet.runtime.stores.redis_faults import advice, known, library, loading, retry, transient
from flatfleet.runtime.stores.redis_scripts import script
from flatfleet.runtime.stores.redis_url import Target

logger = logging.getLogger(__name__)

SCHEMA = b"1"
OLDEST = (6, 2)
MOST_CALLS, MOST_BYTES = 500, 4_000_000
"""Calls and bytes that are sent at most before their answers are read."""
SOONEST, LATEST = 0.02, 1.0
"""Seconds between two tries to reach a server that is away."""
_warned: set[str] = set()


@dataclass(slots=True, eq=False)
class _Call:
    name: str
    args: Sequence[bytes]
    future: asyncio.Future[Any]
    born: float
    undo: Callable[[Any], Awaitable[Any]] | None = None
    sent: bool = False


@dataclass
class Link:
    """One connection to one store. `call(script, *args)` runs a script; what comes while others are under way goes next.

    A connection that breaks, a server that restarts, is busy or takes no writes for a while: operations wait and are sent
    again, with a flag where they may have been done already, and fail after `patience` seconds. What cannot pass by itself
    fails at once, and so does all as long as the server has never been reached.
    """

    target: Target
    clock: Callable[[], float] | None = None
    must_exist: bool = False
    _queue: list[_Call] = field(default_factory=list)
    _flusher: asyncio.Task[None] | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _connection: Any = None
    _keeper: asyncio.Task[None] | None = None
    _number: int = 0
    _scripts: set[str] = field(default_factory=set)
    _store: bytes = b""
    _undoing: set[asyncio.Task[Any]] = field(default_factory=set)

    async def call(self, name: str, *args: Any, undo: Callable[[Any], Awaitable[Any]] | None = None) -> Any:
        """Run the script `name` and return its answer; `PUBLISH` is that command.

        If the caller is cancelled the operation is dropped if it was not sent; if it is done, `undo(answer)` runs.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.append(_Call(name, [encoded(arg) for arg in args], future, time.monotonic(), undo))
        if self._flusher is None or self._flusher.done() or self._loop is not loop:
            if self._loop is not loop:
                self._loop, self._connection = loop, None
            self._flusher = loop.create_task(self._flush(), name="flatfleet-redis")
        try:
            return await future
        except asyncio.CancelledError:
            if undo is not None and future.done() and not future.cancelled() and future.exception() is None:
                self._start_undo(undo, future.result())
            raise

    async def close(self) -> None:
        """Finish what is queued, and close the connection; the next call opens another."""
        while self._flusher is not None and not self._flusher.done() and self._loop is asyncio.get_running_loop():
            await asyncio.wait([self._flusher])
        if self._undoing:
            await asyncio.gather(*self._undoing, return_exceptions=True)
            await self.close()
        await self._hang_up()

    # -- sending and answering -----------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        pause = SOONEST
        while self._queue:
            batch = self._batch()
            try:
                await self._exchange(batch)
                pause = SOONEST
            except Exception as error:
                await self._hang_up()
                fault = self._unavailable(error) if known(error) else error
                left = [call for call in batch if not call.future.done()]
                hopeless = not transient(error) or not (self._store or loading(error))
                if hopeless:
                    left, self._queue = left + self._queue, []
                latest = time.monotonic() - self.target.patience
                for call in left:
                    if (hopeless or call.born < latest) and not call.future.done():
                        call.future.set_exception(fault)
                self._queue = [call for call in left if not call.future.done() or call.future.cancelled()] + self._queue
                if self._queue:
                    logger.debug("%s; it is tried again", fault)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(LATEST, 2 * pause)

    def _batch(self) -> list[_Call]:
        """The calls that go next; those that were cancelled before they were sent go nowhere."""
        batch, size, taken = [], 0, 0
        for call in self._queue:
            if len(batch) == MOST_CALLS or size > MOST_BYTES:
                break
            taken += 1
            if not call.future.cancelled() or (call.sent and call.undo is not None):
                batch.append(call)
                size += sum(map(len, call.args))
        del self._queue[:taken]
        return batch

    async def _exchange(self, batch: list[_Call]) -> None:
        """Send the calls and answer each."""
        connection = self._connection or await self._open()
        now = b"" if self.clock is None else repr(self.clock()).encode()
        commands: list[bytes] = []
        loads = 0
        for call in batch:
            if call.name == "PUBLISH":
                commands.append(packed(b"PUBLISH", *call.args))
                continue
            found = script(call.name)
            if call.name not in self._scripts:
                self._scripts.add(call.name)
                commands.insert(loads, packed(b"SCRIPT", b"LOAD", found.text))
                loads += 1
            again = b"1" if call.sent else b"0"
            commands.append(packed(b"EVALSHA", found.digest, b"1", self._tag, now, again, *call.args))
        faults = library().exceptions
        unknown: list[_Call] = []
        for call in batch:
            call.sent = True
        async with asyncio.timeout(self.target.timeout):
            await connection.send_packed_command(b"".join(commands), check_health=False)
            for _ in range(loads):
                await connection.read_response(disable_decoding=True)
            for call in batch:
                try:
                    answer = await connection.read_response(disable_decoding=True)
                except faults.NoScriptError:
                    unknown.append(call)
                except faults.ResponseError as error:
                    if transient(error):
                        raise
                    self._fail(call, error)
                else:
                    self._answer(call, answer)
        for call in unknown:  # somebody has emptied the server's cache of scripts
            self._scripts.discard(call.name)
        self._queue[:0] = unknown

    def _answer(self, call: _Call, answer: Any) -> None:
        if not call.future.done():
            call.future.set_result(answer)
        elif call.undo is not None:
            self._start_undo(call.undo, answer)

    def _fail(self, call: _Call, error: Exception) -> None:
        if not call.future.done():
            call.future.set_exception(self._unavailable(error))

    def _start_undo(self, undo: Callable[[Any], Awaitable[Any]], answer: Any) -> None:
        async def run() -> None:
            with contextlib.suppress(FleetError):  # a claim that cannot be given back runs out by itself
                await undo(answer)

        task = asyncio.create_task(run(), name="flatfleet-undo")
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    # -- the connection ------------------------------------------------------------------------------------------------

    @property
    def _tag(self) -> bytes:
        return self.target.tag.encode()

    async def _open(self) -> Any:
        """Connect, look who answers, and end the connection before this one: nothing of it may be done any more."""
        connection = connect(self.target)
        try:
            async with asyncio.timeout(self.target.timeout):
                await connection.connect()
                number = await ask(connection, b"CLIENT", b"ID")
                if self._number:
                    with contextlib.suppress(library().exceptions.ResponseError):  # gone, or not permitted
                        await ask(connection, b"CLIENT", b"KILL", b"ID", b"%d" % self._number)
                about = dict(
                    line.split(":", 1) for line in (await ask(connection, b"INFO")).decode().split("\r\n") if ":" in line
                )
                self._check(about)
                await self._find(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection, self._number, self._scripts = connection, number, set()
        self._keeper = asyncio.create_task(_keep(connection), name="flatfleet-redis-connection")
        return connection

    def _check(self, about: dict[str, str]) -> None:
        version = about.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            raise StoreUnavailable(
                f"the store {self.target.shown} is on Redis {version}: 6.2 or later is needed; "
                "update the server, or name another store with --store"
            )
        warnings = []
        if about.get("aof_enabled") == "0":
            warnings.append("keeps no append-only file: what it holds may be lost when it ends (appendonly yes keeps it)")
        if about.get("maxmemory_policy", "noeviction") != "noeviction":
            warnings.append("may throw keys away when its memory is full (maxmemory-policy noeviction keeps them)")
        for warning in warnings:
            if warning not in _warned:
                _warned.add(warning)
                logger.warning("the Redis server %s %s; see docs/redis.md", self.target.place, warning)

    async def _find(self, connection: Any) -> None:
        """Find the store on the server, or begin it; it has to be the one that was used before."""
        new = b"" if self.must_exist or self._store else uuid.uuid4().hex.encode()
        found = await ask(connection, b"EVAL", script("open").text, b"1", self._tag, b"", b"0", new, SCHEMA)
        if not found and self._store:
            raise StoreUnavailable(
                f"the store {self.target.shown} is not on the server any more: it was deleted, or the server has restarted "
                "without what it held. Run the same command again to start from what is there"
            )
        if not found:
            raise StoreUnavailable(
                f"there is no store {self.target.shown}: run a launcher first, or name the right one with --store"
            )
        schema, store = found
        if schema != SCHEMA:
            raise StoreUnavailable(
                f"{self.target.shown} was made by another flatfleet (schema {schema.decode()}, this one has "
                f"{SCHEMA.decode()}); go on with that one, or name another with ?fleet="
            )
        if self._store and store != self._store:
            raise StoreUnavailable(
                f"the store {self.target.shown} was deleted or replaced while in use; what is in it now is not this run's. "
                "Run the same command again to start from what is there"
            )
        self._store = store

    async def _hang_up(self) -> None:
        keeper, self._keeper, self._connection = self._keeper, None, None
        if keeper is not None and keeper.get_loop() is asyncio.get_running_loop():
            keeper.cancel()
            await asyncio.wait([keeper])

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        if isinstance(error, StoreUnavailable):
            return error
        text = self.target.scrub(str(error)) or f"no answer within {self.target.timeout:g} s"
        return StoreUnavailable(f"the store {self.target.shown} cannot be used: {text}. {advice(text)}")


def connect(target: Target) -> Any:
    """A connection of the library's, not yet made."""
    kinds = library().asyncio.connection
    kind = kinds.UnixDomainSocketConnection if target.path else kinds.SSLConnection if target.tls else kinds.Connection
    return kind(retry=retry(), **target.arguments())


async def _keep(connection: Any) -> None:
    """Hold a connection until this task is cancelled, at the latest with the event loop."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        with contextlib.suppress(Exception):
            await connection.disconnect(nowait=True)


async def ask(connection: Any, *command: bytes) -> Any:
    await connection.send_packed_command(packed(*command), check_health=False)
    return await connection.read_response(disable_decoding=True)


def packed(*words: bytes) -> bytes:
    """A command as it goes over the wire."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts += (b"$%d\r\n" % len(word), word, b"\r\n")
    return b"".join(parts)


def encoded(value: Any) -> bytes:
    """An argument of a script; None is an empty one. Lone surrogates survive."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return b"" if value is None else repr(value).encode()
