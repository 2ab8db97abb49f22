"""The store contract, part 2: workers, locks, entries, snapshots, signals — over every driver in tests/conftest.py."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from flatfleet.runtime.errors import LeaseLost, WorkerConflict
from flatfleet.runtime.stores.records import NewItem, SnapshotRow
from flatmachines import Signal, WorkerRecord, WorkerRegistration

LEASE = 60.0
WEIRD = [
    "../../x",
    "ключ 鍵 🔑",
    """it's "quoted"; DROP TABLE workers; --""",
    "{{ 7*7 }}",
    "%_*?[a-z]",
    " b\n\t",
    "x" * 10_000,
]
weird = pytest.mark.parametrize("text", WEIRD, ids=lambda text: text[:12].strip())


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


async def register(driver: Any, name: str = "w1", owner: str = "o1", **options: Any) -> WorkerRecord:
    lease, metadata = options.pop("lease", LEASE), options.pop("metadata", {})
    return await driver.register(WorkerRegistration(worker_id=name, **options), owner, lease, metadata)


async def worker(driver: Any, name: str = "w1") -> WorkerRecord:
    (record,) = await driver.workers(name)
    return record


async def claim(driver: Any, name: str, holder: str = "w1", owner: str = "o1") -> int:
    """Push an item and claim it; return the token."""
    await driver.push("p", [NewItem(id=name, key=name, data=None)])
    (got,) = await driver.claim("p", holder, owner, 1, LEASE, ())
    return got.token


# -- workers -------------------------------------------------------------------------------------------------------


async def test_register_returns_and_stores_the_sdks_record(driver, clock):
    record = await register(driver, host="h", pid=7, capabilities=["gpu"], metadata={"pool": "p"})
    assert isinstance(record, WorkerRecord)
    assert (record.worker_id, record.status, record.host, record.pid) == ("w1", "active", "h", 7)
    assert (record.capabilities, record.current_task_id) == (["gpu"], None)
    assert record.last_heartbeat == iso(clock.now)
    assert record.metadata == {"pool": "p", "owner": "o1", "lease_until": clock.now + LEASE}
    assert await driver.workers("w1") == [record]
    assert await driver.workers() == [record]


async def test_unknown_workers(driver):
    assert await driver.workers() == []
    assert await driver.workers("w1") == []
    with pytest.raises(KeyError, match="w1"):
        await driver.set_status("w1", "active")


async def test_registering_again_is_idempotent_and_merges_metadata(driver, clock):
    first = await register(driver, metadata={"a": 1, "b": 1})
    clock.advance(10)
    again = await register(driver, metadata={"b": 2, "c": 3})
    assert again.started_at == first.started_at
    assert again.last_heartbeat == iso(clock.now)
    assert again.metadata == {"a": 1, "b": 2, "c": 3, "owner": "o1", "lease_until": clock.now + LEASE}
    assert len(await driver.workers()) == 1


async def test_a_booking_is_taken_over_by_whoever_begins_and_keeps_what_was_said_of_it(driver, clock):
    await register(driver, "w0")
    await register(driver, owner="launcher", host="here", metadata={"pool": "p", "decision": "d", "booked": True})
    await register(driver, "w2")
    begun_at = (await worker(driver)).started_at
    clock.advance(10)
    record = await register(driver, owner="host", host="there", pid=9, metadata={"parallelism": 2})
    assert (record.metadata["owner"], record.host, record.pid, record.status) == ("host", "there", 9, "active")
    assert (record.metadata["pool"], record.metadata["decision"], record.metadata["parallelism"]) == ("p", "d", 2)
    assert (record.metadata["booked"], record.metadata["lease_until"]) == (False, clock.now + LEASE)
    assert record.started_at == begun_at
    assert [each.worker_id for each in await driver.workers()] == ["w0", "w1", "w2"]
    beats = [await driver.beat(owner, ["w1"], {}, LEASE) for owner in ("launcher", "host")]
    assert [beat.workers for beat in beats] == [{"w1": None}, {"w1": "active"}]
    assert sorted(await driver.owners()) == ["host", "o1"]


