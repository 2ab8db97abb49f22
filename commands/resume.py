"""resume: let workers claim items of a paused pool again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.terminal import document, show


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser("resume", "Let workers claim items of a paused pool again.")
    finding.add_pool(made)
    return cli.on_store(made, argv, "resume", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    pool = await finding.pool(options, parts.store)
    was = await pool.paused()
    await pool.pause(None)
    if options.json:
        document({"store": parts.store.shown, "pool": pool.name, "paused": False, "was_paused": was is not None})
    else:
        show(f"pool {pool.name} is resumed" if was is not None else f"pool {pool.name} was not paused")
    return exits.DONE
