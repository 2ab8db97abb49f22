"""Benchmarks do not rot: each contestant does a tiny piece of its work and is checked; nothing is timed."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from flatfleet.benchmarks import harness, report
from flatfleet.benchmarks.__main__ import CASES, main
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Missing, Row, Wrong, apart, measure

TINY, FEW = 8, 2
BESIDE = ("tasks", "busy", "starting")
BLOCKS = ("benchmarks", "queues")
COVERED = (
    "flatfleet, sqlite, ray",
    "flatfleet, ray, inline",
    "flatfleet, ray, process",
    "flatfleet, sqlite, process, cold",
)
"""Combinations of a store and an engine, each of which is tried with another."""


def tried(case: Case, contestant: Contestant) -> bool:
    """False where another case does the same with other numbers; of the rows on Ray one, and all with FLATFLEET_SOAK=1."""
    if contestant.name in COVERED:
        return False
    if ", ray" in contestant.name and os.environ.get("FLATFLEET_SOAK") != "1":
        return (case.name, contestant.name) == ("tasks-2", "flatfleet, redis, ray")
    if case.group == "busy":
        return case.name == "busy-2" and contestant.name in (
            "flatfleet, redis, process",
            "multiprocessing.Pool, no queue",
        )
    return case.group != "tasks" or case.name == "tasks-2"


PAIRS = [
    pytest.param(case, each, id=f"{case.name}: {each.name}", marks=[pytest.mark.slow] if case.group in BESIDE else [])
    for case in CASES
    for each in case.contestants
    if tried(case, each)
]


@pytest.mark.parametrize(("case", "contestant"), PAIRS)
def test_each_contestant_does_its_work(case: Case, contestant: Contestant) -> None:
    try:
        size = min(FEW if case.group == "starting" else TINY, contestant.size)
        joins = contestant.name.startswith("flatfleet, ray")  # a process is in one Ray cluster, and stays there
        values = apart(case, contestant, size=size)[0] if joins else measure(contestant, size)
    except Missing as error:
        assert str(error).startswith("not installed: "), error
    else:
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

    def answer(case: Case, contestant: Contestant, own: object) -> tuple[dict[str, float], float]:
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
    marks = [mark.format("benchmarks") for mark in (report.BEGIN, report.END)]
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*marks))
    argv = ["--from", str(tmp_path / "out.json"), "--markdown", str(page), "--plot", str(picture)]
    assert main(argv) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "first \\| best | 1,000 |" in text and "20 †" in text
    assert capsys.readouterr().out.strip() in text
    assert "second · 20" in "".join(ET.fromstring(picture.read_text()).itertext())
    assert main(argv) == 0 and page.read_text() == text


def test_rows_of_a_group_with_a_table_of_its_own_go_into_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rows(monkeypatch, {"items/s": 1000.0}, {"items/s": 20.0})
    made[1].group = "tasks"
    page = tmp_path / "page.md"
    page.write_text("".join(f"{mark.format(block)}\n" for block in BLOCKS for mark in (report.BEGIN, report.END)))
    report.fill(page, made, report.facts("command"))
    first, second = page.read_text().split(report.BEGIN.format(BLOCKS[1]))
    assert "first \\| best" in first and "second" not in first
    assert "second" in second and "best" not in second
    report.fill(page, made[:1], report.facts("command"))
    assert page.read_text().endswith(second)


def test_of_several_runs_each_case_is_shown_as_the_last_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(when: str, case: str, first: float) -> dict[str, Any]:
        made = rows(monkeypatch, {"items/s": first}, {"items/s": 20.0})
        for row in made:
            row.case = case
        return json.loads(harness.as_json(made, {"when": when}))

    about, found = report.joined([run("one", "a", 1.0), run("one", "b", 2.0), run("two", "a", 3.0)])
    assert about["when"] == "one, two"
    assert [(row.case, row.median) for row in found] == [("a", 3.0), ("a", 20.0), ("b", 2.0), ("b", 20.0)]


def test_unknown_cases_and_pages_without_a_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="lops"):
        main(["--only", "lops"])
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="no lines"):
        report.replace_block(page, "table")
