"""The store contract, part 1: work items. Every driver in tests/conftest.py passes each of these tests unchanged."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.backoff import backoff
from flatfleet.runtime.stores.records import SUSPECT, Attempt, Claim, Counts, Failure, NewItem, SnapshotRow

LEASE = 60.0
WEIRD = [
    "../../x",
    "ключ 鍵 🔑",
    """it's "quoted"; DROP TABLE items; --""",
    "{{ 7*7 }}",
    "%_*?[a-z]",
    "a:b::c:",
    " blank \n line \t",
    "null",
    "x" * 10_000,
]


def new(name: str, data: Any = None, **options: Any) -> NewItem:
    return NewItem(id=f"p:{name}", key=name, data=data, **options)


async def take(driver: Any, n: int = 1, worker: str = "w", owner: str = "o", **options: Any) -> list[Claim]:
    pool, lease = options.pop("pool", "p"), options.pop("lease", LEASE)
    return await driver.claim(pool, worker, owner, n, lease, options.pop("capabilities", ()))


async def one(driver: Any, **options: Any) -> Claim:
    (claim,) = await take(driver, **options)
    return claim


async def keys(driver: Any, n: int = 100, **options: Any) -> list[str]:
    return [claim.key for claim in await take(driver, n, **options)]


async def outcomes(driver: Any, item_id: str) -> list[str]:
    return [attempt.outcome for attempt in await driver.attempts(item_id)]


async def everything(driver: Any, item_id: str) -> tuple[Any, ...]:
    """All that may not change where an operation is refused."""
    return (
        await driver.item(item_id),
        await driver.attempts(item_id),
        await driver.counts("p"),
        await driver.next_due("p"),
        await driver.load_snapshot(item_id),
        await driver.load_snapshot(f"{item_id}:child"),
    )


async def snapshot(driver: Any, execution_id: str, event: str = "state_enter", **options: Any) -> None:
    row = SnapshotRow(execution_id, "k", b"body", event)
    await driver.save_snapshot(row, options.get("fence"), options.get("drop"))


async def saved(driver: Any) -> set[str]:
    return {row.execution_id for row in await driver.snapshots(None, None)}


# -- push ----------------------------------------------------------------------------------------------------------


async def test_push_answers_for_each_item_whether_it_was_added(driver, clock):
    assert await driver.push("p", [new("a", {"n": 1}), new("b")]) == [True, True]
    assert await driver.push("p", [new("b"), new("c"), new("a", {"n": 2})]) == [False, True, False]
    assert (await driver.counts("p")).total == 3
    item = await driver.item("p:a")
    assert (item.id, item.pool, item.key, item.state, item.data) == ("p:a", "p", "a", "ready", {"n": 1})
    assert (item.token, item.attempts, item.crashes, item.result) == (0, 0, 0, None)
    assert (item.worker, item.owner, item.error, item.error_type) == (None, None, None, None)
    assert (item.created, item.started, item.finished) == (clock.now, None, None)


async def test_push_of_one_id_twice_in_one_call_adds_it_once(driver):
    assert await driver.push("p", [new("a", 1), new("a", 2)]) == [True, False]
    assert (await driver.item("p:a")).data == 1
    assert (await driver.counts("p")).waiting == 1


async def test_push_of_nothing(driver):
    assert await driver.push("p", []) == []
    assert await driver.counts("p") == Counts()


async def test_64_concurrent_pushes_of_one_key_make_one_item(driver):
    answers = await asyncio.gather(*(driver.push("p", [new("a", n)]) for n in range(64)))
    assert sorted(answer[0] for answer in answers) == [False] * 63 + [True]
    assert await driver.counts("p") == Counts(waiting=1)
    winner = answers.index([True])
    assert (await driver.item("p:a")).data == winner


@pytest.mark.parametrize("end", ["completed", "dead"])
async def test_an_item_that_has_ended_is_not_pushed_again(driver, end):
    await driver.push("p", [new("a", max_attempts=1)])
    claim = await one(driver)
    if end == "completed":
        await driver.complete("p:a", 1, claim.token, 0.0)
    else:
        await driver.fail("p:a", Failure("E", "x"), claim.token, 0.0)
    assert await driver.push("p", [new("a")]) == [False]
    assert (await driver.item("p:a")).state == end


async def test_an_id_is_unique_across_pools(driver):
    await driver.push("p", [new("a")])
    assert await driver.push("q", [NewItem("p:a", "a", None)]) == [False]
    assert await driver.counts("q") == Counts()


@pytest.mark.parametrize("bad", [{1, 2}, b"bytes", object(), {("a", 1): 2}, [{"deep": [{"set": set()}]}]])
async def test_data_that_is_not_json_is_refused_and_nothing_is_added(driver, bad):
    with pytest.raises(TypeError, match="p:bad"):
        await driver.push("p", [new("good"), new("bad", bad), new("late")])
    assert await driver.counts("p") == Counts()
    assert await driver.item("p:good") is None