async def test_only_a_booking_is_taken_over_and_only_once(driver):
    await register(driver, owner="launcher", metadata={"booked": True})
    await register(driver, owner="launcher", metadata={"booked": True, "pool": "p"})
    await register(driver, owner="host")
    with pytest.raises(WorkerConflict):
        await register(driver, owner="launcher", metadata={"booked": True})
    with pytest.raises(WorkerConflict):
        await register(driver, owner="other")
    assert (await worker(driver)).metadata["owner"] == "host"


async def test_who_has_booked_a_worker_may_begin_with_it(driver):
    await register(driver, metadata={"booked": True, "pool": "p"})
    assert (await register(driver)).metadata["booked"] is False
    with pytest.raises(WorkerConflict):
        await register(driver, owner="other")


async def test_a_booking_that_was_told_to_end_still_is_when_it_begins(driver):
    await register(driver, owner="launcher", metadata={"booked": True})
    await driver.set_status("w1", "terminating", {"drain_until": 7.0})
    assert (await register(driver, owner="host")).status == "terminating"
    assert await driver.draining("host") == {"w1": 7.0}
    assert await driver.draining("launcher") == {}


async def test_a_booking_that_has_run_out_or_ended_is_registered_afresh(driver, clock):
    for end in (lambda: clock.advance(LEASE + 1), lambda: None):
        await register(driver, owner="launcher", metadata={"booked": True, "decision": "d"})
        end()
        if (await worker(driver)).metadata["lease_until"] > clock.now:
            await driver.set_status("w1", "terminated", {"ended": "never launched"})
        record = await register(driver, owner="host", metadata={"pool": "p"})
        assert record.metadata == {"pool": "p", "owner": "host", "lease_until": clock.now + LEASE}
        await driver.set_status("w1", "terminated")


async def test_of_many_who_begin_with_one_booking_one_does(driver):
    await register(driver, owner="launcher", metadata={"booked": True})
    begun = [register(driver, owner=f"o{n}") for n in range(8)]
    answers = await asyncio.gather(*begun, return_exceptions=True)
    assert [type(answer) for answer in answers].count(WorkerConflict) == 7


async def test_registering_again_does_not_undo_a_drain(driver):
    await register(driver)
    await driver.set_status("w1", "terminating")
    assert (await register(driver)).status == "terminating"


@pytest.mark.parametrize("status", ["active", "terminating"])
async def test_a_live_id_under_another_owner_is_a_conflict(driver, clock, status):
    await register(driver, metadata={"a": 1})
    await driver.set_status("w1", status)
    before = await worker(driver)
    clock.advance(LEASE - 1)
    with pytest.raises(WorkerConflict, match=r"(?s)(?=.*w1)(?=.*o1)(?=.*o2)"):
        await register(driver, owner="o2")
    assert await worker(driver) == before


@pytest.mark.parametrize("how", ["terminated", "lost", "lease ran out"])
async def test_an_id_that_is_not_alive_is_taken_over_with_a_fresh_record(driver, clock, how):
    await register(driver, metadata={"a": 1})
    if how == "lease ran out":
        clock.advance(LEASE + 1)
    else:
        await driver.set_status("w1", how)
    record = await register(driver, owner="o2", metadata={"b": 2})
    assert record.status == "active"
    assert record.metadata == {"b": 2, "owner": "o2", "lease_until": clock.now + LEASE}


async def test_the_same_owner_starts_afresh_after_the_end(driver):
    await register(driver, metadata={"a": 1})
    await driver.set_status("w1", "terminated")
    record = await register(driver, metadata={"b": 2})
    assert (record.status, "a" in record.metadata) == ("active", False)


