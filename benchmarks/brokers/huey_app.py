"""huey: its Redis storage, which waits for tasks with a blocking pop."""

from __future__ import annotations

import sys
from typing import Any

from flatfleet.benchmarks import brokers
from huey import RedisHuey  # type: ignore[import-untyped]

app = RedisHuey("bench", url=brokers.URL, results=True, blocking=True)
task = app.task(name="work")(brokers.work)

QUEUE = app.storage.queue_key


def commands(processes: int, threads: int, kind: str) -> list[list[str]]:
    count = str(processes * threads)
    return [[sys.executable, "-m", "huey.bin.huey_consumer", f"{__name__}.app", "-w", count, "-k", kind, "-n", "-q"]]


def enqueue(jobs: list[tuple[Any, ...]]) -> list[Any]:
    return [task(*job) for job in jobs]


def result(handle: Any) -> Any:
    """What a task returned, None if it has not ended."""
    return handle.get(preserve=True)
