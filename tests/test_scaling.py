"""Scaling: what messages mean, how far to launch and whom to drain; and the actions of the scaler and the reaper."""

from __future__ import annotations

import json
from importlib import resources
from types import SimpleNamespace

import pytest
from flatfleet.runtime import decisions, scaling
from flatfleet.runtime.scaling import Aim, Worker
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

SIZES = st.integers(1, 9)


def schema(name):
    return json.loads(resources.files("flatfleet.schemas").joinpath(f"{name}.schema.json").read_text("utf-8"))


def crew(*sizes, busy=()):
    """Workers a, b, c … of these parallelisms; `busy` maps some to when they took their item."""
    busy = dict(busy)
    names = [chr(ord("a") + n) for n in range(len(sizes))]
    return [
        Worker(name, size, f"p:{name}" if name in busy else None, busy.get(name, 0.0))
        for name, size in zip(names, sizes, strict=True)
    ]


def names(workers):
    return "".join(worker.id for worker in workers)


# -- messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scale-message", "decision"])
def test_the_schemas_are_schemas(name):
    Draft7Validator.check_schema(schema(name))


@pytest.mark.parametrize(
    "message",
    [
        {"target": 0},
        {"target": 100_000, "version": 1, "id": "a:1/b", "if_current": 0, "reason": "r" * 1000, "by": "me"},
        {"target": 8.0},
        {"delta": -3, "max_launch_per_step": 1, "dry_run": True, "drain_deadline": 0},
        {"delta": 100_000},
        {"reconcile": True},
        {"drain": ["w1", "ü2"], "drain_deadline": 1.5},
        {"drain": []},
    ],
)
def test_a_valid_message_is_read_as_it_is(message):
    assert decisions.read(json.dumps(message)) == (message, None)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"target": -1}, "target must be at least 0, got -1"),
        ({"target": 10**9}, "target must be at most 100000, got 1000000000"),
        ({"target": 100_001}, "at most 100000"),
        ({"target": "ten"}, 'target must be a whole number, got "ten"'),
        ({"target": True}, "target must be a whole number, got true"),
        ({"target": None}, "target must be a whole number, got null"),
        ({"target": 2.5}, "target must be a whole number, got 2.5"),
        ({"target": float("nan")}, "target must be a whole number, got NaN"),
        ({"delta": "x"}, 'delta must be a whole number, got "x"'),
        ({"delta": 0}, "delta must not be 0"),
        (
            {"target": 3, "delta": 1},
            "exactly one of target, delta, reconcile and drain is needed, got target and delta",
        ),
        ({"reconcile": True, "target": 3}, "got target and reconcile"),
        ({"drain": ["w1"], "delta": -1}, "got delta and drain"),
        ({"drain": "w1"}, 'drain must be a list of worker ids, got "w1"'),
        ({"drain": [1]}, "drain must be a text, got 1"),
        ({"drain": ["w" * 201]}, "drain must have at most 200 characters"),
        ({"drain": ["w"] * 101}, "drain must have at most 100 workers"),
        ({}, "exactly one of target, delta, reconcile and drain is needed, got none"),
        ({"reason": "because"}, "got none"),
        ({"reconcile": False}, "reconcile must be true, got false"),
        ({"targte": 3}, "unknown key \"targte\" — known: by, .* Did you mean 'target'"),
        ({"target": 3, "version": 2}, "version 2 is newer than this scaler, which knows 1"),
        ({"target": 3, "version": 2, "new": "key"}, "version 2 is newer"),
        ({"target": 3, "version": 0}, "version must be at least 1"),
        ({"target": 3, "id": ""}, "id must be 1 to 100 letters"),
        ({"target": 3, "id": "x" * 101}, "id must be 1 to 100 letters"),
        ({"target": 3, "id": "\ud800"}, "id must be 1 to 100 letters"),
        ({"target": 3, "reason": "r" * 1001}, "reason must have at most 1000 characters, got"),
        ({"target": 3, "by": 7}, "by must be a text, got 7"),
        ({"target": 3, "if_current": -1}, "if_current must be at least 0"),
        ({"target": 3, "max_launch_per_step": 0}, "max_launch_per_step must be at least 1"),
        ({"target": 3, "dry_run": 1}, "dry_run must be true or false, got 1"),
        ({"target": 3, "drain_deadline": -1}, "drain_deadline must be at least 0"),
        ({"target": 3, "id": "x\n"}, "id must be 1 to 100 letters"),
        ({"value": {"target": 3}}, 'unknown key "value"'),
        ([8], r'a scale message is an object such as {"target": 8}, not \[8\]'),
        (None, "a scale message is an object .* not null"),
        ("ten", 'not "ten"'),
        (8, "not 8"),
        ("x" * 15_000, 'not "xxxx'),
        ("x" * 5_000_000, "the message is too long: a scale message has less than 20000 characters"),
        ({"target": 3, "reason": "r" * 30_000}, "too long"),
    ],
)
def test_a_message_that_is_none_is_rejected_with_its_reason(message, says):
    text = json.dumps(message if isinstance(message, dict) else {"value": message})[: decisions.LONGEST]
    read, error = decisions.read(text)
    with pytest.raises(ValueError, match=says):
        raise ValueError(error)
    assert len(error) < 300
    decision = decisions.begin("papers", "s1", read, error)
    assert (decision["id"], decision["outcome"], decision["error"]) == ("s1", "rejected", error)
    assert decision["by"] is None
    assert len(json.dumps(decision)) < 3_000
    Draft7Validator(schema("decision")).validate(decision | {"at": 1.0})