async def test_what_a_caller_changes_later_does_not_change_the_store(driver):
    data, result = {"list": [1]}, {"out": [1]}
    await driver.push("p", [new("a", data)])
    data["list"].append(2)
    claim = await one(driver)
    assert claim.data == {"list": [1]}
    claim.data["list"].append(3)
    (await driver.item("p:a")).data["list"].append(4)
    assert (await driver.item("p:a")).data == {"list": [1]}
    await driver.complete("p:a", result, claim.token, 0.0)
    result["out"].append(2)
    (await driver.item("p:a")).result["out"].append(3)
    assert (await driver.item("p:a")).result == {"out": [1]}


@pytest.mark.parametrize(
    "data", [None, True, 0, -1.5, 2**53, "", "{{ 7*7 }}", "\ud800", [], {}, {"": [None, {"a": "ß"}]}]
)
async def test_json_of_every_kind_comes_back_as_it_was(driver, data):
    await driver.push("p", [new("a", data)])
    claim = await one(driver)
    assert claim.data == data
    await driver.complete("p:a", data, claim.token, 0.0)
    item = await driver.item("p:a")
    assert item.data == item.result == data


async def test_five_megabytes_are_no_problem(driver):
    big = {"text": "å" * 5_000_000}
    await driver.push("p", [new("a", big)])
    claim = await one(driver)
    assert claim.data == big
    await driver.complete("p:a", big, claim.token, 0.0)
    assert (await driver.item("p:a")).result == big


@pytest.mark.parametrize("text", WEIRD, ids=lambda text: text[:12].strip())
async def test_weird_names_and_texts_are_data(driver, text):
    await driver.push(text, [NewItem(id=text, key=text, data={text: text}, requires=(text,)), NewItem("plain", "k", 0)])
    (claim,) = await driver.claim(text, text, text, 1, LEASE, [text])
    assert (claim.id, claim.key, claim.pool, claim.data, claim.claimed_by) == (text, text, text, {text: text}, text)
    assert await driver.owners() == [text]
    assert (await driver.beat(text, [], {text: claim.token}, LEASE)).lost == ()
    assert await driver.fail(text, Failure(text, text, retry_after=0), claim.token, 0.0) == "ready"
    (attempt,) = await driver.attempts(text)
    assert (attempt.worker, attempt.error_type) == (text, text)
    assert attempt.error == text
    (claim,) = await driver.claim(text, text, text, 1, LEASE, [text])
    await driver.complete(text, {text: [text]}, claim.token, 0.0)
    assert (await driver.item(text)).result == {text: [text]}
    assert await driver.pools() == [text]
    assert [item.id for item in await driver.items(text, None, 10, text)] == ["plain"]


# -- claim ---------------------------------------------------------------------------------------------------------


async def test_a_claim_carries_what_its_holder_needs(driver, clock):
    await driver.push("p", [new("a", {"n": 1}, max_attempts=5)])
    created = clock.now
    clock.advance(10)
    claim = await one(driver, worker="w7", owner="host-1", lease=45)
    assert isinstance(claim, Claim)
    assert (claim.id, claim.key, claim.pool, claim.data) == ("p:a", "a", "p", {"n": 1})
    assert (claim.status, claim.claimed_by, claim.attempts, claim.max_retries) == ("claimed", "w7", 0, 5)
    assert (claim.token, claim.crashes, claim.lease_until) == (1, 0, clock.now + 45)
    assert claim.created_at == datetime.fromtimestamp(created, UTC).isoformat()
    assert claim.claimed_at == datetime.fromtimestamp(clock.now, UTC).isoformat()
    item = await driver.item("p:a")
    assert (item.state, item.worker, item.owner, item.token) == ("claimed", "w7", "host-1", 1)
    assert (item.due, item.started, item.finished) == (clock.now + 45, clock.now, None)
    assert await driver.attempts("p:a") == []


async def test_higher_priority_first_then_oldest(driver):
    await driver.push("p", [new("a"), new("b", priority=5), new("c", priority=-1)])
    await driver.push("p", [new("d", priority=5), new("e")])
    assert await keys(driver, 2) == ["b", "d"]
    assert await keys(driver) == ["a", "e", "c"]


async def test_an_item_that_comes_back_keeps_its_place(driver):
    await driver.push("p", [new("a"), new("b"), new("c")])
    claim = await one(driver)
    await driver.release("p:a", claim.token)
    assert await keys(driver) == ["a", "b", "c"]


async def test_a_claim_takes_at_most_n_and_only_from_its_pool(driver):
    await driver.push("p", [new(str(n)) for n in range(5)])
    await driver.push("q", [NewItem("q:x", "x", None)])
    assert await take(driver, 0) == []
    assert len(await take(driver, 2)) == 2
    assert len(await take(driver, 100)) == 3
    assert await take(driver) == []
    assert await take(driver, pool="nobody") == []
    assert await driver.counts("q") == Counts(waiting=1)


async def test_64_concurrent_claims_share_the_items_without_overlap(driver):
    await driver.push("p", [new(str(n)) for n in range(100)])
    claims = await asyncio.gather(*(take(driver, 3, worker=f"w{n}") for n in range(64)))
    taken = [claim.id for batch in claims for claim in batch]
    assert len(taken) == len(set(taken)) == 100
    assert await driver.counts("p") == Counts(claimed=100)


