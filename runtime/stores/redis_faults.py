"""What can go wrong with a Redis server: what passes by itself, and what to do about the rest."""

from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any

from flatfleet.runtime.errors import StoreUnavailable

#: What errors of a server begin with that is restarting, failing over, or busy.
_PASSES = (
    "LOADING",
    "BUSY ",
    "BUSYLOADING",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "READONLY",
    "NOREPLICAS",
    "UNBLOCKED",
    "UNKILLABLE",
)
_NOISE = re.compile(
    r"(?:ERR )?Error running script \(call to \w+\): (?:@\w+: ?\d+: )*-?|,? script: \w+, on @\w+:\d+\.?"
)


@functools.cache
def library() -> ModuleType:
    """redis-py; StoreUnavailable says how to get it."""
    try:
        import redis.asyncio.connection
        import redis.exceptions
    except ImportError as error:
        raise StoreUnavailable('a Redis store needs redis-py: pip install "flatfleet[redis]"') from error
    return redis


def retry() -> Any:
    """The library's way to try again by itself: not at all."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Retry(NoBackoff(), 0)


def known(error: BaseException) -> bool:
    """True for faults of the server and of the way to it; all others are ours."""
    return isinstance(error, (StoreUnavailable, OSError, EOFError, library().RedisError))


def loading(error: BaseException) -> bool:
    """True while a server that has just started reads what it holds."""
    return not isinstance(error, StoreUnavailable) and isinstance(error, library().exceptions.BusyLoadingError)


def gone(error: BaseException) -> bool:
    """True if a script has found another store than that of its sender, or none: see lua/keys.lua."""
    return str(error).startswith("GONE ")


def transient(error: BaseException) -> bool:
    """True for what passes by itself: no connection, no answer, a server that starts or is busy."""
    if isinstance(error, StoreUnavailable) or not known(error):
        return False
    faults = library().exceptions
    if isinstance(error, faults.AuthenticationError | faults.AuthorizationError):
        return False
    if isinstance(error, faults.ConnectionError | faults.TimeoutError | OSError | TimeoutError | EOFError):
        return True
    if isinstance(error, faults.ReadOnlyError | faults.BusyLoadingError):
        return True
    return isinstance(error, faults.ResponseError) and str(error).startswith(_PASSES)


def words(error: BaseException) -> str:
    """The text of an error, in words: without the place in a script that it comes from, and without a full stop."""
    if isinstance(error, library().exceptions.AskError):
        return f"its hash slot is at {error.host}:{error.port}"
    return _NOISE.sub("", str(error)).rstrip(". ")


def advice(text: str) -> str:
    """The advice that belongs to the text of an error."""
    for part, told in (
        ("auth", "Check the user and the password in the URL (special characters as %XX)"),
        ("password", "Check the user and the password in the URL (special characters as %XX)"),
        ("NOPERM", "The user lacks rights: it needs all keys and channels of the store, see docs/redis.md"),
        ("permission", "The user lacks rights: it needs all keys and channels of the store, see docs/redis.md"),
        ("OOM", "The server's memory is full: raise its maxmemory; what was acknowledged is kept"),
        ("MISCONF", "The server cannot write to its disk: free some space there"),
        ("certificate", "Check ca= in the URL, and the host's name in the server's certificate"),
        ("TLS", "Check that the server speaks TLS on this port; redis:// is without it"),
        ("SSL", "Check that the server speaks TLS on this port; redis:// is without it"),
        ("DB index", "Name a database that the server has, as in redis://host:6379/0"),
        ("WRONGTYPE", "Keys of this name belong to another program: name another store with ?fleet="),
        ("refused", "Check that the server runs there, or name another store with --store"),
        ("Name or service", "Check the host in the URL"),
        ("slot", "It is a cluster: name the node that has this store's slot, see docs/redis.md"),
    ):
        if part.lower() in text.lower():
            return told + "."
    return "Check that the server runs and can be reached, then run the same command again."
