"""The hooks' actions as plain functions, on a memory store."""

from __future__ import annotations

import asyncio
import json

import pytest
from flatfleet import hooks
from flatfleet.hooks import flow, papers, sources, work
from flatfleet.hooks.registration import Registration
from flatfleet.runtime import values
from flatfleet.runtime.errors import LeaseLost, SourceError, StoreUnavailable, UnknownAction, UsageError, WorkerConflict
from flatfleet.runtime.stores.records import Counts
from flatmachines import WorkerRegistration


@pytest.fixture
def fleet(kit):
    return kit.fleet


def context(**more):
    return {"pool": "p", "worker_id": "w", **more}


async def push(fleet, *keys, **options):
    pool = fleet.store.work.pool("p")
    await pool.push_many([pool.new({"key": key}, key=key, **options) for key in keys])
    return pool


# -- the registry ------------------------------------------------------------------------------------------------------


def test_hooks_and_actions_are_named_after_modules_and_functions():
    known = hooks.known()
    assert set(known) == {
        "autoscaling",
        "batch",
        "flow",
        "papers",
        "pipeline",
        "registration",
        "scaling",
        "sources",
        "work",
    }
    assert known["work"] == {"claim", "idle", "complete", "complete_and_claim", "fail", "forget", "recover"}
    assert known["flow"] == {"count", "pace"}
    assert known["registration"] == set()


def test_every_hook_of_the_registry_is_one_object_a_process(fleet):
    registry = hooks.registry(fleet)
    for name in hooks.known():
        assert registry.resolve(name) is registry.resolve(name)


def test_an_unknown_action_says_what_is_known_and_what_was_meant(fleet):
    actions = hooks.registry(fleet).resolve("work")
    with pytest.raises(UnknownAction) as caught:
        actions.on_action("start", "clam", {})
    listed = ", ".join(sorted(hooks.known()["work"]))
    assert str(caught.value) == (
        f"state 'start': hooks 'work' have no action 'clam' — known: {listed}. Did you mean 'claim'?"
    )


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_are_read_from_strings_and_fall_back_to_defaults():
    given = {"n": "7", "f": "2.5", "empty": "", "none": None, "zero": 0, "t": 3}
    assert values.whole(given, "n", 1) == 7
    assert values.number(given, "f", 1.0) == 2.5
    assert [values.whole(given, name, 4) for name in ("empty", "none", "missing")] == [4, 4, 4]
    assert values.whole(given, "zero", 4) == 0
    assert values.text(given, "t") == "3"
    assert [values.text(given, name, "d") for name in ("empty", "none", "missing")] == ["d", "d", "d"]


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (values.number, "many", "x is 'many': a number is needed"),
        (values.number, [1], "a number is needed"),
        (values.number, "-1", "x is -1: it must be at least 0"),
        (values.number, "nan", "at least 0"),
        (values.whole, "inf", "x is inf: a whole number is needed"),
        (values.whole, "2.5", "x is 2.5: a whole number is needed"),
        (values.whole, -3, "at least 0"),
    ],
)
def test_a_value_that_is_no_number_says_which(function, value, message):
    with pytest.raises(UsageError, match=message):
        function({"x": value}, "x", 1)


def test_a_worker_without_an_id_gets_one_that_stays():
    started_by_hand = {}
    name = values.worker_id(started_by_hand)
    assert name.startswith("worker-")
    assert values.worker_id(started_by_hand) == name
    assert values.worker_id({}) != name
    assert values.worker_id({"worker_id": 7}) == "7"


# -- flow --------------------------------------------------------------------------------------------------------------


