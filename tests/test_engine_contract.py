"""The contract of an engine, exercised over every implementation."""

from __future__ import annotations

import asyncio

import pytest
from flatfleet.runtime import bundle
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.errors import StoreUnavailable
from flatmachines import FlatMachine

#: Every engine that has to keep the contract: name → a kit's engine of that kind.
ENGINES = {"inline": lambda kit: kit.engine}


@pytest.fixture(params=list(ENGINES))
def engine(request, any_kit):
    return ENGINES[request.param](any_kit)


@pytest.fixture
def gate(any_kit):
    """The action `work` waits for this gate; `gate.runs` counts who has come to it."""

    class Gate(asyncio.Event):
        runs = 0

        async def reached(self, n):
            while self.runs < n:
                async with self.changed:
                    await self.changed.wait()

    made = Gate()
    made.changed = asyncio.Condition()

    @any_kit.does
    async def work(context, fleet):
        made.runs += 1
        async with made.changed:
            made.changed.notify_all()
        await made.wait()
        if context.get("item") == "bad":
            raise OSError("power")
        context["out"] = context["machine"]["execution_id"]
        return context

    return made


async def test_an_error_of_the_store_is_told_once_for_each_machine(any_kit, engine, gate, flow, monkeypatch, caplog):
    async def gone(*_):
        raise StoreUnavailable("it was deleted")

    monkeypatch.setattr(any_kit.store.results, "write", gone)

    @any_kit.does
    async def work(context, fleet):
        await gone()

    caller = any_kit.machine(launcher(flow, task(flow), worker_id="w0"))
    await caller.execute(input={})
    await engine.join()
    assert list(engine.failures()) == ["w0"]
    assert caplog.text.count("w0 ended: StoreUnavailable: it was deleted") == 1


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
    gate.set()
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
    gate.set()
    await engine.join()
    assert gate.runs == 2


async def test_without_a_worker_id_each_execution_id_is_one(any_kit, engine, gate, flow):
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    for execution_id in ("e1", "e1", "e2"):
        await engine.launch(caller, Bundle.of(task(flow)), {}, execution_id)
    assert engine.live() == 2
    gate.set()
    await engine.join()
    assert await result(any_kit, "e2") == {"out": "e2"}


async def test_an_ended_machine_with_an_exception_is_a_failure_and_its_result_an_error(any_kit, engine, gate, flow):
    gate.set()
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    await engine.launch(caller, Bundle.of(task(flow)), {"item": "bad"}, "e1")
    await engine.launch(caller, Bundle.of(task(flow)), {"item": "good"}, "e2")
    await engine.join()
    assert list(engine.failures()) == ["e1"]
    assert str(engine.failures()["e1"]) == "power"
    assert await result(any_kit, "e1") == {"_error": "power", "_error_type": "OSError"}
    assert await result(any_kit, "e2") == {"out": "e2"}


async def test_a_result_that_cannot_be_stored_is_a_failure(any_kit, engine, flow):
    @any_kit.does
    async def work(context, fleet):
        context["out"] = {1, 2}
        return context

    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    await engine.launch(caller, Bundle.of(task(flow)), {}, "e1")
    await engine.join()
    assert list(engine.failures()) == ["e1"]
    assert isinstance(engine.failures()["e1"], TypeError)
    assert (await result(any_kit, "e1"))["_error_type"] == "TypeError"


async def test_launched_machines_are_of_the_class_and_wiring_of_their_launcher(any_kit, engine, gate, flow):
    gate.set()
    stock = FlatMachine(config_dict=launcher(flow, task(flow), worker_id="w1"), **any_kit.parts.backends())
    await stock.execute()
    await engine.join()
    assert await result(any_kit, "w1") == {"out": "w1"}


async def test_invoke_returns_the_output(any_kit, engine, gate, flow):
    gate.set()
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    assert await engine.invoke(caller, Bundle.of(task(flow)), {}, "e1") == {"out": "e1"}
    assert engine.live() == 0
    with pytest.raises(OSError, match="power"):
        await engine.invoke(caller, Bundle.of(task(flow)), {"item": "bad"})


async def test_join_waits_for_what_launched_machines_launch(any_kit, engine, gate, flow):
    inner = launcher(flow, task(flow), worker_id="inner")
    await any_kit.machine(launcher(flow, inner, worker_id="outer")).run()
    asyncio.get_running_loop().call_soon(gate.set)
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
    gate.set()
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
    gate.set()
    await engine.join()
    counts = await pool.counts()
    assert (counts.completed, counts.waiting) == (2, 2)
    assert [await result(any_kit, f"w{i}") for i in range(2)] == [
        {"status": "drained", "worker_id": f"w{i}", "processed": 1} for i in range(2)
    ]


async def test_close_within_its_deadline_hands_nothing_back(any_kit, engine, gate, workers):
    pool = await workers(gate, 2, ["a", "b", "c"])
    asyncio.get_running_loop().call_soon(gate.set)
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


async def test_a_worker_that_dies_hands_its_item_back_at_once(any_kit, engine, gate, workers, monkeypatch):
    pool = await workers(gate, 1, ["a"])

    async def broken(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(any_kit.store.driver, "complete", broken)
        patch.setattr(any_kit.store.driver, "fail", broken)
        gate.set()
        await engine.join()
    assert list(engine.failures()) == ["w0"]
    item = await any_kit.store.driver.item("p:a")
    assert (item.state, item.attempts) == ("ready", 0)
    assert [each.outcome for each in await pool.attempts("p:a")] == ["released"]
