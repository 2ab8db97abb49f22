"""The simulator against hand-made timelines and queueing formulas; the baselines against hand-made values."""

from __future__ import annotations

import itertools
import json
import random
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from flatfleet.runtime.errors import SourceError, UsageError
from flatfleet.runtime.policies.deciding import decide
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.queueing import Queue
from flatfleet.runtime.policies.settings import Slo, settings
from flatfleet.runtime.replay import decisions
from flatfleet.runtime.replay.baselines import Fixed, Hpa, SeasonalNaive
from flatfleet.runtime.replay.candidates import Production
from flatfleet.runtime.replay.choosing import choose
from flatfleet.runtime.replay.clairvoyant import clairvoyant, floor
from flatfleet.runtime.replay.contract import Conditions, Run, Terms
from flatfleet.runtime.replay.crew import LOST
from flatfleet.runtime.replay.results import METRICS, condition, summarise
from flatfleet.runtime.replay.simulator import MOST_DECISIONS, Fleet, simulate
from flatfleet.runtime.replay.timeline import every, timeline
from flatfleet.runtime.replay.traces import Request, Trace
from flatfleet.runtime.replay.windows import Windows, percentile
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

SIX = [(1, 10), (2, 10), (3, 12), (20, 15), (28, 10), (31, 2)]


class Scripted:
    """Decides every 10 s what it was told to, in the end the last of it for ever."""

    name, interval, window, per_item, prefers_spot = "scripted", 10.0, 60.0, 0.5, False

    def __init__(self, *targets: int, price: float | None = None) -> None:
        self.initial, self.price = targets[0], price
        self.targets = itertools.chain(targets, itertools.repeat(targets[-1]))
        self.seen = []

    def decide(self, at: float, fleet: Fleet) -> int:
        self.seen.append(fleet.observe(at))
        return next(self.targets)

    def terms(self) -> Terms:
        return Terms(self.price)


def trace(requests: Sequence[Request], end: float | None = None) -> Trace:
    return Trace("test", *zip(*requests, strict=True), requests[0][0], end or requests[-1][0])


def poisson(rate: float, service: float, count: int, seed: int = 1) -> list[Request]:
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        found.append((at, rng.expovariate(1 / service)))
    return found


# -- the simulator -----------------------------------------------------------------------------------------------------


def test_six_requests_by_hand() -> None:
    """The second worker is launched at 10, ready at 15, claims at 15 and 28, is drained at 30, and goes at 38."""
    candidate = Scripted(1, 2, 2, 1, price=36.0)
    run = simulate(SIX, candidate, Conditions(startup=5, sample=10), 0, 31)
    assert list(run.waits) == [0, 9, 12, 1, 5, 0]
    assert (run.end, run.paid, run.busy, run.unfinished) == (38, 38 + 28, 59, 0)
    assert (run.peak, run.starts, run.stops, run.decisions, run.changes, run.lost) == (2, 1, 1, 4, 2, 0)
    assert run.cost == pytest.approx(66 / 3600 * 36 + 6 * 0.5)
    assert run.samples == [(0, 1, 0, 0), (10, 2, 2, 3), (20, 2, 1, 4), (30, 2, 0, 5), (38, 1, 0, 6)]
    at10, at20, at30 = candidate.seen[1:]
    assert (at10.waiting, at10.claimed, at10.workers, at10.starting, at10.oldest_wait) == (2, 1, 1, 0, 8)
    assert (at20.workers, at20.starting, at20.startup, at20.waiting, at20.claimed) == (2, 0, 5, 1, 2)
    assert (at30.target, at30.utilisation, at30.idle, at30.draining) == (2, 1, 0, 0)
    assert (at20.arrival_rate, at30.throughput) == (4 / 20, 3 / 30)
    assert (at30.wait_mean, at30.wait_p50, at30.wait_p95) == ((9 + 12 + 1) / 5, 1, 12)
    assert (at30.service_mean, at30.response) == (32 / 3, (10 + 19 + 24) / 3)
    assert at30.spent == pytest.approx((30 + 20) / 3600 * 36 + 3 * 0.5)
    assert at30.cost_per_hour == 72
    row = summarise("six", run, Slo(5, 0.95))
    assert (row.slo, row.wait_mean, row.wait_p50, row.wait_p95, row.wait_max) == (4 / 6, 4.5, 1, 12, 12)
    assert (row.flaps, row.worker_hours, row.utilisation) == (2, 66 / 3600, 59 / 66)