async def test_count_and_pace(fleet, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    assert (await flow.count({}, fleet))["n"] == 1
    assert (await flow.count({"n": "4"}, fleet))["n"] == 5
    monkeypatch.setattr(flow.asyncio, "sleep", sleep)
    await flow.pace({"launch_interval": "0.5"}, fleet)
    await flow.pace({}, fleet)
    assert slept == [0.5, 0.0]


# -- work --------------------------------------------------------------------------------------------------------------


async def test_claim_takes_an_item_and_holds_its_lease(kit, fleet):
    await push(fleet, "a")
    made = await work.claim(context(result="old", error={"type": "old"}, last_error="old", idle="woken"), fleet)
    assert (made["item_id"], made["item"], made["stop"]) == ("p:a", {"key": "a"}, False)
    assert [made[name] for name in ("result", "error", "last_error", "last_error_type", "idle")] == [None] * 5
    lease = fleet.held("p:a")
    assert (lease.token, lease.worker, lease.pool) == (1, "w", "p")
    made = await work.claim(made, fleet)
    assert (made["item_id"], made["item"], made["stop"]) == (None, None, False)


async def test_claim_takes_only_what_this_process_is_capable_of(kit, fleet):
    await push(fleet, "a", requires=["gpu"])
    assert (await work.claim(context(), fleet))["item_id"] is None
    fleet.capabilities = frozenset({"gpu", "eu"})
    assert (await work.claim(context(), fleet))["item_id"] == "p:a"


async def test_a_worker_that_was_told_to_stop_claims_nothing(kit, fleet):
    pool = await push(fleet, "a")
    fleet.drain()
    made = await work.claim(context(), fleet)
    assert (made["stop"], made["item_id"]) == (True, None)
    assert (await pool.counts()).waiting == 1


async def test_idle_ends_in_a_batch_when_it_is_empty_and_in_a_served_fleet_by_time(kit, fleet):
    assert (await work.idle(context(idle_timeout="0.01"), fleet))["idle"] == "empty"
    fleet.served = True
    assert (await work.idle(context(idle_timeout="0.01"), fleet))["idle"] == "timeout"
    await push(fleet, "a")
    assert (await work.idle(context(), fleet))["idle"] == "woken"


async def test_a_worker_that_was_told_to_stop_while_it_claimed_does_not_wait(kit, fleet):
    pool = await push(fleet, "a")
    await pool.claim("somebody")
    made = await work.claim(context(), fleet)
    fleet.drain()
    made = await asyncio.wait_for(work.idle(made, fleet), 0.5)
    assert made["idle"] == "dismissed"
    assert (await work.claim(made, fleet))["stop"]


async def test_complete_commits_under_the_token_and_lets_go(kit, fleet):
    await push(fleet, "a", "b")
    made = await work.claim(context(processed=2), fleet)
    fleet.held("p:a").cost = 0.25
    made = await work.complete({**made, "result": {"ok": 1}}, fleet)
    assert made["processed"] == 3
    assert list(fleet.leases) == []
    item = await fleet.store.driver.item("p:a")
    assert (item.state, item.result) == ("completed", {"ok": 1})
    (attempt,) = await fleet.store.work.pool("p").attempts("p:a")
    assert (attempt.outcome, attempt.cost) == ("completed", 0.25)


async def test_complete_and_claim_commits_and_holds_the_next(any_kit):
    fleet = any_kit.fleet
    await push(fleet, "a", "b")
    made = await work.claim(context(processed=0), fleet)
    made = await work.complete_and_claim({**made, "result": 1}, fleet)
    assert (made["item_id"], made["item"], made["stop"], made["processed"]) == ("p:b", {"key": "b"}, False, 1)
    assert made["result"] is None
    assert list(fleet.leases) == ["p:b"]
    assert (await fleet.store.driver.item("p:a")).result == 1
    made = await work.complete_and_claim({**made, "result": 2}, fleet)
    assert (made["item_id"], made["item"], made["stop"], made["processed"]) == (None, None, False, 2)
    assert fleet.leases == {}
    assert await fleet.store.work.pool("p").counts() == Counts(completed=2)


async def test_complete_and_claim_of_a_worker_that_was_told_to_stop_claims_nothing(any_kit):
    fleet = any_kit.fleet
    pool = await push(fleet, "a", "b")
    made = await work.claim(context(), fleet)
    fleet.drain()
    made = await work.complete_and_claim({**made, "result": 1}, fleet)
    assert (made["stop"], made["item_id"]) == (True, None)
    assert fleet.leases == {}
    assert await pool.counts() == Counts(completed=1, waiting=1)


@pytest.mark.parametrize(("result", "error"), [({1, 2}, TypeError), ("fine", LeaseLost)])
async def test_complete_and_claim_gives_the_next_item_back_if_the_result_is_refused(any_kit, result, error):
    fleet = any_kit.fleet
    pool = await push(fleet, "a", "b")
    made = await work.claim(context(), fleet)
    if error is LeaseLost:
        await fleet.store.driver.hand_back(worker="w", crashed=True)
        await fleet.store.driver.claim("p", "thief", "thief", 1, 60, ())
    with pytest.raises(error):
        await work.complete_and_claim({**made, "result": result}, fleet)
    assert list(fleet.leases) == ["p:a"]
    assert await pool.counts() == Counts(claimed=1, waiting=1)
    item = await fleet.store.driver.item("p:b")
    assert (item.state, item.attempts, item.crashes) == ("ready", 0, 0)


@pytest.mark.parametrize("action", [work.complete, work.complete_and_claim, work.fail])
async def test_nothing_is_committed_without_the_lease(kit, fleet, action):
    with pytest.raises(LeaseLost, match="no claimed item"):
        await action(context(item_id=None), fleet)
    with pytest.raises(LeaseLost, match="not held by this process"):
        await action(context(item_id="p:a"), fleet)
    await push(fleet, "a")
    made = await work.claim(context(), fleet)
    await fleet.store.driver.hand_back(worker="w", crashed=True)
    with pytest.raises(LeaseLost):
        await action(made, fleet)
    assert list(fleet.leases) == ["p:a"]
    await work.forget(made, fleet)
    assert list(fleet.leases) == []
    await work.forget(made, fleet)
    assert (await fleet.store.driver.item("p:a")).state == "ready"


@pytest.mark.parametrize(
    ("error", "state", "attempts", "outcome"),
    [
        ({"type": "Oops", "message": "m"}, "delayed", 1, "failed"),
        ({"type": "Oops", "message": "m", "retry_after": 0}, "ready", 1, "failed"),
        ({"type": "Oops", "message": "m", "permanent": True}, "dead", 1, "failed"),
        ({"type": "Oops", "message": "m", "provider": True}, "delayed", 0, "provider"),
        ({"type": "Oops", "message": "m", "provider": True, "retry_after": 0}, "ready", 0, "provider"),
    ],
)
async def test_fail_charges_whose_fault_it_was(kit, fleet, error, state, attempts, outcome):
    pool = await push(fleet, "a")
    made = await work.claim(context(), fleet)
    await work.fail({**made, "error": error}, fleet)
    item = await fleet.store.driver.item("p:a")
    assert (item.state, item.attempts, item.error_type, item.error) == (state, attempts, "Oops", "m")
    assert [each.outcome for each in await pool.attempts("p:a")] == [outcome]
    assert fleet.leases == {}


async def test_fail_under_the_stock_machine_reads_last_error(kit, fleet):
    await push(fleet, "a")
    made = await work.claim(context(), fleet)
    await work.fail({**made, "last_error": "m", "last_error_type": "Oops"}, fleet)
    item = await fleet.store.driver.item("p:a")
    assert (item.error_type, item.error) == ("Oops", "m")


async def test_recover_counts_items(kit, fleet):
    pool = await push(fleet, "a", "b")
    machine = fleet.store.owner.rsplit("/", 2)[0]
    await fleet.store.driver.claim("p", "gone", f"{machine}/999999999/1", 1, 60, ())
    assert (await work.recover(context(), fleet))["recovered"] == 1
    assert await pool.counts() == Counts(waiting=2)
    assert (await work.recover(context(), fleet))["recovered"] == 0


# -- sources -----------------------------------------------------------------------------------------------------------


async def test_enqueue_adds_each_row_once_however_often_it_runs(kit, fleet, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps({"id": f"r{n}", "text": f"text {n}"}) for n in range(3)]
    file.write_text("\n".join([*rows, "no json", ""]))
    asked = context(input=str(file), workers="2")
    made = await sources.enqueue(dict(asked), fleet)
    assert [made[name] for name in ("added", "known", "skipped", "left", "done", "dead")] == [3, 0, 1, 3, 0, 0]
    assert "rows.jsonl" in made["skipped_first"][0]
    assert made["workers"] == 2
    again = await sources.enqueue(dict(asked), fleet)
    assert [again[name] for name in ("added", "known", "left")] == [0, 3, 3]
    assert again["run"] != made["run"]
    assert (await fleet.store.work.pool("p").counts()).total == 3


async def test_enqueue_of_nothing_is_an_error(kit, fleet, tmp_path):
    (tmp_path / "rows.jsonl").write_text("no json\n")
    with pytest.raises(SourceError, match="nothing in the input can be worked on"):
        await sources.enqueue(context(input=str(tmp_path / "rows.jsonl")), fleet)
    assert (await fleet.store.work.pool("p").counts()).total == 0


# -- papers ------------------------------------------------------------------------------------------------------------


async def test_prepare_reads_and_splits_and_report_writes(kit, fleet, tmp_path):
    file = tmp_path / "a.md"
    file.write_text(
        "# A title\n\n" + "\n\n".join(f"## Part {n}\n\n" + "Some words stand here. " * 40 for n in range(4))
    )
    made = await papers.prepare({"item": {"path": str(file)}, "item_id": "p:a", "parallelism": "2"}, fleet)
    assert made["title"] == "A title"
    assert 1 < len(made["parts"]) <= 2
    assert {part["title"] for part in made["parts"]} == {"A title"}
    assert (made["rounds"], made["max_rounds"]) == (0, 3)
    made = await papers.count_round(made, fleet)
    assert made["rounds"] == 1
    made["draft"] = {"summary": "It says something."}
    without = await papers.report({**made, "out": ""}, fleet)
    assert "files" not in without
    made = await papers.report({**made, "out": str(tmp_path / "out")}, fleet)
    assert (made["report"]["summary"], made["report"]["parallelism"]) == ("It says something.", len(made["parts"]))
    assert sorted(path.suffix for path in (tmp_path / "out" / "p").iterdir()) == [".json", ".md"]


# -- registration ------------------------------------------------------------------------------------------------------


async def status(fleet, name="w"):
    record = await fleet.store.registration.get(name)
    return record and (record.status, record.metadata.get("ended"), record.metadata.get("processed"))


async def test_a_worker_registers_what_it_is_and_deregisters_at_its_end(kit, fleet):
    hook = Registration(fleet)
    fleet.capabilities = frozenset({"gpu", "eu"})
    started = context(parallelism="4", machine={"machine_name": "worker"})
    made = await hook.on_machine_start(started)
    record = await fleet.store.registration.get("w")
    assert (record.status, record.capabilities) == ("active", ["eu", "gpu"])
    assert record.host
    assert record.pid
    about = {name: record.metadata[name] for name in ("pool", "parallelism", "machine")}
    assert about == {"pool": "p", "parallelism": 4, "machine": "worker"}
    assert fleet.workers == {"w": "active"}
    output = {"status": "retired"}
    assert await hook.on_machine_end({**made, "processed": 3}, output) is output
    assert await status(fleet) == ("terminated", "retired", 3)
    assert fleet.workers == {}


async def test_registration_none_registers_nothing(kit, fleet):
    hook = Registration(fleet)
    made = await hook.on_machine_start(context(registration="none", worker_id=None))
    assert made["worker_id"].startswith("worker-")
    await hook.on_machine_end(made, {})
    await hook.on_machine_abort(made, OSError())
    assert await fleet.store.registration.list() == []
    assert fleet.workers == {}


async def test_an_aborted_worker_deregisters_with_its_error(kit, fleet):
    hook = Registration(fleet)
    made = await hook.on_machine_start(context())
    await hook.on_machine_abort(made, OSError("power"))
    assert await status(fleet) == ("terminated", "OSError", 0)
    await hook.on_machine_abort(made, OSError("twice"))
    await hook.on_machine_abort({}, OSError("before it began"))


async def test_an_abort_while_the_store_is_away_does_not_hide_the_error(kit, fleet, monkeypatch):
    hook = Registration(fleet)
    made = await hook.on_machine_start(context())

    async def away(*_, **__):
        raise StoreUnavailable("no route")

    monkeypatch.setattr(fleet.store.driver, "set_status", away)
    await hook.on_machine_abort(made, OSError("power"))
    assert fleet.workers == {}


async def test_a_worker_whose_id_is_alive_elsewhere_does_not_deregister_that_one(kit, fleet):
    other = kit.other()
    await other.store.registration.register(WorkerRegistration(worker_id="w"))
    hook, started = Registration(fleet), context()
    with pytest.raises(WorkerConflict):
        await hook.on_machine_start(started)
    await hook.on_machine_abort(started, OSError())
    assert await status(fleet) == ("active", None, None)


@pytest.mark.parametrize("registration", ["store", "none"])
@pytest.mark.parametrize("end", ["retired", "error", "cancelled"])
async def test_whatever_its_end_a_worker_machine_leaves_no_live_registration(kit, flow, registration, end):
    hung = asyncio.Event()

    @kit.does
    async def work(context, fleet):
        if end == "error":
            raise OSError("power")
        if end == "cancelled":
            hung.set()
            await asyncio.Event().wait()
        return context

    states = {
        "start": {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"status": "retired"}},
    }
    named = {"worker_id": "input.worker_id", "registration": "input.registration"}
    config = flow(states, named, lifecycle_hooks="registration", name="worker")
    run = asyncio.create_task(kit.machine(config).run({"worker_id": "w", "registration": registration}))
    if end == "cancelled":
        await hung.wait()
        run.cancel()
    await asyncio.wait([run])
    ended = {"retired": "retired", "error": "OSError", "cancelled": "CancelledError"}[end]
    assert await status(kit.fleet) == (("terminated", ended, 0) if registration == "store" else None)
    assert kit.fleet.workers == {}