async def test_a_delayed_item_runs_when_it_is_due(driver, clock):
    await driver.push("p", [new("now"), new("later", not_before=clock.now + 10), new("past", not_before=clock.now - 5)])
    assert (await driver.item("p:later")).state == "delayed"
    assert await driver.counts("p") == Counts(waiting=2, delayed=1)
    assert await keys(driver) == ["now", "past"]
    clock.advance(9.9)
    assert await take(driver) == []
    clock.advance(0.1)
    assert await driver.counts("p") == Counts(waiting=1, claimed=2)
    assert await keys(driver) == ["later"]


async def test_a_due_item_takes_its_place_by_priority_and_age(driver, clock):
    await driver.push(
        "p", [new("a", not_before=clock.now + 10), new("b"), new("c", priority=1, not_before=clock.now + 5)]
    )
    clock.advance(20)
    assert await keys(driver) == ["c", "a", "b"]


async def test_only_items_whose_needs_are_met_are_claimed(driver):
    await driver.push(
        "p",
        [
            new("both", requires=("gpu", "region:eu"), priority=9),
            new("gpu", requires=("gpu",), priority=5),
            new("any"),
        ],
    )
    assert await keys(driver) == ["any"]
    assert await take(driver, capabilities=["region:eu"]) == []
    assert await keys(driver, capabilities=["gpu", "spot"]) == ["gpu"]
    assert await keys(driver, capabilities={"region:eu", "gpu"}) == ["both"]
    assert set((await driver.item("p:both")).requires) == {"gpu", "region:eu"}


async def test_priority_and_age_decide_across_different_needs(driver):
    await driver.push("p", [new("a"), new("b", requires=("gpu",)), new("c"), new("d", requires=("gpu",), priority=1)])
    assert await keys(driver, capabilities=["gpu"]) == ["d", "a", "b", "c"]


async def test_tokens_strictly_increase_over_every_way_back(driver, clock):
    await driver.push("p", [new("a", max_attempts=2, max_crashes=9)])
    tokens = []

    async def claimed() -> int:
        tokens.append((await one(driver)).token)
        return tokens[-1]

    await driver.release("p:a", await claimed())
    await driver.fail("p:a", Failure("E", "x", retry_after=0), await claimed(), 0.0)
    await driver.fail("p:a", Failure("E", "x", consume=False, retry_after=0), await claimed(), 0.0)
    await claimed()
    clock.advance(LEASE + 1)
    await claimed()
    await driver.hand_back(owner="o", crashed=True)
    await claimed()
    await driver.hand_back(owner="o", crashed=False)
    assert await driver.fail("p:a", Failure("E", "x"), await claimed(), 0.0) == "dead"
    assert (await driver.item("p:a")).token == tokens[-1]
    await driver.retry("p", None)
    await driver.complete("p:a", None, await claimed(), 0.0)
    assert tokens == sorted(set(tokens))
    assert [attempt.token for attempt in await driver.attempts("p:a")] == tokens


# -- complete, fail, release -----------------------------------------------------------------------------------------


async def test_complete_commits_result_attempt_and_cost(driver, clock):
    await driver.push("p", [new("a")])
    claim = await one(driver, worker="w1")
    started = clock.now
    clock.advance(5)
    assert await driver.complete("p:a", {"ok": True}, claim.token, 0.25) is None
    item = await driver.item("p:a")
    assert (item.state, item.result, item.finished, item.attempts) == ("completed", {"ok": True}, clock.now, 0)
    assert await driver.attempts("p:a") == [Attempt(1, "w1", started, clock.now, "completed", None, None, 0.25)]
    assert await driver.counts("p") == Counts(completed=1)
    assert await take(driver) == []


async def test_a_completed_item_shows_no_error_of_earlier_attempts(driver):
    await driver.push("p", [new("a")])
    await driver.fail("p:a", Failure("E", "x", retry_after=0), (await one(driver)).token, 0.0)
    await driver.complete("p:a", 1, (await one(driver)).token, 0.0)
    item = await driver.item("p:a")
    assert (item.error_type, item.error) == (None, None)
    assert await outcomes(driver, "p:a") == ["failed", "completed"]


async def test_a_result_that_is_not_json_is_refused_and_nothing_changes(driver):
    await driver.push("p", [new("a")])
    claim = await one(driver)
    before = await everything(driver, "p:a")
    with pytest.raises(TypeError, match="p:a"):
        await driver.complete("p:a", {"x": {1}}, claim.token, 0.0)
    assert await everything(driver, "p:a") == before
    await driver.complete("p:a", {"x": 1}, claim.token, 0.0)


async def test_fail_delays_by_the_backoff_and_records_the_attempt(driver, clock):
    await driver.push("p", [new("a")])
    claim = await one(driver, worker="w1")
    clock.advance(2)
    assert await driver.fail("p:a", Failure("ValueError", "no title"), claim.token, 0.5) == "delayed"
    item = await driver.item("p:a")
    assert (item.state, item.attempts, item.crashes, item.worker, item.owner) == ("delayed", 1, 0, None, None)
    assert (item.error_type, item.error, item.finished) == ("ValueError", "no title", None)
    assert item.due == pytest.approx(clock.now + backoff(1, "p:a"))
    assert await driver.attempts("p:a") == [
        Attempt(1, "w1", clock.now - 2, clock.now, "failed", "ValueError", "no title", 0.5)
    ]
    clock.advance(0.8)
    assert await take(driver) == []
    clock.advance(0.4)
    assert (await one(driver)).attempts == 1