def test_starting_and_idle_workers_go_at_once() -> None:
    run = simulate([(0, 1), (32, 1)], Scripted(3, 5, 1), Conditions(startup=15), 0, 32)
    assert (run.starts, run.stops, run.peak) == (2, 4, 5)
    assert run.paid == 3 * 20 + 2 * 10 + (33 - 20)  # the two were launched at 10, and gone before they were ready
    assert run.end == 33


def test_a_fleet_of_none_and_a_request_that_never_ends() -> None:
    run = simulate([(0, 1), (5, 1)], Scripted(0, 0, 1), Conditions(startup=3), 0, 5)
    assert list(run.waits) == [23, 19]
    run = simulate([(0, 1), (5, 1)], Scripted(0), Conditions(patience=1000), 0, 5)
    assert (run.unfinished, list(run.waits), run.paid, run.decisions) == (2, [], 0, 101)
    row = summarise("none", run, Slo(5, 0.95))
    assert (row.slo, row.wait_p95, row.utilisation, row.unfinished) == (0, float("inf"), 0, 2)


def test_a_trace_lasts_to_its_end() -> None:
    run = simulate([(0, 1)], Scripted(2), Conditions(), 0, 100)
    assert (run.end, run.paid, run.decisions) == (100, 200, 11)
    late = Scripted(1)
    simulate([(0, 1)], late, Conditions(phase=7), 0, 30)
    assert [seen.at for seen in late.seen] == [7, 17, 27]
    assert (late.seen[0].idle, late.seen[2].idle) == (7, 27)


@pytest.mark.parametrize(("workers", "load"), [(1, 0.6), (4, 0.75), (10, 0.7)])
def test_a_fixed_fleet_is_a_queue_of_the_textbook(workers: int, load: float) -> None:
    queue = Queue(load * workers / 10, 0.1, workers)
    requests = poisson(queue.arrival, 10, 100_000)
    run = simulate(requests, Fixed(workers), Conditions(), 0, requests[-1][0])
    assert sum(run.waits) / len(run.waits) == pytest.approx(queue.wq, rel=0.1)
    for within in (0, 5, 20):
        assert summarise("", run, Slo(within, 0.9)).slo == pytest.approx(queue.level(within), abs=0.015)
    assert run.busy / run.paid == pytest.approx(load, rel=0.02)


@runs(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 40), st.floats(0, 60)), min_size=1, max_size=60),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 7.5, 30.0]),
    st.sampled_from([0.0, 5.0, 60.0]),
)
def test_every_request_ends_and_every_second_is_paid_once(gaps, targets, last, startup, loss) -> None:
    arrivals = list(itertools.accumulate(gap for gap, _ in gaps))
    requests = [(at, service) for at, (_, service) in zip(arrivals, gaps, strict=True)]
    conditions = Conditions(startup, loss=loss, lease=12, sample=5)
    run = simulate(requests, Scripted(*targets, last, price=1.0), conditions, 0, arrivals[-1])
    assert (len(run.waits), run.unfinished) == (len(requests), 0)
    assert run.busy == pytest.approx(sum(service for _, service in requests))
    assert min(run.waits) >= 0
    assert run.paid >= run.busy - 1e-6
    assert run.cost == pytest.approx(run.paid / 3600 + 0.5 * len(requests))
    ended = run.stops + run.lost
    assert targets[0] + run.starts - ended <= run.samples[-1].workers <= targets[0] + run.starts
    assert run.peak == max(run.peak, *(sample.workers for sample in run.samples))
    if not loss:
        assert targets[0] + run.starts - run.stops <= run.samples[-1].workers
        assert run.lost == 0


def test_the_same_again_by_the_same_seed() -> None:
    requests = poisson(0.5, 20, 3000)

    def once(seed: int) -> Run:
        return simulate(requests, Hpa(1.0), Conditions(loss=2, seed=seed, sample=60), 0, requests[-1][0])

    assert once(1) == once(1)
    assert once(1).lost > 20
    assert once(1).waits != once(2).waits


def test_a_lost_worker_is_noticed_when_its_lease_is_over() -> None:
    fleet = Fleet(Fixed(1), Conditions(startup=30, lease=60), 0)
    fleet.heap.append((4, LOST, 0))
    run = fleet.run([(0, 10), (2, 1)], 2)
    assert list(run.waits) == [64 + 30, 102]
    assert (run.lost, run.starts, run.stops, run.busy) == (1, 1, 0, 11)
    assert run.paid == 4 + (105 - 64)


