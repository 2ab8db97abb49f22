"""Read machine data that may not be well-formed yet: what is not there, or not of its kind, counts as empty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flatfleet.runtime.bundle.yamlmap import Where


def mapping(value: Any) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def initial_state(states: Mapping[str, Any]) -> str | None:
    """Return the state a machine starts in, by the SDK's rule: `type: initial`, else 'start', else the first."""
    for name, state in states.items():
        if mapping(state).get("type") == "initial":
            return name
    return "start" if "start" in states else next(iter(states), None)


def targets(state: Mapping[str, Any]) -> Iterator[tuple[Where, str]]:
    """Yield every state that `state` can lead to, with the place inside it that says so."""
    for index, step in enumerate(listing(state.get("transitions"))):
        if isinstance(target := mapping(step).get("to"), str):
            yield ("transitions", index, "to"), target
    on_error = state.get("on_error")
    if isinstance(on_error, str):
        yield ("on_error",), on_error
    for name, target in mapping(on_error).items():
        if isinstance(target, str):
            yield ("on_error", name), target


def named(ref: Any) -> Iterator[tuple[str, Where]]:
    """Yield the names in an `agent:`, `machine:` or `launch:`, each with its place inside that value."""
    if isinstance(ref, str):
        yield ref, ()
    for index, each in enumerate(listing(ref)):
        if isinstance(each, str):
            yield each, (index,)
        elif isinstance(name := mapping(each).get("name"), str):
            yield name, (index, "name")
