"""How an engine tells machines apart, and makes them: for who launches one, or from a snapshot and the bundle in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.bundle.shapes import mapping
from flatfleet.runtime.engines.hold import Hold
from flatfleet.runtime.errors import MachineError, StoreError, UnknownAction
from flatfleet.runtime.journal import Journal
from flatfleet.runtime.machine import Machine
from flatfleet.runtime.stores.records import WOKEN, SnapshotRow
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


def id_of(input_data: Mapping[str, Any], execution_id: str) -> str:
    """The id of a launched machine."""
    return str(input_data.get("machine_id") or input_data.get("worker_id") or execution_id)


def stays(config: Mapping[str, Any], input_data: Mapping[str, Any]) -> bool:
    """True if a machine belongs to the process that launches it: it has a name, or works in the background."""
    return bool(input_data.get("machine_id") or (config["data"].get("settings") or {}).get("background"))


def parked(output: Any) -> bool:
    """True if a machine's output says that it waits for a message."""
    return isinstance(output, dict) and bool(output.get("_waiting"))


async def comes_again(store: Store, machine_id: str, error: BaseException) -> bool:
    """True if a resumed machine that raised is resumed again: its message, or its store, is still there.

    One that raised after its message was acknowledged has had it: it has failed, and nobody takes it up again.
    """
    row = await store.driver.load_snapshot(machine_id)
    if row is None or isinstance(error, StoreError):
        return row is not None
    if row.event == WOKEN:
        await store.driver.save_snapshot(replace(row, event="state_enter", channel=None), None, None)
    return row.event == "waiting"


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

    async def rebuilt(self, row: SnapshotRow, build: Callable[[Any, str], Machine] | None) -> Machine:
        """The machine of a snapshot, made by `build(bundle, execution_id)`; MachineError where it cannot be made here."""
        if build is None:
            raise MachineError("this engine was not told how to build machines")
        bundle = await self.of(row)
        machine = build(bundle, row.execution_id)
        check_hooks(bundle, machine.hooks_registry)
        return machine

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
