"""One decision of an autoscaler over a large fleet: look at the store, decide, record it."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import ours
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Values, correct
from flatfleet.run import Parts, compose
from flatfleet.runtime import decisions, loop
from flatfleet.runtime.autoscaler import Autoscaler
from flatmachines import WorkerRegistration

MEDIAN, WORST = "ms", "ms at worst"
ROUNDS = 50
ITEMS_EACH = 100
"""Items for each worker."""
DECIDED = 50
"""Decisions of the scaler that there are already."""
AT_ONCE = 10_000
"""Items or workers that the store is given at once while the fleet is set up."""


def _fleet(kind: str) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        async def drive() -> Values:
            parts = compose(ours.url(kind, folder), served=True)
            try:
                workers = max(1, n // ITEMS_EACH)
                await _set_up(parts, workers, n)
                policy = {"mode": "slo", "slo": "5s@95%", "max": 2 * workers}
                scaler: dict[str, Any] = {"pool": ours.POOL, "policy": policy}
                await _decide(parts, scaler)  # the connection that it reads on, and the check of its policy
                taken = [await _decide(parts, scaler) for _ in range(ROUNDS)]
                seen, kept = scaler["seen"], await parts.store.fleet(ours.POOL).policy_decisions()
                counted = seen["workers"], seen["claimed"], seen["waiting"]
                correct(counted == (workers, workers, n - 2 * workers), f"it saw {seen}")
                correct(len(kept) == ROUNDS + 1, f"{len(kept)} of {ROUNDS + 1} decisions were recorded")
            finally:
                await parts.fleet.close()
            return {MEDIAN: statistics.median(taken) * 1000, WORST: max(taken) * 1000}

        return loop.run(drive())

    return Contestant(f"flatfleet, {kind}", run, 1_000_000)


async def _set_up(parts: Parts, workers: int, n: int) -> None:
    """Items, live workers with one done and one in hand, and as many decisions of the scaler as are looked through."""
    for start in range(0, n, AT_ONCE):
        await ours.fill(parts, min(AT_ONCE, n - start), start)
    driver, owner, pool = parts.store.driver, parts.store.owner, parts.store.work.pool(ours.POOL)
    names = [f"w{k}" for k in range(workers)]
    register = parts.store.registration.register
    about = {"pool": ours.POOL, "parallelism": 1, "decision": "bench", "machine": "worker"}
    for start in range(0, workers, AT_ONCE):
        await asyncio.gather(
            *(register(WorkerRegistration(worker_id=name), about) for name in names[start : start + AT_ONCE])
        )
    await driver.beat(owner, names, {}, parts.store.lease)
    done = await asyncio.gather(*(pool.claim(name) for name in names))
    await asyncio.gather(*(pool.complete(each.id, None, token=each.token) for each in done if each))
    held = await asyncio.gather(*(pool.claim(name) for name in names))
    await driver.beat(owner, names, {each.id: each.token for each in held if each}, 3600)
    for k in range(DECIDED):
        made = decisions.begin(ours.POOL, f"d{k}", {"target": workers}, None)
        decisions.imagine(made, names, ())
        await parts.store.fleet(ours.POOL).decide(made | {"outcome": "applied", "target": workers})


async def _decide(parts: Parts, context: dict[str, Any]) -> float:
    """Let an autoscaler go once through observe, decide and record of autoscaler.yml; return the seconds."""
    started = time.perf_counter()
    await Autoscaler(context, parts.fleet).observe()
    await Autoscaler(context, parts.fleet).decide()
    await Autoscaler(context, parts.fleet).record()
    return time.perf_counter() - started


CASES = (
    Case(
        "decide",
        "deciding",
        "one scaling decision: observe → decide → record, 10,000 live workers, 10⁶ items",
        {MEDIAN: "less", WORST: "less"},
        (_fleet("sqlite"), _fleet("memory")),
        (Goal("flatfleet, sqlite", MEDIAN, 10), Goal("flatfleet, memory", MEDIAN, 10)),
    ),
)