async def test_of_concurrent_owners_one_gets_the_id(driver):
    answers = await asyncio.gather(*(register(driver, owner=f"o{n}") for n in range(16)), return_exceptions=True)
    assert [type(answer) for answer in answers].count(WorkerConflict) == 15


async def test_set_status_merges_metadata_key_by_key(driver, clock):
    await register(driver, metadata={"a": {"x": 1}, "b": 1})
    await driver.set_status("w1", "terminating", {"a": {"y": 2}, "c": None, "owner": "thief", "lease_until": 0})
    record = await worker(driver)
    assert record.status == "terminating"
    assert record.metadata == {
        "a": {"y": 2},
        "b": 1,
        "c": None,
        "owner": "o1",
        "lease_until": clock.now + LEASE,
    }
    await driver.set_status("w1", "terminated")
    assert (await worker(driver)).metadata == record.metadata


@pytest.mark.parametrize("status", ["terminated", "lost"])
async def test_a_worker_that_has_ended_cannot_be_told_to_end(driver, status):
    await register(driver, metadata={"a": 1})
    await driver.set_status("w1", status, {"ended": "retired"})
    await driver.set_status("w1", "terminating", {"drained_by": "somebody"})
    record = await worker(driver)
    assert record.status == status
    assert record.metadata["ended"] == "retired"
    assert "drained_by" not in record.metadata


async def test_what_a_caller_changes_in_a_record_does_not_change_the_store(driver):
    capabilities, metadata = ["gpu"], {"list": [1]}
    record = await register(driver, capabilities=capabilities, metadata=metadata)
    capabilities.append("x")
    metadata["list"].append(2)
    record.capabilities.append("y")
    record.metadata["list"].append(3)
    record = await worker(driver)
    assert (record.capabilities, record.metadata["list"]) == (["gpu"], [1])


async def test_the_record_names_the_item_that_the_worker_holds(driver, clock):
    await register(driver, "w1")
    await register(driver, "w2")
    token = await claim(driver, "p:a", "w2")
    assert (await worker(driver, "w2")).current_task_id == "p:a"
    assert {record.worker_id: record.current_task_id for record in await driver.workers()} == {"w1": None, "w2": "p:a"}
    await driver.complete("p:a", None, token, 0.0)
    assert (await worker(driver, "w2")).current_task_id is None


async def test_metadata_that_is_not_json_is_refused(driver):
    with pytest.raises(TypeError, match="worker"):
        await register(driver, metadata={"x": {1}})
    assert await driver.workers() == []


async def test_beat_renews_the_owners_live_workers_and_tells_each_status(driver, clock):
    for name in ("active", "terminating", "terminated", "lost"):
        await register(driver, name)
        await driver.set_status(name, name)
    await register(driver, "foreign", owner="o2")
    before = {record.worker_id: record for record in await driver.workers()}
    clock.advance(20)
    beat = await driver.beat("o1", [*before, "unknown"], {}, LEASE)
    assert beat.lost == ()
    assert beat.workers == {
        "active": "active",
        "terminating": "terminating",
        "terminated": "terminated",
        "lost": "lost",
        "foreign": None,
        "unknown": None,
    }
    for record in await driver.workers():
        if record.worker_id in ("active", "terminating"):
            assert record.last_heartbeat == iso(clock.now)
            assert record.metadata["lease_until"] == clock.now + LEASE
        else:
            assert record == before[record.worker_id]


async def test_beat_renews_only_the_workers_that_it_names(driver, clock):
    await register(driver, "w1")
    await register(driver, "w2")
    clock.advance(LEASE - 1)
    await driver.beat("o1", ["w1"], {}, LEASE)
    clock.advance(2)
    assert await driver.mark_lost(None) == ["w2"]


