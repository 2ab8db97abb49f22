"""The inline engine: launched machines are tasks of this event loop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Any, Literal

from flatfleet.runtime.engines.contract import Outcome
from flatfleet.runtime.engines.hold import Hold, hold
from flatfleet.runtime.engines.making import Bundles, comes_again, id_of, parked, peer, stays, under
from flatfleet.runtime.errors import MachineError, StoreError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.machine import Machine
from flatfleet.runtime.stores.records import CUT_OFF, WAITING, WOKEN
from flatmachines.actions import MachineInvoker
from flatmachines.backends import make_uri

logger = logging.getLogger(__name__)

KEPT_FAILURES = 100

Change = Callable[[Literal["began", "ended"], str, BaseException | None, bool], None]


class InlineEngine(MachineInvoker):
    """Runs thousands of I/O-bound machines in one process. Machines are of the class of whoever launches them.

    `build(bundle, execution_id)` makes a machine to resume; `on_named(machine_id)` hears of each that is run by name, and
    `on_change(kind, machine_id, error, cancelled)` of each launched one that begins or ends, but for those in the background.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._store = fleet.store
        self._tasks: dict[str, asyncio.Task[Outcome]] = {}
        self._background: set[str] = set()
        self._names: set[str] = set()
        self._resumed: set[str] = set()
        self._failures: deque[tuple[str, BaseException]] = deque(maxlen=KEPT_FAILURES)
        self._bundles = Bundles(fleet.store)
        self.build: Callable[[Any, str], Machine] | None = None
        self.on_named: Callable[[str], None] = lambda machine_id: None
        self.on_change: Change = lambda kind, machine_id, error, cancelled: None
        self._wrong: dict[str, BaseException] = {}

    def start(self) -> None: ...

    async def launch(
        self, caller_machine: Any, target_config: dict[str, Any], input_data: dict[str, Any], execution_id: str
    ) -> None:
        machine_id = id_of(input_data, execution_id)
        if machine_id in self._tasks:
            return
        try:
            machine = peer(caller_machine, target_config, machine_id, self._store.lock)
        except Exception as error:
            await self._fleet.bookings.end(machine_id, type(error).__name__)
            raise
        self.admit(machine, machine_id, input_data)

    def admit(self, machine: Any, machine_id: str, input_data: dict[str, Any]) -> None:
        """Launch a machine that is made already; idempotent by its id."""
        if machine_id in self._tasks:
            return
        if stays(machine.config, {}):
            self._background.add(machine_id)
        if named := bool(input_data.get("machine_id")):
            self._names.add(machine_id)
        self._start(machine_id, self._launched(machine, machine_id, input_data, named))
        if machine_id not in self._background:
            self.on_change("began", machine_id, None, False)

    async def invoke(
        self,
        caller_machine: Any,
        target_config: dict[str, Any],
        input_data: dict[str, Any],
        execution_id: str | None = None,
    ) -> Any:
        machine = peer(caller_machine, target_config, execution_id or uuid.uuid4().hex, self._store.lock)
        return await machine.execute(input=input_data)

    def resume(self, execution_id: str, *, unparked: bool = False) -> asyncio.Task[Outcome] | None:
        if execution_id in self._tasks:
            return None
        self._resumed.add(execution_id)
        events = (WAITING, WOKEN, *CUT_OFF) if unparked else (WAITING, WOKEN)
        return self._start(execution_id, self._take_up(execution_id, events))

    async def run_named(self, machine: Machine, input_data: Mapping[str, Any]) -> Any:
        """Run a machine under a name that others may run it under, too, as `launch` does; its output is returned.

        Raises MachineError where another process runs it.
        """
        self.on_named(machine.execution_id)
        async with hold(self._store, machine.execution_id) as held:
            if held is None:
                raise MachineError(f"machine {machine.execution_id} is running in another process")
            return await self._run_named(under(held, machine), input_data, held)

    def live(self) -> int:
        return len(self._tasks.keys() - self._background - self._names - self._resumed)

    def owners(self) -> Collection[str]:
        return (self._store.owner,)

    async def in_hand(self) -> int:
        return len(self._fleet.leases)

    def failures(self) -> Mapping[str, BaseException]:
        return dict(self._failures)

    async def join(self) -> None:
        while tasks := [task for name, task in self._tasks.items() if name not in self._background]:
            await asyncio.wait(tasks)

    def drain(self) -> None:
        self._fleet.drain()

    async def close(self, deadline: float) -> int:
        self.drain()
        if deadline > 0 and self._tasks.keys() - self._background:
            try:
                async with asyncio.timeout(deadline):
                    await self.join()
            except TimeoutError:
                pass
        while self._tasks:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.wait(list(self._tasks.values()))
        await self._fleet.bookings.end_all()
        return await self._fleet.hand_back()

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _start(self, machine_id: str, work: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
        task = self._tasks[machine_id] = asyncio.create_task(work, name=machine_id)
        task.add_done_callback(partial(self._over, machine_id))
        return task

    def _over(self, machine_id: str, task: asyncio.Task[Outcome]) -> None:
        """Forget a task; a message may have come for it after it looked, when it could not be resumed yet."""
        del self._tasks[machine_id]
        error, told = self._wrong.pop(machine_id, None), machine_id not in self._background | self._resumed
        self._background.discard(machine_id)
        self._names.discard(machine_id)
        self._resumed.discard(machine_id)
        if told:
            self.on_change("ended", machine_id, error, task.cancelled())
        if not task.cancelled() and task.exception() is None and task.result() == "parked":
            self._store.bell.ring("signals")

    async def _launched(self, machine: Any, machine_id: str, input_data: dict[str, Any], named: bool) -> Outcome:
        if not isinstance(machine, Machine):
            return await self._ended(machine, machine_id, machine.execute(input=input_data))
        if named:
            self.on_named(machine_id)
        try:
            async with hold(self._store, machine_id) as held:
                if held is None:
                    logger.info("%s runs in another process", machine_id)
                    return "elsewhere"
                run = self._run_named(machine, input_data, held) if named else machine.run(input_data)
                return await self._ended(under(held, machine), machine_id, run, held)
        except StoreError as error:
            self._failed(machine_id, error)
            return "failed"

    async def _run_named(self, machine: Machine, input_data: Mapping[str, Any], held: Hold) -> Any:
        """Run a machine that may have run before under its name: what was interrupted comes first.

        Of a machine that is saved at its start alone nothing is: it begins anew, with the new input.
        """
        row = await self._store.driver.load_snapshot(machine.execution_id)
        begun = "machine_start" not in machine.checkpoint_events
        if begun and row is not None and row.event not in ("waiting", "machine_end"):
            try:
                output = await under(held, await self._bundles.rebuilt(row, self.build)).execute(
                    resume_from=row.execution_id
                )
            except Exception as error:
                if held.lost or isinstance(error, StoreError):
                    raise
                logger.error("%s starts afresh, as it could not go on where it was: %s", row.execution_id, error)
            else:
                if not parked(output):
                    return output
        return await machine.run(input_data, fresh=True)

    async def _take_up(self, machine_id: str, events: Collection[str]) -> Outcome:
        """Resume a machine from its snapshot, if that is still there and nobody else runs it."""
        try:
            async with hold(self._store, machine_id) as held:
                if held is None:
                    return "elsewhere"
                row = await self._store.driver.load_snapshot(machine_id)
                if row is None or row.event not in events:
                    return "gone"
                try:
                    machine = under(held, await self._bundles.rebuilt(row, self.build))
                except StoreError:
                    raise
                except Exception as error:
                    logger.error("%s cannot be resumed here: %s", machine_id, error)
                    return "refused"
                return await self._ended(
                    machine, machine_id, machine.execute(resume_from=machine_id), held, resumed=True
                )
        except StoreError as error:
            logger.warning("%s could not be resumed: %s", machine_id, error)
            return "elsewhere"

    # -- ends ----------------------------------------------------------------------------------------------------------

    async def _ended(
        self, machine: Any, machine_id: str, run: Awaitable[Any], held: Hold | None = None, *, resumed: bool = False
    ) -> Outcome:
        """Wait for a machine; see that it holds nothing, and that who reads its result is woken."""
        told: BaseException | None = None
        try:
            try:
                result = await run
                await self._fleet.hand_back(worker=machine_id)
                if parked(result):
                    return "parked" if not resumed or machine.persistence.took else "idle"
                await self._write(machine, machine_id, result)
            except (Exception, asyncio.CancelledError) as error:
                current = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and current is not None and current.cancelling():
                    raise
                await self._fleet.hand_back(worker=machine_id)
                if held is not None and held.lost:
                    logger.warning("%s", error)
                    return "elsewhere"
                self._failed(machine_id, told := error)
                await self._fleet.bookings.end(machine_id, type(error).__name__)
                if not resumed or not await comes_again(self._store, machine_id, error):
                    await self._write(machine, machine_id, {"_error": str(error), "_error_type": type(error).__name__})
                return "failed"
        except Exception as error:
            if not isinstance(told, StoreError):  # else it is the same fault again
                self._failed(machine_id, error)
            return "failed"
        return "ended"

    async def _write(self, machine: Any, machine_id: str, result: Any) -> None:
        await machine.result_backend.write(make_uri(machine_id, "result"), result)

    def _failed(self, machine_id: str, error: BaseException) -> None:
        logger.error("%s ended: %s: %s", machine_id, type(error).__name__, error)
        self._failures.append((machine_id, error))
        self._wrong[machine_id] = error
