"""flatfleet as it is started by a user: a launcher with its workers over a store and an engine, driven from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import cluster, ours
from flatfleet.benchmarks.crews import LOADS, PATIENCE, Load
from flatfleet.benchmarks.harness import MACHINES, ROOT, Missing, Values, correct
from flatfleet.benchmarks.processes import Crew
from flatfleet.run import compose
from flatfleet.runtime import loop
from flatfleet.runtime.stores import open_store

LOOK = 0.02
"""Seconds between two looks at the counts of the pool."""
TASK = MACHINES / "work.yml"
IDLE = 3600


@dataclass(frozen=True)
class Fleet:
    """A store, an engine, and how many workers on how many processes (`inline` has one)."""

    store: str
    engine: str
    workers: int
    hosts: int = 1

    @property
    def name(self) -> str:
        return f"flatfleet, {self.store}, {self.engine}"

    def spec(self, address: str, **options: float) -> str:
        """The value of --engine: all hosts stand before they are needed, unless the options say otherwise."""
        slots = math.ceil(self.workers / self.hosts)
        options = {"min_size": self.hosts, "max_size": self.hosts, "slots": slots} | options
        where = f"{self.engine}://{address}" if self.engine == "ray" else self.engine
        return f"{where}?" + "&".join(f"{name}={value:g}" for name, value in options.items())


@dataclass(frozen=True)
class Site:
    """Where a fleet is: the URL of its store, the value of --engine."""

    url: str
    engine: str


@contextlib.asynccontextmanager
async def site(fleet: Fleet, folder: Path, **options: float) -> AsyncIterator[Site]:
    """A new, empty store of this kind, and what its engine needs; raises Missing."""
    ours.present(f"stores.{fleet.store}", f"engines.{fleet.engine}")
    if "ray" in (fleet.store, fleet.engine):
        if not find_spec("ray"):
            raise Missing("not installed: pip install 'flatfleet[ray]'")
        async with cluster.running(folder) as address:
            yield Site(_url(fleet.store, folder, address), fleet.spec(address, **options))
    else:
        yield Site(_url(fleet.store, folder), fleet.spec("", **options))


def _url(store: str, folder: Path, address: str = "") -> str:
    if store == "ray":
        return f"ray://{address}/{ours.POOL}?path={folder}/ray.db"
    return ours.url(store, folder)


def measured(fleet: Fleet, folder: Path, n: int, loads: Sequence[Load] = LOADS) -> Values:
    """Items per second of each load; raises Wrong unless each was completed by its only claim with the right result.

    The pool is filled while it is paused; the clock runs from when it is resumed to the last commit.
    """

    async def drive() -> Values:
        values = {}
        async with _standing(fleet, folder) as store:
            pool = store.work.pool(ours.POOL)
            for load in loads:
                count = load.size(n, fleet.workers)
                await pool.pause(math.inf)
                await _push(pool, load.unit, count, load)
                begun = time.time()
                await pool.pause(None)
                await _done(pool)
                values[load.unit] = count / (await _checked(pool, load.unit, count, load) - begun)
        return values

    return loop.run(drive())


@contextlib.asynccontextmanager
async def _standing(fleet: Fleet, folder: Path) -> AsyncIterator[Any]:
    """The store of a fleet whose workers all stand, and have done an item each."""
    async with site(fleet, folder) as where, contextlib.AsyncExitStack() as stack:
        if fleet.store == "memory":
            store = await stack.enter_async_context(_inside(fleet, where.url))
        else:
            store, _ = await stack.enter_async_context(outside(fleet, where, folder))
        await _stand(store.work.pool(ours.POOL), fleet.workers)
        yield store


@contextlib.asynccontextmanager
async def _inside(fleet: Fleet, where: str) -> AsyncIterator[Any]:
    """Workers in this process: nobody else can reach a store in memory."""
    parts, bundle = compose(where, served=True), ours.task_worker("work")
    machines = {name: parts.machine(bundle, str(MACHINES), name) for name in (f"w{k}" for k in range(fleet.workers))}
    given = {"pool": ours.POOL, "idle_timeout": IDLE}
    workers = [asyncio.create_task(each.run(given | {"worker_id": name})) for name, each in machines.items()]
    try:
        yield parts.store
        parts.fleet.drain()
        await asyncio.gather(*workers)
    finally:
        await parts.fleet.close()


@contextlib.asynccontextmanager
async def outside(fleet: Fleet, where: Site, folder: Path) -> AsyncIterator[tuple[Any, Crew]]:
    """A fleet that a launcher of its own process serves: its store, its processes."""
    with Crew(folder) as crew:
        crew.start(_command(fleet, where, folder))
        store = open_store(where.url)
        driver = asyncio.current_task()
        watcher = asyncio.create_task(_watch(crew, driver))
        try:
            yield store, crew
        except asyncio.CancelledError:
            correct((last := crew.failed()) is None, f"the launcher has ended with {last}")
            raise
        finally:
            watcher.cancel()
            await store.close()
            await asyncio.to_thread(crew.end)


def _command(fleet: Fleet, where: Site, folder: Path) -> list[str]:
    rows = folder / "first.jsonl"
    rows.write_text(json.dumps(data(0)) + "\n", encoding="utf-8")
    argv = [sys.executable, str(ROOT / "run.py"), str(ROOT / "machines/launcher.yml"), "--json", "--stay"]
    argv += ["--store", where.url, "--pool", ours.POOL, "--task", str(TASK), "--input", str(rows)]
    argv += ["--workers", str(fleet.workers), "--idle-timeout", str(IDLE)]
    return argv + ([] if fleet.engine == "inline" else ["--engine", where.engine])


async def _stand(pool: Any, workers: int) -> None:
    """Return when each worker has done an item."""
    seen: set[str] = set()
    rest, deadline, n = Load("", pause=0.02), time.monotonic() + PATIENCE, 0
    while len(seen) < workers:
        correct(time.monotonic() < deadline, f"{len(seen)} of {workers} workers stand")
        names = await _push(pool, f"warm{n}", workers * 2, rest)
        await _done(pool)
        seen |= {attempt.worker for name in names for attempt in await pool.attempts(name)}
        n += 1


async def _push(pool: Any, prefix: str, n: int, load: Load) -> list[str]:
    items = [pool.new(data(k, load), key=f"{prefix}-{k}") for k in range(n)]
    added = await pool.push_many(items)
    correct(all(added) and len(added) == n, f"{sum(added)} of {n} items were added")
    return [item.id for item in items]


async def _done(pool: Any) -> None:
    """Return when nothing is left in the pool."""
    deadline, before = time.monotonic() + PATIENCE, -1
    while (counts := await pool.counts()).left:
        if counts.completed > before:
            deadline, before = time.monotonic() + PATIENCE, counts.completed
        correct(not counts.dead and time.monotonic() < deadline, f"{counts} after {PATIENCE:g} s without progress")
        await asyncio.sleep(LOOK)


async def _checked(pool: Any, prefix: str, n: int, load: Load) -> float:
    """When the last of these items was completed; raises Wrong unless each was, once, with the right result."""
    ended = []
    async for item in pool.items():
        if item.key.startswith(f"{prefix}-"):
            right = {"value": item.data["n"]} | ({"sum": str(load.sum)} if load.burn else {})
            correct(item.state == "completed" and item.token == 1, f"{item.id} is {item.state} by claim {item.token}")
            correct(item.result == right, f"{item.id} has {item.result!r}")
            ended.append(item.finished)
    correct(len(ended) == n, f"{len(ended)} of {n} items are there")
    return max(ended)


def data(number: int, load: Load = LOADS[0]) -> dict[str, Any]:
    """An item of this kind."""
    return {"n": number, "interval": load.pause, "burn": load.burn}


async def _watch(crew: Crew, driver: asyncio.Task[Any] | None) -> None:
    """Cancel who drives a fleet when its launcher has ended."""
    while crew.failed() is None:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    if driver:
        driver.cancel()
