"""The comparison of policies: equal attainment is interpolated rightly, and what is found becomes tables and pictures."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from flatfleet.benchmarks import policies, policy_checks, policy_report, policy_sweeps, report
from flatfleet.benchmarks.policy_sweeps import FAMILIES, LOADS, OURS, Family, Load, Point, at_level, measure, sweep
from flatfleet.runtime import fleet_settings
from flatfleet.runtime.replay.baselines import Fixed, Hpa
from flatfleet.runtime.replay.traces import Trace

ROOT = Path(__file__).parents[1]
TINY = Load("conv", "tiny.csv", "Tiny", "service", 1.0, 5.0, 3)


def point(knob: float, slo: float, hours: float, flaps: float = 10.0) -> Point:
    return Point(knob, slo, hours, flaps, 2 * hours, 3 * hours)


def tiny() -> Trace:
    """20 minutes of an item every 2 s that takes 4 s, twice as many in the middle."""
    arrivals = [2.0 * n for n in range(200)] + [400.0 + n for n in range(400)] + [800.0 + 2 * n for n in range(200)]
    return Trace("tiny", arrivals, [4.0] * len(arrivals), 0.0, 1200.0)


# -- equal attainment --------------------------------------------------------------------------------------------------


def test_a_level_lies_between_its_neighbours() -> None:
    found = at_level([point(2, 0.90, 10, 40), point(1, 0.94, 20, 80), point(0.5, 0.98, 40, 100)], 0.95)
    assert found is not None
    assert found == pytest.approx((0.875, 0.95, 25, 85, 50, 75))


def test_of_several_crossings_the_cheapest_counts() -> None:
    bumpy = [point(1, 0.9, 50), point(2, 0.96, 60), point(3, 0.94, 10), point(4, 0.96, 20)]
    found = at_level(bumpy, 0.95)
    assert found is not None and found.hours == pytest.approx(15)


@pytest.mark.parametrize("level", [0.89, 0.99])
def test_nothing_is_said_beyond_the_sweep(level: float) -> None:
    assert at_level([point(1, 0.9, 10), point(2, 0.98, 20)], level) is None


def test_a_level_that_is_met_is_not_moved_and_a_flat_stretch_divides_by_nothing() -> None:
    assert at_level([point(1, 0.95, 10), point(2, 0.95, 20)], 0.95) == point(1, 0.95, 10)


def test_a_sweep_goes_on_until_it_is_near_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Misses of 1/knob: 95 % at 20, 98 % at 50."""
    monkeypatch.setattr(policy_sweeps, "measure", lambda load, trace, make, knob: point(knob, 1 - 1 / knob, knob))
    found = sweep(Family("any", "knob", (2.0, 100.0), lambda load, value: Fixed(1)), TINY, tiny())
    assert [each.knob for each in found] == sorted(each.knob for each in found)
    for level in policy_sweeps.LEVELS:
        near = min(abs(each.slo - level) for each in found)
        assert near <= policy_sweeps.NEAR
    assert len(found) <= 2 + len(policy_sweeps.LEVELS) * policy_sweeps.REFINED


def test_a_knob_of_whole_numbers_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_sweeps, "measure", lambda load, trace, make, knob: point(knob, min(1, knob / 10), knob))
    found = sweep(Family("fixed", "workers", (4, 12), lambda load, value: Fixed(1), whole=True), TINY, tiny())
    assert all(each.knob == int(each.knob) for each in found)
    assert {9.0, 10.0} <= {each.knob for each in found}


def test_phases_are_averaged_and_a_fleet_that_never_decides_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    simulate = policy_sweeps.simulate

    def spy(requests, candidate, conditions, start, end):  # type: ignore[no-untyped-def]
        seen.append(conditions.phase)
        return simulate(requests, candidate, conditions, start, end)

    monkeypatch.setattr(policy_sweeps, "simulate", spy)
    found = measure(TINY, tiny(), lambda: Hpa(1.0), 1.0)
    assert seen == [0.0, 5.0, 10.0] and 0.9 < found.slo <= 1 and found.flaps > 0
    seen.clear()
    assert measure(TINY, tiny(), lambda: Fixed(3), 3).hours == pytest.approx(3 * 1200 / 3600, rel=0.3)
    assert seen == [0.0]


# -- policies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_policy_can_be_made_at_each_setting(family: Family) -> None:
    for load in LOADS:
        for value in family.values:
            assert family.make(load, value).initial >= 1
    assert measure(TINY, tiny(), lambda: family.make(TINY, family.values[-1]), 0).slo > 0.5


def test_the_busiest_moment() -> None:
    assert policy_sweeps.busiest(tiny()) == 4  # one a second that takes 4 s: one ends as the next arrives


def test_the_parameters_of_the_page_are_those_of_the_example() -> None:
    shown = yaml.safe_load((ROOT / "examples/policies/slo.yml").read_text("utf-8"))
    objective = shown.pop("slo")
    made = fleet_settings.validate({**OURS, "slo": objective})
    assert fleet_settings.validate({**shown, "slo": objective}) == made


# -- the page ----------------------------------------------------------------------------------------------------------


def found_file(folder: Path) -> Path:
    hpa = [point(2, 0.90, 30, 300), point(1, 0.96, 40, 400), point(0.5, 0.979, 80, 500)]
    slo = [point(0.5, 0.94, 20, 150), point(0.9, 0.96, 22, 160), point(0.99, 0.99, 40, 250)]
    bounds = {"requests": 800, "hours": 0.33, "busy": 2.7, "floor": 0.9}
    bounds |= {"clairvoyant": point(0, 1, 0.95), "mean": point(3, 0.7, 1), "peak": point(4, 1, 1.3)}
    path = folder / "found.json"
    path.write_text(json.dumps({"conv": {"bounds": bounds, "sweeps": {"HPA": hpa, "slo": slo}}}))
    return path


