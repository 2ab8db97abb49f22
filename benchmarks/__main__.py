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
    children,
    engines,
    enqueue,
    loops,
    memory,
    plot,
    report,
    scaling,
    sleepers,
    startup,
    waiting,
)
from flatfleet.benchmarks.harness import Case, Missing, Row, as_json, measure, run

CASES: tuple[Case, ...] = tuple(
    case
    for module in (loops, children, enqueue, sleepers, startup, waiting, scaling, engines, memory)
    for case in module.CASES
)


def main(argv: Sequence[str]) -> int:
    """Return 0, or 1 if a contestant did its work wrongly. Goals that are missed are shown, and are no error."""
    options = _parser().parse_args(argv)
    if options.one:
        return _one(*options.one)
    if options.from_:
        saved = json.loads(options.from_.read_text(encoding="utf-8"))
        about, rows = saved["machine"], [Row(**row) for row in saved["rows"]]
    else:
        about = report.facts(shlex.join(["python", "-m", "benchmarks", *argv]))
        print(f"load average {os.getloadavg()}", file=sys.stderr)  # noqa: T201
        rows = list(run(_chosen(options.only), options.repeat, lambda line: print(line, file=sys.stderr, flush=True)))  # noqa: T201
    table = report.markdown(rows, about)
    print(table)  # noqa: T201
    if options.output:
        options.output.write_text(as_json(rows, about) + "\n", encoding="utf-8")
    if options.markdown:
        report.replace_block(options.markdown, table)
    if options.plot and (lines := plot.curves(rows)):
        options.plot.write_text(plot.svg(lines), encoding="utf-8")
    return int(any((row.note or "").startswith("wrong") for row in rows))


def _chosen(only: list[str]) -> list[Case]:
    known = {name for case in CASES for name in (case.name, case.group)}
    if unknown := set(only) - known:
        sys.exit(f"unknown: {', '.join(sorted(unknown))} — known: {', '.join(sorted(known))}")
    return [case for case in CASES if not only or {case.name, case.group} & set(only)]


def _one(case_name: str, contestant_name: str) -> int:
    case = next(case for case in CASES if case.name == case_name)
    contestant = next(each for each in case.contestants if each.name == contestant_name)
    try:
        answer: dict[str, object] = dict(measure(contestant))
    except Missing as error:
        answer = {"missing": str(error)}
    print(json.dumps(answer))  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="groups or cases (default: all)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="how often each is measured; medians are shown (default: 3)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="put the table between the markers of this page")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw items/s against workers (needs the group loops)")
    parser.add_argument("--from", dest="from_", type=Path, metavar="FILE", help="measure nothing; show this JSON")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
