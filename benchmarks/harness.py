"""Cases and how they are measured: contestants take turns within one run; medians, spread, and who else was working."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flatfleet.benchmarks.processes import output
from flatfleet.benchmarks.resources import foreign

os.environ.setdefault("FLATAGENTS_LOG_LEVEL", "ERROR")
os.environ.setdefault("FLATAGENTS_METRICS_ENABLED", "false")

ROOT = Path(__file__).absolute().parents[1]
MACHINES = ROOT / "benchmarks/machines"
PATIENCE = 900.0
"""Seconds after which a measurement is given up."""
TOLD = 200
"""Characters of an error that are shown in the table."""

Values = dict[str, float]
"""What one measurement gives: unit → value."""


class Wrong(Exception):
    """The contestant did not do its work, so its speed does not count."""


class Missing(Exception):
    """The contestant is not installed."""


def correct(condition: bool, message: str) -> None:
    """Raise Wrong(message) unless the condition holds."""
    if not condition:
        raise Wrong(message)


@dataclass(frozen=True)
class Contestant:
    """One way to do a case's work: `run(empty folder, size)` does it once, checks it, and returns what it measured."""

    name: str
    run: Callable[[Path, int], Values]
    size: int


@dataclass(frozen=True)
class Goal:
    """A number of DESIGN.md §10. `of_first` makes the bound a share of the first contestant's median."""

    contestant: str
    unit: str
    bound: float
    of_first: bool = False


@dataclass(frozen=True)
class Case:
    """Contestants that do the same work; the first is the one that the others are compared with."""

    name: str
    group: str
    what: str
    units: Mapping[str, Literal["more", "less"]]
    contestants: tuple[Contestant, ...]
    goals: tuple[Goal, ...] = ()


@dataclass
class Row:
    """All that is known about one unit of one contestant of a case. `others`: cores that others kept busy meanwhile."""

    case: str
    group: str
    what: str
    unit: str
    contestant: str
    size: int
    values: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    median: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None
    note: str | None = None


def measure(contestant: Contestant, size: int | None = None) -> Values:
    """Run a contestant once in this process, in a folder of its own; raises Wrong or Missing."""
    with tempfile.TemporaryDirectory(prefix="flatfleet-bench-", ignore_cleanup_errors=True) as folder:
        return contestant.run(Path(folder), contestant.size if size is None else size)


def apart(
    case: Case, contestant: Contestant, own: Callable[[], float] = float, size: int | None = None
) -> tuple[Values, float]:
    """Run a contestant once in a fresh process; (values, cores that others kept busy meanwhile).

    `own` gives the CPU seconds of servers that work for the contestants.
    """
    before, started = foreign() - own(), time.monotonic()
    argv = [sys.executable, "-P", "-m", "flatfleet.benchmarks", "--one", case.name, contestant.name]
    argv += [] if size is None else ["--size", str(size)]
    done = output(argv, tempfile.gettempdir(), PATIENCE)
    others = max(0.0, foreign() - own() - before) / (time.monotonic() - started)
    if done.returncode:
        ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise Wrong(done.stderr.strip().splitlines()[-1][:TOLD] if done.stderr.strip() else ended)
    answer = json.loads(done.stdout.splitlines()[-1])
    if "missing" in answer:
        raise Missing(answer["missing"])
    return answer, others


def run(
    cases: Iterable[Case], repeat: int, say: Callable[[str], None], own: Callable[[], float] = float
) -> Iterator[Row]:
    """Measure the cases one after the other, and within a case its contestants in turn, `repeat` times over."""
    for case in cases:
        rows = {
            (each.name, unit): Row(case.name, case.group, case.what, unit, each.name, each.size)
            for unit in case.units
            for each in case.contestants
        }
        for _ in range(repeat):
            for each in case.contestants:
                mine = [rows[each.name, unit] for unit in case.units]
                if any(row.note for row in mine):
                    continue
                try:
                    values, others = apart(case, each, own)
                except (Wrong, Missing, subprocess.TimeoutExpired) as error:
                    for row in mine:
                        row.note = str(error) if isinstance(error, Missing) else f"wrong: {error}"
                    continue
                for row in mine:
                    row.values.append(values[row.unit])
                    row.others.append(round(others, 2))
                say(f"{case.name} · {each.name}: " + ", ".join(f"{v:,.4g} {u}" for u, v in values.items()))
        yield from _judged(case, list(rows.values()))


def _judged(case: Case, rows: list[Row]) -> list[Row]:
    for row in rows:
        row.median = statistics.median(row.values) if row.values and not row.note else None
    first = {row.unit: row.median for row in rows if row.contestant == case.contestants[0].name}
    for row in rows:
        base = first[row.unit]
        if row.median is not None and base:
            row.ratio = row.median / base
    for goal in case.goals:
        row = next(row for row in rows if (row.contestant, row.unit) == (goal.contestant, goal.unit))
        more = case.units[goal.unit] == "more"
        row.goal = f"{'≥' if more else '≤'} " + (f"{goal.bound:.0%} of it" if goal.of_first else f"{goal.bound:,g}")
        value = row.ratio if goal.of_first else row.median
        row.met = value is not None and (value >= goal.bound if more else value <= goal.bound)
    return rows


def as_json(rows: list[Row], facts: Mapping[str, Any]) -> str:
    return json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
