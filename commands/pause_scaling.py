"""pause-scaling: the autoscaler of a fleet leaves its target alone, for a time or until scaling is resumed."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits, finding, messages
from flatfleet.commands.durations import add_for, until
from flatfleet.commands.terminal import document, show


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = "Let the autoscaler leave a fleet's target alone. Messages of people still change it."
    made = cli.parser("pause-scaling", about)
    finding.add_pool(made)
    add_for(made)
    return cli.on_store(made, argv, "pause-scaling", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    record = parts.store.fleet((await finding.pool(options, parts.store)).name)
    at = None if options.span is None else time.time() + options.span
    await record.pause_scaling(at, messages.sender())
    if options.json:
        document({"store": parts.store.shown, "fleet": record.name, "scaling_paused": True, "scaling_paused_until": at})
    else:
        text = until(math.inf if at is None else at)
        show(f"scaling of {record.name} is paused until {text}. To go on: {cli.again(options, 'resume-scaling')}")
    return exits.DONE
