"""dead: the items of a pool whose attempts are used up, grouped by what was wrong."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.finding import count
from flatfleet.commands.terminal import document, plain, show

EXAMPLES = 3
SEARCHED = 20_000
"""Dead items that are looked through for examples."""
TEXT_SHOWN = 500


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser("dead", "Show the dead items of a pool by their error: how many, an example, some of their keys.")
    finding.add_pool(made)
    return cli.on_store(made, argv, "dead", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    pool = await finding.pool(options, parts.store)
    errors = await pool.errors()
    groups = {
        name: {"error_type": name, "count": n, "example": None, "example_ids": [], "example_keys": []}
        for name, n in errors.items()
    }
    await _add_examples(pool, groups)
    total = sum(errors.values())
    if options.json:
        document({"store": parts.store.shown, "pool": pool.name, "dead": total, "errors": list(groups.values())})
        return exits.DONE
    if not total:
        show(f"pool {pool.name} has no dead item")
        return exits.DONE
    lines = [f"pool {pool.name}: {count(total, 'dead item')}"]
    for name, group in groups.items():
        lines.append(f"  {group['count']:,} × {plain(name)}")
        if group["example"] is not None:
            text = plain(group["example"])
            lines.append(f"      {text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + '…'}")
        if group["example_keys"]:
            more = " …" if group["count"] > len(group["example_keys"]) else ""
            lines.append(f"      {plain(', '.join(group['example_keys']))}{more}")
    lines.append(f"One of them: {cli.again(options, 'explain')} ITEM. To try them again: {cli.again(options, 'retry')}")
    show("\n".join(lines))
    return exits.DONE


async def _add_examples(pool: Any, groups: dict[str, dict[str, Any]]) -> None:
    """Enter the first text of each error, and the first keys, as far as they are found soon."""
    wanting = {name: min(EXAMPLES, group["count"]) for name, group in groups.items()}
    seen = 0
    if not wanting:
        return
    async with contextlib.aclosing(pool.items("dead")) as items:
        async for item in items:
            name = item.error_type or "unknown"
            seen += 1
            if name in wanting:
                group = groups[name]
                group["example"] = group["example"] if group["example"] is not None else item.error
                group["example_ids"].append(item.id)
                group["example_keys"].append(item.key)
                if len(group["example_ids"]) == wanting[name]:
                    del wanting[name]
            if not wanting or seen == SEARCHED:
                return
