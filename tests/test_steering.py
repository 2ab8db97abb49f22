"""Steering a fleet that runs: drain of single workers, pause, cancel, limits, and the states that an item has walked."""

from __future__ import annotations

import asyncio
import itertools
import math
import time

import pytest
import yaml
from flatfleet.hooks import batch, work
from flatfleet.hooks.registration import Registration
from flatfleet.runtime import bundle, fleet, heart, values
from flatfleet.runtime.errors import LeaseLost, StoreUnavailable, UsageError
from flatfleet.runtime.stores.records import Counts
from flatmachines import WorkerRegistration

SOON = 5.0
"""Seconds after which a test gives up; nothing takes as long where all is well."""
PROMPT = 0.5
"""Seconds within which what was rung for happens: less than the poll that would bring it without."""


async def push(kit, *keys, pool="p", **options):
    made = kit.store.work.pool(pool)
    await made.push_many([made.new({"key": key}, key=key, **options) for key in keys])
    return made


async def tell(kit, worker, status="terminating", ring=True, **about):
    """What another process does to a worker of this one."""
    await kit.store.driver.set_status(worker, status, about)
    if ring:
        kit.store.bell.ring("workers")


async def ended(kit, name):
    record = await kit.store.registration.get(name)
    return record.status, record.metadata.get("ended")


async def until(happened, within=SOON):
    async with asyncio.timeout(within):
        while not (found := await happened()):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return found


