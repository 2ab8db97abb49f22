"""The registry: the only place where the names in YAML meet functions.

A hook's name is its module's name; an action's name is its function's name: `async def claim(context, fleet) -> dict`.
"""

from __future__ import annotations

import inspect
from types import ModuleType

from flatfleet.hooks import autoscaling, batch, flow, papers, pipeline, registration, scaling, sources, work
from flatfleet.runtime.actions import Action, Actions
from flatfleet.runtime.fleet import Fleet
from flatmachines import HooksRegistry

__all__ = ["Actions", "actions", "known", "registry"]

MODULES: tuple[ModuleType, ...] = (autoscaling, batch, flow, papers, pipeline, scaling, sources, work)


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
