"""The connection to a Redis server: whatever is pending goes together, is tried again, and is answered once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime.errors import FleetError, StoreUnavailable
from flatfleet.runtime.stores.redis_faults import advice, gone, known, library, loading, transient, words
from flatfleet.runtime.stores.redis_scripts import script
from flatfleet.runtime.stores.redis_session import Session, encoded, identify, packed
from flatfleet.runtime.stores.redis_url import Target

logger = logging.getLogger(__name__)

MOST_CALLS, MOST_BYTES = 1000, 4_000_000
"""Calls that are under way at most, and bytes from which on no call is sent with others."""
AT_ONCE = 16
"""Calls that are sent together."""
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

    @property
    def wanted(self) -> bool:
        """False for what nobody waits for, and nobody has to undo."""
        return not self.future.done() or (self.future.cancelled() and self.sent and self.undo is not None)


@dataclass
class Link:
    """One connection to one store. `call(script, *args)` runs a script; what comes while others are under way goes next.

    A connection that breaks, a server that restarts, is busy or takes no writes for a while: operations wait and are sent
    again, with a flag where they may have been done already, and fail after `patience` seconds. What cannot pass by itself
    fails at once, and so does all as long as the server has never been reached; one that was silent then is not waited for
    again in that time.
    """

    target: Target
    clock: Callable[[], float] | None = None
    must_exist: bool = False
    _queue: list[_Call] = field(default_factory=list)
    _flight: deque[_Call | None] = field(default_factory=deque)
    """What was sent and is not answered yet; None for a script that is loaded."""
    _pump: asyncio.Task[None] | None = None
    _sender: asyncio.Task[None] | None = None
    _more: bool = False
    _loop: asyncio.AbstractEventLoop | None = None
    _session: Session | None = None
    _number: int = 0
    _store: bytes = b""
    _silent: tuple[float, str] = (0.0, "")
    """Until when a server that has never answered is not asked again, and what was said of it."""
    _undoing: set[asyncio.Task[Any]] = field(default_factory=set)

    async def call(self, name: str, *args: Any, undo: Callable[[Any], Awaitable[Any]] | None = None) -> Any:
        """Run the script `name` and return its answer; `PUBLISH` is that command.

        If the caller is cancelled the operation is dropped if it was not sent; if it is done, `undo(answer)` runs.
        """
        if time.monotonic() < self._silent[0]:
            raise StoreUnavailable(self._silent[1])
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.append(_Call(name, [encoded(arg) for arg in args], future, time.monotonic(), undo))
        if self._pump is None or self._pump.done() or self._loop is not loop:
            if self._loop is not loop:
                self._loop, self._session, self._more = loop, None, False
            self._pump = loop.create_task(self._run(), name="flatfleet-redis")
        elif self._flight and not self._more:
            self._more = True
            loop.call_soon(self._start_sending)
        try:
            return await future
        except asyncio.CancelledError:
            if undo is not None and future.done() and not future.cancelled() and future.exception() is None:
                self._start_undo(undo, future.result())
            raise

    async def close(self) -> None:
        """Finish what is queued, and close the connection; the next call opens another."""
        while self._pump is not None and not self._pump.done() and self._loop is asyncio.get_running_loop():
            await asyncio.wait([self._pump])
        if self._undoing:
            await asyncio.gather(*self._undoing, return_exceptions=True)
            await self.close()
        await self._hang_up()

    # -- sending and answering -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = SOONEST
        while self._queue or self._flight:
            try:
                session = self._session or await self._open()
                await self._send(session)
                await self._receive(session)
                pause = SOONEST
            except Exception as error:
                await self._hang_up()
                self._take_back(error)
                if self._queue:
                    logger.debug("%s; it is tried again", self.target.scrub(str(error)))
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(LATEST, 2 * pause)

    def _take_back(self, error: Exception) -> None:
        """Queue again what is not answered yet, but for what has waited too long, or all if the fault will not pass."""
        fault = self._unavailable(error) if known(error) else error
        if isinstance(error, TimeoutError) and not self._store:
            self._silent = (time.monotonic() + self.target.patience, str(fault))
        left = [*filter(None, self._flight), *self._queue]
        self._flight.clear()
        hopeless = not transient(error) or not (self._store or loading(error))
        latest = time.monotonic() - self.target.patience
        for call in left:
            if (hopeless or call.born < latest) and not call.future.done():
                call.future.set_exception(fault)
        self._queue = [call for call in left if call.wanted and not hopeless and call.born >= latest]

    def _start_sending(self) -> None:
        """Send what has come while others are under way: their answers need not be waited for."""
        self._more = False
        if self._session is not None and self._flight and self._queue and (self._sender is None or self._sender.done()):
            self._sender = asyncio.create_task(self._send_more(self._session), name="flatfleet-redis-sends")

    async def _send_more(self, session: Session) -> None:
        try:
            await self._send(session)
        except Exception as error:  # whoever waits for the answers finds the connection closed
            logger.debug("the connection breaks: %s", self.target.scrub(str(error)))
            await session.close()

    async def _send(self, session: Session) -> None:
        """Send what is queued, some calls at a time: the server works on the first while the next are made."""
        while self._queue and len(self._flight) < MOST_CALLS:
            commands: list[bytes] = []
            now = b"" if self.clock is None else repr(self.clock()).encode()
            for call in self._batch():
                if call.name == "PUBLISH":
                    commands.append(packed(b"PUBLISH", *call.args))
                else:
                    found = script(call.name)
                    if call.name not in session.scripts:
                        session.scripts.add(call.name)
                        commands.append(packed(b"SCRIPT", b"LOAD", found.text))
                        self._flight.append(None)
                    again = (b"1" if call.sent else b"0") + session.store
                    commands.append(packed(b"EVALSHA", found.digest, b"1", session.tag, now, again, *call.args))
                call.sent = True
                self._flight.append(call)
            if not session.connection.is_connected:
                raise ConnectionResetError("the connection is closed")
            if commands:
                async with asyncio.timeout(self.target.timeout):
                    await session.connection.send_packed_command(b"".join(commands), check_health=False)

    def _batch(self) -> list[_Call]:
        """The calls that go next; those that were cancelled before they were sent go nowhere."""
        batch: list[_Call] = []
        size = taken = 0
        for call in self._queue:
            if len(batch) == AT_ONCE or size > MOST_BYTES:
                break
            taken += 1
            if call.wanted:
                batch.append(call)
                size += sum(map(len, call.args))
        del self._queue[:taken]
        return batch

    async def _receive(self, session: Session) -> None:
        """Answer all that was sent, in its order."""
        loop, faults = asyncio.get_running_loop(), library().exceptions
        async with asyncio.timeout(self.target.timeout) as limit:
            heard = loop.time()
            while self._flight:
                call, answer = self._flight[0], None
                try:
                    answer = await session.connection.read_response(disable_decoding=True)
                except faults.NoScriptError:  # somebody has emptied the server's cache of scripts
                    if call is not None:
                        session.scripts.discard(call.name)
                        self._queue.insert(0, call)
                except faults.ResponseError as error:
                    if gone(error):
                        identify(self.target, None, session.store)
                    if call is None or transient(error):
                        raise
                    if not call.future.done():
                        call.future.set_exception(self._unavailable(error))
                else:
                    if call is not None:
                        self._answer(call, answer)
                self._flight.popleft()
                if loop.time() - heard > self.target.timeout / 10:
                    heard = loop.time()
                    limit.reschedule(heard + self.target.timeout)

    def _answer(self, call: _Call, answer: Any) -> None:
        if not call.future.done():
            call.future.set_result(answer)
        elif call.undo is not None:
            self._start_undo(call.undo, answer)

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
        over = " over TLS" if self.target.tls and not self._store else ""
        text = self.target.scrub(words(error)) or f"no answer within {self.target.timeout:g} s{over}"
        return StoreUnavailable(f"the store {self.target.shown} cannot be used: {text}. {advice(text)}")