async def test_workers_that_are_no_longer_listed_keep_what_they_had(driver, clock):
    for name in ("w1", "w2", "w3"):
        await register(driver, name)
    start = clock.now
    clock.advance(20)
    await driver.beat("o1", ["w1", "w2", "w3"], {}, LEASE)
    clock.advance(20)
    await driver.beat("o1", ["w1", "w2"], {}, LEASE)
    clock.advance(20)
    await driver.beat("o1", [], {}, LEASE)
    await driver.beat("o2", ["w1", "w2", "w3"], {}, LEASE)
    for name, at in (("w1", 40), ("w2", 40), ("w3", 20)):
        record = await worker(driver, name)
        assert (record.last_heartbeat, record.metadata["lease_until"]) == (iso(start + at), start + at + LEASE)
    clock.advance(20)
    assert await driver.mark_lost(None) == ["w3"]
    assert (await driver.beat("o1", ["w1", "w2", "w3"], {}, LEASE)).workers == {
        "w1": "active",
        "w2": "active",
        "w3": "lost",
    }
    assert (await worker(driver, "w3")).last_heartbeat == iso(start + 20)


async def test_a_beat_for_one_worker_renews_no_other(driver, clock):
    for name in ("w1", "w2", "w3"):
        await register(driver, name)
    await driver.beat("o1", ["w1", "w2", "w3"], {}, LEASE)
    clock.advance(LEASE - 1)
    assert (await driver.beat("o1", ["w2"], {}, LEASE)).workers == {"w2": "active"}
    clock.advance(2)
    assert sorted(await driver.mark_lost(None)) == ["w1", "w3"]


async def test_the_same_beat_again_tells_what_has_changed_meanwhile(driver, clock):
    names = ["w1", "w2", "w3"]
    for name in names:
        await register(driver, name)
    for _ in range(3):
        clock.advance(20)
        beat = await driver.beat("o1", names, {}, LEASE)
        assert beat.workers == dict.fromkeys(names, "active")
        beat.workers["w1"] = "changed by the caller"
    assert {record.metadata["lease_until"] for record in await driver.workers()} == {clock.now + LEASE}
    await driver.set_status("w1", "terminating")
    assert (await driver.beat("o1", names, {}, LEASE)).workers == {"w1": "terminating", "w2": "active", "w3": "active"}
    await driver.set_status("w2", "terminated")
    await driver.set_status("w1", "lost")
    await register(driver, "w1", owner="o2")
    assert (await driver.beat("o1", names, {}, LEASE)).workers == {"w1": None, "w2": "terminated", "w3": "active"}
    await register(driver, "w2")
    assert (await driver.beat("o1", names, {}, LEASE)).workers == {"w1": None, "w2": "active", "w3": "active"}
    assert await driver.mark_lost("o1") == ["w3", "w2"]  # in the order of registration, as the list of all workers
    assert (await driver.beat("o1", names, {}, LEASE)).workers == {"w1": None, "w2": "lost", "w3": "lost"}


async def test_a_worker_that_ends_keeps_its_last_heartbeat(driver, clock):
    for name in ("w1", "w2", "w3"):
        await register(driver, name)
    clock.advance(20)
    await driver.beat("o1", ["w1", "w2", "w3"], {}, LEASE)
    last = iso(clock.now), clock.now + LEASE
    await driver.set_status("w1", "terminated")
    clock.advance(20)
    await driver.beat("o1", ["w1", "w2"], {}, LEASE)
    await driver.beat("o1", ["w1", "w2", "w3"], {}, LEASE)
    await driver.set_status("w1", "active")
    record = await worker(driver, "w1")
    assert (record.last_heartbeat, record.metadata["lease_until"]) == last
    assert await driver.mark_lost("o1") == ["w1", "w2", "w3"]
    record = await worker(driver, "w2")
    assert (record.last_heartbeat, record.metadata["lease_until"]) == (iso(clock.now), clock.now + LEASE)


