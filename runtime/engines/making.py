"""How an engine makes machines: for whoever launches one, or from a snapshot and the bundle that the store keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.bundle.shapes import mapping
from flatfleet.runtime.engines.hold import Hold
from flatfleet.runtime.errors import MachineError, UnknownAction
from flatfleet.runtime.journal import Journal
from flatfleet.runtime.machine import Machine
from flatfleet.runtime.stores.records import SnapshotRow
from flatfleet.runtime.stores.store import Store
from flatmachines.locking import NoOpLock

KEPT = 32
"""Bundles that are kept, so that a machine that is woken often is parsed once."""


def peer(caller: Any, config: dict[str, Any], machine_id: str, lock: Any) -> Any:
    """A machine of its launcher's class and wiring."""
    if isinstance(caller, Machine):
        return caller.peer(config, machine_id, lock=lock)
    return type(caller)(
        config_dict=config,
        hooks_registry=caller.hooks_registry,
        persistence=caller.persistence,
        lock=caller.lock,
        invoker=caller.invoker,
        result_backend=caller.result_backend,
        signal_backend=caller.signal_backend,
        trigger_backend=caller.trigger_backend,
        agent_registry=caller.agent_registry,
        config_store=caller._config_store,
        _config_dir=caller._config_dir,
        _execution_id=machine_id,
        _parent_execution_id=caller.execution_id,
    )


def under(held: Hold, machine: Machine) -> Machine:
    """The machine under a lock that is taken already, which each of its checkpoints makes sure of."""
    machine.lock = NoOpLock()
    if isinstance(machine.persistence, Journal):
        machine.persistence.fence = held.check
    return machine


class Bundles:
    """The bundles of snapshots, out of the store's configs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, Bundle] = {}

    async def of(self, row: SnapshotRow) -> Bundle:
        """The bundle that a snapshot was taken under; MachineError if the store has it no more, or it is damaged."""
        digest = json.loads(row.body).get("config_hash")
        found = self._kept.pop(digest, None) or await self._load(digest)
        self._kept[digest] = found
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    async def _load(self, digest: Any) -> Bundle:
        raw = await self._store.configs.get(digest) if isinstance(digest, str) else None
        if raw is None:
            raise MachineError(f"its machine (config {digest}) is not in this store")
        try:
            config = json.loads(raw) if raw.lstrip().startswith("{") else yaml.safe_load(raw)
        except (ValueError, yaml.YAMLError) as error:
            raise MachineError(f"its machine (config {digest}) is damaged: {error}") from error
        if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
            raise MachineError(f"its machine (config {digest}) is damaged: it is not a mapping with `data`")
        return Bundle.of(config)


def check_hooks(config: Mapping[str, Any], registry: Any) -> None:
    """Raise UnknownAction if a hook of this machine, or of one below it, is not known in this process."""
    for name in _hooks(config):
        if not registry.has(name):
            raise UnknownAction(f"its hooks '{name}' are not known in this process")


def _hooks(config: Mapping[str, Any]) -> Iterator[str]:
    data = mapping(config.get("data"))
    refs = [data.get("lifecycle_hooks"), *(mapping(each).get("hooks") for each in mapping(data.get("states")).values())]
    for ref in refs:
        for entry in ref if isinstance(ref, list) else [ref]:
            name = entry.get("name") if isinstance(entry, dict) else entry
            if isinstance(name, str):
                yield name
    for child in mapping(data.get("machines")).values():
        if isinstance(child, dict):
            yield from _hooks(child)
