"""Workers that have nothing to do: what each of ten thousand costs, in memory and in a share of a core."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import ours
from flatfleet.benchmarks.harness import MACHINES, Case, Contestant, Goal, Values, correct
from flatfleet.benchmarks.peers import huey_module
from flatfleet.benchmarks.resources import rss
from flatfleet.run import Parts, compose
from flatfleet.runtime import loop
from flatfleet.runtime.bundle import Bundle

EACH, SHARE = "KB each", "% of a core"
WINDOW = 20.0
"""Seconds that 10,000 workers are watched: one heartbeat (a third of the 60 s lease) falls into it."""


def _window(n: int) -> float:
    return min(WINDOW, n / 500)


def _fleet(kind: str) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        async def drive() -> Values:
            parts = compose(ours.url(kind, folder), served=True)
            bundle = ours.task_worker("noop")
            await ours.fill(parts, 1)
            await _one(parts, bundle, "warm-up")  # caches of the bundle, the store's connection and tables
            gc.collect()
            before = rss()
            workers = [asyncio.create_task(_one(parts, bundle, f"w{k}", 3600)) for k in range(n)]
            await _calm(n, lambda: len(parts.fleet.workers) == n)
            gc.collect()
            each = (rss() - before) / n
            used, started = time.process_time(), time.perf_counter()
            await asyncio.sleep(_window(n))
            share = (time.process_time() - used) / (time.perf_counter() - started)
            correct(not any(worker.done() for worker in workers), "a worker did not wait")
            await ours.fill(parts, n, start=1)
            async with asyncio.timeout(300):
                while (await parts.store.work.pool(ours.POOL).counts()).left:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            parts.fleet.drain()
            processed = sum(output["processed"] for output in await asyncio.gather(*workers))
            await ours.check(parts, n + 1, processed + 1, True)
            await parts.fleet.close()
            return {EACH: each / 1024, SHARE: share * 100}

        return loop.run(drive())

    return Contestant(f"flatfleet, {kind}", run, 10_000)


async def _one(parts: Parts, bundle: Bundle, name: str, idle_timeout: float = 0.01) -> dict[str, Any]:
    given = {"pool": ours.POOL, "worker_id": name, "idle_timeout": idle_timeout}
    return dict(await parts.machine(bundle, str(MACHINES), name).run(given))


async def _calm(n: int, ready: Callable[[], bool]) -> None:
    """Return when `ready`, and when this process has then done next to nothing, four looks in a row."""
    look, calm = max(0.05, n / 20_000), 0
    while calm < 4:
        used = time.process_time()
        await asyncio.sleep(look)
        calm = calm + 1 if ready() and time.process_time() - used < max(0.002, look / 100) else 0


def _huey(folder: Path, n: int) -> Values:
    app = huey_module().SqliteHuey(filename=str(folder / "huey.db"), results=True, fsync=False)
    app.pending_count()
    consumer = app.create_consumer(workers=n, worker_type="thread", periodic=False, max_delay=1.0)
    before = rss()
    consumer.start()
    time.sleep(_window(n) / 2)  # the pause between two polls grows to its maximum
    each = (rss() - before) / n
    used, started = time.process_time(), time.perf_counter()
    time.sleep(_window(n))
    share = (time.process_time() - used) / (time.perf_counter() - started)
    consumer.stop(graceful=True)
    return {EACH: each / 1024, SHARE: share * 100}


CASES = (
    Case(
        "waiting",
        "waiting",
        "workers that wait for work, one process (then each gets an item)",
        {EACH: "less", SHARE: "less"},
        (
            _fleet("sqlite"),
            _fleet("memory"),
            _fleet("redis"),
            Contestant("huey, 1,000 threads that look once a second", _huey, 1_000),
        ),
        (Goal("flatfleet, sqlite", EACH, 12), Goal("flatfleet, sqlite", SHARE, 0.1)),
    ),
)
