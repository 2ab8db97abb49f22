"""The coordinator: the workers' results in batches, one pool limit for all who give it, each item's fate its own."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
import yaml
from flatfleet.hooks import batch
from flatfleet.runtime import bundle
from flatfleet.runtime.errors import LeaseLost, UsageError
from flatfleet.runtime.stores.store import Pool

SOON = 30.0
"""Seconds after which a test gives up; nothing takes as long where all is well."""

START = {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]}
DONE = {"type": "final", "output": {"key": "context.item.key", "twice": "context.twice"}}


@pytest.fixture
def load(flow, tmp_path):
    """A machine of ours as a bundle, with a task of the one action `work`."""
    file = tmp_path / "task.yml"
    file.write_text(
        yaml.safe_dump(flow({"start": START, "done": DONE}, {"item": "input.item", "twice": None}, name="task"))
    )
    return lambda name: bundle.load(f"package:flatfleet/machines/{name}.yml", task=str(file))


async def push(kit, n, **options):
    pool = kit.store.work.pool("p")
    await pool.push_many([pool.new({"key": f"i{k}", "n": k}, key=f"i{k}", **options) for k in range(n)])
    return pool


async def items(kit):
    return {item.key: item async for item in kit.store.work.pool("p").items()}


def run(kit, config, **inputs):
    return asyncio.wait_for(kit.machine(config).run({"pool": "p", **inputs}), 6 * SOON)


async def until(happened):
    async with asyncio.timeout(SOON):
        while not await happened():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def reaches(pool, **wanted):
    counts = await pool.counts()
    return all(getattr(counts, name) >= n for name, n in wanted.items())


def counting(kit, seconds=0.002):
    """Make `work` count how many run at once; it notes the most in what is returned."""
    seen = {"now": 0, "most": 0}

    async def work(context, fleet):
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        try:
            await asyncio.sleep(seconds)
        finally:
            seen["now"] -= 1
        return context

    kit.does(work)
    return seen, work


# -- the same as workers -------------------------------------------------------------------------------------------------


async def test_500_items_come_to_the_same_by_a_coordinator_as_by_workers(any_kit, load, tmp_path):
    from flatfleet.runtime.stores import open_store

    memory = any_kit.store.url == "memory:"
    by_workers = type(any_kit)(open_store("memory:" if memory else f"sqlite:{tmp_path / 'workers.db'}"))
    came_to = []
    for kit in (any_kit, by_workers):

        @kit.does
        async def work(context, fleet):
            await asyncio.sleep(0)
            if context["item"]["n"] % 20 == 7:
                raise ValueError(f"{context['item']['key']} is one of the bad ones")
            return {**context, "twice": 2 * context["item"]["n"]}

        pool = await push(kit, 500, max_retries=1)
        if kit is any_kit:
            output = await run(kit, load("coordinator"), worker_id="c", max_parallel=32)
            assert (output["status"], output["processed"], output["failed"], output["lost"]) == ("retired", 475, 25, 0)
        else:
            await asyncio.gather(*(run(kit, load("worker"), worker_id=f"w{k}") for k in range(8)))
        counts = await pool.counts()
        assert (counts.completed, counts.dead, counts.left) == (475, 25, 0)
        came_to.append({
            key: (item.state, item.result, item.attempts, item.error_type, item.error)
            for key, item in (await items(kit)).items()
        })  # fmt: skip
        assert not kit.fleet.leases
        kept = {row.execution_id for row in await kit.store.driver.snapshots(None, None)}
        assert kept == {f"p:i{k}" for k in range(7, 500, 20)}  # a dead item may be retried from where it failed
    assert came_to[0] == came_to[1]
    assert came_to[0]["i7"] == ("dead", None, 1, "ValueError", "i7 is one of the bad ones")
    assert came_to[0]["i8"] == ("completed", {"key": "i8", "twice": 16}, 0, None, None)
    await by_workers.close()


async def test_a_provider_error_costs_no_attempt_and_a_permanent_one_ends_the_item(kit, load):
    from flatmachines.execution import RetryableError

    tries = []

    @kit.does
    async def work(context, fleet):
        tries.append(context["item"]["key"])
        if context["item"]["key"] == "i0":
            raise UsageError("no retry will help")
        if tries.count("i1") == 1:
            raise RetryableError({"code": "rate_limit", "message": "too many requests", "retry_after": 0.01})
        return context

    await push(kit, 2)
    output = await run(kit, load("coordinator"))
    found = await items(kit)
    assert (found["i0"].state, found["i0"].error_type) == ("dead", "UsageError")
    assert (found["i1"].state, found["i1"].attempts) == ("completed", 0)
    assert (output["processed"], output["failed"], tries.count("i0")) == (1, 2, 1)


async def test_it_registers_with_its_parallelism_and_says_how_it_ended(any_kit, load):
    seen = []

    @any_kit.does
    async def work(context, fleet):
        seen.extend(await fleet.store.registration.list())
        return context

    await push(any_kit, 3)
    await run(any_kit, load("coordinator"), worker_id="c", max_parallel=7)
    assert (seen[0].worker_id, seen[0].status) == ("c", "active")
    about = seen[0].metadata
    assert (about["pool"], about["parallelism"], about["machine"]) == ("p", 7, "coordinator")
    ended = await any_kit.store.registration.get("c")
    assert (ended.status, ended.metadata["ended"], ended.metadata["processed"]) == ("terminated", "retired", 3)


async def test_parallelism_goes_before_max_parallel(kit, load):
    seen, _ = counting(kit)
    await push(kit, 40)
    await run(kit, load("coordinator"), parallelism=3, max_parallel=9)
    assert seen["most"] == 3


@pytest.mark.parametrize(
    ("name", "value"), [("max_parallel", -1), ("max_parallel", "many"), ("pool_size", -5), ("pool_size", 1.5)]
)
async def test_a_senseless_limit_is_refused_and_nothing_is_claimed(kit, load, name, value):
    pool = await push(kit, 2)
    with pytest.raises(UsageError, match=r"parallelism|pool_size"):
        await run(kit, load("coordinator"), **{name: value})
    assert (await pool.counts()).waiting == 2


# -- limits --------------------------------------------------------------------------------------------------------------


async def test_two_coordinators_never_run_more_than_the_pools_size_together(any_kit, load):
    other = any_kit.other()
    seen, work = counting(any_kit)
    other.does(work)
    await push(any_kit, 120)
    outputs = await asyncio.gather(
        *(run(kit, load("coordinator"), max_parallel=20, pool_size=5) for kit in (any_kit, other))
    )
    assert seen["most"] == 5
    assert sum(output["processed"] for output in outputs) == 120


async def test_without_a_pool_size_a_batch_is_as_large_as_max_parallel(any_kit, load):
    seen, _ = counting(any_kit, 0.2)
    await push(any_kit, 100)
    await run(any_kit, load("coordinator"), max_parallel=80)
    assert seen["most"] == 80


# -- each item's fate is its own -----------------------------------------------------------------------------------------


async def test_a_lost_lease_costs_that_item_alone(any_kit, load):
    """It is cancelled in the midst of its work and left alone: the thief has it, and completes it."""
    busy, cancelled = asyncio.Event(), asyncio.Event()
    thief = any_kit.other("thief")

    @any_kit.does
    async def work(context, fleet):
        if context["item"]["key"] == "i1":
            busy.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
        await cancelled.wait()
        return {**context, "twice": "mine"}

    pool = await push(any_kit, 4)
    running = asyncio.create_task(run(any_kit, load("coordinator"), worker_id="c"))
    await asyncio.wait_for(busy.wait(), SOON)
    await until(lambda: reaches(pool, claimed=4))
    await any_kit.store.driver.release("p:i1", any_kit.fleet.leases["p:i1"].token)
    (stolen,) = await thief.store.work.pool("p").claim_many("thief", 1)
    await any_kit.fleet.beat()
    await asyncio.wait_for(cancelled.wait(), SOON)
    await until(lambda: reaches(pool, completed=3))
    await thief.store.work.pool("p").complete(stolen.id, "theirs", token=stolen.token)
    output = await running
    assert (output["status"], output["processed"], output["failed"], output["lost"]) == ("retired", 3, 0, 1)
    found = await items(any_kit)
    assert found["i1"].result == "theirs"
    assert {found[key].result["twice"] for key in ("i0", "i2", "i3")} == {"mine"}


async def test_an_item_whose_machine_breaks_has_failed_and_the_batch_goes_on(kit, load, monkeypatch):
    """An `_error` is a failure, never a result."""
    counting(kit)
    complete, broken = Pool.complete, []

    async def sometimes(self, item_id, *args, **options):
        if item_id == "p:i1" and not broken:
            broken.append(item_id)
            raise RuntimeError("complete broke")
        return await complete(self, item_id, *args, **options)

    async def never(self, item_id, *args, **options):
        monkeypatch.setattr(Pool, "fail", fail)
        raise RuntimeError("fail broke, too")

    fail = Pool.fail
    monkeypatch.setattr(Pool, "complete", sometimes)
    monkeypatch.setattr(Pool, "fail", never)
    pool = await push(kit, 4, max_retries=1)
    output = await run(kit, load("coordinator"))
    found = await items(kit)
    assert (found["i1"].state, found["i1"].error_type, found["i1"].error) == ("dead", "RuntimeError", "fail broke, too")
    assert (output["processed"], output["failed"]) == (3, 1)
    assert (await pool.counts()).completed == 3
    assert not kit.fleet.leases


async def test_settle_leaves_alone_what_is_no_longer_held(kit):
    pool = await push(kit, 1)
    (claim,) = await pool.claim_many("c", 1)
    entry = {"item_id": claim.id, "worker_id": "c", "pool": "p"}
    outcome = {"_error": "it broke", "_error_type": "RuntimeError"}
    context = {"batch": [entry], "outcomes": [outcome], "processed": 0, "failed": 0, "lost": 0}
    assert (await batch.settle(context, kit.fleet))["lost"] == 1
    assert (await pool.counts()).claimed == 1


# -- ends ----------------------------------------------------------------------------------------------------------------


async def test_told_to_stop_it_finishes_what_it_holds_and_takes_no_more(any_kit, load):
    busy, go = asyncio.Event(), asyncio.Event()

    @any_kit.does
    async def work(context, fleet):
        busy.set()
        await go.wait()
        return context

    pool = await push(any_kit, 10)
    running = asyncio.create_task(run(any_kit, load("coordinator"), worker_id="c", max_parallel=4))
    await asyncio.wait_for(busy.wait(), SOON)
    await any_kit.store.registration.update_status("c", "terminating")
    await any_kit.fleet.beat()
    go.set()
    output = await running
    counts = await pool.counts()
    assert (output["status"], counts.completed, counts.waiting, counts.claimed) == ("drained", 4, 6, 0)


async def test_told_to_stop_while_it_claims_it_gives_everything_back_unburnt(kit, monkeypatch):
    pool = await push(kit, 5)
    claim_many = Pool.claim_many

    async def told_meanwhile(self, *args, **options):
        claims = await claim_many(self, *args, **options)
        kit.fleet.drain()
        return claims

    monkeypatch.setattr(Pool, "claim_many", told_meanwhile)
    context = await batch.get_pending({"pool": "p", "worker_id": "c", "parallelism": "3"}, kit.fleet)
    assert (context["stop"], context["batch"]) == (True, [])
    assert (await pool.counts()).waiting == 5
    assert {item.attempts for item in (await items(kit)).values()} == {0}


async def test_at_the_deadline_everything_in_hand_goes_back_unburnt(any_kit, load):
    busy = asyncio.Event()

    @any_kit.does
    async def work(context, fleet):
        busy.set()
        await asyncio.Event().wait()

    pool = await push(any_kit, 6)
    caller = any_kit.machine(load("coordinator"))
    await any_kit.engine.launch(caller, caller.config, {"pool": "p", "worker_id": "c", "max_parallel": 4}, "c")
    await asyncio.wait_for(busy.wait(), SOON)
    await until(lambda: reaches(pool, claimed=4))
    await any_kit.engine.close(0.01)
    counts = await pool.counts()
    assert (counts.waiting, counts.claimed) == (6, 0)
    assert {(item.attempts, item.crashes) for item in (await items(any_kit)).values()} == {(0, 0)}


async def test_it_stays_while_more_may_come_from_upstream(any_kit, load):
    counting(any_kit)
    upstream, pool = any_kit.store.work.pool("up"), any_kit.store.work.pool("p")
    await upstream.push({}, {"key": "list"})
    claim = await upstream.claim("reader")
    running = asyncio.create_task(run(any_kit, load("coordinator"), upstream="up"))
    await asyncio.sleep(0.05)
    assert not running.done()
    await push(any_kit, 3)
    await upstream.complete(claim.id, None, token=claim.token)
    assert (await running)["processed"] == 3
    assert (await pool.counts()).left == 0


# -- foreach over held items: what a topology of one's own may do ----------------------------------------------------------


@pytest.fixture
def fan(flow):
    """A machine that runs a task over `context.batch`, each child under its item's id; it collects the outcomes."""
    steps = {
        "first": {"action": "first", "hooks": "test", "transitions": [{"to": "second"}]},
        "second": {"action": "second", "hooks": "test", "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"item": "context.item", "id": "context.machine.execution_id"}},
    }
    saved = {"enabled": True, "backend": "memory", "checkpoint_on": ["state_enter", "machine_end"]}
    task = flow(steps, {"item": "input.item"}, name="task", persistence=saved)

    def make(mode, **settings):
        state = {"foreach": "context.batch", "as": "output", "key": "output.id", "machine": "task",
                 "input": {"item": "output.item"}, "output_to_context": {"outcomes": "output"},
                 "transitions": [{"to": "done"}]}  # fmt: skip
        states = {"fan": state | ({"mode": mode} if mode else {}),
                  "done": {"type": "final", "output": {"outcomes": "context.outcomes"}}}  # fmt: skip
        persistence = {"enabled": False, "backend": "memory", "checkpoint_on": []}
        context = {"batch": "input.batch", "wide": 2}
        return flow(states, context, machines={"task": task}, persistence=persistence, settings=settings)

    return make


async def claimed(kit, n, worker="w"):
    pool = await push(kit, n)
    return [kit.fleet.hold(claim, worker) for claim in await pool.claim_many(worker, n)]


def entries(leases):
    return {"batch": [{"id": lease.item_id, "item": lease.item_id} for lease in leases]}


async def test_a_child_whose_key_is_a_held_item_runs_under_its_id_and_lease(any_kit, fan):
    leases = await claimed(any_kit, 3)
    tasks = {}

    @any_kit.does
    async def first(context, fleet):
        lease = fleet.held(context["item"])
        tasks[lease.item_id] = lease.task
        return context

    @any_kit.does
    async def second(context, fleet):
        return context

    output = await any_kit.machine(fan("settled"), "top").run(entries(leases))
    assert output["outcomes"] == {f"p:i{k}": {"item": f"p:i{k}", "id": f"p:i{k}"} for k in range(3)}
    assert len({id(task) for task in tasks.values()}) == 3
    assert None not in tasks.values()
    assert [lease.task for lease in leases] == [None] * 3


async def test_a_lost_lease_is_that_childs_failure_and_no_others(any_kit, fan):
    leases = await claimed(any_kit, 3)
    reached = asyncio.Event()

    @any_kit.does
    async def first(context, fleet):
        if context["item"] == "p:i1":
            reached.set()
            await asyncio.Event().wait()
        await asyncio.wait_for(reached.wait(), SOON)
        fleet.leases["p:i1"].lose("it was taken over")
        return context

    @any_kit.does
    async def second(context, fleet):
        return context

    outcomes = (await any_kit.machine(fan("settled")).run(entries(leases)))["outcomes"]
    assert outcomes["p:i1"] == {"_error": "it was taken over", "_error_type": "LeaseLost"}
    assert outcomes["p:i0"]["item"] == "p:i0"
    assert outcomes["p:i2"]["item"] == "p:i2"


async def test_without_a_mode_a_lost_lease_is_raised(any_kit, fan):
    leases = await claimed(any_kit, 2)
    leases[1].lose("it was taken over")

    @any_kit.does
    async def first(context, fleet):
        return context

    any_kit.functions["second"] = first
    with pytest.raises(LeaseLost, match="taken over"):
        await any_kit.machine(fan(None)).run(entries(leases))


async def test_an_item_handed_back_before_its_turn_is_not_begun(any_kit, fan):
    leases = await claimed(any_kit, 3)
    begun = []

    @any_kit.does
    async def first(context, fleet):
        begun.append(context["item"])
        fleet.let_go("p:i2")
        return context

    any_kit.functions["second"] = first
    outcomes = (await any_kit.machine(fan("settled", max_parallel=1)).run(entries(leases)))["outcomes"]
    assert outcomes["p:i2"]["_error_type"] == "LeaseLost"
    assert set(begun) == {"p:i0", "p:i1"}


async def test_an_item_begun_before_goes_on_from_its_checkpoint(any_kit, fan):
    ran, stuck = [], asyncio.Event()
    leases = await claimed(any_kit, 2)

    @any_kit.does
    async def first(context, fleet):
        ran.append(("first", context["item"]))
        return context

    @any_kit.does
    async def second(context, fleet):
        ran.append(("second", context["item"]))
        if context["item"] == "p:i1" and not stuck.is_set():
            stuck.set()
            await asyncio.Event().wait()
        return context

    running = asyncio.create_task(any_kit.machine(fan("settled")).run(entries(leases)))
    await asyncio.wait_for(stuck.wait(), SOON)
    await until(lambda: any_kit.store.driver.snapshots("machine_end", None))
    running.cancel()
    await asyncio.wait([running])
    await any_kit.fleet.hand_back()
    leases = [any_kit.fleet.hold(claim, "w") for claim in await any_kit.store.work.pool("p").claim_many("w", 2)]
    outcomes = (await any_kit.machine(fan("settled")).run(entries(leases)))["outcomes"]
    assert sorted(outcome["item"] for outcome in outcomes.values()) == ["p:i0", "p:i1"]
    assert sorted(ran) == sorted(
        [*(("first", f"p:i{k}") for k in range(2)), ("second", "p:i0"), *2 * [("second", "p:i1")]]
    )


async def test_each_lease_bears_the_cost_of_its_own_item(kit, fan):
    leases = await claimed(kit, 3)

    @kit.does
    async def first(context, fleet):
        await asyncio.sleep(0)
        return context

    kit.functions["second"] = first
    machine = kit.machine(fan("settled"))
    make = machine._child

    def child(name, child_id):
        made = make(name, child_id)
        made.total_cost = 1.0 + int(child_id[-1])
        return made

    machine._child = child
    await machine.run(entries(leases))
    assert [lease.cost for lease in leases] == [1.0, 2.0, 3.0]
    assert machine.total_cost == 6.0


async def test_at_its_time_a_drained_coordinator_hands_back_what_it_has_not_done_and_burns_nothing(any_kit, load):
    """One item is done by then and stays so; the others are cancelled in the midst of their work."""
    cancelled = []

    @any_kit.does
    async def work(context, fleet):
        if context["item"]["n"]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(context["item"]["key"])
                raise
        return context

    pool = await push(any_kit, 5)
    running = asyncio.create_task(run(any_kit, load("coordinator"), worker_id="c", max_parallel=4))
    await until(lambda: reaches(pool, completed=1, claimed=3))
    await any_kit.store.driver.set_status("c", "terminating", {"drain_until": 0})
    any_kit.store.bell.ring("workers")
    output = await running
    assert (output["status"], output["processed"], output["failed"], output["lost"]) == ("drained", 1, 0, 3)
    assert sorted(cancelled) == ["i1", "i2", "i3"]
    counts = await pool.counts()
    assert (counts.completed, counts.waiting, counts.claimed) == (1, 4, 0)
    assert {(item.attempts, item.crashes) for item in (await items(any_kit)).values()} == {(0, 0)}
    assert [a.outcome for a in await pool.attempts("p:i1")] == ["released"]
    assert not any_kit.fleet.leases


async def test_it_waits_in_a_paused_pool_and_a_cancelled_item_is_lost_to_it(any_kit, load):
    busy, begun = asyncio.Event(), []

    @any_kit.does
    async def work(context, fleet):
        begun.append(context["item"]["key"])
        if context["item"]["key"] == "i0":
            busy.set()
            await asyncio.Event().wait()
        return context

    pool = await push(any_kit, 4)
    running = asyncio.create_task(run(any_kit, load("coordinator"), worker_id="c", max_parallel=2))
    await asyncio.wait_for(busy.wait(), SOON)
    await pool.pause(math.inf)
    assert await pool.cancel(["p:i0"]) == 1
    await until(lambda: reaches(pool, completed=1, dead=1))
    await asyncio.sleep(0.1)
    assert sorted(begun) == ["i0", "i1"]
    assert not running.done()
    await pool.pause(None)
    output = await running
    assert (output["status"], output["processed"], output["failed"], output["lost"]) == ("retired", 3, 0, 1)
    assert (await items(any_kit))["i0"].error_type == "Cancelled"


def test_its_states_are_what_the_design_says(load):
    states = load("coordinator")["data"]["states"]
    assert states.keys() >= {"get_pending", "process_batch", "wait_for_work"}
    batches = states["process_batch"]
    assert (batches["mode"], "foreach" in batches, "machine" in batches) == ("settled", True, True)
    assert load("coordinator")["data"]["settings"]["max_parallel"] == "context.parallelism"


@pytest.mark.parametrize("bound", ["context.wide", 2])
async def test_max_parallel_may_be_a_path(kit, fan, bound):
    leases = await claimed(kit, 6)
    seen, work = counting(kit)
    kit.functions["first"] = kit.functions["second"] = work
    await kit.machine(fan("settled", max_parallel=bound)).run(entries(leases))
    assert seen["most"] == 2


async def test_a_max_parallel_that_leads_to_no_number_is_an_error(kit, fan):
    leases = await claimed(kit, 1)
    with pytest.raises(UsageError, match=r"settings.max_parallel of flow is context.nothing, which is None"):
        await kit.machine(fan("settled", max_parallel="context.nothing")).run(entries(leases))


async def test_the_launchers_worker_may_be_a_coordinator(kit, flow, tmp_path):
    """One line of the launcher's YAML changes the topology."""
    import flatfleet

    machines = Path(flatfleet.__file__).parent / "machines"
    text = (machines / "launcher.yml").read_text()
    assert text.count("worker: ./worker.yml") == 1
    for name in machines.glob("*.yml"):
        text = text.replace(f" ./{name.name}", f" {name}")
    (tmp_path / "launcher.yml").write_text(
        text.replace(f"worker: {machines}/worker.yml", f"worker: {machines}/coordinator.yml")
    )
    task = tmp_path / "task.yml"
    task.write_text(
        yaml.safe_dump(flow({"start": START, "done": DONE}, {"item": "input.item", "twice": None}, name="task"))
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"key": f"i{k}"}) + "\n" for k in range(30)))
    seen, _ = counting(kit)
    config = bundle.load(str(tmp_path / "launcher.yml"), task=str(task))
    await run(kit, config, input=str(tmp_path / "rows.jsonl"), workers=1, parallelism=6, out="")
    await asyncio.wait_for(kit.engine.join(), SOON)
    assert seen["most"] == 6
    assert (await kit.store.work.pool("p").counts()).completed == 30
