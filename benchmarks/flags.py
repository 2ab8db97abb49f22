"""The flags of the two orchestrator benchmarks: wrong ones end with one message and exit code 2."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from flatfleet.commands import cli
from flatfleet.commands.durations import seconds

MOST_WORKERS, MOST_TASKS = 10_000, 1_000_000


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser whose errors end with exit code 2."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    made = cli.Parser(prog=f"benchmarks/{name}.py", description=about, formatter_class=as_it_stands, allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="one JSON document on one line")
    return made


def span(text: str) -> float:
    """The type of a flag that takes a span of time, as seconds: 0.005, 5ms, 2s."""
    match = re.fullmatch(r"(\d*\.?\d+)ms", text.strip())
    return float(match[1]) / 1000 if match else seconds(text)


def count(text: str, most: int = MOST_WORKERS) -> int:
    """The type of a flag that takes a number of workers."""
    if not re.fullmatch(r"\d{1,9}", text.strip()) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 to {most:,}")
    return int(text)


def tasks(text: str) -> int:
    """The type of a flag that takes a number of tasks."""
    return count(text, MOST_TASKS)


def several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """The type of a flag that takes some of a kind, with commas between."""
    return lambda text: [kind(each) for each in text.split(",")]


def positive(text: str) -> float:
    """The type of a flag that takes a span of time longer than nothing, as seconds."""
    if not (value := span(text)):
        raise argparse.ArgumentTypeError(f"'{text}': a task has to take some time")
    return value


def part(text: str) -> float:
    """The type of a flag that takes a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number between 0 and 1")
    return value
