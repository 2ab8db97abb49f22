"""What runs inside a host, whatever kind it is: takes orders, runs them on the inline engine there, and tells events."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from flatfleet.runtime.engines.hosts import Event, Order, Setup
from flatfleet.runtime.engines.making import check_hooks
from flatfleet.runtime.errors import UsageError


def compose(setup: Setup) -> Any:
    """The parts of a host (`run.Parts`) over a store, a fleet and an owner of its own, by the function that its setup names."""
    sys.path.extend(folder for folder in setup.path if folder not in sys.path)
    return named(setup.compose)(setup.url, capabilities=setup.capabilities, lease=setup.lease)


def named(function: str) -> Callable[..., Any]:
    """The function that `module:function` names; UsageError where there is none, or its module fails when it is imported."""
    module, _, name = function.partition(":")
    try:
        made: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:
        if at := _line(error):
            told = f"module '{module}' of '{function}' cannot be imported: {type(error).__name__}: {error} ({at})"
            raise UsageError(told) from error
        raise UsageError(f"'{function}' does not name a function, as module:function does: {error}") from error
    return made


def _line(error: Exception) -> str:
    """The first line of a module's own that led to this error while it was imported; empty where none did."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen"):
            return f"{frame.filename}, line {frame.lineno}"
    return ""


class Hosting:
    """Runs launched machines with `parts`, and calls `tell(event)` on the event loop.

    Whatever those machines launch runs here, too, and is told of like them.
    """

    def __init__(self, parts: Any, tell: Callable[[Event], None]) -> None:
        self._parts = parts
        self._tell = tell
        self._engine = parts.engine
        self._engine.on_change = self._changed
        self._engine.on_named = lambda machine_id: tell(Event("named", machine_id))

    @property
    def owner(self) -> str:
        """This host's owner in the store."""
        owner: str = self._parts.store.owner
        return owner

    def launch(self, order: Order) -> None:
        """Run a machine; idempotent by its id. Raises what makes it impossible to make it here, UnknownAction for one."""
        self._parts.fleet.served = order.served
        machine = self._parts.machine(order.bundle, order.folder, order.machine_id, **order.about)
        check_hooks(order.bundle, machine.hooks_registry)
        self._engine.admit(machine, order.machine_id, dict(order.input))

    def live(self) -> int:
        """Machines that run here."""
        n: int = self._engine.live()
        return n

    def drain(self) -> None:
        """Let the workers finish what they hold, and end."""
        self._engine.drain()

    async def stop(self, seconds: float) -> int:
        """Drain, after `seconds` cancel what still runs, and hand its items back; return how many. Called again, with less
        time, it hurries on; each item is counted once.
        """
        n: int = await self._engine.close(seconds)
        return n

    def abandon(self) -> None:
        """The engine has died, and replaces nobody: let others find these workers lost, and not ended. From any thread."""
        for worker in list(self._parts.fleet.workers):
            self._parts.fleet.discharge(worker)

    async def close(self) -> None:
        """Close the store."""
        await self._parts.fleet.close()

    def hand_back(self) -> int:
        """Give back, from any thread, every item that this host holds: where its event loop is blocked."""
        n: int = self._parts.fleet.guard.hand_back()
        return n

    def _changed(self, kind: str, machine_id: str, error: BaseException | None, cancelled: bool) -> None:
        self._tell(Event("began" if kind == "began" else "ended", machine_id, error, cancelled))
