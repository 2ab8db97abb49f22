"""The store contract, part 3: steering. Claim limits, pauses, cancelled items, and the states that an attempt has walked."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Any

import pytest
from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.records import SUSPECT, WALKED, Claim, Counts, Failure, NewItem, SnapshotRow

LEASE = 60.0


def new(name: str, **options: Any) -> NewItem:
    return NewItem(id=f"p:{name}", key=name, data=None, **options)


async def take(driver: Any, n: int = 1, limit: int | None = None, **options: Any) -> list[Claim]:
    pool, worker, owner = options.get("pool", "p"), options.get("worker", "w"), options.get("owner", "o")
    return await driver.claim(pool, worker, owner, n, LEASE, (), limit)


async def keys(driver: Any, n: int = 100, **options: Any) -> list[str]:
    return [claim.key for claim in await take(driver, n, **options)]


async def outcomes(driver: Any, item_id: str) -> list[str]:
    return [attempt.outcome for attempt in await driver.attempts(item_id)]


async def recount(driver: Any, pool: str = "p") -> None:
    """The counters say what the items say."""
    items = Counter(item.state for item in await driver.items(pool, None, 10_000, None))
    counts = await driver.counts(pool)
    assert (counts.waiting + counts.delayed, counts.claimed + counts.expired, counts.completed, counts.dead) == (
        items["ready"] + items["delayed"],
        items["claimed"],
        items["completed"],
        items["dead"],
    )


@pytest.fixture
def other(driver, reopen, clock):
    """The same store as another process has it open; a store in memory has no other process."""
    return reopen(driver, clock)


# -- claim limits ------------------------------------------------------------------------------------------------------


async def test_no_more_are_claimed_than_the_limit(driver):
    await driver.push("p", [new(str(n)) for n in range(10)])
    assert await keys(driver, 2, limit=3) == ["0", "1"]
    assert await keys(driver, 10, limit=3) == ["2"]
    assert await keys(driver, 10, limit=3) == []
    await driver.complete("p:1", None, 1, 0.0)
    assert await keys(driver, 10, limit=3, worker="v", owner="u") == ["3"]
    await driver.fail("p:2", Failure("E", "x", retry_after=9.0), 1, 0.0)
    await driver.release("p:0", 1)
    assert await keys(driver, 10, limit=3) == ["0", "4"]
    assert (await driver.counts("p")).claimed == 3


@pytest.mark.parametrize("limit", [-1, 0, 1, 4, 5])
async def test_a_limit_below_what_is_claimed_gives_nothing(driver, limit):
    await driver.push("p", [new(str(n)) for n in range(10)])
    assert len(await take(driver, 5)) == 5
    assert await take(driver, 5, limit) == []
    assert (await driver.counts("p")).claimed == 5
    assert len(await take(driver, 5, 7)) == 2
    assert len(await take(driver, 5)) == 3


@pytest.mark.parametrize("n", [0, -1])
async def test_who_asks_for_nothing_gets_nothing(driver, n):
    await driver.push("p", [new("a")])
    assert await take(driver, n) == []
    assert await take(driver, n, 5) == []


async def test_a_limit_is_of_one_pool_and_keeps_the_order(driver):
    await driver.push("q", [NewItem(f"q:{n}", str(n), None) for n in range(5)])
    await take(driver, 5, pool="q")
    await driver.push("p", [new("low"), new("high", priority=5), new("mid", priority=1)])
    assert await keys(driver, 5, limit=2) == ["high", "mid"]


async def test_claims_whose_lease_is_over_do_not_count(driver, clock):
    await driver.push("p", [new(str(n)) for n in range(3)])
    await take(driver, 2)
    clock.advance(LEASE)
    claims = await take(driver, 5, 2, owner="new")
    assert [(claim.key, claim.token) for claim in claims] == [("0", 2), ("1", 2)]
    assert await driver.counts("p") == Counts(waiting=1, claimed=2)


async def test_of_many_who_claim_at_once_no_more_get_one_than_the_limit(driver, other):
    await driver.push("p", [new(str(n)) for n in range(100)])
    drivers = (driver, other)
    claims = await asyncio.gather(*(take(drivers[n % 2], 3, 7, worker=f"w{n}") for n in range(60)))
    assert sum(map(len, claims)) == 7
    assert (await driver.counts("p")).claimed == 7


async def test_a_pool_is_worked_off_under_its_limit_by_two_processes(driver, other):
    await driver.push("p", [new(str(n)) for n in range(120)])
    held, most = set(), 0

    async def work(mine, name):
        nonlocal most
        while (await mine.counts("p")).left:
            claims = await take(mine, 2, 5, worker=name)
            held.update(claim.id for claim in claims)
            most = max(most, len(held))
            await asyncio.sleep(0)
            for claim in claims:
                held.discard(claim.id)
                await mine.complete(claim.id, None, claim.token, 0.0)

    await asyncio.gather(*(work((driver, other)[n % 2], f"w{n}") for n in range(12)))
    assert 3 <= most <= 5
    assert await driver.counts("p") == Counts(completed=120)
    assert {len(await driver.attempts(f"p:{n}")) for n in range(120)} == {1}


# -- pause -------------------------------------------------------------------------------------------------------------


async def test_nobody_claims_from_a_paused_pool_until_it_is_resumed(driver, other, clock):
    await driver.push("p", [new("a"), new("b")])
    assert await driver.paused("p") is None
    await driver.pause("p", math.inf)
    assert await other.paused("p") == math.inf
    assert await take(driver, 5) == await take(other, 5) == []
    assert await driver.counts("p") == Counts(waiting=2)
    clock.advance(1e9)
    assert await take(other, 5) == []
    await other.pause("p", None)
    assert await driver.paused("p") is None
    assert await keys(driver) == ["a", "b"]


async def test_a_pause_ends_by_the_clock(driver, clock):
    await driver.push("p", [new("a")])
    until = clock.now + 10
    await driver.pause("p", until)
    clock.advance(9.5)
    assert await driver.paused("p") == until
    assert await take(driver) == []
    clock.advance(0.5)
    assert await driver.paused("p") is None
    assert await keys(driver) == ["a"]


async def test_the_last_pause_counts(driver, clock):
    await driver.push("p", [new("a")])
    await driver.pause("p", math.inf)
    await driver.pause("p", clock.now + 1)
    assert await driver.paused("p") == clock.now + 1
    await driver.pause("p", clock.now - 1)
    assert await driver.paused("p") is None
    await driver.pause("p", None)
    await driver.pause("p", None)
    assert await keys(driver) == ["a"]


async def test_a_pause_is_of_one_pool_and_may_come_before_its_items(driver):
    await driver.pause("p", math.inf)
    await driver.push("p", [new("a")])
    await driver.push("q", [NewItem("q:a", "a", None)])
    assert await take(driver) == []
    assert await keys(driver, pool="q") == ["a"]
    assert await driver.pools() == ["p", "q"]


async def test_who_holds_an_item_of_a_paused_pool_goes_on(driver, clock):
    await driver.push("p", [new(name) for name in "abcd"])
    await take(driver, 4)
    await driver.pause("p", math.inf)
    assert (await driver.beat("o", [], {f"p:{name}": 1 for name in "abcd"}, LEASE)).lost == ()
    await driver.complete("p:a", 1, 1, 0.0)
    assert await driver.fail("p:b", Failure("E", "x", permanent=True), 1, 0.0) == "dead"
    await driver.release("p:c", 1)
    assert await driver.retry("p", None) == 1
    assert await driver.counts("p") == Counts(completed=1, waiting=2, claimed=1)
    clock.advance(LEASE)
    assert await take(driver, 5) == []
    await driver.pause("p", None)
    assert sorted(await keys(driver)) == ["b", "c", "d"]


async def test_claims_and_pauses_that_come_together_take_turns(driver):
    await driver.push("p", [new(str(n)) for n in range(5)])
    answers = await asyncio.gather(
        take(driver),
        driver.pause("p", math.inf),
        take(driver),
        driver.pause("p", None),
        take(driver),
        driver.pause("p", math.inf),
        take(driver),
    )
    assert [len(each) for each in answers[::2]] == [1, 0, 1, 0]


async def test_a_pause_and_what_was_walked_survive_a_restart(driver, other):
    if not driver.durable:
        return
    await driver.push("p", [new("a"), new("b")])
    await take(driver)
    await driver.complete("p:a", None, 1, 0.0, ("x", "y"))
    await driver.pause("p", math.inf)
    await driver.close()
    assert await other.paused("p") == math.inf
    assert await take(other) == []
    assert [attempt.walked for attempt in await other.attempts("p:a")] == [("x", "y")]


# -- cancel ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "delayed", "due", "claimed", "expired", "suspect"])
async def test_an_item_that_has_not_ended_is_cancelled_in_every_state(driver, clock, state):
    delay = {"delayed": 100.0, "due": 10.0}.get(state, 0.0)
    await driver.push("p", [new("a", not_before=clock.now + delay if delay else 0.0), new("b")])
    if state == "suspect":
        for _ in range(SUSPECT):
            await take(driver)
            await driver.hand_back(owner="o", crashed=True)
    if state in ("claimed", "expired"):
        await take(driver)
    clock.advance({"due": 10.0, "expired": LEASE}.get(state, 1.0))
    before = await driver.counts("p")
    assert before.left == 2
    assert await driver.cancel("p", ["p:a"]) == 1
    item = await driver.item("p:a")
    assert (item.state, item.error_type, item.finished) == ("dead", "Cancelled", clock.now)
    assert item.error
    assert (item.worker, item.owner, item.result) == (None, None, None)
    assert await driver.counts("p") == Counts(waiting=1, dead=1)
    assert await driver.errors("p") == {"Cancelled": 1}
    assert await driver.next_due("p") is None
    ended = {"claimed": ["cancelled"], "expired": ["cancelled"], "suspect": ["crashed"] * SUSPECT}.get(state, [])
    assert await outcomes(driver, "p:a") == ended
    clock.advance(1000)
    assert await keys(driver) == ["b"]
    await recount(driver)


async def test_the_attempt_of_a_cancelled_item_says_so(driver, clock):
    await driver.push("p", [new("a")])
    await take(driver, worker="w1")
    started = clock.now
    clock.advance(5)
    await driver.cancel("p", ["p:a"])
    (attempt,) = await driver.attempts("p:a")
    assert (attempt.token, attempt.worker, attempt.started, attempt.ended) == (1, "w1", started, clock.now)
    assert (attempt.outcome, attempt.error_type, attempt.walked) == ("cancelled", "Cancelled", ())
    item = await driver.item("p:a")
    assert (item.attempts, item.crashes, item.error) == (0, 0, attempt.error)


@pytest.mark.parametrize(
    ("body", "walked"),
    [
        (b'{"current_state": "judge"}', ("judge",)),
        (b'{"current_state": 7}', ()),
        (b"{}", ()),
        (b"[]", ()),
        (b"no JSON", ()),
    ],
)
async def test_the_attempt_of_a_cancelled_item_names_the_state_of_its_checkpoint(driver, body, walked):
    await driver.push("p", [new("a")])
    await take(driver, worker="w1")
    await driver.save_snapshot(SnapshotRow("p:a", "p:a/1", body, "state_enter"), ("p:a", 1), None)
    await driver.cancel("p", ["p:a"])
    (attempt,) = await driver.attempts("p:a")
    assert attempt.walked == walked


async def test_what_has_ended_is_unknown_or_of_another_pool_is_left_alone(driver):
    await driver.push("p", [new("done"), new("dead")])
    await driver.push("q", [NewItem("q:a", "a", None)])
    await take(driver, 2)
    await driver.complete("p:done", 7, 1, 0.0)
    await driver.fail("p:dead", Failure("E", "x", permanent=True), 1, 0.0)
    before = [await driver.item(name) for name in ("p:done", "p:dead", "q:a")]
    assert await driver.cancel("p", ["p:done", "p:dead", "q:a", "p:nobody", ""]) == 0
    assert await driver.cancel("nowhere", ["p:done"]) == 0
    assert await driver.cancel("p", []) == 0
    assert [await driver.item(name) for name in ("p:done", "p:dead", "q:a")] == before
    assert await outcomes(driver, "p:dead") == ["failed"]
    assert await driver.pools() == ["p", "q"]


async def test_an_item_named_twice_is_cancelled_once(driver):
    await driver.push("p", [new("a"), new("b"), new("c")])
    await take(driver)
    assert await driver.cancel("p", ["p:b", "p:a", "p:b", "p:a"]) == 2
    assert await driver.cancel("p", ["p:a"]) == 0
    assert await outcomes(driver, "p:a") == ["cancelled"]
    assert await driver.counts("p") == Counts(waiting=1, dead=2)


async def test_the_holder_of_a_cancelled_item_has_lost_it(driver):
    await driver.push("p", [new("a"), new("b")])
    await take(driver, 2)
    await driver.cancel("p", ["p:a"])
    before = (await driver.item("p:a"), await driver.attempts("p:a"), await driver.counts("p"))
    for token in (1, None):
        with pytest.raises(LeaseLost):
            await driver.complete("p:a", "late", token, 1.0, ("s",))
        with pytest.raises(LeaseLost):
            await driver.fail("p:a", Failure("E", "x"), token, 1.0)
        with pytest.raises(LeaseLost):
            await driver.release("p:a", token)
    with pytest.raises(LeaseLost):
        await driver.save_snapshot(SnapshotRow("p:a", "k", b"{}", "state_enter"), ("p:a", 1), None)
    assert (await driver.item("p:a"), await driver.attempts("p:a"), await driver.counts("p")) == before
    assert await driver.load_snapshot("p:a") is None
    assert (await driver.beat("o", [], {"p:a": 1, "p:b": 1}, LEASE)).lost == ("p:a",)
    assert await driver.hand_back(owner="o", crashed=True) == 1


async def test_the_checkpoints_of_a_cancelled_item_go_with_its_inboxes(driver):
    await driver.push("p", [new("a"), new("ab")])
    for name in ("p:a", "p:a:s:1", "p:ab"):
        await driver.save_snapshot(SnapshotRow(name, "k", b"{}", "waiting", "c"), None, None)
    await driver.send("c", 1)
    assert len(await driver.deliver()) == 3
    assert await driver.cancel("p", ["p:a"]) == 1
    assert [row.execution_id for row in await driver.snapshots(None, None)] == ["p:ab"]
    assert await driver.take("c", "p:a") is None
    assert await driver.deliver() == ["p:ab"]


async def test_a_cancelled_item_can_be_retried(driver):
    await driver.push("p", [new("a")])
    await take(driver)
    await driver.cancel("p", ["p:a"])
    assert await driver.retry("p", None) == 1
    item = await driver.item("p:a")
    assert (item.state, item.error_type, item.error, item.finished) == ("ready", None, None, None)
    (claim,) = await take(driver)
    assert claim.token == 2
    await driver.complete("p:a", 1, 2, 0.0)
    assert await outcomes(driver, "p:a") == ["cancelled", "completed"]


async def test_many_are_cancelled_in_one_step_and_the_others_keep_their_order(driver, clock):
    items = [new(str(n), priority=n % 3, not_before=clock.now + n if n % 5 == 0 else 0.0) for n in range(200)]
    await driver.push("p", items)
    held = {claim.key for claim in await take(driver, 20)}
    clock.advance(100)
    await driver.counts("p")
    gone = [item for n, item in enumerate(items) if n % 2]
    await driver.beat("o", [], {f"p:{key}": 1 for key in held}, LEASE)
    assert await driver.cancel("p", [item.id for item in gone]) == 100
    await recount(driver)
    clock.advance(200)
    left = [item for n, item in enumerate(items) if not n % 2]
    again = await keys(driver, 200, owner="new")
    assert again == [item.key for item in sorted(left, key=lambda item: -item.priority)]
    await recount(driver)


async def test_an_item_is_cancelled_or_completed_but_never_both(driver, other):
    await driver.push("p", [new(str(n)) for n in range(40)])
    claims = await take(driver, 40)

    async def complete(claim):
        try:
            await driver.complete(claim.id, 1, claim.token, 0.0)
        except LeaseLost:
            return 0
        return 1

    cancels = [other.cancel("p", [claim.id]) for claim in reversed(claims)]
    answers = await asyncio.gather(
        *(each for pair in zip(map(complete, claims), cancels, strict=True) for each in pair)
    )
    assert sum(answers) == 40
    counts = await driver.counts("p")
    assert counts == Counts(completed=sum(answers[::2]), dead=sum(answers[1::2]))
    assert {len(await driver.attempts(claim.id)) for claim in claims} == {1}


# -- walked ------------------------------------------------------------------------------------------------------------


async def test_what_an_attempt_has_walked_is_kept_with_it(driver):
    await driver.push("p", [new("a", max_attempts=9)])
    await take(driver)
    await driver.fail("p:a", Failure("E", "x", retry_after=0.0), 1, 0.0, ["one", "zwei ü"])
    await take(driver)
    await driver.fail("p:a", Failure("E", "x", consume=False, retry_after=0.0), 2, 0.0, ("one",))
    await take(driver)
    await driver.release("p:a", 3, ("one", "two", "one"))
    await take(driver)
    await driver.complete("p:a", None, 4, 0.5, ["done"])
    assert [(each.outcome, each.walked) for each in await driver.attempts("p:a")] == [
        ("failed", ("one", "zwei ü")),
        ("provider", ("one",)),
        ("released", ("one", "two", "one")),
        ("completed", ("done",)),
    ]
    assert (await driver.attempts("p:a"))[-1].cost == 0.5


@pytest.mark.parametrize("end", ["complete", "fail", "release"])
async def test_the_last_states_are_kept(driver, end):
    await driver.push("p", [new("a")])
    await take(driver)
    walked = [f"s{n}" for n in range(WALKED + 7)]
    if end == "complete":
        await driver.complete("p:a", None, 1, 0.0, walked)
    elif end == "fail":
        await driver.fail("p:a", Failure("E", "x"), 1, 0.0, walked)
    else:
        await driver.release("p:a", 1, walked)
    (attempt,) = await driver.attempts("p:a")
    assert attempt.walked == tuple(walked[7:])


async def test_who_says_nothing_and_who_died_has_walked_nothing(driver, clock):
    await driver.push("p", [new("a", max_attempts=9)])
    await take(driver)
    await driver.release("p:a", 1)
    await take(driver)
    await driver.hand_back(owner="o", crashed=True)
    await take(driver)
    await driver.hand_back(owner="o", crashed=False)
    await take(driver)
    clock.advance(LEASE)
    await take(driver)
    await driver.complete("p:a", None, 5, 0.0)
    assert await outcomes(driver, "p:a") == ["released", "crashed", "released", "crashed", "completed"]
    assert {attempt.walked for attempt in await driver.attempts("p:a")} == {()}
