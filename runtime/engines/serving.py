"""The inside of a process host: two threads talk to its parent, so that it answers also while a state blocks its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any

from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.engines import frames
from flatfleet.runtime.engines.hosting import Hosting, compose
from flatfleet.runtime.engines.hosts import STOPPING, Event, Order, Setup, told
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.owner import works_for

NOBODY = "a host is started by a process with --engine process, and by nobody else"
PARENT_DIED = signal.SIGUSR2
ORPHANED, HANDOVER = 3.0, 10.0
"""Seconds for the event loop to hand back once the parent has gone, and then for a thread; after that the process ends."""


class Server:
    """Serves the parent behind a file descriptor until that says stop, is gone, or the process is told to go."""

    def __init__(self, fd: int) -> None:
        try:
            os.set_inheritable(fd, False)
            self._socket = socket.socket(fileno=fd)
        except OSError:
            raise UsageError(NOBODY) from None
        first = frames.receive(self._socket)
        if first is None:
            raise UsageError(NOBODY)
        about = first["setup"]
        self.setup = Setup(**{**about, "capabilities": tuple(about["capabilities"]), "path": tuple(about["path"])})
        works_for(self.setup.launcher)
        self._hosting = Hosting(compose(self.setup), self._tell)
        self._bundles: dict[str, Bundle] = {}
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._orphan = threading.Lock()
        self._grace = self.setup.grace
        self._end: asyncio.Future[float] | None = None
        self._ending: asyncio.Task[int] | None = None

    async def run(self) -> int:
        """Serve; return the exit code."""
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.create_future()
        signal.signal(PARENT_DIED, lambda *_: self._orphaned())
        die_with_parent()
        writer = threading.Thread(target=self._write, name="flatfleet-tells", daemon=True)
        writer.start()
        threading.Thread(target=self._read, name="flatfleet-hears", daemon=True).start()
        self._say({"kind": "hello", "owner": self._hosting.owner})
        try:
            n = await self._hosting.stop(await self._end)
            n += await self._ending if self._ending is not None else 0
        finally:
            await self._hosting.close()
        self._say({"kind": "bye", "handed_back": n})
        self._out.put(None)
        writer.join(STOPPING)
        return 0

    def leave(self) -> None:
        """Somebody else than the parent wants this process to go: drain within its grace; asked again: now."""
        seconds, self._grace = self._grace, 0.0
        self._say({"kind": "leaving", "seconds": seconds})
        self._stop(seconds)

    def hand_back(self) -> int:
        """Give back what is claimed, from any thread."""
        return self._hosting.hand_back()

    def _stop(self, seconds: float) -> None:
        assert self._end is not None
        if self._orphan.locked():
            self._hosting.abandon()
        if not self._end.done():
            self._end.set_result(seconds)
        elif self._ending is None:
            self._ending = asyncio.ensure_future(self._hosting.stop(seconds))

    # -- threads -------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        while (message := frames.receive(self._socket)) is not None:
            if message["kind"] == "ping":
                self._say({"kind": "pong"})
            else:
                self._loop.call_soon_threadsafe(self._take, message)
        self._orphaned()

    def _orphaned(self) -> None:
        """The parent has gone: hand back and end, once, however often that is told."""
        if not self._orphan.acquire(blocking=False):
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stop, 0.0)
            timer = threading.Timer(ORPHANED, self._leave_at_once)
            timer.daemon = True
            timer.start()

    def _leave_at_once(self) -> None:
        last = threading.Timer(HANDOVER, os._exit, (1,))
        last.daemon = True
        last.start()
        try:
            self._hosting.abandon()
            self.hand_back()
        finally:
            os._exit(1)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._out.get()) is not None:
                self._socket.sendall(data)

    # -- messages ------------------------------------------------------------------------------------------------------

    def _say(self, message: dict[str, Any]) -> None:
        self._out.put(frames.pack(message))

    def _tell(self, event: Event) -> None:
        error = None if event.error is None else told(event.error)
        self._say({"kind": event.kind, "id": event.id, "error": error, "cancelled": event.cancelled})

    def _take(self, message: dict[str, Any]) -> None:
        kind, name = message["kind"], message.get("id", "")
        if kind == "bundle":
            self._bundles[name] = Bundle.of(json.loads(message["raw"]))
        elif kind == "forget":
            self._bundles.pop(name, None)
        elif kind == "order":
            try:
                order = message["order"]
                self._hosting.launch(Order.of(order, self._bundles[order["bundle"]]))
            except Exception as error:
                self._say({"kind": "refused", "id": name, "error": told(error)})
            else:
                self._say({"kind": "accepted", "id": name})
        elif kind == "drain":
            self._hosting.drain()
        elif kind == "stop":
            self._stop(message["seconds"])


def die_with_parent() -> None:
    """Have the kernel send PARENT_DIED when the parent ends, where it can: the socket tells it, too, unless a fork holds that.

    It comes once for each thread of the parent that the others outlive, and so is no signal that counts.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(PARENT_DIED), 0, 0, 0)
