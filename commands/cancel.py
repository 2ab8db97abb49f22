"""cancel: give items up: nobody works on them any more; says which, and asks first."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.asking import add_yes, agreed
from flatfleet.commands.finding import count
from flatfleet.commands.terminal import document, plain, show
from flatfleet.runtime.errors import UsageError


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = "Give items up: they become dead, of the error Cancelled; who works on one stops. To undo it: retry."
    made = cli.parser("cancel", about, "ITEM …")
    made.add_argument("items", nargs="*", metavar="ITEM", help="ids or keys")
    finding.add_pool(made, "the pool of the items, where several have one of that key")
    add_yes(made)
    options = cli.on_store(made, argv, "cancel", command)
    if not options.items:
        raise UsageError("cancel needs items, by id or key, as in: flatfleet cancel papers:k1")
    return options


async def command(options: argparse.Namespace, parts: Any) -> int:
    store = parts.store
    named = await finding.items(options.items, options, store)
    alone = [item for item in named if item.state in ("completed", "dead")]
    chosen: dict[str, list[str]] = {}
    for item in named:
        if item not in alone:
            chosen.setdefault(item.pool, []).append(item.id)
    total, cancelled = sum(map(len, chosen.values())), 0
    states = Counter(item.state for item in named if item not in alone)
    kinds = ", ".join(f"{n:,} {state}" for state, n in states.most_common())
    go = total > 0 and await agreed(options, f"cancel {count(total, 'item')} of pool {finding.few(chosen)} ({kinds})")
    if go:
        for name, ids in chosen.items():
            cancelled += await store.work.pool(name).cancel(ids)
    if options.json:
        left = [{"id": item.id, "state": item.state} for item in alone]
        told = {"matching": total, "cancelled": cancelled, "left_alone": left}
        document({"store": store.shown, "pools": list(chosen), **told})
        return exits.DONE
    lines = [f"{plain(item.id)} is {item.state}: left alone" for item in alone]
    if go:
        ended = f"; {total - cancelled} ended before" if cancelled < total else ""
        lines.append(f"{count(cancelled, 'item')} of pool {finding.few(chosen)} cancelled{ended}")
    elif total:
        lines.append("nothing was changed")
    show("\n".join(lines))
    return exits.DONE