async def test_a_beat_is_what_a_conflict_looks_at(driver, clock):
    for name in ("w1", "w2"):
        await register(driver, name)
    for _ in range(5):
        clock.advance(LEASE - 1)
        await driver.beat("o1", ["w1", "w2"], {}, LEASE)
    clock.advance(LEASE - 1)
    with pytest.raises(WorkerConflict):
        await register(driver, "w1", owner="o2")
    await driver.beat("o1", ["w2", "other"], {}, LEASE)
    clock.advance(2)
    taken = await register(driver, "w1", owner="o2")
    assert taken.metadata == {"owner": "o2", "lease_until": clock.now + LEASE}
    with pytest.raises(WorkerConflict):
        await register(driver, "w2", owner="o2")
    clock.advance(10)
    assert (await driver.beat("o1", ["w1", "w2"], {}, 500)).workers == {"w1": None, "w2": "active"}
    assert (await worker(driver, "w1")).metadata["lease_until"] == clock.now - 10 + LEASE
    clock.advance(LEASE)
    assert await driver.mark_lost(None) == ["w1"]
    assert [record.worker_id for record in await driver.workers()] == ["w2", "w1"]


async def test_the_lease_of_a_beat_may_be_shorter_than_that_of_the_registration(driver, clock):
    for name in ("w1", "w2"):
        await register(driver, name, lease=1000)
    await driver.beat("o1", ["w1", "w2"], {}, 5)
    clock.advance(6)
    await register(driver, "w1")
    assert await driver.mark_lost(None) == ["w2"]


async def test_mark_lost_takes_live_workers_whose_lease_ran_out(driver, clock):
    for name in ("w1", "w2", "w3"):
        await register(driver, name)
    await driver.set_status("w2", "terminating")
    await driver.set_status("w3", "terminated")
    await register(driver, "long", lease=1000)
    assert await driver.mark_lost(None) == []
    clock.advance(LEASE + 1)
    assert sorted(await driver.mark_lost(None)) == ["w1", "w2"]
    assert await driver.mark_lost(None) == []
    assert (await driver.beat("o1", ["w1"], {}, LEASE)).workers == {"w1": "lost"}
    statuses = {record.worker_id: record.status for record in await driver.workers()}
    assert statuses == {"w1": "lost", "w2": "lost", "w3": "terminated", "long": "active"}


async def test_mark_lost_of_an_owner_takes_all_its_live_workers_and_its_locks(driver):
    await register(driver, "w1")
    await register(driver, "w2")
    await register(driver, "w3", owner="o2")
    await driver.set_status("w2", "terminated")
    await driver.lock("k", "o1", LEASE)
    assert await driver.mark_lost("nobody") == []
    assert await driver.mark_lost("o1") == ["w1"]
    assert await driver.mark_lost("o1") == []
    assert (await worker(driver, "w3")).status == "active"
    assert await driver.lock("k", "o2", LEASE)


async def test_owners_are_those_of_claims_and_live_registrations(driver):
    assert await driver.owners() == []
    await register(driver, "w1", owner="registered")
    token = await claim(driver, "p:a", owner="claiming")
    assert sorted(await driver.owners()) == ["claiming", "registered"]
    await driver.complete("p:a", None, token, 0.0)
    await driver.set_status("w1", "terminated")
    assert await driver.owners() == []


@weird
async def test_weird_worker_ids(driver, text):
    await register(driver, text, owner=text, host=text, capabilities=[text], metadata={text: text})
    record = await worker(driver, text)
    assert (record.worker_id, record.host, record.capabilities, record.metadata[text]) == (text, text, [text], text)
    await driver.set_status(text, "terminating", {text: [text]})
    assert (await driver.beat(text, [text], {}, LEASE)).workers == {text: "terminating"}
    assert await driver.mark_lost(text) == [text]


# -- locks ---------------------------------------------------------------------------------------------------------


