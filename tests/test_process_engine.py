"""The process engine with real processes: what hosts know, what dies and is told to go, what is refused, what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from engine_hooks import Gate
from flatfleet import run
from flatfleet.commands import status
from flatfleet.runtime import bundle, engine_notes
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.crew import Crew
from flatfleet.runtime.engines.hosts import Event
from flatfleet.runtime.errors import EngineError, EngineUrlError, HostDied, PoolAtCapacity, StoreError, UnknownAction
from flatfleet.runtime.owner import machine

pytestmark = pytest.mark.slow

HERE = str(Path(__file__).parent)


class Hosts:
    """A kit with a process engine, and what tests do with it."""

    def __init__(self, kit, flow, folder):
        self.kit, self.engine, self.store, self._flow, self._folder = kit, kit.engine, kit.store, flow, folder
        self.caller = kit.machine(flow({"start": {"type": "final"}}))
        gate = Gate(self.store)
        self.came, self.open = gate.reached, gate.open

    def config(self, action, **settings):
        states = {
            "start": {"action": action, "hooks": "test", "transitions": [{"to": "done"}]},
            "done": {"type": "final", "output": {"out": "context.out", "pid": "context.pid"}},
        }
        about = {"item": "input.item", "out": None, "pid": None}
        return Bundle.of(self._flow(states, about, name=f"task-{action}", settings=settings))

    async def launch(self, action, name="m1", **input):
        await self.engine.launch(self.caller, self.config(action), input, name)

    async def run(self, action, name="m1", **input):
        await self.launch(action, name, **input)
        await self.engine.join()
        return await self.result(name)

    async def result(self, name):
        return await self.store.results.read(f"flatagents://{name}/result", block=False)

    async def workers(self, *names, items, action="work", **input):
        """Push items and launch workers of the shipped worker.yml for them."""
        import yaml

        file = self._folder / f"{action}.yml"
        file.write_text(yaml.safe_dump(dict(self.config(action))))
        config = bundle.load("package:flatfleet/machines/worker.yml", task=str(file))
        pool = self.store.work.pool("p")
        await pool.push_many([pool.new({"item": item}, key=str(item)) for item in items])
        for name in names:
            await self.engine.launch(self.caller, config, {"pool": "p", "worker_id": name, **input}, name)
        return pool

    async def booked(self, run):
        name, _ = await Crew(self.kit.fleet, "p").reserve(run, 1, {"parallelism": 1})
        return name

    async def until(self, happened):
        async with asyncio.timeout(30):
            while not (value := happened()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return value

    def pids(self):
        return [place.host.about()["pid"] for place in self.engine.pool.places if place.ready]

    async def record(self, name):
        return await self.store.registration.get(name)

    async def close(self):
        await self.kit.close()


@pytest.fixture
def hosts(make_kit, flow, tmp_path, monkeypatch):
    """`hosts(engine options, **hosts)`: a kit whose machines run in processes that have the actions of engine_hooks.py."""
    monkeypatch.syspath_prepend(HERE)
    import engine_hooks

    made = []

    def make(options="min_size=1&max_size=2", **about):
        about = {"compose": "engine_hooks:compose", **about}
        kit = make_kit(f"sqlite:{tmp_path / 'fleet.db'}", f"process?{options}", **about)
        for action in engine_hooks.ACTIONS.values():
            kit.does(action)
        made.append(Hosts(kit, flow, tmp_path))
        return made[-1]

    class Made:
        def __call__(self, *args, **about):
            return make(*args, **about)

        async def close(self):
            for each in made:
                await each.close()

    return Made()


# -- what hosts know ---------------------------------------------------------------------------------------------------


async def test_a_host_has_what_its_parent_has_and_a_session_and_an_owner_of_its_own(hosts, monkeypatch):
    monkeypatch.setenv("FLATFLEET_AGENTS", "offline")
    there = hosts()
    told = (await there.run("about"))["out"]
    there.kit.fleet.served = True
    assert (await there.run("about", "m2"))["out"]["served"]
    assert told["pid"] == told["session"] == there.pids()[0] != os.getpid()
    assert (told["served"], told["capabilities"], told["lease"]) == (False, [], there.store.lease)
    assert (told["agents"], told["folder"]) == ("offline", str(Path.cwd()))
    assert told["owner"] != there.store.owner
    assert {there.store.owner, told["owner"]} == set(there.engine.owners())


async def test_capabilities_a_served_fleet_and_the_length_of_a_lease_reach_the_hosts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import engine_hooks

    url, about = f"sqlite:{tmp_path / 'fleet.db'}", {"compose": "engine_hooks:compose"}
    options = {"served": True, "capabilities": ["gpu", "eu"], "lease": 7.0}
    parts = engine_hooks.compose(url, engine="process?min_size=1", hosts=about, **options)
    try:
        states = {"start": {"action": "about", "hooks": "test", "transitions": [{"to": "done"}]}}
        states["done"] = {"type": "final", "output": {"out": "context.out"}}
        config = Bundle.of({"spec": "flatmachine", "spec_version": "4.2.1", "data": {"name": "x", "states": states}})
        await parts.engine.launch(parts.machine(config, str(tmp_path)), config, {}, "m1")
        await parts.engine.join()
        told = (await parts.store.results.read("flatagents://m1/result", block=False))["out"]
        assert (told["served"], told["capabilities"], told["lease"]) == (True, ["eu", "gpu"], 7.0)
    finally:
        await parts.engine.close(0)
        await parts.fleet.close()


async def test_what_has_a_name_and_what_works_in_the_background_stays_in_the_launchers_process(hosts):
    there = hosts()
    await there.open()
    await there.launch("work", "e1", machine_id="named")
    await there.engine.launch(there.caller, there.config("work", background=True), {}, "e2")
    await there.launch("work", "e3")
    assert there.engine.live() == 1
    await there.engine.join()
    pids = {name: (await there.result(name))["pid"] for name in ("named", "e2", "e3")}
    assert pids["named"] == pids["e2"] == os.getpid() != pids["e3"]


async def test_what_a_host_writes_to_standard_error_appears_here_behind_its_name(hosts, capfd):
    there = hosts()
    await there.run("shout", item="one\ntwo")
    await there.run("shout", "m2", item="no end of line")
    await there.engine.close(0)
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("host-1: ")] == [
        "host-1: one",
        "host-1: two",
        "host-1: no end of line",
    ]


async def test_a_bundle_is_sent_to_a_host_once_and_those_long_unused_again(hosts, monkeypatch):
    there, sent = hosts("min_size=1&max_size=1"), []
    await there.run("about")
    host = there.engine.pool.places[0].host
    write = host._writer.write
    monkeypatch.setattr(host._writer, "write", lambda data: (sent.append(len(data)), write(data)))
    await there.run("about", "m2")
    (order,) = sent
    for n in range(40):
        await there.engine.launch(there.caller, there.config("about", n=n), {}, f"n{n}")
    await there.engine.join()
    assert there.engine.failures() == {}
    sent.clear()
    await there.run("about", "m3")
    assert max(sent) > 2 * order


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_store_that_lives_in_one_process_is_refused_at_once():
    with pytest.raises(EngineUrlError, match=r"store 'memory:' lives in this one: take .* --store sqlite:fleet.db"):
        run.compose("memory:", engine="process")


async def test_a_host_that_cannot_start_is_one_error_with_its_last_lines_and_its_booking_ends(hosts, capfd):
    there = hosts("min_size=1&max_size=4", compose="engine_hooks:broken")
    name, _ = await Crew(there.kit.fleet, "p").reserve("r", 1, {"parallelism": 1})
    assert (await there.record(name)).metadata["booked"] is True
    await there.workers(name, items=["a"])
    await there.engine.join()
    (fault,) = there.engine.failures().values()
    assert isinstance(fault, EngineError)
    assert "did not start (exit code" in str(fault)
    assert "this module cannot be used" in str(fault)
    assert there.engine.pool._made == 3
    record = await there.record(name)
    assert (record.status, record.metadata["ended"]) == ("terminated", "EngineError")
    assert (await there.result(name))["_error_type"] == "EngineError"
    assert capfd.readouterr().err == ""
    assert there.engine.live() == 0


async def test_a_module_that_is_not_there_is_named(hosts):
    there = hosts(compose="no_such_module:compose")
    await there.run("about")
    assert "no_such_module" in str(there.engine.failures()["m1"])


async def test_what_is_no_data_cannot_be_sent_and_what_a_host_does_not_know_it_refuses(hosts):
    there = hosts(compose="flatfleet.run:compose")
    await there.run("about", "m1", item={1, 2})
    await there.run("about", "m2")
    failures = there.engine.failures()
    assert "m1 cannot be sent to another process" in str(failures["m1"])
    assert isinstance(failures["m2"], UnknownAction)
    assert "hooks 'test' are not known" in str(failures["m2"])
    assert there.engine.pool.metrics()["active"] == 0


async def test_who_may_not_queue_is_told_so_by_the_launch_and_the_booking_ends(hosts):
    there = hosts("min_size=1&max_size=1&slots=1&queue=false")
    await there.launch("work", "m1")
    await there.came(1)
    name, _ = await Crew(there.kit.fleet, "p").reserve("r", 1, {"parallelism": 1})
    with pytest.raises(PoolAtCapacity):
        await there.workers(name, items=["a"])
    assert (await there.record(name)).metadata["ended"] == "PoolAtCapacity"
    assert there.engine.live() == 1
    await there.open()
    await there.engine.join()
    assert there.engine.failures() == {}


# -- bookings ----------------------------------------------------------------------------------------------------------


async def test_a_booked_worker_is_its_hosts_once_it_has_begun_and_no_loss_of_its_launchers(hosts, caplog):
    there = hosts()
    crew, fleet = Crew(there.kit.fleet, "p"), there.kit.fleet
    name, n = await crew.reserve("r", 1, {"parallelism": 1, "decision": "d"})
    await there.workers(name, items=["a"])
    await there.came(1)
    record = await there.record(name)
    assert (record.metadata["booked"], record.metadata["decision"]) == (False, "d")
    assert record.metadata["owner"] in set(there.engine.owners()) - {there.store.owner}
    assert record.pid == there.pids()[0]
    await fleet.beat()
    assert name not in fleet.workers
    assert "is lost in the registry" not in caplog.text
    assert await crew.reserve("r", 1, {"parallelism": 1, "decision": "d"}) == (name, n)
    assert name not in fleet.workers
    assert (await crew.reserve("r", 1, {"parallelism": 1, "decision": "other"}))[0] == "r-2"
    await there.open()
    await there.engine.join()
    assert (await there.record(name)).status == "terminated"


async def test_a_booking_that_waits_for_a_host_is_renewed_and_ended_with_its_engine(hosts):
    there = hosts("min_size=1&max_size=1&slots=1")
    await there.launch("work", "m1")
    await there.came(1)
    name, _ = await Crew(there.kit.fleet, "p").reserve("r", 1, {"parallelism": 1})
    await there.workers(name, items=["a"])
    assert name in there.kit.fleet.workers
    await there.until(lambda: there.engine.pool.metrics()["queued"])
    await there.engine.close(0)
    assert (await there.record(name)).metadata["ended"] == "never launched"


async def waiting(there, *names):
    """The only place is taken by `m1`, and booked workers wait for it."""
    await there.launch("work", "m1")
    await there.came(1)
    await there.workers(*[await there.booked(name) for name in names], items=["a"])
    await there.until(lambda: there.engine.pool.metrics()["queued"] == len(names))


async def test_a_worker_that_waits_for_a_host_and_is_told_to_end_leaves_the_queue_at_once(hosts):
    there = hosts("min_size=1&max_size=1&slots=1")
    await waiting(there, "r", "s")
    await there.store.driver.set_status("s-1", "terminating", {"drained_by": "somebody"})
    there.store.bell.announce("workers")
    await there.until(lambda: there.engine.pool.metrics()["queued"] == 1)
    assert there.engine.live() == 2
    await there.open()
    await there.engine.join()
    record = await there.record("s-1")
    assert (record.status, record.metadata["ended"], record.metadata["processed"]) == ("terminated", "drained", 0)
    assert await there.result("s-1") == {"status": "drained", "worker_id": "s-1", "processed": 0}
    assert (await there.result("r-1"))["processed"] == 1
    assert there.engine.failures() == {}
    assert there.engine.pool.metrics()["requests"] == 3
    assert there.kit.fleet.bookings._names == set()  # nothing is kept of workers that have ended


async def test_one_that_was_told_to_end_before_it_is_launched_needs_no_host(hosts):
    there = hosts("min_size=1&max_size=1&slots=1&queue=false")
    await there.launch("work", "m1")
    await there.came(1)
    name = await there.booked("r")
    await there.store.driver.set_status(name, "terminating", {"drained_by": "somebody"})
    await there.kit.fleet.look()
    await there.workers(name, items=["a"])
    await there.until(lambda: there.engine.live() == 1)
    await there.open()
    await there.engine.join()
    assert (await there.record(name)).metadata["ended"] == "drained"


async def test_one_that_is_told_to_end_in_the_moment_it_gets_a_place_gives_that_back(hosts):
    there = hosts("min_size=1&max_size=1&slots=1")
    await waiting(there, "r")
    (place,) = there.engine.pool.places
    place.leave()
    there.engine.pool._serve()
    assert place.reserved == 1
    there.kit.fleet._told("r-1", "terminating")
    place.enter()
    assert there.engine.live() == 1
    await there.until(lambda: place.reserved == 1)
    await there.open()
    await there.engine.join()
    assert (await there.record("r-1")).metadata["ended"] == "drained"
    assert there.engine.pool.metrics()["active"] == 0


async def test_one_that_is_told_to_end_on_its_way_to_a_host_ends_there(hosts, monkeypatch):
    there = hosts("min_size=1&max_size=1")
    await there.run("about")
    (place,) = there.engine.pool.places
    launch = place.host.launch

    async def told(order):
        await there.store.driver.set_status("r-1", "terminating", {"drained_by": "somebody"})
        await there.kit.fleet.look()
        await launch(order)

    monkeypatch.setattr(place.host, "launch", told)
    pool = await there.workers(await there.booked("r"), items=["a"])
    await there.engine.join()
    assert await there.result("r-1") == {"status": "drained", "worker_id": "r-1", "processed": 0}
    assert (await pool.counts()).waiting == 1
    assert await there.record("r-1.2") is None


async def test_what_was_launched_just_before_the_engine_is_drained_is_not_waited_for(hosts):
    there = hosts("min_size=1&max_size=1&slots=1")
    await there.workers("w1", items=["a"])
    there.engine.drain()
    assert there.engine.live() == 0
    await there.engine.join()


# -- what dies, and what is told to go ---------------------------------------------------------------------------------


async def test_a_host_that_is_killed_takes_only_its_own_workers_and_others_take_their_place(hosts):
    there = hosts("min_size=2&max_size=2")
    name, _ = await Crew(there.kit.fleet, "p").reserve("r", 1, {"parallelism": 3, "decision": "d"})
    pool = await there.workers(name, "other", items=["a", "b", "c"])
    await there.came(2)
    victim = await there.record(name)
    os.kill(victim.pid, signal.SIGKILL)
    await there.came(3)
    lost, new = await there.record(name), await there.record(f"{name}.2")
    assert (lost.status, lost.metadata["replaced_by"]) == ("lost", f"{name}.2")
    assert (new.status, new.metadata["decision"], new.metadata["booked"]) == ("active", "d", False)
    assert new.pid != victim.pid
    assert (await there.record("other")).status == "active"
    await there.open()
    await there.engine.join()
    counts, history = await pool.counts(), [await pool.attempts(f"p:{key}") for key in "abc"]
    assert counts.completed == 3
    assert sorted(attempt.outcome for attempts in history for attempt in attempts) == ["completed"] * 3 + ["crashed"]
    assert there.engine.failures() == {}


async def test_a_worker_that_does_not_register_is_replaced_too_and_one_that_was_told_to_end_is_not(hosts):
    there = hosts("min_size=1&max_size=1")
    await there.workers("free", items=["a", "b"], registration="none")
    await there.workers("told", items=[])
    await there.came(2)
    await there.store.driver.set_status("told", "terminating", {"drained_by": "somebody"})
    os.kill(there.pids()[0], signal.SIGKILL)
    await there.came(3)
    await there.open()
    await there.engine.join()
    assert await there.result("told") is None
    assert (await there.result("free.2"))["status"] == "retired"
    assert await there.record("told.2") is None
    assert (await there.record("told")).status == "lost"


async def test_a_machine_that_is_no_worker_fails_with_its_host_and_whoever_waits_for_it_hears_so(hosts):
    there = hosts("min_size=1&max_size=1")
    await there.launch("work", "m1")
    await there.came(1)
    os.kill(there.pids()[0], signal.SIGKILL)
    await there.engine.join()
    assert isinstance(there.engine.failures()["m1"], HostDied)
    assert "killed by SIGKILL" in str(there.engine.failures()["m1"])
    assert (await there.result("m1"))["_error_type"] == "HostDied"
    await there.open()
    assert (await there.run("work", "m2"))["out"] == "m2"


async def going(there, *items, **about):
    """`r-1` has begun with the first item, and its host, the first one, is told to go."""
    pool = await there.workers(await there.booked("r"), items=items, **about)
    await there.came(1)
    (place,) = [each for each in there.engine.pool.places if each.ready]
    os.kill(place.host.about()["pid"], signal.SIGTERM)
    await there.until(lambda: place.state == "leaving")
    return pool, place


async def test_while_a_host_that_is_told_to_go_drains_others_work_in_the_place_of_its_workers(hosts):
    there = hosts("min_size=1&max_size=1")
    pool, place = await going(there, "a", "b")
    await there.came(2)
    old, new = await there.record("r-1"), await there.record("r-1.2")
    assert (old.status, old.metadata["replaced_by"]) == ("terminating", "r-1.2")
    assert (new.status, new.metadata["booked"]) == ("active", False)
    assert new.pid != old.pid
    assert (await pool.counts()).claimed == 2
    assert await Crew(there.kit.fleet, "p").live() == 1
    there.engine._heard(place, Event("leaving"))  # it is told once more: nobody is launched for that
    await there.open()
    await there.engine.join()
    assert (await there.result("r-1.2"))["processed"] == 1
    ended = {each.worker_id: each.status for each in await there.store.registration.list()}
    assert ended == {"r-1": "terminated", "r-1.2": "terminated"}
    assert there.engine.failures() == {}
    await there.until(lambda: not Path(f"/proc/{old.pid}").exists())


async def test_a_worker_that_ends_on_a_leaving_host_is_drained_and_replaced_no_second_time(hosts):
    there = hosts("min_size=1&max_size=1")
    pool, _place = await going(there, "a", "b")
    await there.came(2)
    await there.open()
    await there.engine.join()
    assert await there.result("r-1") == {"status": "drained", "worker_id": "r-1", "processed": 1}
    assert (await there.record("r-1")).metadata["ended"] == "drained"
    assert [len(await pool.attempts(f"p:{key}")) for key in "ab"] == [1, 1]
    assert {each.worker_id for each in await there.store.registration.list()} == {"r-1", "r-1.2"}


async def test_a_leaving_host_that_is_killed_has_its_items_handed_back_and_its_workers_replaced_once(hosts):
    there = hosts("min_size=1&max_size=1")
    pool, place = await going(there, "a", "b")
    await there.came(2)
    os.kill((await there.record("r-1")).pid, signal.SIGKILL)
    await there.until(lambda: place.state == "gone")
    await there.open()
    await there.engine.join()
    outcomes = [[each.outcome for each in await pool.attempts(f"p:{key}")] for key in "ab"]
    assert sorted(outcomes) == [["completed"], ["crashed", "completed"]]
    statuses = {each.worker_id: each.status for each in await there.store.registration.list()}
    assert statuses == {"r-1": "lost", "r-1.2": "terminated"}
    assert (await there.result("r-1.2"))["processed"] == 2


async def test_a_worker_that_was_told_to_end_is_not_replaced_when_its_host_leaves(hosts):
    there = hosts("min_size=1&max_size=1")
    pool = await there.workers(await there.booked("r"), items=["a"])
    await there.came(1)
    await there.store.driver.set_status("r-1", "terminating", {"drained_by": "somebody"})
    (place,) = there.engine.pool.places
    os.kill(place.host.about()["pid"], signal.SIGTERM)
    await there.until(lambda: place.state == "leaving")
    await there.open()
    await there.engine.join()
    assert (await pool.counts()).completed == 1
    assert await there.record("r-1.2") is None
    assert (await there.record("r-1")).metadata["ended"] == "drained"


async def test_one_that_does_not_register_is_replaced_at_once_too_and_what_is_no_worker_goes_on(hosts):
    there = hosts("min_size=1&max_size=1")
    await there.launch("work", "m1")
    await there.workers("free", items=["a", "b"], registration="none")
    await there.came(2)
    os.kill(there.pids()[0], signal.SIGTERM)
    await there.came(3)
    await there.open()
    await there.engine.join()
    assert (await there.result("m1"))["out"] == "m1"
    assert (await there.result("free"))["status"] == "drained"
    assert (await there.result("free.2"))["processed"] == 1
    assert await there.result("free.3") is None
    assert there.engine.failures() == {}


async def test_where_the_store_is_away_when_a_host_leaves_its_workers_are_replaced_when_they_end(hosts, monkeypatch):
    there, asked = hosts("min_size=1&max_size=1"), []

    async def away(*_, **__):
        asked.append(1)
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(there.store.driver, "set_status", away)
        pool, _place = await going(there, "a", "b")
        await there.until(lambda: asked)
        assert (await there.record("r-1")).status == "active"
    await there.open()
    await there.engine.join()
    assert (await pool.counts()).completed == 2
    assert (await there.result("r-1"))["processed"] == (await there.result("r-1.2"))["processed"] == 1
    assert there.engine.failures() == {}


async def test_a_worker_whose_place_is_taken_while_all_are_told_to_stop_is_not_launched(hosts, monkeypatch):
    there = hosts("min_size=1&max_size=1")
    successor = there.engine._undertaker.successor

    async def late(launched, how):
        order = await successor(launched, how)
        there.engine.drain()
        return order

    monkeypatch.setattr(there.engine._undertaker, "successor", late)
    await going(there, "a", "b")
    await there.open()
    await there.engine.join()
    assert (await there.record("r-1.2")).metadata["ended"] == "drained"
    assert (await there.result("r-1"))["processed"] == 1
    assert (await there.store.work.pool("p").counts()).waiting == 1


async def test_what_does_not_end_within_the_grace_of_a_host_that_has_to_go_is_handed_back_unburnt(hosts):
    there = hosts("min_size=1&max_size=1", grace=0.2)
    pool = await there.workers("w1", items=["a"])
    await there.came(1)
    os.kill(there.pids()[0], signal.SIGTERM)
    await there.came(2)
    assert [attempt.outcome for attempt in await pool.attempts("p:a")] == ["released"]
    await there.open()
    await there.engine.join()
    assert (await there.result("w1.2"))["processed"] == 1


async def test_a_terminals_signals_do_not_reach_a_host_and_would_not_end_it(hosts):
    there = hosts("min_size=1&max_size=1")
    await there.launch("work", "m1")
    await there.came(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGINT):
        os.kill(there.pids()[0], number)
    await there.open()
    await there.engine.join()
    assert (await there.result("m1"))["out"] == "m1"


async def test_a_host_whose_event_loop_is_blocked_is_well_and_ends_all_the_same(hosts):
    there = hosts("min_size=1&max_size=1")
    there.engine.pool.hung = 0.4
    pool = await there.workers("w1", items=[60], action="block")
    await there.came(1)
    pid = there.pids()[0]
    await asyncio.sleep(1.0)
    assert there.pids() == [pid]
    begun = time.monotonic()
    assert await there.engine.close(0) == 1
    assert time.monotonic() - begun < 10
    assert [attempt.outcome for attempt in await pool.attempts("p:60")] == ["released"]
    assert (await there.record("w1")).status == "terminated"


async def test_a_host_that_stands_still_for_longer_than_a_lease_is_replaced(hosts, caplog):
    there = hosts("min_size=1&max_size=1")
    there.engine.pool.hung = 0.4
    await there.workers("w1", items=["a"])
    await there.came(1)
    os.kill(there.pids()[0], signal.SIGSTOP)
    await there.came(2)
    await there.open()
    await there.engine.join()
    assert (await there.result("w1.2"))["processed"] == 1
    assert "has not answered for 0.4 s: it is replaced" in caplog.text


async def test_a_worker_whose_hosts_die_of_it_is_given_up(hosts, monkeypatch):
    from flatfleet.runtime.engines import replacing

    monkeypatch.setattr(replacing, "STRIKES", 1)
    monkeypatch.setattr(replacing, "SHORT", 60.0)
    there = hosts("min_size=1&max_size=1")
    await there.workers("w1", items=["a"])
    for n in (1, 2):
        await there.came(n)
        os.kill((await there.record("w1" if n == 1 else "w1.2")).pid, signal.SIGKILL)
    await there.engine.join()
    assert list(there.engine.failures()) == ["w1.2"]
    assert "one after the other" in str(there.engine.failures()["w1.2"])


async def test_a_store_that_is_away_when_a_host_dies_makes_a_failure_and_no_hang(hosts, monkeypatch):
    there = hosts("min_size=1&max_size=1")
    await there.workers("w1", items=["a"])
    await there.came(1)

    async def away(*_, **__):
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patch:
        for name in ("hand_back", "mark_lost", "workers"):
            patch.setattr(there.store.driver, name, away)
        os.kill(there.pids()[0], signal.SIGKILL)
        await there.engine.join()
    assert "could not be replaced: the disk is gone" in str(there.engine.failures()["w1"])


def test_hosts_that_nobody_has_stopped_end_with_the_event_loop(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning")
    import engine_hooks

    async def forget():
        parts = engine_hooks.compose(f"sqlite:{tmp_path / 'fleet.db'}", engine="process?min_size=2")
        await asyncio.gather(parts.engine.pool.acquire(), parts.engine.pool.acquire())
        found = [place.host.about()["pid"] for place in parts.engine.pool.places]
        await parts.fleet.close()
        return found

    pids = asyncio.run(forget())
    assert len(pids) == 2
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert "ResourceWarning" not in capfd.readouterr().err


# -- what people see ---------------------------------------------------------------------------------------------------


async def test_the_engine_shows_itself_in_the_store_while_it_lives(hosts, capsys):
    there = hosts("min_size=2&max_size=3&slots=4")
    await there.workers("w1", items=["a"])
    await there.came(1)
    shown = []
    while not shown or shown[0]["active"] != 1 or not all(each["pid"] for each in shown[0]["hosts"]):
        await asyncio.sleep(0.02)
        shown = await engine_notes.engines(there.store)
    (engine,) = shown
    told = {
        name: engine[name]
        for name in ("owner", "engine", "min_size", "max_size", "slots", "active", "queued", "requests")
    }
    expected = {"engine": "process", "min_size": 2, "max_size": 3, "slots": 4, "active": 1, "queued": 0, "requests": 1}
    assert told == {"owner": there.store.owner, **expected}
    assert sorted(host["usage_count"] for host in engine["hosts"]) == [0, 1]
    for flags in ([], ["--json"]):
        options = status.parse(flags, dict)
        await status.command(options, there.kit.parts)
    said = capsys.readouterr().out
    assert f"engine process of pid {os.getpid()} on" in said
    assert "host-1  " in said
    assert '"engines": [{"owner"' in said
    await there.open()
    await there.engine.join()
    await there.engine.close(0)
    assert await engine_notes.engines(there.store) == []
    assert (await there.store.driver.get(f"engine/{there.store.owner}"))[0] is False


async def test_what_a_killed_process_has_noted_of_its_engine_is_swept_away(hosts):
    there = hosts()
    dead = f"{machine()}/{2**22 + 1}/1"
    await there.store.driver.put(f"engine/{dead}", {"engine": "process"})
    await there.store.driver.put("engines", [dead])
    await there.run("about")
    while (await there.store.driver.get("engines"))[1] != [there.store.owner]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert (await there.store.driver.get(f"engine/{dead}"))[0] is False


def test_a_host_is_started_by_nobody_else(tmp_path):
    import subprocess

    command = [sys.executable, str(Path(HERE).parent / "run.py"), "host", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert ended.returncode == 2
    assert "a host is started by a process with --engine process" in ended.stderr
    assert "Traceback" not in ended.stderr
