"""resume-scaling: the autoscaler of a fleet decides again, also where a message of a person holds the target."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.terminal import document, show


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser("resume-scaling", "Let the autoscaler decide again, after pause-scaling or scale --hold.")
    finding.add_pool(made)
    return cli.on_store(made, argv, "resume-scaling", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    record = parts.store.fleet((await finding.pool(options, parts.store)).name)
    await record.resume_scaling(time.time())
    if options.json:
        document({"store": parts.store.shown, "fleet": record.name, "scaling_paused": False})
    else:
        show(f"scaling of {record.name} is resumed")
    return exits.DONE