@pytest.fixture
def worker(flow, tmp_path):
    """The bundle of worker.yml with a task of two states, `first` and `second`, each an action of the test."""
    states = {
        "first": {"type": "initial", "action": "first", "hooks": "test", "transitions": [{"to": "second"}]},
        "second": {"action": "second", "hooks": "test", "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"key": "context.item.key"}},
    }
    file = tmp_path / "task.yml"
    file.write_text(yaml.safe_dump(flow(states, {"item": "input.item"}, name="task")))
    return bundle.load("package:flatfleet/machines/worker.yml", task=str(file))


@pytest.fixture
def crew(any_kit, worker):
    """Workers of worker.yml whose items are busy in `second` until the test lets them go on."""

    class Crew:
        def __init__(self):
            self.busy: dict[str, asyncio.Event] = {}
            self.go: dict[str, asyncio.Event] = {}
            self.cancelled: list[str] = []
            self.tasks: dict[str, asyncio.Task] = {}

        def start(self, *names, **given):
            for name in names:
                run = any_kit.machine(worker).run({"pool": "p", "worker_id": name, **given})
                self.tasks[name] = asyncio.create_task(run)

        async def is_busy(self, key):
            await asyncio.wait_for(self.busy.setdefault(key, asyncio.Event()).wait(), SOON)

        def finish(self, key):
            self.go.setdefault(key, asyncio.Event()).set()

        async def end(self, name, within=SOON):
            return await asyncio.wait_for(self.tasks[name], within)

    made = Crew()

    @any_kit.does
    async def first(context, fleet):
        return context

    @any_kit.does
    async def second(context, fleet):
        key = context["item"]["key"]
        made.busy.setdefault(key, asyncio.Event()).set()
        try:
            await made.go.setdefault(key, asyncio.Event()).wait()
        except asyncio.CancelledError:
            made.cancelled.append(key)
            raise
        return context

    return made


async def idle(kit, n):
    """Return when so many workers wait in the lounge."""

    async def waiting():
        return len(kit.fleet.lounge._waiters["p"]) == n

    await until(waiting)


# -- drain -------------------------------------------------------------------------------------------------------------


async def test_an_idle_worker_that_is_told_to_end_ends_at_once_and_no_other_is_disturbed(any_kit, crew, monkeypatch):
    any_kit.fleet.served = True
    crew.start("w1", "w2", "w3")
    await idle(any_kit, 3)
    claims, claim = [], any_kit.store.driver.claim

    async def counted(*args, **more):
        claims.append(args)
        return await claim(*args, **more)

    monkeypatch.setattr(any_kit.store.driver, "claim", counted)
    await tell(any_kit, "w2")
    assert await crew.end("w2", PROMPT) == {"status": "drained", "worker_id": "w2", "processed": 0}
    assert await ended(any_kit, "w2") == ("terminated", "drained")
    assert claims == []
    await push(any_kit, "a")
    await crew.is_busy("a")
    crew.finish("a")
    any_kit.fleet.drain()
    assert [(await crew.end(name))["status"] for name in ("w1", "w3")] == ["drained"] * 2


def hears(kit):
    async def heard():
        return kit.store.bell.hears

    return heard


@pytest.mark.parametrize("how", ["deaf", "unheard"])
async def test_where_nobody_rings_the_order_is_found_by_looking(any_kit, crew, monkeypatch, how):
    monkeypatch.setattr(fleet, "POLL" if how == "deaf" else "SELDOM", 0.02)
    if how == "deaf":
        if not any_kit.store.durable:
            return  # no other process can have told it anything
        monkeypatch.setattr(type(any_kit.store.bell), "hears", False)
    elif any_kit.store.durable:
        any_kit.store.bell.open()
        await until(hears(any_kit))
    any_kit.fleet.served = True
    crew.start("w1")
    await idle(any_kit, 1)
    await tell(any_kit, "w1", ring=False)
    assert (await crew.end("w1", PROMPT))["status"] == "drained"


async def test_a_busy_worker_finishes_its_item_and_claims_no_other(any_kit, crew):
    pool = await push(any_kit, "a", "b")
    crew.start("w1")
    await crew.is_busy("a")
    await tell(any_kit, "w1", drain_until=time.time() + 60)
    await asyncio.sleep(0.1)
    assert not crew.tasks["w1"].done()
    crew.finish("a")
    assert await crew.end("w1") == {"status": "drained", "worker_id": "w1", "processed": 1}
    assert await pool.counts() == Counts(completed=1, waiting=1)
    assert [each.outcome for each in await pool.attempts("p:a")] == ["completed"]


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.15])
async def test_when_its_time_is_up_a_worker_hands_its_item_back_unburnt_and_the_others_go_on(any_kit, crew, seconds):
    pool = await push(any_kit, "a", "b")
    crew.start("w1")
    await crew.is_busy("a")
    crew.start("w2")
    await crew.is_busy("b")
    begun = time.time()
    await tell(any_kit, "w1", drain_until=begun + seconds)
    assert await crew.end("w1", PROMPT + max(0.0, seconds)) == {"status": "drained", "worker_id": "w1", "processed": 0}
    assert time.time() >= begun + seconds
    assert crew.cancelled == ["a"]
    item = await any_kit.store.driver.item("p:a")
    assert (item.state, item.attempts, item.crashes) == ("ready", 0, 0)
    (attempt,) = await pool.attempts("p:a")
    assert (attempt.outcome, attempt.worker, tuple(attempt.walked)) == ("released", "w1", ("first", "second"))
    assert list(any_kit.fleet.leases) == ["p:b"]
    crew.finish("b")
    crew.finish("a")
    assert await crew.end("w2") == {"status": "retired", "worker_id": "w2", "processed": 2}
    assert [each.outcome for each in await pool.attempts("p:a")] == ["released", "completed"]


async def test_an_item_that_ends_while_it_is_taken_back_is_completed_once(any_kit, crew, monkeypatch):
    """The release comes too late: the item stays completed, and the worker ends as one that was drained."""
    pool = await push(any_kit, "a")
    release, committed = any_kit.store.driver.release, asyncio.Event()

    async def late(item_id, token, *args, **more):
        crew.finish("a")
        await committed.wait()
        return await release(item_id, token, *args, **more)

    crew.start("w1")
    await crew.is_busy("a")
    monkeypatch.setattr(any_kit.store.driver, "release", late)
    await tell(any_kit, "w1", drain_until=0)
    await until(lambda: done(pool, "p:a"))
    committed.set()
    assert await crew.end("w1") == {"status": "drained", "worker_id": "w1", "processed": 1}
    assert [each.outcome for each in await pool.attempts("p:a")] == ["completed"]
    assert crew.cancelled == []


async def done(pool, item_id):
    return [each.outcome for each in await pool.attempts(item_id)] == ["completed"]


