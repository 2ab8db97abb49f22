"""Values as JSON text: what goes into a store is copied, and what JSON cannot carry is refused with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dump(value: Any, what: str) -> str:
    """Return `value` as ASCII JSON text; `what` names it in the TypeError for anything that is not JSON (NaN included)."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        fault = _fault(value, "", ()) or f" is not JSON: {error}"
        raise TypeError(
            f"{what}{fault} — known: null, true, false, numbers, text, lists, dicts with text keys"
        ) from None


def _fault(value: Any, place: str, above: tuple[int, ...]) -> str | None:
    """Return where and why the first part of `value` is not JSON, or None."""
    if value is None or isinstance(value, str | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place} is {value}, which JSON cannot carry"
    if not isinstance(value, dict | list | tuple):
        return f"{place} is of type {type(value).__name__}, which JSON cannot carry"
    if id(value) in above:
        return f"{place} contains itself"
    if len(above) > 200:
        return " is nested too deeply"
    if isinstance(value, Mapping):
        for key in value:
            if not (key is None or isinstance(key, str | int | float)):
                return f"{place} has the key {key!r} of type {type(key).__name__}, which JSON cannot carry"
        parts = [(f"{place}[{key!r}]", part) for key, part in value.items()]
    else:
        parts = [(f"{place}[{index}]", part) for index, part in enumerate(value)]
    faults = (_fault(part, where, (*above, id(value))) for where, part in parts)
    return next((fault for fault in faults if fault), None)