async def test_a_lock_has_one_owner_until_it_is_unlocked(driver):
    assert await driver.lock("k", "o1", LEASE)
    assert await driver.lock("k", "o1", LEASE)
    assert not await driver.lock("k", "o2", LEASE)
    assert await driver.lock("other", "o2", LEASE)
    await driver.unlock("k", "o2")
    await driver.unlock("unknown", "o2")
    assert not await driver.lock("k", "o2", LEASE)
    await driver.unlock("k", "o1")
    assert await driver.lock("k", "o2", LEASE)


async def test_an_expired_lock_is_free(driver, clock):
    await driver.lock("k", "o1", LEASE)
    clock.advance(LEASE - 1)
    assert not await driver.lock("k", "o2", LEASE)
    clock.advance(2)
    assert await driver.lock("k", "o2", LEASE)
    assert not await driver.lock("k", "o1", LEASE)


async def test_taking_a_lock_again_and_a_beat_renew_it(driver, clock):
    await driver.lock("k", "o1", LEASE)
    clock.advance(LEASE - 1)
    await driver.lock("k", "o1", LEASE)
    clock.advance(LEASE - 1)
    await driver.beat("o1", [], {}, LEASE)
    await driver.beat("o2", [], {}, LEASE)
    clock.advance(LEASE - 1)
    assert not await driver.lock("k", "o2", LEASE)
    clock.advance(2)
    assert await driver.lock("k", "o2", LEASE)


async def test_of_concurrent_lockers_one_wins(driver):
    assert sum(await asyncio.gather(*(driver.lock("k", f"o{n}", LEASE) for n in range(32)))) == 1


# -- entries -------------------------------------------------------------------------------------------------------


async def test_entries_are_put_read_replaced_and_dropped(driver):
    assert await driver.get("k") == (False, None)
    await driver.put("k", {"a": [1]})
    assert await driver.get("k") == (True, {"a": [1]})
    await driver.put("k", None)
    assert await driver.get("k") == (True, None)
    await driver.drop("k")
    await driver.drop("k")
    assert await driver.get("k") == (False, None)


async def test_entries_are_copies_of_json(driver):
    value = {"list": [1]}
    await driver.put("k", value)
    value["list"].append(2)
    (await driver.get("k"))[1]["list"].append(3)
    assert await driver.get("k") == (True, {"list": [1]})
    with pytest.raises(TypeError, match="k"):
        await driver.put("k", {1, 2})
    assert await driver.get("k") == (True, {"list": [1]})


@weird
async def test_weird_entry_keys_do_not_meet(driver, text):
    near = [text, text + " ", text.upper() + "!", ""]
    for key in near:
        await driver.put(key, {key: key})
    for key in near:
        assert await driver.get(key) == (True, {key: key})
    await driver.drop(text)
    assert [(await driver.get(key))[0] for key in near] == [False, True, True, True]


async def test_a_big_entry(driver):
    await driver.put("k", "å" * 5_000_000)
    assert await driver.get("k") == (True, "å" * 5_000_000)


# -- snapshots -----------------------------------------------------------------------------------------------------


def row(
    execution_id: str, event: str | None = "state_enter", channel: str | None = None, body: bytes = b"{}"
) -> SnapshotRow:
    return SnapshotRow(execution_id, f"{execution_id}/step_000001", body, event, channel)


async def save(driver: Any, *names: str) -> None:
    for name in names:
        await driver.save_snapshot(row(name), None, None)


async def saved(driver: Any) -> set[str]:
    return {found.execution_id for found in await driver.snapshots(None, None)}


async def test_a_snapshot_is_replaced_and_read_as_it_was_saved(driver, clock):
    assert await driver.load_snapshot("x") is None
    await driver.save_snapshot(row("x", body=bytes(range(256))), None, None)
    clock.advance(5)
    await driver.save_snapshot(SnapshotRow("x", "x/2", b"\0\xff", "waiting", "ch"), None, None)
    assert await driver.load_snapshot("x") == SnapshotRow("x", "x/2", b"\0\xff", "waiting", "ch", clock.now)
    assert await saved(driver) == {"x"}


