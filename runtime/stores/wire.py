"""Waking the other processes of this host that use the same store: a hint by datagram; who hears nothing polls."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flatfleet.runtime.stores.datagrams import Ear, Topics, names, send, sweep

logger = logging.getLogger(__name__)

PAUSE = 0.005
"""Seconds between two sends of a process: what is announced meanwhile goes together."""
CHECK = 5.0
"""Seconds between two looks whether this process's socket is still there."""
TOPICS = 1000
"""Topics that are kept till the next send; more of them are sent as "anything"."""


def places() -> list[Path]:
    """Where the sockets may be, best first: the same for every process of this user, whatever its environment says."""
    if not hasattr(socket, "AF_UNIX"):
        return []
    return [Path(f"/tmp/flatfleet-{os.geteuid()}"), Path(f"/run/user/{os.geteuid()}/flatfleet")]


class HostWire:
    """One process's end of the wire within a host and a user. `file` names the store: every path to it leads to the same wire.

    Sending needs no socket of one's own, never blocks and never fails: a receiver that is gone is removed, one that is
    full will look at everything once it reads. A directory that others could write in is not used.
    """

    def __init__(self, file: Path, dirs: Sequence[Path] | None = None) -> None:
        self._store = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:16]
        self._dirs = places() if dirs is None else dirs
        self._hear: Callable[[Topics], None] = lambda topics: None
        self._ear: Ear | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._check: asyncio.TimerHandle | None = None
        self._topics: Topics = set()
        self._due: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None
        self._next = 0.0
        self._warned = False

    # -- hearing -------------------------------------------------------------------------------------------------------

    def open(self, hear: Callable[[Topics], None]) -> None:
        """Hear on the running loop what other processes announce; without a loop, or if it hears already, do nothing."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._loop is loop:
            return
        self._leave()
        self._hear, self._loop = hear, loop
        self._look(loop)

    @property
    def hears(self) -> bool:
        return self._ear is not None

    async def close(self) -> None:
        """Send what is still to be sent and remove the socket; `open` opens it again."""
        if self._topics is None or self._topics:
            self._flush()
        self._leave()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a socket: at first, and again where somebody removed it."""
        self._check = loop.call_later(CHECK, self._look, loop)
        with contextlib.suppress(OSError):
            if self._ear is not None and self._ear.lives():
                return
            self._hang_up(loop)
            place = self._place(make=True)
            if place is not None:
                sweep(place)
                self._ear = Ear(place, self._store)
                loop.add_reader(self._ear.socket.fileno(), self._heard, self._ear)

    def _heard(self, ear: Ear) -> None:
        if ear.pid == os.getpid():
            self._hear(ear.read())

    def _leave(self) -> None:
        if self._check is not None:
            self._check.cancel()
        if self._loop is not None:
            self._hang_up(self._loop)
        self._loop = self._check = None

    def _hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._ear is not None:
            fd = self._ear.socket.fileno()  # -1 at the end of the process, when sockets are closed first
            if fd >= 0 and self._ear.pid == os.getpid():  # a forked child shares its parent's selector
                loop.remove_reader(fd)
            self._ear.close()
        self._ear = None

    # -- telling -------------------------------------------------------------------------------------------------------

    def announce(self, topics: Iterable[str]) -> None:
        """Tell the others: at once, or with all else that is announced within PAUSE of the last send."""
        if self._topics is not None:
            self._topics.update(topics)
            if len(self._topics) > TOPICS:
                self._topics = None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._flush()
            return
        if self._due is None or self._due[0] is not loop:
            self._due = (loop, loop.call_later(max(0.0, self._next - time.monotonic()), self._flush))

    def _flush(self) -> None:
        if self._due is not None:
            self._due[1].cancel()
        topics, self._topics, self._due = self._topics, set(), None
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            place = self._place(make=False)
            if place is not None:
                own = self._ear.path.name if self._ear is not None and self._ear.pid == os.getpid() else ""
                others = [name for name in names(place) if name.startswith(self._store) and name != own]
                send(place, others, topics)
        ended = time.monotonic()
        self._next = ended + max(PAUSE, 10 * (ended - begun))  # hundreds of processes: never busy with telling alone

    def _place(self, *, make: bool) -> Path | None:
        """The first directory that is this user's own, and nobody else's; `make` makes it."""
        for place in self._dirs:
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        place.mkdir(0o700)
                found = place.lstat()
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
                return place
            if not self._warned:
                logger.warning("%s is not this user's own directory: it is not used to wake other processes", place)
                self._warned = True
        return None
