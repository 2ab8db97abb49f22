"""The store contract, part 4: housekeeping. What nobody needs goes, and nothing else; the file gets shorter."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flatfleet.runtime.errors import StoreUnavailable
from flatfleet.runtime.stores import sqlite_gc
from flatfleet.runtime.stores.leftovers import CONFIG_GRACE
from flatfleet.runtime.stores.ray import RayDriver
from flatfleet.runtime.stores.records import Failure, NewItem, SnapshotRow
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatmachines import WorkerRegistration

DAY = 86_400.0
KINDS = ("workers", "executions", "decisions", "attempts", "configs")


def gone(**kinds: int) -> dict[str, int]:
    return dict.fromkeys(KINDS, 0) | kinds


def new(name: str, **options: Any) -> NewItem:
    return NewItem(id=f"p:{name}", key=name, data=None, **options)


async def take(driver: Any, n: int = 1, worker: str = "w", lease: float = 60.0) -> Any:
    return await driver.claim("p", worker, "o", n, lease, ())


async def register(driver: Any, *names: str, status: str | None = None, lease: float = 60.0) -> None:
    for name in names:
        await driver.register(WorkerRegistration(worker_id=name), "o", lease, {})
        if status is not None:
            await driver.set_status(name, status)


async def save(driver: Any, *names: str, event: str = "machine_end", channel: str | None = None, **body: Any) -> None:
    for name in names:
        row = SnapshotRow(name, "k", json.dumps(body).encode() if body else b"\xff{", event, channel)
        await driver.save_snapshot(row, None, None)


async def saved(driver: Any) -> list[str]:
    return sorted(row.execution_id for row in await driver.snapshots(None, None))


async def names(driver: Any) -> list[str]:
    return [record.worker_id for record in await driver.workers()]


async def test_there_is_nothing_to_do_in_an_empty_store(driver, clock):
    assert await driver.gc(clock.now) == gone()
    assert await driver.gc(0.0) == gone()


# -- workers -----------------------------------------------------------------------------------------------------------


async def test_workers_that_ended_before_go_with_their_results(driver, clock):
    await register(driver, "done", status="terminated")
    await register(driver, "died", status="lost")
    await register(driver, "lives")
    await register(driver, "drains", status="terminating")
    for name in ("done", "died", "lives", "done2"):
        await driver.put(f"{name}/result", {"status": "drained"})
    clock.advance(10)
    await register(driver, "late", status="terminated")
    assert await driver.gc(clock.now) == gone(workers=2)
    assert await names(driver) == ["lives", "drains", "late"]
    found = {name: (await driver.get(f"{name}/result"))[0] for name in ("done", "died", "lives", "done2")}
    assert found == {"done": False, "died": False, "lives": True, "done2": True}
    assert await driver.gc(clock.now) == gone()


async def test_a_worker_that_was_many_times_alive_ended_after_its_last_beat(driver, clock):
    await register(driver, "a", "b")
    clock.advance(100)
    await driver.beat("o", ["a", "b"], {}, 60.0)
    for name in ("a", "b"):
        await driver.set_status(name, "terminated")
    assert await driver.gc(clock.now - 50) == gone()
    assert await driver.gc(clock.now + 1) == gone(workers=2)


async def test_a_lost_worker_that_still_holds_an_item_stays(driver, clock):
    await driver.push("p", [new("a")])
    await register(driver, "w", status="lost")
    await take(driver, worker="w", lease=10 * DAY)
    clock.advance(DAY)
    assert await driver.gc(clock.now) == gone()
    await driver.release("p:a", 1)
    assert await driver.gc(clock.now) == gone(workers=1)


# -- executions --------------------------------------------------------------------------------------------------------


async def test_ended_executions_that_belong_to_no_item_go(driver, clock):
    await save(driver, "ended", "other")
    await save(driver, "running", event="state_enter")
    await save(driver, "parked", event="waiting", channel="c")
    await save(driver, "awake", event="woken")
    clock.advance(10)
    await save(driver, "just")
    assert await driver.gc(clock.now) == gone(executions=2)
    assert await saved(driver) == ["awake", "just", "parked", "running"]
    assert await driver.gc(clock.now) == gone()


async def test_what_an_item_needs_stays_and_what_it_does_not_goes(driver, clock):
    await driver.push("p", [new(name, max_attempts=1) for name in ("ready", "held", "dead", "over", "done")])
    await take(driver, 5, lease=10 * DAY)
    await driver.release("p:ready", 1)
    await driver.fail("p:dead", Failure("E", "x"), 1, 0.0)
    await driver.fail("p:over", Failure("E", "x"), 1, 0.0)
    await driver.complete("p:done", None, 1, 0.0)
    await save(driver, "p:ready", "p:ready:s:1", "p:held", "p:over", "p:over:s:1", "p:done:s:1", "p:dead:s:1")
    await save(driver, "p:dead", "p:dead:s:2", event="state_enter")
    clock.advance(10)
    assert await driver.gc(clock.now) == gone(executions=2)
    assert await saved(driver) == [
        "p:dead",
        "p:dead:s:1",
        "p:dead:s:2",
        "p:held",
        "p:over:s:1",  # a dead item's: only a retry drops them
        "p:ready",
        "p:ready:s:1",
    ]


async def test_children_stay_as_long_as_one_they_descend_from(driver, clock):
    await save(driver, "a", "b:s:1:t:x", "c:s:2", event="state_enter")
    await save(driver, "a:s:1", "a:s:1:t:x", "b:s:1:t:y")
    await save(driver, "ended", "ended:s:1", "ended:s:1:t:1")
    await save(driver, "d:s:1", event="waiting", channel="c")
    clock.advance(10)
    assert await driver.gc(clock.now) == gone(executions=6)
    assert await saved(driver) == ["a", "a:s:1", "a:s:1:t:x", "d:s:1"]


async def test_an_execution_named_like_a_pool_takes_no_item_of_it_along(driver, clock):
    await driver.push("p", [new("a")])
    await save(driver, "p")
    await save(driver, "p:a", "p:a:s:1", event="state_enter")
    clock.advance(10)
    assert await driver.gc(clock.now) == gone(executions=1)
    assert await saved(driver) == ["p:a", "p:a:s:1"]


async def test_an_execution_that_somebody_runs_stays(driver, clock):
    await save(driver, "again", "free")
    clock.advance(10)
    await driver.lock("again", "o", 60.0)
    assert await driver.gc(clock.now) == gone(executions=1)
    assert await saved(driver) == ["again"]
    clock.advance(60)
    assert await driver.gc(clock.now) == gone(executions=1)


async def test_inboxes_go_with_their_executions_and_messages_that_wait_stay(driver, clock):
    for name in ("ends", "x:s:1", "stays"):
        await save(driver, name, event="waiting", channel="c")
    await driver.send("c", 1)
    assert len(await driver.deliver()) == 3
    await save(driver, "ends")
    await save(driver, "x:s:1")
    await driver.send("other", "waits")
    await driver.send("c", 2)
    await driver.take("nothing", "nobody")
    clock.advance(10)
    assert await driver.gc(clock.now) == gone(executions=2)
    assert [(await driver.take("c", name)) is None for name in ("stays",)] == [False]
    assert await driver.deliver() == ["stays"]
    assert [each.data for each in await driver.peek("other")] == ["waits"]
    assert [each.data for each in await driver.peek("c")] == [2]
    await save(driver, "ends", event="waiting", channel="d")
    assert await driver.deliver() == ["stays"]


async def test_an_inbox_without_a_snapshot_is_kept_for_who_may_come_back(driver, clock):
    await driver.send("c", "for root")
    assert (await driver.take("c", "root")).data == "for root"
    await driver.send("c", "for child")
    assert (await driver.take("c", "x:s:1")).data == "for child"
    assert await driver.gc(clock.now) == gone()  # nothing is older than now
    clock.advance(10)
    assert await driver.gc(clock.now) == gone(executions=1)
    assert (await driver.take("c", "root")).data == "for root"
    assert await driver.take("c", "x:s:1") is None


async def test_a_message_that_has_just_come_keeps_what_has_ended_long_ago(driver, clock):
    await save(driver, "m")
    clock.advance(10)
    await driver.send("c", "new")
    await driver.take("c", "m")
    assert await driver.gc(clock.now) == gone()
    assert (await driver.take("c", "m")).data == "new"


# -- decisions, attempts, configs ----------------------------------------------------------------------------------------


async def test_the_newest_hundred_decisions_of_a_fleet_stay(driver, clock):
    for n in range(130):
        await driver.decide("f", {"id": f"d{n}", "target": n, "outcome": "applied"})
        clock.advance(1)
    for n in range(50):
        await driver.decide("g", {"id": f"d{n}"})
    assert await driver.gc(clock.now - 120) == gone(decisions=10)
    assert await driver.gc(clock.now + 1) == gone(decisions=20)
    assert [each["id"] for each in await driver.decisions("f", 1000)] == [f"d{n}" for n in range(30, 130)]
    assert len(await driver.decisions("g", 1000)) == 50
    assert await driver.target("f") == 129
    assert await driver.gc(clock.now + 1) == gone()


async def test_the_newest_ten_attempts_of_a_completed_item_stay(driver, clock):
    await driver.push("p", [new("a"), new("b"), new("c")])
    for token in range(1, 15):
        await take(driver, 3)
        for name in "abc":
            await driver.release(f"p:{name}", token)
    for _ in range(2):
        await take(driver)
        await driver.complete("p:a" if not _ else "p:b", "result", 15, 0.0)
        clock.advance(10)
    before = await driver.attempts("p:a")
    assert await driver.gc(clock.now - 15) == gone(attempts=5)
    assert await driver.attempts("p:a") == before[5:]
    assert [len(await driver.attempts(f"p:{name}")) for name in "abc"] == [10, 15, 14]
    assert (await driver.item("p:a")).result == "result"
    assert await driver.gc(clock.now) == gone(attempts=5)
    assert await driver.gc(clock.now) == gone()
    assert len(await driver.attempts("p:c")) == 14


async def test_configs_that_no_snapshot_refers_to_go_after_a_day(driver, clock):
    used, unused, late = (hashlib.sha256(name).hexdigest() for name in (b"used", b"unused", b"late"))
    for digest in (used, unused):
        await driver.put(f"config:{digest}", "raw")
    await driver.put("configuration", 1)
    await driver.put(f"other/config:{unused}", 1)
    await save(driver, "m", event="waiting", channel="c", config_hash=used, context={"n": 1})
    await save(driver, "n", event="state_enter")  # a snapshot that is no JSON
    await save(driver, "o", event="state_enter", other=None)
    clock.advance(CONFIG_GRACE)
    assert await driver.gc(clock.now) == gone()
    clock.advance(1)
    await driver.put(f"config:{late}", "raw")
    assert await driver.gc(clock.now - CONFIG_GRACE - 2) == gone()
    assert await driver.gc(clock.now) == gone(configs=1)
    found = [(await driver.get(key))[0] for key in (f"config:{used}", f"config:{unused}", f"config:{late}")]
    assert found == [True, False, True]
    assert (await driver.get("configuration"))[0]
    assert (await driver.get(f"other/config:{unused}"))[0]


async def test_a_config_that_is_put_again_is_new(driver, clock):
    await driver.put("config:x", "raw")
    clock.advance(CONFIG_GRACE)
    await driver.put("config:x", "raw")
    clock.advance(CONFIG_GRACE)
    assert await driver.gc(clock.now) == gone()
    clock.advance(1)
    assert await driver.gc(clock.now) == gone(configs=1)


# -- a large store -----------------------------------------------------------------------------------------------------


async def fill(driver: Any, n: int) -> None:
    await driver.push("p", [new(str(k), max_attempts=99) for k in range(n)])
    for token in range(1, 12):
        await take(driver, n)
        await asyncio.gather(*(driver.release(f"p:{k}", token) for k in range(n)))
    await take(driver, n)
    await asyncio.gather(*(driver.complete(f"p:{k}", None, 12, 0.0) for k in range(n)))
    await asyncio.gather(*(register(driver, f"w{k}", status="terminated") for k in range(n)))
    await asyncio.gather(*(save(driver, f"m{k}", f"m{k}:s:1") for k in range(n)))
    for k in range(n):
        await driver.send(f"c{k}", k)
        await driver.take(f"c{k}", f"x:s:{k}")
    await driver.send("waits", 1)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
async def test_it_works_in_steps_between_which_others_have_their_turn(driver, clock, monkeypatch, chunk):
    monkeypatch.setattr(sqlite_gc, "CHUNK", chunk)
    await fill(driver, 20)
    clock.advance(10)
    assert await driver.gc(clock.now) == gone(workers=20, executions=60, attempts=40)
    assert await driver.gc(clock.now) == gone()
    assert await saved(driver) == await names(driver) == []
    assert (await driver.counts("p")).completed == 20
    assert await driver.channels() == ["waits"]


async def test_what_is_needed_again_when_its_turn_comes_stays(driver, clock, monkeypatch):
    """Between the look and the deletion a worker and an execution come back."""
    if not isinstance(driver, SQLiteDriver):
        return
    await register(driver, "w", status="terminated")
    await save(driver, "m")
    clock.advance(10)
    read = driver._group.read

    async def late(look, *args):
        page = await read(look, *args)
        if page.found == ["w"]:
            await register(driver, "w")
        if page.found == ["m"]:
            await save(driver, "m", event="waiting", channel="c")
        return page

    monkeypatch.setattr(driver._group, "read", late)
    assert await driver.gc(clock.now) == gone()
    assert (await names(driver), await saved(driver)) == (["w"], ["m"])


KILLED = """
import asyncio, os, sys
from flatfleet.runtime.stores import sqlite_gc
from flatfleet.runtime.stores.group import GroupCommit
from flatfleet.runtime.stores.sqlite import SQLiteDriver

