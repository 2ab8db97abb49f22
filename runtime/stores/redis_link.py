"""The connection to a Redis server: whatever is pending goes together, is tried again, and is answered once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime.errors import FleetError, StoreUnavailable
from flatfleet.runtime.stores.redis_faults import advice, known, library, loading, transient
from flatfleet.runtime.stores.redis_scripts import script
from flatfleet.runtime.stores.redis_session import Session, encoded, packed
from flatfleet.runtime.stores.redis_url import Target

logger = logging.getLogger(__name__)

MOST_CALLS, MOST_BYTES = 500, 4_000_000
"""Calls and bytes that are sent at most before their answers are read."""
SOONEST, LATEST = 0.02, 1.0
"""Seconds between two tries to reach a server that is away."""


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
    _session: Session | None = None
    _number: int = 0
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
                self._loop, self._session = loop, None
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
        batch: list[_Call] = []
        size = taken = 0
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
        session = self._session or await self._open()
        now = b"" if self.clock is None else repr(self.clock()).encode()
        commands: list[bytes] = []
        loads = 0
        for call in batch:
            if call.name == "PUBLISH":
                commands.append(packed(b"PUBLISH", *call.args))
                continue
            found = script(call.name)
            if call.name not in session.scripts:
                session.scripts.add(call.name)
                commands.insert(loads, packed(b"SCRIPT", b"LOAD", found.text))
                loads += 1
            again = b"1" if call.sent else b"0"
            commands.append(packed(b"EVALSHA", found.digest, b"1", session.tag, now, again, *call.args))
        faults = library().exceptions
        unknown: list[_Call] = []
        for call in batch:
            call.sent = True
        async with asyncio.timeout(self.target.timeout):
            await session.connection.send_packed_command(b"".join(commands), check_health=False)
            for _ in range(loads):
                await session.connection.read_response(disable_decoding=True)
            for call in batch:
                try:
                    answer = await session.connection.read_response(disable_decoding=True)
                except faults.NoScriptError:
                    unknown.append(call)
                except faults.ResponseError as error:
                    if transient(error):
                        raise
                    self._fail(call, error)
                else:
                    self._answer(call, answer)
        for call in unknown:  # somebody has emptied the server's cache of scripts
            session.scripts.discard(call.name)
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

    # -- the session ---------------------------------------------------------------------------------------------------

    async def _open(self) -> Session:
        self._session = await Session.open(self.target, self._number, self._store, self.must_exist)
        self._number, self._store = self._session.number, self._session.store
        return self._session

    async def _hang_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        if isinstance(error, StoreUnavailable):
            return error
        text = self.target.scrub(str(error)) or f"no answer within {self.target.timeout:g} s"
        return StoreUnavailable(f"the store {self.target.shown} cannot be used: {text}. {advice(text)}")
