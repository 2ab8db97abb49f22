"""Hosts that are processes of this machine: each re-enters our own run.py and takes its orders over a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flatfleet.runtime.engines import frames
from flatfleet.runtime.engines.hosts import STOPPING, Event, Host, Order, Setup, ended, heard
from flatfleet.runtime.engines.making import KEPT
from flatfleet.runtime.engines.outlet import Outlet
from flatfleet.runtime.engines.spec import EngineSpec
from flatfleet.runtime.errors import EngineError, HostDied
from flatfleet.runtime.fleet import Fleet

RUN = Path(__file__).parents[2] / "run.py"
STARTING = 60.0
"""Seconds that a process has to come up."""
LAST_WORDS = 0.5
"""Seconds for what a process that has ended has still in its pipes."""
LOOK = 0.05
KILLED = (-signal.SIGKILL, -signal.SIGTERM)
"""Return codes of a process that did not end by what it did."""


def hosts(spec: EngineSpec, setup: Setup, fleet: Fleet) -> Callable[[str], Host]:
    """How to make a host: `make(id)`. It finds the modules that this process finds, and offers what that offers."""
    here = replace(setup, path=tuple(folder for folder in sys.path if folder))
    return lambda name: ProcessHost(name, here)


class ProcessHost:
    """A process in a session of its own, so that a terminal's Ctrl-C does not reach it, that ends with this one.

    Its standard error appears here, each line behind its id; its standard output is this process's.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self.id = name
        self.owner: str | None = None
        self.on_event: Callable[[Event], None] = lambda event: None
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._life: asyncio.Task[None] | None = None
        self._hello: asyncio.Future[str] | None = None
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._pings: list[asyncio.Future[bool]] = []
        self._bundles: OrderedDict[str, None] = OrderedDict()
        self._outlet = Outlet(name)
        self._handed_back = 0
        self._over = False

    # -- its life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._hello = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(self._spawn()), name=f"flatfleet-{self.id}")
        try:
            async with asyncio.timeout(STARTING):
                self.owner = await self._hello
        except BaseException as error:
            self._hello.cancel()
            self.on_event = lambda event: None
            self.kill()
            await asyncio.wait([self._life])
            if isinstance(error, TimeoutError):
                raise EngineError(f"{self.id} did not come up within {STARTING:g} s{self._outlet.last()}") from None
            raise
        self._outlet.flow()

    def _spawn(self) -> socket.socket:
        """Start the process; return our end of the socket pair."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, str(RUN), "host", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stderr=self._outlet.open(),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                self._outlet.close()
                raise EngineError(f"{self.id} could not be started: {error}") from error
            finally:
                self._outlet.opened()
        return ours

    async def _live(self, ours: socket.socket) -> None:
        """Hear the process until it has ended, and leave nothing of it."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            self._send({"setup": asdict(self._setup)})
            exited, hearing = asyncio.create_task(self._exit()), asyncio.create_task(self._hear(reader))
            await asyncio.wait([exited, hearing], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([hearing], timeout=LAST_WORDS)  # what it has sent before its end
            hearing.cancel()
            await asyncio.wait([exited], timeout=STOPPING)
            self.kill()
            await asyncio.wait([exited, hearing])
        except asyncio.CancelledError:  # nobody has stopped it, and the event loop ends
            self._abandon(ours)
            raise
        finally:
            self._over = True
            if self._writer is not None:
                self._writer.close()
            self._outlet.close()
        self._ended()

    def _ended(self) -> None:
        """Tell all who wait for it."""
        assert self._hello is not None and self._process is not None
        reason, killed = ended(self._process.returncode), self._process.returncode in KILLED
        if not self._hello.done():
            kind = HostDied if killed else EngineError
            self._hello.set_exception(kind(f"{self.id} did not start ({reason}){self._outlet.last()}"))
            return
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(HostDied(f"{self.id} has ended ({reason})"))
        for ping in self._pings:
            if not ping.done():
                ping.set_result(False)
        self.on_event(Event("died", reason=reason, killed=killed))

    def _abandon(self, ours: socket.socket) -> None:
        """Let the process see that nobody is there any more, and wait for its end."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    async def _exit(self) -> None:
        """Wait until the process has ended, and let nothing of it be left in the process table."""
        assert self._process is not None
        with contextlib.suppress(OSError, AttributeError):  # an old kernel, or none of Linux
            watch, gone = os.pidfd_open(self._process.pid), asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(watch, gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(watch)
                os.close(watch)
        while self._process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(LOOK)

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while (message := await frames.read(reader)) is not None:
            self._heard(message)

    def _heard(self, message: Mapping[str, Any]) -> None:
        kind, name = message["kind"], message.get("id", "")
        error = heard(message["error"]) if message.get("error") else None
        if kind == "hello" and self._hello is not None and not self._hello.done():
            self._hello.set_result(message["owner"])
        elif kind == "pong":
            for ping in self._pings:
                if not ping.done():
                    ping.set_result(True)
        elif kind in ("accepted", "refused"):
            asked = self._asked.pop(name, None)
            if asked is not None and not asked.done():
                asked.set_result(None) if error is None else asked.set_exception(error)
        elif kind == "bye":
            self._handed_back = message["handed_back"]
        elif kind in ("began", "ended", "named", "leaving"):
            about = {key: message[key] for key in ("cancelled", "seconds") if key in message}
            self.on_event(Event(kind, name, error, **about))

    # -- what it is told -----------------------------------------------------------------------------------------------

    async def launch(self, order: Order) -> None:
        if self._over or self._writer is None:
            raise HostDied(f"{self.id} has ended")
        digest = order.bundle.hash
        try:
            packed = frames.pack({"kind": "order", "id": order.machine_id, "order": order.data()})
            config = (
                b""
                if digest in self._bundles
                else frames.pack({"kind": "bundle", "raw": order.bundle.raw, "id": digest})
            )
        except (TypeError, ValueError) as error:
            raise EngineError(f"{order.machine_id} cannot be sent to another process: {error}") from error
        self._bundles[digest] = None
        self._bundles.move_to_end(digest)
        if len(self._bundles) > KEPT:
            self._send({"kind": "forget", "id": self._bundles.popitem(last=False)[0]})
        answer = self._asked[order.machine_id] = asyncio.get_running_loop().create_future()
        self._writer.write(config + packed)
        await answer

    def drain(self) -> None:
        self._send({"kind": "drain"})

    async def stop(self, seconds: float) -> int:
        self._send({"kind": "stop", "seconds": seconds})
        if self._life is not None:
            await asyncio.wait([self._life], timeout=seconds + STOPPING)
            self.kill()
            await asyncio.wait([self._life])
        return self._handed_back

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    async def ping(self) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pings.append(answer)
        self._send({"kind": "ping"})
        try:
            return await answer
        finally:
            self._pings.remove(answer)

    def about(self) -> Mapping[str, Any]:
        return {"pid": self._process.pid if self._process is not None else None}

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._over and not self._writer.is_closing():
            self._writer.write(frames.pack(message))
