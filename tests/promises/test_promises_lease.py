"""Promises 4, 6 and 7 inside one process, over every store: renewal while busy, and leases that are lost."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time

import pytest
from flatfleet import hooks
from flatfleet.hooks import work
from flatfleet.runtime import bundle
from flatfleet.runtime.errors import LeaseLost, StoreUnavailable
from flatfleet.runtime.stores import open_store

SHORT = 0.3
STATES = {
    "first": {"type": "initial", "action": "first", "hooks": "test", "transitions": [{"to": "second"}]},
    "second": {"action": "second", "hooks": "test", "transitions": [{"to": "done"}]},
    "done": {"type": "final", "output": {"by": "context.by"}},
}


@pytest.fixture
def busy(any_kit, flow, trial):
    """A process with a short lease, whose workers run a task of two states; the test says what the second does."""
    kit = any_kit.other("busy", lease=SHORT)

    async def first(context, fleet):
        return context

    kit.does(first)
    task = flow(
        STATES, {"item": "input.item", "by": "input.item_id"}, inputs={"item": {"type": "object"}, "item_id": {}}
    )
    config = bundle.load(str(trial.root / "machines" / "worker.yml"), known=hooks.known())
    config["data"]["machines"]["task"] = task

    def worker(name):
        return asyncio.create_task(kit.machine(config, name).run({"worker_id": name, "pool": "p"}))

    kit.worker = worker
    return kit


async def push(kit, *names, **options):
    pool = kit.store.work.pool("p")
    await pool.push_many([pool.new({}, key=name, **options) for name in names])


async def history(kit, name="a"):
    return [(a.token, a.outcome) for a in await kit.store.driver.attempts(f"p:{name}")]


@pytest.mark.parametrize("how", ["await", "thread"])
async def test_promise_07_the_lease_is_renewed_while_a_state_is_busy(any_kit, busy, how):
    """Promise 7: a state of four leases keeps its item, although a neighbour claims whatever it can."""

    async def second(context, fleet):
        if how == "await":
            await asyncio.sleep(4 * SHORT)
        else:
            await fleet.in_thread(lambda: time.sleep(4 * SHORT))
        return context

    busy.does(second)
    await push(busy, "a")
    working = busy.worker("w1")
    while not working.done():
        await asyncio.sleep(SHORT / 10)
        if await history(busy):
            break
        assert await any_kit.store.work.pool("p").claim("thief") is None or await history(busy) == [(1, "completed")]
    await working
    await busy.close()
    assert await history(any_kit) == [(1, "completed")]


async def test_promise_07_a_blocked_event_loop_is_not_taken_for_dead_by_its_own_workers(busy):
    """Promise 7: after two leases of standstill a neighbour in the same process claims nothing that is in hand."""
    await push(busy, "a", "b")
    one, two = ({"worker_id": name, "pool": "p"} for name in ("w1", "w2"))
    await work.claim(one, busy.fleet)
    time.sleep(2 * SHORT)  # noqa: ASYNC251
    await work.claim(two, busy.fleet)
    assert (one["item_id"], two["item_id"]) == ("p:a", "p:b")
    assert await history(busy) == []
    await work.complete(one, busy.fleet)
    assert await history(busy) == [(1, "completed")]
    await busy.close()


async def test_promise_07_a_lost_lease_cancels_the_work_and_the_worker_goes_on(any_kit, busy):
    """Promise 7: taken away while it runs; cancelled at the next beat, and done anew under the next token."""
    ended = []

    async def second(context, fleet):
        if not ended:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(time.monotonic())
        return context

    busy.does(second)
    await push(busy, "a")
    working = busy.worker("w1")
    while not busy.fleet.leases:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    taken = time.monotonic()
    assert await any_kit.store.driver.hand_back(worker="w1", crashed=True) == 1
    assert (await working)["processed"] == 1
    await busy.close()
    assert ended[0] - taken < 10
    assert await history(any_kit) == [(1, "crashed"), (2, "completed")]


async def test_promise_04_a_worker_never_acts_under_the_lease_of_its_neighbour(kit):
    """Promise 4: two workers of one process; who lost the item cannot complete, fail or drop what the other now holds."""
    await push(kit, "a")
    old, new = ({"worker_id": name, "pool": "p"} for name in ("w1", "w2"))
    await work.claim(old, kit.fleet)
    lease = kit.fleet.held("p:a")
    lease.task = asyncio.create_task(asyncio.Event().wait())
    await kit.store.driver.hand_back(worker="w1", crashed=True)
    await work.claim(new, kit.fleet)
    assert new["item_id"] == "p:a"
    await asyncio.wait([lease.task], timeout=1)
    assert lease.task.cancelled()
    with pytest.raises(LeaseLost):
        lease.check()
    for action in (work.complete, work.fail):
        with pytest.raises(LeaseLost):
            await action(dict(old), kit.fleet)
    await work.forget(dict(old), kit.fleet)
    await work.complete(new, kit.fleet)
    assert await history(kit) == [(1, "crashed"), (2, "completed")]


async def test_promise_04_a_checkpoint_keeps_the_token_that_it_began_with(any_kit, flow):
    """Promise 4: a zombie machine saves nothing under the token of its successor in the same process."""
    kit = any_kit
    go = asyncio.Event()

    async def second(context, fleet):
        await go.wait()
        return context

    async def first(context, fleet):
        return context

    kit.does(first)
    kit.does(second)
    await push(kit, "a")
    pool = kit.store.work.pool("p")
    kit.fleet.hold(await pool.claim("w1"), "w1")
    zombie = asyncio.create_task(kit.machine(flow(STATES, {"by": "zombie"}), "p:a").run({}))
    while (row := await kit.store.driver.load_snapshot("p:a")) is None or b'"second"' not in row.body:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    await kit.store.driver.hand_back(worker="w1", crashed=True)
    kit.fleet.hold(await pool.claim("w2"), "w2")
    go.set()
    with pytest.raises(LeaseLost):
        await zombie
    assert (await kit.store.driver.load_snapshot("p:a")).event == "state_enter"


async def test_promise_01_the_stores_fault_burns_no_attempt(kit, busy, monkeypatch):
    """Promise 1: a result that could not be committed for a moment's fault of the store is not the item's failure."""

    async def second(context, fleet):
        return context

    busy.does(second)
    complete = busy.store.driver.complete
    faults = [StoreUnavailable("the disk was full for a moment")]

    async def moody(*args):
        if faults:
            raise faults.pop()
        await complete(*args)

    monkeypatch.setattr(busy.store.driver, "complete", moody)
    for kind in ("memory", "sqlite", "redis"):
        monkeypatch.setattr(f"flatfleet.runtime.stores.{kind}_items.PROVIDER_WAIT", 0.05)
    await push(busy, "a", max_retries=1)
    await busy.worker("w1")
    assert await history(busy) == [(1, "provider"), (2, "completed")]
    await busy.close()


async def test_promise_13_a_claim_cancelled_before_it_began_leaves_nothing_behind(trial):
    """Promise 13: cancelled while the database is busy, a claim is neither made nor undone, and nothing is said."""
    store, said = open_store(trial.url), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    pool = store.work.pool("p")
    await pool.push({}, {"key": "a"})
    other = sqlite3.connect(trial.db, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        claiming = asyncio.create_task(pool.claim("w"))
        await asyncio.sleep(0.05)
        claiming.cancel()
        await asyncio.wait([claiming])
        other.execute("ROLLBACK")
        assert (await pool.counts()).waiting == 1
    finally:
        other.close()
        await store.close()
    gc.collect()
    assert said == []