@pytest.mark.parametrize("about", [{}, {"drain_until": None}, {"drain_until": "soon"}])
async def test_without_a_time_a_drained_worker_may_take_as_long_as_it_needs(any_kit, crew, about):
    await push(any_kit, "a")
    crew.start("w1")
    await crew.is_busy("a")
    await tell(any_kit, "w1", **about)
    await until(lambda: told(any_kit, "w1"))
    await asyncio.sleep(0.05)
    assert crew.cancelled == []
    crew.finish("a")
    assert (await crew.end("w1"))["processed"] == 1


async def told(kit, name):
    return kit.fleet.must_stop(name)


async def test_a_time_that_is_brought_forward_counts(any_kit, crew):
    await push(any_kit, "a")
    crew.start("w1")
    await crew.is_busy("a")
    await tell(any_kit, "w1", drain_until=time.time() + 60)
    await until(lambda: told(any_kit, "w1"))
    await tell(any_kit, "w1", drain_until=time.time())
    assert (await crew.end("w1", PROMPT))["status"] == "drained"
    assert crew.cancelled == ["a"]


@pytest.mark.parametrize("action", [work.claim, work.complete_and_claim])
async def test_what_a_worker_claimed_while_it_was_told_to_end_is_given_back(any_kit, action, monkeypatch):
    """A drain at whose time the worker holds nothing yet would else run an item to its end."""
    pool = await push(any_kit, "a", "b")
    context = {"pool": "p", "worker_id": "w", "result": 1, "processed": 0}
    await any_kit.store.registration.register(WorkerRegistration(worker_id="w"))
    any_kit.fleet.enlist("w")
    if action is work.complete_and_claim:
        context = await work.claim(context, any_kit.fleet) | {"result": 1}
    claim = any_kit.store.driver.claim

    async def slow(*args, **more):
        claims = await claim(*args, **more)
        await any_kit.store.driver.set_status("w", "terminating", {})
        await any_kit.fleet.beat()
        return claims

    monkeypatch.setattr(any_kit.store.driver, "claim", slow)
    context = await action(context, any_kit.fleet)
    assert (context["item_id"], context["stop"]) == (None, True)
    counts = await pool.counts()
    assert (counts.claimed, counts.completed) == (0, int(action is work.complete_and_claim))
    assert any_kit.fleet.leases == {}
    assert {item.attempts async for item in pool.items()} == {0}


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("action", [work.claim, work.complete_and_claim, batch.get_pending])
async def test_whenever_a_claim_is_cut_off_nothing_stays_claimed(any_kit, action, draining, monkeypatch):
    """Cut off after each of its steps: what was claimed by then is held, and goes back with the rest, or never was."""
    pool = await push(any_kit, *(f"i{n:02}" for n in range(64)))
    claim, fleet = any_kit.store.driver.claim, any_kit.fleet

    async def told(*args, **more):
        claims = await claim(*args, **more)
        fleet.draining = draining
        return claims

    for steps, pause in itertools.product(range(12), (0, 0.0002)):
        fleet.draining = False
        context = {"pool": "p", "worker_id": "w", "result": 1, "processed": 0, "parallelism": 2}
        if action is work.complete_and_claim:
            context = await work.claim(context, fleet) | {"result": 1}
        with monkeypatch.context() as patch:
            patch.setattr(any_kit.store.driver, "claim", told)
            task = asyncio.create_task(action(context, fleet))
            for _ in range(steps):
                await asyncio.sleep(pause)
            task.cancel()
            await asyncio.wait([task])
        await fleet.hand_back()
        if any_kit.store.durable:
            await any_kit.store.driver.close()  # what is given back for those who were cut off
        assert (await pool.counts()).claimed == 0
        assert fleet.leases == {}


async def test_a_worker_that_was_told_to_end_before_it_began_claims_nothing(any_kit, crew):
    """Its registration was made for it, and drained, before the machine ran."""
    pool = await push(any_kit, "a")
    await any_kit.store.registration.register(WorkerRegistration(worker_id="w1"), {"decision": "d"})
    await any_kit.store.driver.set_status("w1", "terminating", {})
    crew.start("w1")
    assert (await crew.end("w1"))["status"] == "drained"
    assert (await pool.counts()).waiting == 1
    record = await any_kit.store.registration.get("w1")
    assert (record.status, record.metadata["decision"], record.metadata["ended"]) == ("terminated", "d", "drained")


