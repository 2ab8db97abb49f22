"""What waiting costs: random lives of workers, whom one row of their owner keeps alive, and a lounge that lets them sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from flatfleet.runtime import lounge
from flatfleet.runtime.errors import WorkerConflict
from flatfleet.runtime.stores.memory import MemoryDriver
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatmachines import WorkerRegistration
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

LEASE = 60.0
OWNERS = st.sampled_from(["o1", "o2"])
NAMES = st.sampled_from(["w1", "w2", "w3", "w4"])
STATUSES = st.sampled_from(["active", "terminating", "terminated", "lost"])


async def tables(driver: Any) -> tuple[list[Any], dict[str, Any]]:
    """The owners in the table, and what each of the workers' rows says of itself."""

    def look(tx: Any) -> Any:
        owners = [row[0] for row in tx.db.execute("SELECT owner FROM owners ORDER BY 1")]
        return owners, dict(tx.db.execute("SELECT id, follows FROM workers").fetchall())

    return await driver._group.run(look, writes=False)


async def register(driver: Any, *names: str, owner: str = "o1") -> None:
    for name in names:
        await driver.register(WorkerRegistration(worker_id=name), owner, LEASE, {})


@pytest.fixture
def sqlite(tmp_path: Any, clock: Any) -> SQLiteDriver:
    return SQLiteDriver(tmp_path / "fleet.db", clock=clock)


# -- one heartbeat for many workers ------------------------------------------------------------------------------------


def lives(open_driver: Callable[[Any], Any], reopen: Any, clock_type: type) -> type[RuleBasedStateMachine]:
    class Lives(RuleBasedStateMachine):
        """The same calls to the memory driver, which is the reference, and to another."""

        def __init__(self) -> None:
            super().__init__()
            self.clock = clock_type()
            self.runner = asyncio.Runner()
            self.driver, self.reference = open_driver(self.clock), MemoryDriver(self.clock)
            self.left_open: list[Any] = []

        def teardown(self) -> None:
            for driver in (*self.left_open, self.driver):
                self.runner.run(driver.close())
            self.runner.close()

        def both(self, call: Callable[[Any], Any]) -> None:
            answers = []
            for driver in (self.reference, self.driver):
                try:
                    answers.append(self.runner.run(call(driver)))
                except (KeyError, WorkerConflict) as error:
                    answers.append(type(error))
            expected, got = answers
            assert got == expected

        @rule(name=NAMES, owner=OWNERS, lease=st.sampled_from([LEASE, 5.0]), key=st.sampled_from("ab"))
        def register(self, name: str, owner: str, lease: float, key: str) -> None:
            worker = WorkerRegistration(worker_id=name, started_at=f"at {self.clock.now}")
            self.both(lambda driver: driver.register(worker, owner, lease, {key: self.clock.now}))

        @rule(names=st.lists(NAMES, max_size=5), owner=OWNERS, lease=st.sampled_from([LEASE, 5.0]))
        def beat(self, names: list[str], owner: str, lease: float) -> None:
            self.both(lambda driver: driver.beat(owner, names, {}, lease))

        @rule(owner=OWNERS)
        def beat_all(self, owner: str) -> None:
            self.both(lambda driver: driver.beat(owner, ["w1", "w2", "w3", "w4"], {}, LEASE))

        @rule(name=NAMES, status=STATUSES)
        def set_status(self, name: str, status: str) -> None:
            self.both(lambda driver: driver.set_status(name, status, {"was": status}))

        @rule(owner=OWNERS | st.none())
        def mark_lost(self, owner: str | None) -> None:
            async def lost(driver: Any) -> list[str]:
                return sorted(await driver.mark_lost(owner))

            self.both(lost)

        @rule(seconds=st.sampled_from([1.0, 20.0, LEASE, -3.0]))
        def advance(self, seconds: float) -> None:
            self.clock.advance(seconds)

        @precondition(lambda self: self.driver.durable)
        @rule(closed=st.booleans())
        def restart(self, closed: bool) -> None:
            old, self.driver = self.driver, reopen(self.driver, self.clock)
            if closed:
                self.runner.run(old.close())
            else:
                self.left_open.append(old)

        @invariant()
        def all_records_are_those_of_the_reference(self) -> None:
            self.both(lambda driver: driver.workers())
            self.both(lambda driver: driver.workers("w1"))

        @invariant()
        def owners_are_those_of_the_reference(self) -> None:
            async def owners(driver: Any) -> list[str]:
                return sorted(await driver.owners())

            self.both(owners)

        @precondition(lambda self: isinstance(self.driver, SQLiteDriver))
        @invariant()
        def an_owner_has_a_row_while_somebody_follows_it(self) -> None:
            owners, follows = self.runner.run(tables(self.driver))
            records = self.runner.run(self.driver.workers())
            followed = {record.metadata["owner"] for record in records if follows[record.worker_id]}
            assert set(owners) == followed
            assert {r.status for r in records if follows[r.worker_id]} <= {"active", "terminating"}

    return Lives


