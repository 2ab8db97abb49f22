"""Engines: where launched machines run, behind one word."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatfleet.runtime.engines.spec import EngineSpec, parse
from flatfleet.runtime.errors import EngineUrlError

if TYPE_CHECKING:
    from flatfleet.runtime.engines.inline import InlineEngine
    from flatfleet.runtime.fleet import Fleet

COMPOSE = "flatfleet.run:compose"


def make(
    spec: str | EngineSpec, fleet: Fleet, *, compose: str = COMPOSE, grace: float = 30.0, verbose: bool = False
) -> InlineEngine:
    """The engine that a spec asks for: `inline`, `process[?options]`, `ray[://host:port][?options]`.

    Hosts compose themselves with `compose` (`module:function`, made like `run.compose`), over a store, a fleet and an owner
    of their own, and drain within `grace` seconds when they are told to go. Raises EngineUrlError for a spec that is
    wrong, and for one with hosts over a store that lives in one process.
    """
    wanted = parse(spec)
    if not wanted.hosted:
        from flatfleet.runtime.engines.inline import InlineEngine

        return InlineEngine(fleet)
    if not fleet.store.durable:
        raise EngineUrlError(
            f"engine '{wanted.text}' runs workers in other processes, and store '{fleet.store.url}' lives in this one: "
            "take a store that they can open, as with --store sqlite:fleet.db, or --engine inline"
        )
    from flatfleet.runtime.engines.hosted import HostedEngine
    from flatfleet.runtime.engines.hosts import Setup

    setup: dict[str, Any] = {"compose": compose, "grace": grace, "verbose": verbose}
    about = Setup(fleet.store.url, fleet.store.lease, fleet.store.owner, tuple(sorted(fleet.capabilities)), **setup)
    kind = import_module(f"flatfleet.runtime.engines.{wanted.kind}")
    return HostedEngine(fleet, wanted, about, kind.hosts(wanted, about, fleet))
