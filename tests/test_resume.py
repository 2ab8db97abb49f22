"""Checkpoints: a machine that was killed anywhere goes on in its middle, and nothing that was committed is done again."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections import Counter

import pytest
import yaml
from flatfleet.runtime import bundle
from flatfleet.runtime.errors import LeaseLost
from flatmachines.execution import RetryableError

CHECKPOINTS = {"enabled": True, "backend": "memory", "checkpoint_on": ["state_enter", "waiting", "machine_end"]}


def act(name, *transitions, **more):
    return {"action": name, "hooks": "test", "transitions": [*transitions], **more}


def to(state, condition=None):
    return {"to": state} | ({"condition": condition} if condition else {})


async def saved(store):
    return {row.execution_id for row in await store.driver.snapshots(None, None)}


async def until_stuck(machine, stuck, inputs=None):
    """Run the machine until an action sets `stuck`, and kill it there."""
    task = asyncio.create_task(machine.run(inputs))
    waiter = asyncio.create_task(stuck.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    assert not task.done(), await task
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- in the middle -----------------------------------------------------------------------------------------------------


class Steps:
    """An action `step` that counts in the context and notes where it ran; it hangs in the state named by `hang`."""

    def __init__(self, kit):
        self.ran = []
        self.hang, self.stuck, self.late = None, asyncio.Event(), False

        @kit.does
        async def step(context, fleet):
            state = context["machine"]["current_state"]
            self.ran.append(state)
            context["n"] += self.late
            if state == self.hang:
                self.hang = None
                self.stuck.set()
                await asyncio.Event().wait()
            context["n"] += not self.late
            return context


def chain(flow, *states, **data):
    following = dict(zip(states, [*states[1:], "done"], strict=True))
    steps = {name: act("step", to(after)) for name, after in following.items()}
    return flow({**steps, "done": {"type": "final", "output": {"n": "context.n"}}}, {"n": 0}, **data)


@pytest.mark.parametrize("late", [False, True], ids=["before its effect", "after its effect"])
@pytest.mark.parametrize("where", ["a", "b", "c"])
async def test_a_killed_machine_enters_its_last_state_again_and_repeats_none_before(any_kit, flow, where, late):
    steps = Steps(any_kit)
    steps.hang, steps.late = where, late
    config = chain(flow, "a", "b", "c")
    await until_stuck(any_kit.machine(config, "x"), steps.stuck)
    before, steps.ran = steps.ran, []
    other = any_kit.other()
    other.functions.update(any_kit.functions)
    assert await other.machine(copy.deepcopy(config), "x").run() == {"n": 3}
    assert before[-1] == where
    assert steps.ran == list("abc")["abc".index(where) :]
    await other.close()


async def test_an_error_is_a_kill_too(kit, flow):
    steps = Steps(kit)

    @kit.does
    async def fragile(context, fleet):
        if len(steps.ran) == 1:
            steps.ran.append("crash")
            raise OSError("power")
        return context

    config = chain(flow, "a", "b")
    config["data"]["states"]["a"]["transitions"] = [to("f")]
    config["data"]["states"]["f"] = act("fragile", to("b"))
    with pytest.raises(OSError, match="power"):
        await kit.machine(config, "x").run()
    assert await kit.machine(config, "x").run() == {"n": 2}
    assert steps.ran == ["a", "crash", "b"]


async def test_a_finished_machine_returns_its_output_again_without_running(kit, flow):
    steps = Steps(kit)
    config = chain(flow, "a")
    assert [await kit.machine(config, "x").run() for _ in range(2)] == [{"n": 1}, {"n": 1}]
    assert steps.ran == ["a"]
    assert await kit.machine(config, "x").run(fresh=True) == {"n": 1}
    assert steps.ran == ["a", "a"]


async def test_resuming_twice_in_the_same_state_does_not_count_twice(kit, flow):
    steps = Steps(kit)
    config = chain(flow, "a", "b")
    for _ in range(3):
        steps.hang = "b"
        steps.stuck.clear()
        await until_stuck(kit.machine(config, "x"), steps.stuck)
    assert await kit.machine(config, "x").run() == {"n": 2}
    assert steps.ran == ["a", "b", "b", "b", "b"]


async def test_the_step_limit_counts_anew_after_a_resume(kit, flow):
    steps = Steps(kit)
    steps.hang = "c"
    config = chain(flow, "a", "b", "c", settings={"max_steps": 3})
    await until_stuck(kit.machine(config, "x"), steps.stuck)
    assert await kit.machine(config, "x").run() == {"n": 3}


async def test_without_a_config_store_a_machine_resumes_as_well(kit, flow):
    from flatfleet.runtime.machine import Machine

    steps = Steps(kit)
    steps.hang = "b"
    parts = kit.parts.backends() | {"config_store": None}
    config = chain(flow, "a", "b")
    await until_stuck(Machine(config_dict=config, _execution_id="x", **parts), steps.stuck)
    assert await Machine(config_dict=config, _execution_id="x", **parts).run() == {"n": 2}
    assert steps.ran == ["a", "b", "b"]


async def test_resume_from_nothing_starts_at_the_beginning_and_commits_it(kit, flow):
    steps = Steps(kit)
    steps.hang = "a"
    config = chain(flow, "a", "b")
    machine = kit.machine(config, "x")
    task = asyncio.create_task(machine.execute(resume_from="x"))
    await steps.stuck.wait()
    assert await saved(kit.store) == {"x"}
    task.cancel()
    await asyncio.wait([task])


async def test_a_changed_bundle_starts_afresh_and_says_so(any_kit, flow, caplog):
    steps = Steps(any_kit)
    steps.hang = "b"
    await until_stuck(any_kit.machine(chain(flow, "a", "b"), "x"), steps.stuck)
    steps.ran.clear()
    with caplog.at_level(logging.WARNING):
        assert await any_kit.machine(chain(flow, "a", "b", "c"), "x").run() == {"n": 3}
    assert steps.ran == ["a", "b", "c"]
    assert "x starts afresh" in caplog.text
    assert "state 'b'" in caplog.text


async def test_under_a_changed_bundle_the_children_of_the_old_one_go_too(any_kit, flow):
    actions, config = Rounds(any_kit), rounds(flow)
    actions.gate = asyncio.Event()
    await until_stuck(any_kit.machine(config, "x"), actions.stuck)
    look, seen = any_kit.functions["mark"], []

    @any_kit.does
    async def mark(context, fleet):
        seen.append(await saved(fleet.store))
        return await look(context, fleet)

    actions.gate.set()
    await any_kit.machine(rounds(flow, n=2), "x").run()
    assert seen[0] == {"x"}


async def test_a_parked_machine_goes_on_when_it_is_run_after_a_message(any_kit, flow, monkeypatch):
    steps = Steps(any_kit)
    config = chain(flow, "a", "b")
    config["data"]["states"]["a"]["transitions"] = [to("wait")]
    config["data"]["states"]["wait"] = {
        "wait_for": "go/{{ context.n }}",
        "output_to_context": {"n": "output.n"},
        "transitions": [to("b")],
    }
    for _ in range(2):
        assert await any_kit.machine(config, "x").run() == {"_waiting": True, "_channel": "go/1"}
    assert await any_kit.store.checkpoints.list_execution_ids(waiting_channel="go/1") == ["x"]
    with monkeypatch.context() as patch:
        saves = Saves(any_kit.store.driver, patch)
        await any_kit.machine(config, "x").run()
        assert saves.events == ["waiting"]  # never a row without its channel, whenever it is killed
    await any_kit.store.signals.send("go/1", {"n": 7})
    assert await any_kit.machine(config, "x").run() == {"n": 8}
    assert steps.ran == ["a", "b"]
    assert await any_kit.store.signals.channels() == []


async def test_no_checkpoints_where_the_machine_declares_none(kit, flow):
    Steps(kit)
    off = {"enabled": False, "backend": "memory", "checkpoint_on": []}
    await kit.machine(chain(flow, "a", persistence=off), "x").run()
    assert await saved(kit.store) == set()


# -- children ----------------------------------------------------------------------------------------------------------


def rounds(flow, n=1, **state):
    """A machine that does `n` rounds: mark → fan out over two items, each a child of two steps → collect."""
    inner = flow(
        {
            "one": act("work", to("two"), type="initial"),
            "two": act("work", to("done")),
            "done": {"type": "final", "output": {"got": "context.log"}},
        },
        {"item": "input.item", "log": []},
        name="inner",
    )
    fan = {"foreach": "context.items", "as": "output", "machine": "each", "input": {"item": "output"}}
    return flow(
        {
            "mark": act("mark", to("fan"), type="initial"),
            "fan": {**fan, "output_to_context": {"found": "output"}, "transitions": [to("collect")], **state},
            "collect": act("collect", to("mark", f"context.round < {n}"), to("done")),
            "done": {"type": "final", "output": {"all": "context.all", "marks": "context.marks"}},
        },
        {"round": 0, "marks": 0, "items": [], "found": None, "all": []},
        machines={"each": inner},
    )


class Rounds:
    """The actions of `rounds`; `ran` counts each (execution, round, step) that was executed."""

    def __init__(self, kit):
        self.ran = Counter()
        self.gate = None  # an event that children of item "b" wait for in their second step
        self.stuck = asyncio.Event()

        @kit.does
        async def mark(context, fleet):
            self.note(context, context["round"], "mark")
            context["marks"] += 1
            context["items"] = [f"{name}{context['round']}" for name in "ab"]
            return context

        @kit.does
        async def work(context, fleet):
            self.note(context, context["item"], len(context["log"]))
            await asyncio.sleep(0)
            if self.gate and context["item"].startswith("b") and len(context["log"]) == 1:
                self.stuck.set()
                await self.gate.wait()
            context["log"].append(f"{context['item']}-{len(context['log'])}")
            return context

        @kit.does
        async def collect(context, fleet):
            self.note(context, context["round"], "collect")
            context["all"].append(context["found"])
            context["round"] += 1
            return context

    def note(self, context, which, step):
        self.ran[context["machine"]["execution_id"], which, step] += 1


def expected(n):
    return {
        "marks": n,
        "all": [[{"got": [f"{name}{r}-0", f"{name}{r}-1"]} for name in "ab"] for r in range(n)],
    }


async def test_finished_children_are_not_run_again_and_unfinished_ones_resume(any_kit, flow):
    actions, config = Rounds(any_kit), rounds(flow)
    config["data"]["settings"] = {"max_parallel": 1}
    actions.gate = asyncio.Event()
    await until_stuck(any_kit.machine(config, "x"), actions.stuck)
    assert await saved(any_kit.store) == {"x", "x:fan:0", "x:fan:1"}
    actions.gate.set()
    assert await any_kit.machine(config, "x").run() == expected(1)
    twice = {key: n for key, n in actions.ran.items() if n > 1}
    assert twice == {("x:fan:1", "b0", 1): 2}


async def test_children_of_an_earlier_round_are_not_reused(any_kit, flow):
    actions, config = Rounds(any_kit), rounds(flow, 3)
    assert await any_kit.machine(config, "x").run() == expected(3)
    assert set(actions.ran.values()) == {1}


async def test_a_state_that_loops_to_itself_runs_its_children_anew(kit, flow):
    ran = []

    @kit.does
    async def work(context, fleet):
        ran.append(context["item"])
        context["out"] = context["item"] + 1
        return context

    inner = flow(
        {"start": act("work", to("done")), "done": {"type": "final", "output": {"out": "context.out"}}},
        {"item": "input.item", "out": 0},
    )
    loop = {
        "machine": "each",
        "input": {"item": "context.n"},
        "output_to_context": {"n": "output.out"},
        "transitions": [to("start", "context.n < 3"), to("done")],
    }
    config = flow(
        {"start": loop, "done": {"type": "final", "output": {"n": "context.n"}}}, {"n": 0}, machines={"each": inner}
    )
    assert await kit.machine(config, "x").run() == {"n": 3}
    assert ran == [0, 1, 2]


async def test_the_rows_of_children_go_with_the_state(any_kit, flow):
    Rounds(any_kit)
    config = rounds(flow)
    seen = {}
    look = any_kit.functions["collect"]

    @any_kit.does
    async def collect(context, fleet):
        seen["collect"] = await saved(fleet.store)
        return await look(context, fleet)

    await any_kit.machine(config, "x").run()
    assert seen["collect"] == {"x"}
    assert await saved(any_kit.store) == {"x"}


async def test_the_rows_of_children_go_when_their_state_is_left_by_an_error(kit, flow):
    actions = Rounds(kit)

    @kit.does
    async def work(context, fleet):
        if context["item"] == "b0":
            raise OSError("power")
        return context

    look, seen = kit.functions["collect"], []

    @kit.does
    async def collect(context, fleet):
        seen.append(await saved(fleet.store))
        return await look(context, fleet)

    await kit.machine(rounds(flow, on_error="collect"), "x").run()
    assert seen == [{"x"}]
    assert actions.ran["x", 0, "collect"] == 1


async def test_the_rows_of_the_children_of_a_final_state_go_with_the_end(kit, flow):
    Steps(kit)
    last = {"type": "final", "machine": "c", "output": {"ok": True}}
    config = flow({"start": last}, machines={"c": chain(flow, "a")})
    assert await kit.machine(config, "x").run() == {"ok": True}
    assert await saved(kit.store) == {"x"}


async def test_a_fresh_run_uses_no_children_of_an_earlier_one(kit, flow):
    actions, config = Rounds(kit), rounds(flow)
    config["data"]["settings"] = {"max_parallel": 1}
    actions.gate = asyncio.Event()
    await until_stuck(kit.machine(config, "x"), actions.stuck)
    actions.gate.set()
    assert await kit.machine(config, "x").run(fresh=True) == expected(1)
    assert actions.ran["x:fan:0", "a0", 0] == 2


async def test_children_of_a_machine_without_checkpoints_save_none(kit, flow, monkeypatch):
    Rounds(kit)
    config = rounds(flow)
    config["data"]["persistence"] = {"enabled": False, "backend": "memory", "checkpoint_on": []}
    saves = Saves(kit.store.driver, monkeypatch)
    assert await kit.machine(config, "x").run() == expected(1)
    assert saves.count == 0


async def test_a_state_that_retries_itself_by_on_error_pays_its_finished_children_once(kit, flow):
    Rounds(kit)
    ran = Counter()

    @kit.does
    async def work(context, fleet):
        ran[context["item"]] += 1
        if context["item"] == "b0" and ran["b0"] == 1:
            raise OSError("power")
        context["log"].append(context["item"])
        return context

    config = rounds(flow, on_error={"OSError": "fan"})
    config["data"]["settings"] = {"max_parallel": 1}
    output = await kit.machine(config, "x").run()
    assert output["all"] == [[{"got": ["a0", "a0"]}, {"got": ["b0", "b0"]}]]
    assert ran == {"a0": 2, "b0": 3}


class Saves:
    """Counts the saves of a driver, and cancels `victim` before or after the n-th of them is committed."""

    def __init__(self, driver, monkeypatch, n=-1, after=False):
        self.count, self.victim = 0, None
        self.entered, self.events = {}, []
        save = driver.save_snapshot

        async def counting(row, fence, drop, acks=()):
            number, self.count = self.count, self.count + 1
            if number == n and not after:
                await self.kill()
            await save(row, fence, drop, acks)
            self.events.append(row.event)
            snapshot = json.loads(row.body)
            self.entered[row.execution_id] = None if row.event == "machine_end" else snapshot["context"]
            if number == n:
                await self.kill()

        monkeypatch.setattr(driver, "save_snapshot", counting)

    async def kill(self):
        if self.victim is not None:
            self.victim.cancel()
            await asyncio.Event().wait()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_any_commit_the_outcome_is_the_same_and_only_open_states_are_repeated(
    any_kit, flow, monkeypatch, after
):
    config = rounds(flow, 2)
    driver = any_kit.store.driver
    n = 0
    while True:
        execution_id = f"x{n}"
        actions = Rounds(any_kit)
        with monkeypatch.context() as patch:
            saves = Saves(driver, patch, n, after)
            saves.victim = asyncio.create_task(any_kit.machine(config, execution_id).run())
            await asyncio.wait([saves.victim])
        if not saves.victim.cancelled():
            assert saves.victim.result() == expected(2)
            break
        assert await any_kit.machine(config, execution_id).run() == expected(2), f"killed at commit {n}"
        for (name, which, step), times in actions.ran.items():
            if times > 1:
                context = saves.entered[name]
                assert times == 2
                assert context is not None, f"killed at commit {n}: {name} had ended, and ran again"
                assert which in (context.get("round"), context.get("item"))
                assert step in ("mark", "collect", len(context.get("log", ())))
        n += 1
    assert n == saves.count == 24


# -- work items --------------------------------------------------------------------------------------------------------


async def claim(kit, worker="w"):
    (held,) = await kit.store.work.pool("p").claim_many(worker, 1)
    return kit.fleet.hold(held, worker)


def keyed(flow, task, **state):
    """A machine that runs the task for the item in its input."""
    process = {"machine": "task", "key": "context.item_id", "output_to_context": {"result": "output"}, **state}
    return flow(
        {
            "process": {**process, "transitions": [to("done")], "on_error": {"LeaseLost": "lost"}},
            "done": {"type": "final", "output": {"result": "context.result"}},
            "lost": {"type": "final", "output": {"lost": "context.last_error"}},
        },
        {"item_id": "input.item_id", "result": None},
        machines={"task": task},
        persistence={"enabled": False, "backend": "memory", "checkpoint_on": []},
    )


async def push(kit, *keys, **options):
    pool = kit.store.work.pool("p")
    await pool.push_many([pool.new({"key": key}, key=key, **options) for key in keys])


async def test_an_item_resumes_under_another_worker_and_leaves_no_rows(any_kit, flow):
    steps = Steps(any_kit)
    steps.hang = "b"
    await push(any_kit, "a")
    config = keyed(flow, chain(flow, "a", "b", "c"))
    await claim(any_kit)
    await until_stuck(any_kit.machine(config), steps.stuck, {"item_id": "p:a"})
    assert await saved(any_kit.store) == {"p:a"}
    assert await any_kit.fleet.hand_back() == 1
    lease = await claim(any_kit, "v")
    assert lease.token == 2
    assert await any_kit.machine(config).run({"item_id": "p:a"}) == {"result": {"n": 3}}
    assert steps.ran == ["a", "b", "b", "c"]
    assert await saved(any_kit.store) == {"p:a"}
    await any_kit.store.work.pool("p").complete("p:a", 1, token=2)
    assert await saved(any_kit.store) == set()


async def test_a_snapshot_that_failed_after_its_end_is_not_returned_again(any_kit, flow):
    steps = Steps(any_kit)
    await push(any_kit, "a")
    config = keyed(flow, chain(flow, "a", "b"))
    for _ in range(2):
        lease = await claim(any_kit)
        assert await any_kit.machine(config).run({"item_id": "p:a"}) == {"result": {"n": 2}}
        await any_kit.store.work.pool("p").fail("p:a", "the result was refused", token=lease.token, retry_after=0)
        assert await saved(any_kit.store) == set()
    assert steps.ran == ["a", "b"] * 2


async def test_a_checkpoint_under_a_lost_token_raises_and_changes_nothing(any_kit, flow):
    steps = Steps(any_kit)
    await push(any_kit, "a")
    pool = any_kit.store.work.pool("p")
    rows = []

    @any_kit.does
    async def steal(context, fleet):
        """Another process takes the item over and has saved its own checkpoint."""
        await fleet.store.driver.hand_back(worker="w", crashed=True)
        (stolen,) = await fleet.store.driver.claim("p", "thief", "thief", 1, 60, ())
        row = await fleet.store.driver.load_snapshot("p:a")
        await fleet.store.driver.save_snapshot(row, ("p:a", stolen.token), None)
        rows.append(await fleet.store.driver.load_snapshot("p:a"))
        return context

    task = chain(flow, "a", "b")
    task["data"]["states"]["a"]["transitions"] = [to("steal")]
    task["data"]["states"]["steal"] = act("steal", to("b"), on_error="b")
    lease = await claim(any_kit)
    output = await any_kit.machine(keyed(flow, task)).run({"item_id": "p:a"})
    assert "token 1" in output["lost"]
    assert steps.ran == ["a"]
    assert await any_kit.store.driver.load_snapshot("p:a") == rows[0]
    with pytest.raises(LeaseLost):
        await pool.complete("p:a", 1, token=lease.token)
    item = await any_kit.store.driver.item("p:a")
    assert (item.state, item.worker, item.token) == ("claimed", "thief", 2)


async def test_a_child_of_an_item_saves_under_the_items_token_too(kit, flow):
    Rounds(kit)
    await push(kit, "a")
    ran = []

    @kit.does
    async def work(context, fleet):
        ran.append((context["item"], context["machine"]["current_state"]))
        await fleet.store.driver.hand_back(worker="w", crashed=True)
        return context

    await claim(kit)
    task = rounds(flow, mode="settled")
    task["data"]["settings"] = {"max_parallel": 1}
    output = await kit.machine(keyed(flow, task)).run({"item_id": "p:a"})
    assert "p:a" in output["lost"]
    assert ran == [("a0", "one")]  # neither its second step, nor the other child


async def test_the_cost_of_an_item_is_noted_on_its_lease_even_if_it_fails(kit, flow):
    from flatfleet.runtime.machine import Machine

    class Costly(Machine):
        async def _execute_state(self, name, context):
            if self.machine_name == "task":
                self.total_cost += 0.25
            return await super()._execute_state(name, context)

    @kit.does
    async def step(context, fleet):
        raise OSError("power")

    await push(kit, "a")
    lease = await claim(kit)
    config = keyed(flow, chain(flow, "a", name="task"))
    with pytest.raises(OSError, match="power"):
        await Costly(config_dict=config, leases=kit.fleet.leases, **kit.parts.backends()).run({"item_id": "p:a"})
    assert lease.cost == 0.25


# -- through worker.yml ------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(any_kit, flow, tmp_path):
    """A function that runs the shipped worker.yml with a task until its pool is empty."""

    async def run(task, **inputs):
        file = tmp_path / "task.yml"
        file.write_text(yaml.safe_dump(task))
        config = bundle.load("package:flatfleet/machines/worker.yml", task=str(file))
        return await any_kit.machine(config).run({"pool": "p", "worker_id": "w1", **inputs})

    return run


async def test_a_failed_attempt_resumes_at_the_failed_state_in_the_next(any_kit, flow, worker):
    steps = Steps(any_kit)

    @any_kit.does
    async def fragile(context, fleet):
        steps.ran.append("fragile")
        if steps.ran.count("fragile") < 3:
            raise RetryableError({"type": "Flaky", "message": "try again", "retry_after": 0})
        return context

    task = chain(flow, "a", "b")
    task["data"]["states"]["a"]["transitions"] = [to("f")]
    task["data"]["states"]["f"] = act("fragile", to("b"))
    await push(any_kit, "a")
    assert await worker(task) == {"status": "retired", "worker_id": "w1", "processed": 1}
    assert steps.ran == ["a", "fragile", "fragile", "fragile", "b"]
    item = await any_kit.store.driver.item("p:a")
    assert (item.state, item.result, item.attempts) == ("completed", {"n": 2}, 2)
    ended = await any_kit.store.work.pool("p").attempts("p:a")
    assert [(each.outcome, each.error_type) for each in ended] == [("failed", "Flaky")] * 2 + [("completed", None)]
    assert await saved(any_kit.store) == set()


async def test_a_killed_worker_s_items_are_resumed_by_the_next(any_kit, flow, worker):
    steps = Steps(any_kit)
    steps.hang = "b"
    await push(any_kit, "a", "b")
    task = asyncio.create_task(worker(chain(flow, "a", "b")))
    await steps.stuck.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await any_kit.fleet.hand_back() == 1
    assert (await worker(chain(flow, "a", "b")))["processed"] == 2
    assert steps.ran == ["a", "b", "b", "a", "b"]
    counts = await any_kit.store.work.pool("p").counts()
    assert (counts.completed, counts.total) == (2, 2)
    assert await saved(any_kit.store) == set()


async def test_a_retried_dead_item_does_not_return_its_old_failure(any_kit, flow, worker):
    steps = Steps(any_kit)
    healthy = False

    @any_kit.does
    async def picky(context, fleet):
        if not healthy:
            raise RetryableError({"type": "Bad", "message": "no", "retry_after": 0})
        return context

    task = chain(flow, "a")
    task["data"]["states"]["a"]["transitions"] = [to("f")]
    task["data"]["states"]["f"] = act("picky", to("done"))
    await push(any_kit, "a", max_retries=2)
    assert (await worker(task))["processed"] == 0
    item = await any_kit.store.driver.item("p:a")
    assert (item.state, item.error_type, item.attempts) == ("dead", "Bad", 2)
    healthy = True
    assert await any_kit.store.work.pool("p").retry() == 1
    assert (await worker(task))["processed"] == 1
    assert steps.ran == ["a"]
    assert (await any_kit.store.driver.item("p:a")).result == {"n": 1}