def test_what_is_no_json_or_nested_without_end_is_rejected():
    assert decisions.read("")[1].startswith("the message is no JSON")
    assert decisions.read("[" * 9_000 + "]" * 9_000)[1] == "the message is nested too deeply"


# -- what a message comes to ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "stored", "live", "lost", "expected"),
    [
        ({"drain": []}, 8, 5, 3, Aim(8, None)),
        ({"target": 8}, 4, 4, 0, Aim(8, 8)),
        ({"target": 8}, None, 4, 0, Aim(8, 8)),
        ({"target": 0}, 4, 4, 0, Aim(0, 0)),
        ({"target": 8.0}, 4, 4, 0, Aim(8, 8)),
        ({"delta": 4}, 4, 3, 0, Aim(8, 8)),
        ({"delta": 4}, None, 3, 0, Aim(7, 7)),
        ({"delta": 4}, 0, 3, 0, Aim(4, 4)),
        ({"delta": -9}, 4, 4, 0, Aim(0, 0, note="a target of -5 was cut to 0")),
        ({"delta": 9}, 99_999, 4, 0, Aim(100_000, 100_000, note="a target of 100008 was cut to 100000")),
        ({"target": 8, "if_current": 4}, 4, 9, 0, Aim(8, 8)),
        ({"target": 8, "if_current": 9}, None, 9, 0, Aim(8, 8)),
        ({"target": 8, "if_current": 0}, 0, 9, 0, Aim(8, 8)),
        ({"target": 8, "if_current": 9}, 4, 9, 0, Aim(4, None, refused="if_current is 9, but the target is 4")),
        ({"delta": 1, "if_current": 3}, None, 4, 0, Aim(None, None, refused="if_current is 3, but the target is 4")),
        ({"reconcile": True}, 8, 5, 3, Aim(8, 8)),
        ({"reconcile": True}, 8, 4, 3, Aim(8, 7)),  # one was drained: it is not replaced
        ({"reconcile": True}, 8, 8, 3, Aim(8, 8)),
        ({"reconcile": True}, 4, 6, 3, Aim(4, 6)),  # nobody is drained by it
        ({"reconcile": True}, 0, 0, 3, Aim(0, 0)),
        ({"reconcile": True}, None, 5, 3, Aim(None, None)),
    ],
)
def test_what_a_message_comes_to(message, stored, live, lost, expected):
    assert scaling.aim(message, stored, live, lost) == expected


