"""`python -m benchmarks.orchestrator_sim`: an orchestrator of bare coroutines: a queue, workers that sleep, no store.

Prints JSON. It is what orchestrator.py is without a fleet, and counts the same way: all tasks are dispatched at once, each
spends the network latency on its way to the queue, where it keeps no worker busy, and then waits for a free worker, which
sleeps for the task time. A task's latency is completion − dispatch_start, the wait included. The way back is not waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Sequence
from statistics import fmean

from flatfleet.benchmarks.flags import count, parser, span, tasks
from flatfleet.benchmarks.resources import Monitor
from flatfleet.commands import cli, exits
from flatfleet.commands.terminal import document, show
from flatfleet.runtime import loop

Span = tuple[float, float]
"""(dispatch_start, completion) of one task, in seconds of one clock."""


def summary(spans: Sequence[Span]) -> dict[str, float]:
    """Sum tasks up: total_duration_s = last completion − first dispatch_start; avg_latency_s = mean(completion −
    dispatch_start); throughput = tasks / total_duration, per second (inf where nothing took any time).
    """
    total = max(end for _, end in spans) - min(start for start, _ in spans)
    latency = fmean(end - start for start, end in spans)
    return {
        "total_duration_s": total,
        "avg_latency_s": latency,
        "throughput": len(spans) / total if total > 0 else math.inf,
    }


def ideal(tasks: int, workers: int, network_latency: float, task_time: float) -> list[Span]:
    """When tasks that are dispatched at once end if nothing but the network and the tasks takes any time."""
    return [(0.0, network_latency + task_time * (1 + k // workers)) for k in range(tasks)]


async def simulate(tasks: int, workers: int, network_latency: float, task_time: float) -> list[Span]:
    """Let `workers` coroutines do `tasks` tasks; times in seconds of the event loop's clock."""
    now, queue, spans = asyncio.get_running_loop().time, asyncio.Queue[float | None](), list[Span]()

    async def dispatch() -> None:
        started = now()
        await asyncio.sleep(network_latency)
        queue.put_nowait(started)

    async def work() -> None:
        while (started := await queue.get()) is not None:
            await asyncio.sleep(task_time)
            spans.append((started, now()))

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
        await asyncio.gather(*(dispatch() for _ in range(tasks)))
        for _ in range(workers):
            queue.put_nowait(None)
    return spans


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    asked = options.tasks, options.workers, options.network_latency, options.task_time
    with Monitor() as monitor:
        spans = loop.run(simulate(*asked))
    best = summary(ideal(*asked))
    told = {
        "workers": options.workers,
        "tasks": options.tasks,
        "network_latency_s": options.network_latency,
        "task_time_s": options.task_time,
        **summary(spans),
        "ideal_avg_latency_s": best["avg_latency_s"],
        "ideal_throughput": best["throughput"],
        "cpu_percent": monitor.cpu_percent,
        "memory_mb": monitor.memory_mb,
        "samples": monitor.samples,
    }
    if options.json:
        document(told)
    else:
        show(json.dumps({name: _rounded(value) for name, value in told.items()}, indent=2))
    return exits.DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("orchestrator_sim", __doc__)
    made.add_argument("--workers", type=count, default=2, metavar="N", help="coroutines that work (2)")
    made.add_argument("--tasks", type=tasks, default=20, metavar="N", help="tasks, dispatched at once (20)")
    made.add_argument(
        "--network-latency", type=span, default=0.01, metavar="SPAN", help="on the way to the queue (10ms)"
    )
    made.add_argument("--task-time", type=span, default=0.01, metavar="SPAN", help="that a task keeps a worker (10ms)")
    return cli.finish(made, argv, "orchestrator_sim")


def _rounded(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return round(value, 6) if math.isfinite(value) else None


if __name__ == "__main__":
    exits.leave(main, sys.argv[1:])