async def test_each_failure_doubles_the_wait(driver, clock):
    await driver.push("p", [new("a", max_attempts=5)])
    for attempt in range(1, 5):
        claim = await one(driver)
        assert await driver.fail("p:a", Failure("E", "x"), claim.token, 0.0) == "delayed"
        assert (await driver.item("p:a")).due == pytest.approx(clock.now + backoff(attempt, "p:a"))
        clock.advance(1.1 * 2 ** (attempt - 1) + 0.01)


async def test_retry_after_overrides_the_backoff(driver, clock):
    await driver.push("p", [new("a")])
    await driver.fail("p:a", Failure("E", "x", retry_after=120), (await one(driver)).token, 0.0)
    assert await driver.next_due("p") == clock.now + 120
    clock.advance(120)
    assert await driver.fail("p:a", Failure("E", "x", retry_after=0), (await one(driver)).token, 0.0) == "ready"
    assert (await one(driver)).attempts == 2


async def test_an_item_is_dead_when_its_attempts_are_used_up(driver, clock):
    await driver.push("p", [new("a", max_attempts=2)])
    assert await driver.fail("p:a", Failure("E", "1", retry_after=0), (await one(driver)).token, 0.0) == "ready"
    clock.advance(3)
    assert await driver.fail("p:a", Failure("E", "2", retry_after=0), (await one(driver)).token, 0.0) == "dead"
    item = await driver.item("p:a")
    assert (item.state, item.attempts, item.error, item.finished) == ("dead", 2, "2", clock.now)
    assert [attempt.error for attempt in await driver.attempts("p:a")] == ["1", "2"]
    clock.advance(1000)
    assert await take(driver) == []
    assert await driver.counts("p") == Counts(dead=1)


async def test_a_permanent_failure_is_dead_at_once(driver):
    await driver.push("p", [new("a", max_attempts=9)])
    assert (
        await driver.fail("p:a", Failure("DocumentError", "x", permanent=True), (await one(driver)).token, 0) == "dead"
    )
    assert (await driver.item("p:a")).attempts == 1


async def test_the_providers_fault_never_counts_and_never_kills(driver, clock):
    await driver.push("p", [new("a", max_attempts=1)])
    for number, permanent in enumerate([False, False, True], start=1):
        claim = await one(driver)
        failure = Failure("RateLimited", "429", consume=False, permanent=permanent)
        assert await driver.fail("p:a", failure, claim.token, 0.1) == "delayed"
        item = await driver.item("p:a")
        assert (item.attempts, item.crashes, item.due) == (0, 0, clock.now + 30)
        assert await outcomes(driver, "p:a") == ["provider"] * number
        clock.advance(29)
        assert await take(driver) == []
        clock.advance(1)
    claim = await one(driver)
    await driver.fail("p:a", Failure("RateLimited", "429", consume=False, retry_after=7), claim.token, 0.0)
    assert await driver.next_due("p") == clock.now + 7
    clock.advance(7)
    failure = Failure("RateLimited", "429", consume=False, retry_after=0)
    assert await driver.fail("p:a", failure, (await one(driver)).token, 0.0) == "ready"


async def test_release_hands_back_unburnt(driver, clock):
    await driver.push("p", [new("a", max_attempts=1, max_crashes=1)])
    for _ in range(5):
        claim = await one(driver, worker="w1")
        clock.advance(1)
        await driver.release("p:a", claim.token)
        item = await driver.item("p:a")
        assert (item.state, item.attempts, item.crashes, item.worker, item.owner) == ("ready", 0, 0, None, None)
    assert await outcomes(driver, "p:a") == ["released"] * 5
    assert (await driver.attempts("p:a"))[-1] == Attempt(5, "w1", clock.now - 1, clock.now, "released")


async def end(driver: Any, how: str, token: int | None) -> None:
    if how == "complete":
        await driver.complete("p:a", "zombie", token, 9.0)
    elif how == "fail":
        await driver.fail("p:a", Failure("Zombie", "x", permanent=True), token, 9.0)
    elif how == "release":
        await driver.release("p:a", token)
    else:
        await snapshot(driver, "p:a", fence=("p:a", token), drop="p:a:")


ENDINGS = ["complete", "fail", "release"]


@pytest.mark.parametrize("how", [*ENDINGS, "snapshot"])
@pytest.mark.parametrize("now", ["claimed by another", "ready", "completed", "dead", "token from the future"])
async def test_a_zombie_is_refused_and_changes_nothing(driver, clock, how, now):
    await driver.push("p", [new("a", max_attempts=1), new("b")])
    token = (await one(driver, worker="zombie")).token
    if now == "ready":
        await driver.hand_back(worker="zombie", crashed=False)
    elif now != "token from the future":
        clock.advance(LEASE + 1)
        heir = await one(driver, worker="heir")
        assert heir.id == "p:a"
        if now == "completed":
            await driver.complete("p:a", 1, heir.token, 0.0)
        elif now == "dead":
            await driver.fail("p:a", Failure("E", "x"), heir.token, 0.0)
    else:
        token += 1
    await snapshot(driver, "p:a")
    await snapshot(driver, "p:a:child")
    before = await everything(driver, "p:a")
    with pytest.raises(LeaseLost, match="p:a"):
        await end(driver, how, token)
    assert await everything(driver, "p:a") == before


