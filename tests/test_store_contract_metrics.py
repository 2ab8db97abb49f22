"""The store contract, part 7: what a store measures of a pool — over every driver, on a simulated clock."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from flatfleet.runtime.stores.buckets import KEPT, Bucket, merged, quantile
from flatfleet.runtime.stores.records import POLICY, Failure, NewItem
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatfleet.runtime.stores.text import stamp
from flatmachines import WorkerRegistration

START = 1_700_000_000.0


def new(name: str, **fields: Any) -> NewItem:
    return NewItem(f"p:{name}", name, {}, **fields)


async def claim(driver: Any, n: int = 1, worker: str = "w", lease: float = 60.0) -> list[Any]:
    return await driver.claim("p", worker, "me", n, lease, ())


async def measured(driver: Any, since: float = 0.0, most: int = 10_000) -> Any:
    return await driver.metrics("p", since, most)


async def register(driver: Any, clock: Any, name: str, owner: str = "me", **metadata: Any) -> None:
    worker = WorkerRegistration(worker_id=name, started_at=stamp(clock.now))
    await driver.register(worker, owner, 60.0, {"pool": "p", **metadata})


def total(activity: Any, name: str) -> Any:
    return sum(getattr(bucket, name) for bucket in activity.buckets)


async def test_nothing_is_known_of_a_pool_that_is_not_there(driver, clock):
    found = await measured(driver)
    assert found.at == clock.now
    assert found.buckets == ()
    assert found.crew == {}
    assert (found.last_arrival, found.last_end, found.oldest, found.counts.total) == (None, None, None, 0)


async def test_arrivals_and_the_gaps_between_them(driver, clock):
    await driver.push("p", [new("a")])
    clock.advance(2)
    await driver.push("p", [new("b"), new("c")])
    clock.advance(4)
    await driver.push("p", [new("c"), new("a")])  # known
    await driver.push("p", [new("d")])
    await driver.push("q", [NewItem("q:a", "a", {})])
    found = await measured(driver)
    assert [(bucket.at - START, bucket.arrivals) for bucket in found.buckets] == [(0, 1), (2, 2), (6, 1)]
    assert (total(found, "gaps"), total(found, "gap"), total(found, "gap2")) == (3, 6.0, 4.0 + 16.0)
    assert found.last_arrival == clock.now
    assert found.counts.waiting == 4


async def test_waits_services_and_responses(driver, clock):
    await driver.push("p", [new("a"), new("b")])
    clock.advance(3)
    first, second = await claim(driver, 2)
    clock.advance(5)
    await driver.complete(first.id, 1, first.token, 0.0)
    clock.advance(2)
    await driver.fail(second.id, Failure("E", "x", retry_after=10.0), second.token, 0.0)
    found = await measured(driver)
    assert (total(found, "waits"), total(found, "wait")) == (2, 6.0)
    assert (total(found, "completed"), total(found, "failed"), total(found, "provider")) == (1, 1, 0)
    assert (total(found, "service"), total(found, "service2"), total(found, "response")) == (12.0, 25.0 + 49.0, 8.0)
    assert found.last_end == clock.now
    assert found.last_arrival == START
    assert quantile(merged(b.hist for b in found.buckets), 0.5) == pytest.approx(3.0, rel=0.1)


async def test_a_retried_item_waits_from_when_it_may_be_claimed_again(driver, clock):
    await driver.push("p", [new("a")])
    (one,) = await claim(driver)
    clock.advance(100)
    await driver.fail(one.id, Failure("E", "x", retry_after=10.0), one.token, 0.0)
    clock.advance(9)
    assert (await measured(driver)).oldest is None
    clock.advance(5)
    assert (await measured(driver)).oldest == clock.now - 4
    (one,) = await claim(driver)
    assert total(await measured(driver), "wait") == 4.0
    clock.advance(50)
    await driver.release(one.id, one.token)
    clock.advance(7)
    assert (await measured(driver)).oldest == clock.now - 7
    (one,) = await claim(driver)
    assert total(await measured(driver), "wait") == 11.0
    await driver.cancel("p", [one.id])
    clock.advance(30)
    await driver.retry("p", None)
    clock.advance(1)
    await claim(driver)
    assert total(await measured(driver), "wait") == 12.0


async def test_an_item_for_later_waits_from_then(driver, clock):
    await driver.push("p", [new("a", not_before=clock.now + 60)])
    clock.advance(61)
    assert (await measured(driver)).oldest == clock.now - 1
    await claim(driver)
    assert total(await measured(driver), "wait") == 1.0


async def test_a_providers_fault_counts_apart(driver, clock):
    await driver.push("p", [new("a")])
    (one,) = await claim(driver)
    clock.advance(1)
    await driver.fail(one.id, Failure("RateLimit", "429", consume=False), one.token, 0.0)
    found = await measured(driver)
    assert (total(found, "provider"), total(found, "failed"), total(found, "service")) == (1, 0, 0.0)


async def test_what_is_refused_is_not_measured(driver, clock):
    await driver.push("p", [new("a")])
    (one,) = await claim(driver)
    before = await measured(driver)
    with pytest.raises(Exception, match="token"):
        await driver.complete(one.id, 1, one.token + 1, 0.0)
    with pytest.raises(TypeError):
        await driver.complete(one.id, {1}, one.token, 0.0)
    assert (await measured(driver)).buckets == before.buckets


async def test_the_oldest_waits_in_any_line(driver, clock):
    assert (await measured(driver)).oldest is None
    await driver.push("p", [new("low", priority=-1), new("needy", requires=("gpu",))])
    clock.advance(1)
    await driver.push("p", [new(f"high{n}", priority=5) for n in range(30)])
    assert (await measured(driver)).oldest == START
    await driver.claim("p", "w", "me", 31, 60.0, ("gpu",))
    assert (await measured(driver)).oldest == START
    await driver.claim("p", "w", "me", 1, 5.0, ())
    assert (await measured(driver)).oldest is None
    clock.advance(8)
    assert (await measured(driver)).oldest == clock.now - 3  # its lease is over


async def test_a_window_and_at_most_so_many_seconds(driver, clock):
    for n in range(5):
        await driver.push("p", [new(str(n))])
        clock.advance(10)
    assert [b.at - START for b in (await measured(driver, START + 20.9)).buckets] == [20, 30, 40]
    assert [b.at - START for b in (await measured(driver, 0.0, 2)).buckets] == [30, 40]
    assert (await measured(driver, 0.0, 0)).buckets == ()
    empty = await measured(driver, clock.now)
    assert empty.buckets == ()
    assert empty.last_arrival == START + 40


async def test_what_is_older_than_an_hour_goes_and_the_last_times_stay(driver, clock):
    await driver.push("p", [new("a")])
    (one,) = await claim(driver)
    await driver.complete(one.id, 1, one.token, 0.0)
    clock.advance(KEPT)
    await driver.push("p", [new("b")])
    assert len((await measured(driver)).buckets) == 2
    clock.advance(1)
    await driver.push("p", [new("c")])
    found = await measured(driver)
    assert [b.at - START for b in found.buckets] == [KEPT, KEPT + 1]
    assert (found.last_end, found.last_arrival) == (START, clock.now)
    assert total(found, "gap") == KEPT + 1


async def test_a_clock_that_was_set_back_goes_on_in_the_newest_second(driver, clock):
    await driver.push("p", [new("a")])
    clock.advance(-100)
    await driver.push("p", [new("b")])
    found = await measured(driver)
    assert [(b.at - START, b.arrivals, b.gap) for b in found.buckets] == [(0, 2, 0.0)]


async def test_what_a_caller_changes_does_not_change_the_store(driver):
    await driver.push("p", [new("a")])
    (await measured(driver)).buckets[0].arrivals = 99
    assert total(await measured(driver), "arrivals") == 1


async def test_a_worker_is_starting_until_it_has_asked_for_an_item(driver, clock):
    await register(driver, clock, "w", parallelism=4)
    await register(driver, clock, "v")
    await register(driver, clock, "other", owner="them", parallelism=0)
    assert (await measured(driver)).crew == {"me": (5, 5, 0), "them": (1, 1, 0)}
    clock.advance(12)
    assert await claim(driver) == []
    clock.advance(12)
    await claim(driver)
    found = await measured(driver)
    assert found.crew == {"me": (5, 1, 0), "them": (1, 1, 0)}
    assert found.startup == pytest.approx(12.0, abs=0.01)
    await driver.set_status("w", "terminating", {"by": "me"})
    assert (await measured(driver)).crew["me"] == (1, 1, 4)
    await driver.set_status("w", "terminated")
    clock.advance(40)
    assert (await measured(driver)).crew == {}  # their leases are over
    await register(driver, clock, "w")
    assert (await measured(driver)).crew == {"me": (1, 1, 0)}
    clock.advance(2)
    await claim(driver)
    found = await measured(driver)
    assert found.crew == {"me": (1, 0, 0)}
    assert found.startup == pytest.approx(12 + 0.2 * (2 - 12), abs=0.01)


async def test_who_follows_a_heartbeat_is_counted_until_its_lease_is_over(driver, clock):
    names = [f"w{n}" for n in range(6)]
    for name in names:
        await register(driver, clock, name, parallelism=2)
    await register(driver, clock, "v", owner="them", parallelism=True)
    await driver.set_status("w1", "terminating")
    await driver.beat("me", names[:4], {}, 60.0)
    assert (await measured(driver)).crew == {"me": (10, 10, 2), "them": (1, 1, 0)}
    await claim(driver, worker="w0")
    await driver.set_status("w2", "active", {"parallelism": 5})
    clock.advance(50)
    await driver.beat("me", names[:4], {}, 60.0)
    assert (await measured(driver)).crew == {"me": (13, 11, 2), "them": (1, 1, 0)}
    clock.advance(20)
    assert (await measured(driver)).crew == {"me": (9, 7, 2)}  # w4, w5 and v have not been heard of
    clock.advance(41)
    assert (await measured(driver)).crew == {}


async def test_a_worker_of_another_pool_or_of_no_registration_is_not_counted(driver, clock):
    await register(driver, clock, "w", pool="q")
    await claim(driver, worker="stranger")
    assert (await measured(driver)).crew == {}


async def test_decisions_of_an_autoscaler_make_no_fleet(driver):
    await driver.decide(f"p{POLICY}", {"id": "a"})
    assert await driver.fleets() == []
    assert [each["id"] for each in await driver.decisions(f"p{POLICY}", 9)] == ["a"]
    await driver.decide("p", {"id": "b"})
    assert await driver.fleets() == ["p"]


@pytest.mark.parametrize("seed", range(3))
async def test_sums_are_those_of_what_happened(driver, clock, seed):
    random, held, sums = Random(seed), [], {"arrivals": 0, "completed": 0, "failed": 0, "service": 0.0, "waits": 0}
    for n in range(200):
        clock.advance(random.expovariate(2.0))
        if random.random() < 0.5:
            await driver.push("p", [new(str(n))])
            sums["arrivals"] += 1
        if random.random() < 0.5 and (found := await claim(driver, lease=1e6)):
            held.append((clock.now, found[0]))
            sums["waits"] += 1
        if held and random.random() < 0.5:
            began, one = held.pop(random.randrange(len(held)))
            good = random.random() < 0.8
            if good:
                await driver.complete(one.id, 1, one.token, 0.0)
            else:
                await driver.fail(one.id, Failure("E", "x", permanent=True), one.token, 0.0)
            sums["completed" if good else "failed"] += 1
            sums["service"] += clock.now - began
    found = await measured(driver)
    assert {name: total(found, name) for name in sums} == {**sums, "service": pytest.approx(sums["service"])}
    assert sum(merged(b.hist for b in found.buckets).values()) == sums["waits"]


async def test_an_operation_that_fails_leaves_nothing_of_what_it_noted(tmp_path, clock):
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)

    def fails(tx):
        tx.note("p", "pushed", 1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await driver._write(fails)
    assert (await measured(driver)).buckets == ()
    await driver.close()


# -- the histogram -----------------------------------------------------------------------------------------------------


def test_a_quantile_of_the_histogram_is_within_nine_percent():
    random, bucket = Random(1), Bucket(0)
    times = sorted(random.lognormvariate(0, 2) for _ in range(2000))
    for seconds in times:
        bucket.add("claimed", 0.0, seconds)
    for level in (0.01, 0.5, 0.95, 1.0):
        assert quantile(bucket.hist, level) == pytest.approx(times[max(0, round(level * 2000) - 1)], rel=0.1)
    assert quantile({}, 0.5) is None
    assert quantile({"0": 3}, 0.95) == 0.0


def test_a_bucket_is_the_same_after_it_was_written():
    bucket = Bucket(7)
    bucket.add("pushed", 1.5, 3)
    bucket.add("claimed", 2.5, 0.25)
    bucket.add("completed", 3.5, 1.0, 2.0)
    bucket.add("started", 3.5, -5.0)
    assert Bucket.of(7, bucket.text()) == bucket
    assert bucket.startup == 0.0
