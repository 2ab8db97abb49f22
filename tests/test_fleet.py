"""A process's part in the fleet: heartbeats, lost leases, recovery from real kills, and the lounge of idle workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest
import yaml
from flatfleet.runtime import bundle, owner
from flatfleet.runtime.errors import LeaseLost, StoreUnavailable
from flatfleet.runtime.stores.records import Counts
from flatmachines import WorkerRegistration

SOON = 30.0
"""Seconds after which a test gives up; nothing takes as long where all is well."""


async def push(kit, *keys, **options):
    pool = kit.store.work.pool("p")
    await pool.push_many([pool.new({"key": key}, key=key, **options) for key in keys])
    return pool


async def hold(kit, worker="w"):
    (claim,) = await kit.store.work.pool("p").claim_many(worker, 1, kit.fleet.capabilities)
    return kit.fleet.hold(claim, worker)


async def register(kit, *names):
    for name in names:
        await kit.store.registration.register(WorkerRegistration(worker_id=name))
        kit.fleet.enlist(name)


async def lease_until(kit, name):
    record = await kit.store.registration.get(name)
    return record.metadata["lease_until"]


# -- heartbeat -----------------------------------------------------------------------------------------------------------


async def test_one_beat_renews_all_leases_and_registrations_of_the_process(any_kit, monkeypatch):
    await push(any_kit, "a", "b", "c")
    await register(any_kit, "w1", "w2")
    for _ in range(2):
        await hold(any_kit)
    other = any_kit.other()
    await hold(other)
    for kit in (any_kit, other):
        await kit.fleet._heart.stop()
    before = [(await any_kit.store.driver.item(f"p:{key}")).due for key in "abc"]
    workers = [await lease_until(any_kit, name) for name in ("w1", "w2")]
    calls, beat = [], any_kit.store.driver.beat

    async def counting(*args):
        calls.append(args)
        return await beat(*args)

    monkeypatch.setattr(any_kit.store.driver, "beat", counting)
    await any_kit.fleet.beat()
    assert len(calls) == 1
    after = [(await any_kit.store.driver.item(f"p:{key}")).due for key in "abc"]
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert after[2] == before[2]
    for name, was in zip(("w1", "w2"), workers, strict=True):
        assert await lease_until(any_kit, name) > was
    await other.close()


async def test_the_heart_beats_while_something_is_held_and_keeps_a_short_lease_alive(any_kit):
    kit = any_kit.other("short", lease=0.15)
    await push(kit, "a")
    lease = await hold(kit)
    await register(kit, "w")
    beats, count = asyncio.Event(), 0
    beat = kit.fleet.beat

    async def counting():
        nonlocal count
        await beat()
        count += 1
        if count == 4:
            beats.set()

    kit.fleet.beat = counting
    await asyncio.wait_for(beats.wait(), SOON)  # more than one lease long
    assert await kit.store.work.pool("p").claim("thief") is None
    assert lease.lost is None
    assert kit.fleet.held("p:a") is lease
    await kit.close()


async def test_a_lock_is_renewed_while_a_machine_runs_under_it(any_kit, flow):
    """Longer than the lock's lease; nothing else is held by the process."""
    kit, other = any_kit.other("short", lease=0.15), any_kit.other("other")
    stolen = []

    @kit.does
    async def work(context, fleet):
        await asyncio.sleep(0.3)
        stolen.append(await other.store.lock.acquire("x"))
        return context

    states = {"start": {"action": "work", "hooks": "test", "transitions": [{"to": "end"}]}, "end": {"type": "final"}}
    await kit.machine(flow(states), "x").run()
    assert stolen == [False]
    assert await other.store.lock.acquire("x")
    await kit.close()
    await other.close()


async def test_a_lease_taken_over_is_lost_at_the_next_beat_and_its_work_cancelled(any_kit):
    await push(any_kit, "a", "b")
    lost, kept = await hold(any_kit), await hold(any_kit)
    await any_kit.fleet._heart.stop()
    lost.task = asyncio.create_task(asyncio.Event().wait())
    kept.task = asyncio.create_task(asyncio.Event().wait())
    await any_kit.store.driver.hand_back(worker="w", owner=None, pool="p", crashed=True)
    (stolen, again) = await any_kit.store.driver.claim("p", "thief", "thief", 2, 60, ())
    await any_kit.store.driver.release(again.id, again.token)
    any_kit.fleet.let_go("p:b")
    await any_kit.fleet.beat()
    await asyncio.wait([lost.task], timeout=SOON)
    assert lost.task.cancelled()
    with pytest.raises(LeaseLost, match="token 1"):
        any_kit.fleet.held("p:a")
    assert (stolen.id, stolen.token) == ("p:a", 2)
    assert not kept.task.done()
    kept.task.cancel()


