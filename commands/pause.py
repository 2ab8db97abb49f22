"""pause: nobody claims items of a pool, for a time or until it is resumed; what is in hand goes on."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.durations import add_for, until
from flatfleet.commands.finding import count
from flatfleet.commands.terminal import document, show


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser("pause", "Let nobody claim items of a pool. Items in hand go on; workers wait.")
    finding.add_pool(made)
    add_for(made)
    return cli.on_store(made, argv, "pause", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    pool = await finding.pool(options, parts.store)
    await pool.pause(math.inf if options.span is None else time.time() + options.span)
    at, counts = await pool.paused(), await pool.counts()
    if options.json:
        about = {"paused": at is not None, "paused_until": at, "claimed": counts.claimed}
        document({"store": parts.store.shown, "pool": pool.name, **about})
    elif at is None:
        show(f"pool {pool.name} is not paused: that time is over already")
    else:
        held = f"; {count(counts.claimed, 'item')} in hand" if counts.claimed else ""
        show(f"pool {pool.name} is paused until {until(at)}{held}. To go on: {cli.again(options, 'resume')}")
    return exits.DONE
