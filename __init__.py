"""flatfleet: run any FlatMachine over thousands of work items with a fleet of self-registering worker machines.

The public API: `wire` (run our machines under the SDK's class), `compose` (a process's parts), `open_store`,
`load_bundle`, `Machine`, `broker` (items and messages for programs of your own). Everything else is reached through them.
"""

from __future__ import annotations

from typing import Any

_API = {
    "wire": "flatfleet.run",
    "compose": "flatfleet.run",
    "broker": "flatfleet.runtime.blocking",
    "open_store": "flatfleet.runtime.stores",
    "load_bundle": "flatfleet.runtime.bundle",
    "Machine": "flatfleet.runtime.machine",
    "FleetError": "flatfleet.runtime.errors",
}
__all__ = ["FleetError", "Machine", "broker", "compose", "load_bundle", "open_store", "wire"]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"flatfleet has no '{name}'")
    from importlib import import_module

    module = import_module(_API[name])
    return getattr(module, "load" if name == "load_bundle" else name)
