"""Task queues over the run's Redis server: how long their workers take, results read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import server
from flatfleet.benchmarks.harness import Missing, Values, correct
from flatfleet.benchmarks.processes import Crew

PATIENCE = 120.0
"""Seconds without any progress after which a contestant is given up."""
LOOK = 0.02
"""Seconds between two looks at the length of a queue."""


@dataclass(frozen=True)
class Load:
    """Tasks of one kind: each sleeps `pause` seconds and adds up `burn` numbers. At most `most` of them a worker."""

    unit: str
    pause: float = 0.0
    burn: int = 0
    most: int = 1_000_000

    def size(self, n: int, workers: int) -> int:
        return min(n, self.most * workers)

    @property
    def sum(self) -> int:
        """What the numbers come to that a task adds up."""
        return self.burn * (self.burn - 1) // 2


LOADS = (
    Load("no-op items/s"),
    Load("5 ms items/s", pause=0.005, most=300),
)
BUSY = (Load("CPU-bound items/s", burn=1_000_000, most=60),)


@dataclass(frozen=True)
class Broker:
    """A task queue and one way to run its workers; `kind` is its own word for that.

    `prefetch` is how many tasks a worker may have in hand, where that can be set.
    """

    name: str
    module: str
    kind: str
    processes: int = 1
    threads: int = 1
    forks: bool = False
    prefetch: int = 16

    def commands(self, api: Any) -> list[list[str]]:
        made: list[list[str]] = api.commands(self.processes, self.threads, self.kind)
        return made

    def env(self) -> dict[str, str]:
        """Variables of its worker processes: `dramatiq_queue_prefetch` is Dramatiq's own, the other one is ours."""
        return dict.fromkeys(("FLATFLEET_BENCH_PREFETCH", "dramatiq_queue_prefetch"), str(self.prefetch))

    @property
    def workers(self) -> int:
        return self.processes * self.threads


def measured(broker: Broker, folder: Path, n: int, loads: Sequence[Load] = LOADS) -> Values:
    """Items per second of each load; raises Wrong unless each task ended with the right result, and Missing.

    The queue is filled while the workers, which stand and are warm, are stopped; the clock runs from when they are let
    go to the end of the last task.
    """
    api = client(broker)
    with Crew(folder) as crew:
        for command in broker.commands(api):
            crew.start(command, broker.env())
        _stand(api, crew, broker)
        values = {}
        for load in loads:
            count = load.size(n, broker.workers)
            crew.hold()
            tasks = api.enqueue([(number, load.pause, load.burn) for number in range(count)])
            started = time.time()
            crew.go()
            results = collect(api, crew, tasks)
            wrong = sum(each["value"] != number + load.sum for number, each in enumerate(results))
            correct(not wrong, f"{wrong} of {count} results are wrong")
            values[load.unit] = count / (max(each["at"] for each in results) - started)
        return values


def client(broker: Broker) -> Any:
    """The broker's module over the emptied server; raises Missing."""
    server.fresh()
    try:
        return import_module(f"flatfleet.benchmarks.brokers.{broker.module}")
    except ModuleNotFoundError as error:
        raise Missing(f"not installed: {error.name} (pip install 'flatfleet[bench]')") from None


def collect(api: Any, crew: Crew, tasks: Sequence[Any]) -> list[dict[str, Any]]:
    """Wait until the queue is empty, then read the result of each task, in order; raises Wrong."""
    with server.client(server.url()) as redis:
        _until(lambda: not redis.llen(api.QUEUE), crew, "the queue is not empty")
    return [_until(partial(api.result, task), crew, "a task has no result") for task in tasks]


def _stand(api: Any, crew: Crew, broker: Broker) -> None:
    """Return when each worker process has done tasks (of the threads of a pool not all need exist before they are needed)."""
    seen: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while len(seen) < broker.processes:
        correct(time.monotonic() < deadline, f"{len(seen)} of {broker.processes} worker processes stand")
        for parent, process in (
            each["by"] for each in collect(api, crew, api.enqueue([(0, 0.02)] * broker.workers * 2))
        ):
            seen.add(parent if broker.forks else process)


def _until(ask: Callable[[], Any], crew: Crew, why: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (answer := ask()):
        correct((last := crew.failed()) is None, f"a worker has ended with {last}")
        correct(time.monotonic() < deadline, f"{why} after {PATIENCE:g} s")
        time.sleep(LOOK)
    return answer