def test_a_lost_worker_that_was_drained_is_not_replaced() -> None:
    fleet = Fleet(Scripted(2, 1), Conditions(lease=60), 0)
    fleet.heap.append((12, LOST, 0))  # it has made the later claim, so it drains from 10 on
    run = fleet.run([(0, 50), (1, 50)], 1)
    assert sorted(run.waits) == [0, 71]
    assert (run.lost, run.starts, run.stops) == (1, 0, 1)


# -- windows -----------------------------------------------------------------------------------------------------------


def test_windows_forget() -> None:
    windows = Windows(60, 0)
    windows.arrivals.extend([1, 2, 4, 8])
    windows.claims.extend([(1, 0.5), (50, 2.5)])
    windows.completions.extend([(3, 2, 3), (50, 4, 9)])
    found = windows.measure(10)
    assert found["arrival_rate"] == 0.4
    assert found["arrival_cv2"] == pytest.approx((7 / 3) / (7 / 3) ** 2)
    assert (found["service_mean"], found["service_cv2"], found["response"]) == (3, 2 / 9, 6)
    found = windows.measure(62)
    assert (found["arrival_rate"], found["throughput"], found["wait_p50"]) == (2 / 60, 2 / 60, 2.5)
    assert "arrival_cv2" not in found  # one gap has no variance
    assert windows.measure(1000) == {"arrival_rate": 0, "throughput": 0}
    assert Windows(60, 5).measure(5) == {}


def test_a_window_that_is_too_full_measures_over_what_it_keeps() -> None:
    windows = Windows(60, 0)
    windows.arrivals.extend(n / 1000 for n in range(30_000))
    assert windows.measure(30)["arrival_rate"] == pytest.approx(1000)


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([1, 2, 3, 4], part) for part in (0, 0.5, 0.51, 0.95, 1)] == [1, 2, 3, 4, 4]


# -- the production policy ---------------------------------------------------------------------------------------------


class Recorded(Production):
    """Keeps its decisions as JSON lines."""

    def decide(self, at: float, fleet: Fleet) -> int:
        desired = super().decide(at, fleet)
        self.log.append(json.dumps(self.last.data()))
        return desired

    log: list[str]


def recorded(data: dict[str, object]) -> tuple[Run, list[str]]:
    requests = poisson(1.0, 8, 1500, seed=3)
    candidate = Recorded("recorded", settings(data))
    candidate.log = []
    return simulate(requests, candidate, Conditions(loss=1), 0, requests[-1][0]), candidate.log


FAST = {"max": 30, "scale_up_rate": None, "scale_down_rate": 3, "cooldown_period": 20, "slo": "5s@95%"}


@pytest.mark.parametrize("mode", ["target", "latency", "slo", ["thresholds", "predictive"]])
def test_recorded_decisions_come_out_the_same_again(mode: object, tmp_path: Path) -> None:
    data = {**FAST, "mode": mode}
    run, log = recorded(data)
    assert run.decisions == len(log) > 100
    assert run.changes > 5
    (tmp_path / "log.jsonl").write_text("\n\n".join(log))
    read = list(decisions.read(tmp_path / "log.jsonl"))
    assert [line for line, _ in read] == list(range(1, 2 * len(log), 2))
    same = list(decisions.again(read, settings(data)))
    assert [decision.desired for decision, _ in same] == [record["desired"] for _, record in read]
    assert [difference for _, difference in same if difference] == []
    other = [difference for _, difference in decisions.again(read, settings(data | {"max": 4})) if difference]
    assert other
    assert all(difference.changed["desired"][1] <= 4 for difference in other if "desired" in difference.changed)
    told = other[0].data()
    assert told["changed"].keys() <= set(decisions.COMPARED)
    assert told["line"] in range(1, 2 * len(log))