@pytest.mark.parametrize("how", ENDINGS)
async def test_lease_lost_says_which_token_and_what_the_item_is_now(driver, how):
    await driver.push("p", [new("a")])
    await driver.hand_back(owner="o", crashed=False)
    claim = await one(driver)
    await driver.release("p:a", claim.token)
    again = await one(driver, worker="heir")
    with pytest.raises(LeaseLost, match=rf"(?s)(?=.*p:a)(?=.*\b{claim.token}\b)(?=.*claimed)(?=.*heir)"):
        await end(driver, how, claim.token)
    await driver.complete("p:a", None, again.token, 0.0)
    with pytest.raises(LeaseLost, match="completed"):
        await end(driver, how, again.token)


@pytest.mark.parametrize("how", ENDINGS)
async def test_without_a_token_any_claimed_item_is_accepted(driver, how):
    await driver.push("p", [new("a")])
    with pytest.raises(LeaseLost, match="p:a"):
        await end(driver, how, None)
    await take(driver)
    await end(driver, how, None)
    assert len(await driver.attempts("p:a")) == 1
    before = await everything(driver, "p:a")
    with pytest.raises(LeaseLost, match="p:a"):
        await end(driver, how, None)
    assert await everything(driver, "p:a") == before


@pytest.mark.parametrize("how", [*ENDINGS, "snapshot"])
async def test_a_lease_that_ran_out_unnoticed_is_still_good(driver, clock, how):
    await driver.push("p", [new("a")])
    claim = await one(driver)
    clock.advance(10 * LEASE)
    assert (await driver.counts("p")).expired == 1
    await end(driver, how, claim.token)
    assert "crashed" not in await outcomes(driver, "p:a")


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("token", [None, 1])
async def test_an_unknown_item_is_a_key_error_that_names_it(driver, how, token):
    with pytest.raises(KeyError, match="p:a"):
        await end(driver, how, token)


async def test_of_concurrent_completes_exactly_one_commits(driver):
    await driver.push("p", [new("a")])
    claim = await one(driver)
    calls = (driver.complete("p:a", n, claim.token, 1.0) for n in range(20))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers].count(LeaseLost) == 19
    assert (await driver.item("p:a")).result == answers.index(None)
    assert await outcomes(driver, "p:a") == ["completed"]
    assert await driver.counts("p") == Counts(completed=1)


# -- crashes -------------------------------------------------------------------------------------------------------


async def test_an_expired_lease_alone_brings_the_item_back(driver, clock):
    await driver.push("p", [new("a")])
    first, started = await one(driver, worker="w1"), clock.now
    clock.advance(LEASE - 0.1)
    assert await take(driver) == []
    assert await driver.counts("p") == Counts(claimed=1)
    clock.advance(0.2)
    assert await driver.counts("p") == Counts(expired=1)
    assert (await driver.item("p:a")).token == first.token
    second = await one(driver, worker="w2")
    assert (second.token, second.crashes, second.attempts) == (first.token + 1, 1, 0)
    (attempt,) = await driver.attempts("p:a")
    assert (attempt.token, attempt.worker, attempt.outcome) == (first.token, "w1", "crashed")
    assert attempt.started == started
    assert attempt.error_type == "WorkerCrashed"
    assert await driver.counts("p") == Counts(claimed=1)


async def test_reading_recovers_nothing(driver, clock):
    await driver.push("p", [new("a")])
    await take(driver)
    clock.advance(LEASE + 1)
    before = await everything(driver, "p:a")
    for read in (driver.counts, driver.next_due, driver.errors):
        await read("p")
    await driver.owners()
    await driver.mark_lost(None)
    assert await everything(driver, "p:a") == before
    assert before[0].state == "claimed"


@pytest.mark.parametrize("how", ["expiry", "hand back"])
async def test_a_job_that_kills_its_workers_is_dead_after_max_crashes(driver, clock, how):
    await driver.push("p", [new("a", max_attempts=1, max_crashes=3), new("b", priority=-1)])
    for crash in range(1, 4):
        claim = await one(driver, worker=f"w{crash}")
        assert (claim.id, claim.crashes) == ("p:a", crash - 1)
        if how == "expiry":
            clock.advance(LEASE + 1)
        else:
            assert await driver.hand_back(owner="o", crashed=True) == 1
    assert (await one(driver)).id == "p:b"
    item = await driver.item("p:a")
    assert (item.state, item.crashes, item.attempts, item.error_type) == ("dead", 3, 0, "WorkerCrashed")
    assert "3" in item.error
    assert item.finished == clock.now
    assert [(a.worker, a.outcome) for a in await driver.attempts("p:a")] == [(f"w{n}", "crashed") for n in (1, 2, 3)]
    assert await driver.errors("p") == {"WorkerCrashed": 1}


