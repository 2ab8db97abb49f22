"""The contract of an engine, exercised over every implementation.

Machines may run in another process: their actions are those of engine_hooks.py, and all goes through the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import pytest
from engine_hooks import Gate
from flatfleet.runtime import bundle
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.errors import StoreUnavailable
from flatmachines import FlatMachine

#: Every engine that has to keep the contract, with the store that it is tried over.
ENGINES = {
    "inline-memory": ("inline", "memory:"),
    "inline-sqlite": ("inline", "sqlite:{}/fleet.db"),
    "process": ("process?min_size=1&max_size=2", "sqlite:{}/fleet.db"),
    "ray": ("ray://{ray}?min_size=1&max_size=2", "ray://{ray}/engines?path={}/fleet.db"),
}
HERE = str(Path(__file__).parent)


@pytest.fixture(params=[pytest.param(name, marks=() if "inline" in name else pytest.mark.slow) for name in ENGINES])
def any_kit(request, make_kit, tmp_path, monkeypatch, capfd):
    """A process's parts with each engine; whoever its machines run with has the actions of engine_hooks.py.

    Afterwards nothing is left: no process, no descriptor, and no word of a resource that was not closed, in a host either.
    """
    engine, url = ENGINES[request.param]
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning")
    import engine_hooks

    where = {"ray": request.getfixturevalue("ray_address")} if request.param == "ray" else {}
    kit = make_kit(url.format(tmp_path, **where), engine.format(**where), compose="engine_hooks:compose")
    for action in engine_hooks.ACTIONS.values():
        kit.does(action)
    before = left(request.param)
    yield kit
    assert left(request.param) == before
    out, err = capfd.readouterr()
    assert [line for line in (out + err).splitlines() if "ResourceWarning" in line or "resource_tracker" in line] == []


def left(engine):
    """What an engine may have left behind. Ray's own processes and connections stay with this process, but no actor."""
    return hosts_in_ray() if engine == "ray" else (descriptors(), children())


def hosts_in_ray():
    from ray._private.state import actors

    return [each for each in actors().values() if each["ActorClassName"] == "RayHosting" and each["State"] != "DEAD"]


def descriptors():
    """The sockets and pipes that this process has open."""
    gc.collect()
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add(str(each.readlink()))
    return {link for link in found if link.startswith(("socket", "pipe"))}


def children():
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set((task / "children").read_text().split())
    return found


@pytest.fixture
def engine(any_kit):
    return any_kit.engine


@pytest.fixture
def gate(any_kit):
    return Gate(any_kit.store)


async def test_an_error_of_the_store_is_told_once_for_each_machine(any_kit, engine, gate, flow, caplog, capfd):
    await gate.open()
    caller = any_kit.machine(launcher(flow, task(flow), worker_id="w0", item="results are gone"))
    await caller.execute(input={})
    await engine.join()
    assert list(engine.failures()) == ["w0"]
    assert isinstance(engine.failures()["w0"], StoreUnavailable)
    await engine.close(0)
    assert (caplog.text + capfd.readouterr().err).count("w0 ended: StoreUnavailable: it was deleted") == 1


def task(flow):
    states = {
        "start": {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"out": "context.out"}},
    }
    return flow(states, {"item": "input.item", "out": None}, name="task")


