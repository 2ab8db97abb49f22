"""The store contract, part 4: what the items that wait require, counted as they change their states."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from flatfleet.runtime.stores.records import SUSPECT, Claim, Failure, NewItem
from flatfleet.runtime.stores.sqlite import SQLiteDriver

LEASE = 60.0


def new(name: str, *requires: str, **options: Any) -> NewItem:
    return NewItem(id=f"p:{name}", key=name, data=None, requires=requires, **options)


async def take(driver: Any, *capabilities: str, n: int = 1, worker: str = "w", owner: str = "o") -> list[Claim]:
    return await driver.claim("p", worker, owner, n, LEASE, capabilities)


async def recounted(driver: Any) -> dict[tuple[str, ...], int]:
    """What `requirements` should say, by the items."""
    items = await driver.items("p", None, 10_000, None)
    return dict(Counter(item.requires for item in items if item.requires and item.state in ("ready", "delayed")))


async def test_waiting_items_are_counted_by_what_they_require(driver, clock):
    assert await driver.requirements("p") == {}
    await driver.push("p", [new("a"), new("b", "gpu"), new("c", "gpu"), new("d", "spot", "gpu")])
    await driver.push("p", [new("e", "gpu", not_before=clock.now + 60), new("b", "spot")])
    await driver.push("q", [NewItem(id="q:a", key="a", data=None, requires=("gpu",))])
    assert await driver.requirements("p") == {("gpu",): 3, ("gpu", "spot"): 1}
    assert await driver.requirements("q") == {("gpu",): 1}
    assert await driver.requirements("nothing") == {}


async def test_sets_are_sorted_and_name_each_once(driver):
    await driver.push("p", [new("a", "b", "a", "b"), new("b", "a", "b")])
    assert await driver.requirements("p") == {("a", "b"): 2}
    assert (await driver.item("p:a")).requires == ("a", "b")


async def test_a_claimed_item_waits_no_more_and_a_returned_one_again(driver, clock):
    await driver.push("p", [new("a", "gpu"), new("b", "gpu")])
    (a,) = await take(driver, "gpu")
    assert await driver.requirements("p") == {("gpu",): 1}
    await driver.release(a.id, a.token)
    assert await driver.requirements("p") == {("gpu",): 2}
    a, b = await take(driver, "gpu", "spot", n=2)
    assert await driver.requirements("p") == {}
    assert await driver.fail(a.id, Failure("E", "x", retry_after=5), a.token, 0.0) == "delayed"
    assert await driver.fail(b.id, Failure("E", "x", retry_after=0), b.token, 0.0) == "ready"
    assert await driver.requirements("p") == {("gpu",): 2}
    clock.advance(6)
    assert await driver.requirements("p") == {("gpu",): 2}
    assert len(await take(driver, "gpu", n=2)) == 2
    assert await driver.requirements("p") == {}


async def test_who_ends_requires_nothing_and_a_retried_item_does_again(driver):
    await driver.push("p", [new("done", "gpu"), new("dead", "gpu"), new("given up", "gpu"), new("held", "gpu")])
    done, dead = await take(driver, "gpu", n=2)
    await driver.complete(done.id, None, done.token, 0.0)
    await driver.fail(dead.id, Failure("E", "x", permanent=True), dead.token, 0.0)
    assert await driver.cancel("p", ["p:given up"]) == 1
    assert await driver.requirements("p") == {("gpu",): 1}
    assert len(await take(driver, "gpu", n=2)) == 1
    assert await driver.cancel("p", ["p:held"]) == 1
    assert await driver.requirements("p") == {}
    assert await driver.retry("p", None) == 3
    assert await driver.retry("p", None) == 0
    assert await driver.requirements("p") == {("gpu",): 3}


@pytest.mark.parametrize("crashed", [False, True])
async def test_what_a_dead_process_held_requires_again(driver, clock, crashed):
    await driver.push("p", [new("a", "gpu"), new("b", "gpu", max_crashes=1), new("c", "gpu")])
    await take(driver, "gpu", n=2)
    assert await driver.hand_back(owner="o", crashed=crashed) == 2
    assert await driver.requirements("p") == {("gpu",): 2 if crashed else 3} == await recounted(driver)


async def test_an_expired_claim_requires_again_once_it_is_handed_back(driver, clock):
    await driver.push("p", [new("a", "gpu")])
    await take(driver, "gpu")
    clock.advance(LEASE + 1)
    assert await take(driver, "spot") == []
    assert await driver.requirements("p") == {("gpu",): 1}
    (again,) = await take(driver, "gpu")
    assert (again.id, again.crashes, await driver.requirements("p")) == ("p:a", 1, {})


async def test_a_refused_change_counts_nothing(driver):
    await driver.push("p", [new("a", "gpu")])
    (a,) = await take(driver, "gpu")
    for call in (driver.release(a.id, a.token + 1), driver.fail(a.id, Failure("E", "x"), a.token - 1, 0.0)):
        with pytest.raises(Exception, match="token"):
            await call
    assert await driver.retry("p", [a.id]) == 0
    assert await driver.requirements("p") == {}


async def test_counts_and_pools_know_nothing_of_requirements(driver):
    await driver.push("p", [new("a", "waiting"), new("b", "ready", "dead"), new("c", "[]")])
    counts = await driver.counts("p")
    assert (counts.waiting, counts.left, counts.total) == (3, 3, 3)
    assert await driver.pools() == ["p"]
    assert await driver.requirements("p") == {("waiting",): 1, ("dead", "ready"): 1, ("[]",): 1}


async def test_housekeeping_keeps_what_waits(driver):
    await driver.push("p", [new("a", "gpu"), new("b", "spot")])
    (a,) = await take(driver, "gpu")
    await driver.gc(time.time())
    assert await driver.requirements("p") == {("spot",): 1}
    await driver.release(a.id, a.token)
    await driver.gc(time.time())
    assert await driver.requirements("p") == {("gpu",): 1, ("spot",): 1}


async def test_who_can_serve_more_gets_all_lines_in_one_order(driver):
    wants = [(), ("gpu",), ("spot",), ("gpu", "spot"), ("tpu",)]
    await driver.push("p", [new(f"{n}", *wants[n % 5], priority=n % 3) for n in range(30)])
    able = [n for n in range(30) if n % 5 != 4]
    wanted = [str(n) for n in sorted(able, key=lambda n: (-(n % 3), n))]
    claims = await take(driver, "gpu", "spot", n=10) + await take(driver, "spot", "gpu", "eu", n=100)
    assert [claim.key for claim in claims] == wanted
    assert await driver.requirements("p") == {("tpu",): 6}


@pytest.mark.parametrize("capabilities", [(), ("gpu",)])
async def test_of_the_suspects_of_all_lines_one_process_holds_one(driver, capabilities):
    await driver.push("p", [new("a", *capabilities), new("b"), new("c", *capabilities), new("d")])
    for _ in range(SUSPECT):
        for n in range(4):
            await take(driver, *capabilities, owner=f"doomed {n}")
        for n in range(4):
            await driver.hand_back(owner=f"doomed {n}", crashed=True)
    await driver.push("p", [new("e", *capabilities), new("f")])
    assert [claim.key for claim in await take(driver, *capabilities, n=9)] == ["a", "e", "f"]
    assert await take(driver, *capabilities, n=9) == []
    assert [claim.key for claim in await take(driver, *capabilities, n=9, owner="o2")] == ["b"]
    await driver.complete("p:a", None, None, 0.0)
    assert [claim.key for claim in await take(driver, *capabilities, n=9)] == ["c"]


async def test_sqlite_finds_the_next_item_behind_any_number_that_others_have_to_serve(tmp_path, clock):
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    await driver.push("p", [*(new(f"g{n}", "gpu") for n in range(500)), *(new(f"t{n}", "tpu") for n in range(500))])
    await driver.push("p", [new("last"), new("and needy", "spot")])
    steps = 0

    def counted() -> None:
        nonlocal steps
        steps += 1

    await driver.counts("p")
    await driver._group._connection.set_progress_handler(counted, 100)
    assert [claim.key for claim in await take(driver)] == ["last"]
    assert [claim.key for claim in await take(driver, "spot")] == ["and needy"]
    assert (await driver.metrics("p", 0, 60)).oldest == clock.now
    assert steps < 40
    await driver.close()
