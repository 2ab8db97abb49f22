"""Every policy and every clamp on tables and timelines: what is seen, and what has to come of it. Time is simulated."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from flatfleet.runtime.policies import clamps, effect, forecast, memory, naming, queueing, schedule, slo
from flatfleet.runtime.policies.deciding import POLICIES, decide
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import Entry, settings

T0 = 1_700_000_000.0


def look(at=0.0, target=4, **seen):
    """An observation `at` seconds from the start, fresh, of a fleet that is what it should be."""
    counts = {"waiting": 0, "claimed": 0, "expired": 0}
    return Observation(
        at=T0 + at, measured=T0 + at, **{"target": target, "workers": seen.get("workers", target)} | counts | seen
    )


def want(name, wish, state=None, **seen):
    return POLICIES[name](look(**seen), settings({"mode": "target", **wish}), {} if state is None else state)


def timeline(wish, rows, target=4, state=None):
    """Decide on each row (seconds from the start, what is seen, the target that is to come of it, and by which clamp)."""
    s, state = settings(wish), state or {}
    for at, seen, expected, *bound in rows:
        decision, state = decide(look(at, **{"target": target} | seen), s, state)
        assert decision.desired == expected, (at, decision.data())
        assert not bound or decision.bound_by == bound[0], (at, decision.data())
        target = decision.desired
    return decision, state


FREE = {"mode": "target", "target_utilization": 1, "scale_up_rate": None, "scale_down_rate": None, "cooldown_period": 0,
        "tolerance": 0, "max": 100}  # fmt: skip
"""Target = items, at once: so that one clamp at a time can be put on top."""


# -- policies ----------------------------------------------------------------------------------------------------------


def test_fixed_stays_whatever_comes():
    busy = {"waiting": 900}
    timeline({"mode": "fixed", "workers": 7, "scale_up_rate": None}, [(0, busy, 7), (100, {}, 7), (9000, {}, 7)])
    timeline({"mode": "fixed"}, [(0, busy, 4), (9000, {}, 4)])


QUIET = {"utilisation": 0.2}


@pytest.mark.parametrize(
    ("seen", "desired", "reason"),
    [
        ({"utilisation": 0.81}, 5, "utilisation 0.81 > 0.8"),
        ({"utilisation": 0.8}, 4, "between"),
        ({"claimed": 4}, 5, "utilisation 1.00 > 0.8"),
        ({"claimed": 1}, 4, "quiet for 0 of 300 s"),
        ({"utilisation": 0.5, "waiting": 6}, 5, "depth 6 > 5"),
        ({"utilisation": 0.5, "waiting": 3, "expired": 3}, 5, "depth 6 > 5"),
        ({"utilisation": 0.5, "waiting": 5}, 4, "between"),
        ({"utilisation": 0.5, "delayed": 99}, 4, "between"),
        ({"utilisation": 0.5, "waiting": 1, "wait_mean": 1.1}, 5, "mean wait 1.1 s > 1 s with 1 queued"),
        ({"utilisation": 0.5, "waiting": 0, "wait_mean": 1.1}, 4, "between"),
        ({"utilisation": 0.5, "response": 2.1}, 5, "response 2.1 s > sla 2 s"),
        ({"utilisation": 0.9, "waiting": 6}, 5, "utilisation 0.90 > 0.8; depth 6 > 5"),
        ({**QUIET, "idle": 299}, 4, "quiet for 299 of 300 s"),
        ({**QUIET, "idle": 301}, 3, "utilisation < 0.3 and nothing queued for 301 s"),
        ({"utilisation": 0.3, "idle": 301}, 4, "between"),
        ({**QUIET, "waiting": 1, "idle": 301}, 4, "between"),
        ({"claimed": None}, None, "the utilisation is not known"),
    ],
)
def test_thresholds_any_up_and_all_down(seen, desired, reason):
    found = want("thresholds", {"sla": 2}, **seen)
    assert (found.desired, found.reason) == (desired, pytest.approx(found.reason))
    assert reason in found.reason


def test_thresholds_go_down_one_by_one_after_a_quiet_time():
    rows = [(0, QUIET, 4), (299, QUIET, 4), (300, QUIET, 3), (330, QUIET, 3, "cooldown"), (361, QUIET, 2),
            (370, {"utilisation": 0.5}, 2),
            (380, QUIET, 2), (679, QUIET, 2), (680, QUIET, 1), (1000, QUIET, 1)]  # fmt: skip
    timeline({"mode": "thresholds"}, [(at, {**seen, "claimed": 1}, *rest) for at, seen, *rest in rows])


@pytest.mark.parametrize(
    ("target", "items", "goal", "tolerance", "desired"),
    [
        (1, 2, 1, 0.1, 2),  # twice the load, twice the workers: the example of the Kubernetes documentation
        (4, 2, 1, 0.1, 2),
        (10, 109, 10, 0.1, 10),  # a ratio of 1.09
        (10, 110, 10, 0.1, 10),  # 1.1 is still within
        (10, 111, 10, 0.1, 12),
        (10, 90, 10, 0.1, 10),
        (10, 89, 10, 0.1, 9),
        (10, 111, 10, 0.2, 10),
        (4, 4, 0.7, 0.1, 6),
        (3, 7, 0.7, 0, 10),
    ],
)
def test_target_is_the_ratio_of_kubernetes(target, items, goal, tolerance, desired):
    wish = {**FREE, "target_utilization": goal, "tolerance": tolerance}
    timeline(wish, [(0, {"waiting": 1, "claimed": items - 1}, desired)], target)


def test_target_under_the_defaults_of_kubernetes():
    """Up at most max(100 %, 4) each 15 s, down to the most of the last 300 s."""
    wish = {**FREE, "interval": 15, "scale_up_rate": [4, "100%"], "stabilization": {"down": 300}, "tolerance": 0.1}
    rows = [(0, {"waiting": 50}, 5, "rate"), (15, {"waiting": 50}, 10), (30, {"waiting": 50}, 20), (45, {"waiting": 50}, 40),
            (60, {"waiting": 50}, 50), (75, {"waiting": 10}, 50, "stabilization"), (360, {"waiting": 10}, 50),
            (361, {"waiting": 10}, 10)]  # fmt: skip
    timeline(wish, rows, target=1)


@pytest.mark.parametrize(
    ("seen", "max_wait", "desired"),
    [
        ({"waiting": 12, "service_mean": 1.0}, 3, 3),  # 1 in hand and 3 waiting each
        ({"waiting": 12, "service_mean": 1.0}, 0, 12),
        ({"claimed": 8, "expired": 4, "service_mean": 4.0}, 2, 8),
        ({"waiting": 0, "service_mean": 1.0}, 3, 0),
        ({"waiting": 9}, 3, 5),
        ({"claimed": 4}, 3, None),
        ({"waiting": None}, 3, None),
    ],
)
def test_latency_is_the_acceptable_backlog(seen, max_wait, desired):
    assert want("latency", {"max_wait": max_wait}, **seen).desired == desired


def test_slo_is_the_fewest_workers_of_the_model():
    load = {"arrival_rate": 5.0, "service_mean": 2.0, "arrival_cv2": 2.0, "service_cv2": 0.5}
    found = want("slo", {"slo": "1s@95%"}, **load)
    fewest = queueing.workers_for(5.0, 0.5, 1.0, 0.95, arrival_cv2=2.0, service_cv2=0.5)
    assert found.desired == fewest == 14
    assert queueing.Queue(5.0, 0.5, 13, arrival_cv2=2.0, service_cv2=0.5).level(1.0) < 0.95
    assert want("slo", {"slo": "1s@99.9%"}, **load).desired > fewest
    assert want("slo", {"slo": "1s@95%"}, dispatch=0.9, **load).desired > fewest  # 0.1 s are left for the wait


@pytest.mark.parametrize(
    ("seen", "desired"),
    [
        ({"waiting": 60, "startup": 0.0}, 22),  # (λ + 60/10) · 2 s
        ({"waiting": 60, "startup": 10.0, "workers": 16}, 16),  # 16 have 30 of them done when a new worker comes: 3/s
        ({"waiting": 60, "startup": 10.0, "workers": 16, "starting": 16}, 24),  # they begin on the way there
        ({"waiting": 20, "startup": 10.0, "workers": 16}, 12),  # gone by then, and (λ + 20/20) · 2 s are enough for it
        ({"waiting": 9, "startup": 10.0, "workers": 16}, None),  # as many as there are in steady state
        ({"waiting": 20, "startup": 10.0, "workers": 12}, 12),  # 10 of them left for 10 s
        ({"waiting": 20, "startup": 10.0, "workers": 11}, 13),  # one fewer leaves 15
    ],
)
def test_slo_works_off_a_queue_within_its_time(seen, desired):
    load = {"arrival_rate": 5.0, "service_mean": 2.0}
    steady = want("slo", {"slo": "10s@99%", "max": 99}, **load).desired
    assert want("slo", {"slo": "10s@99%", "max": 99}, **load, **seen).desired == (desired or steady)


def test_slo_works_off_a_queue_at_leisure_where_it_may_miss_some():
    """Where 10 % may miss, within a start and a service (12 s); where 1 % may, within a tenth of it, or its wait."""
    load = {"arrival_rate": 5.0, "service_mean": 2.0, "waiting": 60, "startup": 10.0, "workers": 10}
    wanted = {level: want("slo", {"slo": f"1s@{level}%", "max": 999}, **load).desired for level in (80, 90, 95, 99)}
    assert wanted == {80: 18, 90: 20, 95: 30, 99: 110}  # 60 are left: (5 + 60 / 15, 12, 6, 1.2) · 2


def test_slo_takes_a_start_for_half_a_minute_until_one_was_measured():
    """Else the first queue of a fleet, while nobody has started yet, looks as if workers came at once."""
    load = {"arrival_rate": 5.0, "service_mean": 2.0, "waiting": 60, "workers": 1}
    unknown = want("slo", {"slo": "1s@95%", "max": 999}, **load).desired
    assert unknown == want("slo", {"slo": "1s@95%", "max": 999}, startup=30.0, **load).desired == 35
    assert want("slo", {"slo": "1s@95%", "max": 999}, startup=0.0, **load).desired == 130


def test_slo_without_measurements_is_careful():
    assert want("slo", {"slo": "5s@95%"}, waiting=3).desired is None
    assert want("slo", {"slo": "5s@95%"}, waiting=30).desired == 5
    assert want("slo", {"slo": "5s@95%"}, waiting=30, service_mean=1.0).reason.startswith("no arrival rate")
    assert want("slo", {"slo": "5s@95%"}, arrival_rate=0.0, service_mean=1.0).desired == 0
    huge = want("slo", {"slo": "5s@95%"}, waiting=10**9, arrival_rate=1e9, service_mean=1e9, arrival_cv2=1e9)
    assert math.isfinite(huge.desired)


def test_slo_takes_no_item_for_shorter_than_the_first_has_taken():
    """Nothing has ended yet: the time in hand sizes the fleet, up to the work that there is, and takes nobody away."""
    state, wish = {}, {"slo": "30s@95%", "max": 99}
    seen = {"target": 1, "claimed": 1, "arrival_rate": 0.5}
    assert want("slo", wish, state, at=0, waiting=3, **seen).desired is None
    after = want("slo", wish, state, at=20, waiting=9, **seen)
    model = want("slo", wish, waiting=9, service_mean=20.0, **seen)
    assert after.desired == 10 < model.desired  # 1 in hand and 9 that wait
    assert after.reason.startswith("nothing is done after 20 s")
    assert want("slo", wish, state, at=40, waiting=99, **seen).desired > model.desired
    assert want("slo", wish, state, at=60, waiting=0, **seen | {"target": 7, "arrival_rate": 0.01}).desired == 7
    assert want("slo", wish, state, at=80, waiting=0, **seen | {"claimed": 0}).desired is None
    assert want("slo", wish, state, at=100, waiting=9, **seen).reason.endswith("one more")  # another first item
    known = want("slo", wish, state, at=120, waiting=0, service_mean=2.0, **seen)
    assert known.seen["service"] == 2.0


def test_slo_lets_no_worker_go_that_it_would_want_back():
    """The same look again, with as many workers as were wanted, wants as many again."""
    for waiting, rate, service, startup in itertools.product(
        [0, 1, 4, 30, 400], [0.3, 2.0], [0.2, 9.0], [0.0, 8.0, 90.0]
    ):
        seen = {"waiting": waiting, "arrival_rate": rate, "service_mean": service, "startup": startup}
        for present in range(0, 90, 3):
            count = present
            for _ in range(2):
                count = want("slo", {"slo": "5s@95%", "max": 999}, **seen, workers=count).desired
            again = want("slo", {"slo": "5s@95%", "max": 999}, **seen, workers=count).desired
            assert again == count, (seen, present)


def test_slo_holds_still_under_noise_and_follows_a_step_at_once():
    """A window of 60 s has 60 of the 200 samples that a mean is taken over."""
    draw, state, seen = random.Random(1), {}, {"service_mean": 20.0, "throughput": 1.0}
    wanted, raw = [], []
    for n in range(200):
        rate = 1.0 + draw.gauss(0, math.sqrt(1 / 60))
        wish = {"slo": "5s@95%", "max": 99}
        wanted.append(want("slo", wish, state, at=15 * n, arrival_rate=rate, **seen).desired)
        raw.append(want("slo", wish, arrival_rate=rate, **seen).desired)
    assert max(wanted[40:]) - min(wanted[40:]) <= 5
    assert max(raw[40:]) - min(raw[40:]) >= 15
    after = want("slo", {"slo": "5s@95%", "max": 99}, state, at=3000, arrival_rate=1.8, **seen).desired
    assert after == want("slo", {"slo": "5s@95%", "max": 99}, arrival_rate=1.8, **seen).desired


def test_slo_follows_a_beginning_without_delay():
    """A rate measured since the start is the mean of all there is: the smoothing adds no lag before a window is full."""
    wish, state, seen = (
        {"slo": "5s@95%", "max": 99, "metrics_window": 120},
        {},
        {"service_mean": 4.0, "throughput": 1.0},
    )
    for at, rate in ((15, 1.0), (30, 1.4), (45, 1.9), (60, 2.3), (120, 2.8)):
        found = want("slo", wish, state, at=at, arrival_rate=rate, **seen).desired
        assert found == want("slo", wish, at=at, arrival_rate=rate, **seen).desired


def test_slo_knows_that_the_first_completions_are_the_short_ones():
    """10 workers have been at it for 30 s and completed 15 items of 8 s: the time in hand says 300 s / 15 = 20 s, which
    is 14.8 s less one standard deviation, and 1.5 × 8 s are believed; after a window the mean of the completions is.
    """
    wish = {"slo": "5s@95%", "max": 999, "metrics_window": 60, "stale_after": 60}
    seen = {"arrival_rate": 2.0, "throughput": 0.5, "claimed": 10, "startup": 0.0}
    state = {}
    want("slo", wish, state, at=0, service_mean=8.0, **seen)
    early = want("slo", wish, state, at=30, service_mean=8.0, **seen)
    assert early.seen["service"] == 12.0
    late = want("slo", wish, state, at=200, service_mean=8.0, **seen)
    assert late.seen["service"] == 8.0


def daily(at):
    """A rate with a cycle of a day, from 1 to 9."""
    return 5 - 4 * math.cos(2 * math.pi * at / 86400)


def test_seasonal_naive_knows_yesterday():
    state = {}
    for at in range(0, 86400 + 3600, 300):
        found, _ = forecast.seasonal(state, at, daily(at), 1800, 86400)
        assert (found is None) == (at < 86400 - 1800)
    assert found == pytest.approx(daily(at + 1800), rel=0.05)
    found, _ = forecast.seasonal(state, at + 3 * 86400, 1.0, 1800, 86400)
    assert found is None  # three days without a look: nothing is known of yesterday


def test_a_gap_leaves_no_old_season():
    state = {}
    for at in range(0, 86400, 300):
        forecast.seasonal(state, at, 5.0, 600, 86400)
    forecast.seasonal(state, 86400 + 43200, 5.0, 600, 86400)
    assert state["slots"].count(None) == 72


def test_looks_that_are_further_apart_than_a_slot_leave_no_hole_in_a_season():
    """Slots of 12.5 s, looks each 30 s: a slot without a look has the rate of the look after it."""
    state = {}
    for n in range(61):
        forecast.seasonal(state, 30.0 * n, 5.0 if n < 30 else 8.0, 45, 1800)
    assert None not in state["slots"]
    found = [forecast.seasonal(state, 1800 + 30.0 * n, 8.0, 45, 1800)[0] for n in range(60)]
    assert found[:28] == [5.0] * 28 and found[29:58] == [8.0] * 29
    forecast.seasonal(state, 3600.0, None, 45, 1800)
    assert state["slots"][141:] == [8.0, None, None]  # 3570 s was looked at, and nothing was measured from then on


def test_the_learned_model_beats_no_change_on_a_cycle_and_does_no_harm_on_noise():
    lead, misses = 1800, {}
    for name, noise in (("cycle", 0.0), ("noise", 0.3)):
        draw, state, series = random.Random(3), {}, {}
        found = {}
        for at in range(0, 3 * 86400, 60):
            series[at] = (daily(at) if name == "cycle" else 5.0) * math.exp(draw.gauss(0, noise))
            level = series[at] if name == "cycle" else 5.0
            found[at], _ = forecast.learned(state, at, series[at], level, lead, 86400)
        late = [at for at in found if 2 * 86400 < at < 3 * 86400 - lead]
        truth = {at: daily(at + lead) if name == "cycle" else 5.0 for at in late}
        now = {at: series[at] if name == "cycle" else 5.0 for at in late}
        misses[name] = [sum(abs(math.log(each[at] / truth[at])) for at in late) / len(late) for each in (found, now)]
    assert misses["cycle"][0] < misses["cycle"][1] / 2
    assert misses["noise"][0] < 0.02


def test_predictive_scales_ahead_by_the_start_up_time_and_never_down():
    wish = {**FREE, "mode": ["target", "predictive"], "slo": "5s@95%", "season": 3600, "tolerance": 0}
    s, state, cold = settings(wish), {}, {"service_mean": 2.0, "startup": 60.0, "claimed": 1}
    wanted = {}
    for n in range(721):  # 1/s for half an hour, 9/s for the other, twice
        at = T0 - T0 % 3600 + 10.0 * n
        rate = 9.0 if at % 3600 >= 1800 else 1.0
        o = Observation(at=at, measured=at, target=1, workers=1, waiting=0, expired=0, arrival_rate=rate, **cold)
        decision, state = decide(o, s, state)
        wanted[10 * n] = decision.desired
    model = queueing.workers_for(9.0, 0.5, 5.0, 0.95)
    assert wanted[1700] < 10  # the first time nothing is known
    assert wanted[3600 + 1700] < 10
    assert wanted[3600 + 1750] >= model  # the second time: 60 s and an interval before it comes
    decision, _ = decide(
        look(20_000, target=50, arrival_rate=1.0, **cold),
        settings({**wish, "mode": ["predictive", "latency"], "predictor": "learned"}),
        {},
    )
    assert (
        decision.desired == queueing.workers_for(1.0, 0.5, 5.0, 0.95) == 3
    )  # latency agrees; what the forecast wants is kept


def test_predictive_abstains_where_it_knows_nothing():
    decision, _ = decide(look(waiting=0, claimed=2, target=9), settings({**FREE, "mode": ["target", "predictive"]}), {})
    assert decision.desired == 2
    assert "no season" in decision.wants[1].reason or "measured yet" in decision.wants[1].reason


@pytest.mark.parametrize(
    ("modes", "seen", "desired"),
    [
        (["target", "thresholds"], {"claimed": 20, "utilisation": 0.5}, 20),  # the largest wins up
        (["target", "thresholds"], {"claimed": 2, "utilisation": 0.5}, 10),  # thresholds do not agree
        (["target", "latency"], {"claimed": 8, "service_mean": 1.0}, 8),  # 8 and 4: both agree, on the larger
        (["target", "latency"], {"claimed": 8}, 10),  # latency cannot tell
        (["target", "latency"], {"claimed": 12}, 12),  # up does not need it
    ],
)
def test_of_several_modes_the_largest_wins_up_and_all_must_agree_down(modes, seen, desired):
    timeline({**FREE, "mode": modes}, [(0, seen, desired)], target=10)


# -- schedule ----------------------------------------------------------------------------------------------------------


def clock(text, zone="UTC"):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=schedule.timezone(zone)).timestamp()


@pytest.mark.parametrize(
    ("cron", "hours", "at", "expected"),
    [
        ("0 9 * * *", 8, "2024-05-15T09:00", True),
        ("0 9 * * *", 8, "2024-05-15T08:59:59", False),
        ("0 9 * * *", 8, "2024-05-15T16:59:59", True),
        ("0 9 * * *", 8, "2024-05-15T17:00", False),
        ("0 22 * * *", 8, "2024-05-15T05:59", True),  # over midnight
        ("0 9 * * mon-fri", 8, "2024-05-18T10:00", False),  # a Saturday
        ("0 9 * * 1-5", 8, "2024-05-17T10:00", True),
        ("0 0 * * fri", 72, "2024-05-19T23:00", True),
        ("0 0 * * 7", 24, "2024-05-19T12:00", True),  # 7 is Sunday too
        ("*/15 * * * *", 1 / 30, "2024-05-15T10:31", True),
        ("*/15 * * * *", 1 / 30, "2024-05-15T10:33", False),
        ("5/20 * * * *", 1 / 60, "2024-05-15T10:45", True),
        ("0 0 1 jan,jul *", 24, "2024-07-01T12:00", True),
        ("0 0 1 jan,jul *", 24, "2024-06-01T12:00", False),
        ("0 0 29 2 *", 24, "2024-02-29T12:00", True),
        ("0 0 13 * fri", 24, "2024-05-13T12:00", True),  # day or weekday: one is enough
        ("0 0 13 * fri", 24, "2024-05-17T12:00", True),
        ("0 0 13 * fri", 24, "2024-05-14T12:00", False),
    ],
)
def test_a_cron_and_its_duration(cron, hours, at, expected):
    assert schedule.active(Entry(cron, hours * 3600), clock(at)) is expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [("2024-01-15T08:00", True), ("2024-01-15T07:59", False), ("2024-07-15T07:00", True), ("2024-07-15T06:59", False)],
)
def test_a_time_zone_with_summer_time(at, expected):
    assert schedule.active(Entry("0 9 * * *", 3600, "Europe/Berlin"), clock(at)) is expected


@pytest.mark.parametrize("text", ["0 0 29 2 *", "0 0 31 2,3 *", "0 0 30 4 *", "0 0 31 2 mon"])
def test_a_rare_cron_comes(text):
    assert schedule.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 9 * *", "has 4 fields"),
        ("60 9 * * *", "minute '60' is none of: *, 0 to 59"),
        ("0 9 * * fry", "weekday 'fry' is none of: *, 0 to 7, or sun to sat"),
        ("0 9-5 * * *", "hour '9-5'"),
        ("0 */0 * * *", "hour '*/0'"),
        ("0 9 0 * *", "day '0'"),
        ("0 -3 * * *", "hour '-3'"),
        ("0 9,  * * *", "hour ''"),
        ("0 0-70/40 * * *", "hour '0-70/40'"),
        ("٣ 9 * * *", "minute '٣'"),
        ("1_0 9 * * *", "minute '1_0'"),
        ("0 0 31 2 *", "cron '0 0 31 2 *' never comes: none of its months has a day 31"),
        ("0 0 30,31 feb *", "never comes: none of its months has a day 30"),
        ("0 0 31 4,jun */2", "never comes"),
    ],
)
def test_a_wrong_cron_says_which_field(text, said):
    with pytest.raises(ValueError, match=r"cron|none of") as caught:
        schedule.parse(text)
    assert said in str(caught.value)


def test_the_schedule_overrides_min_max_and_target():
    day = clock("2024-05-15T00:00") - T0
    wish = {**FREE, "max": 10, "schedule": [
        {"cron": "0 8 * * *", "duration": "10h", "min": 6, "max": 30},
        {"cron": "0 12 * * *", "duration": "1h", "target": 15},
        {"cron": "0 20 * * *", "duration": "1h", "max": 3},
    ]}  # fmt: skip
    rows = [(7, 40, 10, "max"), (8, 40, 30, "schedule"), (9, 2, 6, "schedule"), (12, 40, 15, "schedule"), (13, 20, 20, None),
            (18, 20, 10, "max"), (20, 20, 3, "schedule"), (21, 1, 1, None)]  # fmt: skip
    timeline(wish, [(day + 3600 * hour, {"claimed": items}, desired, bound) for hour, items, desired, bound in rows])


# -- clamps ------------------------------------------------------------------------------------------------------------

TIMELINES = {
    "min and max": ({"min": 2, "max": 8}, [(0, {"claimed": 12}, 8, "max"), (10, {"claimed": 1}, 2, "min")]),
    "outside min and max": ({"max": 8, "cooldown_period": 600, "scale_down_rate": 1, "flap_budget": 2},
                            [(0, {"target": 30, "claimed": 30}, 8)]),
    "tolerance": ({"tolerance": {"up": 0.1, "down": 0.3}},
                  [(0, {"claimed": 10}, 10), (10, {"claimed": 11}, 10, "tolerance"), (20, {"claimed": 12}, 12),
                   (30, {"claimed": 9}, 12, "tolerance"), (40, {"claimed": 8}, 8)]),
    "rates in workers": ({"scale_up_rate": 2, "scale_down_rate": 3},
                         [(0, {"claimed": 9}, 6, "rate"), (10, {"claimed": 9}, 8), (20, {"claimed": 9}, 9),
                          (30, {"claimed": 1}, 6, "rate"), (40, {"claimed": 1}, 3)]),
    "rates in percent": ({"scale_up_rate": ["50%", 1], "scale_down_rate": "10%"},
                         [(0, {"claimed": 40}, 6), (10, {"claimed": 40}, 9), (20, {"claimed": 40}, 14),
                          (30, {"claimed": 1}, 12, "rate")]),
    "stabilization down": ({"stabilization": {"down": 60}},
                           [(0, {"claimed": 9}, 9), (10, {"claimed": 6}, 9, "stabilization"), (61, {"claimed": 2}, 6),
                            (70, {"claimed": 2}, 6), (71, {"claimed": 2}, 2)]),
    "stabilization up": ({"stabilization": {"up": 60}},
                         [(0, {"claimed": 4}, 4), (10, {"claimed": 9}, 4, "stabilization"), (40, {"claimed": 7}, 4),
                          (61, {"claimed": 8}, 7, "stabilization"), (101, {"claimed": 8}, 8)]),
    "cooldown": ({"cooldown_period": {"up": 30, "down": 60}},
                 [(0, {"claimed": 5}, 5), (29, {"claimed": 9}, 5, "cooldown"), (30, {"claimed": 9}, 9),
                  (89, {"claimed": 2}, 9, "cooldown"), (90, {"claimed": 2}, 2)]),
    "from zero at once": ({"min": 0, "cooldown_period": 600, "stabilization": {"up": 600}, "idle_terminate": 0},
                          [(0, {}, 0), (1, {}, 0), (2, {"waiting": 3}, 1), (3, {"waiting": 3}, 1)]),
    "to zero after the idle time": ({"min": 0, "idle_terminate": 120, "stabilization": {"down": 900}, "scale_down_rate": 1},
                                    [(0, {"claimed": 4}, 4), (30, {}, 4), (60, {"waiting": 1}, 4), (179, {}, 4),
                                     (180, {}, 0)]),
    "never to zero before": ({"min": 0}, [(0, {}, 1), (299, {}, 1), (300, {}, 0), (310, {}, 0)]),
    "idle by the store's own clock": ({"min": 0}, [(0, {"idle": 299}, 1), (10, {"idle": 301}, 0)]),
    "a busy worker is not idle": ({"min": 0}, [(0, {"claimed": 1}, 1), (9000, {"claimed": 1}, 1)]),
    "an expired item is demand": ({"min": 0}, [(0, {"expired": 2, "idle": 900}, 2)]),
    "missing": ({}, [(0, {"claimed": 9}, 9), (10, {"waiting": None}, 9), (5000, {"claimed": None}, 9),
                     (5010, {"claimed": 2}, 2)]),
    "flap budget": ({"flap_budget": 10, "tolerance": 0},
                    [(0, {"claimed": 9}, 9), (10, {"claimed": 1}, 7, "flap_budget"), (20, {"claimed": 9}, 9),
                     (30, {"claimed": 99}, 10, "flap_budget"), (40, {"claimed": 1}, 10), (3599, {"claimed": 1}, 10),
                     (3640, {"claimed": 1}, 5, "flap_budget")]),
    "cost an hour": ({"cost": {"per_worker_hour": 2, "cost_threshold": 13}}, [(0, {"claimed": 9}, 6, "cost"),
                                                                              (9, {"claimed": 5}, 5)]),
    "cost of the items": ({"cost": {"per_worker_hour": 1, "per_item": 0.01, "cost_threshold": 37}},
                          [(0, {"claimed": 9, "service_mean": 36.0}, 9),
                           (9, {"claimed": 90, "service_mean": 36.0}, 18, "cost")]),
    "cost as measured": ({"cost": {"cost_threshold": 10}}, [(0, {"claimed": 9, "cost_per_hour": 8.0}, 5, "cost")]),
    "budget": ({"min": 2, "cost": {"budget": 10}}, [(0, {"claimed": 9, "spent": 9.9}, 9),
                                                    (9, {"claimed": 9, "spent": 10.0}, 0, "cost"),
                                                    (18, {"claimed": 9, "spent": 10.1}, 0, "cost"), (27, {"spent": 10.1}, 0)]),
    "budget and a schedule": ({"cost": {"budget": 10}, "schedule": [{"cron": "* * * * *", "duration": 60, "target": 7}]},
                              [(0, {"spent": 9.9}, 7), (9, {"spent": 10.0}, 0, "cost")]),
    "budget after the flap budget": ({"flap_budget": 2, "cost": {"budget": 10}}, [(0, {"claimed": 9, "spent": 10.0}, 0)]),
    "budget and a missing metric": ({"cost": {"budget": 10}}, [(0, {"waiting": None, "spent": 10.0}, 4, "missing"),
                                                               (9, {"claimed": 4, "spent": 10.0}, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMELINES)
def test_clamp(name):
    wish, rows = TIMELINES[name]
    timeline({**FREE, **wish}, rows)


def test_the_order_is_the_documented_one():
    decision, _ = decide(look(), settings({}), {})
    assert [each.name for each in decision.clamps] == [
        "tolerance", "zero", "min", "max", "schedule", "burst", "stabilization", "cooldown", "rate", "effect", "cost",
        "flap_budget", "limits", "missing", "hold", "paused",
    ]  # fmt: skip


def test_a_stale_metric_holds_and_says_so():
    s = settings({**FREE, "interval": 10})
    for age, desired in ((30, 2), (31, 9)):
        o = Observation(at=T0, measured=T0 - age, target=9, workers=9, waiting=0, claimed=2, expired=0)
        decision, _ = decide(o, s, {})
        assert decision.desired == desired
    assert decision.reason == "the demand was measured 31 s ago"
    assert decision.wants == ()


def test_a_missing_metric_keeps_even_those_above_a_lowered_max():
    blind = {"waiting": None}
    timeline({**FREE, "max": 8}, [(0, {"target": 30, **blind}, 30, "missing"), (10, {"claimed": 30}, 8)])
    timeline({**FREE, "min": 6}, [(0, blind, 6)])  # up it may go: a bound is no guess


@pytest.mark.parametrize(("target", "low", "spent"), [(40, 0, 0), (2, 0, 0), (0, 2, 0)])
def test_to_come_within_the_bounds_costs_no_flap_budget(target, low, spent):
    """A fleet that somebody made too large, or too small, can still go to none, or to the most, within the hour."""
    wish = {**FREE, "min": low, "max": 2, "flap_budget": 4, "idle_terminate": 10}
    s = settings(wish)
    decision, state = decide(look(target=target, claimed=2), s, {})
    assert (decision.desired, memory.flaps(state)) == (2, spent)
    timeline(wish, [(10, {"claimed": 2}, 2), (20, {}, low), (30, {}, low)], 2, state)


def test_what_a_change_does_beyond_the_bounds_does_cost():
    _, state = timeline({**FREE, "max": 8, "flap_budget": 50}, [(0, {"claimed": 3}, 3)], 40)
    assert memory.flaps(state) == 5
    _, state = timeline({**FREE, "min": 4, "max": 8, "flap_budget": 50}, [(0, {"claimed": 6}, 6)], 1)
    assert memory.flaps(state) == 2
    burst = {**FREE, "max": 8, "burst_capacity": 4, "flap_budget": 50}
    _, state = timeline(burst, [(0, {"claimed": 8}, 8)], 12)
    assert memory.flaps(state) == 4  # a burst's own way back


def test_a_policy_is_named_by_what_it_says():
    assert naming.label({"preset": "auto"}).startswith("auto#")
    assert naming.label({}) == naming.label({"mode": "thresholds", "interval": "10s", "stale_after": 30})
    assert naming.label({}).startswith("thresholds#")
    assert naming.label({"mode": ["slo", "predictive"], "slo": "5s@95%"}).startswith("slo+predictive#")
    wishes = [
        {},
        {"max": 21},
        {"max": 22},
        {"min": 2},
        {"cooldown_period": 9},
        {"cost": {"budget": 1}},
        {"slo": "5s@95%"},
    ]
    assert len({naming.label(wish) for wish in wishes}) == len(wishes)
    assert naming.digest_of(naming.label({})) == naming.digest(settings({}))
    assert naming.digest_of("auto") is naming.digest_of(None) is naming.digest_of(4) is None


def test_a_burst_keeps_enough_of_the_flap_budget_to_end():
    wish = {**FREE, "max": 8, "burst_capacity": 50, "burst_time": 60, "flap_budget": 20}
    busy = {"claimed": 4, "waiting": 90}
    _, state = timeline(wish, [(0, busy, 16, "flap_budget"), (30, busy, 16), (60, busy, 8), (70, busy, 8)])
    assert memory.flaps(state) == 20
    rows = [(0, busy, 16), (10, {"claimed": 12}, 16), (20, {"claimed": 3}, 8, "flap_budget"), (30, {"claimed": 3}, 8)]
    timeline(wish, rows)


def test_the_model_needs_no_tolerance_upwards():
    load = {"arrival_rate": 5.0, "service_mean": 2.0}
    wish = {**FREE, "mode": "slo", "slo": "1s@95%", "tolerance": 0.3}
    fewest = want("slo", wish, **load).desired
    timeline(wish, [(0, load, fewest)], target=fewest - 1)
    timeline(wish, [(0, load, fewest + 2, "tolerance")], target=fewest + 2)


def test_a_forecast_alone_lets_nobody_go():
    s = replace(settings({**FREE, "mode": ["target", "predictive"], "predictor": "learned"}), mode=("predictive",))
    decision, _ = decide(look(claimed=1, arrival_rate=0.1, service_mean=1.0), s, {})
    assert decision.desired == 4


def test_a_missing_metric_does_not_start_the_idle_time():
    rows = [(0, {}, 1), (200, {"waiting": None}, 1), (400, {}, 1), (499, {}, 1), (500, {}, 0)]
    timeline({**FREE, "min": 0}, rows)


def test_a_burst_goes_above_max_for_a_bounded_time():
    wish = {**FREE, "max": 8, "burst_capacity": 4, "burst_time": 60, "scale_up_rate": 1, "cooldown_period": 300}
    rows = [(0, {"claimed": 5}, 5), (10, {"claimed": 5, "waiting": 4}, 5, "cooldown"),
            (20, {"claimed": 5, "waiting": 30}, 12),
            (50, {"claimed": 12}, 12), (79, {"claimed": 11}, 12), (80, {"claimed": 11, "waiting": 90}, 8),
            (90, {"claimed": 8, "waiting": 90}, 8), (139, {"claimed": 8, "waiting": 90}, 8),
            (140, {"claimed": 8, "waiting": 90}, 12)]  # fmt: skip
    decision, _ = timeline(wish, rows)
    assert "max = 8 and burst_capacity = 4" in decision.reason


def test_nobody_goes_in_a_burst_and_it_ends_when_it_is_calm():
    wish = {**FREE, "max": 8, "burst_capacity": 4}
    timeline(wish, [(0, {"waiting": 30}, 12), (10, {"claimed": 10}, 12, "burst"), (20, {"claimed": 3}, 3)])


def test_a_hold_and_a_pause_leave_the_target_alone():
    busy, state = {"claimed": 9}, memory.hold({}, T0 + 600)
    _, state = timeline(FREE, [(0, busy, 4, "hold"), (599, busy, 4, "hold"), (600, busy, 9)], state=state)
    _, state = timeline(FREE, [(700, {"claimed": 2}, 9, "paused"), (90_000, busy, 9)], 9, memory.pause(state))
    timeline(FREE, [(90_010, {"claimed": 2}, 2)], 9, memory.pause(state, False))


def test_spot_falls_back_to_on_demand_after_a_wait_and_each_is_priced():
    """Further workers cost what is asked for, those that run what they are: 2 on-demand and 2 spot, 10 of 20 an hour."""
    cost = {"per_worker_hour": 4, "per_spot_hour": 1, "cost_threshold": 20}
    s, state, found = settings({**FREE, "prefer_spot": True, "spot_wait": 60, "cost": cost}), {}, []
    for at, starting in ((0, 0), (10, 2), (69, 1), (70, 1), (80, 0)):
        decision, state = decide(look(at, claimed=90, starting=starting, spot=2), s, state)
        found.append((decision.data()["capacity"], decision.desired))
    assert found == [("spot", 14), ("spot", 14), ("spot", 14), ("on-demand", 6), ("spot", 14)]
    assert "capacity" not in decide(look(), settings({}), {})[0].data()


def test_where_there_can_be_no_spot_worker_all_are_on_demand_and_cost_as_much():
    cost = {"per_worker_hour": 4, "per_spot_hour": 1, "cost_threshold": 20}
    s = settings({**FREE, "prefer_spot": True, "spot_wait": 60, "cost": cost})
    decision, state = decide(look(0, claimed=90, target=9, workers=4), s, {"short_since": T0 - 5})
    assert (decision.capacity, decision.desired) == ("on-demand", 5)
    assert "short_since" not in state


# -- a scale-up that brings nothing ------------------------------------------------------------------------------------

LIMITED = {**FREE, "max": 16, "metrics_window": 60}


def queue(**seen):
    return {"waiting": 90, "claimed": 4, "service_mean": 1.0, **seen}


def test_a_scale_up_that_brought_no_throughput_is_undone_and_explained():
    refused = {"provider_faults": 3.0}
    rows = [(0, queue(throughput=5.0, provider_faults=0.0), 16), (10, queue(throughput=5.0, starting=12), 16),
            (30, queue(throughput=5.0), 16),
            (90, queue(throughput=5.1, **refused), 16), (91, queue(throughput=5.1, **refused), 4, "effect"),
            (200, queue(throughput=5.0), 4, "effect"), (390, queue(throughput=5.0), 4, "effect")]  # fmt: skip
    decision, state = timeline(LIMITED, rows)
    assert decision.counterfactual.startswith(
        "would be 16 but for 4 → 16 workers changed the throughput from 5/s to 5.1/s"
    )
    assert "3/s ended by the provider's fault (429, 5xx or no answer)" in decision.reason
    again = [(391, queue(throughput=5.0), 16), (400, queue(throughput=5.0), 16), (461, queue(throughput=5.0, **refused), 4),
             (1060, queue(throughput=5.0), 4), (1061, queue(throughput=5.0), 16)]  # fmt: skip
    timeline(LIMITED, again, state=state)  # tried again after 300 s, then after twice as long


@pytest.mark.parametrize(
    ("later", "why"),
    [
        ({"throughput": 19.0}, "it brought what it should"),
        ({"throughput": 11.0}, "half of it is better than nothing"),
        ({"throughput": 5.0, "waiting": 0, "claimed": 16}, "no item waits: there is nothing more to do"),
        ({"throughput": None}, "not measured"),
    ],
)
def test_a_scale_up_that_did_some_good_stays(later, why):
    rows = [
        (0, queue(throughput=5.0), 16),
        (30, queue(throughput=5.0), 16),
        (91, queue(**later), 16),
        (95, queue(**later), 16),
    ]
    timeline(LIMITED, rows)


def test_workers_that_have_not_begun_are_not_judged():
    rows = [(at, queue(throughput=5.0, starting=min(at, 1)), 16) for at in (0, 30, 100, 900)]
    timeline(
        LIMITED,
        [*rows, (901, queue(throughput=5.0), 16), (961, queue(throughput=5.0), 16), (962, queue(throughput=5.0), 4)],
    )


def test_noise_of_a_slow_pool_is_no_proof():
    """One completion a minute and one more worker: a minute without a second one says nothing."""
    slow = {**LIMITED, "scale_up_rate": 1, "cooldown_period": 600}
    rows = [(0, queue(throughput=1 / 60), 5), (10, queue(throughput=1 / 60), 5), (99, queue(throughput=0.0), 5)]
    timeline(slow, rows)


def test_the_pause_between_tries_is_bounded():
    kept, s = {"at": 0.0}, settings(LIMITED)
    for _ in range(30):
        effect.begin(kept, look(waiting=9, throughput=5.0), 16, 4)
        kept["effect"]["trial"]["ready"] = kept["at"]
        kept["at"] += 100
        effect.judge(kept, look(waiting=9, throughput=5.0, target=16), s, 16)
        assert kept["effect"]["until"] - kept["at"] <= effect.LONGEST
        kept["at"] = kept["effect"]["until"]


# -- explaining --------------------------------------------------------------------------------------------------------


def test_a_decision_as_data():
    s = settings({"mode": "target", "max": 8, "scale_up_rate": None})
    decision, _ = decide(look(waiting=4, claimed=4), s, {})
    found = json.loads(json.dumps(decision.data()))
    assert {name: found[name] for name in ("raw", "desired", "current", "outcome", "bound_by", "counterfactual")} == {
        "raw": 11.429, "desired": 8, "current": 4, "outcome": "up", "bound_by": "max",
        "counterfactual": "would be 12 but for max = 8",
    }  # fmt: skip
    assert found["wants"] == [{"policy": "target", "desired": 11.429, "reason": "8 items at 0.7 a worker",
                               "seen": {"demand": 8, "per_worker": 2.0}}]  # fmt: skip
    assert {each["name"]: each["after"] for each in found["clamps"]}["max"] == 8
    assert Observation.of(found["seen"]) == decision.seen


def test_the_example_in_the_documents_is_what_comes():
    page = (Path(__file__).parents[1] / "docs/scaling.md").read_text("utf-8")
    told = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])
    s = settings({"mode": "target", "max": 8, "scale_up_rate": None})
    found = decide(Observation.of(told["seen"]), s, {})[0].data()
    found["clamps"] = [each for each in found["clamps"] if each["before"] != each["after"]]
    assert told == found
    rows = re.findall(r"^\| ([\d, to]+) \| (.*?) \|", page, re.MULTILINE)
    names = [name for _, cell in rows for name in re.findall(r"`(\w+)`", cell)]
    assert names == [name for name, _ in clamps.ORDER]


def test_two_clamps_that_hide_each_other_are_both_named():
    decision, _ = decide(look(target=7, claimed=12), settings({**FREE, "max": 8, "scale_up_rate": 1}), {})
    assert (decision.desired, decision.bound_by) == (8, "max")
    assert decision.counterfactual == "would be 12 but for max = 8 and scale_up_rate allows +1"


def test_nothing_binds_where_the_want_is_had():
    decision, _ = decide(look(claimed=6), settings(FREE), {})
    assert (decision.desired, decision.bound_by, decision.counterfactual) == (6, None, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_number_that_is_none_counts_as_not_measured(bad):
    o = look(arrival_rate=bad, service_mean=bad)
    assert (o.arrival_rate, o.service_mean) == (None, None)


@pytest.mark.parametrize("mode", ["latency", "slo", ["target", "predictive"]])
@pytest.mark.parametrize("service", [5e-324, 1e-310, 1e-10])
def test_a_service_of_no_time_to_speak_of_is_one_of_a_nanosecond(mode, service):
    seen = Observation(
        at=9, workers=2, target=2, waiting=9, claimed=2, expired=0, arrival_rate=3.0, service_mean=service
    )
    decision, _ = decide(seen, settings({"mode": mode, "slo": "5s@95%"}), {})
    assert json.dumps(decision.data(), allow_nan=False)
    assert decision.seen.service_mean == 1e-9


def test_a_smoothed_service_time_is_never_nothing():
    """What is left of 1e6 s after a step to 1e-9 s may be 0 in floating point."""
    kept = {"arrival": {"value": 3.0}, "service": {"value": 0.0}}
    load = slo.measured(Observation(at=9), settings({"mode": "slo", "slo": "5s@95%"}), kept)
    assert load is not None and load.service == 1e-9
