"""A Ray cluster of a contestant's own, whatever other clusters this machine has: a process holds it, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from flatfleet.benchmarks.harness import correct
from flatfleet.benchmarks.processes import Crew, leave_in_order

START = 120.0
"""Seconds within which a cluster has to stand."""
CPUS = 16
"""What the nodes say that they have: no host waits for a place."""

EQUAL = {"RAY_worker_niceness": "0"}
"""Ray runs its workers at nice 15; nobody else here does."""


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[str]:
    """The HOST:PORT of a new cluster on 127.0.0.1; raises Wrong if it does not start."""
    home = folder / "cluster"
    home.mkdir()
    with Crew(home) as crew:
        crew.start([sys.executable, "-P", "-m", "flatfleet.benchmarks.cluster", str(home / "address")], EQUAL)
        try:
            yield await asyncio.to_thread(_address, crew, home / "address")
        finally:
            crew.end()


def _address(crew: Crew, file: Path) -> str:
    deadline = time.monotonic() + START
    while not file.exists():
        correct((last := crew.failed()) is None, f"the Ray cluster has ended with {last}")
        correct(time.monotonic() < deadline, f"the Ray cluster does not stand after {START:g} s")
        time.sleep(0.05)
    return file.read_text(encoding="utf-8")


def _hold(file: Path) -> None:
    from flatfleet.runtime.stores.ray_cluster import begin

    leave_in_order()
    found = begin(num_cpus=CPUS).result(START)
    draft = file.with_suffix(".new")
    draft.write_text(found, encoding="utf-8")
    os.replace(draft, file)  # noqa: PTH105
    signal.pause()


if __name__ == "__main__":
    _hold(Path(sys.argv[1]))