def test_a_record_may_bring_its_state() -> None:
    data = settings({**FAST, "mode": "target", "cooldown_period": 100})
    _, log = recorded({**FAST, "mode": "target", "cooldown_period": 100})
    records = [(n, json.loads(line)) for n, line in enumerate(log)]
    cut = next(n for n, record in records if record["bound_by"] == "cooldown")
    state: dict[str, object] = {}
    for _, record in records[:cut]:
        _, state = decide(Observation.of(record["seen"]), data, state)
    assert [each for _, each in decisions.again([(0, records[cut][1])], data) if each]  # its windows are missing
    brought = {**records[cut][1], "state": state}
    assert [each for _, each in decisions.again([(0, brought)], data) if each] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":2: no JSON"),
        ("[1]", ":2: no decision: it needs 'seen' with 'at'"),
        ('{"seen": {"target": 2}}', ":2: no decision: it needs 'seen' with 'at'"),
        ('{"seen": {"at": 2, "waiting": "many"}}', ':2: seen.waiting must be a number from 0 to 1e+15, got "many"'),
        ('{"seen": {"at": 2, "waiting": true}}', ":2: seen.waiting must be a number from 0 to 1e+15, got true"),
        ('{"seen": {"at": 2, "waiting": -1}}', ":2: seen.waiting must be a number from 0 to 1e+15, got -1"),
        (
            '{"seen": {"at": 2, "waiting": %s}}' % ("9" * 400),
            ":2: seen.waiting must be a number from 0 to 1e+15, got 99",
        ),
        ('{"seen": {"at": NaN}}', ":2: seen.at must be a number from -6e+10 to 2.5e+11, got NaN"),
        ('{"seen": {"at": 1e999}}', ":2: seen.at must be a number from -6e+10 to 2.5e+11, got Infinity"),
        ('{"seen": {"at": 1}, "raw": 1e999}', ":2: raw must be a finite number, got inf"),
        ('{"seen": {"at": 1}, "state": 5}', ":2: state must be a mapping, got 5"),
        ('{"seen": {"at": 1}, "state": {"policies": []}}', ":2: state.policies must be a mapping of mappings, got []"),
        ('{"seen": {"at": 1}, "state": {"up": 5}}', ":2: state.up must be a list of pairs"),
        ('{"seen": {"at": 1}, "state": {"changes": [[1]]}}', ":2: state.changes must be a list of pairs"),
        ('{"seen": {"at": 1}, "state": {"at": NaN}}', ":2: state.at must be a finite number, got NaN"),
        (
            '{"seen": {"at": 1}, "state": {"up": [[1, 1%s]]}}' % ("0" * 400),
            ":2: state.up[0][1] must be a finite number",
        ),
        ("[" * 100_000, ":2: no JSON"),
    ],
)
def test_what_is_no_log(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"seen": {"at": 1}}\n' + line)
    with pytest.raises(SourceError) as caught:
        list(decisions.read(path))
    assert str(caught.value).startswith(f"{path}{said}")


