"""The store contract, part 4: what the items that wait require, counted as they change their states."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from flatfleet.runtime.stores.records import Claim, Failure, NewItem

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
