"""`python -m benchmarks`: measure, print a Markdown table; on request write JSON, the page's table and the plot."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flatfleet.benchmarks import (
    beside,
    children,
    deciding,
    enqueue,
    loops,
    memory,
    plot,
    processes,
    report,
    scaling,
    server,
    sleepers,
    starting,
    startup,
    waiting,
)
from flatfleet.benchmarks.harness import Case, Missing, as_json, measure, run

CASES: tuple[Case, ...] = tuple(
    case
    for module in (
        loops,
        children,
        enqueue,
        sleepers,
        startup,
        waiting,
        scaling,
        deciding,
        memory,
        beside,
        starting,
    )
    for case in module.CASES
)


def main(argv: Sequence[str]) -> int:
    """Return 0, or 1 if a contestant did its work wrongly. Goals that are missed are shown, and are no error."""
    options = _parser().parse_args(argv)
    if options.one:
        case_name, contestant_name = options.one
        return _one(case_name, contestant_name, options.size)
    if options.from_:
        about, rows = report.joined([json.loads(file.read_text(encoding="utf-8")) for file in options.from_])
    else:
        about = report.facts(shlex.join(["python", "-m", "benchmarks", *argv]))
        print(f"load average {os.getloadavg()}", file=sys.stderr)  # noqa: T201
        cases = _chosen(options.only)
        with server.running() as redis:
            own = redis.cpu if redis else float
            rows = list(run(cases, options.repeat, lambda line: print(line, file=sys.stderr, flush=True), own))  # noqa: T201
    table = report.markdown(rows, about)
    print(table)  # noqa: T201
    if options.output:
        options.output.write_text(as_json(rows, about) + "\n", encoding="utf-8")
    if options.markdown:
        report.fill(options.markdown, rows, about)
    if options.plot and (lines := plot.curves(rows)):
        options.plot.write_text(plot.svg(lines), encoding="utf-8")
    return int(any((row.note or "").startswith("wrong") for row in rows))


def _chosen(only: list[str]) -> list[Case]:
    known = {name for case in CASES for name in (case.name, case.group)}
    if unknown := set(only) - known:
        sys.exit(f"unknown: {', '.join(sorted(unknown))} — known: {', '.join(sorted(known))}")
    return [case for case in CASES if not only or {case.name, case.group} & set(only)]


def _one(case_name: str, contestant_name: str, size: int | None) -> int:
    case = next(case for case in CASES if case.name == case_name)
    contestant = next(each for each in case.contestants if each.name == contestant_name)
    processes.adopt_orphans()
    try:
        answer: dict[str, object] = dict(measure(contestant, size))
    except Missing as error:
        answer = {"missing": str(error)}
    processes.reap()
    print(json.dumps(answer))  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="groups or cases (default: all)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="how often each is measured; medians are shown (default: 3)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw items/s against workers (needs the group loops)")
    parser.add_argument(
        "--from",
        dest="from_",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure nothing; show this JSON (of several: each case as the last of them has it)",
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    processes.leave_in_order()
    sys.exit(main(sys.argv[1:]))
