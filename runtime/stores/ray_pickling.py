"""What is sent to the actor of a Ray store: as plain data, whatever classes it is of where it comes from."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, KeysView, ValuesView
from types import MappingProxyType
from typing import Any

PLAIN: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (dict, dict),
    (list, list),
    (tuple, tuple),
)


class _Pickler(pickle.Pickler):
    """Sends data as the plain types that it is of: the head node does not know the classes of a user's modules."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, KeysView | ValuesView):
            return list, (list(value),)
        if isinstance(value, MappingProxyType):
            return dict, (dict(value),)
        for plain, exactly in PLAIN:
            if isinstance(value, plain):
                return plain, (exactly(value),)
        return NotImplemented


def pickled(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    body = io.BytesIO()
    try:
        _Pickler(body, pickle.HIGHEST_PROTOCOL).dump((op, args, kwargs))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise TypeError(
            f"what was given to '{op}' is not JSON data: {error}; use dict, list, str, numbers, booleans, null"
        ) from error
    return body.getvalue()
