"""explain: all there is to know about one item: every attempt at it, and its result."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flatfleet.commands import cli, exits, finding
from flatfleet.commands.durations import moment, span, took
from flatfleet.commands.items import about, row
from flatfleet.commands.terminal import document, finite, lines, plain, show
from flatfleet.runtime import routing
from flatfleet.runtime.errors import UsageError

if TYPE_CHECKING:
    from flatfleet.runtime.stores.records import Attempt, Item

ATTEMPTS_SHOWN = 20
DATA_SHOWN = 500
RESULT_SHOWN = 4_000


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    what = "Tell all about one item: every attempt with its worker, its time, its states, its error; and the result."
    made = cli.parser("explain", what, "ITEM")
    made.add_argument("item", metavar="ITEM", nargs="?", help="the item's id or its key")
    finding.add_pool(made, "the pool of the item, where several have one of that key")
    options = cli.on_store(made, argv, "explain", command)
    if options.item is None:
        raise UsageError("explain needs an item, by its id or its key, as in: flatfleet explain papers:k1")
    return options


async def command(options: argparse.Namespace, parts: Any) -> int:
    (item,) = await finding.items([options.item], options, parts.store)
    attempts = await parts.store.work.pool(item.pool).attempts(item.id)
    lacking = await _lacking(item, parts.store)
    if options.json:
        told = row(item) | {"data": item.data, "result": item.result, "served": not lacking}
        document({"store": parts.store.shown, "item": told, "attempts": [_row(each) for each in attempts]})
    else:
        show("\n".join(_lines(item, attempts, lacking, options.verbose)))
    return exits.DONE


def _row(attempt: Attempt) -> dict[str, Any]:
    return asdict(attempt) | {"seconds": attempt.ended - attempt.started}


async def _lacking(item: Item, store: Any) -> str:
    """What no live worker offers of what an item that waits requires; empty if one can serve it, or it does not wait."""
    if not item.requires or item.state not in ("ready", "delayed"):
        return ""
    left = routing.among({item.requires: 1}, await store.registration.list(), item.pool)
    return "".join(left.lines())


def _lines(item: Item, attempts: Sequence[Attempt], lacking: str, whole: bool) -> Iterator[str]:
    yield f"{plain(item.id)}  {about(item)}"
    if lacking:
        yield f"  {plain(lacking)}"
    yield f"  key {plain(item.key)} · pool {item.pool} · came {moment(item.created)}" + _wants(item)
    yield f"  {_cut(json.dumps(item.data, ensure_ascii=False), DATA_SHOWN, whole)}"
    cost = sum(each.cost for each in attempts)
    limits = f"{item.attempts} of {item.max_attempts} used, {item.crashes} of {item.max_crashes} crashes"
    yield f"{finding.count(len(attempts), 'attempt')}: {limits}" + (f", ${cost:.4f}" if cost else "")
    left_out = 0 if whole else max(0, len(attempts) - ATTEMPTS_SHOWN)
    if left_out:
        yield f"  {left_out} earlier ones: -v shows them"
    for number, attempt in enumerate(attempts[left_out:], left_out + 1):
        yield from _attempt(number, attempt)
    if item.state == "claimed" and item.started is not None:
        now = time.time()
        lease = f"lease for {span(item.due - now)} more" if item.due > now else f"lease over for {span(now - item.due)}"
        since = f"{moment(item.started)} · {took(now - item.started)} so far"
        yield f"  {len(attempts) + 1}  running  {plain(item.worker)}  {since} · {lease}"
    if item.state == "completed":
        yield "result:"
        yield _cut(json.dumps(finite(item.result), indent=2, ensure_ascii=False), RESULT_SHOWN, whole)


def _wants(item: Item) -> str:
    wants = [f"priority {item.priority}"] if item.priority else []
    wants += [f"requires {plain(', '.join(item.requires))}"] if item.requires else []
    return "".join(f" · {each}" for each in wants)


def _attempt(number: int, attempt: Attempt) -> Iterator[str]:
    cost = f" · ${attempt.cost:.4f}" if attempt.cost else ""
    when = f"{moment(attempt.started)} · {took(attempt.ended - attempt.started)}{cost}"
    yield f"  {number}  {attempt.outcome}  {plain(attempt.worker)}  {when}"
    if attempt.walked:
        yield f"     {plain(' → '.join(attempt.walked))}"
    if attempt.error_type or attempt.error:
        yield f"     {plain(attempt.error_type)}: {plain(attempt.error or '')}"


def _cut(text: str, most: int, whole: bool) -> str:
    shown = text if whole or len(text) <= most else f"{text[:most]}… (-v shows all of it)"
    return lines(shown)
