"""The inline engine: launched machines are tasks of this event loop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.machine import Machine
from flatmachines.actions import MachineInvoker
from flatmachines.backends import make_uri

logger = logging.getLogger(__name__)

KEPT_FAILURES = 100


class InlineEngine(MachineInvoker):
    """Runs thousands of I/O-bound machines in one process. Machines are of the class of whoever launches them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._failures: deque[tuple[str, BaseException]] = deque(maxlen=KEPT_FAILURES)

    async def launch(
        self, caller_machine: Any, target_config: dict[str, Any], input_data: dict[str, Any], execution_id: str
    ) -> None:
        machine_id = str(input_data.get("worker_id") or execution_id)
        if machine_id in self._tasks:
            return
        machine = self._make(caller_machine, target_config, machine_id)
        task = asyncio.create_task(self._run(machine, machine_id, input_data), name=machine_id)
        self._tasks[machine_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(machine_id, None))

    async def invoke(
        self,
        caller_machine: Any,
        target_config: dict[str, Any],
        input_data: dict[str, Any],
        execution_id: str | None = None,
    ) -> Any:
        machine = self._make(caller_machine, target_config, execution_id or uuid.uuid4().hex)
        return await machine.execute(input=input_data)

    def live(self) -> int:
        return len(self._tasks)

    def failures(self) -> Mapping[str, BaseException]:
        return dict(self._failures)

    async def join(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def drain(self) -> None:
        self._fleet.drain()

    async def close(self, deadline: float) -> int:
        self.drain()
        if self._tasks and deadline > 0:
            await asyncio.wait(list(self._tasks.values()), timeout=deadline)
        for task in self._tasks.values():
            task.cancel()
        await self.join()
        return await self._fleet.hand_back()

    def _make(self, caller: Any, config: dict[str, Any], machine_id: str) -> Any:
        if isinstance(caller, Machine):
            return caller.peer(config, machine_id, lock=self._fleet.store.lock)
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

    async def _run(self, machine: Any, machine_id: str, input_data: dict[str, Any]) -> None:
        run = machine.run if isinstance(machine, Machine) else machine.execute
        try:
            try:
                await self._finish(machine, machine_id, await run(input=input_data))
            except (Exception, asyncio.CancelledError) as error:
                current = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and current is not None and current.cancelling():
                    raise
                self._failed(machine_id, error)
                await self._finish(machine, machine_id, {"_error": str(error), "_error_type": type(error).__name__})
        except Exception as error:
            self._failed(machine_id, error)

    async def _finish(self, machine: Any, machine_id: str, result: Any) -> None:
        """Hand back what the machine still holds, and wake who reads its result."""
        await self._fleet.hand_back(worker=machine_id)
        await machine.result_backend.write(make_uri(machine_id, "result"), result)

    def _failed(self, machine_id: str, error: BaseException) -> None:
        logger.error("%s ended: %s: %s", machine_id, type(error).__name__, error)
        self._failures.append((machine_id, error))
