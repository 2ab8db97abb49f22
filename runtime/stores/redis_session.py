"""A connection to a Redis server: made, checked, and held until it is closed or its event loop ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime.errors import StoreGone, StoreUnavailable
from flatfleet.runtime.stores.redis_faults import library, retry
from flatfleet.runtime.stores.redis_scripts import script
from flatfleet.runtime.stores.redis_url import Target

logger = logging.getLogger(__name__)

SCHEMA = b"1"
OLDEST = (6, 2)
_warned: set[tuple[str, str]] = set()


@dataclass(slots=True, eq=False)
class Session:
    """A connection to a store that is there. `number` is the server's for it, `store` the id of what it found.

    `scripts` are the names of those that the server has by now.
    """

    connection: Any
    tag: bytes
    number: int
    store: bytes
    keeper: asyncio.Task[None]
    scripts: set[str] = field(default_factory=set)

    @classmethod
    async def open(cls, target: Target, before: int, store: bytes, must_exist: bool) -> Session:
        """Connect, look who answers, and end the connection number `before`: nothing of it may be done any more.

        `store` is what was found before, if anything; without, a store is begun unless it `must_exist`.
        """
        connection, tag = connect(target), target.tag.encode()
        try:
            async with asyncio.timeout(target.timeout):
                await connection.connect()
                number = await ask(connection, b"CLIENT", b"ID")
                if before:
                    with contextlib.suppress(library().exceptions.ResponseError):  # gone, or not permitted
                        await ask(connection, b"CLIENT", b"KILL", b"ID", b"%d" % before)
                told = (await ask(connection, b"INFO")).decode().split("\r\n")
                about = dict(line.split(":", 1) for line in told if ":" in line)
                check(target, about)
                if not must_exist:
                    warn(target, about)
                new = b"" if must_exist or store else uuid.uuid4().hex.encode()
                found = await ask(connection, b"EVAL", script("open").text, b"1", tag, b"", b"0", new, SCHEMA)
                identify(target, found, store)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        keeper = asyncio.create_task(_keep(connection), name="flatfleet-redis-connection")
        return cls(connection, tag, number, found[1], keeper)

    async def close(self) -> None:
        """Close the connection; one of an event loop that has ended is closed already."""
        if self.keeper.get_loop() is asyncio.get_running_loop():
            self.keeper.cancel()
            await asyncio.wait([self.keeper])


async def _keep(connection: Any) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        with contextlib.suppress(Exception):
            await connection.disconnect(nowait=True)


def check(target: Target, about: Mapping[str, str]) -> None:
    """Refuse a server that is too old."""
    version = about.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise StoreUnavailable(
            f"the store {target.shown} is on Redis {version}: 6.2 or later is needed; "
            "update the server, or name another store with --store"
        )


def warn(target: Target, about: Mapping[str, str]) -> None:
    """Warn, once a process, of a server that may lose what it holds."""
    warnings = []
    if about.get("aof_enabled") == "0":
        warnings.append("keeps no append-only file: what it holds may be lost when it ends (appendonly yes keeps it)")
    if about.get("maxmemory_policy", "noeviction") != "noeviction":
        warnings.append("may throw keys away when its memory is full (maxmemory-policy noeviction keeps them)")
    for warning in warnings:
        if (target.place, warning) not in _warned:
            _warned.add((target.place, warning))
            logger.warning("the Redis server %s %s; see docs/redis.md", target.place, warning)


def identify(target: Target, found: Any, before: bytes) -> None:
    """Refuse a store that is not there, of another schema, or not the one that was found `before`."""
    if not found and not before:
        raise StoreUnavailable(
            f"there is no store {target.shown}: run a launcher first, or name the right one with --store"
        )
    if not found or (before and found[1] != before):
        raise StoreGone(
            f"the store {target.shown} is not on the server any more: it was deleted or replaced while in use, or the server "
            "has restarted without what it held. Run the same command again to start from what is there"
        )
    if found[0] != SCHEMA:
        raise StoreUnavailable(
            f"{target.shown} was made by another flatfleet (schema {found[0].decode()}, this one has {SCHEMA.decode()}); "
            "go on with that one, or name another with ?fleet="
        )


def connect(target: Target) -> Any:
    """A connection of the library's, not yet made."""
    kinds = library().asyncio.connection
    kind = kinds.UnixDomainSocketConnection if target.path else kinds.SSLConnection if target.tls else kinds.Connection
    return kind(retry=retry(), **target.arguments())


async def ask(connection: Any, *command: bytes) -> Any:
    await connection.send_packed_command(packed(*command), check_health=False)
    return await connection.read_response(disable_decoding=True)


def packed(*words: bytes) -> bytes:
    """A command as it goes over the wire."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


def encoded(value: Any) -> bytes:
    """An argument of a script; None is an empty one. Lone surrogates survive."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    return b"" if value is None else repr(value).encode()
