"""`--count N`: several workers of one machine in this run, joined to whatever fleet works on their pool."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from flatfleet.commands import cli
from flatfleet.runtime.errors import UsageError

MOST = 10_000


def add(made: cli.Parser, specs: Mapping[str, Any], argv: Sequence[str], file: str) -> None:
    """Add the flag for machines that are workers; UsageError where another is given it."""
    if "worker_id" in specs and "count" not in specs:
        made.add_argument(
            "--count", type=_count, metavar="N", help="run so many of these workers here, each registered"
        )
    elif "count" not in specs and any(word.partition("=")[0] == "--count" for word in argv):
        hint = "; how many workers it launches is --workers" if "workers" in specs else ""
        raise UsageError(f"--count runs several workers, and {file} is none: it has no input worker_id{hint}")


async def launch(options: argparse.Namespace, parts: Any, machine: Any) -> dict[str, Any]:
    """Launch the workers on the engine, after what dead processes of this machine held has been handed back."""
    await parts.fleet.recover()
    run = options.inputs.get("worker_id") or f"w{uuid.uuid4().hex[:6]}"
    names = [f"{run}-{n + 1}" for n in range(options.count)]
    for name in names:
        await parts.engine.launch(machine, options.bundle, options.inputs | {"worker_id": name}, name)
    return {"run": run, "workers": len(names)}


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of workers; write 1 to {MOST}")
    return int(text)