@pytest.mark.parametrize(
    "state",
    [
        {"version": 1, "at": "now"},
        {"version": 1, "up": [["a", "b"]]},
        {"version": 1, "policies": {"slo": {"arrival": 5}}},
    ],
)
def test_a_state_that_no_decision_leaves_is_no_fault_of_ours(tmp_path: Path, state: object) -> None:
    seen = {
        "at": 9,
        "workers": 2,
        "target": 2,
        "waiting": 9,
        "claimed": 2,
        "expired": 0,
        "arrival_rate": 1.0,
        "service_mean": 2.0,
    }
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"seen": seen, "state": state}))
    wish = settings({**FAST, "mode": "slo", "stabilization": 60})
    with pytest.raises(SourceError, match="line 1 cannot be decided again: the 'state' of line 1 is none that"):
        list(decisions.again(decisions.read(path), wish))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_log_is_no_log(tmp_path: Path, content: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(SourceError, match="has no decision in it"):
        list(decisions.read(path))


def test_prices_and_losses_of_spot_workers() -> None:
    cost = {"per_worker_hour": 3.0, "per_spot_hour": 1.0, "per_item": 0.25}
    plain = Production("plain", settings({"mode": "fixed", "workers": 2, "cost": cost}))
    spot = Production("spot", settings({"mode": "fixed", "workers": 2, "prefer_spot": True, "cost": cost}))
    priced = Production("priced", settings({"mode": "fixed", "workers": 2}), interval=40.0, price=7.0)
    assert (plain.terms(), spot.terms(), priced.terms()) == (Terms(3.0), Terms(1.0), Terms(7.0))
    assert (priced.interval, priced.settings.stale_after, priced.initial) == (40, 120, 2)
    run = simulate([(0, 60), (3600, 1)], spot, Conditions(), 0, 3600)
    assert run.cost == pytest.approx(2 * 3601 / 3600 * 1.0 + 2 * 0.25)
    safe = Scripted(1)
    safe.terms = lambda: Terms(1.0, safe=True)  # type: ignore[method-assign]
    assert simulate([(0, 9e5)], safe, Conditions(loss=9), 0, 0).lost == 0


# -- baselines ---------------------------------------------------------------------------------------------------------


def rules(target: float, *cases: tuple[float, int, int], low: int = 1) -> list[int]:
    hpa = Hpa(target, low)
    return [hpa.rule(*case) for case in cases]


def test_hpa_takes_the_ratio_with_its_tolerance() -> None:
    assert rules(1, (0, 100, 109)) == [100]
    assert rules(1, (0, 100, 91)) == [100]
    assert rules(1, (0, 100, 112)) == [112]
    assert rules(0.7, (0, 20, 15), (15, 20, 16)) == [20, 23]  # 15 / 14 is near enough; ⌈16 / 0.7⌉
    assert rules(2, (0, 10, 21)) == [10]
    assert rules(2, (0, 10, 23)) == [12]


def test_hpa_goes_up_by_all_of_it_or_by_four_in_a_period() -> None:
    assert rules(1, (0, 1, 900), (15, 5, 900), (30, 10, 900), (45, 20, 900)) == [5, 10, 20, 40]
    assert rules(1, (0, 3, 900)) == [7]
    assert rules(1, (0, 10, 15), (10, 15, 900), (15, 20, 900), (30, 30, 900)) == [15, 20, 30, 60]


def test_hpa_goes_down_to_the_most_of_300_seconds() -> None:
    calm = [(15.0 * n, 10, 2) for n in range(1, 21)]
    assert rules(1, (0, 10, 10), *calm) == [10] * 20 + [2]
    assert rules(1, (0, 10, 7), (15, 10, 3), *[(15.0 * n, 10, 3) for n in range(2, 20)]) == [7] * 20
    assert rules(1, (0, 5, 0)) == [1]
    assert rules(1, (0, 5, 0), low=3) == [3]
    assert rules(1, (0, 0, 3), low=0) == [3]


def test_hpa_in_the_simulator() -> None:
    """Eight items at 1 s: 5 workers at 15 s (1 + 4), 9 at 30 s are more than are wanted, so 8."""
    candidate = Hpa(1.0)
    run = simulate([(1, 900)] * 8, candidate, Conditions(startup=30, sample=15), 0, 1)
    assert [sample.workers for sample in run.samples[:5]] == [1, 5, 8, 8, 8]
    assert list(run.waits) == [0, 44, 44, 44, 44, 59, 59, 59]
    assert (run.starts, run.stops, run.decisions) == (7, 0, 64)


def test_seasonal_naive_is_ready_before_the_same_hour_comes_again() -> None:
    class Hourly(SeasonalNaive):
        SEASON, WINDOW = 3600.0, 60.0

    requests = [(float(at), 7.0) for at in range(0, 7200) if at % 3600 >= 1800 or at % 20 == 0]
    candidate = Hourly(0.7, startup=30)
    run = simulate(requests, candidate, Conditions(startup=30, sample=60), 0, 7200)
    workers = {sample.at: sample.workers for sample in run.samples}
    assert workers[1800] < 3
    assert workers[3000] == 10  # 1/s at 7 s each, 0.7 busy
    assert workers[5280] == 1
    assert workers[5460] >= 9  # naive would need the rise to have been seen
    assert candidate.name == "seasonal:0.7"


def test_the_clairvoyant_waits_where_that_saves_a_worker() -> None:
    run = clairvoyant(trace([(0, 10), (6, 10)]), 5, 30)
    assert (list(run.waits), run.paid, run.peak, run.starts) == ([0, 4], 20, 1, 0)
    run = clairvoyant(trace([(0, 10), (2, 10)]), 5, 30)
    assert (list(run.waits), run.paid, run.peak, run.starts) == ([0, 0], 10 + 12, 2, 1)
    run = clairvoyant(trace([(0, 10), (20, 5), (100, 5)]), 5, 30, price=36)
    assert (run.paid, run.starts, run.end) == (
        25 + 45 + 35,
        1,
        105,
    )  # stops at 25, starts up at 70, and one is always there
    assert run.cost == pytest.approx(105 / 100)


def test_nothing_goes_below_the_floor() -> None:
    requests = poisson(0.4, 30, 4000)
    found = trace(requests)
    least = floor(found)
    assert least == pytest.approx(sum(service for _, service in requests) / 3600)
    known = clairvoyant(found, 5, 30)
    assert max(known.waits) <= 5
    assert least < known.paid / 3600
    for candidate in (Fixed(16), Hpa(1.0), Hpa(0.6)):
        run = simulate(requests, candidate, Conditions(), 0, requests[-1][0])
        assert run.paid >= known.paid
    assert floor(trace([(0, 1), (7200, 1)]), least=3) == 6


# -- results -----------------------------------------------------------------------------------------------------------


def test_conditions() -> None:
    row = {"policy": "a", "slo": 0.98, "wait_p95": 5.5, "flaps": 12, "cost": None}
    for text, holds in {
        "slo<0.99": True, "slo < 98%": False, "slo<=98%": True, "wait_p95>5s": True, "wait_p95 > 1m": False,
        "wait_p95>=5500ms": True, "starts+stops>11": True, "flaps==12": True, "flaps != 12": False,
    }.items():  # fmt: skip
        assert bool(condition(text).failing([row])) is holds, text
    assert condition("slo<0.99").failing([row]) == ["a: slo is 0.98, and that fails: slo<0.99"]
    with pytest.raises(UsageError, match="the cost of a is not known; see --price"):
        condition("cost>1").failing([row])
    assert {"slo", "worker_hours", "unfinished"} < set(METRICS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slo", "'slo' is no condition, such as slo<0.99"),
        ("slo=1", "'slo=1' is no condition"),
        ("slow<1", "unknown number 'slow' in 'slow<1' — known: "),
        ("wait_p59<1", "Did you mean 'wait_p95'?"),
        ("slo<much", "'much' in 'slo<much' is no number, percentage or time"),
        ("slo<nan", "'nan' in 'slo<nan' is no number"),
        ("policy==1", "unknown number 'policy'"),
    ],
)
def test_what_is_no_condition(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        condition(text)
    assert said in str(caught.value)


SVG = "{http://www.w3.org/2000/svg}"


def texts(panel: ET.Element, *names: str) -> list[tuple[str, float, float]]:
    found = [
        (each.text or "", float(each.get("x", 0)), float(each.get("y", 0))) for each in panel.findall(f"{SVG}text")
    ]
    return [each for each in found if not names or each[0] in names]


def test_the_timeline() -> None:
    conditions = Conditions(startup=5, sample=10)
    drawn = {name: simulate(SIX, Scripted(*targets), conditions, 0, 31).samples for name, targets in
             {"one": (1,), "a<b": (1, 2, 2, 1)}.items()}  # fmt: skip
    root = ET.fromstring(timeline("trace & co", trace(SIX, 31), drawn))
    panels = root.findall(f"{SVG}svg")
    assert [panel.find(f"{SVG}title").text for panel in panels] == [
        "trace & co: arrivals a second", "Workers, with those that start or drain", "Items that wait",
    ]  # fmt: skip
    assert [len(panel.findall(f"{SVG}polyline")) for panel in panels] == [1, 2, 2]
    assert [panel.get("y") for panel in panels] == ["0", "400", "800"]
    assert "a<b" in [text.text for text in panels[1].findall(f"{SVG}text")]
    with pytest.raises(ValueError, match="nothing to draw"):
        timeline("none", trace(SIX, 31), {"a": []})


def test_the_panels_of_a_timeline_have_one_axis_and_arrivals_are_those_of_the_trace() -> None:
    over = trace([(float(at), 3.0) for at in range(200)], 200)
    conditions = Conditions(startup=5, sample=every(over))
    runs = {f"fixed:{n}": simulate(over.requests(), Scripted(n), conditions, 0, 200).samples for n in (5, 1, 4, 3)}
    assert runs["fixed:1"][-1].at > 2 * runs["fixed:5"][-1].at
    panels = ET.fromstring(timeline("t", over, runs)).findall(f"{SVG}svg")
    below = [sorted((text, x) for text, x, y in texts(panel) if y == 372) for panel in panels]
    assert below[0] == below[1] == below[2] != []
    points = panels[0].find(f"{SVG}polyline").get("points").split()
    assert max(float(each.partition(",")[0]) for each in points) == pytest.approx(64 + 426 * 200 / 600, abs=3)
    for panel in panels[1:]:
        names = texts(panel, *runs)
        assert [name for name, *_ in names] == list(runs)
        assert all(x > 490 for _, x, _ in names)
        heights = [y for *_, y in names]
        assert all(b - a >= 15 for a, b in itertools.pairwise(heights)) and max(heights) < 352


def test_a_run_that_goes_on_for_long_has_a_picture_of_bounded_size() -> None:
    over = trace([(0.0, 1.0)] * 5000, 0.0)
    run = simulate(over.requests(), Scripted(1), Conditions(sample=every(over)), 0, 0)
    assert len(run.samples) > 100_000
    assert len(timeline("t", over, {"one": run.samples})) < 200_000


def test_two_weeks_of_decisions_are_allowed_and_a_century_is_not() -> None:
    fortnight = 14 * 86_400.0
    assert fortnight / Scripted(1).interval == 120_960 < MOST_DECISIONS
    assert simulate([(0, 1)], Scripted(1), Conditions(), 0, fortnight).decisions == 120_961
    with pytest.raises(SourceError, match=r"scripted: from 0 to 3.1536e\+09 s|scripted: from 0 to 3153600000 s"):
        simulate([(0, 1)], Scripted(1), Conditions(), 0, 100 * 365 * 86_400.0)


def test_samples_of_the_clairvoyant_are_what_it_does() -> None:
    over = trace(poisson(1.0, 5, 300, seed=4), 300)
    run = clairvoyant(over, 5, 10, sample=0.5)
    assert [each.at for each in run.samples] == sorted(each.at for each in run.samples)
    assert max(each.workers for each in run.samples) <= run.peak
    assert sum(each.workers for each in run.samples) * 0.5 == pytest.approx(run.paid, rel=0.05)
    assert sum(each.waiting for each in run.samples) * 0.5 == pytest.approx(sum(run.waits), rel=0.1)
    assert (run.samples[-1].arrived, run.samples[-1].waiting) == (len(over), 0)
    assert clairvoyant(over, 5, 10).samples == []


def test_what_a_policy_may_be(tmp_path: Path) -> None:
    bare, machine = tmp_path / "mine.yml", tmp_path / "worker.yml"
    bare.write_text("mode: target\nmax: 7\n")
    machine.write_text("spec: flatmachine\ndata: {settings: {fleet: {preset: reactive}}}\n")
    found = {
        text: choose(str(text), 30) for text in (bare, machine, "auto", "fixed:3", "hpa", "hpa:1.50", "clairvoyant")
    }
    assert [each.name for each in found.values()] == [
        "mine",
        "worker",
        "auto",
        "fixed:3",
        "hpa:0.7",
        "hpa:1.5",
        "clairvoyant",
    ]
    assert (found[bare].settings.max, found[machine].settings.max, found["auto"].settings.max) == (7, 100, 20)
    assert (found["fixed:3"].make().initial, found["clairvoyant"].make) == (3, None)
    assert found["auto"].make() is not found["auto"].make()
    assert choose("seasonal:0.5", 12).make().startup == 12


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.yml", None, "no such file, and no preset or baseline"),
        ("x.yml", "mode: [", "x.yml:2:1: not YAML: "),
        ("x.yml", "just words", 'settings.fleet must be a mapping such as {mode: target, max: 20}, got "just words"'),
        ("x.yml", "mod: target", "x.yml:1:1: unknown key 'mod' in settings.fleet — known: "),
        ("x.yml", "min: 9\nmax: 3", "x.yml:1:6: settings.fleet.min is 9, which is more than max, 3"),
        ("x.yml", "spec: flatmachine\ndata: {settings: {}}", "x.yml is a machine without settings.fleet"),
    ],
)
def test_what_is_no_policy(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        choose(str(tmp_path / name), 30)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reactiv", "no policy 'reactiv': no such file, and no preset or baseline — known: "),
        ("reactiv", "Did you mean 'reactive'?"),
        ("fixed:2.5", "--policy 'fixed:2.5': '2.5' is no whole number from 1"),
        ("fixed:", "--policy 'fixed:': '' is no whole number"),
        ("hpa:0", "--policy 'hpa:0': '0' is no number above 0"),
        ("seasonal:x", "--policy 'seasonal:x': 'x' is no number above 0"),
    ],
)
def test_what_is_no_preset_or_baseline(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(text, 30)
    assert said in str(caught.value)
