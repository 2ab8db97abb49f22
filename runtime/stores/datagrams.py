"""The unix datagram sockets of one directory: one to hear with, sends that never block, and nothing left of the dead."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

Topics = set[str] | None
"""What was rung; None says that it may have been anything."""

LARGEST = 1000
"""Bytes of a message; what is longer says that anything may have been rung."""
BATCH = 32
"""Messages from one socket: what its receivers have not read yet counts against its buffer, so no more share one."""
READS = 1000
"""Messages read at one go."""


class Ear:
    """A bound datagram socket `{store}.{pid}.{random}`; its file goes with it, and at the latest with the process."""

    def __init__(self, place: Path, store: str) -> None:
        """Raises OSError where there can be no such socket."""
        self.pid = os.getpid()
        self.path = place / f"{store}.{self.pid}.{uuid.uuid4().hex[:8]}"
        self.room = _room()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.socket.setblocking(False)
            unborn = place / f"new-{self.path.name}"
            self.socket.bind(str(unborn))
            unborn.rename(self.path)  # whoever sees a name can already reach its socket
        except BaseException:
            self.socket.close()
            raise
        self.close = weakref.finalize(self, _remove, self.socket, self.path, self.pid)

    def read(self) -> Topics:
        """What was rung since the last read. A queue that was full may have refused something."""
        topics: Topics = set()
        for count in range(READS):
            try:
                told = _decode(self.socket.recv(LARGEST + 1))
            except BlockingIOError:
                return topics if count <= self.room else None
            topics = None if told is None or topics is None else topics | told
        return None

    def lives(self) -> bool:
        return self.pid == os.getpid() and self.path.exists()


def _encode(topics: Topics) -> bytes:
    data = json.dumps(None if topics is None else sorted(topics)).encode()
    return data if len(data) <= LARGEST else b"null"


def _decode(data: bytes) -> Topics:
    """The topics of a message; None if it says so, or is no message of ours."""
    try:
        return set(map(str, json.loads(data) or [])) or None
    except (ValueError, TypeError, RecursionError):
        return None


def names(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return [entry.name for entry in entries]


def send(place: Path, others: Sequence[str], topics: Topics) -> None:
    """Tell each of these sockets, without waiting: one that is full is left out, one without a process is removed."""
    data = _encode(topics)
    for start in range(0, len(others), BATCH):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.setblocking(False)
            for name in others[start : start + BATCH]:
                _reach(f"{place}/{name}", partial(mouth.sendto, data))


def sweep(place: Path) -> None:
    """Remove what dead processes left here, whichever store they used."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
        mouth.setblocking(False)
        for name in names(place):
            _reach(f"{place}/{name}", mouth.connect)


def _reach(path: str, act: Callable[[str], object]) -> None:
    try:
        act(path)
    except ConnectionRefusedError:  # no process has this socket any more, and none will: names are used once
        with contextlib.suppress(OSError):
            Path(path).unlink()
    except OSError:
        pass


def _remove(ear: socket.socket, path: Path, pid: int) -> None:
    ear.close()
    if pid == os.getpid():
        with contextlib.suppress(OSError):
            path.unlink()


def _room() -> int:
    """Messages that a queue surely holds."""
    try:
        return int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    except (OSError, ValueError):
        return 1