async def test_a_worker_that_is_called_lost_elsewhere_stops_after_its_item(any_kit, crew):
    pool = await push(any_kit, "a", "b")
    crew.start("w1")
    await crew.is_busy("a")
    await tell(any_kit, "w1", "lost", drain_until=0)
    await until(lambda: told(any_kit, "w1"))
    assert crew.cancelled == []
    crew.finish("a")
    assert (await crew.end("w1"))["status"] == "drained"
    assert await pool.counts() == Counts(completed=1, waiting=1)


async def test_a_drain_of_many_is_heard_in_few_beats_and_ends_them_all(any_kit, crew, monkeypatch):
    any_kit.fleet.served = True
    names = [f"w{n}" for n in range(100)]
    crew.start(*names)
    await idle(any_kit, 100)
    beats, beat = 0, any_kit.store.driver.beat

    async def counted(*args, **more):
        nonlocal beats
        beats += 1
        return await beat(*args, **more)

    monkeypatch.setattr(any_kit.store.driver, "beat", counted)
    begun = time.monotonic()
    for name in names:
        await tell(any_kit, name)
        await asyncio.sleep(0)
    outputs = await asyncio.wait_for(asyncio.gather(*crew.tasks.values()), SOON)
    assert {output["status"] for output in outputs} == {"drained"}
    assert beats <= 2 + (time.monotonic() - begun) / heart.PAUSE


async def test_rings_without_end_do_not_make_the_heart_race_nor_stop_it(kit, monkeypatch):
    beats, enough = 0, asyncio.Event()

    async def counted():
        nonlocal beats
        beats += 1
        if beats == 4:
            enough.set()

    monkeypatch.setattr(kit.fleet, "beat", counted)
    await kit.store.registration.register(WorkerRegistration(worker_id="w"))
    kit.fleet.enlist("w")
    begun = time.monotonic()
    while not enough.is_set():
        kit.store.bell.ring("workers")
        await asyncio.sleep(0.001)
    assert 3 * heart.PAUSE <= time.monotonic() - begun < SOON


async def test_a_store_that_is_away_does_not_stop_the_heart(any_kit, crew, monkeypatch):
    monkeypatch.setattr(fleet, "SELDOM", 0.01)
    any_kit.fleet.served = True
    crew.start("w1")
    await idle(any_kit, 1)
    looks = 0

    async def away(owner):
        nonlocal looks
        looks += 1
        raise StoreUnavailable("no route")

    async def looked():
        return looks >= 3

    with monkeypatch.context() as patch:
        patch.setattr(any_kit.store.driver, "draining", away)
        await tell(any_kit, "w1", ring=False)
        await until(looked)
    assert (await crew.end("w1"))["status"] == "drained"


async def test_only_live_workers_of_the_owner_that_were_told_to_end_are_draining(any_kit):
    driver, other = any_kit.store.driver, any_kit.other()
    for name in ("a", "b", "c", "d", "e"):
        await any_kit.store.registration.register(WorkerRegistration(worker_id=name))
    await other.store.registration.register(WorkerRegistration(worker_id="x"))
    await driver.set_status("x", "terminating", {"drain_until": 1})
    await driver.set_status("b", "terminating", {"drain_until": 1.5})
    await driver.set_status("c", "terminating", {"drain_until": "never"})
    await driver.set_status("d", "lost", {"drain_until": 1})
    await driver.set_status("e", "terminating", {"drain_until": 1})
    await driver.set_status("e", "terminated")
    assert await driver.draining(any_kit.store.owner) == {"b": 1.5, "c": None}
    await driver.beat(any_kit.store.owner, ["a", "b", "c"], {}, 60)  # from now on they follow their owner
    assert await driver.draining(any_kit.store.owner) == {"b": 1.5, "c": None}
    assert await driver.draining("nobody") == {}


