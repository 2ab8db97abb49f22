"""Stores: everything durable behind one URL."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, urlsplit

from flatfleet.runtime.errors import StoreUrlError, did_you_mean
from flatfleet.runtime.owner import this_process
from flatfleet.runtime.redact import shown
from flatfleet.runtime.stores import redis_url
from flatfleet.runtime.stores.bell import Wire
from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.records import LEASE
from flatfleet.runtime.stores.store import Store

SCHEMES = ("memory", "sqlite", "redis", "rediss", "unix", "ray")
DEFAULT_URL = "sqlite:fleet.db"
PLUGINS = "flatfleet.stores"
"""The entry points of stores that are not ours: URL scheme → `function(url, must_exist)` → a Driver."""


def open_store(
    url: str = DEFAULT_URL, *, owner: str | None = None, lease: float = LEASE, must_exist: bool = False
) -> Store:
    """Return the store behind a URL; it connects when it is first used.

    `memory:` lives and dies with the process. `sqlite:PATH[?synchronous=NORMAL|FULL]` is a file, relative to the
    working folder. `redis://`, `rediss://` and `unix://` are stores on a Redis server (docs/redis.md), `ray:NAME` and
    `ray://HOST:PORT/NAME` are in a Ray cluster (docs/ray.md). Other kinds come from packages that declare them
    (docs/backends.md). Raises StoreUrlError for the rest. With `must_exist` a file that is not there is not made:
    StoreUnavailable when it is first used.
    """
    driver, wire = _driver(url, must_exist)
    return Store(driver, url, owner or this_process(), lease, wire)


def _driver(url: str, must_exist: bool) -> tuple[Driver, Wire | None]:
    """The driver, and what leads to the other processes with this store."""
    if url != url.strip().strip("\"'"):
        raise StoreUrlError(
            f"store URL '{shown(url)}' has blanks or quotes around it: write it without them (the file of docker's "
            "--env-file keeps both)"
        )
    try:
        parts = urlsplit(url)
    except ValueError:  # whose text may hold a part of the password
        raise StoreUrlError(
            f"store URL '{shown(url)}': its host cannot be read; an IPv6 address stands in brackets, as in "
            "redis://[::1]:6379/0 (write %5B for [ and %5D for ] in a password)"
        ) from None
    if parts.scheme == "memory":
        from flatfleet.runtime.stores.memory import MemoryDriver

        if url != "memory:":
            raise StoreUrlError(f"store URL '{shown(url)}': a store in memory has no name; write memory:")

        return MemoryDriver(), None
    if parts.scheme == "sqlite":
        from flatfleet.runtime.stores.sqlite import SQLiteDriver
        from flatfleet.runtime.stores.wire import HostWire

        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        synchronous = options.pop("synchronous", "NORMAL").upper()
        path = parts.path.removeprefix("//") if not parts.netloc else parts.netloc + parts.path
        if options or synchronous not in ("NORMAL", "FULL"):
            raise StoreUrlError(f"store URL '{shown(url)}': the only option is synchronous=NORMAL or synchronous=FULL")
        if not path or path.endswith("/"):
            raise StoreUrlError(f"store URL '{shown(url)}' names no file; write for example {DEFAULT_URL}")
        file = Path(path).expanduser().absolute()
        return SQLiteDriver(file, synchronous, must_exist=must_exist), HostWire(file)
    if parts.scheme in redis_url.SCHEMES:
        from flatfleet.runtime.stores.redis import RedisDriver
        from flatfleet.runtime.stores.redis_wire import RedisWire

        redis = RedisDriver(redis_url.parse(url), must_exist=must_exist)
        return redis, RedisWire(redis.server, redis.link)
    if parts.scheme == "ray":
        from flatfleet.runtime.stores.ray import RayDriver
        from flatfleet.runtime.stores.ray_cluster import check_installed
        from flatfleet.runtime.stores.ray_url import RayUrl
        from flatfleet.runtime.stores.ray_wire import RayWire

        found = RayUrl.parse(url)
        check_installed(f"store URL '{shown(url)}'")
        driver = RayDriver(found, must_exist)
        return cast(Driver, driver), RayWire(driver)
    from importlib.metadata import entry_points

    for plugin in entry_points(group=PLUGINS, name=parts.scheme):
        return plugin.load()(url, must_exist), None
    scheme = parts.scheme if parts.scheme and shown(url).lower().startswith(parts.scheme) else shown(url)
    known = (*SCHEMES, *entry_points(group=PLUGINS).names)
    raise StoreUrlError(
        f"store URL '{shown(url)}': unknown kind '{scheme}'{did_you_mean(scheme, known)} (as in {DEFAULT_URL})"
    )
