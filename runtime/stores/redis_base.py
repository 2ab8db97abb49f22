"""What all parts of the Redis driver stand on: the link to the server, and how answers are read."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.redis_link import Link
from flatfleet.runtime.stores.text import dump

CHUNK = 500
"""Rows that one script reads, or changes, at most: so long nobody else has a turn."""


class Base:
    """A driver's link; the parts of the driver are its subclasses."""

    _link: Link

    async def _run(self, name: str, *args: Any, undo: Callable[[Any], Awaitable[Any]] | None = None) -> Any:
        return await self._link.call(name, *args, undo=undo)

    async def _once(self, name: str, *args: Any) -> Any:
        """Run a script whose answer is kept, so that it is the same if the operation has to be sent again."""
        return loaded(await self._link.call(name, operation(), *args))

    async def _pages(self, name: str, first: Any, *args: Any) -> list[Any]:
        """All rows of a script that answers [where to go on, rows …] for at most CHUNK of them."""
        rows: list[Any] = []
        after = first
        while after is not None:
            page = await self._run(name, *args, after, CHUNK)
            rows += page[1:]
            after = behind(page[0]) if page[0] else None
        return rows


def operation() -> bytes:
    """A name for one operation, by which the server knows it if it comes again."""
    return os.urandom(8).hex().encode()


def decoded(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


def maybe(value: bytes | None) -> str | None:
    return None if value is None else decoded(value)


def loaded(value: bytes) -> Any:
    """JSON that a script, or we, have written."""
    return json.loads(decoded(value))


def number(value: Any) -> float:
    return float(value) if value else 0.0


def moment(value: Any) -> float | None:
    return float(value) if value else None


def pairs(answer: Iterable[bytes]) -> dict[str, bytes]:
    """A hash as a script answers with it: names and values in turn."""
    found = iter(answer)
    return {decoded(name): value for name, value in zip(found, found, strict=True)}


def optional(value: str | None) -> str:
    """A text where there may be none: see lua/keys.lua."""
    return "" if value is None else f"={value}"


def told(value: str | None) -> str | None:
    """The text of `optional`."""
    return value[1:] if value else None


def behind(name: bytes) -> bytes:
    """Where to go on in the order of names."""
    return b"(" + name


def flat(worker_id: str, data: Mapping[str, Any]) -> list[str]:
    """Metadata as a script takes it: names and JSON in turn; TypeError if it is not JSON data."""
    copy = json.loads(dump(dict(data), f"the metadata of worker {worker_id!r}"))
    return [each for name, value in copy.items() for each in (name, dump(value, name))]


def lease_lost(item_id: str, token: int | None, answer: list[bytes]) -> Exception:
    """The error for who does not hold an item, by what a script says of it."""
    state = decoded(answer[0])
    if state == "none":
        return KeyError(f"no item {item_id!r} in this store")
    newest, worker = decoded(answer[1]), decoded(answer[2])
    held = f"claimed by worker {worker!r}" if state == "claimed" else state
    return LeaseLost(
        f"item {item_id!r}: token {token} does not hold it — it is {held}, its newest token is {newest}; nothing was changed"
    )
