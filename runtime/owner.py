"""Who holds a lease: the identity of a process, and whether a process of this machine is still alive."""

from __future__ import annotations

import functools
import os
import socket
import uuid
from pathlib import Path

_PROC = Path("/proc")


@functools.cache
def machine() -> str:
    """This machine's identity: host name, boot, and pid name space (two containers may share a host name)."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
        space = (_PROC / "self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:
        boot, space = f"{uuid.getnode():x}", "0"
    return f"{socket.gethostname()}~{boot}~{space}"


_above: dict[int, str] = {}
"""By process: the owner of the one that it ends with, where it works for another."""


def works_for(owner: str) -> None:
    """This process ends when that one does, and counts as dead from then on, however long its end takes."""
    _above[os.getpid()] = owner


def this_process() -> str:
    """`{machine}/{pid}/{start time}`: no other process, past or future, has the same. Behind `|`, who it works for."""
    pid = os.getpid()
    own = f"{machine()}/{pid}/{_started(pid)}"
    return f"{own}|{_above[pid]}" if pid in _above else own


def place_of(owner: str) -> tuple[str, int | None]:
    """The host name in an owner, and the process id, if it is one of ours."""
    place, _, pid = owner.partition("|")[0].rpartition("/")[0].rpartition("/")
    return (place or owner).partition("~")[0], int(pid) if pid.isdigit() else None


def is_dead(owner: str) -> bool:
    """True if `owner`, or who it works for, is a process of this machine that has ended.

    False where that cannot be known from here.
    """
    return any(map(_ended, owner.split("|")))


def _ended(owner: str) -> bool:
    place, _, rest = owner.rpartition("/")
    place, _, pid = place.rpartition("/")
    return place == machine() and pid.isdigit() and _started(int(pid)) != rest


def _started(pid: int) -> str:
    """The process's start time in clock ticks since boot; '' if there is no such process (a zombie counts as none)."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        pass
    if _PROC.is_dir():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "0"
    return "0"