@pytest.mark.parametrize(
    ("live", "level", "budget", "most", "drains", "expected"),
    [
        (4, 8, 4, 99, True, ("launch", 4)),
        (4, 8, 4, 3, True, ("launch", 3)),
        (4, 8, 2, 99, True, ("launch", 2)),
        (4, 8, 0, 99, True, ("record", 0)),  # those that were launched have ended again
        (8, 8, 4, 99, True, ("record", 0)),
        (9, 8, 0, 99, True, ("drain", 0)),
        (9, 8, 0, 99, False, ("record", 0)),
        (9, None, 0, 99, True, ("record", 0)),
        (0, None, 9, 99, False, ("record", 0)),
    ],
)
def test_the_next_step(live, level, budget, most, drains, expected):
    assert scaling.step(live, level, budget, most, drains=drains) == expected


@pytest.mark.parametrize(
    ("asked", "stored", "live", "served", "expected"),
    [
        (3, 9, 2, False, 5),
        (None, 9, 2, False, 9),
        (None, None, 2, False, 4),
        (None, None, 6, False, 6),
        (None, 0, 0, False, 4),
        (None, 0, 0, True, 0),
    ],
)
def test_the_target_of_a_fleet_that_is_launched(asked, stored, live, served, expected):
    assert scaling.first_target(asked, stored, live, 4, served=served) == expected


@pytest.mark.parametrize(
    ("stored", "live", "drained", "target"),
    [(8, 6, 2, 6), (8, 4, 1, 7), (3, 4, 1, 3), (3, 1, 4, 1), (0, 1, 1, 0), (None, 1, 2, None)],
)
def test_a_drain_by_name_lowers_the_target_and_neither_launches_nor_drains(stored, live, drained, target):
    assert scaling.aim({"drain": ["w"]}, stored, live, 3, drained) == Aim(target, None)
    here = {"drain": ["w"], "if_current": live + drained if stored is None else stored}
    assert scaling.aim(here, stored, live, 3, drained).refused is None


# -- launching -----------------------------------------------------------------------------------------------------------


@given(st.lists(SIZES), st.integers(0, 60), SIZES, st.integers(1, 20), st.integers(0, 3))
def test_launching_ends_at_the_target_and_is_never_above_it(sizes, target, parallelism, most, ends):
    """As scaler.yml does it: look, launch at most `most` workers, look again; some of those launched end at once."""
    live = sum(sizes)
    start, budget, launched = live, max(0, target - live), []
    while True:
        following, want = scaling.step(live, target, budget, parallelism * most, drains=True)
        if following != "launch":
            break
        assert len(launched) < 60
        for _ in range(scaling.launches(want, parallelism)):
            size = min(parallelism, want)
            live, want, budget = live + size, want - size, budget - size
            launched.append(size)
            assert live <= target
        assert want == 0
        if ends:
            ends, live = ends - 1, live - launched[-1]
    assert sum(launched) <= max(0, target - start)
    assert all(size == parallelism for size in launched[:-1])
    if not ends:
        assert following == ("drain" if live > target else "record")


@given(st.integers(0, 1000), SIZES)
def test_launches_counts_the_workers_with_a_smaller_last_one(missing, parallelism):
    n = scaling.launches(missing, parallelism)
    assert (n - 1) * parallelism < missing <= n * parallelism if missing else n == 0