async def main(path, now, steps):
    sqlite_gc.CHUNK = 5
    run = GroupCommit.run
    async def counted(self, *args, **more):
        nonlocal steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), 9)
        return await run(self, *args, **more)
    GroupCommit.run = counted
    await SQLiteDriver(path, clock=lambda: now).gc(now)

asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize("steps", [1, 5, 14])
async def test_killed_in_the_midst_it_leaves_what_the_next_one_finishes(tmp_path, clock, steps):
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    await fill(driver, 20)
    await driver.close()
    clock.advance(10)
    argv = [sys.executable, "-c", KILLED, str(tmp_path / "fleet.db"), str(clock.now), str(steps)]
    child = await asyncio.to_thread(subprocess.run, argv, timeout=60, stderr=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL
    again = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    found = await again.gc(clock.now)
    assert 0 < sum(found.values()) < 120
    assert await again.gc(clock.now) == gone()
    assert await saved(again) == await names(again) == []
    db = await again._group.run(lambda tx: tx.db.execute("PRAGMA integrity_check").fetchone()[0])
    assert db == "ok"
    await again.close()


# -- the file ------------------------------------------------------------------------------------------------------------


def size(path: Any) -> int:
    files = [path, path.with_name(f"{path.name}-wal")]
    return sum(file.stat().st_size for file in files if file.exists())


def file_of(driver: Any) -> Path | None:
    if isinstance(driver, RayDriver):
        return Path(driver.opened.file)
    return driver._group.path if isinstance(driver, SQLiteDriver) else None


async def heavy(driver: Any, clock: Any) -> None:
    await save(driver, *(f"m{n}" for n in range(300)), body="x" * 5000)
    await driver.push("p", [new("a")])
    clock.advance(10)
    assert await driver.gc(clock.now) == gone(executions=300)


async def test_a_vacuum_makes_the_file_shorter_by_what_it_says(driver, clock):
    await heavy(driver, clock)
    path = file_of(driver)
    before = size(path) if path else 0
    won = await driver.vacuum()
    assert won == (before - size(path) if path else 0)
    assert (won > 1_000_000) == (path is not None)
    assert await driver.vacuum() < 100_000
    await driver.push("p", [new("b")])  # and the store goes on
    assert [claim.key for claim in await take(driver, 5)] == ["a", "b"]
    assert len(await driver.items("p", None, 10, None)) == 2
    assert await driver.gc(clock.now) == gone()


async def test_a_shorter_file_is_not_taken_for_a_damaged_one(tmp_path, clock, monkeypatch):
    monkeypatch.setattr("flatfleet.runtime.stores.same_file.CHECK_EVERY", 0.0)
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    await heavy(driver, clock)
    waiting = [asyncio.create_task(driver.vacuum())] + [asyncio.create_task(take(driver)) for _ in range(20)]
    assert (await asyncio.gather(*waiting))[0] > 0
    assert (await driver.counts("p")).claimed == 1
    await driver.close()


async def test_what_others_committed_last_survives_a_vacuum(tmp_path, clock):
    """By whoever had the store open for long, and has not looked into it since."""
    driver, other = (SQLiteDriver(tmp_path / "fleet.db", clock=clock) for _ in range(2))
    await heavy(driver, clock)
    await driver.push("p", [new("b")])
    assert len(await take(other, 2)) == 2
    await other.complete("p:a", "result", 1, 0.0)
    await other.close()
    assert await driver.vacuum() > 0
    assert [item.state for item in await driver.items("p", None, 10, None)] == ["completed", "claimed"]
    assert (await driver.item("p:a")).result == "result"
    await driver.close()


async def test_a_vacuum_is_refused_while_another_process_has_the_store(tmp_path, clock):
    driver, other = (SQLiteDriver(tmp_path / "fleet.db", clock=clock) for _ in range(2))
    await heavy(driver, clock)
    assert (await other.counts("p")).waiting == 1
    before = size(tmp_path / "fleet.db")
    with pytest.raises(StoreUnavailable, match="another process has it open"):
        await driver.vacuum()
    assert size(tmp_path / "fleet.db") == before
    assert len(await take(other)) == 1  # nobody is locked out by the attempt
    await driver.push("p", [new("b")])
    assert len(await take(other)) == 1
    await other.close()
    assert await driver.vacuum() > 0
    mode = await driver._group.run(lambda tx: tx.db.execute("PRAGMA journal_mode").fetchone()[0])
    assert mode == "wal"
    late = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    assert (await late.counts("p")).claimed == 2
    await late.close()
    await driver.close()
