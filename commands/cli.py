"""The command line: verbs, and a machine's own inputs as flags."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from flatfleet.runtime.errors import UsageError, did_you_mean

VERBS = ("run", "results", "status", "check")

USAGE = """\
usage: flatfleet FILE [--input …]        run a machine (the same as: flatfleet run FILE, python run.py FILE)
       flatfleet FILE --help             what that machine takes
       flatfleet results [--csv]         export the results, also during a run
       flatfleet status                  items and workers, now
       flatfleet check [FILE …]          find mistakes in machine files

       --store URL   where everything durable is: sqlite:fleet.db (default), memory:
       --json        machine-readable output     -v   say more     --version

FILE is a path, or a machine of an installed package: package:flatfleet/launcher.yml
Exit codes: 0 done · 1 some items failed · 2 wrong input · 3 the store failed · 4 a machine failed · 130 interrupted
"""


def parse(argv: Sequence[str]) -> Any:
    """Parse the whole command line into options; `options.command(options, parts)` runs it."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")  # noqa: T201
        sys.exit(0 if argv else 2)
    if argv[0] in ("--version", "-V"):
        print(f"flatfleet {_version()}")  # noqa: T201
        sys.exit(0)
    verb, rest = (argv[0], argv[1:]) if argv[0] in VERBS else ("run", argv)
    if verb == "run" and (not rest or rest[0].startswith("-")):
        raise UsageError("run needs a machine file first, as in: flatfleet run machines/launcher.yml --workers 8")
    if verb == "run" and argv[0] != "run" and not _names_a_file(rest[0]):
        raise UsageError(f"'{rest[0]}' is neither a verb nor a machine file{did_you_mean(rest[0], VERBS)}")
    module = importlib.import_module(f"flatfleet.commands.{verb}")
    options: Any = module.parse(rest)
    return options


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every command has."""
    made = argparse.ArgumentParser(
        prog=f"flatfleet {verb}",
        description=description,
        allow_abbrev=False,
    )
    store = os.environ.get("FLATFLEET_STORE", "sqlite:fleet.db")
    made.add_argument(
        "--store", default=store, metavar="URL", help=f"where everything durable is, or FLATFLEET_STORE (now: {store})"
    )
    made.add_argument("--json", action="store_true", default=False, help="machine-readable output")
    made.add_argument("-v", "--verbose", action="store_true", default=False, help="say more")
    return made


def finish(made: argparse.ArgumentParser, argv: Sequence[str], what: str) -> argparse.Namespace:
    """Parse; an unknown flag is a UsageError with a suggestion."""
    options, unknown = made.parse_known_args(list(argv))
    if unknown:
        flags = [flag for action in made._actions for flag in action.option_strings if flag.startswith("--")]
        flag = unknown[0].partition("=")[0]
        raise UsageError(f"unknown argument '{flag}' for {what}{did_you_mean(flag, flags)}")
    return options


def json_value(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{what} is not JSON: {error.msg} at character {error.pos + 1} of {text[:60]!r}") from error


def input_value(spec: Any, text: str) -> Any:
    """The value of a flag for the machine's input `spec`, in its declared type; UsageError if it is not of that type."""
    flag = f"--{spec.name.replace('_', '-')}"
    try:
        if spec.type == "integer":
            value: Any = int(text)
        elif spec.type == "number":
            value = float(text)
        elif spec.type == "boolean":
            value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        elif spec.type in ("object", "array"):
            value = json_value(text, flag)
        else:
            value = text
    except (ValueError, KeyError):
        raise UsageError(f"{flag} is {text!r}: it takes {spec.type} ({spec.description})") from None
    if spec.enum and value not in spec.enum:
        raise UsageError(f"{flag} is {text!r}{did_you_mean(text, [str(known) for known in spec.enum])}")
    return value


def _names_a_file(word: str) -> bool:
    return word.startswith("package:") or "/" in word or os.sep in word or word.endswith((".yml", ".yaml", ".json"))


def _version() -> str:
    from importlib.metadata import version

    return version("flatfleet")
