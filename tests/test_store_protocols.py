"""The stores behind the SDK's protocols: its own callers work on them unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import math
import re
import sqlite3
import time

import pytest
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.errors import LeaseLost, StoreError, StoreUrlError, UsageError, WorkerConflict
from flatfleet.runtime.owner import machine, this_process
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.keys import check_pool, item_id, item_of, slug
from flatfleet.runtime.stores.leftovers import CONFIG_GRACE
from flatfleet.runtime.stores.store import CONFIG_FRESH
from flatmachines import (
    DistributedWorkerHooks,
    FlatMachine,
    HooksRegistry,
    MachineHooks,
    WorkerFilter,
    WorkerRegistration,
)
from flatmachines.backends import ResultBackend, make_uri, parse_uri
from flatmachines.distributed import RegistrationBackend
from flatmachines.locking import ExecutionLock
from flatmachines.persistence import CheckpointManager, ConfigStore, MachineSnapshot, PersistenceBackend, config_hash
from flatmachines.resume import ConfigStoreResumer
from flatmachines.signals import SignalBackend
from flatmachines.work import WorkBackend, WorkPool
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request, tmp_path, redis):
    urls = {"memory": lambda: "memory:", "sqlite": lambda: f"sqlite:{tmp_path / 'fleet.db'}", "redis": redis}
    return open_store(urls[request.param](), owner="me")


@pytest.fixture(params=["sqlite", "redis"])
def shared_url(request, tmp_path, redis):
    """The URL of a store that several processes can have."""
    return redis() if request.param == "redis" else f"sqlite:{tmp_path / 'fleet.db'}"


# -- protocols ---------------------------------------------------------------------------------------------------------


def test_the_store_speaks_every_protocol_of_the_sdk(store):
    assert isinstance(store.registration, RegistrationBackend)
    assert isinstance(store.work, WorkBackend)
    assert isinstance(store.work.pool("p"), WorkPool)
    assert isinstance(store.signals, SignalBackend)
    assert isinstance(store.results, ResultBackend)
    assert isinstance(store.checkpoints, PersistenceBackend)
    assert isinstance(store.lock, ExecutionLock)


@pytest.mark.parametrize(
    ("ours", "protocol"),
    [
        ("registration", RegistrationBackend),
        ("work", WorkBackend),
        ("pool", WorkPool),
        ("signals", SignalBackend),
        ("results", ResultBackend),
        ("checkpoints", PersistenceBackend),
        ("configs", ConfigStore),
        ("lock", ExecutionLock),
    ],
)
def test_every_method_takes_what_the_protocol_passes(ours, protocol):
    store = open_store("memory:")
    part = store.work.pool("p") if ours == "pool" else getattr(store, ours)
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if name.startswith("_"):
            continue
        mine = inspect.signature(getattr(part, name))
        for each in list(inspect.signature(method).parameters.values())[1:]:
            assert each.name in mine.parameters, f"{type(part).__name__}.{name} does not take {each.name}"
            assert mine.parameters[each.name].kind == each.kind
        extra = [p for p in mine.parameters.values() if p.name not in inspect.signature(method).parameters]
        assert all(p.default is not p.empty for p in extra), f"{type(part).__name__}.{name} asks for more"


def test_a_pool_is_one_object(store):
    assert store.work.pool("p") is store.work.pool("p")


@pytest.mark.parametrize(
    "url", ["redi://x", "mysql:x", "", "sqlite:", "sqlite:a/", "sqlite:a?x=1", "sqlite:a?synchronous=OFF"]
)
def test_a_url_that_names_no_store(url):
    with pytest.raises(StoreUrlError, match=re.escape(f"'{url.replace('x=1', 'x=***')}'")):
        open_store(url)


# -- the SDK's hooks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def act(store):
    hooks = DistributedWorkerHooks(registration=store.registration, work=store.work)

    async def act(action, **context):
        return await hooks.on_action("state", action, {"pool_id": "p", **context})

    return act


async def test_the_sdks_worker_actions_work_a_pool_off(store, act):
    pool = store.work.pool("p")
    good = await pool.push({"n": 1}, {"key": "good"})
    bad = await pool.push({"n": 2}, {"key": "bad", "max_retries": 1})
    registered = await act("register_worker", worker_id="w", capabilities=["gpu"])
    assert registered["status"] == "active"
    assert (await act("get_pool_state"))["queue_depth"] == 2
    assert (await act("get_pool_state"))["active_workers"] == 1
    await act("heartbeat", worker_id="w")
    first = await act("claim_job", worker_id="w")
    assert (first["job"], first["job_id"]) == ({"n": 1}, good)
    await act("complete_job", job_id=good, result={"ok": True})
    second = await act("claim_job", worker_id="w")
    await act("fail_job", job_id=second["job_id"], error="no good")
    assert (await act("claim_job", worker_id="w"))["job"] is None
    await act("deregister_worker", worker_id="w")
    assert (await store.registration.get("w")).status == "terminated"
    item, dead = await store.driver.item(good), await store.driver.item(bad)
    assert (item.state, item.result) == ("completed", {"ok": True})
    assert (dead.state, dead.error) == ("dead", "no good")


async def test_the_sdks_reaper_actions_hand_a_dead_workers_job_back(store, act):
    await store.work.pool("p").push(1, {"key": "a"})
    await act("register_worker", worker_id="w")
    await act("claim_job", worker_id="w")
    assert (await act("list_stale_workers", stale_threshold_seconds=60))["stale_count"] == 0
    stale = await act("list_stale_workers", stale_threshold_seconds=-1)
    assert [each["worker_id"] for each in stale["workers"]] == ["w"]
    reaped = await act("reap_worker", worker=stale["workers"][0])
    assert (reaped["reaped_worker_id"], reaped["jobs_released"]) == ("w", 1)
    assert (await store.registration.get("w")).status == "lost"
    assert (await act("claim_job", worker_id="v"))["job"] == 1
    again = await act("reap_stale_workers", stale_workers=stale["workers"])
    assert (again["reaped_count"], again["total_jobs_released"]) == (1, 0)


async def test_a_call_without_a_token_is_refused_only_where_nothing_is_claimed(store, act):
    pool = store.work.pool("p")
    await pool.push(1, {"key": "a"})
    with pytest.raises(LeaseLost):
        await act("complete_job", job_id="p:a")
    claim = await pool.claim("w")
    await pool.complete("p:a", "x", token=claim.token)
    for action in ("complete_job", "fail_job"):
        with pytest.raises(LeaseLost):
            await act(action, job_id="p:a")
    assert (await store.driver.item("p:a")).result == "x"


async def test_workers_are_listed_by_status_capability_and_age(store):
    for name, capabilities in (("a", ["gpu"]), ("b", None), ("c", ["gpu", "eu"])):
        await store.registration.register(WorkerRegistration(worker_id=name, capabilities=capabilities))
    await store.registration.update_status("c", "terminating")

    async def names(**filters):
        return [w.worker_id for w in await store.registration.list(WorkerFilter(**filters))]

    assert await names() == ["a", "b", "c"]
    assert await names(status="active") == ["a", "b"]
    assert await names(capability="gpu") == ["a", "c"]
    assert await names(capability="gpu", status="terminating") == ["c"]
    assert await names(stale_threshold_seconds=60) == []
    assert await names(stale_threshold_seconds=-1) == ["a", "b", "c"]


async def test_a_heartbeat_for_what_is_not_ours_raises(store):
    with pytest.raises(KeyError):
        await store.registration.heartbeat("nobody")
    await store.registration.register(WorkerRegistration(worker_id="w"))
    await store.registration.heartbeat("w", {"at": "item 3"})
    assert (await store.registration.get("w")).metadata["at"] == "item 3"
    await store.registration.update_status("w", "lost")
    with pytest.raises(LeaseLost, match="lost"):
        await store.registration.heartbeat("w", {"at": "item 4"})
    record = await store.registration.get("w")
    assert (record.status, record.metadata["at"]) == ("lost", "item 3")


# -- steering ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(store, monkeypatch):
    """What was announced to all processes since it was last asked for."""
    announced = []
    announce = store.bell.announce
    monkeypatch.setattr(store.bell, "announce", lambda *topics: (announced.append(set(topics)), announce(*topics))[1])

    def told():
        found = announced.copy()
        announced.clear()
        return found

    return told


async def test_what_others_may_wait_for_is_announced(store, told):
    pool = store.work.pool("p")
    new = [pool.new(n, key=str(n), max_retries=1) for n in range(4)]
    await pool.push_many(new)
    assert told() == [{"p"}]
    await pool.push_many(new)
    assert told() == []
    a, b, c = await pool.claim_many("w", 3)
    await pool.release(a.id, token=1)
    assert told() == [{"p"}]
    await pool.complete(b.id, 1, token=1)
    await pool.fail(c.id, "x", token=1)
    assert told() == []
    await pool.retry()
    assert told() == [{"p"}]
    await pool.retry()
    assert told() == []
    with store.bell.listen(a.id) as rung:
        assert await pool.cancel([a.id, "p:nobody"]) == 1
        assert rung.is_set()  # who waits for its result
    assert told() == [{"p", "workers"}]
    assert await pool.cancel([a.id]) == 0
    assert told() == []
    await pool.pause(math.inf)
    assert await pool.paused() == math.inf
    await pool.pause(None)
    assert await pool.paused() is None
    assert told() == [{"p"}, {"p"}]
    await store.signals.send("c", 1)
    assert told() == [{"c", "signals"}]
    await store.registration.register(WorkerRegistration(worker_id="w"))
    assert told() == []
    await store.registration.update_status("w", "terminating")
    assert told() == [{"workers"}]
    await store.fleet("p").set_target(3)
    await store.fleet("p").decide({"id": "d", "outcome": "applied", "target": 4})
    assert told() == [{"p"}, {"p", "fleet/p/scale"}]


async def test_a_claim_of_many_is_bounded_by_the_limit_of_the_pool(store):
    pool = store.work.pool("p")
    await pool.push_many([pool.new(n, key=str(n)) for n in range(9)])
    assert len(await pool.claim_many("w", 9, limit=4)) == 4
    assert len(await pool.claim_many("v", 9, (), 6)) == 2
    assert len(await pool.claim_many("v", 9)) == 3


async def test_every_end_of_an_attempt_tells_what_was_walked(store):
    pool = store.work.pool("p")
    await pool.push(1, {"key": "a"})
    await pool.release("p:a", token=(await pool.claim("w")).token, walked=("a",))
    await pool.fail("p:a", "x", token=(await pool.claim("w")).token, retry_after=0.0, walked=("b", "c"))
    await pool.complete("p:a", 1, token=(await pool.claim("w")).token, walked=("d",))
    assert [each.walked for each in await pool.attempts("p:a")] == [("a",), ("b", "c"), ("d",)]


async def test_the_record_of_a_fleet(store):
    record = store.fleet("papers")
    assert (record.name, record.channel) == ("papers", "fleet/papers/scale")
    assert (await record.target(), await record.decisions(), await record.decision("d1")) == (None, [], None)
    await record.set_target(3)
    assert await store.fleet("papers").target() == 3
    assert await store.fleet("other").target() is None
    await record.decide({"id": "d1", "outcome": "applied", "target": 5})
    await record.decide({"id": "d2", "outcome": "refused", "target": 9})
    assert await record.target() == 5
    assert [each["id"] for each in await record.decisions()] == ["d1", "d2"]
    assert [each["id"] for each in await record.decisions(1)] == ["d2"]
    assert (await record.decision("d1"))["target"] == 5
    await record.set_target(None)
    assert await record.target() is None
    with pytest.raises(UsageError):
        store.fleet("no/fleet")


async def test_the_hosts_of_a_fleet_are_the_living_ones(store):
    me, gone = this_process(), f"{machine()}/999999999/1"
    for key, owner, lease in (
        (f"host/papers/{me}", me, 60.0),
        (f"host/papers/{gone}", gone, 60.0),
        ("host/papers/elsewhere/7/8", "elsewhere/7/8", 60.0),
        ("host/papers/late", "late", -1.0),
        (f"host/papers2/{me}", me, 60.0),
        (f"host/paper/{me}", me, 60.0),
    ):
        assert await store.driver.lock(key, owner, lease)
    assert sorted(await store.fleet("papers").hosts()) == sorted([me, "elsewhere/7/8"])
    assert await store.fleet("none").hosts() == []


async def test_a_config_is_put_again_when_housekeeping_might_take_it_for_old(store, monkeypatch):
    puts, put = [], store.driver.put

    async def counted(key, value):
        puts.append(key)
        await put(key, value)

    monkeypatch.setattr(store.driver, "put", counted)
    for _ in range(3):
        await store.configs.put("raw")
    assert len(puts) == 1
    later = time.monotonic() + CONFIG_FRESH
    monkeypatch.setattr("flatfleet.runtime.stores.store.time.monotonic", lambda: later)
    await store.configs.put("raw")
    assert len(puts) == 2
    assert CONFIG_FRESH < CONFIG_GRACE / 2


# -- results -----------------------------------------------------------------------------------------------------------


async def test_an_items_uris_read_the_item(store):
    pool = store.work.pool("p")
    await pool.push({"n": 1}, {"key": "a"})
    work, result = make_uri("p:a", "work"), make_uri("p:a", "result")
    assert await store.results.read(work) == {"n": 1}
    assert await store.results.exists(work)
    assert not await store.results.exists(result)
    assert await store.results.read(result, block=False) is None
    claim = await pool.claim("w")
    assert not await store.results.exists(result)
    await pool.complete("p:a", {"done": None}, token=claim.token)
    assert await store.results.exists(result)
    assert await store.results.read(result) == {"done": None}


async def test_a_result_of_none_is_a_result(store):
    pool = store.work.pool("p")
    await pool.push(1, {"key": "a"})
    await pool.complete("p:a", None, token=(await pool.claim("w")).token)
    assert await store.results.exists(make_uri("p:a"))
    assert await store.results.read(make_uri("p:a"), timeout=0.1) is None


@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_a_blocked_reader_is_woken_by_the_end_of_the_item(store, end):
    pool = store.work.pool("p")
    await pool.push(1, {"key": "a", "max_retries": 1})
    reader = asyncio.create_task(store.results.read(make_uri("p:a"), timeout=10))
    claim = await pool.claim("w")
    await pool.counts()
    assert not reader.done()
    await getattr(pool, end)("p:a", "text", token=claim.token)
    got = await asyncio.wait_for(reader, 0.4)  # before the poll would have found it
    assert got == ("text" if end == "complete" else {"_error": "text", "_error_type": "Error"})


async def test_a_blocked_reader_of_another_process_finds_it_too(shared_url):
    mine, other = open_store(shared_url, owner="me"), open_store(shared_url, owner="other")
    await mine.work.pool("p").push(1, {"key": "a"})
    reader = asyncio.create_task(other.results.read(make_uri("p:a"), timeout=10))
    claim = await mine.work.pool("p").claim("w")
    await mine.work.pool("p").complete("p:a", "x", token=claim.token)
    assert await asyncio.wait_for(reader, 5) == "x"
    await mine.close()
    await other.close()


async def test_the_uris_of_an_item_cannot_be_written(store):
    await store.work.pool("p").push(1, {"key": "a"})
    for path in ("work", "result"):
        with pytest.raises(StoreError, match=r"complete\(token\)"):
            await store.results.write(make_uri("p:a", path), {"forged": True})
    assert await store.results.read(make_uri("p:a", "work")) == 1
    assert await store.results.read(make_uri("p:a"), block=False) is None
    await store.results.write(make_uri("p:a", "notes"), "free")
    assert await store.results.read(make_uri("p:a", "notes")) == "free"


async def test_other_uris_are_entries(store):
    uri = make_uri("machine-1")
    with pytest.raises(TimeoutError, match="machine-1"):
        await store.results.read(uri, timeout=0.01)
    reader = asyncio.create_task(store.results.read(uri))
    await store.results.exists(uri)
    await store.results.write(uri, {"n": 1})
    assert await asyncio.wait_for(reader, 0.4) == {"n": 1}
    await store.results.write(uri, {"n": 2})
    assert await store.results.read(uri, block=False) == {"n": 2}
    await store.results.delete(uri)
    await store.results.delete(uri)
    assert not await store.results.exists(uri)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def snapshot(execution_id="x", step=1, event="state_enter", **more):
    base = {"machine_name": "m", "spec_version": "4.2.1", "current_state": "s", "context": {"n": step}}
    return MachineSnapshot(execution_id=execution_id, step=step, event=event, **(base | more))


@pytest.mark.parametrize("execution_id", ["x", "p:a", "a/b", "ключ:1", "step_000001_x.json", "x/latest"])
async def test_the_sdks_checkpoint_manager_saves_and_loads_the_latest(store, execution_id):
    manager = CheckpointManager(store.checkpoints, execution_id)
    assert await manager.load_latest() is None
    for step in range(1, 4):
        await manager.save_checkpoint(snapshot(execution_id, step))
    latest = await manager.load_latest()
    assert (latest.step, latest.context, latest.execution_id) == (3, {"n": 3}, execution_id)
    assert await manager.load_status() == ("state_enter", "s")
    assert len(await store.driver.snapshots(None, None)) == 1
    await store.checkpoints.delete_execution(execution_id)
    assert await manager.load_latest() is None


async def test_execution_ids_are_listed_by_event_and_channel(store):
    rows = [("a", "machine_end", None), ("b", "waiting", "go/1"), ("c", "waiting", "go/2"), ("d", "state_enter", None)]
    for name, event, channel in rows:
        saved = snapshot(name, event=event, waiting_channel=channel)
        await CheckpointManager(store.checkpoints, name).save_checkpoint(saved)

    async def ids(**filters):
        return sorted(await store.checkpoints.list_execution_ids(**filters))

    assert await ids() == ["a", "b", "c", "d"]
    assert await ids(event="machine_end") == ["a"]
    assert await ids(event="waiting") == ["b", "c"]
    assert await ids(waiting_channel="go/2") == ["c"]
    assert await ids(event="machine_end", waiting_channel="go/2") == []
    await CheckpointManager(store.checkpoints, "b").save_checkpoint(snapshot("b", 2))
    assert await ids(waiting_channel="go/1") == []


async def test_prune_by_age_and_count(store):
    for name in "abcd":
        await CheckpointManager(store.checkpoints, name).save_checkpoint(snapshot(name))
    manager = CheckpointManager(store.checkpoints, "a")
    assert await manager.prune_checkpoints(max_age_seconds=60) == 0
    assert await manager.prune_checkpoints() == 0
    assert await manager.prune_checkpoints(max_count=3) == 1
    assert await store.checkpoints.list_execution_ids() == ["b", "c", "d"]
    with pytest.raises(ValueError, match="max_count"):
        await manager.prune_checkpoints(max_count=-1)
    assert await manager.prune_checkpoints(max_age_seconds=0, max_count=3) == 3
    assert await store.checkpoints.list_execution_ids() == []


async def test_keys_that_are_no_snapshots_are_kept_as_bytes(store):
    body = bytes(range(256))
    assert await store.checkpoints.load("other") is None
    await store.checkpoints.save("other", body)
    assert await store.checkpoints.load("other") == body
    await store.checkpoints.delete("other")
    assert await store.checkpoints.load("other") is None


class Work(MachineHooks):
    """`step` counts; the second one of all fails once."""

    def __init__(self):
        self.ran = 0

    def on_action(self, state_name, action_name, context):
        self.ran += 1
        if self.ran == 2:
            raise OSError("power")
        context["n"] += 1
        return context


@pytest.fixture
def two_steps(flow):
    step = {"action": "step", "hooks": "work"}
    states = {
        "a": {**step, "type": "initial", "transitions": [{"to": "b"}]},
        "b": {**step, "transitions": [{"to": "wait"}]},
        "wait": {
            "wait_for": "go/{{ context.n }}",
            "output_to_context": {"said": "output"},
            "transitions": [{"to": "done"}],
        },
        "done": {"type": "final", "output": {"n": "context.n", "said": "context.said"}},
    }
    return flow(states, {"n": 0, "said": None}, name="two_steps")


async def test_the_sdks_machine_checkpoints_resumes_and_waits_on_our_store(store, two_steps):
    hooks = HooksRegistry()
    work = Work()
    hooks.register("work", lambda: work)
    parts = {
        "hooks_registry": hooks,
        "persistence": store.checkpoints,
        "lock": store.lock,
        "signal_backend": store.signals,
        "config_store": store.configs,
        "result_backend": store.results,
    }
    with pytest.raises(OSError, match="power"):
        await FlatMachine(config_dict=copy.deepcopy(two_steps), _execution_id="x", **parts).execute()
    assert await store.checkpoints.list_execution_ids(event="execute") == ["x"]
    machine = FlatMachine(config_dict=copy.deepcopy(two_steps), **parts)
    assert await machine.execute(resume_from="x") == {"_waiting": True, "_channel": "go/2"}
    assert work.ran == 3
    assert await store.checkpoints.list_execution_ids(waiting_channel="go/2") == ["x"]

    await store.signals.send("go/2", {"yes": [1]})
    resumer = ConfigStoreResumer(store.signals, store.checkpoints, store.configs, hooks_registry=hooks)
    assert await resumer.resume("x", None) == {"n": 2, "said": {"yes": [1]}}
    assert await store.checkpoints.list_execution_ids(event="machine_end") == ["x"]
    assert await store.signals.channels() == []


async def test_a_bundle_parked_by_our_machine_is_resumed_by_the_sdks_resumer(any_kit, two_steps, tmp_path):
    store = any_kit.store
    work = Work()
    work.ran = 2
    any_kit.parts.hooks.register("work", lambda: work)
    config = Bundle.of(two_steps)
    assert await any_kit.machine(config, "x").run() == {"_waiting": True, "_channel": "go/2"}
    assert await store.configs.get(config.hash) == config.raw
    await store.signals.send("go/2", {"yes": 1})
    resumer = ConfigStoreResumer(store.signals, store.checkpoints, store.configs, hooks_registry=any_kit.parts.hooks)
    assert await resumer.resume("x", None) == {"n": 2, "said": {"yes": 1}}


async def test_configs_are_kept_by_the_hash_of_their_text(store):
    raw = "spec: flatmachine\nname: 'ключ'\n"
    digest = await store.configs.put(raw)
    assert digest == config_hash(raw) == await store.configs.put(raw)
    assert await store.configs.get(digest) == raw
    await store.configs.delete(digest)
    assert await store.configs.get(digest) is None
    await store.configs.put(raw)
    assert await store.configs.get(digest) == raw


# -- signals, locks ----------------------------------------------------------------------------------------------------


async def test_signals_are_first_in_first_out_and_taken_once(store):
    ids = [await store.signals.send("c", {"n": n}) for n in range(3)]
    await store.signals.send("d", None)
    assert [each.id for each in await store.signals.peek("c")] == ids
    assert sorted(await store.signals.channels()) == ["c", "d"]
    got = await asyncio.gather(*(store.signals.consume("c") for _ in range(4)))
    assert [each.data["n"] for each in got if each] == [0, 1, 2]
    assert (await store.signals.consume("d")).data is None
    assert await store.signals.consume("d") is None
    assert await store.signals.channels() == []


async def test_a_lock_is_not_taken_twice_even_by_its_own_process(store):
    assert await store.lock.acquire("x")
    assert not await store.lock.acquire("x")
    assert await store.lock.acquire("y")
    await store.lock.release("x")
    await store.lock.release("x")
    assert await store.lock.acquire("x")
    assert [await store.lock.acquire(name) for name in ("x", "y")] == [False, False]


async def test_one_of_many_takers_of_a_lock_gets_it(store):
    assert sorted(await asyncio.gather(*(store.lock.acquire("x") for _ in range(10)))) == [False] * 9 + [True]


# -- two processes on one file ---------------------------------------------------------------------------------------


async def test_two_owners_of_one_store_share_everything_and_keep_apart_what_is_theirs(shared_url):
    a, b = open_store(shared_url, owner="a"), open_store(shared_url, owner="b")
    await a.work.pool("p").push_many([a.work.pool("p").new(n, key=str(n)) for n in range(40)])
    claims = await asyncio.gather(*((a, b)[n % 2].work.pool("p").claim(f"w{n}") for n in range(50)))
    ids = [claim.id for claim in claims if claim]
    assert sorted(ids) == sorted({f"p:{n}" for n in range(40)})
    assert sorted(await a.driver.owners()) == ["a", "b"]

    await a.registration.register(WorkerRegistration(worker_id="w"))
    with pytest.raises(WorkerConflict):
        await b.registration.register(WorkerRegistration(worker_id="w"))
    with pytest.raises(LeaseLost):
        await b.registration.heartbeat("w")
    assert (await b.registration.get("w")).metadata["owner"] == "a"

    assert await a.lock.acquire("x")
    assert not await b.lock.acquire("x")
    await b.lock.release("x")
    assert not await b.lock.acquire("x")
    await a.lock.release("x")
    assert await b.lock.acquire("x")

    await a.signals.send("c", 1)
    assert (await b.signals.consume("c")).data == 1
    assert await a.signals.consume("c") is None
    await a.close()
    await b.close()


# -- names -------------------------------------------------------------------------------------------------------------

TRICKY = [
    "",
    ".",
    "..",
    "../../x",
    "x",
    "X",
    "a/b",
    "a\\b",
    "a b",
    "a-b",
    "a:b",
    "é",
    "e\u0301",
    "é.pdf",
    "{{ 7*7 }}",
    " x",
    "x ",
]
TRICKY += ["\ud800", "\0", "-", "a.", ".a", "a..b", "x" * 60, "x" * 61, "x" * 10_000, "/x", "x/", "a-0123456789ab"]
TRICKY += ["0123456789ab", slug("a b"), slug(slug("a b"))]
SAFE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def check_slug(key):
    made = slug(key)
    assert SAFE.fullmatch(made), f"{key!r} became {made!r}"
    assert len(made) <= 60
    assert item_of(item_id("p", key)) == f"p:{made}"
    assert item_of(item_id("p", key) + ":state:child") == f"p:{made}"
    assert parse_uri(make_uri(item_id("p", key), "work")) == (f"p:{made}", "work")
    return made


def test_slugs_of_tricky_keys_are_safe_and_distinct():
    keys = list(dict.fromkeys(TRICKY))
    assert len({check_slug(key) for key in keys}) == len(keys)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(), st.from_regex(r"[a-b./:-]{0,5}", fullmatch=True), st.sampled_from(TRICKY)), unique=True
    )
)
def test_slugs_are_safe_and_injective(keys):
    assert len({check_slug(key) for key in keys}) == len(keys)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_a_slug_of_a_slug_does_not_meet_its_key(key):
    assert slug(slug(key)) != slug(key) or slug(key) == key


def test_a_plain_key_is_its_own_slug_and_no_key_is_unique():
    assert slug("paper-7_b.v2.pdf") == "paper-7_b.v2.pdf"
    assert slug("/home/me/My paper.pdf").startswith("My-paper-pdf-")
    assert item_id("p", None) != item_id("p", None)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:b", "a/b", "..", "a..b", "-a", ".a", "ключ", "x" * 65, None, 3, "{{ x }}"]
)
def test_a_name_that_cannot_be_a_pool(store, name):
    with pytest.raises(UsageError, match="pool name"):
        store.work.pool(name)


@pytest.mark.parametrize("name", ["p", "papers", "my.task_v2-x", "x" * 64, "7"])
def test_a_name_that_can(name):
    assert check_pool(name) == name


@pytest.mark.parametrize(("version", "says"), [(1, "an older flatfleet"), (99, "a newer flatfleet")])
async def test_a_file_of_another_version_is_refused_and_left_alone(tmp_path, version, says):
    file = tmp_path / "fleet.db"
    made = open_store(f"sqlite:{file}")
    await made.work.pool("p").push({"n": 1})
    await made.close()
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    before, opened = file.read_bytes(), open_store(f"sqlite:{file}")
    with pytest.raises(StoreError, match=f"{says}.*name another file with --store"):
        await opened.work.pool("p").counts()
    await opened.close()
    assert file.read_bytes() == before
