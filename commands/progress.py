"""Live progress: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import Any

from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.stores.contract import Counts

TICK = 0.2
LINE_EVERY = 5.0
WINDOW = 10.0


class Progress:
    """Watches one pool while it is entered; prints to standard error, so that standard output stays data."""

    def __init__(self, pool: Any, engine: Any, quiet: bool = False) -> None:
        self._pool = pool
        self._engine = engine
        self._quiet = quiet
        self._watcher: asyncio.Task[None] | None = None
        self._history: deque[tuple[float, int]] = deque()
        self._bar: Any = None
        self._task: Any = None

    async def __aenter__(self) -> Progress:
        if self._pool is not None and not self._quiet:
            self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def launched(self, output: Any) -> None:
        """Say what a launcher found, once it has ended."""
        if not isinstance(output, dict) or "left" not in output:
            return
        done, dead, left = output["done"], output["dead"], output["left"]
        if output.get("known") or done:
            text = f"{done} done, {output['recovered']} recovered, {left} left" + (f", {dead} dead" if dead else "")
        else:
            text = f"{output['added']} items"
        if output.get("skipped"):
            text += f", {output['skipped']} skipped"
            for reason in output.get("skipped_first", []):
                self.say(f"skipped {reason}")
        self.say(f"pool {output['pool']}: {text}; {output['workers']} workers")

    def say(self, text: str) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    async def _watch(self) -> None:
        tty = sys.stderr.isatty()
        shown = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            try:
                counts, errors = await self._pool.counts(), await self._pool.errors()
            except StoreError:
                return  # whoever works with the store says what is wrong with it
            now = time.monotonic()
            self._history.append((now, counts.completed + counts.dead))
            while now - self._history[0][0] > WINDOW:
                self._history.popleft()
            if tty:
                self._draw(counts, errors)
            elif now - shown >= LINE_EVERY and counts.total:
                shown = now
                self.say(f"{counts.completed + counts.dead}/{counts.total} {self._info(counts, errors)}")

    def _draw(self, counts: Counts, errors: dict[str, int]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._pool.name, total=None, info="")
            self._bar.start()
        self._bar.update(
            self._task,
            total=counts.total or None,
            completed=counts.completed + counts.dead,
            info=self._info(counts, errors),
        )

    def _info(self, counts: Counts, errors: dict[str, int]) -> str:
        (then, before), (now, after) = self._history[0], self._history[-1]
        rate = (after - before) / (now - then) if now > then else 0.0
        parts = [f"{rate:.1f}/s", f"{self._engine.live()} workers"]
        if rate and counts.left:
            parts.insert(1, f"ETA {_span(counts.left / rate)}")
        if counts.delayed:
            parts.append(f"{counts.delayed} waiting to be retried")
        parts += [f"{n} {name}" for name, n in list(errors.items())[:3]]
        return " · ".join(parts)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
