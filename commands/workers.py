"""workers: who works, on what, since when, and who was told to end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.terminal import document, plain, show


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser("workers", "Show the workers with what they do: those that drain first.")
    finding.add_pool(made, "only the workers of this pool (default: of all pools)")
    made.add_argument("--all", action="store_true", help="those that have ended, too")
    return cli.on_store(made, argv, "workers", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    from flatfleet.commands import roster

    pool = (await finding.pool(options, parts.store)).name if options.pool is not None else None
    records = await parts.store.registration.list(pool=pool)
    everyone = roster.by_status(roster.rows(records, ended=True, pool=pool))
    workers = everyone if options.all else roster.by_status(roster.rows(records, pool=pool))
    ended = len(everyone) - len(roster.rows(records, pool=pool))
    if options.json:
        document({"store": parts.store.shown, "pool": pool, "workers": workers, "ended_workers": ended})
        return exits.DONE
    where = f"pool {pool}" if pool else f"store {plain(parts.store.shown)}"
    hint = f" ({ended} ended; --all shows them)" if ended and not options.all else ""
    show("\n".join([f"{where}: {finding.count(len(everyone) - ended, 'worker')}{hint}", *map(roster.line, workers)]))
    return exits.DONE