# -- draining ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "surplus", "expected"),
    [
        (crew(1, 1, 1), 0, ""),
        (crew(1, 1, 1), -3, ""),
        (crew(1, 1, 1), 2, "ab"),
        (crew(1, 1, 1), 9, "abc"),
        (crew(1, 1, 1, busy={"a": 5}), 2, "bc"),
        (crew(1, 1, 1, busy={"a": 5}), 3, "bca"),
        (crew(1, 1, 1, busy={"a": 5, "b": 9, "c": 7}), 2, "bc"),  # the newest work is the least lost
        (crew(2, 2, 1), 3, "ac"),
        (crew(1, 2, 3), 3, "c"),  # the largest idle one: fewer have to go
        (crew(4, 4, 4), 3, ""),
        (crew(4, 4, 4), 7, "a"),
        (crew(4, 1, busy={"b": 9}), 3, "b"),
    ],
)
def test_whom_to_drain(workers, surplus, expected):
    assert names(scaling.drains(workers, surplus)) == expected


def test_a_surplus_is_told_at_its_second_look_and_then_once_of_each_number():
    looks = [(0, 3), (1, 3), (2, 3), (60.5, 3), (61, 3), (62, 2), (63, 2), (64, 0), (65, 2), (66, 1), (67, -1)]
    told, before = [], None
    for at, over in looks:
        before = scaling.told_of(json.loads(json.dumps(before)), over, at)
        if (before or {}).get("at") == at:
            told.append((at, over))
    assert told == [(1, 3), (61, 3), (62, 2), (66, 1)]
    assert before is None


def test_of_the_idle_those_who_have_not_begun_are_drained_first():
    workers = [*crew(2, 1, 1), Worker("d", begun=False)]
    assert names(scaling.drains(workers, 1)) == "d"
    assert names(scaling.drains(workers, 3)) == "da"


@given(st.lists(st.tuples(SIZES, st.one_of(st.none(), st.floats(0, 1e9)))), st.integers(-5, 60))
def test_draining_never_undershoots_and_leaves_nobody_who_fits(drawn, surplus):
    workers = [Worker(f"w{n}", size, at and f"p:{n}", at or 0.0) for n, (size, at) in enumerate(drawn)]
    chosen = scaling.drains(workers, surplus)
    rest = surplus - scaling.parallelism(chosen)
    kept = [worker for worker in workers if worker not in chosen]
    assert not chosen or rest >= 0
    assert all(worker.parallelism > rest for worker in kept)
    assert len({worker.id for worker in chosen}) == len(chosen)
    for busy in (worker for worker in chosen if worker.item):  # whoever is idle and stays was too large
        assert all(idle.parallelism > rest for idle in kept if not idle.item)
        assert all(other.parallelism > rest for other in kept if other.item and other.since > busy.since)
    order = [(worker.item is not None, -worker.since) for worker in chosen]
    assert order == sorted(order)


# -- the registry --------------------------------------------------------------------------------------------------------


def entry(name="w", status="active", item=None, **metadata):
    base = {"pool": "p", "parallelism": 2, "owner": "me", "lease_until": 100.0}
    return SimpleNamespace(worker_id=name, status=status, current_task_id=item, metadata=base | metadata)


@pytest.mark.parametrize(
    ("record", "counts"),
    [
        (entry(item="p:1"), [Worker("w", 2, "p:1")]),
        (entry(parallelism=None), [Worker("w", 1)]),
        (entry(parallelism="many"), [Worker("w", 1)]),
        (entry(parallelism=True), [Worker("w", 1)]),
        (entry(parallelism=-4), [Worker("w", 1)]),
        (entry(lease_until=50.0), [Worker("w", 2)]),
        (entry(lease_until=49.9), []),
        (entry(pool="q"), []),
        (entry(pool=None), []),
        (entry(owner="dead"), []),
        (entry(status="terminating"), []),
        (entry(status="terminated"), []),
        (entry(status="lost"), []),
    ],
)
def test_which_workers_count(record, counts):
    assert scaling.alive([record], "p", 50.0, lambda owner: owner == "dead") == counts


