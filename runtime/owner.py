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


def this_process() -> str:
    """`{machine}/{pid}/{start time}`: no other process, past or future, has the same."""
    pid = os.getpid()
    return f"{machine()}/{pid}/{_started(pid)}"


def is_dead(owner: str) -> bool:
    """True if `owner` is a process of this machine that has ended; False where that cannot be known from here."""
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