def launcher(flow, target, **launch_input):
    states = {
        "start": {"launch": "target", "launch_input": launch_input, "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"ok": True}},
    }
    return flow(states, machines={"target": target})


async def result(kit, name):
    return await kit.store.results.read(f"flatagents://{name}/result", block=False)


async def test_a_launched_machine_outlives_its_launcher(any_kit, engine, gate, flow):
    output = await any_kit.machine(launcher(flow, task(flow), worker_id="w1")).run()
    assert output == {"ok": True}
    assert engine.live() == 1
    assert await result(any_kit, "w1") is None
    await gate.open()
    await engine.join()
    assert engine.live() == 0
    assert await result(any_kit, "w1") == {"out": "w1"}
    assert engine.failures() == {}


async def test_launching_is_idempotent_by_worker_id(any_kit, engine, gate, flow):
    config = launcher(flow, task(flow), worker_id="w1")
    for _ in range(3):
        await any_kit.machine(config).run()
    await any_kit.machine(launcher(flow, task(flow), worker_id="w2")).run()
    assert engine.live() == 2
    await gate.open()
    await engine.join()
    assert await gate.runs() == 2


async def test_what_has_a_name_is_no_worker(any_kit, engine, gate, flow):
    """The progress counts what is live: an autoscaler is none of them."""
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    await engine.launch(caller, Bundle.of(task(flow)), {"machine_id": "p.autoscaler"}, "e1")
    assert engine.live() == 0
    await engine.launch(caller, Bundle.of(task(flow)), {"worker_id": "w1"}, "e2")
    assert engine.live() == 1
    await gate.open()
    await engine.join()
    assert await gate.runs() == 2


async def test_without_a_worker_id_each_execution_id_is_one(any_kit, engine, gate, flow):
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    for execution_id in ("e1", "e1", "e2"):
        await engine.launch(caller, Bundle.of(task(flow)), {}, execution_id)
    assert engine.live() == 2
    await gate.open()
    await engine.join()
    assert await result(any_kit, "e2") == {"out": "e2"}


async def test_an_ended_machine_with_an_exception_is_a_failure_and_its_result_an_error(any_kit, engine, gate, flow):
    await gate.open()
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    await engine.launch(caller, Bundle.of(task(flow)), {"item": "bad"}, "e1")
    await engine.launch(caller, Bundle.of(task(flow)), {"item": "good"}, "e2")
    await engine.join()
    assert list(engine.failures()) == ["e1"]
    assert str(engine.failures()["e1"]) == "power"
    assert await result(any_kit, "e1") == {"_error": "power", "_error_type": "OSError"}
    assert await result(any_kit, "e2") == {"out": "e2"}


async def test_a_result_that_cannot_be_stored_is_a_failure(any_kit, engine, gate, flow):
    await gate.open()
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    await engine.launch(caller, Bundle.of(task(flow)), {"item": "a set"}, "e1")
    await engine.join()
    assert list(engine.failures()) == ["e1"]
    assert isinstance(engine.failures()["e1"], TypeError)
    assert (await result(any_kit, "e1"))["_error_type"] == "TypeError"


async def test_launched_machines_are_of_the_class_and_wiring_of_their_launcher(any_kit, engine, gate, flow):
    await gate.open()
    stock = FlatMachine(config_dict=launcher(flow, task(flow), worker_id="w1"), **any_kit.parts.backends())
    await stock.execute()
    await engine.join()
    assert await result(any_kit, "w1") == {"out": "w1"}


async def test_invoke_returns_the_output(any_kit, engine, gate, flow):
    await gate.open()
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    assert await engine.invoke(caller, Bundle.of(task(flow)), {}, "e1") == {"out": "e1"}
    assert engine.live() == 0
    with pytest.raises(OSError, match="power"):
        await engine.invoke(caller, Bundle.of(task(flow)), {"item": "bad"})


async def test_join_waits_for_what_launched_machines_launch(any_kit, engine, gate, flow):
    inner = launcher(flow, task(flow), worker_id="inner")
    await any_kit.machine(launcher(flow, inner, worker_id="outer")).run()
    asyncio.get_running_loop().call_soon(asyncio.create_task, gate.open())
    await engine.join()
    assert engine.live() == 0
    assert await result(any_kit, "inner") == {"out": "inner"}


# -- with the shipped worker -----------------------------------------------------------------------------------------


@pytest.fixture
def workers(any_kit, flow, tmp_path):
    """A function that pushes items, launches workers for them, and waits until each has claimed one."""

    async def launch(gate, n, items):
        import yaml

        file = tmp_path / "task.yml"
        file.write_text(yaml.safe_dump(task(flow)))
        config = bundle.load("package:flatfleet/machines/worker.yml", task=str(file))
        pool = any_kit.store.work.pool("p")
        await pool.push_many([pool.new({"item": name}, key=name) for name in items])
        caller = any_kit.machine(flow({"start": {"type": "final"}}))
        for i in range(n):
            await any_kit.engine.launch(caller, config, {"pool": "p", "worker_id": f"w{i}"}, f"e{i}")
        await gate.reached(min(n, len(items)))
        return pool

    return launch


async def test_workers_work_a_pool_off_and_end(any_kit, engine, gate, workers):
    await gate.open()
    pool = await workers(gate, 3, [f"i{n}" for n in range(20)])
    await engine.join()
    assert (await pool.counts()).completed == 20
    assert {w.status for w in await any_kit.store.registration.list()} == {"terminated"}
    results = [await result(any_kit, f"w{i}") for i in range(3)]
    assert sum(each["processed"] for each in results) == 20
    assert {each["status"] for each in results} == {"retired"}


async def test_drain_lets_workers_finish_what_they_hold_and_claims_nothing_more(any_kit, engine, gate, workers):
    pool = await workers(gate, 2, ["a", "b", "c", "d"])
    engine.drain()
    assert engine.live() == 2
    await gate.open()
    await engine.join()
    counts = await pool.counts()
    assert (counts.completed, counts.waiting) == (2, 2)
    assert [await result(any_kit, f"w{i}") for i in range(2)] == [
        {"status": "drained", "worker_id": f"w{i}", "processed": 1} for i in range(2)
    ]


async def test_close_within_its_deadline_hands_nothing_back(any_kit, engine, gate, workers):
    pool = await workers(gate, 2, ["a", "b", "c"])
    asyncio.get_running_loop().call_soon(asyncio.create_task, gate.open())
    assert await engine.close(60) == 0
    counts = await pool.counts()
    assert (counts.completed, counts.waiting, counts.claimed) == (2, 1, 0)


@pytest.mark.parametrize("deadline", [0, 0.02])
async def test_close_cancels_at_its_deadline_and_hands_back_without_burning_an_attempt(
    any_kit, engine, gate, workers, deadline
):
    pool = await workers(gate, 2, ["a", "b", "c"])
    assert await engine.close(deadline) == 2
    assert engine.live() == 0
    assert any_kit.fleet.leases == {}
    for key in ("a", "b"):
        item = await any_kit.store.driver.item(f"p:{key}")
        assert (item.state, item.attempts, item.crashes, item.error) == ("ready", 0, 0, None)
        assert [each.outcome for each in await pool.attempts(f"p:{key}")] == ["released"]
    assert (await pool.counts()).waiting == 3
    assert {(w.status, w.metadata["ended"]) for w in await any_kit.store.registration.list()} == {
        ("terminated", "CancelledError")
    }


async def test_close_again_is_nothing(any_kit, engine, gate, workers):
    await workers(gate, 1, ["a"])
    assert [await engine.close(0), await engine.close(0), await engine.close(5)] == [1, 0, 0]


async def test_a_worker_that_dies_hands_its_item_back_at_once(any_kit, engine, gate, workers):
    pool = await workers(gate, 1, ["full"])
    await gate.open()
    await engine.join()
    assert list(engine.failures()) == ["w0"]
    item = await any_kit.store.driver.item("p:full")
    assert (item.state, item.attempts) == ("ready", 0)
    assert [each.outcome for each in await pool.attempts("p:full")] == ["released"]
