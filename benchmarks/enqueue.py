"""Enqueueing from one client: ours in bulk, the others one by one where that is what they offer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from flatfleet.benchmarks import crews, ours, peers, server
from flatfleet.benchmarks.crews import Broker
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Values, correct
from flatfleet.run import compose

RATE = "items/s"


def _push(kind: str, one_by_one: bool = False) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        async def drive() -> float:
            parts = compose(ours.url(kind, folder))
            pool = parts.store.work.pool(ours.POOL)
            started = time.perf_counter()
            if one_by_one:
                for i in range(n):
                    await pool.push({"n": i}, {"key": str(i)})
            else:
                await ours.fill(parts, n)
            seconds = time.perf_counter() - started
            counts = await pool.counts()
            correct(counts.waiting == counts.total == n, f"{counts} after {n} items")
            await parts.fleet.close()
            return seconds

        return {RATE: n / asyncio.run(drive())}

    name = f"flatfleet, {kind}: " + ("`push`, one by one" if one_by_one else "`push_many`")
    return Contestant(name, run, 5_000 if one_by_one else 50_000)


def _broker(name: str, module: str) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        api = crews.client(Broker(name, module, ""))
        started = time.perf_counter()
        tasks = api.enqueue([(number,) for number in range(n)])
        seconds = time.perf_counter() - started
        with server.client(server.url()) as redis:
            correct(redis.llen(api.QUEUE) == len(tasks) == n, f"{redis.llen(api.QUEUE)} of {n} tasks were enqueued")
        return {RATE: n / seconds}

    return Contestant(name, run, 5_000)


CASES = (
    Case(
        "enqueue",
        "enqueue",
        "enqueue, one client",
        {RATE: "more"},
        (
            _push("sqlite"),
            _push("memory"),
            _push("redis"),
            _push("sqlite", one_by_one=True),
            Contestant("SQLiteWorkBackend, one by one", lambda folder, n: {RATE: n / peers.sdk_push(folder, n)}, 1_000),
            Contestant("huey, one by one", lambda folder, n: {RATE: n / peers.huey_push(folder, n)}, 10_000),
            _broker("huey on Redis, one by one", "huey_app"),
            _broker("RQ, `enqueue_many`", "rq_app"),
            _broker("Dramatiq, one by one", "dramatiq_app"),
            _broker("Celery, one by one", "celery_app"),
        ),
        (Goal("flatfleet, sqlite: `push_many`", RATE, 50_000),),
    ),
)
