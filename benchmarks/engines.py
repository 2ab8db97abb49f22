"""The process engine: how soon a new worker claims on a warm host and on one that has to start; cores for CPU-bound tasks."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flatfleet import run
from flatfleet.benchmarks import ours, scaling
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Values, correct
from flatfleet.runtime import loop
from flatfleet.runtime.actions import Actions
from flatfleet.runtime.bundle import load
from flatfleet.runtime.dispatcher import Dispatcher, scaler_of

MEDIAN, P95 = "ms", "ms at p95"
WARM, COLD = "process?min_size=2&max_size=2", "process?min_size=0&max_size=1&idle_timeout=0"
HOSTS = 2
ROUNDS = 300_000
"""Of one CPU-bound task: some 20 ms."""


async def spin(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    context["sum"] = squares(context["rounds"])
    return context


def squares(rounds: int) -> int:
    n = 0
    for k in range(rounds):
        n += k * k
    return n


def composed(url: str, **options: Any) -> run.Parts:
    """`run.compose` with the action `spin`, for this process and its hosts."""
    parts = run.compose(url, **options)
    shared = Actions("spinning", {"spin": spin}, parts.fleet)
    parts.hooks.register("spinning", lambda: shared)
    return parts


def _started(engine: str) -> Callable[[Path, int], Values]:
    """A fleet whose scaler is parked; a message for one worker, while an item waits: the time to its first claim."""

    def measure(folder: Path, n: int) -> Values:
        async def drive() -> Values:
            parts = run.compose(ours.url("sqlite", folder), served=True, engine=engine)
            dispatcher = Dispatcher(parts.store, parts.engine)
            scaler, name = load(ours.ROOT / "machines/scaler.yml", task=scaling.TASK), scaler_of(ours.POOL)
            try:
                await parts.engine.run_named(parts.machine(scaler, str(ours.ROOT), name), {"pool": ours.POOL})
                dispatcher.start()
                taken = []
                for k in range(n):
                    await _settled(parts)
                    taken.append(await scaling._once(parts, k, lambda: scaling._sent(parts.store)))
            finally:
                await dispatcher.stop()
                await parts.engine.close(0)
                await parts.fleet.close()
            later = sorted(taken[1:])  # the first parses bundles
            return {MEDIAN: statistics.median(later) * 1000, P95: later[int(0.95 * (len(later) - 1))] * 1000}

        return loop.run(drive())

    return measure


async def _settled(parts: run.Parts) -> None:
    """Wait until as many hosts are up as there are to be while nothing runs."""
    pool = getattr(parts.engine, "pool", None)
    if pool is None:
        return
    parts.engine.start()
    while [place.ready for place in pool.places] != [True] * pool.settings.min_size:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def _cores(engine: str) -> Callable[[Path, int], Values]:
    def measure(folder: Path, n: int) -> Values:
        async def drive() -> Values:
            url, about = ours.url("sqlite", folder), {"compose": f"{__name__}:composed"}
            parts = composed(url, engine=engine, hosts=about)
            try:
                await _settled(parts)
                pool = parts.store.work.pool(ours.POOL)
                await pool.push_many([pool.new({"rounds": ROUNDS}, key=str(k)) for k in range(n)])
                worker = load(ours.WORKER, task=str(ours.ROOT / "benchmarks/machines/spin.yml"))
                caller = parts.machine(worker, str(ours.ROOT))
                started = time.perf_counter()
                for k in range(HOSTS):
                    await parts.engine.launch(caller, worker, {"pool": ours.POOL, "worker_id": f"w{k}"}, f"w{k}")
                await parts.engine.join()
                seconds = time.perf_counter() - started
                counts = await pool.counts()
                correct(counts.completed == n, f"{counts.completed} of {n} items are completed")
            finally:
                await parts.engine.close(0)
                await parts.fleet.close()
            return {"items/s": n / seconds}

        return loop.run(drive())

    return measure


def _bare(folder: Path, n: int) -> Values:
    with multiprocessing.get_context("spawn").Pool(HOSTS) as pool:
        pool.map(squares, [1] * HOSTS)
        started = time.perf_counter()
        correct(len(pool.map(squares, [ROUNDS] * n, chunksize=1)) == n, "some are missing")
        return {"items/s": n / (time.perf_counter() - started)}


CASES = (
    Case(
        "engine-start",
        "engines",
        "scale message → first claim of the new worker (sqlite, served fleet, scaler parked, an item waits)",
        {MEDIAN: "less", P95: "less"},
        (
            Contestant("flatfleet, process, a warm host", _started(WARM), 40),
            Contestant("flatfleet, process, a host that has to start", _started(COLD), 8),
            Contestant("flatfleet, inline", _started("inline"), 40),
        ),
        (Goal("flatfleet, process, a warm host", MEDIAN, 50), Goal("flatfleet, process, a warm host", P95, 50)),
    ),
    Case(
        "engine-cores",
        "engines",
        f"CPU-bound tasks of some 20 ms, {HOSTS} workers",
        {"items/s": "more"},
        (
            Contestant(f"multiprocessing.Pool({HOSTS}), without a broker", _bare, 200),
            Contestant(f"flatfleet, process, {HOSTS} hosts", _cores(WARM), 200),
            Contestant("flatfleet, inline", _cores("inline"), 200),
        ),
        (Goal(f"flatfleet, process, {HOSTS} hosts", "items/s", 0.9, of_first=True),),
    ),
)
