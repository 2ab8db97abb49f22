"""One execution with its interrupts: the first drains, the second stops now, the third leaves at once."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from flatfleet.commands.progress import Progress
from flatfleet.commands.signals import GRACE, Signals


class Session:
    """Runs a machine and stays while what it launched is live."""

    def __init__(self, parts: Any, machine: Any, deadline: float, progress: Progress) -> None:
        self._parts = parts
        self._machine = machine
        self._deadline = deadline
        self._progress = progress
        self._main: asyncio.Task[Any] | None = None
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self.interrupted = self.hard = False
        self.handed_back = 0

    async def execute(self, inputs: dict[str, Any]) -> tuple[Any, BaseException | None]:
        """Run the machine, and then whatever it launched, to the end or to an interrupt: (output, error)."""
        with Signals(self.interrupt, self._leave, self._deadline):
            self._main = asyncio.create_task(self._machine.run(inputs))
            closer = asyncio.create_task(self._close_on_interrupt())
            async with self._progress:
                return await self._finish(closer)

    async def _finish(self, closer: asyncio.Task[None]) -> tuple[Any, BaseException | None]:
        main, engine = self._main, self._parts.engine
        assert main is not None
        try:
            await asyncio.wait([main, closer], return_when=asyncio.FIRST_COMPLETED)
            output, error = _outcome(main)
            if error is None and not self.interrupted:
                self._progress.launched(output)
            if error is not None:
                await engine.close(0)
            joined = asyncio.create_task(engine.join())
            await asyncio.wait([joined, closer], return_when=asyncio.FIRST_COMPLETED)
            joined.cancel()
        except asyncio.CancelledError:  # an interrupt from before our handlers stood
            main.cancel()
            await engine.close(0)
            await asyncio.wait([main], timeout=GRACE)
            raise
        finally:
            if self.interrupted:
                await closer
            closer.cancel()
        return output, error

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
        self._parts.engine.drain()
        main, leases = self._main, self._parts.fleet.leases
        if main is not None and not self._is_worker():
            main.cancel()
        self._progress.say(
            f"stopping: {len(leases)} in hand, {self._deadline:g} s to finish (Ctrl-C again: stop now)"
            if leases
            else "stopping"
        )
        ended = asyncio.create_task(self._all_ended())
        again = asyncio.create_task(self._now.wait())
        await asyncio.wait([ended, again], timeout=self._deadline, return_when=asyncio.FIRST_COMPLETED)
        self.hard = not ended.done()
        again.cancel()
        ended.cancel()
        if main is not None:
            main.cancel()
        self.handed_back = await self._parts.engine.close(0)

    def _is_worker(self) -> bool:
        return bool(self._machine._context.get("worker_id"))

    async def _all_ended(self) -> None:
        if self._main is not None:
            await asyncio.wait([self._main])
        await self._parts.engine.join()


def _outcome(task: asyncio.Task[Any]) -> tuple[Any, BaseException | None]:
    if not task.done() or task.cancelled():
        return {}, None
    error = task.exception()
    return (None, error) if error is not None else (task.result(), None)