async def test_hand_back_needs_a_filter_and_takes_what_matches_all(driver):
    for pool in "pq":
        await driver.push(pool, [NewItem(f"{pool}:{n}", str(n), None) for n in range(8)])
        for worker, owner in [("w1", "o1"), ("w1", "o2"), ("w2", "o1"), ("w2", "o2")]:
            await take(driver, 2, pool=pool, worker=worker, owner=owner)
    with pytest.raises(ValueError, match="pool"):
        await driver.hand_back(crashed=True)
    assert await driver.hand_back(owner="nobody", crashed=True) == 0
    assert await driver.hand_back(pool="none", crashed=True) == 0
    assert await driver.hand_back(pool="p", worker="w1", owner="o1", crashed=True) == 2
    assert await driver.hand_back(pool="p", worker="w1", owner="o1", crashed=True) == 0
    assert await driver.counts("p") == Counts(waiting=2, claimed=6)
    assert await driver.hand_back(worker="w1", crashed=False) == 6
    assert await driver.hand_back(owner="o2", crashed=False) == 4
    assert await driver.counts("q") == Counts(waiting=6, claimed=2)
    assert await driver.hand_back(pool="q", crashed=False) == 2
    assert await driver.counts("q") == Counts(waiting=8)
    assert await outcomes(driver, "p:0") == ["crashed"]
    assert await outcomes(driver, "q:7") == ["released"]
    assert (await driver.item("p:0")).crashes == 1
    assert (await driver.item("q:7")).crashes == 0


async def test_concurrent_recovery_happens_once(driver, clock):
    await driver.push("p", [new(str(n)) for n in range(10)])
    await take(driver, 10)
    clock.advance(LEASE + 1)
    back = (driver.hand_back(owner="o", crashed=True) for _ in range(8))
    claims = (take(driver, 2, owner="heir") for _ in range(8))
    await asyncio.gather(*back, *claims)
    for n in range(10):
        assert await outcomes(driver, f"p:{n}") == ["crashed"]
        assert (await driver.item(f"p:{n}")).crashes == 1
    assert await driver.counts("p") == Counts(claimed=10)


# -- renewal -------------------------------------------------------------------------------------------------------


async def test_a_beat_renews_the_leases_that_are_still_held(driver, clock):
    await driver.push("p", [new("a"), new("b"), new("c")])
    a, b, c = await take(driver, 3)
    for _ in range(5):
        clock.advance(LEASE - 1)
        beat = await driver.beat("o", [], {a.id: a.token, b.id: b.token, c.id: c.token}, LEASE)
        assert beat.lost == ()
    assert (await driver.item("p:a")).due == clock.now + LEASE
    await driver.complete(b.id, None, b.token, 0.0)
    await driver.release(c.id, c.token)
    await take(driver, worker="heir", owner="o2")
    before = [await everything(driver, item_id) for item_id in ("p:b", "p:c")]
    clock.advance(1)
    beat = await driver.beat("o", [], {a.id: a.token, b.id: b.token, c.id: c.token, "p:unknown": 1}, LEASE)
    assert set(beat.lost) == {"p:b", "p:c", "p:unknown"}
    after = [await everything(driver, item_id) for item_id in ("p:b", "p:c")]
    assert [state[0] for state in after] == [state[0] for state in before]
    clock.advance(LEASE - 2)
    assert await driver.counts("p") == Counts(claimed=2, completed=1)


async def test_a_beat_saves_an_expired_lease_that_nobody_has_taken(driver, clock):
    await driver.push("p", [new("a")])
    claim = await one(driver)
    clock.advance(LEASE + 5)
    assert await driver.counts("p") == Counts(expired=1)
    assert (await driver.beat("o", [], {claim.id: claim.token}, LEASE)).lost == ()
    assert await driver.counts("p") == Counts(claimed=1)
    assert await take(driver) == []
    clock.advance(LEASE + 1)
    assert (await one(driver)).crashes == 1


async def test_a_lease_can_be_renewed_for_a_shorter_time(driver, clock):
    await driver.push("p", [new("a")])
    claim = await one(driver)
    await driver.beat("o", [], {claim.id: claim.token}, 5)
    assert await driver.next_due("p") == clock.now + 5
    clock.advance(5)
    assert (await one(driver, worker="heir")).token == claim.token + 1


async def test_no_lease_is_forgotten_over_many_renewals_and_claims(driver, clock):
    await driver.push("p", [new("held"), *(new(f"{n:03}") for n in range(300))])
    held = await one(driver, worker="dies", lease=500)
    for _ in range(300):
        claim = await one(driver)
        await driver.beat("o", [], {claim.id: claim.token}, 2 * LEASE)
        await driver.complete(claim.id, None, claim.token, 0.0)
    assert await driver.next_due("p") == clock.now + 500
    clock.advance(501)
    assert await driver.counts("p") == Counts(expired=1, completed=300)
    assert (await one(driver)).token == held.token + 1


# -- retry, and what it leaves ---------------------------------------------------------------------------------------


async def kill(driver: Any, name: str, error: str = "E") -> None:
    await driver.fail(f"p:{name}", Failure(error, "x", permanent=True), None, 0.0)


async def test_retry_gives_dead_items_fresh_limits_and_keeps_their_history(driver, clock):
    await driver.push("p", [new("a", max_attempts=1, max_crashes=2)])
    await take(driver)
    await driver.hand_back(owner="o", crashed=True)
    await take(driver)
    await kill(driver, "a")
    assert await driver.retry("p", None) == 1
    item = await driver.item("p:a")
    assert (item.state, item.attempts, item.crashes, item.token, item.finished) == ("ready", 0, 0, 2, None)
    assert await outcomes(driver, "p:a") == ["crashed", "failed"]
    assert await driver.counts("p") == Counts(waiting=1)
    assert await driver.errors("p") == {}
    claim = await one(driver)
    assert (claim.token, claim.attempts, claim.crashes) == (3, 0, 0)


