"""The registry: the only place where the names in YAML meet functions.

A hook's name is its module's name; an action's name is its function's name: `async def claim(context, fleet) -> dict`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any

from flatfleet.hooks import flow, papers, registration, sources, work
from flatfleet.runtime.errors import UnknownAction, did_you_mean
from flatfleet.runtime.fleet import Fleet
from flatmachines import HooksRegistry, MachineHooks

Action = Callable[[dict[str, Any], Fleet], Awaitable[dict[str, Any]]]

MODULES: tuple[ModuleType, ...] = (flow, papers, sources, work)


def registry(fleet: Fleet) -> HooksRegistry:
    """The hooks of one process, by name."""
    hooks = HooksRegistry()
    for name, functions in actions().items():
        shared = Actions(name, functions, fleet)
        hooks.register(name, lambda shared=shared: shared)
    lifecycle = registration.Registration(fleet)
    hooks.register("registration", lambda: lifecycle)
    return hooks


def known() -> dict[str, frozenset[str]]:
    """Every hook's name with the names of its actions, for checking machine files."""
    return {name: frozenset(functions) for name, functions in actions().items()} | {"registration": frozenset()}


def actions() -> dict[str, dict[str, Action]]:
    return {module.__name__.rpartition(".")[2]: _functions(module) for module in MODULES}


def _functions(module: ModuleType) -> dict[str, Action]:
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.iscoroutinefunction(function) and function.__module__ == module.__name__ and name[0] != "_"
    }


class Actions(MachineHooks):
    """A module's actions as the SDK's hooks: `on_action` calls the function of that name, and raises on another."""

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
