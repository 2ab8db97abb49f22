"""`python -m benchmarks.policies [--traces FOLDER]`: our scaling against Kubernetes' and others, at equal attainment.

Sweeps one knob of each policy over three public traces and prints tables; `--page` puts them into docs/policies.md, which
also says what is compared. All of it takes about a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import policy_report, report
from flatfleet.benchmarks.harness import ROOT
from flatfleet.benchmarks.policy_checks import CHECKS, POLICIES
from flatfleet.benchmarks.policy_sweeps import FAMILIES, LOADS, Point, run

PLACE = "FLATFLEET_TRACES"
PAGE = ROOT / "docs/policies.md"
COMMAND = "python -m benchmarks.policies --page"


def main(argv: Sequence[str]) -> int:
    """Return 0. A goal that is missed is shown, and is no error."""
    options = _parser().parse_args(argv)
    found: dict[str, Any] = {}
    for path in options.from_:
        _merge(found, _read(path))
    if not options.from_:
        loads = [each for each in (*LOADS, *CHECKS) if not options.only or each.name in options.only]
        families = [each for each in FAMILIES if not options.policies or each.name in options.policies]
        least = [each for each in families if each.name in POLICIES]
        folder = options.traces or os.environ.get(PLACE)
        if not folder:
            sys.exit(f"where are the traces? Name their folder with --traces or {PLACE}: see docs/policies.md")
        for load in loads:
            found[load.name] = run(load, least if load in CHECKS else families, Path(folder), _say)
            if options.output:
                options.output.write_text(json.dumps(found) + "\n", encoding="utf-8")
    page = policy_report.markdown(found, COMMAND)
    print(page)  # noqa: T201
    if options.page:
        report.replace_block(options.page, page)
        images = options.page.parent / "images"
        images.mkdir(exist_ok=True)
        for load in LOADS:
            if load.name in found:
                drawn = policy_report.picture(load, found[load.name]["sweeps"])
                (images / f"policies-{load.name}.svg").write_text(drawn, encoding="utf-8")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _read(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for result in saved.values():
        result["sweeps"] = {name: [Point(*each) for each in points] for name, points in result["sweeps"].items()}
    return saved


def _merge(found: dict[str, Any], more: dict[str, Any]) -> None:
    """What a later file has of a load and a policy stands over what an earlier one has."""
    for name, result in more.items():
        known = found.setdefault(name, {"bounds": result["bounds"], "sweeps": {}})
        known["sweeps"] |= result["sweeps"]
        known["bounds"] = result["bounds"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    names = ", ".join(each.file for each in LOADS)
    parser.add_argument("--traces", metavar="FOLDER", help=f"where {names} are (default: ${PLACE})")
    parser.add_argument(
        "--only", nargs="+", choices=[each.name for each in (*LOADS, *CHECKS)], metavar="TRACE", help="these alone"
    )
    parser.add_argument(
        "--policies", nargs="+", choices=[each.name for each in FAMILIES], metavar="POLICY", help="these alone"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument(
        "--from", dest="from_", type=Path, nargs="+", default=[], metavar="FILE", help="measure nothing; show this JSON"
    )
    parser.add_argument(
        "--page",
        type=Path,
        nargs="?",
        const=PAGE,
        metavar="PAGE",
        help="put the tables between the markers of the page",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
