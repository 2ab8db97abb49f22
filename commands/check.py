"""`check`: say what is wrong with machine files, before anything runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from flatfleet.commands import cli
from flatfleet.runtime import policy_files
from flatfleet.runtime.bundle import load
from flatfleet.runtime.bundle.refs import locate
from flatfleet.runtime.bundle.yamlmap import read, shown
from flatfleet.runtime.errors import BundleError, UsageError

Known = Mapping[str, Collection[str]] | None


@dataclass(frozen=True)
class _Report:
    path: str
    problems: list[str]
    what: str = ""


def parse(argv: Sequence[str], known: cli.Known) -> Any:
    about = "Find mistakes in machine files: file:line:column, what is wrong, what is known."
    made = cli.parser("check", about, "[FILE …]")
    made.add_argument("files", nargs="*", metavar="FILE", help="files, folders, package: refs (default: machines/)")
    options = cli.finish(made, argv, "check")
    options.needs_loop, options.must_exist, options.command = False, False, command
    options.known = known
    return options


def command(options: Any, parts: None) -> int:
    return run(options.files or ["machines"], options.known(), options.json, sys.stdout)


def run(paths: Sequence[str], known: Known, as_json: bool, out: TextIO) -> int:
    """Check files and folders (all their YAML files) and print one line a file, or its problems.

    Machines are checked with everything that they name; each problem is listed once, under the file it stands in. A file
    that is named and has a key of a fleet's settings is checked as a policy; other YAML files are only parsed. `known`
    maps hook names to their actions.
    Returns 0, or 2 with a problem.
    """
    reports = _merged([_checked(path, named, known) for path, named in _files(paths)])
    if as_json:
        files = [{"path": each.path, "ok": not each.problems, "problems": each.problems} for each in reports]
        print(json.dumps({"files": files}, indent=2, ensure_ascii=False), file=out)
    else:
        for each in reports:
            lines = each.problems or [f"ok   {each.path} ({each.what})"]
            print("\n".join(lines), file=out)
        count = sum(len(each.problems) for each in reports)
        if count:
            bad = sum(bool(each.problems) for each in reports)
            print(f"{_count(count, 'problem')} in {bad} of {_count(len(reports), 'file')}", file=out)
    return 2 if any(each.problems for each in reports) else 0


def _files(paths: Sequence[str]) -> Iterator[tuple[Path | _Report, bool]]:
    """The files, each with whether it was named itself and not a folder around it."""
    seen: set[Path] = set()
    for text in paths:
        path = Path(text).expanduser()
        try:
            found = _below(path) if path.is_dir() else [locate(text, Path.cwd())]
        except UsageError as error:
            yield _Report(text, [f"{text}: {error}"]), True
            continue
        if not found:
            yield _Report(text, [f"{text}: this folder holds no YAML file"]), True
        new = [each for each in found if each not in seen]
        seen.update(new)
        yield from ((each, not path.is_dir()) for each in new)


def _below(folder: Path) -> list[Path]:
    found = (path for path in folder.resolve().rglob("*") if path.suffix in {".yml", ".yaml"} and path.is_file())
    root = len(folder.resolve().parts)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts[root:]))


def _checked(path: Path | _Report, named: bool, known: Known) -> _Report:
    if isinstance(path, _Report):
        return path
    name = shown(path)
    try:
        doc = read(path)
        data = doc.data
        if not isinstance(data, dict) or data.get("spec") != "flatmachine":
            is_policy = policy_files.holds(data, named)
            return _Report(name, policy_files.problems(doc), "policy") if is_policy else _Report(name, [], _kind(data))
        states = load(path, known=known)["data"]["states"]
    except BundleError as error:
        return _Report(name, error.problems)
    return _Report(name, [], _count(len(states), "state"))


def _kind(data: Any) -> str:
    spec = data.get("spec") or ("agent" if "type" in data else None) if isinstance(data, dict) else None
    return f"{spec}, syntax only" if spec else "syntax only"


def _merged(reports: list[_Report]) -> list[_Report]:
    """Leave a problem with the file it stands in, where that is checked too, and list it once."""
    names = {each.path for each in reports}
    listed: set[str] = set()
    merged = []
    for each in reports:
        mine = []
        for problem in each.problems:
            owner = problem.partition(":")[0]
            if problem not in listed and (owner == each.path or owner not in names):
                mine.append(problem)
                listed.add(problem)
        merged.append(_Report(each.path, mine, each.what or "faults only in what it names"))
    return merged


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
