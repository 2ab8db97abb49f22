"""What holds of every decision, whatever the policy, the settings and the course of events."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from flatfleet.runtime.policies import memory
from flatfleet.runtime.policies.deciding import decide
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import settings
from hypothesis import example, given
from hypothesis import settings as runs
from hypothesis import strategies as st

FEW = runs(max_examples=40, deadline=None)
MODES = ["thresholds", "target", "latency", "slo", "predictive"]
WAY = st.fixed_dictionaries({"up": st.sampled_from([0, 20, 90]), "down": st.sampled_from([0, 60, 300])})
RATE = st.sampled_from([1, 3, "50%", [4, "100%"], None])
SOME = st.none() | st.floats(0, 1e6)


@st.composite
def wishes(draw):
    """Settings of a fleet that scales by itself, without a schedule."""
    low = draw(st.integers(0, 5))
    return {
        "mode": draw(
            st.lists(st.sampled_from(MODES), min_size=1, unique=True).filter(lambda each: each != ["predictive"])
        ),
        "min": low,
        "max": low + draw(st.integers(1, 40)),
        "slo": "5s@95%",
        "predictor": draw(st.sampled_from(["seasonal", "learned"])),
        "season": 1800,
        "cooldown_period": draw(WAY),
        "stabilization": draw(WAY),
        "scale_up_rate": draw(RATE),
        "scale_down_rate": draw(RATE),
        "idle_terminate": draw(st.sampled_from([0, 30, 300])),
        "burst_capacity": draw(st.sampled_from([0, 0, 7])),
        "flap_budget": draw(st.none() | st.integers(2, 60)),
        "cost": draw(st.sampled_from([{}, {}, {"per_worker_hour": 1, "budget": 10}])),
    }


@st.composite
def moments(draw):
    """What is seen at one moment, but for the time and the target; a third of the demand is missing or old."""
    counts = {name: draw(st.integers(0, 300)) for name in ("waiting", "claimed", "expired")}
    lacking = draw(st.sampled_from(["", "", "", "", "nothing", "old"]))
    return {
        **(dict.fromkeys(counts) if lacking == "nothing" else counts),
        "age": 1000 if lacking == "old" else 0,
        "after": draw(st.sampled_from([1, 10, 10, 60, 1000])),
        "arrival_rate": draw(SOME),
        "arrival_cv2": draw(SOME),
        "service_mean": draw(st.none() | st.floats(1e-3, 1e4)),
        "service_cv2": draw(SOME),
        "utilisation": draw(st.none() | st.floats(0, 1)),
        "throughput": draw(SOME),
        "startup": draw(st.none() | st.floats(0, 1e3)),
        "wait_mean": draw(SOME),
        "provider_faults": draw(SOME),
        "spends": draw(st.sampled_from([0, 0, 1, 9])),
    }


def course(s, events, state=None, target=None, hop=lambda state: state):
    """The decisions on a course of events, each with the state before it; every decision is carried out."""
    at, state, target, spent = 1_700_000_000.0, state or {}, s.min if target is None else target, 0.0
    for event in events:
        seen = {name: value for name, value in event.items() if name not in ("age", "after", "spends")}
        at, spent = at + event["after"], spent + event.get("spends", 0)
        o = Observation(at=at, workers=target, target=target, measured=at - event["age"], spent=spent, **seen)
        decision, after = decide(o, s, hop(state))
        yield decision, state
        state, target = after, decision.desired


def spent(decision, s):
    return s.cost.budget is not None and decision.seen.spent >= s.cost.budget


COURSES = st.lists(moments(), min_size=1, max_size=20)


@FEW
@given(wishes(), COURSES)
def test_never_outside_min_and_max_and_the_burst(wish, events):
    """But for a fleet whose budget is spent: it has no worker, as soon as the demand is known."""
    s = settings(wish)
    for decision, _ in course(s, events):
        broke = spent(decision, s)
        assert (0 if broke else s.min) <= decision.desired <= s.max + s.burst_capacity
        assert not decision.desired or not broke or decision.seen.missing(s.stale_after)


@FEW
@given(wishes(), COURSES)
def test_never_shrinks_on_missing_or_stale_data(wish, events):
    s = settings(wish)
    for decision, _ in course(s, events):
        if decision.seen.missing(s.stale_after):
            assert decision.desired >= decision.current
            assert decision.outcome == "hold"


@FEW
@given(wishes(), COURSES, st.sampled_from([10, 60, 200]))
def test_starts_and_stops_within_the_flap_budget_of_any_hour(wish, events, step):
    s = settings(wish)
    moves = []
    for decision, _ in course(s, [{**event, "after": step} for event in events] * 3):
        if not spent(decision, s):
            moves.append((decision.seen.at, abs(decision.desired - decision.current)))
    for at, _ in moves:
        assert sum(many for then, many in moves if at - 3600 < then <= at) <= s.flaps


@FEW
@given(wishes(), COURSES)
def test_a_fleet_of_none_with_work_has_a_worker_at_once(wish, events):
    s = replace(settings(wish), min=0)
    for decision, _ in course(s, events):
        lacks = decision.current == 0 and decision.seen.demand and not decision.seen.missing(s.stale_after)
        if lacks and not spent(decision, s):
            assert decision.desired >= 1


@FEW
@given(wishes(), COURSES)
def test_no_fleet_is_emptied_while_there_is_demand(wish, events):
    s = settings(wish)
    for decision, _ in course(s, events):
        if decision.seen.demand and decision.current and not spent(decision, s):
            assert decision.desired >= 1


@FEW
@given(wishes(), COURSES)
def test_a_restart_changes_no_decision(wish, events):
    s = settings(wish)
    kept = [(decision.data(), state) for decision, state in course(s, events)]
    hopped = [
        (decision.data(), state) for decision, state in course(s, events, hop=lambda each: json.loads(json.dumps(each)))
    ]
    assert kept == hopped
    assert json.loads(json.dumps(kept)) == [list(each) for each in kept]


@FEW
@given(wishes(), COURSES)
def test_deciding_changes_no_state_in_place_and_gives_the_same_again(wish, events):
    s = settings(wish)
    for decision, state in course(s, events):
        before = json.dumps(state)
        again, _ = decide(decision.seen, s, state)
        assert json.dumps(state) == before
        assert again.data() == decision.data()


@FEW
@given(wishes(), COURSES)
def test_records_replay_to_the_same_outcomes(wish, events):
    s = settings(wish)
    records = [json.loads(json.dumps(decision.data())) for decision, _ in course(s, events)]
    state = {}
    for record in records:
        decision, state = decide(Observation.of(record["seen"]), s, state)
        assert decision.desired == record["desired"]


@FEW
@given(wishes(), COURSES)
def test_the_clamps_are_a_chain_from_the_want_to_the_outcome(wish, events):
    for decision, _ in course(settings(wish), events):
        found = decision.clamps
        assert found[0].before == decision.raw
        assert all(a.after == b.before for a, b in itertools.pairwise(found))
        assert found[-1].after == decision.desired
        assert all(each.reason for each in found if each.after != each.before and each.name != "tolerance")
        assert [each.name for each in found if each.binds] == ([decision.bound_by] if decision.bound_by else [])
        assert (decision.counterfactual is None) == (decision.bound_by is None)


def _free(mode, most, predictor="learned"):
    """Settings without a window, a cooldown or a limit on a step: what a policy wants is what it gets."""
    return {"mode": mode, "min": 0, "max": most, "slo": "5s@95%", "predictor": predictor, "season": 1800,
            "cooldown_period": 0, "stabilization": {"up": 0, "down": 0}, "scale_up_rate": None,
            "scale_down_rate": None, "idle_terminate": 0}  # fmt: skip


@FEW
@given(wishes(), st.integers(0, 300), st.floats(0.1, 50), st.floats(0.1, 60), st.sampled_from([None, 0, 5, 30, 200]))
@example(_free(["slo"], 2), 23, 0.5, 1.0, None)
@example(_free(["slo"], 40), 280, 0.7, 1.0, 5)
@example(_free(["slo"], 40), 3, 2.0, 4.0, 0)
@example(_free(["latency", "predictive"], 3, "seasonal"), 0, 1.0, 2.0, None)
def test_constant_demand_comes_to_a_constant_target(wish, waiting, rate, service, startup):
    """After the windows, the cooldowns and a start and a stop one by one are over, nothing moves any more."""
    s = replace(settings({**wish, "cost": {}}), burst_capacity=0, flap_budget=None)
    event = {"waiting": waiting, "claimed": 3, "expired": 0, "age": 0, "after": 30, "arrival_rate": rate,
             "arrival_cv2": 1.0, "service_mean": service, "service_cv2": 1.0, "utilisation": 0.6,
             "startup": startup}  # fmt: skip
    targets = [decision.desired for decision, _ in course(s, [event] * 600)]
    assert len(set(targets[-60:])) == 1


@pytest.mark.parametrize("mode", MODES[:-1])
def test_the_state_stays_small(mode):
    s = settings({"mode": [mode, "predictive"], "slo": "5s@95%", "predictor": "learned", "max": 5000,
                  "stabilization": {"up": 3600, "down": 86400}, "scale_up_rate": None, "scale_down_rate": None,
                  "cooldown_period": 0, "interval": 1})  # fmt: skip
    events = [{"waiting": 5 + 7 * n % 1999, "claimed": 0, "expired": 0, "age": 0, "after": 1, "arrival_rate": 1 + n % 7,
               "service_mean": 1.0, "utilisation": n % 2} for n in range(800)]  # fmt: skip
    *_, (_, state) = course(s, events)
    assert len(json.dumps(state)) < 20_000
    assert max(len(state["up"]), len(state["down"])) <= memory.MOST


def test_a_clock_that_goes_back_loses_the_windows_and_no_order():
    state = memory.pause(memory.hold({}, 2_000.0))
    s = settings({"mode": "target"})
    _, state = decide(Observation(at=1_000_000.0, target=5, waiting=9, claimed=0, expired=0), s, state)
    decision, state = decide(Observation(at=1_000.0, target=5, waiting=9, claimed=0, expired=0), s, state)
    assert decision.desired == 5
    assert decision.bound_by == "hold"
    assert decision.counterfactual == "would be 6 but for held by hand for another 1000 s and scaling is paused"
    assert state["at"] == 1_000.0


@pytest.mark.parametrize("junk", [{"version": 99, "up": "x"}, {"version": 0}, {"hold_until": 5.0}])
def test_a_state_of_another_version_is_begun_anew(junk):
    decision, state = decide(Observation(at=10.0, target=5, waiting=9, claimed=0, expired=0), settings({}), junk)
    assert decision.desired == 6
    assert state["version"] == memory.VERSION
