"""Benchmarks do not rot: each contestant does a tiny piece of its work and is checked; nothing is timed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from flatfleet.benchmarks import harness, report
from flatfleet.benchmarks.__main__ import CASES, main
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Missing, Row, Wrong, measure

PAIRS = [(case, each) for case in CASES for each in case.contestants]
TINY = 8


@pytest.mark.parametrize(("case", "contestant"), PAIRS, ids=[f"{case.name}: {each.name}" for case, each in PAIRS])
def test_each_contestant_does_its_work(case: Case, contestant: Contestant) -> None:
    values = measure(contestant, min(TINY, contestant.size))
    assert set(values) == set(case.units)


CASE = Case(
    "loop-4",
    "loops",
    "items",
    {"items/s": "more"},
    (Contestant("first | best", lambda folder, n: {}, 1), Contestant("second", lambda folder, n: {}, 1)),
    (Goal("second", "items/s", 0.5, of_first=True), Goal("first | best", "items/s", 200)),
)


def rows(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, float] | Exception) -> list[Row]:
    """What `run` makes of CASE, if these are the measurements."""
    queue = iter(answers)

    def answer(case: Case, contestant: Contestant) -> tuple[dict[str, float], float]:
        value = next(queue)
        if isinstance(value, Exception):
            raise value
        return value, 0.0

    monkeypatch.setattr(harness, "apart", answer)
    return list(harness.run([CASE], len(answers) // 2, lambda line: None))


def test_contestants_take_turns_and_medians_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rows(monkeypatch, *({"items/s": v} for v in (100, 80, 110, 60, 900, 10)))
    assert (first.median, second.median) == (110, 60)
    assert second.ratio == pytest.approx(60 / 110)
    assert (second.met, first.met) == (True, False)


@pytest.mark.parametrize(("error", "said"), [(Wrong("2 items twice"), "wrong: 2 items twice"), (Missing("pip"), "pip")])
def test_a_fast_wrong_run_does_not_count(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    fine = {"items/s": 100.0}
    _, second = rows(monkeypatch, fine, {"items/s": 1e9}, fine, error)
    assert (second.median, second.ratio, second.met, second.note) == (None, None, False, said)


def test_the_page_and_the_plot_are_written_from_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = rows(monkeypatch, {"items/s": 1000.0}, {"items/s": 20.0})
    made[1].others = [1.5]
    (tmp_path / "out.json").write_text(harness.as_json(made, report.facts("command")))
    page, picture = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    argv = ["--from", str(tmp_path / "out.json"), "--markdown", str(page), "--plot", str(picture)]
    assert main(argv) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "first \\| best | 1,000 |" in text and "20 †" in text
    assert capsys.readouterr().out.strip() in text
    assert "second · 20" in "".join(ET.fromstring(picture.read_text()).itertext())
    assert main(argv) == 0 and page.read_text() == text


def test_unknown_cases_and_pages_without_a_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="lops"):
        main(["--only", "lops"])
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="no lines"):
        report.replace_block(page, "table")
