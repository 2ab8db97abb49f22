"""Items that take a known time: how much of the ideal is left, beside bare coroutines in the same run."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Literal

from flatfleet.benchmarks import ours, peers
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Values, correct

BARE = "bare coroutines"


def bare(n: int, workers: int, pause: float) -> float:
    """The ideal that can be had: coroutines that only sleep, and share one iterator; the seconds."""
    done = 0

    async def worker(items: object) -> None:
        nonlocal done
        for _ in items:  # type: ignore[attr-defined]
            await asyncio.sleep(pause)
            done += 1

    async def drive() -> float:
        items, started = iter(range(n)), time.perf_counter()
        await asyncio.gather(*(worker(items) for _ in range(workers)))
        return time.perf_counter() - started

    seconds = asyncio.run(drive())
    correct(done == n, f"{done} of {n} items were done")
    return seconds


def _case(name: str, what: str, n: int, workers: int, pause: float, unit: str, *goals: Goal) -> Case:
    def values(count: int, seconds: float) -> Values:
        return {unit: seconds if unit == "s" else count / seconds}

    def mine(kind: str, stock: bool = False) -> Contestant:
        def run(folder: Path, count: int) -> Values:
            return values(count, ours.loop(ours.action_worker(pause), kind, folder, count, workers, stock=stock))

        return Contestant(f"FlatMachine on flatfleet's {kind}" if stock else f"flatfleet, {kind}", run, n)

    better: Literal["more", "less"] = "less" if unit == "s" else "more"
    return Case(
        name,
        "sleepers",
        what,
        {unit: better},
        (
            Contestant(BARE, lambda folder, count: values(count, bare(count, workers, pause)), n),
            mine("sqlite"),
            mine("memory"),
            mine("redis"),
            mine("sqlite", stock=True),
            Contestant(
                peers.SDK, lambda folder, count: values(count, peers.sdk_loop(folder, count, workers, pause)), n
            ),
            Contestant(
                peers.HUEY, lambda folder, count: values(count, peers.huey_loop(folder, count, workers, pause)), n
            ),
        ),
        goals,
    )


SHARE = Goal("flatfleet, sqlite", "items/s", 0.95, of_first=True)

CASES = (
    _case("5ms-500", "500 items of 5 ms, 4 workers (ideal 800/s)", 500, 4, 0.005, "items/s", SHARE),
    _case("5ms-1200", "1,200 items of 5 ms, 4 workers (ideal 800/s)", 1_200, 4, 0.005, "items/s", SHARE),
    _case(
        "half-second",
        "1,000 items of 0.5 s, 200 workers (ideal 2.5 s)",
        1_000,
        200,
        0.5,
        "s",
        Goal("flatfleet, sqlite", "s", 2.60),
    ),
)
