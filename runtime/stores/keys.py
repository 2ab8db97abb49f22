"""Names: how a pool and a key become an item id, and which names pools and capabilities may have."""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Iterable
from typing import Any

from flatfleet.runtime.errors import UsageError

_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_HASHED = re.compile(r"(.*-)?[0-9a-f]{12}")
_MAX_SLUG = 60
_MAX_WHOLE = 10**13
_MAX_CAPABILITY = 64
_MAX_CAPABILITIES = 32
_CAPABILITY = re.compile(rf"[^\s,\x00-\x1f\x7f\ud800-\udfff]{{1,{_MAX_CAPABILITY}}}")


def check_pool(name: str) -> str:
    """Return `name` if it can name a pool; UsageError otherwise."""
    if not isinstance(name, str) or not _POOL.fullmatch(name) or ".." in name:
        raise UsageError(
            f"pool name {name!r}: use 1 to 64 letters, digits, '_', '-' or '.', beginning with a letter or digit"
        )
    return name


def check_capabilities(names: str | Iterable[Any], what: str) -> tuple[str, ...]:
    """The names (a text: those between its commas), each once and sorted, if they can name capabilities.

    UsageError, about `what`, for one that cannot, and for more than 32.
    """
    given = filter(None, map(str.strip, names.split(","))) if isinstance(names, str) else names
    found: set[str] = set()
    for name in given:
        if not isinstance(name, str) or not _CAPABILITY.fullmatch(name):
            raise UsageError(
                f"{what}: {str(name)[: 2 * _MAX_CAPABILITY]!r} names no capability; use 1 to {_MAX_CAPABILITY} characters "
                "without commas and blanks, such as gpu or region:eu"
            )
        found.add(name)
    if len(found) > _MAX_CAPABILITIES:
        raise UsageError(f"{what}: {len(found)} capabilities are too many; at most {_MAX_CAPABILITIES} can be named")
    return tuple(sorted(found))


def check_key(key: Any) -> str | None:
    """Return `key` if it is a text, or None; UsageError otherwise."""
    if key is None or isinstance(key, str):
        return key
    raise UsageError(f"an item's key is a text, got {_got(key)}; write key={str(key)[:40]!r}")


def check_whole(value: Any, what: str) -> int:
    """Return `value` if it is a whole number that every store keeps exactly; UsageError, about `what`, otherwise."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_WHOLE:
        return value
    raise UsageError(f"{what} is a whole number from -10^13 to 10^13, got {_got(value)}")


def check_seconds(value: Any, what: str) -> float:
    """Return `value` if it is a finite number; UsageError, about `what`, otherwise."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise UsageError(f"{what} is a number of seconds, got {_got(value)}")


def _got(value: Any) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"


def slug(key: str) -> str:
    """A safe, readable, injective form of a key: itself where it is plain, else its last words and 12 hex of SHA-256."""
    if _PLAIN.fullmatch(key) and len(key) <= _MAX_SLUG and not _HASHED.fullmatch(key):
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    words = re.findall(r"[A-Za-z0-9]+", re.split(r"[\\/]", key.rstrip("\\/"))[-1])
    kept = "-".join(words)
    while len(kept) > _MAX_SLUG - len(digest) - 1:
        kept = kept.partition("-")[2] if "-" in kept else kept[: _MAX_SLUG - len(digest) - 1]
    return f"{kept}-{digest}" if kept else digest


def item_id(pool: str, key: str | None) -> str:
    """`{pool}:{slug}`: the item's id, its task's execution id, and the authority of its URIs; unique without a key."""
    return f"{pool}:{slug(key) if key is not None else uuid.uuid4().hex}"


def item_of(execution_id: str) -> str | None:
    """The item id that an execution id is or descends from ({pool}:{slug}:state:child…), if it has that form."""
    parts = execution_id.split(":", 2)
    return ":".join(parts[:2]) if len(parts) >= 2 else None