async def test_a_new_lease_of_the_same_item_is_not_lost_with_the_old_one(kit, monkeypatch):
    await push(kit, "a")
    await hold(kit)
    driver, beat = kit.store.driver, kit.store.driver.beat

    async def reclaimed_meanwhile(*args):
        answer = await beat(*args)
        await hold(kit, "v")
        return answer

    await driver.hand_back(worker="w", crashed=True)
    monkeypatch.setattr(driver, "beat", reclaimed_meanwhile)
    await kit.fleet.beat()
    assert kit.fleet.held("p:a").token == 2


async def test_an_item_claimed_again_by_the_same_process_is_lost_to_its_old_worker(any_kit):
    """The event loop stood still for longer than the lease, and another worker of the process claimed first."""
    await push(any_kit, "a")
    old = await hold(any_kit)
    old.task = asyncio.create_task(asyncio.Event().wait())
    await any_kit.store.driver.hand_back(worker="w", crashed=True)
    new = await hold(any_kit, "v")
    with pytest.raises(LeaseLost, match="token 1 is no longer valid"):
        old.check()
    await asyncio.wait([old.task])
    assert old.task.cancelled()
    with pytest.raises(LeaseLost, match="worker w"):
        any_kit.fleet.held("p:a", "w")
    any_kit.fleet.let_go("p:a", "w")
    assert any_kit.fleet.held("p:a", "v") is new


async def test_while_the_store_is_away_a_lease_lives_to_its_end_and_no_longer(kit, monkeypatch):
    await push(kit, "a", "b")
    old, young = await hold(kit), await hold(kit)
    old.expires -= 60
    old.task = asyncio.create_task(asyncio.Event().wait())

    async def away(*_):
        raise StoreUnavailable("no route")

    with monkeypatch.context() as patch:
        patch.setattr(kit.store.driver, "beat", away)
        await kit.fleet.beat()
    assert young.lost is None
    with pytest.raises(LeaseLost, match="could not be reached"):
        old.check()
    await asyncio.wait([old.task])
    assert old.task.cancelled()
    await kit.fleet.beat()
    assert young.lost is None


async def test_a_worker_that_the_registry_calls_lost_or_draining_stops(any_kit):
    await register(any_kit, "w1", "w2", "w3")
    await any_kit.store.registration.update_status("w1", "lost")
    await any_kit.store.registration.update_status("w2", "terminating")
    assert not any_kit.fleet.must_stop("w1")
    await any_kit.fleet.beat()
    assert [any_kit.fleet.must_stop(name) for name in ("w1", "w2", "w3", "unregistered")] == [True, True, False, False]
    any_kit.fleet.drain()
    assert any_kit.fleet.must_stop("w3")


# -- a lost lease, through worker.yml ------------------------------------------------------------------------------------


@pytest.fixture
def worker(flow, tmp_path):
    """The bundle of worker.yml with a task of the one action `work`."""
    states = {
        "start": {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"key": "context.item.key"}},
    }
    file = tmp_path / "task.yml"
    file.write_text(yaml.safe_dump(flow(states, {"item": "input.item"}, name="task")))
    return bundle.load("package:flatfleet/machines/worker.yml", task=str(file))


