"""`python -m benchmarks.orchestrator`: the real fleet as an orchestrator, beside the capacity model and the ideal.

The shipped machines/worker.yml over a durable SQLite store, one process; the state `process` sleeps for the task time.
Each row is two runs. At once: all tasks are dispatched together, which gives tasks/s. At load: they come one by one,
Poisson, at 70 % of what the workers can do, which gives the latency.

The network is a sleep of `--network-latency` between a task's dispatch and its arrival in the store; tasks on their way do
not hold each other up, and keep no worker busy. The way back is not waited for. dispatch_start is the moment at which a
task is due, completion the one at which the store has recorded its result.
latency = mean(completion − dispatch_start), and so network, wait, claim, task and commit;
tasks/s = tasks / (last completion − first dispatch_start).

model: what runtime/policies/queueing.py projects from one worker's measured tasks/s alone: c times as many, and the
latency of Poisson arrivals with service times that are all the same. ideal: only network and tasks take time, nobody waits.
MB: the largest sample of the process's memory, one every 50 ms. CPU %: of one core, while all tasks are done at once.
others: cores that other programs kept busy meanwhile; where they did, measure again.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import ours
from flatfleet.benchmarks.flags import count, parser, part, positive, several, span, tasks
from flatfleet.benchmarks.harness import MACHINES, Wrong, correct
from flatfleet.benchmarks.orchestrator_sim import Span, ideal, summary
from flatfleet.benchmarks.resources import Monitor
from flatfleet.commands import cli, exits
from flatfleet.commands.terminal import document, say, show
from flatfleet.run import Parts, compose
from flatfleet.runtime import loop
from flatfleet.runtime.policies.queueing import Queue

LOOK, IDLE = 0.05, 3600.0
"""Seconds between two looks at whether all is done; that a worker waits for work."""
SEED_TASKS_PER_S = {(4, number, 0.005): (209, 220) for number in (500, 1200)}
"""(workers, tasks, task time) → least and most of the seed's own table, as DESIGN.md §10 quotes it."""
SEED_MESSAGE_TO_WORKER_S = {"warm": (0.1, 0.1), "cold": (2.0, 5.0)}
"""From a scale message to a worker, in the seed's words (§10). Ours: `python -m benchmarks --only scaling startup`."""
HEADS = (
    *("task ms", "tasks", "workers", "tasks/s", "model", "ideal", "seed"),
    *("latency ms", "model", "ideal", "MB", "CPU %", "others"),
)
WIDTHS = tuple(max(len(head), 7) for head in HEADS)

Row = dict[str, Any]
Fleet = Callable[[int, float, float, Sequence[float]], list[Span]]
"""(workers, task time, network latency, when each task is due from the start) → what became of the tasks; in seconds."""


def on_fleet(workers: int, task_time: float, network_latency: float, due: Sequence[float]) -> list[Span]:
    """Do the tasks with a fleet and a store of their own. Raises Wrong unless each was done once."""
    with tempfile.TemporaryDirectory(prefix="flatfleet-bench-", ignore_cleanup_errors=True) as folder:
        return loop.run(_drive(Path(folder), workers, task_time, network_latency, due))


def rows(options: argparse.Namespace, fleet: Fleet = on_fleet) -> Iterator[Row]:
    """Measure row by row; for each task time and number of tasks one worker is first, since the model starts from it."""
    latency = options.network_latency
    for task_time in options.task_times:
        for number in options.tasks:
            service = 0.0
            for workers in range(1, options.max_workers + 1):
                with Monitor() as busy:
                    at_once = summary(fleet(workers, task_time, latency, [0.0] * number))
                service = service or number / (at_once["total_duration_s"] - latency)
                queue = Queue(options.load * workers * service, service, workers, latency, service_cv2=0.0)
                with Monitor() as calm:
                    at_load = summary(fleet(workers, task_time, latency, poisson(queue.arrival, number)))
                best = summary(ideal(number, workers, latency, task_time))
                yield {
                    "workers": workers,
                    "tasks": number,
                    "task_time_s": task_time,
                    "network_latency_s": latency,
                    "tasks_per_s": at_once["throughput"],
                    "model_tasks_per_s": number / (latency + number / (workers * queue.service)),
                    "ideal_tasks_per_s": best["throughput"],
                    "seed_tasks_per_s": SEED_TASKS_PER_S.get((workers, number, task_time)),
                    "arrival_per_s": queue.arrival,
                    "mean_latency_ms": at_load["avg_latency_s"] * 1000,
                    "model_latency_ms": queue.response * 1000,
                    "ideal_latency_ms": (latency + task_time) * 1000,
                    "at_once_latency_ms": at_once["avg_latency_s"] * 1000,
                    "ideal_at_once_latency_ms": best["avg_latency_s"] * 1000,
                    "memory_mb": max(busy.memory_mb, calm.memory_mb),
                    "cpu_percent": busy.cpu_percent,
                    "others_cores": max(busy.others, calm.others),
                }