async def test_recovery_wakes_those_who_wait_for_what_it_hands_back(any_kit):
    pool = await push(any_kit, "a")
    machine = any_kit.store.owner.rsplit("/", 2)[0]
    gone = f"{machine}/999999999/1"
    await any_kit.store.driver.claim("p", "gone", gone, 1, 60, ())
    await any_kit.store.driver.register(WorkerRegistration(worker_id="gone"), gone, 60, {})
    waiter = asyncio.create_task(any_kit.fleet.lounge.wait("p", 60))
    await asyncio.sleep(0.02)
    with any_kit.store.bell.listen("workers") as rung:
        assert await any_kit.fleet.recover() == (1, ["gone"])
        assert rung.is_set()
    assert await asyncio.wait_for(waiter, PROMPT) == "woken"
    assert (await pool.counts()).waiting == 1


# -- how a worker ended ------------------------------------------------------------------------------------------------


async def test_a_worker_records_the_error_that_ended_it(any_kit):
    hook = Registration(any_kit.fleet)
    context = await hook.on_machine_start({"worker_id": "w"})
    await hook.on_machine_abort(context, OSError("power " * 1000))
    record = await any_kit.store.registration.get("w")
    assert (record.status, record.metadata["ended"]) == ("terminated", "OSError")
    assert record.metadata["error"] == ("power " * 1000)[:1000]


# -- cancel ------------------------------------------------------------------------------------------------------------


async def test_the_work_of_a_cancelled_item_is_cancelled_and_its_worker_goes_on(any_kit, crew):
    pool = await push(any_kit, "a", "b")
    crew.start("w1")
    await crew.is_busy("a")
    assert await pool.cancel(["p:a"]) == 1
    await asyncio.wait_for(crew.busy.setdefault("b", asyncio.Event()).wait(), PROMPT)
    assert crew.cancelled == ["a"]
    crew.finish("b")
    assert await crew.end("w1") == {"status": "retired", "worker_id": "w1", "processed": 1}
    item = await any_kit.store.driver.item("p:a")
    assert (item.state, item.error_type) == ("dead", "Cancelled")
    assert [each.outcome for each in await pool.attempts("p:a")] == ["cancelled"]


# -- pause -------------------------------------------------------------------------------------------------------------


def wait(kit, timeout=None, **how):
    return asyncio.create_task(kit.fleet.lounge.wait("p", timeout, **how))


async def test_a_paused_pool_wakes_nobody_until_it_is_resumed(any_kit, crew):
    pool = any_kit.store.work.pool("p")
    any_kit.fleet.served = True
    crew.start("w1", "w2")
    await idle(any_kit, 2)
    await pool.pause(math.inf)
    await push(any_kit, "a", "b")
    await asyncio.sleep(0.1)
    assert crew.busy == {}
    assert len(any_kit.fleet.lounge._waiters["p"]) == 2
    await pool.pause(None)
    for key in ("a", "b"):
        await asyncio.wait_for(crew.busy.setdefault(key, asyncio.Event()).wait(), PROMPT)
        crew.finish(key)
    any_kit.fleet.drain()
    assert sum([(await crew.end(name))["processed"] for name in ("w1", "w2")]) == 2


async def test_a_pause_stops_the_claims_of_busy_workers_and_passes_by_itself(any_kit, crew):
    pool = await push(any_kit, "a", "b")
    crew.start("w1")
    await crew.is_busy("a")
    begun = time.time()
    await pool.pause(begun + 0.2)
    crew.finish("a")
    crew.finish("b")
    assert (await crew.end("w1", 0.2 + PROMPT))["processed"] == 2
    assert time.time() >= begun + 0.2
    assert (await any_kit.store.driver.item("p:b")).started >= begun + 0.2


async def test_a_batch_is_not_over_while_items_are_left_that_nobody_may_claim_yet(any_kit):
    pool = await push(any_kit, "a")
    await pool.pause(math.inf)
    waiter, served = wait(any_kit), wait(any_kit, 0.05)
    assert await asyncio.wait_for(served, PROMPT) == "paused"
    assert not waiter.done()
    await pool.cancel(["p:a"])
    assert await asyncio.wait_for(waiter, 2 * PROMPT) == "empty"


