"""Functions as the SDK's hooks: an action's name is its function's name, and any other raises."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from flatfleet.runtime.errors import UnknownAction, did_you_mean
from flatfleet.runtime.fleet import Fleet
from flatmachines import MachineHooks

Action = Callable[[dict[str, Any], Fleet], Awaitable[dict[str, Any]]]


class Actions(MachineHooks):
    """A module's actions as hooks: `on_action` calls the function of that name; raises UnknownAction on another."""

    passes_through = True

    def __init__(self, name: str, functions: Mapping[str, Action], fleet: Fleet) -> None:
        self.on_action = _OnAction(name, functions, fleet)


class _OnAction:
    """Callable with a ready signature, so that the SDK need not inspect one for each action."""

    __signature__ = inspect.signature(lambda state_name, action_name, context: None)

    def __init__(self, name: str, functions: Mapping[str, Action], fleet: Fleet) -> None:
        self._name = name
        self._functions = functions
        self._fleet = fleet

    def __call__(self, state_name: str, action_name: str, context: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        function = self._functions.get(action_name)
        if function is None:
            raise UnknownAction(
                f"state '{state_name}': hooks '{self._name}' have no action '{action_name}'"
                + did_you_mean(action_name, self._functions)
            )
        return function(context, self._fleet)
