"""One execution with its interrupts: the first drains, the second stops now, the third leaves at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from flatfleet.commands.progress import Progress
from flatfleet.commands.signals import GRACE, Signals
from flatfleet.runtime.errors import StoreError, StoreGone

DEADLINE = 30.0
"""Seconds that the items in hand have to finish after the first interrupt."""
HANDOVER = 2.0
"""Seconds that a cancelled machine has after them: a worker gives back what it was claiming."""


class Session:
    """Runs a machine and stays while what it launched is live, or a message waits for a machine that may run here.

    `run(inputs)` is how to run it (the machine's own `run` without it; with it there need be no machine). With a
    `dispatcher`, machines that are parked in the store are resumed here meanwhile; a fleet that is served stays to host
    them until it is interrupted.
    """

    def __init__(
        self,
        parts: Any,
        machine: Any,
        deadline: float,
        progress: Progress,
        dispatcher: Any = None,
        run: Callable[[dict[str, Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self._parts = parts
        self._machine = machine
        self._deadline = deadline
        self._progress = progress
        self._dispatcher = dispatcher
        self._run = run or machine.run
        self._main: asyncio.Task[Any] | None = None
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self.interrupted = self.hard = False
        self.handed_back = 0

    async def execute(self, inputs: dict[str, Any]) -> tuple[Any, BaseException | None]:
        """Run the machine, and then whatever it launched, to the end or to an interrupt: (output, error)."""
        with Signals(self.interrupt, self._leave, self._deadline):
            self._main = asyncio.ensure_future(self._run(inputs))
            closer = asyncio.create_task(self._close_on_interrupt())
            if self._dispatcher is not None:
                self._dispatcher.start()
            try:
                async with self._progress:
                    return await self._finish(closer)
            finally:
                if self._dispatcher is not None:
                    await self._dispatcher.stop()

    async def _finish(self, closer: asyncio.Task[None]) -> tuple[Any, BaseException | None]:
        main, engine = self._main, self._parts.engine
        assert main is not None
        gone = asyncio.create_task(_never() if self._dispatcher is None else self._dispatcher.gone())
        try:
            await asyncio.wait([main, closer, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not main.done():
                main.cancel()
                await asyncio.wait([main], timeout=HANDOVER)
            output, error = _outcome(main)
            error = error or _ended(gone)
            if error is None and not self.interrupted:
                await self._progress.launched(output)
                if self._parts.fleet.served and (engine.live() or (self._dispatcher and self._dispatcher.fleets)):
                    self._progress.served()
            if error is not None:
                await engine.close(0)
            joined = asyncio.create_task(self._join(output) if error is None else engine.join())
            await asyncio.wait([joined, closer, gone], return_when=asyncio.FIRST_COMPLETED)
            error = error or _ended(gone)
            joined.cancel()
            if not self.interrupted:
                await engine.close(0)  # what runs in the background
        except asyncio.CancelledError:  # an interrupt from before our handlers stood
            main.cancel()
            await engine.close(0)
            await asyncio.wait([main], timeout=GRACE)
            raise
        finally:
            if self.interrupted:
                await closer
            closer.cancel()
            gone.cancel()
        return output, error

    async def _join(self, output: Any) -> None:
        """Wait until nothing runs here, and nothing parked in the store has a message."""
        dispatcher = self._dispatcher
        await self._parts.engine.join()
        if dispatcher is None:
            return
        while await dispatcher.settle():
            await self._parts.engine.join()
        if self._parts.fleet.served and (dispatcher.fleets or is_parked(output)):
            await asyncio.Event().wait()
        if not self.interrupted and not self._parts.fleet.served and not is_parked(output):
            await dispatcher.retire()

    async def end(self, code: int) -> int:
        """Return the exit code; the process ends with it here and now if what it ran did not end in time."""
        if self.hard:
            with contextlib.suppress(TimeoutError):  # claims that were under way are still being given back
                await asyncio.wait_for(self._parts.store.close(), GRACE)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code

    def interrupt(self) -> None:
        """Drain; called again, stop now."""
        if self.interrupted:
            self._now.set()
        self.interrupted = True
        self._stop.set()

    def _leave(self) -> None:
        """In a thread, when the event loop is blocked: hand back, and say so with file descriptors alone."""
        n = self._parts.fleet.guard.hand_back()
        if self._progress.quiet:
            os.write(1, json.dumps({"interrupted": True, "handed_back": n}).encode() + b"\n")
        else:
            text = f"\nstopped while a state blocked the event loop, {n} handed back; the same command goes on\n"
            os.write(2, text.encode())

    async def _close_on_interrupt(self) -> None:
        await self._stop.wait()
        if self._dispatcher is not None:
            await self._dispatcher.stop()
        self._parts.engine.drain()
        main = self._main
        if main is not None and not self._is_worker():
            main.cancel()
        self._progress.say(await self._stopping())
        ended = asyncio.create_task(self._all_ended())
        again = asyncio.create_task(self._now.wait())
        await asyncio.wait([ended, again], timeout=self._deadline, return_when=asyncio.FIRST_COMPLETED)
        self.hard = not ended.done()
        again.cancel()
        ended.cancel()
        if main is not None:
            main.cancel()
            await asyncio.wait([main], timeout=HANDOVER)
        self.handed_back = await self._parts.engine.close(0)

    async def _stopping(self) -> str:
        try:
            held = await self._parts.engine.in_hand()
        except StoreError:
            held = len(self._parts.fleet.leases)
        if not held:
            return "stopping"
        return f"stopping: {held} in hand, {self._deadline:g} s to finish (Ctrl-C again: stop now)"

    def _is_worker(self) -> bool:
        return self._machine is not None and bool(self._machine._context.get("worker_id"))

    async def _all_ended(self) -> None:
        if self._main is not None:
            await asyncio.wait([self._main])
        await self._parts.engine.join()


def is_parked(output: Any) -> bool:
    """True if a machine's output says that it waits for a message."""
    return isinstance(output, dict) and bool(output.get("_waiting"))


async def _never() -> StoreGone:
    return await asyncio.Future[StoreGone]()


def _ended(gone: asyncio.Task[StoreGone]) -> StoreGone | None:
    return gone.result() if gone.done() else None


def _outcome(task: asyncio.Task[Any]) -> tuple[Any, BaseException | None]:
    if not task.done() or task.cancelled():
        return {}, None
    error = task.exception()
    return (None, error) if error is not None else (task.result(), None)
