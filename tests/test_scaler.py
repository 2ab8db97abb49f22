"""scaler.yml, reaper.yml and launcher.yml as they are shipped: what a message does to a fleet, and what stays of it."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from importlib import resources

import pytest
import yaml
from flatfleet.hooks import scaling as actions
from flatfleet.hooks import sources
from flatfleet.runtime import bundle, decisions
from flatfleet.runtime.crew import Crew
from flatfleet.runtime.errors import PoolAtCapacity, StoreUnavailable
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.owner import _started
from flatfleet.runtime.owner import machine as this_machine
from flatfleet.runtime.stores.locks import Locks
from flatfleet.runtime.stores.store import Registration
from flatmachines import WorkerRegistration
from jsonschema import Draft7Validator

SOON = 30.0
"""Seconds after which a test gives up; nothing takes as long where all is well."""
CHANNEL = "fleet/p/scale"
DECISION = Draft7Validator(
    json.loads(resources.files("flatfleet.schemas").joinpath("decision.schema.json").read_text("utf-8"))
)
DEAD = f"{this_machine()}/999999999/1"


async def until(happened, within=SOON):
    async with asyncio.timeout(within):
        while not (found := await happened()):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return found


@pytest.fixture
def load(flow, tmp_path):
    """A machine of ours as a bundle, with a task of the one action `work`."""
    start = {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]}
    file = tmp_path / "task.yml"
    file.write_text(
        yaml.safe_dump(flow({"start": start, "done": {"type": "final"}}, {"item": "input.item"}, name="task"))
    )
    return lambda name: bundle.load(f"package:flatfleet/{name}.yml", task=None if name == "reaper" else str(file))


@pytest.fixture
def crew(any_kit, load):
    """A served fleet over the pool p, whose scaler runs whenever a test says so; busy items wait for `go`."""

    class Crew:
        def __init__(self):
            self.kit, self.store, self.fleet = any_kit, any_kit.store, any_kit.fleet
            self.bundle, self.go = load("scaler"), asyncio.Event()
            self.record = self.store.fleet("p")
            any_kit.fleet.served = True

            async def work(context, fleet):
                await self.go.wait()
                return context

            any_kit.does(work)

        async def scale(self, *messages, kit=None, **inputs):
            """Send the messages, let the scaler run until it parks, and return their decisions."""
            for message in messages:
                await self.store.signals.send(CHANNEL, message)
            kit = kit or any_kit
            async with asyncio.timeout(SOON):
                made = kit.machine(self.bundle, "p.scaler")
                assert await kit.engine.run_named(made, {"pool": "p", **inputs}) == {
                    "_waiting": True,
                    "_channel": CHANNEL,
                }
            found = await self.record.decisions(1000)
            for each in found:
                DECISION.validate(each)
            return found[-len(messages) :] if messages else found

        async def records(self, *statuses):
            return [each for each in await self.store.registration.list() if not statuses or each.status in statuses]

        async def live(self):
            return [each.metadata["parallelism"] for each in await self.records("active")]

        async def runs(self, n):
            """Wait until n workers run here (and have registered)."""

            async def there():
                return len(any_kit.fleet.workers) == any_kit.engine.live() == n

            await until(there)

        async def parked(self):
            """Wait until the scaler that a launcher has left is parked, and free for others to run."""

            async def there():
                row = await self.store.driver.load_snapshot("p.scaler")
                return row is not None and row.event == "waiting" and not await self.store.driver.locks("p.scaler")

            await until(there)

        async def busy(self, n):
            pool = self.store.work.pool("p")
            await pool.push_many([pool.new({}, key=f"i{k}") for k in range(n)])

            async def claimed():
                return (await pool.counts()).claimed == n

            await until(claimed)

        async def register(self, name, owner=None, **metadata):
            worker = WorkerRegistration(worker_id=name)
            about = {"pool": "p", "parallelism": 1, **metadata}
            await self.store.driver.register(worker, owner or self.store.owner, 60.0, about)

        async def lose(self, *names, **metadata):
            for name in names:
                await self.register(name, owner=DEAD, **metadata)
            await self.store.driver.mark_lost(DEAD)

        async def end(self):
            self.go.set()
            await any_kit.engine.close(0)

    return Crew()


def facts(decision):
    return [
        decision[key] for key in ("outcome", "target_before", "target", "live_before", "live", "launches", "drains")
    ]


# -- targets -------------------------------------------------------------------------------------------------------------


async def test_a_message_launches_what_is_missing_and_parks_again(any_kit, crew):
    (decision,) = await crew.scale({"target": 3, "reason": "a test", "by": "me"})
    assert facts(decision) == ["applied", None, 3, 0, 3, 3, 0]
    assert (decision["reason"], decision["by"], decision["fleet"]) == ("a test", "me", "p")
    assert abs(decision["at"] - time.time()) < 60
    assert await crew.record.target() == 3
    await crew.runs(3)
    workers = await crew.records()
    assert sorted(each.worker_id for each in workers) == sorted(decision["launched"])
    assert {each.metadata["decision"] for each in workers} == {decision["id"]}
    assert await any_kit.store.signals.peek(CHANNEL) == []
    row = await any_kit.store.driver.load_snapshot("p.scaler")
    assert (row.event, row.channel) == ("waiting", CHANNEL)
    await crew.end()


async def test_messages_are_decided_in_their_order_each_on_what_the_one_before_has_left(any_kit, crew):
    made = await crew.scale({"target": 2}, {"delta": 3}, {"delta": 9, "if_current": 4}, {"target": 4}, {"target": 4})
    assert [facts(each) for each in made] == [
        ["applied", None, 2, 0, 2, 2, 0],
        ["applied", 2, 5, 2, 5, 3, 0],
        ["refused", 5, 5, 5, 5, 0, 0],
        ["applied", 5, 4, 5, 4, 0, 1],
        ["unchanged", 4, 4, 4, 4, 0, 0],
    ]
    assert made[2]["error"] == "if_current is 4, but the target is 5"
    assert len({worker for each in made for worker in each["launched"]}) == 5
    await crew.end()


async def test_a_launch_that_the_engine_refuses_is_one_failed_decision_and_the_next_message_is_obeyed(
    any_kit, crew, monkeypatch
):
    launch = any_kit.engine.launch

    async def full(caller_machine, target_config, input_data, execution_id):
        name = str(input_data.get("worker_id"))
        if name.endswith("-2"):
            await any_kit.fleet.bookings.end(name, "PoolAtCapacity")
            raise PoolAtCapacity("the engine's pool is full")
        await launch(caller_machine, target_config, input_data, execution_id)

    with monkeypatch.context() as patch:
        patch.setattr(any_kit.engine, "launch", full)
        (failed,) = await crew.scale({"target": 3})
    assert (failed["outcome"], failed["error"]) == ("failed", "the engine's pool is full")
    await crew.runs(1)
    await crew.store.signals.send(CHANNEL, {"target": 2})
    async with asyncio.timeout(SOON):  # as a dispatcher does
        assert await any_kit.engine.resume("p.scaler") == "parked"
    applied = (await crew.record.decisions(1000))[-1]
    assert facts(applied) == ["applied", None, 2, 1, 2, 1, 0]
    await crew.runs(2)
    assert len(await crew.records()) == 3
    assert any_kit.engine.failures() == {}
    await crew.end()


async def test_messages_whose_ids_begin_alike_launch_workers_of_their_own(any_kit, crew):
    ids = ["2026112116420001", "2026112116420002", "0000000001", "0000000002"]
    made = await crew.scale(*({"delta": 2, "id": each} for each in ids))
    assert [(each["id"], each["live"], each["launches"]) for each in made] == [
        (name, 2 * (n + 1), 2) for n, name in enumerate(ids)
    ]
    assert len({worker for each in made for worker in each["launched"]}) == 8
    await crew.runs(8)
    await crew.end()


async def test_a_worker_that_another_decision_has_reserved_is_not_taken_for_ones_own(any_kit, crew, monkeypatch):
    monkeypatch.setattr(decisions, "short", lambda decision_id: "same")
    made = await crew.scale({"target": 2}, {"target": 4})
    assert [(each["live"], each["launches"]) for each in made] == [(2, 2), (4, 2)]
    await crew.end()


async def test_the_last_worker_takes_the_remainder(any_kit, crew):
    (decision,) = await crew.scale({"target": 7}, parallelism=3)
    assert facts(decision) == ["applied", None, 7, 0, 7, 3, 0]
    assert decision["parallelism"] == 3
    assert sorted(await crew.live()) == [1, 3, 3]
    await crew.end()


@pytest.mark.parametrize("most", [1, 2, 5, 9])
async def test_gradually_with_a_look_after_each_step(any_kit, crew, monkeypatch, most):
    looked, observe = [], Crew.live

    async def look(*given):
        found = await observe(*given)
        looked.append(found)
        return found

    monkeypatch.setattr(Crew, "live", look)
    (decision,) = await crew.scale({"target": 5, "max_launch_per_step": most})
    assert decision["launches"] == 5
    assert looked == [*range(0, 5, most), 5]
    await crew.end()


async def test_the_workers_of_a_fleet_are_counted_and_read_once_for_the_record(any_kit, crew, monkeypatch):
    await crew.lose("gone")
    read, workers = [], crew.store.driver.workers

    async def look(worker_id=None, *, statuses=None, pool=None):
        if worker_id is None:
            read.append((statuses, pool))
        return await workers(worker_id, statuses=statuses, pool=pool)

    monkeypatch.setattr(crew.store.driver, "workers", look)
    (decision,) = await crew.scale({"target": 4, "max_launch_per_step": 1})
    assert decision["launches"] == 4
    assert read == [(("lost",), "p"), (None, "p")]
    await crew.end()


async def test_what_others_launch_meanwhile_counts(any_kit, crew, monkeypatch):
    """Two workers turn up in the midst of it: never above the target."""
    flow_pace, turned_up = any_kit.engine.launch, []

    async def launch(*given, **named):
        if not turned_up:
            turned_up.append(True)
            await crew.register("stranger", parallelism=2)
        await flow_pace(*given, **named)

    monkeypatch.setattr(any_kit.engine, "launch", launch)
    (decision,) = await crew.scale({"target": 5, "max_launch_per_step": 1})
    assert facts(decision) == ["applied", None, 5, 0, 5, 3, 0]
    await crew.end()


async def test_a_dry_run_says_what_it_would_do(any_kit, crew):
    await crew.scale({"target": 2})
    await crew.runs(2)
    await crew.lose("gone")
    up, down = await crew.scale({"delta": 3, "dry_run": True}, {"target": 1, "dry_run": True})
    assert facts(up) == ["dry_run", 2, 5, 2, 2, 3, 0]
    assert facts(down) == ["dry_run", 2, 1, 2, 2, 0, 1]
    assert len(up["launched"]) == 3
    assert down["drained"][0] in any_kit.fleet.workers
    assert await crew.record.target() == 2
    assert len(await crew.live()) == 2
    assert "replaced_by" not in (await crew.store.registration.get("gone")).metadata
    await crew.end()


# -- draining ------------------------------------------------------------------------------------------------------------


async def test_a_drained_worker_finishes_its_item_and_idle_ones_go_first(any_kit, crew):
    await crew.scale({"target": 4})
    await crew.runs(4)
    await crew.busy(2)
    holders = {each.worker_id for each in await crew.records("active") if each.current_task_id}
    (decision,) = await crew.scale({"target": 1, "drain_deadline": 50})
    assert facts(decision) == ["applied", 4, 1, 4, 1, 0, 3]
    told = {each.worker_id: each for each in await crew.records() if each.metadata.get("drained_by")}
    assert set(decision["drained"]) == set(told)
    assert len(holders & set(told)) == 1
    assert {each.metadata["drained_by"] for each in told.values()} == {decision["id"]}
    assert all(40 < each.metadata["drain_until"] - time.time() <= 50 for each in told.values())
    await crew.runs(2)  # the idle ones are gone, the busy one is at work
    crew.go.set()
    await crew.runs(1)
    assert (await crew.store.work.pool("p").counts()).completed == 2
    await crew.end()


async def test_whoever_has_just_begun_goes_before_whoever_is_nearly_done(any_kit, crew):
    await crew.scale({"target": 3})
    await crew.runs(3)
    pool = crew.store.work.pool("p")
    for n in range(3):
        await pool.push({}, {"key": f"i{n}"})

        async def claimed(n=n):
            return (await pool.counts()).claimed == n + 1

        await until(claimed)
        await asyncio.sleep(0.01)
    holder = {each.current_task_id: each.worker_id for each in await crew.records("active")}
    (decision,) = await crew.scale({"target": 1})
    assert set(decision["drained"]) == {holder["p:i1"], holder["p:i2"]}
    await crew.end()


async def test_workers_of_different_sizes_are_never_drained_below_the_target(any_kit, crew):
    for name, size in (("a", 4), ("b", 4), ("c", 1)):
        await crew.register(name, parallelism=size)
    (decision,) = await crew.scale({"target": 3})
    assert facts(decision) == ["applied", None, 3, 9, 4, 0, 2]
    assert sorted(decision["drained"]) in (["a", "c"], ["b", "c"])
    assert decision["note"] == "1 more than the target: no worker is small enough to go"


async def test_a_drained_worker_is_not_replaced(any_kit, crew):
    """Neither by the reaper, nor when others are lost after it."""
    await crew.scale({"target": 4})
    await crew.runs(4)
    one, *_ = any_kit.fleet.workers
    await crew.store.driver.set_status(one, "terminating", {"drained_by": "hand"})
    crew.store.bell.ring("workers")
    await crew.runs(3)
    (decision,) = await crew.scale({"reconcile": True})
    assert facts(decision) == ["unchanged", 4, 4, 3, 3, 0, 0]
    await crew.lose("x")
    (decision,) = await crew.scale({"reconcile": True})
    assert facts(decision) == ["applied", 4, 4, 3, 4, 1, 0]  # it was as if five had been there
    await crew.end()


# -- lost workers --------------------------------------------------------------------------------------------------------


async def test_lost_workers_are_replaced_once(any_kit, crew):
    await crew.record.set_target(8)
    for n in range(5):
        await crew.register(f"w{n}")
    await crew.lose("x", "y", "z")
    first, second = await crew.scale({"reconcile": True}, {"reconcile": True})
    assert facts(first) == ["applied", 8, 8, 5, 8, 3, 0]
    assert facts(second) == ["unchanged", 8, 8, 8, 8, 0, 0]
    assert {each.metadata["replaced_by"] for each in await crew.records("lost")} == {first["id"]}
    await crew.end()


async def test_a_new_target_takes_account_of_the_lost_ones(any_kit, crew):
    await crew.lose("x", "y")
    target, again = await crew.scale({"target": 1}, {"reconcile": True})
    assert (target["launches"], again["launches"]) == (1, 0)
    await crew.store.driver.set_status(target["launched"][0], "terminating")
    (later,) = await crew.scale({"reconcile": True})
    assert facts(later) == ["unchanged", 1, 1, 0, 0, 0, 0]
    await crew.end()


async def test_the_workers_of_a_dead_process_do_not_count_before_they_are_marked(any_kit, crew):
    await crew.register("gone", owner=DEAD)
    (decision,) = await crew.scale({"target": 2})
    assert facts(decision) == ["applied", None, 2, 0, 2, 2, 0]
    await crew.end()


async def test_the_reaper_tells_the_scaler_of_each_fleet_once(any_kit, crew, load):
    await crew.record.set_target(3)
    await crew.store.fleet("q").set_target(1)
    for name, pool in (("a", "p"), ("b", "p"), ("c", "q"), ("d", "r")):
        await crew.register(name, owner=DEAD, pool=pool)
    reaper = load("reaper")
    assert await any_kit.machine(reaper).run({}) == {"workers": 4, "items": 0, "fleets": ["p", "q"]}
    assert await any_kit.machine(reaper).run({}) == {"workers": 0, "items": 0, "fleets": []}
    for name, n in (("p", 1), ("q", 1), ("r", 0)):
        sent = await crew.store.signals.peek(f"fleet/{name}/scale")
        assert [signal.data["reconcile"] for signal in sent] == [True] * n
    (decision,) = (await crew.scale())[-1:]
    assert facts(decision) == ["applied", 3, 3, 0, 2, 2, 0]
    assert (decision["by"], decision["reason"]) == ("reaper", "workers were lost")
    assert await crew.store.signals.consume("fleet/q/scale")
    assert (await any_kit.machine(reaper).run({}))["fleets"] == ["q"]
    await crew.end()


async def test_a_reaper_that_was_killed_before_it_told_the_scaler_is_made_good_by_the_next(any_kit, crew, load):
    await crew.record.set_target(1)
    await crew.register("a", owner=DEAD)
    await any_kit.fleet.recover()  # marked, and nobody was told
    await any_kit.machine(load("reaper")).run({})
    assert len(await crew.store.signals.peek(CHANNEL)) == 1


async def test_a_reaper_outlives_a_store_that_does_not_answer(any_kit, crew, load, monkeypatch):
    await crew.record.set_target(1)
    await crew.register("a", owner=DEAD)
    failures = {"owners": 2, "target": 1}

    def failing(name, real):
        async def call(*args):
            if failures[name]:
                failures[name] -= 1
                raise StoreUnavailable("no answer")
            return await real(*args)

        return call

    for name in failures:
        monkeypatch.setattr(any_kit.store.driver, name, failing(name, getattr(any_kit.store.driver, name)))
    monkeypatch.setattr(actions, "LOOK_EVERY", 0)
    reaper = asyncio.create_task(any_kit.machine(load("reaper")).run({"interval": 0.01}))

    async def told():
        return await crew.store.signals.peek(CHANNEL)

    await until(told)
    assert failures == {"owners": 0, "target": 0}
    assert not reaper.done()
    reaper.cancel()
    await asyncio.wait([reaper])


async def test_one_round_of_a_reaper_says_that_the_store_does_not_answer(any_kit, load, monkeypatch):
    async def owners():
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(any_kit.store.driver, "owners", owners)
    with pytest.raises(StoreUnavailable, match="no answer"):
        await any_kit.machine(load("reaper")).run({})


async def test_a_reaper_on_an_interval_looks_again(any_kit, crew, load):
    await crew.record.set_target(1)
    reaper = asyncio.create_task(any_kit.machine(load("reaper")).run({"interval": 0.01}))
    await asyncio.sleep(0.05)
    await crew.register("a", owner=DEAD)

    async def told():
        return await crew.store.signals.peek(CHANNEL)

    await until(told)
    assert not reaper.done()
    reaper.cancel()
    await asyncio.wait([reaper])


# -- bad messages --------------------------------------------------------------------------------------------------------


async def test_bad_messages_are_recorded_and_kill_nobody(any_kit, crew):
    deep: list = []
    for _ in range(500):
        deep = [deep]
    bad = [
        {"target": -1},
        {"target": 10**9},
        {"target": "ten"},
        {"delta": "x"},
        {"target": 1, "delta": 1},
        [8],
        None,
        8,
    ]
    bad += [
        {"target": 1, "version": 9},
        "x" * 5_000_000,
        {"x": deep},
        {"target": 1, "id": 5},
        {"target": 1, "reason": "\ud800\0" * 900},
    ]
    made = await crew.scale(*bad, {"target": 1})
    assert [each["outcome"] for each in made] == ["rejected"] * len(bad) + ["applied"]
    assert all(each["error"] and len(each["error"]) < 300 for each in made[:-1])
    assert max(len(json.dumps(each)) for each in made) < 9_000
    assert await crew.record.target() == 1
    await crew.end()


async def test_a_second_message_of_one_id_changes_nothing(any_kit, crew):
    made = await crew.scale({"delta": 2, "id": "mine"}, {"delta": 2, "id": "mine"}, {"delta": 1, "id": "other"})
    found = await crew.record.decisions(10)
    assert [(each["id"], each["target"]) for each in found] == [("mine", 2), ("other", 3)]
    assert made
    await crew.end()


async def test_an_error_on_the_way_is_recorded_and_the_next_message_is_decided(any_kit, crew, monkeypatch):
    register = crew.store.registration.register

    async def fail(worker, about):
        if worker.worker_id.endswith("-2"):
            raise ValueError("no room for it")
        return await register(worker, about)

    monkeypatch.setattr(crew.store.registration, "register", fail)
    first, second = await crew.scale({"target": 3}, {"target": 2})
    assert facts(first)[:3] == ["failed", None, 3]
    assert first["error"] == "no room for it"
    assert facts(second) == ["applied", None, 2, 1, 2, 1, 0]
    await crew.end()


async def test_a_store_that_was_away_for_a_moment_is_asked_again(any_kit, crew, monkeypatch):
    looks, observe = [], Crew.live

    async def away(*given):
        looks.append(1)
        if len(looks) == 2:
            raise StoreUnavailable("away")
        return await observe(*given)

    monkeypatch.setattr(Crew, "live", away)
    (decision,) = await crew.scale({"target": 2})
    assert facts(decision) == ["applied", None, 2, 0, 2, 2, 0]
    await crew.end()


async def test_a_process_that_is_stopping_launches_nobody_and_keeps_the_target(any_kit, crew):
    any_kit.fleet.draining = True
    (decision,) = await crew.scale({"target": 2})
    assert facts(decision) == ["applied", None, 2, 0, 0, 0, 0]
    assert "is stopping" in decision["note"]
    assert await crew.record.target() == 2


async def test_workers_that_end_at_once_are_not_launched_again_and_again(any_kit, crew):
    """A batch that is done: whoever is launched retires."""
    any_kit.fleet.served = False
    (decision,) = await crew.scale({"target": 3, "max_launch_per_step": 1}, launch_interval=0.02)
    assert decision["launches"] == 3


@pytest.mark.parametrize("action", [actions.plan, actions.record])
@pytest.mark.parametrize("host", ["dead", None])
async def test_what_another_process_has_seen_is_looked_at_again(any_kit, crew, action, host):
    """It launched two of three and died: its workers are gone, and so is what it has counted."""
    decision = decisions.begin("p", "s1", {"target": 3}, None)
    decision.update(outcome="applied", target=3, live=2, live_before=0)
    context = {"pool": "p", "decision": decision, "run": "r", "n": 2, "want": 1, "budget": 1, "level": 3}
    context.update(host=host or any_kit.store.owner, lost={})
    done = await action(context, any_kit.fleet)
    assert (done["next"] == "observe") is (host is not None)
    assert bool(await crew.record.decisions(1)) is (host is None and action is actions.record)
    if host is not None:
        again = await actions.plan(await actions.observe(done, any_kit.fleet), any_kit.fleet)
        assert (again["next"], again["want"], again["budget"], again["decision"]["live"]) == ("launch", 3, 3, 0)


# -- reserving -----------------------------------------------------------------------------------------------------------


async def test_an_id_that_went_down_with_its_process_is_not_used_again(any_kit, crew):
    await crew.register("r-1", owner=DEAD)
    await crew.register("r-2")
    await crew.store.driver.set_status("r-2", "terminated")
    context = {"pool": "p", "run": "r", "n": 0, "want": 2, "budget": 2}
    context = await actions.reserve(context, any_kit.fleet)
    assert (context["worker_id"], context["n"], context["want"], context["budget"]) == ("r-3", 3, 1, 1)
    again = await actions.reserve(
        context | {"n": 0, "want": 2, "budget": 2}, any_kit.fleet
    )  # the same state, run again here
    assert (again["worker_id"], again["want"]) == ("r-3", 1)
    assert len(await crew.records("active")) == 2


# -- the launcher --------------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(any_kit, crew, load, tmp_path):
    source = tmp_path / "items.jsonl"
    source.write_text("".join(json.dumps({"id": f"i{n}"}) + "\n" for n in range(20)))
    config = load("launcher")

    async def launch(**inputs):
        return await any_kit.machine(config).run({"pool": "p", "input": str(source), "out": "", **inputs})

    return launch


async def test_a_launcher_sets_the_target_and_leaves_a_scaler_and_a_reaper(any_kit, crew, launch):
    output = await launch(workers=3, parallelism=2)
    assert output["workers"] == 3
    await crew.runs(3)
    assert await crew.live() == [2, 2, 2]
    assert await crew.record.target() == 6

    await crew.parked()
    assert any_kit.engine.live() == 3  # a parked scaler is nothing, a reaper keeps nobody
    await crew.end()


@pytest.mark.parametrize(
    ("given", "stored", "strangers", "served", "launched", "target"),
    [
        ({}, None, 0, False, 4, 4),
        ({}, 6, 0, False, 6, 6),
        ({}, 6, 2, False, 4, 6),
        ({}, 6, 6, False, 0, 6),
        ({}, None, 6, False, 0, 6),
        ({}, 0, 0, False, 4, 4),
        ({}, 0, 0, True, 0, 0),
        ({"workers": 2}, 6, 3, False, 2, 5),
        ({"workers": 0}, 6, 0, True, 0, 6),
        ({"workers": 0}, None, 0, True, 0, None),
        ({"parallelism": 4}, 6, 0, False, 2, 6),
        ({"workers": 2, "registration": "none"}, None, 0, False, 2, None),
        ({"registration": "none"}, 6, 0, False, 4, 6),
    ],
)
async def test_how_many_a_launcher_launches(any_kit, crew, launch, given, stored, strangers, served, launched, target):
    any_kit.fleet.served = served
    await crew.record.set_target(stored)
    for n in range(strangers):
        await crew.register(f"stranger{n}")
    output = await launch(**given)
    assert output["workers"] == launched
    assert await crew.record.target() == target
    await crew.end()


async def test_a_launcher_with_nothing_to_do_launches_nobody_unless_the_fleet_is_served(any_kit, crew, launch):
    crew.go.set()
    any_kit.fleet.served = False
    await launch(workers=2)
    await any_kit.engine.join()
    await crew.record.set_target(None)
    assert (await launch(workers=2))["workers"] == (await launch())["workers"] == 0
    assert await crew.record.target() is None
    any_kit.fleet.served = True
    assert (await launch(workers=2))["workers"] == 2
    await crew.end()


@pytest.mark.parametrize(
    ("served", "registration", "scaled"),
    [(True, "store", True), (False, "store", False), (True, "none", False)],
)
async def test_a_launcher_of_none_hosts_a_fleet_that_is_served(any_kit, crew, served, registration, scaled):
    any_kit.fleet.served = served
    made = await actions.aim({"pool": "p", "workers": 0, "run": "a", "registration": registration}, any_kit.fleet)
    assert (made["want"], made["scaled"], await crew.record.target()) == (0, scaled, None)


async def test_a_launcher_of_none_leaves_a_scaler_that_hears_and_a_reaper(any_kit, crew, launch):
    await crew.store.signals.send(CHANNEL, {"target": 2})
    output = await launch(workers=0)
    assert output["workers"] == 0
    assert any(name.endswith(".reaper") for name in any_kit.engine._tasks)
    await crew.runs(2)
    await crew.parked()
    await crew.end()


async def test_a_launcher_run_again_adopts_the_scaler_and_what_it_had_to_do(any_kit, crew, launch):
    await crew.scale({"target": 1})
    await crew.store.signals.send(CHANNEL, {"delta": 2})
    await launch(workers=1)

    async def decided():
        found = await crew.record.decisions(10)
        return found if len(found) == 2 else None

    _, decision = await until(decided)
    assert facts(decision) == ["applied", 2, 4, 2, 4, 2, 0]
    assert [
        row.execution_id for row in await any_kit.store.driver.snapshots(None, None) if "scaler" in row.execution_id
    ] == ["p.scaler"]
    await crew.end()


async def test_lost_workers_of_before_are_not_replaced_beside_those_of_a_new_launch(any_kit, crew, launch):
    await crew.lose("x", "y")
    await launch(workers=2)
    await crew.parked()
    (decision,) = await crew.scale({"reconcile": True})
    assert decision["launches"] == 0
    await crew.store.driver.set_status(next(iter(any_kit.fleet.workers)), "terminating")
    (decision,) = await crew.scale({"reconcile": True})
    assert decision["launches"] == 0
    await crew.end()


async def test_enqueue_leaves_workers_open_where_none_are_given(any_kit, crew, tmp_path):
    source = tmp_path / "i.jsonl"
    source.write_text('{"id": 1}\n')
    made = await sources.enqueue({"pool": "p", "input": str(source)}, any_kit.fleet)
    assert made["workers"] is None


# -- cost ----------------------------------------------------------------------------------------------------------------


async def test_a_parked_scaler_holds_no_task_and_its_row_does_not_grow(any_kit, crew, busy_tasks):
    await crew.scale({"target": 0})
    before = len(busy_tasks())
    sizes = []
    for n in range(30):
        await crew.scale({"delta": 1, "dry_run": True, "reason": "r" * (30 * n)})
        sizes.append(len((await any_kit.store.driver.load_snapshot("p.scaler")).body))
    assert len(busy_tasks()) == before
    assert max(sizes) - min(sizes) < 100


# -- at the same moment --------------------------------------------------------------------------------------------------


@pytest.fixture
def second(any_kit, load):
    """Another process of the same store, or what looks like one: it has an owner, leases and locks of its own."""

    def make():
        store = copy.copy(any_kit.store)
        store.owner = f"{this_machine()}/1/{_started(1)}"
        store.lock = Locks(store.driver, store.owner, store.lease)
        store.registration = Registration(store.driver, store.bell, store.owner, store.lease)
        fleet = Fleet(store)
        fleet.served = True
        return fleet

    return make


async def test_two_launchers_at_once_come_to_a_target_for_both(any_kit, crew, second, monkeypatch):
    """Each counts what the other one launches, though none of it has been launched yet."""
    seen, look = [], Crew.look

    async def slow(self):
        found = await look(self)
        seen.append(found.live)
        await asyncio.sleep(0.02)
        return found

    monkeypatch.setattr(Crew, "look", slow)
    other = second()
    contexts = [{"pool": "p", "workers": 4, "run": run} for run in ("a", "b")]
    made = await asyncio.gather(
        actions.aim(contexts[0], any_kit.fleet), actions.aim(contexts[1], other), return_exceptions=True
    )
    other.guard.stop()
    await other._heart.stop()
    assert [(each["want"], each["scaled"]) for each in made] == [(4, True)] * 2
    assert sorted(seen) == [0, 4]
    assert await crew.record.target() == 8
    assert sum(await crew.live()) == 8
    assert await crew.store.driver.locks("") == []


async def test_a_launcher_without_a_number_finds_that_another_one_has_filled_the_fleet(any_kit, crew):
    await crew.record.set_target(3)
    await actions.aim({"pool": "p", "workers": None, "run": "a"}, any_kit.fleet)
    any_kit.fleet.served = False
    late = await actions.aim({"pool": "p", "workers": None, "run": "b"}, any_kit.fleet)
    assert (late["want"], len(await crew.live())) == (0, 3)
    assert late["scaled"]  # the other one may have found the scaler's lock taken by this one
    await crew.scale()
    assert not (await actions.aim({"pool": "p", "workers": None, "run": "c"}, any_kit.fleet))["scaled"]


@pytest.mark.parametrize("key", ["aim/p", "p.scaler"])
@pytest.mark.parametrize("dead", [True, False])
async def test_a_launcher_waits_for_whoever_counts_unless_that_one_is_dead(any_kit, crew, key, dead):
    owner = DEAD if dead else "another machine/1/1"
    assert await any_kit.store.driver.lock(key, owner, 60.0)
    launcher = asyncio.create_task(actions.aim({"pool": "p", "workers": 2, "run": "a"}, any_kit.fleet))
    if not dead:
        await asyncio.sleep(0.1)
        assert not launcher.done()
        await crew.register("w1")
        await any_kit.store.driver.unlock(key, owner)
    await asyncio.wait_for(launcher, SOON)
    assert await crew.record.target() == (2 if dead else 3)


async def test_a_launcher_beside_a_reconcile_launches_none_too_many(any_kit, crew, monkeypatch):
    """The scaler has counted, and launches; a launcher comes that takes the stored target."""
    await crew.record.set_target(8)
    for n in range(5):
        await crew.register(f"w{n}")
    await crew.lose("x", "y", "z")
    launchers, launch = [], any_kit.engine.launch

    async def beside(*given, **named):
        if not launchers:
            inputs = {"pool": "p", "workers": None, "run": "a"}
            launchers.append(asyncio.create_task(actions.aim(inputs, any_kit.fleet)))
            await asyncio.sleep(0.05)
        await launch(*given, **named)

    monkeypatch.setattr(any_kit.engine, "launch", beside)
    (decision,) = await crew.scale({"reconcile": True})
    assert facts(decision) == ["applied", 8, 8, 5, 8, 3, 0]
    assert (await asyncio.wait_for(launchers[0], SOON))["want"] == 0
    assert sum(await crew.live()) == 8
    await crew.end()


async def test_a_reconcile_leaves_a_target_that_was_raised_meanwhile(any_kit, crew):
    await crew.record.set_target(8)
    decision = decisions.begin("p", "s1", {"reconcile": True}, None)
    decision.update(outcome="applied", target_before=6, target=6, live=6, launches=1)
    await actions.record({"pool": "p", "decision": decision, "level": None}, any_kit.fleet)
    assert await crew.record.target() == 8


async def test_workers_that_a_launcher_does_not_get_to_are_deregistered_at_the_end(any_kit, crew):
    await actions.aim({"pool": "p", "workers": 3, "run": "a"}, any_kit.fleet)
    context = await actions.reserve({"pool": "p", "run": "a", "n": 0, "want": 3}, any_kit.fleet)
    assert (context["worker_id"], context["n"], len(await crew.live())) == ("a-1", 1, 3)
    any_kit.fleet.enlist("a-1")  # it is launched
    await crew.end()
    ended = await crew.records("terminated")
    assert {each.worker_id: each.metadata["ended"] for each in ended} == dict.fromkeys(("a-2", "a-3"), "never launched")


async def test_a_worker_that_is_drained_before_it_is_launched_is_not_replaced(any_kit, crew):
    await actions.aim({"pool": "p", "workers": 2, "run": "a"}, any_kit.fleet)
    await crew.store.driver.set_status("a-2", "terminating", {"drained_by": "hand"})
    context = {"pool": "p", "run": "a", "n": 0, "want": 2}
    for name in ("a-1", "a-2"):
        context = await actions.reserve(context, any_kit.fleet)
        assert context["worker_id"] == name
    assert len(await crew.live()) == 1


# -- drained by name -----------------------------------------------------------------------------------------------------


async def test_a_message_drains_whom_it_names_and_lowers_the_target_by_them(any_kit, crew):
    await crew.scale({"target": 4})
    await crew.runs(4)
    one, two, *_ = any_kit.fleet.workers
    (decision,) = await crew.scale({"drain": [one, "nobody"], "drain_deadline": 50})
    assert facts(decision) == ["applied", 4, 3, 4, 3, 0, 1]
    assert decision["drained"] == [one]
    told = (await crew.store.registration.get(one)).metadata
    assert told["drained_by"] == decision["id"]
    assert 40 < told["drain_until"] - time.time() <= 50
    await crew.runs(3)
    dry, refused, again = await crew.scale(
        {"drain": [two], "dry_run": True}, {"drain": [two], "if_current": 4}, {"drain": [one]}
    )
    assert facts(dry) == ["dry_run", 3, 2, 3, 3, 0, 1]
    assert facts(refused) == ["refused", 3, 3, 3, 3, 0, 0]
    assert facts(again) == ["unchanged", 3, 3, 3, 3, 0, 0]
    assert await crew.record.target() == 3
    await crew.end()


async def test_workers_drained_in_a_message_s_name_before_it_is_read_count_as_drained_by_it(any_kit, crew):
    """Ended or not; what was lost stays wanted, and nobody is launched or drained for the new target."""
    await crew.record.set_target(8)
    for n in range(4):
        await crew.register(f"w{n}", parallelism=2)
    await crew.lose("x")
    for name in ("w0", "w1"):
        await crew.store.driver.set_status(name, "terminating", {"drained_by": "mine"})
    await crew.store.driver.set_status("w0", "terminated")
    (decision,) = await crew.scale({"drain": ["w0"], "id": "mine"})
    assert facts(decision) == ["applied", 8, 4, 8, 4, 0, 2]
    (decision,) = await crew.scale({"reconcile": True})
    assert facts(decision)[:3] == ["unchanged", 4, 4]


async def test_a_drain_is_carried_out_once_however_often_the_scaler_dies_in_it(any_kit, crew):
    await crew.record.set_target(3)
    for n in range(3):
        await crew.register(f"w{n}")
    decision = decisions.begin("p", "s1", {"drain": ["w1"]}, None)
    context = {"pool": "p", "decision": decision, "host": None, "budget": None, "level": None, "lost": {}}
    context = await actions.observe(context, any_kit.fleet)
    before = json.loads(json.dumps(context))
    for _ in range(2):
        context = await actions.plan(json.loads(json.dumps(before)), any_kit.fleet)
        assert (context["next"], context["decision"]["target"]) == ("observe", 2)
    context = await actions.plan(await actions.observe(context, any_kit.fleet), any_kit.fleet)
    assert context["next"] == "record"
    await actions.record(context, any_kit.fleet)
    assert facts((await crew.record.decisions(1))[0]) == ["applied", 3, 2, 3, 2, 0, 1]


async def test_a_worker_that_is_drained_while_others_are_launched_stays_away(any_kit, crew, monkeypatch):
    """As `flatfleet drain w1` does it while the scaler is at work: the order at once, the target after that."""
    await crew.record.set_target(4)
    for n in range(4):
        await crew.register(f"w{n}")
    launch, told = any_kit.engine.launch, []

    async def beside(*given, **named):
        if not told:
            told.append(await crew.store.signals.send(CHANNEL, {"drain": ["w1"], "id": "mine"}))
            await crew.store.driver.set_status("w1", "terminating", {"drained_by": "mine"})
        await launch(*given, **named)

    monkeypatch.setattr(any_kit.engine, "launch", beside)
    await crew.scale({"target": 8, "max_launch_per_step": 1})
    up, drained = await crew.record.decisions(10)
    assert facts(up)[:4] == ["applied", 4, 8, 4]
    assert facts(drained) == ["applied", 8, 7, 8, 7, 0, 1]
    assert (await crew.record.target(), sum(await crew.live())) == (7, 7)
    await crew.end()
