"""The store contract, part 5: a fleet's decisions and its target — over every driver."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flatfleet.runtime.stores.records import DECISIONS
from flatfleet.runtime.stores.sqlite import SQLiteDriver

WEIRD = ["../../x", "ключ 鍵 🔑", """it's "q"; DROP TABLE decisions; --""", "{{ 7*7 }}", "%_*?[a-z]", " b\n\t", ""]


def made(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "at": 1.0, "outcome": "unchanged", **fields}


async def ids(driver: Any, fleet: str = "f", last: int = 10_000) -> list[str]:
    return [decision["id"] for decision in await driver.decisions(fleet, last)]


# -- decisions -----------------------------------------------------------------------------------------------------


async def test_a_fleet_of_which_nothing_is_known(driver):
    assert await driver.decisions("f", 10) == []
    assert await driver.decision("f", "a") is None
    assert await driver.target("f") is None
    assert await driver.fleets() == []
    await driver.set_target("f", None)
    assert await driver.fleets() == []


async def test_decisions_are_kept_as_they_are_newest_last(driver):
    told = [made(name, message={"delta": n, "x": [None, "ß\ud800"]}) for n, name in enumerate("cab")]
    for decision in told:
        await driver.decide("f", decision)
    assert await driver.decisions("f", 10) == told
    assert await driver.decisions("f", 2) == told[1:]
    assert await driver.decisions("f", 0) == await driver.decisions("f", -1) == []
    assert await driver.decision("f", "a") == told[1]
    assert await driver.decision("f", "d") is None


async def test_at_is_set_where_there_is_none_and_kept_when_the_decision_is_replaced(driver, clock):
    begun = clock.now
    await driver.decide("f", {"id": "a", "outcome": None})
    await driver.decide("f", {"id": "b", "at": None})
    await driver.decide("f", {"id": "c", "at": 7.5})
    clock.advance(60)
    await driver.decide("f", {"id": "a", "outcome": "applied"})
    await driver.decide("f", {"id": "c", "at": 8.5})
    await driver.decide("f", {"id": "c"})
    assert [decision["at"] for decision in await driver.decisions("f", 3)] == [begun, begun, 8.5]
    assert (await driver.decision("f", "a"))["outcome"] == "applied"


async def test_a_decision_that_is_made_again_stands_where_it_stood_and_there_is_one(driver):
    for name in "abc":
        await driver.decide("f", made(name, n=1))
    await driver.decide("f", made("a", other=2))
    assert await driver.decisions("f", 10) == [made("a", other=2), made("b", n=1), made("c", n=1)]


async def test_fleets_do_not_share_decisions(driver):
    await driver.decide("f", made("a", n=1))
    await driver.decide("F", made("a", n=2))
    assert await driver.decision("f", "a") == made("a", n=1)
    assert await driver.decisions("F", 9) == [made("a", n=2)]


async def test_what_a_caller_changes_later_does_not_change_the_store(driver):
    decision = made("a", launched=["w1"])
    await driver.decide("f", decision)
    decision["launched"].append("w2")
    (await driver.decision("f", "a"))["launched"].append("w3")
    (await driver.decisions("f", 1))[0]["launched"].append("w4")
    assert (await driver.decision("f", "a"))["launched"] == ["w1"]


async def test_deciding_does_not_change_what_it_is_given(driver):
    decision = {"id": "a"}
    await driver.decide("f", decision)
    assert decision == {"id": "a"}


@pytest.mark.parametrize("known", [False, True])
async def test_a_decision_that_is_no_json_is_refused_and_nothing_changes(driver, known):
    if known:
        await driver.decide("f", made("a"))
    with pytest.raises(TypeError, match="a"):
        await driver.decide("f", made("a", outcome="applied", target=3, x={1}))
    assert await driver.decisions("f", 9) == ([made("a")] if known else [])
    assert await driver.target("f") is None
    assert await driver.fleets() == (["f"] if known else [])
    with pytest.raises(KeyError, match="id"):
        await driver.decide("f", {"outcome": "applied", "target": 3})
    assert await driver.target("f") is None