async def test_the_work_of_a_lease_that_ran_out_is_cancelled_and_the_worker_goes_on(any_kit, worker):
    kit, thief = any_kit.other("short", lease=0.2), any_kit.other("thief")
    busy, cancelled, stolen = asyncio.Event(), asyncio.Event(), asyncio.Event()
    beat = kit.fleet.beat

    async def late():
        await stolen.wait()
        await beat()

    kit.fleet.beat = late  # as if the process had been stopped for longer than its lease, with all its threads
    kit.fleet.guard.stop()

    @kit.does
    async def work(context, fleet):
        if context["item"]["key"] == "a":
            busy.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return context

    pool = await push(kit, "a")
    task = asyncio.create_task(kit.machine(worker).run({"pool": "p", "worker_id": "w1"}))
    await busy.wait()
    async with asyncio.timeout(SOON):
        while (taken := await thief.store.work.pool("p").claim("thief")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert taken.token == 2
    await push(kit, "b")
    stolen.set()
    await asyncio.wait_for(cancelled.wait(), SOON)
    await thief.store.work.pool("p").complete("p:a", "by the thief", token=2)
    output = await asyncio.wait_for(task, SOON)
    assert output == {"status": "retired", "worker_id": "w1", "processed": 1}
    assert (await kit.store.driver.item("p:a")).result == "by the thief"
    assert (await kit.store.driver.item("p:b")).result == {"key": "b"}
    assert [each.outcome for each in await pool.attempts("p:a")] == ["crashed", "completed"]
    assert kit.fleet.leases == {}
    await kit.close()
    await thief.close()


# -- recovery --------------------------------------------------------------------------------------------------------------

HOLDER = """
import asyncio, sys
from flatfleet.runtime.stores import open_store
from flatmachines import WorkerRegistration

async def main():
    store = open_store(sys.argv[1])
    await store.registration.register(WorkerRegistration(worker_id=sys.argv[2]))
    claims = await store.work.pool("p").claim_many(sys.argv[2], 2)
    await store.lock.acquire("lock-of-" + sys.argv[2])
    print(len(claims), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def holder(any_kit):
    """A function that starts a real process which claims two items, and then does nothing; all are killed at the end."""
    started = []

    def start(name):
        command = [sys.executable, "-c", HOLDER, any_kit.store.url, name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "2\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
async def test_recover_hands_back_what_a_killed_process_held_once_and_nothing_of_a_live_one(holder, any_kit):
    kit = any_kit.other("me") if any_kit.store.durable else None
    if kit is None:
        return  # a memory store ends with its process
    pool = await push(kit, "a", "b", "c", "d", "e")
    await hold(kit)
    await register(kit, "mine")
    dead, live = holder("dead"), holder("live")
    assert await kit.fleet.recover() == (0, [])
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert await kit.fleet.recover() == (2, ["dead"])
    assert await kit.fleet.recover() == (0, [])
    assert await pool.counts() == Counts(waiting=2, claimed=3)
    assert {w.worker_id: w.status for w in await kit.store.registration.list()} == {
        "mine": "active",
        "dead": "lost",
        "live": "active",
    }
    for key in ("b", "c"):
        item = await kit.store.driver.item(f"p:{key}")
        assert (item.state, item.attempts, item.crashes, item.error_type) == ("ready", 0, 1, "WorkerCrashed")
    assert await kit.store.lock.acquire("lock-of-dead")
    assert not await kit.store.lock.acquire("lock-of-live")
    live.kill()
    await kit.close()


async def test_recover_marks_a_worker_lost_whose_registration_ran_out(any_kit):
    short = any_kit.other("elsewhere/1/2", lease=0.01)
    await short.store.registration.register(WorkerRegistration(worker_id="w"))
    await asyncio.sleep(0.02)
    assert await any_kit.fleet.recover() == (0, ["w"])
    assert await any_kit.fleet.recover() == (0, [])
    await short.close()


# -- the lounge --------------------------------------------------------------------------------------------------------------


def wait(kit, timeout=None, **how):
    return asyncio.create_task(kit.fleet.lounge.wait("p", timeout, **how))


async def settled(kit):
    """Let the watcher look, and wait for the next ring."""
    for _ in range(3):
        await kit.store.work.pool("p").counts()
        await asyncio.sleep(0)


async def prompt(waiter):
    """The answer to a waiter, which has to come before the lounge's poll would bring it."""
    return await asyncio.wait_for(waiter, 0.5)


async def test_a_push_wakes_a_waiter(any_kit):
    waiter = wait(any_kit, 60)
    await settled(any_kit)
    assert not waiter.done()
    await push(any_kit, "a")
    assert await prompt(waiter) == "woken"


async def test_what_was_pushed_before_the_wait_wakes_as_well(any_kit):
    await push(any_kit, "a")
    assert await prompt(wait(any_kit, 60)) == "woken"


async def test_as_many_are_woken_as_there_are_items_and_the_first_come_first(any_kit):
    waiters = [wait(any_kit, 60) for _ in range(5)]
    await settled(any_kit)
    await push(any_kit, "a", "b")
    assert [await prompt(waiter) for waiter in waiters[:2]] == ["woken", "woken"]
    await any_kit.store.work.pool("p").claim_many("w", 2)
    await settled(any_kit)
    assert not any(waiter.done() for waiter in waiters[2:])
    any_kit.fleet.lounge.dismiss()
    assert [await prompt(waiter) for waiter in waiters[2:]] == ["dismissed"] * 3


async def test_a_waiter_that_has_given_up_takes_no_turn(any_kit):
    gone, waiting = wait(any_kit, 60), wait(any_kit, 60)
    await settled(any_kit)
    gone.cancel()
    await push(any_kit, "a")
    assert await prompt(waiting) == "woken"


@pytest.mark.parametrize("how", ["release", "fail", "retry", "release_by_worker"])
async def test_every_way_back_into_the_pool_wakes(any_kit, how):
    pool = await push(any_kit, "a", max_retries=1)
    claim = await pool.claim("w")
    if how == "retry":
        await pool.fail("p:a", "x", token=claim.token)
    waiter = wait(any_kit, 60)
    await settled(any_kit)
    assert not waiter.done()
    if how == "release":
        await pool.release("p:a", token=claim.token)
    elif how == "fail":
        await pool.fail("p:a", "x", token=claim.token, consume_attempt=False, retry_after=0)
    elif how == "retry":
        await pool.retry()
    else:
        await pool.release_by_worker("w")
    assert await prompt(waiter) == "woken"


async def test_a_delayed_item_wakes_when_it_is_due(any_kit):
    pool = await push(any_kit, "a")
    claim = await pool.claim("w")
    waiter = wait(any_kit)
    await settled(any_kit)
    await pool.fail("p:a", "x", token=claim.token, retry_after=0.1)
    await settled(any_kit)
    assert not waiter.done()
    assert await prompt(waiter) == "woken"
    assert await pool.claim("w") is not None


async def test_empty_only_when_nothing_is_left_not_even_claimed_or_delayed(any_kit):
    pool = await push(any_kit, "a", "b")
    a, b = await pool.claim_many("w", 2)
    waiter = wait(any_kit)
    await pool.complete(a.id, token=a.token)
    await settled(any_kit)
    assert not waiter.done()
    await pool.fail(b.id, "x", token=b.token, retry_after=60)
    await settled(any_kit)
    assert not waiter.done()
    await any_kit.store.driver.retry("p", None)
    await any_kit.store.driver.push("p", [])
    assert (await pool.counts()).delayed == 1
    waiter.cancel()


async def test_empty_when_the_last_claim_ends_in_whatever_way(any_kit):
    for key, end in (("a", "complete"), ("b", "fail")):
        pool = await push(any_kit, key, max_retries=1)
        claim = await pool.claim("w")
        waiter, served = wait(any_kit), wait(any_kit, 60)
        await settled(any_kit)
        assert not waiter.done()
        await getattr(pool, end)(claim.id, token=claim.token)
        assert await prompt(waiter) == "empty"
        assert not served.done()
        served.cancel()
    assert await prompt(wait(any_kit)) == "empty"


async def test_who_comes_while_the_watcher_waits_is_answered_at_once(any_kit):
    """The last worker of a batch comes to the lounge after the others were let go."""
    served = wait(any_kit, 60)
    await settled(any_kit)
    assert await prompt(wait(any_kit)) == "empty"
    await any_kit.store.driver.push("p", [any_kit.store.work.pool("p").new(1, key="a")])  # by another process: no bell
    late = wait(any_kit, 60)
    assert await prompt(served) == "woken"
    late.cancel()


async def test_a_timeout(any_kit):
    assert await wait(any_kit, 0.01) == "timeout"
    assert await wait(any_kit, 0.0) == "timeout"
    assert not any_kit.fleet.lounge._waiters["p"]


async def test_drain_dismisses(any_kit):
    waiters = [wait(any_kit, 60), wait(any_kit)]
    await push(any_kit, "a")
    await any_kit.store.work.pool("p").claim("w")
    await settled(any_kit)
    other = wait(any_kit, 60)
    await asyncio.sleep(0)
    any_kit.fleet.drain()
    assert await prompt(other) == "dismissed"
    assert {await prompt(waiter) for waiter in waiters} <= {"dismissed", "woken"}


async def test_a_store_that_cannot_be_read_reaches_the_waiters(kit, monkeypatch):
    async def away(pool):
        raise StoreUnavailable("no route")

    monkeypatch.setattr(kit.store.driver, "counts", away)
    with pytest.raises(StoreUnavailable):
        await prompt(wait(kit, 60))


async def test_thousands_wait_in_one_task_of_the_lounge(kit, monkeypatch):
    looks, counts = 0, kit.store.driver.counts

    async def counted(pool):
        nonlocal looks
        looks += 1
        return await counts(pool)

    monkeypatch.setattr(kit.store.driver, "counts", counted)
    before = asyncio.all_tasks()
    waiters = [wait(kit, 60) for _ in range(5000)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks() - before - set(waiters)) == 1
    for _ in range(5):
        await asyncio.sleep(0)
    assert looks < 10
    kit.fleet.lounge.dismiss()
    assert {waiter.result() for waiter in (await asyncio.wait(waiters))[0]} == {"dismissed"}


async def test_items_that_nobody_here_can_claim_do_not_keep_the_workers_spinning(any_kit, worker, monkeypatch):
    @any_kit.does
    async def work(context, fleet):
        return context

    pool = await push(any_kit, "gpu1", "gpu2", requires=["gpu"])
    elsewhere = WorkerRegistration(worker_id="g", capabilities=["gpu"])
    await any_kit.store.driver.register(elsewhere, "another process", 60.0, {"pool": "p"})
    claims, claim = 0, any_kit.store.driver.claim

    async def counted(*args):
        nonlocal claims
        claims += 1
        return await claim(*args)

    monkeypatch.setattr(any_kit.store.driver, "claim", counted)
    tasks = [asyncio.create_task(any_kit.machine(worker).run({"pool": "p", "worker_id": f"w{i}"})) for i in range(3)]
    for _ in range(15):
        await settled(any_kit)
    assert claims <= 9
    await push(any_kit, "cpu")
    read = any_kit.store.results.read("flatagents://p:cpu/result", timeout=0.5)
    assert await read == {"key": "cpu"}
    assert (await pool.counts()).waiting == 2
    any_kit.fleet.drain()
    outputs = await asyncio.wait_for(asyncio.gather(*tasks), SOON)
    assert [output["status"] for output in outputs] == ["drained"] * 3


async def test_a_served_worker_retires_after_its_idle_timeout_though_it_is_woken_in_vain(any_kit, worker):
    any_kit.fleet.served = True
    await push(any_kit, "gpu", requires=["gpu"])
    run = any_kit.machine(worker).run({"pool": "p", "worker_id": "w", "idle_timeout": 0.05})
    assert (await asyncio.wait_for(run, 10))["status"] == "retired"


async def test_a_process_that_comes_late_does_not_mark_its_own_workers_lost(any_kit):
    """As where the store did not answer for longer than a lease: whoever recovers is alive."""
    late = any_kit.other("late", lease=0.01)
    for name in ("w1", "w2"):
        await late.store.registration.register(WorkerRegistration(worker_id=name))
    late.fleet.workers["w1"] = "active"
    await asyncio.sleep(0.02)
    assert await late.fleet.recover() == (0, ["w2"])
    assert late.fleet.workers == {"w1": "active"}
    await asyncio.sleep(0.02)
    assert await any_kit.fleet.recover() == (0, ["w1"])


def test_who_works_for_a_dead_process_is_dead_and_who_works_elsewhere_may_live():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    above = f"{owner.machine()}/{child.pid}/{owner._started(child.pid)}"
    alone, below = owner.this_process(), f"{owner.this_process()}|{above}"
    assert not any(map(owner.is_dead, (alone, above, below, f"{alone}|elsewhere~0~0/1/2", f"{alone}|")))
    assert owner.place_of(below) == owner.place_of(alone) == (socket.gethostname(), os.getpid())
    child.communicate()
    assert [owner.is_dead(each) for each in (alone, above, below)] == [False, True, True]
    assert owner.place_of("a name") == ("a name", None)