def test_a_lost_worker_is_to_be_replaced_until_a_decision_has_taken_account_of_it():
    records = [
        entry("a", "lost"),
        entry("b", "lost", replaced_by="d"),
        entry("c", "lost", pool="q"),
        entry("d", "lost", pool=""),
        entry("e"),
    ]
    assert [record.worker_id for record in scaling.unreplaced(records)] == ["a", "c"]
    assert [record.worker_id for record in scaling.unreplaced(records, "p")] == ["a"]


def test_workers_hold_their_item_since_it_was_claimed():
    workers = crew(1, 1, 1, busy={"a": 0, "b": 0})
    items = [SimpleNamespace(id="p:b", started=7.0), None]
    assert [worker.since for worker in scaling.holding(workers, items)] == [0.0, 7.0, 0.0]


# -- decisions -----------------------------------------------------------------------------------------------------------


def decided(message, aim, error=None, **more):
    decision = decisions.begin("papers", "s1", message, None) | {"target_before": 4, "live_before": 4, "live": 4}
    decisions.aimed(decision, aim)
    decision.update(more)
    decisions.finish(decision, error)
    Draft7Validator(schema("decision")).validate(decision | {"at": 1.0})
    return decision


@pytest.mark.parametrize(
    ("message", "aim", "more", "outcome"),
    [
        ({"target": 8}, Aim(8, 8), {}, "applied"),
        ({"target": 4}, Aim(4, 4), {}, "unchanged"),
        ({"target": 4}, Aim(4, 4), {"launches": 1}, "applied"),
        ({"target": 4}, Aim(4, 4), {"drains": 1}, "applied"),
        ({"reconcile": True}, Aim(4, 4), {}, "unchanged"),
        ({"target": 8, "dry_run": True}, Aim(8, 8), {"launches": 4}, "dry_run"),
        ({"target": 8, "dry_run": False}, Aim(8, 8), {}, "applied"),
        ({"target": 8}, Aim(4, None, refused="no"), {}, "refused"),
        ({"target": 8, "dry_run": True}, Aim(4, None, refused="no"), {}, "refused"),
        ({"target": 8}, Aim(8, 8), {"error": "disk"}, "failed"),
        ({"target": 8}, Aim(4, None, refused="no"), {"error": "disk"}, "refused"),
    ],
)
def test_the_outcome(message, aim, more, outcome):
    assert decided(message, aim, **more)["outcome"] == outcome


def test_a_decision_keeps_who_and_why_and_is_named_by_the_message():
    decision = decided({"delta": 1, "id": "mine", "by": "me", "reason": "why"}, Aim(5, 5, note="cut"))
    assert [decision[key] for key in ("id", "by", "reason", "note")] == ["mine", "me", "why", "cut"]
    assert decided({"target": 8}, Aim(8, 8))["id"] == "s1"


def test_an_error_before_there_was_an_aim_is_a_failure():
    decision = decisions.begin("papers", "s1", "?", None)
    decisions.finish(decision, None)
    assert (decision["outcome"], decision["error"]) == ("failed", "the decision was interrupted")


def test_a_decision_counts_its_workers_and_lists_a_hundred():
    records = [entry(f"w{n}", decision="s1") for n in range(150)] + [
        entry("x", drained_by="s1"),
        entry("y", decision="s2"),
    ]
    decision = decisions.begin("papers", "s1", {"target": 8}, None)
    decisions.tally(decision, records)
    assert (decision["launches"], len(decision["launched"])) == (150, 100)
    assert (decision["drains"], decision["drained"]) == (1, ["x"])


def test_worker_ids_begin_with_the_same_for_the_same_decision():
    assert decisions.short("0123456789abcdef" * 2) == "s01234567"
    assert decisions.short("2026112116420001") != decisions.short("2026112116420002")
    assert decisions.short("mine") == decisions.short("mine") != decisions.short("yours")
    assert len(decisions.short("../../x")) == 9
    assert decisions.short("../../x")[1:].isalnum()
