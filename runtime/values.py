"""Reading a context (YAML templates make strings of numbers, stock machines leave defaults out) and worker metadata."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.errors import UsageError

LARGEST = 1_000_000
"""The parallelism that a worker counts at most, whatever it says."""


def text(context: dict[str, Any], name: str, default: str = "") -> str:
    value = context.get(name)
    return default if value is None or value == "" else str(value)


def number(context: dict[str, Any], name: str, default: float, least: float = 0.0) -> float:
    """The number under `name`; UsageError if it is none, or less than `least`."""
    value = context.get(name)
    if value is None or value == "":
        return float(default)
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}: a number is needed") from None
    if not result >= least:
        raise UsageError(f"{name} is {value}: it must be at least {least:g}")
    return result


def whole(context: dict[str, Any], name: str, default: int, least: int = 0) -> int:
    """The whole number under `name`; UsageError if it is none, or less than `least`."""
    result = number(context, name, default, least)
    if not result.is_integer():
        raise UsageError(f"{name} is {context.get(name)}: a whole number is needed")
    return int(result)


def names(context: dict[str, Any], name: str) -> tuple[str, ...]:
    """The names under `name`: a list, or one text with commas between them."""
    value = context.get(name) or ()
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(filter(None, (str(part).strip() for part in parts)))


def worker_id(context: dict[str, Any]) -> str:
    """The worker's id; a worker started by hand gets one of its own."""
    if not context.get("worker_id"):
        context["worker_id"] = f"worker-{uuid.uuid4().hex[:8]}"
    return str(context["worker_id"])


def size_of(metadata: Mapping[str, Any]) -> int:
    """The parallelism that a worker registered with: from 1 to LARGEST, 1 where its metadata does not say."""
    told = metadata.get("parallelism")
    return max(1, min(told, LARGEST)) if type(told) is int else 1
