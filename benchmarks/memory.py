"""Memory over a long run: how much a process grows with the items that it has done, over the second half."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

from flatfleet.benchmarks import ours, peers
from flatfleet.benchmarks.harness import Case, Contestant, Values
from flatfleet.benchmarks.resources import rss

GROWTH, DISK = "KB per 1,000 items", "bytes on disk an item"
LOOK = 0.2
"""Seconds between two looks at the process's memory."""


class Watch:
    """Samples the memory of this process from a thread of its own."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        gc.collect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join()

    def end(self) -> None:
        self._stop.set()

    def growth(self, n: int) -> float:
        """KB per 1,000 items over the second half of the time."""
        start = len(self._samples) // 2
        return (self._samples[-1] - self._samples[start]) / 1024 / (n * (1 - start / len(self._samples))) * 1000

    def _run(self) -> None:
        while True:
            self._samples.append(rss())
            if self._stop.wait(LOOK):
                return


def _watched(run: Callable[[Path, int, Watch], float], size: int, name: str) -> Contestant:
    def measured(folder: Path, n: int) -> Values:
        with Watch() as watch:
            run(folder, n, watch)
        disk = sum(file.stat().st_size for file in folder.iterdir()) / n
        return {GROWTH: watch.growth(n), DISK: disk}

    return Contestant(name, measured, size)


def _ours(task: str) -> Callable[[Path, int, Watch], float]:
    return lambda folder, n, watch: ours.loop(ours.task_worker(task), "sqlite", folder, n, 64, ended=watch.end)


CASES = (
    Case(
        "memory",
        "memory",
        "growth over a long run, 64 workers, `machine: task`",
        {GROWTH: "less", DISK: "less"},
        (
            _watched(_ours("noop"), 100_000, "flatfleet, sqlite"),
            _watched(_ours("noop_saved"), 30_000, "flatfleet, sqlite, saves each state"),
            _watched(lambda folder, n, _: peers.sdk_loop(folder, n, 64, task="noop"), 2_000, peers.SDK),
            _watched(lambda folder, n, _: peers.huey_loop(folder, n, 64), 20_000, peers.HUEY),
        ),
    ),
)