async def test_a_served_worker_does_not_retire_because_its_pool_is_paused(any_kit, crew):
    pool = await push(any_kit, "a")
    await pool.pause(math.inf)
    any_kit.fleet.served = True
    crew.start("w1", idle_timeout=0.4)  # more than a look at the pool takes on a busy machine
    await asyncio.sleep(0.7)
    assert not crew.tasks["w1"].done()
    await pool.pause(None)
    await asyncio.wait_for(crew.busy.setdefault("a", asyncio.Event()).wait(), 2 * PROMPT)
    crew.finish("a")
    assert await crew.end("w1") == {"status": "retired", "worker_id": "w1", "processed": 1}


async def test_in_a_paused_pool_a_short_idle_time_does_not_make_workers_spin(any_kit, crew, monkeypatch):
    pool = await push(any_kit, "a")
    await pool.pause(math.inf)
    claims, claim = 0, any_kit.store.driver.claim

    async def counted(*args, **more):
        nonlocal claims
        claims += 1
        return await claim(*args, **more)

    monkeypatch.setattr(any_kit.store.driver, "claim", counted)
    any_kit.fleet.served = True
    crew.start("w1", idle_timeout=0.02)
    await asyncio.sleep(0.4)
    assert claims <= 3
    any_kit.fleet.drain()
    assert (await crew.end("w1"))["status"] == "drained"


# -- limits and pools in a row -----------------------------------------------------------------------------------------


async def test_no_more_items_are_claimed_than_the_pool_may_have_in_work(any_kit, crew):
    pool = await push(any_kit, "a", "b", "c", "d")
    crew.start("w1", "w2", "w3", pool_size="2")
    for key in ("a", "b"):
        await crew.is_busy(key)
    await asyncio.sleep(0.05)
    assert await pool.counts() == Counts(claimed=2, waiting=2)
    for done, following in (("a", "c"), ("b", "d")):
        crew.finish(done)
        await crew.is_busy(following)
        assert (await pool.counts()).claimed == 2
    crew.finish("c")
    crew.finish("d")
    assert sum([(await crew.end(name))["processed"] for name in ("w1", "w2", "w3")]) == 4


async def test_a_place_that_gets_free_wakes_one_who_waits_for_it_and_before_nobody_wakes(any_kit):
    pool = await push(any_kit, "a", "b", "c", "d")
    claims = await pool.claim_many("w", 2, (), 2)
    waiters = [wait(any_kit, 60, limit=2, again=again) for again in (True, False)]
    await asyncio.sleep(0.05)
    assert not any(waiter.done() for waiter in waiters)
    await pool.complete(claims[0].id, token=claims[0].token)
    assert await asyncio.wait_for(waiters[0], PROMPT) == "woken"
    assert not waiters[1].done()
    waiters[1].cancel()


async def test_a_pool_size_that_is_no_number_is_an_error(kit):
    with pytest.raises(UsageError, match="pool_size is 'five'"):
        await work.claim({"pool": "p", "worker_id": "w", "pool_size": "five"}, kit.fleet)


async def test_a_batch_is_not_over_before_the_pools_that_fill_it_are_settled(any_kit):
    """The last item of the first stage puts one into the second before it is completed."""
    first, second = await push(any_kit, "a", pool="first"), any_kit.store.work.pool("second")
    claim = await first.claim("w")
    waiter = wait(any_kit, upstream=("first", "second"))
    await asyncio.sleep(0.05)
    assert not waiter.done()
    await push(any_kit, "b", pool="second")
    await first.complete(claim.id, token=claim.token)
    await asyncio.sleep(0.05)
    assert not waiter.done()
    claim = await second.claim("w")
    await push(any_kit, "c", pool="p")
    await second.complete(claim.id, token=claim.token)
    assert await asyncio.wait_for(waiter, PROMPT) == "woken"
    claim = await any_kit.store.work.pool("p").claim("w")
    waiter = wait(any_kit, upstream=("first", "second"))
    await any_kit.store.work.pool("p").complete(claim.id, token=claim.token)
    assert await asyncio.wait_for(waiter, PROMPT) == "empty"


