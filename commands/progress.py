"""Live progress: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from flatfleet.commands import terminal
from flatfleet.commands.durations import span, until
from flatfleet.commands.finding import count
from flatfleet.runtime import routing
from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.routing import Unserved
from flatfleet.runtime.stores.records import Counts

TICK = 0.2
LINE_EVERY = 5.0
PAUSE_EVERY = 1.0
"""Seconds between two questions whether the pool is paused."""
WINDOW = 10.0
SKIPS_SHOWN = 5
Look = Callable[[], Awaitable[Unserved]]
"""Looks for the items that nobody serves."""


class Progress:
    """Watches one pool while it is entered; prints to standard error, so that standard output stays data."""

    def __init__(
        self, pool: Any, engine: Any, quiet: bool = False, unserved: Look | None = None, fleet: Any = None
    ) -> None:
        self._pool = pool
        self._engine = engine
        self._fleet = fleet
        self.quiet = quiet
        self._watcher: asyncio.Task[None] | None = None
        self._history: deque[tuple[float, int]] = deque()
        self._errors: dict[str, int] = {}
        self._paused: float | None = None
        self._asked = -PAUSE_EVERY
        self._unserved = unserved
        self._warned: set[tuple[str, ...]] = set()
        self._bar: Any = None
        self._task: Any = None

    async def __aenter__(self) -> Progress:
        if self._pool is not None and not self.quiet:
            self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    async def launched(self, output: Any) -> None:
        """Say what a launcher found, once it has ended, and until when its workers have to wait."""
        if not isinstance(output, dict) or "left" not in output:
            return
        skipped = output.get("skipped") or 0
        reasons = output.get("skipped_first", [])[:SKIPS_SHOWN]
        for reason in reasons:
            self.say(f"skipped {terminal.plain(reason)}")
        if skipped > len(reasons):
            self.say(f"skipped {skipped - len(reasons)} more")
        if output["workers"]:
            with contextlib.suppress(StoreError):
                await self._ask()
            paused = f"; {self._pause()}" if self._paused is not None else ""
            self.say(f"pool {output['pool']}: {_found(output)}; {count(output['workers'], 'worker')}{paused}")

    def served(self) -> None:
        """Say that this process does not end by itself."""
        if self._pool is not None:
            self.say(f"fleet {self._pool.name} is served here: it waits for items; Ctrl-C ends it")

    def say(self, text: str) -> None:
        """Print one message above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(terminal.lines(text), markup=False, highlight=False, soft_wrap=True)
        else:
            terminal.say(text)

    async def _watch(self) -> None:
        tty = sys.stderr.isatty()
        shown, waits = time.monotonic(), False
        while True:
            await asyncio.sleep(TICK)
            try:
                counts = await self._pool.counts()
                if counts.dead != sum(self._errors.values()):
                    self._errors = await self._pool.errors()
                if time.monotonic() - self._asked >= PAUSE_EVERY:
                    await self._ask()
                    await self._warn()
            except StoreError:
                return  # whoever works with the store says what is wrong with it
            now = time.monotonic()
            settled = counts.completed + counts.dead
            if self._history and settled < self._history[-1][1]:
                self._history.clear()  # dead items are tried again: the rate is that of what is settled from now on
            self._history.append((now, settled))
            while now - self._history[0][0] > WINDOW:
                self._history.popleft()
            if tty and counts.total:
                with contextlib.suppress(OSError):
                    self._draw(counts)
            elif now - shown >= LINE_EVERY and counts.total and not (waits and self._waits(counts)):
                shown, waits = now, self._waits(counts)
                self.say(f"{counts.completed + counts.dead}/{counts.total} · {self._info(counts)}")

    async def _ask(self) -> None:
        if self._pool is not None and not self.quiet:
            self._asked, self._paused = time.monotonic(), await self._pool.paused()

    async def _warn(self) -> None:
        """Say once, for each set of capabilities, that items wait for what no worker offers."""
        left = await self._unserved() if self._unserved is not None else Unserved()
        for need in left.needs.keys() - self._warned:
            self._warned.add(need)
            self.say(f"waiting: {terminal.plain(routing.told(need, left.needs[need], left.offered))}")

    def _pause(self) -> str:
        return "" if self._paused is None else f"paused until {until(self._paused)}"

    def _draw(self, counts: Counts) -> None:
        if self._bar is None:
            self._bar, self._task = _bar(self._pool.name)
            self._bar.start()
        self._bar.update(
            self._task,
            total=counts.total,
            completed=counts.completed + counts.dead,
            info=self._info(counts),
        )

    def _waits(self, counts: Counts) -> bool:
        """True if a fleet that is served has nothing to do."""
        return counts.left == 0 and self._fleet is not None and self._fleet.served

    def _info(self, counts: Counts) -> str:
        (then, before), (now, after) = self._history[0], self._history[-1]
        rate = (after - before) / (now - then) if now > then else 0.0
        if self._waits(counts):
            return "nothing left to do: waits for items; Ctrl-C ends it"
        parts = [f"{rate:.1f}/s", count(self._engine.live(), "worker")]
        if rate and counts.left:
            parts.insert(1, f"ETA {span(counts.left / rate)}")
        if self._paused is not None:
            parts.insert(0, self._pause())
        if counts.delayed:
            parts.append(f"{counts.delayed} waiting to be retried")
        parts += [f"{n} {terminal.plain(name)}" for name, n in list(self._errors.items())[:3]]
        return " · ".join(parts)


def _found(output: dict[str, Any]) -> str:
    done, dead, left = output["done"], output["dead"], output["left"]
    if output.get("known") or done or dead:
        text = f"{done} done, {output['recovered']} recovered, {left} left" + (f", {dead} dead" if dead else "")
    else:
        text = count(output["added"], "item")
    return text + (f", {output['skipped']} skipped" if output.get("skipped") else "")


def _bar(name: str) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=min(30, max(6, console.width // 4))),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("{task.fields[info]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=True,
    )
    return bar, bar.add_task(name, total=None, info="")