def poisson(rate: float, number: int, seed: int = 1) -> list[float]:
    """When `number` tasks are due, in seconds from the start, at `rate` a second; always the same.

    The gaps are exponential, one of each quantile, in random order: so even few of them have the mean and the variance.
    """
    gaps = [-math.log1p(-(k + 0.5) / number) / rate for k in range(number)]
    random.Random(seed).shuffle(gaps)
    return list(accumulate(gaps))


def line(row: Row) -> str:
    seed = row["seed_tasks_per_s"]
    cells = [f"{row['task_time_s'] * 1000:g}", f"{row['tasks']}", f"{row['workers']}"]
    cells += [f"{row[name]:,.0f}" for name in ("tasks_per_s", "model_tasks_per_s", "ideal_tasks_per_s")]
    cells += ["–".join(map(str, seed)) if seed else ""]
    cells += [f"{row[name]:.1f}" for name in ("mean_latency_ms", "model_latency_ms", "ideal_latency_ms", "memory_mb")]
    return _line([*cells, f"{row['cpu_percent']:.0f}", f"{row['others_cores']:.1f}"])


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    found = []
    if not options.json:
        show(f"{_title(options)}\n\n{_line(HEADS)}")
    try:
        for row in rows(options):
            found.append(row)
            if options.json:
                say(line(row))
            else:
                show(line(row))
                sys.stdout.flush()
    except Wrong as error:
        say(f"wrong, so its speed does not count: {error}")
        return exits.SOME_FAILED
    if options.json:
        document({"load": options.load, "seed_message_to_worker_s": SEED_MESSAGE_TO_WORKER_S, "rows": found})
    else:
        show("\nseed, message → worker: 0.1 s warm, 2–5 s cold; ours: python -m benchmarks --only scaling startup")
    return exits.DONE


async def _drive(
    folder: Path, workers: int, task_time: float, network_latency: float, due: Sequence[float]
) -> list[Span]:
    parts = compose(ours.url("sqlite", folder), served=True)
    bundle, pool, crew = ours.action_worker(task_time), parts.store.work.pool(ours.POOL), []
    try:
        await ours.fill(parts, workers)  # so that the caches of the bundle and the tables are there before it counts
        for k in range(workers):
            given = {"pool": ours.POOL, "worker_id": f"w{k}", "idle_timeout": IDLE}
            crew.append(asyncio.create_task(parts.machine(bundle, str(MACHINES), f"w{k}").run(given)))
        await _all_done(parts, crew, workers)
        started = time.time()

        async def dispatch(number: int, at: float) -> None:
            await asyncio.sleep(max(0.0, at - time.time()))
            await asyncio.sleep(network_latency)
            await pool.push({"n": number}, {"key": str(number)})

        starts = {str(number): started + at for number, at in enumerate(due, workers)}
        await asyncio.gather(*(dispatch(int(key), at) for key, at in starts.items()))
        await _all_done(parts, crew, workers + len(due))
        parts.fleet.drain()
        processed = sum(output["processed"] for output in await asyncio.gather(*crew))
        await ours.check(parts, workers + len(due), processed, False)
        return [(starts[item.key], item.finished) async for item in pool.items() if item.key in starts]
    finally:
        for worker in crew:
            worker.cancel()
        await asyncio.gather(*crew, return_exceptions=True)
        await parts.fleet.close()


async def _all_done(parts: Parts, crew: Sequence[asyncio.Task[Any]], number: int) -> None:
    """Return when `number` items are completed; raises Wrong if one is dead, or if a worker has ended."""
    while (counts := await parts.store.work.pool(ours.POOL).counts()).completed < number:
        for worker in crew:
            correct(not worker.done(), f"a worker has ended before the work: {worker.done() and worker.result()}")
        correct(not counts.dead, f"{counts.dead} items are dead")
        await asyncio.sleep(LOOK)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("orchestrator", __doc__)
    made.add_argument("--max-workers", type=count, default=4, metavar="N", help="rows for 1 to N workers (4)")
    made.add_argument(
        "--network-latency", type=span, default=0.005, metavar="SPAN", help="on the way to the store (5ms)"
    )
    made.add_argument(
        "--tasks", type=several(tasks), default=[500, 800, 1200], metavar="N,N", help="tasks of a run (500,800,1200)"
    )
    made.add_argument(
        "--task-times",
        type=several(positive),
        default=[0.005],
        metavar="SPAN,SPAN",
        help="that a task keeps a worker (5ms)",
    )
    made.add_argument(
        "--load",
        type=part,
        default=0.7,
        metavar="X",
        help="arrivals ÷ what the workers can do, where latency is measured (0.7)",
    )
    return cli.finish(made, argv, "orchestrator")


def _title(options: argparse.Namespace) -> str:
    return (
        f"network latency {options.network_latency * 1000:g} ms · tasks/s, CPU: all tasks at once · "
        f"latency: Poisson arrivals at {options.load:.0%} of c times what one worker does"
    )


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


if __name__ == "__main__":
    exits.leave(main, sys.argv[1:])
