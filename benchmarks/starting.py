"""How soon a new worker is at work: on a process that stands, on a new one, and as a command of its own."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import crews, fleets, ours
from flatfleet.benchmarks.crews import PATIENCE, Broker
from flatfleet.benchmarks.fleets import LOOK, TASK, Fleet
from flatfleet.benchmarks.harness import ROOT, Case, Contestant, Goal, Values, correct
from flatfleet.benchmarks.processes import Crew, children
from flatfleet.runtime import loop
from flatfleet.runtime.dispatcher import scaler_of
from flatfleet.runtime.stores import open_store

MEDIAN, WORST, FIRST = "ms", "ms at worst", "s to the first task's end"
CHANNEL = f"fleet/{ours.POOL}/scale"


def _scaled(store: str, engine: str, *, warm: bool) -> Contestant:
    fleet = Fleet(store, engine, 1, 1)

    def run(folder: Path, n: int) -> Values:
        async def drive() -> Values:
            options = {} if warm else {"min_size": 0, "idle_timeout": 0}
            async with (
                fleets.site(fleet, folder, **options) as where,
                fleets.outside(fleet, where, folder) as (opened, crew),
            ):
                await _parked(opened)
                await _empty(opened, "begin")
                await _once(opened, "first")  # caches of the bundles, and the warm host
                taken = []
                for k in range(n):
                    if not warm:
                        await _alone(crew)
                    taken.append(await _once(opened, str(k)))
            return {MEDIAN: statistics.median(taken) * 1000, WORST: max(taken) * 1000}

        return loop.run(drive())

    return Contestant(f"{fleet.name}, {'warm' if warm else 'cold'}", run, 20 if warm else 5)


async def _parked(store: Any) -> None:
    """Return when the scaler of the fleet listens, and the worker that was launched has done its item."""
    await _until(lambda: store.driver.load_snapshot(scaler_of(ours.POOL)), "the scaler has not parked")
    await _until(lambda: store.fleet(ours.POOL).hosts(), "nobody hosts the fleet")

    async def done() -> bool:
        counts = await store.work.pool(ours.POOL).counts()
        return bool(counts.completed == counts.total == 1)

    await _until(done, "the first item is not done")


async def _alone(crew: Crew) -> None:
    """Return when the launcher has no process under it."""

    async def childless() -> bool:
        return not any(map(children, crew.pids()))

    await _until(childless, "a host has not ended")


async def _once(store: Any, key: str) -> float:
    """An item waits and nobody is there; send for a worker, and send it away again. Returns the seconds to the claim."""
    pool = store.work.pool(ours.POOL)
    item = await pool.push(fleets.data(0), {"key": key})
    sent = time.time()
    await store.signals.send(CHANNEL, {"target": 1, "id": f"up-{key}"})
    attempts = await _until(lambda: pool.attempts(item), "the item is not done")
    correct(attempts[0].outcome == "completed", f"the item ended {attempts[0].outcome}")
    await _empty(store, f"down-{key}")
    started: float = attempts[0].started
    return started - sent


async def _empty(store: Any, name: str) -> None:
    """Send all workers away; return when they have gone, and the scaler has recorded that."""
    await store.signals.send(CHANNEL, {"target": 0, "id": name})
    await _until(lambda: store.fleet(ours.POOL).decision(name), "the scaler has not answered")
    await _until(lambda: _nobody(store), "the worker has not gone")


async def _nobody(store: Any) -> bool:
    return not [each for each in await store.registration.list() if each.status in ("active", "terminating")]


async def _until(ask: Callable[[], Any], why: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (answer := await ask()):
        correct(time.monotonic() < deadline, f"{why} after {PATIENCE:g} s")
        await asyncio.sleep(LOOK / 4)
    return answer


def _command(store: str) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        async def drive() -> float:
            async with fleets.site(Fleet(store, "inline", 1), folder) as where:
                opened = open_store(where.url)
                pool = opened.work.pool(ours.POOL)
                item = await pool.push(fleets.data(0), {"key": "first"})
                argv = [sys.executable, str(ROOT / "run.py"), str(ROOT / "machines/worker.yml"), "--json"]
                with Crew(folder) as crew:
                    begun = time.time()
                    crew.start([*argv, "--store", where.url, "--pool", ours.POOL, "--task", str(TASK)])
                    attempts = await _until(lambda: pool.attempts(item), "the item is not done")
                await opened.close()
            ended: float = attempts[0].ended
            return ended - begun

        return {FIRST: loop.run(drive())}

    return Contestant(f"flatfleet, {store}: run.py machines/worker.yml", run, 1)


def _broker(name: str, module: str, kind: str) -> Contestant:
    broker = Broker(name, module, kind, forks=kind == "Worker")

    def run(folder: Path, n: int) -> Values:
        api = crews.client(broker)
        tasks = api.enqueue([(0,)])
        with Crew(folder) as crew:
            begun = time.time()
            for command in broker.commands(api):
                crew.start(command, broker.env())
            return {FIRST: crews.collect(api, crew, tasks)[0]["at"] - begun}

    return Contestant(name, run, 1)


CASES = (
    Case(
        "warm",
        "starting",
        "scale message → first claim of the new worker: on a host that stands, on one that has to be started",
        {MEDIAN: "less", WORST: "less"},
        (
            _scaled("redis", "process", warm=True),
            _scaled("redis", "process", warm=False),
            _scaled("sqlite", "process", warm=True),
            _scaled("sqlite", "process", warm=False),
            _scaled("redis", "ray", warm=True),
            _scaled("redis", "inline", warm=True),
        ),
        (Goal("flatfleet, redis, process, warm", MEDIAN, 50), Goal("flatfleet, sqlite, process, warm", MEDIAN, 50)),
    ),
    Case(
        "cold",
        "starting",
        "a worker's command → its first task is done",
        {FIRST: "less"},
        (
            _command("redis"),
            _command("sqlite"),
            _broker("Celery, solo", "celery_app", "solo"),
            _broker("Celery, prefork", "celery_app", "prefork"),
            _broker("Dramatiq, one process", "dramatiq_app", ""),
            _broker("huey, a thread", "huey_app", "thread"),
            _broker("huey, a process", "huey_app", "process"),
            _broker("RQ, SimpleWorker", "rq_app", "SimpleWorker"),
            _broker("RQ, Worker", "rq_app", "Worker"),
        ),
    ),
)
