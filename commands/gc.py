"""gc: delete what ended some time ago and nobody needs; items, results and messages stay."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits
from flatfleet.commands.durations import DAY, seconds, span
from flatfleet.commands.terminal import document, show
from flatfleet.runtime.errors import StoreUnavailable


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = (
        "Delete what ended some time ago and nobody needs: workers, checkpoints of finished machines, old decisions, "
        "attempts and machine files. Items, results, dead items, messages, and whatever lives or waits stay."
    )
    made = cli.parser("gc", about)
    made.add_argument(
        "--older", type=seconds, default=7 * DAY, metavar="SPAN", help="what ended longer ago than this (default: 7d)"
    )
    made.add_argument("--vacuum", action="store_true", help="give the space back to the disk, too (while nobody works)")
    return cli.on_store(made, argv, "gc", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    driver = parts.store.driver
    deleted = await driver.gc(time.time() - options.older)
    won, error = None, None
    if options.vacuum:
        try:
            won = await driver.vacuum()
        except StoreUnavailable as raised:
            error = raised
    if options.json:
        told = {"store": parts.store.shown, "older": options.older, "deleted": deleted, "bytes": won}
        fault = {"error": {"type": type(error).__name__, "message": str(error)}} if error else {}
        document(told | fault)
        return exits.STORE_FAILED if error else exits.DONE
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in deleted.items() if n)
    show(f"deleted of what ended more than {span(options.older)} ago: {kinds or 'nothing'}")
    if won is not None:
        show(f"{won / 2**20:.1f} MB given back to the disk")
    if error is not None:
        raise error
    return exits.DONE
