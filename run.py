"""The composition root: parse → build → execute. The only file that joins hooks, stores and engines.

`python run.py FILE …` and `flatfleet run FILE …` are the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("FLATAGENTS_LOG_LEVEL", "ERROR")
os.environ.setdefault("FLATAGENTS_METRICS_ENABLED", "false")

GRACE = 30.0
"""Seconds that a host has to drain when somebody else than its engine tells it to go."""


@dataclass(frozen=True)
class Parts:
    """Everything that a machine of this process runs with."""

    store: Any
    fleet: Any
    engine: Any
    hooks: Any
    adapters: Any

    def __post_init__(self) -> None:
        self.engine.build = lambda config, execution_id: self.machine(config, os.getcwd(), execution_id)  # noqa: PTH109

    def backends(self) -> dict[str, Any]:
        """The arguments of the SDK's FlatMachine that join a machine to this store and engine."""
        return {
            "hooks_registry": self.hooks,
            "persistence": self.store.checkpoints,
            "lock": self.store.lock,
            "invoker": self.engine,
            "result_backend": self.store.results,
            "signal_backend": self.store.signals,
            "config_store": self.store.configs,
            "agent_registry": self.adapters,
        }

    def machine(self, config: Any, folder: str, execution_id: str | None = None, **about: Any) -> Any:
        """Make a Machine of a bundle; `about` are further arguments of its class."""
        from flatfleet.runtime.machine import Machine

        extra = about | ({"_execution_id": execution_id} if execution_id else {})
        return Machine(config_dict=config, leases=self.fleet.leases, _config_dir=folder, **self.backends(), **extra)


def compose(
    url: str,
    *,
    served: bool = False,
    capabilities: Collection[str] = (),
    must_exist: bool = False,
    engine: str = "inline",
    hosts: Mapping[str, Any] | None = None,
    **options: Any,
) -> Parts:
    """Join the store behind `url` with an engine, the hooks and the agent adapters; `options` are of `open_store`.

    `engine` is inline, process?max_size=4 and so on (docs/engines.md). Its hosts are made by a function like this one:
    `hosts["compose"]` names it, `module:function`; the variable FLATFLEET_COMPOSE, or this one, without. Further `hosts`:
    `grace`, `verbose` (runtime/engines).
    """
    from flatfleet import hooks as registry
    from flatfleet.runtime import engines
    from flatfleet.runtime.adapters.registry import adapters
    from flatfleet.runtime.fleet import Fleet
    from flatfleet.runtime.stores import open_store

    store = open_store(url, must_exist=must_exist, **options)
    fleet = Fleet(store, capabilities=capabilities, served=served)
    about = {"compose": os.environ.get("FLATFLEET_COMPOSE") or engines.COMPOSE, **(hosts or {})}
    return Parts(store, fleet, engines.make(engine, fleet, **about), registry.registry(fleet), adapters())


def wire(url: str = "memory:", **options: Any) -> dict[str, Any]:
    """The arguments that run any of our machines under the SDK's own class: `FlatMachine(config_file=…, **wire(url))`.

    Launched machines belong to the engine: after `execute`, `await parts["invoker"].join()` waits for them.
    """
    return compose(url, **options).backends()


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code (see docs/cli.md)."""
    from flatfleet.commands import cli
    from flatfleet.runtime import loop

    options = cli.parse(argv, _known)
    return loop.run(_execute(options)) if options.needs_loop else options.command(options, None)


def _known() -> Mapping[str, Collection[str]]:
    from flatfleet import hooks

    _made_by()  # its module may bring hooks
    return hooks.known()


def _made_by() -> Callable[..., Parts]:
    """`compose`, or what FLATFLEET_COMPOSE (`module:function`) names in its place: with somebody's own hooks, say."""
    function = os.environ.get("FLATFLEET_COMPOSE")
    if not function:
        return compose
    from flatfleet.runtime.engines.hosting import named

    return named(function)


async def _execute(options: Any) -> int:
    if (orders := getattr(options, "orders", None)) is not None:
        from flatfleet.runtime.engines.serving import Server

        served: int = await options.command(options, Server(orders))
        return served
    parts = _made_by()(
        options.store,
        engine=getattr(options, "engine", "inline"),
        hosts={"grace": getattr(options, "grace", GRACE), "verbose": options.verbose},
        served=getattr(options, "stay", False),
        capabilities=getattr(options, "capabilities", ()),
        must_exist=options.must_exist,
    )
    from flatfleet.runtime.errors import UsageError

    if options.must_exist and not parts.store.durable:
        raise UsageError(
            f"store '{parts.store.url}' lives and dies with its process: from here there is nothing to see"
        )
    try:
        code: int = await options.command(options, parts)
        return code
    finally:
        await parts.fleet.close()


def console() -> None:
    """The entry point of `flatfleet`: errors become one clear message and an exit code."""
    try:
        from flatfleet.commands import exits
    except KeyboardInterrupt:
        sys.exit(130)
    exits.leave(main, sys.argv[1:])


def _script() -> None:
    """`python run.py`: the same, but this folder's `hooks`, `agents` … must not hide modules of those names."""
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120
        del sys.path[0]
    try:
        import flatfleet  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("flatfleet is not installed for this Python; in the folder of run.py: pip install -e . (or make demo)")
    console()


if __name__ == "__main__":
    _script()
