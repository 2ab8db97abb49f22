"""How a Machine runs its children: bounded, deterministic ids, errors as errors."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

from flatfleet.runtime.errors import BadKey, ChildFailed, ChildWaiting, DuplicateKey, LeaseLost, UsageError
from flatmachines.locking import NoOpLock

MAX_PARALLEL = 64
"""`settings.max_parallel` where a machine does not say: children of one state that run at once."""


_CANCELLED_ITSELF = (
    "the child was cancelled from within: it awaited something that was cancelled, or raised CancelledError"
)


class _Won(Exception):
    """Ends a `mode: any` at its first success."""


class Children:
    """The part of Machine that makes, runs, bounds and checks child machines."""

    async def _invoke_machine_single(
        self: Any, machine_name: str, input_data: dict[str, Any], timeout: float | None = None
    ) -> Any:
        key = self.states[self._state].get("key")
        if key is None:
            return await self._run_child(machine_name, f"{self.execution_id}:{self._state}:{machine_name}", input_data)
        child_id = self._render_template(key, {"context": self._context, "input": self._context})
        if not isinstance(child_id, str) or not child_id:
            raise BadKey(
                f"state '{self._state}': its `key: {key}` is {child_id!r}; it must be a text that tells this child from "
                "all others, such as context.item_id"
            )
        return await self._run_keyed(machine_name, child_id, input_data)

    async def _invoke_machines_parallel(
        self: Any,
        machines: list[str],
        input_data: dict[str, Any],
        mode: str = "settled",
        timeout: float | None = None,
        per_machine_inputs: dict[str, dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        inputs = per_machine_inputs or {}
        return await self._run_all(
            [(name, name, dict(inputs.get(name, input_data))) for name in _distinct(machines, self._state)]
        )

    async def _invoke_foreach(
        self: Any,
        items: list[Any],
        as_var: str,
        key_expr: str | None,
        machine_name: str,
        input_template: dict[str, Any],
        mode: str = "settled",
        timeout: float | None = None,
    ) -> Any:
        variables = [{as_var: item, "context": {}, "input": {}} for item in items]
        if key_expr:
            keys: Iterable[Any] = _distinct([self._render_template(key_expr, v) for v in variables], self._state)
        else:
            keys = range(len(items))
        results = await self._run_all(
            [
                (key, machine_name, self._render_dict(input_template, values))
                for key, values in zip(keys, variables, strict=True)
            ],
            held={key for key in keys if key in self._leases} if key_expr else frozenset(),
        )
        return results if key_expr else list(results.values())

    async def _run_all(
        self: Any, wanted: list[tuple[Any, str, dict[str, Any]]], held: Collection[Any] = ()
    ) -> dict[Any, Any]:
        """Run children, at most `settings.max_parallel` at once; {key: result} in the order wanted.

        Without a `mode` the first failure cancels the rest and is raised as itself; `settled` returns failures as
        `_error` data; `any` returns the first success alone and cancels the rest. A key in `held` is a work item of
        this process: its child runs under that id and lease, and a lease that it loses is its failure and no other's.
        """
        mode = self.states[self._state].get("mode")
        results: dict[Any, Any] = {}
        failures: list[Exception] = []
        queue = iter(wanted)

        async def runner() -> None:
            for key, name, data in queue:
                try:
                    if key in held:
                        results[key] = await self._run_held(name, key, data)
                    else:
                        results[key] = await self._run_child(name, f"{self.execution_id}:{self._state}:{key}", data)
                except Exception as error:
                    if mode is None or (isinstance(error, LeaseLost) and key not in held):
                        raise
                    failures.append(error)
                    if mode == "settled":
                        results[key] = {"_error": str(error), "_error_type": type(error).__name__}
                else:
                    if mode == "any":
                        raise _Won

        runners = min(len(wanted), self._max_parallel())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(runners):
                    group.create_task(runner())
        except BaseExceptionGroup as group_error:
            error = _first(group_error)
            if not isinstance(error, _Won):
                raise error from None
        if mode == "any":
            if failures and not results:
                raise failures[0]
            return dict(list(results.items())[:1])
        return {key: results[key] for key, _, _ in wanted}

    def _max_parallel(self: Any) -> int:
        """`settings.max_parallel`: a number, or a path to one such as `context.parallelism`."""
        bound = self.settings.get("max_parallel", MAX_PARALLEL)
        found = self._render_template(bound, {"context": self._context, "input": self._context})
        try:
            return max(1, int(found))
        except (TypeError, ValueError):
            raise UsageError(f"settings.max_parallel of {self.machine_name} is {bound}, which is {found!r}") from None

    async def _run_keyed(self: Any, machine_name: str, child_id: str, data: dict[str, Any]) -> Any:
        """Run the child whose id is a work item: under its lease, if this process holds one."""
        if child_id in self._leases:
            return await self._run_held(machine_name, child_id, data)
        return await self._run_child(machine_name, child_id, data, keyed=True)

    async def _run_held(self: Any, machine_name: str, item_id: str, data: dict[str, Any]) -> Any:
        """Run the child of a held work item in a task of its own, which a lost lease cancels."""
        lease = self._leases.get(item_id)
        if lease is None:
            raise LeaseLost(f"item {item_id} was handed back before its turn came")
        lease.check()
        task = lease.task = asyncio.create_task(self._run_child(machine_name, item_id, data, keyed=True, lease=lease))
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or not current.cancelling():
                lease.check()  # it was not this task that was cancelled, but the work of a lost lease
                raise ChildFailed(_CANCELLED_ITSELF) from None
            raise
        finally:
            lease.task = None

    async def _run_child(
        self: Any, machine_name: str, child_id: str, data: dict[str, Any], keyed: bool = False, lease: Any = None
    ) -> Any:
        child = self._child(machine_name, child_id)
        if not keyed and "state_enter" not in self.checkpoint_events:
            child.checkpoint_events = set()  # nobody could resume it: its parent starts from the beginning
        try:
            result = await child.run(data, fresh=not (keyed or self._revisit))
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and not current.cancelling():
                raise ChildFailed(_CANCELLED_ITSELF) from None
            raise
        finally:
            self.total_cost += child.total_cost
            self.total_api_calls += child.total_api_calls
            if lease is not None:
                lease.cost += child.total_cost
        if isinstance(result, dict):
            if result.get("_waiting"):
                raise ChildWaiting(
                    f"child {machine_name} of state '{self._state}' parked at wait_for '{result.get('_channel')}'; "
                    "a state that needs a result cannot wait for a signal: `launch` the machine instead"
                )
            if "_error" in result:
                raise ChildFailed(f"child {machine_name} of state '{self._state}': {result['_error']}")
        return result

    def _child(self: Any, machine_name: str, child_id: str) -> Any:
        """A machine of this machine's class with all its backends."""
        config, folder = self._resolve_machine_config(machine_name)
        child = self.peer(config, child_id, folder=folder, lock=NoOpLock())
        child.parks = False
        return child

    def peer(self: Any, config: dict[str, Any], execution_id: str, *, folder: str | None = None, lock: Any) -> Any:
        """Make a machine that shares this one's class, engine and backends."""
        return type(self)(
            config_dict=config,
            leases=self._leases,
            hooks_registry=self._hooks_registry,
            persistence=self._checkpoints,
            lock=lock,
            invoker=self.invoker,
            result_backend=self.result_backend,
            signal_backend=self.signal_backend,
            trigger_backend=self.trigger_backend,
            agent_registry=self.agent_registry,
            config_store=self._config_store,
            tool_provider=self._tool_provider,
            _config_dir=folder or self._config_dir,
            _execution_id=execution_id,
            _parent_execution_id=self.execution_id,
            _profiles_dict=self._profiles_dict,
            _profiles_file=self._profiles_file,
        )


def _distinct(keys: list[Any], state: str) -> list[Any]:
    seen: set[Any] = set()
    for key in keys:
        if key in seen:
            raise DuplicateKey(
                f"state '{state}': two items have the key {key!r}, so one result would be lost; make `key` unique"
            )
        seen.add(key)
    return keys


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