async def test_snapshots_filters_and_comes_oldest_first_without_bodies(driver, clock):
    for name, event, channel in [
        ("c", "waiting", "ch"),
        ("a", "state_enter", None),
        ("b", "waiting", "other"),
        ("d", None, "ch"),
    ]:
        await driver.save_snapshot(row(name, event, channel), None, None)
        clock.advance(1)

    async def found(event: str | None, channel: str | None) -> list[str]:
        rows = await driver.snapshots(event, channel)
        assert {each.body for each in rows} <= {b""}
        return [each.execution_id for each in rows]

    assert await found(None, None) == ["c", "a", "b", "d"]
    assert await found("waiting", None) == ["c", "b"]
    assert await found(None, "ch") == ["c", "d"]
    assert await found("waiting", "ch") == ["c"]
    assert await found("machine_end", None) == []
    await driver.save_snapshot(row("c", "waiting", "ch"), None, None)
    assert await found("waiting", None) == ["b", "c"]


async def test_a_fenced_snapshot_needs_the_live_claim(driver, clock):
    token = await claim(driver, "p:a")
    await driver.save_snapshot(row("p:a"), ("p:a", token), None)
    await driver.save_snapshot(row("p:a:child"), ("p:a", token), None)
    clock.advance(LEASE + 1)
    (heir,) = await driver.claim("p", "w2", "o2", 1, LEASE, ())
    before = await driver.load_snapshot("p:a")
    with pytest.raises(LeaseLost, match="p:a"):
        await driver.save_snapshot(row("p:a", body=b"zombie"), ("p:a", token), "p:a:")
    with pytest.raises(LeaseLost, match="p:a"):
        await driver.save_snapshot(row("p:a:new"), ("p:a", token), None)
    assert await driver.load_snapshot("p:a") == before
    assert await saved(driver) == {"p:a", "p:a:child"}
    await driver.save_snapshot(row("p:a", body=b"heir"), ("p:a", heir.token), "p:a:")
    assert (await driver.load_snapshot("p:a")).body == b"heir"
    assert await saved(driver) == {"p:a"}
    await driver.complete("p:a", None, heir.token, 0.0)
    with pytest.raises(LeaseLost):
        await driver.save_snapshot(row("p:a"), ("p:a", heir.token), None)
    assert await saved(driver) == set()


async def test_a_fence_on_an_unknown_item_is_refused(driver):
    with pytest.raises((LeaseLost, KeyError), match="gone"):
        await driver.save_snapshot(row("x"), ("gone", 1), None)
    assert await saved(driver) == set()


@pytest.mark.parametrize(
    "prefix", ["run:map:", "a_b:", "a%:", "A:", "é:", "[a]*?:", "{{ x }}:", "it's:", "🔑:", "../:"]
)
async def test_saving_drops_what_starts_with_the_prefix_and_nothing_else(driver, prefix):
    doomed = {prefix, f"{prefix}0", f"{prefix}1:deep", f"{prefix}é🔑", f"{prefix}~"}
    spared = {prefix[:-1], f"{prefix[:-1]};", f"x{prefix}0", f"{prefix[:-1]}x:0", "axb:0", "a:0", "ab:", "z"} - doomed
    spared |= {prefix.swapcase() + "0"} - doomed
    await save(driver, *doomed, *spared)
    await driver.save_snapshot(row(f"{prefix}me"), None, prefix)
    assert await saved(driver) == spared | {f"{prefix}me"}
    for name in spared:
        assert (await driver.load_snapshot(name)).execution_id == name
    for name in doomed:
        assert await driver.load_snapshot(name) is None


async def test_the_saved_snapshot_itself_survives_its_own_prefix(driver):
    await save(driver, "x:1", "x:1:a")
    await driver.save_snapshot(row("x:1", body=b"new"), None, "x:1")
    assert await saved(driver) == {"x:1"}
    assert (await driver.load_snapshot("x:1")).body == b"new"


