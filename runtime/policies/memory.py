"""What decisions remember: windows of recommendations, changes made, and what a person ordered. JSON data, all bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.policies.settings import Settings

VERSION = 1
HOUR = 3600.0
MOST = 240
"""Entries that a window keeps; beyond that the oldest two become one, which holds for longer."""
_BACK = 60.0


def begin(state: Mapping[str, Any], at: float) -> dict[str, Any]:
    """A copy of the state to work on. One of another version, or from the future by a minute, loses its windows.

    What people have ordered stays, and what was spent.
    """
    fresh = {"version": VERSION, "at": at, "policies": {}, "up": [], "down": [], "changes": []}
    if state.get("version") != VERSION or state.get("at", at) > at + _BACK:
        return fresh | {name: state[name] for name in ("paused", "hold_until", "cost") if name in state}
    memory = {name: _copied(value) for name, value in state.items()}
    return fresh | memory | {"at": max(at, memory.get("at", at))}


def hold(state: Mapping[str, Any], until: float) -> dict[str, Any]:
    """The state in which the target stays what a person made it until this time (seconds)."""
    return {**state, "version": state.get("version", VERSION), "hold_until": until}


def pause(state: Mapping[str, Any], paused: bool = True) -> dict[str, Any]:
    """The state in which scaling is paused, or goes on; going on ends a hold too."""
    kept = {name: value for name, value in state.items() if name not in ("paused", "hold_until")}
    return {**state, "version": state.get("version", VERSION), "paused": True} if paused else kept


def recommend(memory: dict[str, Any], s: Settings, value: int) -> None:
    """Enter a recommendation in the window of either direction: the largest of one, the smallest of the other."""
    at = memory["at"]
    for way, sign, length in (("down", 1, s.stabilization.down), ("up", -1, s.stabilization.up)):
        kept = [each for each in memory[way] if at - each[0] <= length and sign * each[1] > sign * value]
        kept = [*kept, [at, value]] if length else []
        if len(kept) > MOST:
            kept = [[kept[1][0], kept[0][1]], *kept[2:]]
        memory[way] = kept


def extreme(memory: Mapping[str, Any], s: Settings, way: str, value: int) -> int:
    """The largest (down) or smallest (up) recommendation in the window, this one included."""
    length = s.stabilization.down if way == "down" else s.stabilization.up
    values = [each[1] for each in memory[way] if memory["at"] - each[0] <= length]
    return max([value, *values]) if way == "down" else min([value, *values])


def changed(memory: dict[str, Any], by: int) -> None:
    """Enter so many starts or stops. Within a minute they are one entry, with the time of the last."""
    at = memory["at"]
    kept = [each for each in memory["changes"] if at - each[0] < HOUR]
    if kept and int(kept[-1][0] // 60) == int(at // 60):
        kept[-1] = [at, kept[-1][1] + by]
    else:
        kept.append([at, by])
    memory["changes"], memory["changed_at"] = kept, at


def flaps(memory: Mapping[str, Any]) -> int:
    """Starts + stops of the last hour."""
    return sum(each[1] for each in memory["changes"] if memory["at"] - each[0] < HOUR)


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {name: _copied(each) if type(each) in (dict, list) else each for name, each in value.items()}
    if type(value) is list:
        return [each.copy() for each in value] if value and type(value[0]) is list else value.copy()
    return value