def test_tables_and_pictures_are_written_between_the_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "policies.md"
    begin, end = report.BEGIN.format("benchmarks"), report.END.format("benchmarks")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    argv = ["--from", str(found_file(tmp_path)), "--page", str(page)]
    assert policies.main(argv) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert capsys.readouterr().out.strip() in text
    # at 95 %: HPA 30 + 10 · 5/6 = 38.3 h and 383; slo 21 h and 155
    assert "| conv | 95% | 38.3 → 21.0 (-45.2%) | ≤ 0.85: met | 383 → 155 (40%) | ≤ 0.5: met |" in text
    assert "| conv | 98% | no HPA comes to it exactly; HPA at most 97.90% (80.0 h, 500);" in text
    assert "| HPA | 90.00% to 97.90% only |" in text
    assert "| slo | level 0.7 | 21.0 | 0.55 | 155 | 0.40 | 42 s | 63 s |" in text
    assert "| fixed at the peak, 4 workers | 100.00% | 1.3 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in rows}
    assert widths <= {7, 8, 9}
    drawn = (tmp_path / "images/policies-conv.svg").read_text()
    assert "slo" in "".join(ET.fromstring(drawn).itertext())
    assert policies.main(argv) == 0 and page.read_text() == text


def test_a_picture_leaves_out_what_the_policy_itself_beats() -> None:
    points = [point(1, 0.80, 50), point(2, 0.96, 30), point(3, 0.90, 20), point(4, 0.95, 31), point(5, 0.99, 33)]
    assert [each.knob for each in policy_report._front(points)] == [3, 2, 5]
    drawn = policy_report.picture(TINY, {"HPA": points, "dear": [point(1, 0.99, 70)]})
    assert "HPA" in drawn and "dear" not in drawn
    both = policy_report.picture(TINY, {"slo": points, "HPA": points})
    assert both == policy_report.picture(TINY, {"HPA": points, "slo": points})


def test_a_missed_goal_is_said(tmp_path: Path) -> None:
    slo = [point(1, 0.94, 39, 250), point(2, 0.96, 41, 250)]
    sweeps = {"HPA": [point(2, 0.94, 40, 400), point(1, 0.96, 42, 400)], "slo": slo}
    bounds = {"requests": 1, "hours": 1.0, "busy": 1.0, "floor": 1.0}
    bounds |= dict.fromkeys(("clairvoyant", "mean", "peak"), point(1, 1, 1))
    text = policy_report.markdown({"conv": {"bounds": bounds, "sweeps": sweeps}}, "command")
    assert "| 41.0 → 40.0 (-2.4%) | ≤ 0.85: **missed** | 400 → 250 (62%) | ≤ 0.5: **missed** |" in text


@pytest.mark.parametrize(
    ("level", "said"),
    [(0.95, "slo at 95.00% (25.0 h, 10)"), (0.5, "slo at least 90.00% (20.0 h, 10)"), (0.999, "slo at most 98.00%")],
)
def test_what_is_nearest_to_a_level_is_said(level: float, said: str) -> None:
    points = [point(1, 0.9, 20), point(2, 0.94, 24), point(3, 0.96, 26), point(4, 0.98, 28)]
    assert policy_report._nearest("slo", points, level).startswith(said)


def test_a_check_has_a_trace_and_a_goal_of_its_own() -> None:
    names = [each.name for each in (*LOADS, *policy_checks.CHECKS)]
    assert len(set(names)) == len(names)
    for each in policy_checks.CHECKS:
        base = next(load for load in LOADS if load.name == each.name.partition(",")[0])
        assert each.file == base.file and each._replace(name=base.name) != base
        assert base.name in policy_report.HOURS


def test_it_asks_for_the_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(policies.PLACE, raising=False)
    with pytest.raises(SystemExit, match="--traces"):
        policies.main([])


def test_a_trace_is_read_and_compared_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = TINY._replace(phases=1)
    rows = "".join(f"{at},{takes}\n" for at, takes in tiny().requests())
    (tmp_path / "tiny.csv").write_text("arrival_s,service\n" + rows)
    check = load._replace(name="conv, warm", initial=6)
    monkeypatch.setattr(policies, "LOADS", (load,))
    for module in (policies, policy_report):
        monkeypatch.setattr(module, "CHECKS", (check,))
    monkeypatch.setattr(policy_sweeps, "REFINED", 1)
    monkeypatch.setenv(policies.PLACE, str(tmp_path))
    out = tmp_path / "out.json"
    assert policies.main(["--policies", "HPA", "slo", "fixed", "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("### Not tuned for") < shown.index("| conv, warm | 95%") < shown.index("### conv: ")
    every = json.loads(out.read_text())
    assert set(every["conv, warm"]["sweeps"]) == set(policy_checks.POLICIES)
    assert every["conv, warm"]["sweeps"]["HPA"][0][1] > every["conv"]["sweeps"]["HPA"][0][1]  # nobody is late at first
    saved = every["conv"]
    assert set(saved["sweeps"]) == {"HPA", "slo", "fixed"}
    assert saved["bounds"]["peak"][1] == 1.0  # nobody waits
    assert math.isclose(saved["bounds"]["floor"], 800 * 4 / 3600)