async def test_what_comes_while_the_pools_before_are_asked_is_seen(any_kit, monkeypatch):
    first = await push(any_kit, "a", pool="first")
    claim = await first.claim("w")
    counts, asked = any_kit.store.driver.counts, []

    async def meanwhile(pool):
        found = await counts(pool)
        asked.append(pool)
        if asked == ["p"]:  # the pool was empty; now its last item comes, and the first stage is over
            await push(any_kit, "b", pool="p")
            await first.complete(claim.id, token=claim.token)
        return found

    monkeypatch.setattr(any_kit.store.driver, "counts", meanwhile)
    assert await asyncio.wait_for(wait(any_kit, upstream=("first",)), PROMPT) == "woken"


async def test_upstream_pools_that_come_later_are_listened_to(any_kit):
    """The watcher runs for a waiter that knows none; the next one names a pool, and its end is heard."""
    first = await push(any_kit, "a", pool="first")
    claim = await first.claim("w")
    served = wait(any_kit, 60)
    await asyncio.sleep(0.02)
    waiter = wait(any_kit, upstream=("first",))
    await asyncio.sleep(0.02)
    await first.complete(claim.id, token=claim.token)
    assert await asyncio.wait_for(waiter, PROMPT) == "empty"
    served.cancel()


def test_names_are_a_list_or_one_text():
    given = {"text": " a, b ,", "list": ["a", "b"], "none": None, "empty": ""}
    assert [values.names(given, name) for name in given] == [("a", "b"), ("a", "b"), (), ()]
    assert values.names(given, "missing") == ()


# -- walked ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["complete", "fail", "hand_back"])
async def test_an_attempt_tells_the_states_that_its_machine_walked(any_kit, crew, end):
    pool = await push(any_kit, "a", max_retries=1)

    @any_kit.does
    async def second(context, fleet):
        if end == "fail":
            raise ValueError("no")
        if end == "hand_back":
            crew.busy.setdefault("a", asyncio.Event()).set()
            await asyncio.Event().wait()
        return context

    crew.start("w1")
    if end == "hand_back":
        await crew.is_busy("a")
        assert await any_kit.fleet.hand_back("w1") == 1
        crew.tasks["w1"].cancel()
        await asyncio.wait([crew.tasks["w1"]])
    else:
        await crew.end("w1")
    (attempt,) = await pool.attempts("p:a")
    assert tuple(attempt.walked) == (("first", "second", "done") if end == "complete" else ("first", "second"))


async def test_the_last_states_are_kept_and_those_of_children_are_not(any_kit, flow, tmp_path):
    child = flow(
        {"inside": {"type": "initial", "transitions": [{"to": "out"}]}, "out": {"type": "final"}}, name="child"
    )
    (tmp_path / "child.yml").write_text(yaml.safe_dump(child))
    states = {
        "count": {
            "type": "initial",
            "action": "count",
            "hooks": "test",
            "transitions": [{"condition": "context.n < 60", "to": "count"}, {"to": "ask"}],
        },
        "ask": {"machine": "child", "transitions": [{"to": "done"}]},
        "done": {"type": "final"},
    }
    config = flow(states, {"n": 0}, name="task", machines={"child": "./child.yml"})
    (tmp_path / "task.yml").write_text(yaml.safe_dump(config))

    @any_kit.does
    async def count(context, fleet):
        context["n"] += 1
        return context

    pool = await push(any_kit, "a")
    made = bundle.load("package:flatfleet/machines/worker.yml", task=str(tmp_path / "task.yml"))
    await any_kit.machine(made).run({"pool": "p", "worker_id": "w"})
    (attempt,) = await pool.attempts("p:a")
    assert tuple(attempt.walked) == ("count",) * 48 + ("ask", "done")


async def test_a_lost_lease_is_routed_whoever_took_it(any_kit):
    """What a drain took back is not this worker's any more: it can neither complete nor fail it."""
    await push(any_kit, "a")
    context = await work.claim({"pool": "p", "worker_id": "w"}, any_kit.fleet)
    lease = any_kit.fleet.held("p:a", "w")
    await any_kit.fleet._take_back(lease)
    for action in (work.complete, work.fail):
        with pytest.raises(LeaseLost, match="worker w was told to end"):
            await action({**context, "result": 1}, any_kit.fleet)
    await work.forget(context, any_kit.fleet)
    assert any_kit.fleet.leases == {}