async def test_retry_takes_only_the_dead_ones_that_are_named(driver):
    await driver.push("p", [new(name) for name in "abcde"])
    await driver.push("q", [NewItem("q:x", "x", None)])
    await take(driver, pool="q")
    await driver.fail("q:x", Failure("E", "x", permanent=True), None, 0.0)
    await take(driver, 4)
    for name in "abc":
        await kill(driver, name)
    await driver.complete("p:d", 1, None, 0.0)
    assert await driver.retry("p", []) == 0
    assert await driver.retry("p", ["p:a", "p:a", "p:d", "p:e", "q:x"]) == 1
    assert (await driver.item("p:d")).state == "completed"
    assert (await driver.item("q:x")).state == "dead"
    assert await driver.retry("p", None) == 2
    assert await driver.retry("p", None) == 0
    assert await driver.counts("p") == Counts(waiting=4, completed=1)


async def test_errors_counts_dead_items_by_type(driver):
    await driver.push("p", [new(name, max_attempts=2) for name in "abcd"])
    assert await driver.errors("p") == {}
    await take(driver, 4)
    await kill(driver, "a", "Timeout")
    await kill(driver, "b", "Timeout")
    await kill(driver, "c", "Broken")
    await driver.fail("p:d", Failure("Alive", "x"), None, 0.0)
    assert await driver.errors("p") == {"Timeout": 2, "Broken": 1}
    assert await driver.errors("q") == {}


# -- snapshots of items ----------------------------------------------------------------------------------------------


async def family(driver: Any, event: str) -> None:
    """Save an item's snapshot with `event`, its descendants', and some that only look like relatives."""
    await snapshot(driver, "p:a", event)
    for name in ("p:a:process:0", "p:a:process:0:deep"):
        await snapshot(driver, name)
    for name in RELATIVES:
        await snapshot(driver, name, "machine_end")


RELATIVES = {"p:ab", "p:a_b:x", "P:A:process", "p", "x:p:a:process"}
FAMILY = {"p:a", "p:a:process:0", "p:a:process:0:deep"}


@pytest.mark.parametrize("event", ["state_enter", "waiting", "machine_end"])
async def test_complete_drops_the_items_snapshots_and_its_descendants(driver, event):
    await driver.push("p", [new("a")])
    await take(driver)
    await family(driver, event)
    await driver.complete("p:a", 1, None, 0.0)
    assert await saved(driver) == RELATIVES


@pytest.mark.parametrize("event", ["state_enter", "waiting", "machine_end"])
async def test_fail_and_retry_drop_only_a_finished_snapshot(driver, event):
    kept = RELATIVES if event == "machine_end" else RELATIVES | FAMILY
    await driver.push("p", [new("a")])
    await take(driver)
    await family(driver, event)
    await driver.fail("p:a", Failure("E", "x", retry_after=0), None, 0.0)
    assert await saved(driver) == kept
    await take(driver)
    await kill(driver, "a")
    await family(driver, event)
    await driver.retry("p", None)
    assert await saved(driver) == kept


@pytest.mark.parametrize("event", ["state_enter", "machine_end"])
async def test_release_and_crash_keep_every_snapshot(driver, clock, event):
    await driver.push("p", [new("a")])
    await family(driver, event)
    await driver.release("p:a", (await one(driver)).token)
    assert await saved(driver) == RELATIVES | FAMILY
    await take(driver)
    await driver.hand_back(owner="o", crashed=True)
    await take(driver)
    clock.advance(LEASE + 1)
    await take(driver)
    assert await saved(driver) == RELATIVES | FAMILY


async def test_a_child_that_has_ended_does_not_count_as_the_items_end(driver):
    await driver.push("p", [new("a")])
    await take(driver)
    await snapshot(driver, "p:a:child", "machine_end")
    await driver.fail("p:a", Failure("E", "x"), None, 0.0)
    assert await saved(driver) == {"p:a:child"}


# -- reading -------------------------------------------------------------------------------------------------------


async def test_counts_in_every_state(driver, clock):
    assert await driver.counts("p") == Counts()
    await driver.push("p", [new(f"w{n}", priority=-1) for n in range(3)])
    await driver.push("p", [new(f"d{n}", not_before=clock.now + 1000) for n in range(2)])
    await driver.push("p", [new(name) for name in "abcdef"])
    await take(driver, 3, lease=10)
    await take(driver, 3, lease=1000)
    await driver.complete("p:a", 1, None, 0.0)
    await kill(driver, "d")
    clock.advance(20)
    counts = await driver.counts("p")
    assert counts == Counts(waiting=3, delayed=2, claimed=2, expired=2, completed=1, dead=1)
    assert (counts.left, counts.total) == (9, 11)
    clock.advance(1000)
    assert await driver.counts("p") == Counts(waiting=5, claimed=0, expired=4, completed=1, dead=1)
    assert len(await take(driver, 100)) == 9
    assert await driver.counts("p") == Counts(claimed=9, completed=1, dead=1)


