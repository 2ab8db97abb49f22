"""Where Ray clusters are: which addresses answer, and what has been started on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flatfleet.runtime.errors import StoreUnavailable

KNOCK = 3.0
"""Seconds within which a cluster's address has to accept a connection."""
GREET = 5.0
"""Seconds within which a server there has to say that it speaks HTTP/2, as Ray's does at once."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 says first: the words for that, and a frame of settings that is empty."""
SETTINGS_FRAME = 4
_silent: set[str] = set()
"""Addresses that have not said a word in that time; this process does not wait for them again."""


def state_dir() -> Path:
    """Where this user's programs keep what outlives them: $XDG_STATE_HOME, else ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "flatfleet" / "ray"


def knock(address: str) -> None:
    """Raise StoreUnavailable unless somebody listens there: Ray itself would try for a minute, and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK):
            return
    except (OSError, ValueError) as error:
        raise StoreUnavailable(
            f"no Ray cluster answers at {address}: {error}. Start one there (ray start --head), or name another; "
            "without an address a local one is used"
        ) from error


def greet(address: str) -> None:
    """Raise StoreUnavailable if what listens there is no Ray: Ray itself would wait for 40 s, deaf to signals."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    host, _, port = address.rpartition(":")
    heard = b""
    try:
        if address in _silent:
            raise TimeoutError
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK) as there:
            there.settimeout(GREET)
            there.sendall(PREFACE)
            while len(heard) < 4 and (more := there.recv(64)):
                heard += more
    except TimeoutError:
        _silent.add(address)
        heard = b""
    except OSError:
        heard = heard[:3]
    if len(heard) < 4 or heard[3] != SETTINGS_FRAME:
        said = f" (it says {heard[:40]!r})" if heard else ""
        raise StoreUnavailable(
            f"what listens at {address} is no Ray cluster{said}: name the port of Ray's head node, 6379 unless it was "
            "started with another, and of another program's server its own kind of URL"
        )


def same(one: str, other: str) -> bool:
    if one == other:
        return True
    hosts, ports = zip(*(each.rpartition(":")[::2] for each in (one, other)), strict=True)
    if ports[0] != ports[1]:
        return False
    with contextlib.suppress(OSError):
        found = [{info[4][0] for info in socket.getaddrinfo(host.strip("[]"), None)} for host in hosts]
        return bool(found[0] & found[1]) or any(each.startswith("127.") for each in map(str, found[0]))
    return False


def started_by_ray() -> str | None:
    """The address that `ray start` has left, if its cluster still answers."""
    try:
        address = (Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster").read_text().strip()
        knock(address)
    except (OSError, StoreUnavailable):
        return None
    return address


@contextlib.contextmanager
def recorded(record: bool) -> Iterator[str | None]:
    """The address of a cluster that another process of this user has started, if it lives; else one is started inside.

    That one is noted for others. Two processes that start at once get one cluster.
    """
    if not record and not (state_dir() / "cluster").exists():
        yield None
        return
    try:
        state_dir().mkdir(parents=True, exist_ok=True)
        file = (state_dir() / "cluster").open("a+", encoding="utf-8")
    except OSError:  # a user without a home: others will not find it, and nothing else
        yield None
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            ours = file.read().strip() or None
            if ours:
                knock(ours)
        except (ValueError, StoreUnavailable):
            ours = None
        yield ours
        if ours is None and record:
            import ray

            file.truncate(0)
            file.write(str(ray.get_runtime_context().gcs_address))
