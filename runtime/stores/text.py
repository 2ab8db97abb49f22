"""What goes into a store as text: JSON values, time stamps, and strings that every database takes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

MAX_ERROR = 10_000
CANCELLED = ("Cancelled", "this item was cancelled")
"""Error type and text of an item that somebody cancelled."""


def dump(value: Any, what: str) -> str:
    """JSON text of `value`; TypeError names `what` if it is not JSON data. Plain ASCII, so lone surrogates survive."""
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{what} is not JSON data: {error}; use dict, list, str, numbers, booleans, null") from error


def state_in(body: bytes | None) -> tuple[str, ...]:
    """The state that a machine is in by the body of its snapshot: the one, or none where there is no such."""
    try:
        state = json.loads(body or b"{}")["current_state"]
    except (ValueError, KeyError, TypeError):
        return ()
    return (state,) if isinstance(state, str) else ()


def stamp(at: float) -> str:
    """The SDK's time stamp (ISO-8601, UTC) of seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).isoformat()


def storable(text: str, limit: int = MAX_ERROR) -> str:
    """`text` without what a database refuses (lone surrogates, NUL), cut at `limit` characters."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


def moment(value: Any) -> float | None:
    """A time in seconds that somebody else wrote down; None for anything that is no number."""
    return float(value) if isinstance(value, int | float) else None