async def test_the_newest_thousand_of_a_fleet_are_kept(driver):
    await driver.decide("other", made("first"))
    for n in range(DECISIONS):
        await driver.decide("f", made(str(n)))
    assert len(await ids(driver)) == DECISIONS
    await driver.decide("f", made("0", again=True))
    assert (await ids(driver))[0] == "0"
    await driver.decide("f", made("new"))
    assert await ids(driver) == [*map(str, range(1, DECISIONS)), "new"]
    assert await driver.decision("f", "0") is None
    await driver.decide("f", made("0"))
    assert (await ids(driver, last=2)) == ["new", "0"]
    assert len(await ids(driver)) == DECISIONS
    assert await ids(driver, "other") == ["first"]


async def test_concurrent_decisions_are_all_kept(driver):
    await asyncio.gather(*(driver.decide("f", made(str(n % 40))) for n in range(120)))
    assert sorted(await ids(driver), key=int) == [str(n) for n in range(40)]


# -- the target ----------------------------------------------------------------------------------------------------


async def test_a_target_is_set_and_forgotten(driver):
    for target in (4, 0, 100_000):
        await driver.set_target("f", target)
        assert await driver.target("f") == target
    assert await driver.target("g") is None
    await driver.set_target("f", None)
    await driver.set_target("f", None)
    assert await driver.target("f") is None


async def test_an_applied_decision_is_the_target(driver):
    await driver.set_target("g", 1)
    for name, target in (("a", 5), ("b", 0)):
        await driver.decide("f", made(name, outcome="applied", target=target))
        assert await driver.target("f") == target
    await driver.decide("f", made("a", outcome="applied", target=7))
    assert await driver.target("f") == 7
    assert await driver.target("g") == 1


@pytest.mark.parametrize("outcome", [None, "unchanged", "rejected", "refused", "dry_run", "failed", "Applied"])
async def test_no_other_decision_touches_the_target(driver, outcome):
    await driver.set_target("f", 2)
    await driver.decide("f", made("a", outcome=outcome, target=9))
    await driver.decide("f", {"id": "b", "target": 9})
    await driver.decide("f", made("c", outcome="applied", target=None))
    await driver.decide("f", {"id": "d", "outcome": "applied"})
    assert await driver.target("f") == 2


async def test_fleets_are_those_with_a_target_or_a_decision(driver):
    await driver.set_target("b", 3)
    await driver.decide("c", made("x"))
    await driver.decide("a", made("x", outcome="applied", target=1))
    await driver.push("p", [])
    assert await driver.fleets() == ["a", "b", "c"]
    for name in "abc":
        await driver.set_target(name, None)
    assert await driver.fleets() == ["a", "c"]


@pytest.mark.parametrize("text", WEIRD, ids=lambda text: text[:12].strip())
async def test_weird_names_are_names(driver, text):
    await driver.decide(text, made(text, outcome="applied", target=3, reason=text))
    await driver.decide(f"{text}x", made(f"{text}x"))
    assert await driver.decision(text, text) == made(text, outcome="applied", target=3, reason=text)
    assert await ids(driver, text) == [text]
    assert await driver.target(text) == 3
    assert await driver.target(f"{text}x") is None
    assert await driver.fleets() == sorted([text, f"{text}x"])


async def test_decisions_and_target_survive_and_are_seen_by_other_processes(tmp_path, clock):
    here, there = (SQLiteDriver(tmp_path / "fleet.db", clock=clock) for _ in range(2))
    try:
        await here.decide("f", made("a", outcome="applied", target=3))
        assert await there.target("f") == 3
        await there.decide("f", made("b"))
        await there.decide("f", made("a", n=2))
        assert await ids(here) == ["a", "b"]
        await here.close()
        assert (await here.decision("f", "a"))["n"] == 2
    finally:
        await here.close()
        await there.close()
