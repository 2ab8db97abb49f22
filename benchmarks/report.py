"""The machine's facts, the Markdown table, and the block of a page that is generated."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import server
from flatfleet.benchmarks.harness import ROOT, Row

BEGIN, END = "<!-- {}: begin (generated, see the command) -->", "<!-- {}: end -->"
BLOCKS = {"tasks": "queues", "busy": "queues", "starting": "queues"}
"""Groups of cases that have a table of their own on the page; the others are in the block `benchmarks`."""
OTHERS = {"Celery": "celery", "Dramatiq": "dramatiq", "RQ": "rq", "Ray": "ray", "redis-py": "redis"}
QUIET = 0.15
"""Cores that others may keep busy before a figure is marked."""
MARK = "†"


def facts(command: str) -> dict[str, Any]:
    """What a figure depends on, taken before the first measurement."""
    return {
        "command": command,
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "flatfleet": f"{_version('flatfleet')} ({_commit()})",
        "flatmachines": _version("flatmachines"),
        "huey": _version("huey"),
        "others": {name: _version(package) for name, package in OTHERS.items()} | {"Redis": server.version()},
        "load": [round(each, 2) for each in os.getloadavg()],
    }


def markdown(rows: Iterable[Row], about: Mapping[str, Any]) -> str:
    """The facts, and one table of all rows."""
    lines = [
        f"{about['when']} · {about['cores']} cores, {about['cpu']} · {about['system']} · Python {about['python']} · "
        f"SQLite {about['sqlite']} · flatfleet {about['flatfleet']} · flatmachines {about['flatmachines']} · "
        f"huey {about['huey']} · "
        + "".join(f"{name} {version} · " for name, version in about.get("others", {}).items())
        + f"load average at the start {', '.join(map(str, about['load']))}",
        "",
        "| what | contestant | median | least – most | × first | goal |",
        "|---|---|---:|---:|---:|---|",
    ]
    before, noisy = ("", ""), False
    for row in rows:
        noisy |= (marked := loaded(row))
        what = f"{row.what} · {row.unit}" if (row.case, row.unit) != before else ""
        before = row.case, row.unit
        if row.median is None:
            cells = [what, row.contestant, row.note or "not measured", "", "", row.goal or ""]
        else:
            goal = f"{row.goal}: {'met' if row.met else '**missed**'}" if row.goal else ""
            spread = f"{number(min(row.values))} – {number(max(row.values))}"
            ratio = f"{row.ratio:.2g}" if row.ratio is not None else ""
            cells = [what, row.contestant, number(row.median) + (f" {MARK}" if marked else ""), spread, ratio, goal]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if noisy:
        lines += [
            "",
            f"{MARK} other programs, or other guests of this machine's host, took more than {QUIET} cores meanwhile.",
        ]
    return "\n".join(lines)


def loaded(row: Row) -> bool:
    return bool(row.others) and max(row.others) > QUIET


def number(value: float) -> str:
    """Three or more significant digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def joined(runs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[Row]]:
    """The facts and the rows of several runs: each case as the last of them has it, all the times at which they began."""
    cases: dict[str, list[Row]] = {}
    for run in runs:
        cases |= {row["case"]: [] for row in run["rows"]}
        for row in run["rows"]:
            cases[row["case"]].append(Row(**row))
    when = ", ".join(dict.fromkeys(run["machine"]["when"] for run in runs))
    return {**runs[-1]["machine"], "when": when}, [row for rows in cases.values() for row in rows]


def fill(page: Path, rows: Iterable[Row], about: Mapping[str, Any]) -> None:
    """Put a table into each block of the page that there are rows for; raises ValueError if it has no such block."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(BLOCKS.get(row.group, "benchmarks"), []).append(row)
    for block, some in blocks.items():
        replace_block(page, markdown(some, about), block)


def replace_block(page: Path, table: str, block: str = "benchmarks") -> None:
    """Put the table between the markers of a page; raises ValueError if it has none."""
    text, begin, end = page.read_text(encoding="utf-8"), BEGIN.format(block), END.format(block)
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no lines '{begin}' and '{end}' to write between")
    head, tail = text.split(begin, 1)[0], text.split(end, 1)[1]
    page.write_text(f"{head}{begin}\n\n{table}\n\n{end}{tail}", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "*.py") else "")
    except OSError:
        return "no git"
