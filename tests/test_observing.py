"""What it costs to look at a fleet: by its workers and the seconds of the window, never by the items or other pools."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from counting import steps_of_python
from flatfleet.runtime import metrics
from flatfleet.runtime.crew import Crew
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.policies.settings import settings
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.group import statements
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatmachines import WorkerRegistration

WORKERS = 20


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(open_store(f"sqlite:{tmp_path / 'fleet.db'}"))


async def workers(driver: Any, owner: str, n: int, pool: str, status: str = "active") -> None:
    names = [f"{pool}-{status}-{k}" for k in range(n)]
    for name in names:
        await driver.register(WorkerRegistration(worker_id=name), owner, 60.0, {"pool": pool, "parallelism": 2})
        if status != "active":
            await driver.set_status(name, status)
    if status == "active":
        await driver.beat(owner, names[: n // 2], {}, 60.0)  # these follow their owner, the others do not


async def fill(store: Any, start: int, n: int) -> None:
    pool = store.work.pool("p")
    await pool.push_many(pool.new({}, key=str(k), priority=k % 3) for k in range(start, start + n))


async def steps(driver: Any, call: Callable[[], Awaitable[Any]]) -> int:
    """The steps of SQLite's machine in a call, on both connections; of a store in memory, those of Python."""
    if isinstance(driver, SQLiteDriver):
        count = itertools.count()
        await call()  # opens the connection for long reads
        both = [each._conn for each in (driver._group._connection, driver._group._reader) if each is not None]
        for db in both:
            db.set_progress_handler(lambda: next(count) < 0, 1)
        try:
            await call()
        finally:
            for db in both:
                db.set_progress_handler(None, 0)
        return next(count)
    return await steps_of_python(call)


async def test_an_observation_does_not_cost_by_the_items(any_kit):
    store, pool = any_kit.store, any_kit.store.work.pool("p")
    await workers(store.driver, store.owner, WORKERS, "p")
    await fill(store, 0, 100)
    for k in range(WORKERS):
        await pool.claim(f"p-active-{k}")

    async def look() -> None:
        seen = await metrics.observe(store, "p", settings({}))
        assert (seen.workers, seen.claimed) == (2 * WORKERS, WORKERS)

    few = await steps(store.driver, look)
    await fill(store, 100, 5000)
    assert (
        await steps(store.driver, look) < few + 2500
    )  # half the items: some seconds more of the window, and deeper trees


async def test_the_workers_of_others_and_those_that_have_ended_cost_nothing(fleet):
    """In memory they are gone through: all are of one process."""
    store, crew = fleet.store, Crew(fleet, "p")
    await workers(store.driver, store.owner, WORKERS, "p")

    async def look() -> None:
        found = await crew.look()
        assert (found.live, found.lost) == (2 * WORKERS, {})
        assert len(await store.registration.list(statuses=("active",), pool="p")) == WORKERS

    few = await steps(store.driver, look)
    await workers(store.driver, "others", 300, "q")
    await workers(store.driver, store.owner, 300, "p", "terminated")
    assert await steps(store.driver, look) < few + 50


@pytest.mark.parametrize("name", ["crew", "workers_of_pool_and_status", "workers_of_pool", "draining", "items_held"])
def test_the_plan_of_a_statement_uses_the_index_made_for_it(name):
    """No table of workers or items is gone through, and what is counted is counted in the index alone."""
    db = sqlite3.connect(":memory:")
    db.executescript(statements()["schema"])
    wanted = ("o",) if name == "draining" else {"pool": "p", "now": 0.0, "statuses": "[]"}
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statements()[name]}", wanted)]
    db.close()
    tables = [
        step for step in plan if step.split()[0] in ("SCAN", "SEARCH") and step.split()[1] in ("workers", "items", "w")
    ]
    index = {"draining": "workers_live", "items_held": "items_claimed"}.get(name, "workers_pool")
    assert tables and all(f"INDEX {index}" in step for step in tables)
    if name in ("crew", "items_held"):
        assert all("COVERING" in step for step in tables)
        assert not any("TEMP B-TREE" in step for step in plan)
