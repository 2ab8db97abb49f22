"""What a process uses meanwhile: its memory and its share of a core, sampled every 50 ms."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

INTERVAL = 0.05
"""Seconds between two samples."""


def rss() -> int:
    """Bytes of this process that are in memory; its peak where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def foreign() -> float:
    """CPU seconds since boot that went to others than this process and its ended children (0 without /proc).

    That is other programs, and what the host of a virtual machine gave to its other guests.
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, steal, *_ = map(int, fields)
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(each.ru_utime + each.ru_stime for each in own)


class Monitor:
    """Samples this process from a thread of its own, from `with` to its end, and at both.

    `clock` and `cpu` give seconds, `memory` bytes.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
        memory: Callable[[], int] = rss,
    ) -> None:
        self._clock, self._cpu, self._memory = clock, cpu, memory
        self._first = self._last = (0.0, 0.0)
        self._others = [0.0, 0.0]
        self._most = self.samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Monitor:
        self._others[0] = foreign()
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()
        self._others[1] = foreign()

    def look(self) -> None:
        """Take one sample."""
        self._last = self._clock(), self._cpu()
        self._first = self._last if not self.samples else self._first
        self._most = max(self._most, self._memory())
        self.samples += 1

    @property
    def cpu_percent(self) -> float:
        """CPU time ÷ time from the first sample to the last, in percent of one core: two busy threads are 200."""
        return self._cores(self._last[1] - self._first[1]) * 100

    @property
    def others(self) -> float:
        """Cores that other programs kept busy meanwhile (0 without /proc)."""
        return max(0.0, self._cores(self._others[1] - self._others[0]))

    @property
    def memory_mb(self) -> float:
        """The largest sample of the memory, in MB of 10⁶ bytes."""
        return self._most / 1e6

    def _cores(self, busy: float) -> float:
        spent = self._last[0] - self._first[0]
        return busy / spent if spent > 0 else 0.0

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.look()
