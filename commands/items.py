"""items: the items of a pool, in the order in which they came, with what became of each."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.durations import span
from flatfleet.commands.terminal import finite, plain, show

if TYPE_CHECKING:
    from flatfleet.runtime.stores.records import Item, State

STATES = ("waiting", "delayed", "claimed", "expired", "completed", "dead", "all")
LIMIT = 50
ERROR_SHOWN = 120
_STORED: dict[str, tuple[State | None, ...]] = {
    "waiting": ("ready", "delayed"),
    "delayed": ("delayed",),
    "claimed": ("claimed",),
    "expired": ("claimed",),
    "completed": ("completed",),
    "dead": ("dead",),
    "all": (None,),
}
FIELDS = (
    "id", "pool", "key", "worker", "attempts", "max_attempts", "crashes", "max_crashes", "priority", "requires",
    "created", "started", "finished", "due", "error_type", "error",
)  # fmt: skip


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser("items", "Show the items of a pool in the order in which they came.")
    finding.add_pool(made)
    made.add_argument(
        "--state",
        type=cli.choice(*STATES, "ready"),
        default="all",
        help=f"only those in this state: {', '.join(STATES)} (default: all)",
    )
    made.add_argument("--limit", type=_limit, default=LIMIT, metavar="N", help=f"so many (default: {LIMIT}; 0: all)")
    return cli.on_store(made, argv, "items", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    pool = await finding.pool(options, parts.store)
    state = "waiting" if options.state == "ready" else options.state
    shown, more = 0, False
    if options.json:
        show(f'{{"store": {json.dumps(parts.store.shown)}, "pool": "{pool.name}", "state": "{state}", "items": [')
    async with contextlib.aclosing(_in(pool, state)) as found:
        async for item in found:
            more = bool(options.limit) and shown == options.limit
            if more:
                break
            if options.json:
                show(("," if shown else "") + json.dumps(finite(row(item))))
            else:
                show(line(item))
            shown += 1
    if options.json:
        show(f'], "more": {json.dumps(more)}}}')
    elif more:
        show(f"and more: {cli.again(options, 'items', '--state', state, '--limit', '0')}")
    elif not shown:
        show(f"pool {pool.name} has no item" + ("" if state == "all" else f" that is {state}"))
    return exits.DONE


def row(item: Item) -> dict[str, Any]:
    return {"state": state_of(item, time.time()), **{name: getattr(item, name) for name in FIELDS}}


def line(item: Item) -> str:
    known = f"  ({plain(item.key)})" if item.id != f"{item.pool}:{item.key}" else ""
    return f"  {plain(item.id)}  {about(item)}{known}"


def about(item: Item) -> str:
    """The item's state in words, with what belongs to it: who holds it, when it is due, what was wrong."""
    now = time.time()
    state = state_of(item, now)
    error = plain(f"{item.error_type}: {item.error}")
    error = error if len(error) <= ERROR_SHOWN else f"{error[: ERROR_SHOWN - 1]}…"
    if state in ("claimed", "expired"):
        return f"{state} by {plain(item.worker)} for {span(max(0.0, now - (item.started or now)))}"
    if state == "delayed":
        return f"delayed for {span(item.due - now)}" + (f", {error}" if item.error_type else "")
    if state in ("completed", "dead") and item.finished is not None:
        return f"{state} {span(max(0.0, now - item.finished))} ago" + (f", {error}" if state == "dead" else "")
    return state


def state_of(item: Item, now: float) -> str:
    """The state in the words of `status`: delayed items that are due wait, claims whose lease is over are expired."""
    if item.state == "delayed":
        return "delayed" if item.due > now else "waiting"
    if item.state == "claimed":
        return "claimed" if item.due > now else "expired"
    return "waiting" if item.state == "ready" else item.state


async def _in(pool: Any, state: str) -> AsyncGenerator[Item, None]:
    now = time.time()
    for stored in _STORED[state]:
        async for item in pool.items(stored):
            if state in ("all", state_of(item, now)):
                yield item


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of items")
    return int(text)