async def test_drop_snapshots_takes_the_execution_and_its_descendants(driver):
    await save(driver, "x", "x:a", "x:a:b", "x;", "xy", "xy:a", "y:x:a", "X:a")
    await driver.drop_snapshots("x")
    await driver.drop_snapshots("unknown")
    assert await saved(driver) == {"x;", "xy", "xy:a", "y:x:a", "X:a"}


@weird
async def test_weird_execution_ids(driver, text):
    await driver.save_snapshot(SnapshotRow(text, text, text.encode(), text, text), None, None)
    await save(driver, f"{text}:child", f"{text}x")
    assert (await driver.load_snapshot(text)).body == text.encode()
    assert [found.execution_id for found in await driver.snapshots(text, text)] == [text]
    await driver.drop_snapshots(text)
    assert await saved(driver) == {f"{text}x"}


async def test_a_big_snapshot(driver):
    body = bytes(range(256)) * 20_000
    await driver.save_snapshot(row("x", body=body), None, None)
    assert (await driver.load_snapshot("x")).body == body


# -- signals -------------------------------------------------------------------------------------------------------


async def test_messages_of_a_channel_come_first_in_first_out(driver, clock):
    ids = []
    for n in range(5):
        ids.append(await driver.send("ch", {"n": n}))
        await driver.send("other", {"n": -n})
        clock.advance(1)
    waiting = await driver.peek("ch")
    assert [signal.data["n"] for signal in waiting] == list(range(5))
    for n in range(5):
        signal = await driver.consume("ch")
        assert isinstance(signal, Signal)
        assert (signal.id, signal.channel, signal.data) == (ids[n], "ch", {"n": n})
        assert signal.created_at == iso(clock.now - 5 + n)
    assert await driver.consume("ch") is None
    assert len(await driver.peek("other")) == 5


async def test_sending_at_one_instant_keeps_the_order_and_the_ids_apart(driver):
    ids = [await driver.send("ch", n) for n in range(200)]
    assert len(set(ids)) == 200
    assert [(await driver.consume("ch")).id for _ in range(200)] == ids


async def test_each_message_is_consumed_once(driver):
    await asyncio.gather(*(driver.send("ch", n) for n in range(50)))
    taken = await asyncio.gather(*(driver.consume("ch") for _ in range(80)))
    assert sorted(signal.data for signal in taken if signal) == list(range(50))
    assert await driver.peek("ch") == []


async def test_channels_are_those_with_messages(driver):
    assert await driver.channels() == []
    assert await driver.peek("ch") == []
    assert await driver.consume("ch") is None
    await driver.send("b", 1)
    await driver.send("a", 1)
    await driver.send("a", 2)
    assert sorted(await driver.channels()) == ["a", "b"]
    await driver.consume("b")
    await driver.consume("a")
    assert await driver.channels() == ["a"]


async def test_messages_are_copies_of_json(driver):
    data = {"list": [1]}
    await driver.send("ch", data)
    data["list"].append(2)
    (await driver.peek("ch"))[0].data["list"].append(3)
    assert (await driver.consume("ch")).data == {"list": [1]}
    with pytest.raises(TypeError, match="ch"):
        await driver.send("ch", {1})
    assert await driver.channels() == []


@weird
async def test_weird_channels_and_messages(driver, text):
    await driver.send(text, {text: text})
    await driver.send(text + "x", None)
    assert sorted(await driver.channels()) == sorted([text, text + "x"])
    assert (await driver.consume(text)).data == {text: text}
    assert await driver.consume(text) is None


async def test_a_big_message(driver):
    await driver.send("ch", ["å" * 5_000_000])
    assert (await driver.consume("ch")).data == ["å" * 5_000_000]


async def test_close_can_be_called_twice(driver):
    await driver.put("k", 1)
    await driver.close()
    await driver.close()