def test_random_lives_of_workers_are_as_the_reference_says(open_driver, reopen, clock):
    run_state_machine_as_test(
        lives(open_driver, reopen, type(clock)),
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


async def test_a_beat_writes_as_much_for_many_workers_as_for_two(sqlite, clock):
    names = [f"w{n}" for n in range(500)]
    await register(sqlite, *names)
    await sqlite.beat("o1", names, {}, LEASE)

    async def changes() -> int:
        return await sqlite._group.run(lambda tx: tx.db.total_changes)

    clock.advance(20)
    before = await changes()
    assert set((await sqlite.beat("o1", names, {}, LEASE)).workers.values()) == {"active"}
    assert await changes() - before <= 2
    assert {record.metadata["lease_until"] for record in await sqlite.workers()} == {clock.now + LEASE}


async def test_an_owner_leaves_no_row_behind(sqlite, clock):
    await register(sqlite, "w1", "w2")
    await sqlite.beat("o1", ["w1", "w2"], {}, LEASE)
    assert await tables(sqlite) == (["o1"], {"w1": 1, "w2": 1})
    await sqlite.set_status("w1", "terminated")
    assert await tables(sqlite) == (["o1"], {"w1": 0, "w2": 1})
    await sqlite.set_status("w2", "terminated")
    assert await tables(sqlite) == ([], {"w1": 0, "w2": 0})
    await sqlite.beat("o1", ["w1", "w2"], {}, LEASE)
    assert (await tables(sqlite))[0] == []
    for end in ("mark_lost", "expiry", "takeover"):
        await register(sqlite, "a", "b", owner=end)
        await sqlite.beat(end, ["a", "b"], {}, LEASE)
        assert (await tables(sqlite))[0] == [end]
        if end == "mark_lost":
            assert sorted(await sqlite.mark_lost(end)) == ["a", "b"]
        else:
            clock.advance(LEASE)
        if end == "expiry":
            assert sorted(await sqlite.mark_lost(None)) == ["a", "b"]
        elif end == "takeover":
            await register(sqlite, "a", "b", owner="next")
        assert (await tables(sqlite))[0] == []


# -- the lounge --------------------------------------------------------------------------------------------------------


class Watched(dict[Any, None]):
    """A dict that counts the keys which are looked at one by one."""

    seen = 0

    def __iter__(self) -> Any:
        for key in super().__iter__():
            self.seen += 1
            yield key


async def crowd(kit: Any, monkeypatch: pytest.MonkeyPatch, n: int, **how: Any) -> tuple[list[Any], Any]:
    """`n` waiters, and the lounge's record of them with its dicts under watch."""
    monkeypatch.setattr(lounge, "POLL", 0.001)
    waiters = kit.fleet.lounge._waiters["p"]
    for kind in ("everyone", "fresh", "leaving"):
        setattr(waiters, kind, Watched())
    tasks = [asyncio.create_task(kit.fleet.lounge.wait("p", **how)) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks, waiters


async def looked(kit: Any, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Return when the pool was looked at so many times."""
    looks, enough, counts = 0, asyncio.Event(), kit.store.driver.counts

    async def counted(pool: str) -> Any:
        nonlocal looks
        looks += 1
        if looks > times:
            enough.set()
        return await counts(pool)

    with monkeypatch.context() as patch:
        patch.setattr(kit.store.driver, "counts", counted)
        await asyncio.wait_for(enough.wait(), 5)


async def test_a_look_at_an_empty_pool_touches_nobody_who_stays(any_kit, monkeypatch):
    tasks, waiters = await crowd(any_kit, monkeypatch, 50, timeout=60)
    await looked(any_kit, monkeypatch, 5)
    assert (len(waiters), waiters.everyone.seen, waiters.fresh.seen, waiters.leaving.seen) == (50, 0, 0, 0)
    leaver = asyncio.create_task(any_kit.fleet.lounge.wait("p"))
    assert await asyncio.wait_for(leaver, 5) == "empty"
    assert (len(waiters), waiters.everyone.seen, waiters.leaving.seen) == (50, 0, 1)
    any_kit.fleet.lounge.dismiss()
    assert await asyncio.gather(*tasks) == ["dismissed"] * 50
    assert (len(waiters), len(waiters.fresh), len(waiters.leaving)) == (0, 0, 0)


async def test_a_look_that_wakes_nobody_in_vain_touches_nobody(any_kit, monkeypatch):
    """Work that nobody here can do: those who were woken for it just now are passed over without a glance."""
    pool = any_kit.store.work.pool("p")
    await pool.push({}, {"key": "gpu", "requires": ["gpu"]})
    monkeypatch.setattr(lounge, "time", type("Still", (), {"monotonic": lambda: 0.5, "time": lambda: 0.0}))
    any_kit.fleet.lounge._seen["p"] = seen = lounge._Seen()
    seen.ready = 1
    tasks, waiters = await crowd(any_kit, monkeypatch, 50, timeout=60, again=True)
    monkeypatch.setattr(lounge, "POLL", 1.0)
    for _ in range(5):
        any_kit.store.bell.ring("p")
        await pool.counts()
    assert (len(waiters), waiters.everyone.seen, waiters.fresh.seen) == (50, 0, 0)
    any_kit.fleet.lounge.dismiss()
    await asyncio.gather(*tasks)


async def test_both_kinds_wake_in_the_order_in_which_they_came(any_kit):
    order: list[int] = []

    async def wait(n: int) -> None:
        assert await any_kit.fleet.lounge.wait("p", 60 if n % 2 else None) == "woken"
        order.append(n)

    pool = any_kit.store.work.pool("p")
    await pool.push({}, {"key": "held"})
    await pool.claim("w")
    tasks = [asyncio.create_task(wait(n)) for n in range(6)]
    await asyncio.sleep(0)
    for n in range(3):
        await pool.push_many([pool.new(n), pool.new(n)])
        await asyncio.wait_for(asyncio.gather(*tasks[: 2 * n + 2]), 5)
        assert order == list(range(2 * n + 2))
        await pool.claim_many("w", 2)
    await asyncio.gather(*tasks)


async def test_who_gives_up_leaves_nothing_behind(any_kit):
    lounge_, pool = any_kit.fleet.lounge, any_kit.store.work.pool("p")
    await pool.push({}, {"key": "held"})
    await pool.claim("w")
    tasks = [asyncio.create_task(lounge_.wait("p", again=again)) for again in (True, False)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await lounge_.wait("p", 0.0) == "timeout"
    waiters = lounge_._waiters["p"]
    assert (len(waiters.everyone), len(waiters.fresh), len(waiters.leaving)) == (0, 0, 0)