async def test_items_come_in_push_order_in_pages_and_by_state(driver, clock):
    await driver.push("p", [new(f"{n:02}", priority=n) for n in range(10)])
    await driver.push("q", [NewItem("q:x", "x", None)])
    await driver.push("p", [new("late", not_before=clock.now + 99)])
    await take(driver, 2)
    names = [item.key for item in await driver.items("p", None, 100, None)]
    assert names == [f"{n:02}" for n in range(10)] + ["late"]
    pages, after = [], None
    while page := await driver.items("p", None, 4, after):
        pages.append([item.key for item in page])
        after = page[-1].id
    assert [len(page) for page in pages] == [4, 4, 3]
    assert [key for page in pages for key in page] == names
    assert [item.key for item in await driver.items("p", "claimed", 100, None)] == ["08", "09"]
    assert [item.key for item in await driver.items("p", "claimed", 1, "p:08")] == ["09"]
    assert [item.key for item in await driver.items("p", "delayed", 100, None)] == ["late"]
    assert await driver.items("p", "dead", 100, None) == []
    assert await driver.items("none", None, 100, None) == []


async def test_items_behind_an_unknown_item_is_a_key_error(driver):
    await driver.push("p", [new("a")])
    with pytest.raises(KeyError, match="p:gone"):
        await driver.items("p", None, 10, "p:gone")


async def test_unknown_items_are_none_and_without_attempts(driver):
    assert await driver.item("p:a") is None
    assert await driver.attempts("p:a") == []


async def test_pools_are_those_that_items_were_pushed_to(driver):
    assert await driver.pools() == []
    await driver.push("b", [NewItem("b:x", "x", None)])
    await driver.push("a", [NewItem("a:x", "x", None)])
    await driver.claim("never", "w", "o", 1, LEASE, ())
    assert await driver.pools() == ["a", "b"]


async def test_next_due_is_the_next_ripe_item_or_lease_end(driver, clock):
    assert await driver.next_due("p") is None
    await driver.push("p", [new("a"), new("b", not_before=clock.now + 100)])
    assert await driver.next_due("p") == clock.now + 100
    claim = await one(driver, lease=30)
    assert await driver.next_due("p") == clock.now + 30
    await driver.beat("o", [], {claim.id: claim.token}, 200)
    assert await driver.next_due("p") == clock.now + 100
    await driver.complete("p:a", 1, claim.token, 0.0)
    assert await driver.next_due("p") == clock.now + 100
    clock.advance(100)
    await driver.complete("p:b", 1, (await one(driver)).token, 0.0)
    assert await driver.next_due("p") is None
    assert await driver.next_due("q") is None


async def test_what_a_claim_has_seen_and_left_is_not_due_again(driver, clock):
    """An idle worker sleeps until next_due: a due item that it may not claim must not make it spin."""
    await driver.push("p", [new("a", requires=("gpu",), not_before=clock.now + 5), new("b", not_before=clock.now + 50)])
    later = clock.now + 50
    clock.advance(10)
    assert await take(driver) == []
    assert await driver.next_due("p") == later


# -- backoff -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2, 3, 8, 9, 10, 50, 5000])
def test_backoff_doubles_to_five_minutes_within_ten_percent(attempts):
    base = min(300.0, 2.0 ** min(attempts - 1, 20))
    waits = [backoff(attempts, f"item-{n}") for n in range(500)]
    assert all(0.9 * base <= wait <= 1.1 * base for wait in waits)
    assert max(waits) - min(waits) > 0.15 * base
    assert waits == [backoff(attempts, f"item-{n}") for n in range(500)]
    assert math.isclose(sum(waits) / len(waits), base, rel_tol=0.02)


async def test_suspects_are_claimed_one_at_a_time_by_each_process(driver, clock):
    """Whatever kills its workers takes no other suspect along: the innocent ones get through between its crashes."""
    await driver.push("p", [new(str(n), max_crashes=9) for n in range(4)])
    for _ in range(SUSPECT):
        assert len(await take(driver, 3)) == 3
        await driver.hand_back(owner="o", crashed=True)
    assert await keys(driver, 10) == ["0", "3"]
    assert await keys(driver, 10) == []
    assert await keys(driver, 10, owner="another process") == ["1"]
    await driver.complete("p:0", None, None, 0.0)
    assert await keys(driver, 1) == ["2"]


async def test_claims_tells_what_an_owner_holds_and_under_which_token(driver, clock):
    await driver.push("p", [NewItem(f"p:{n}", f"{n}", n) for n in range(4)])
    await driver.push("q", [NewItem("q:0", "0", 0)])
    first = await driver.claim("p", "w1", "o1", 1, 60, ())
    await driver.release(first[0].id, first[0].token)
    mine = await driver.claim("p", "w1", "o1", 2, 60, ()) + await driver.claim("q", "w2", "o1", 1, 60, ())
    await driver.claim("p", "w3", "o2", 1, 60, ())
    assert await driver.claims("o1") == {claim.id: claim.token for claim in mine}
    assert sorted((await driver.claims("o1")).values()) == [1, 1, 2]
    await driver.complete(mine[0].id, None, mine[0].token, 0.0)
    assert mine[0].id not in await driver.claims("o1")
    assert await driver.claims("nobody") == {}
