"""explain-scaling: what a fleet's autoscaler has decided: what it saw, what each policy wanted, and what limited it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flatfleet.commands import cli, decided, exits, figures, finding
from flatfleet.commands.durations import moment, span
from flatfleet.commands.terminal import plain, show
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.stores.records import DECISIONS

_UNITS = {
    "arrival_rate": "/s",
    "throughput": "/s",
    "provider_faults": "/s",
    "arrival_cv2": "",
    "service_cv2": "",
    "utilisation": "",
}
_MONEY = ("cost_per_hour", "spent")
_HIDDEN = ("at", "measured")


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = "Say what the autoscaler has decided, and why. With --json: one decision a line, oldest first, for replay."
    made = cli.parser("explain-scaling", about)
    finding.add_pool(made)
    made.add_argument("--last", type=_some, default=None, metavar="N", help="the last N (default: 1; with --json all)")
    made.add_argument("--changes", action="store_true", help="only those that have changed the target")
    return cli.on_store(made, argv, "explain-scaling", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    record = parts.store.fleet((await finding.pool(options, parts.store)).name)
    found, fault = await record.policy_decisions(DECISIONS), await record.fault()
    chosen = [each for each in found if each["outcome"] != "hold" or not options.changes]
    last = options.last or (len(chosen) if options.json else 1)
    chosen = chosen[-last:]
    if fault and not options.json:
        show(f"{record.name}: the autoscaler cannot decide, {decided.since(fault)}\n")
    if not found and fault:
        return exits.DONE
    if not found:
        how = "give the command that starts its workers --policy, such as --policy auto (docs/scaling.md)"
        raise UsageError(f"fleet '{record.name}' has no autoscaler that has decided anything; {how}")
    if options.json:
        if chosen:
            show("\n".join(json.dumps(each, ensure_ascii=False) for each in chosen))
        return exits.DONE
    if not chosen:
        show(f"{record.name}: none of the last {finding.count(len(found), 'decision')} has changed the target")
        return exits.DONE
    show("\n\n".join("\n".join(map(plain, told(each))) for each in chosen))
    return exits.DONE


def told(decision: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one decision."""
    ago = span(max(0.0, time.time() - decision["at"]))
    current, desired = decision["current"], decision["desired"]
    change = f"{current} → {desired}" if desired != current else f"stays at {desired}"
    yield f"{moment(decision['at'])} ({ago} ago)  {decision['fleet']}: {change}: {decision['reason'] or 'nothing to do'}"
    yield "  saw      " + " · ".join(_seen(decision["seen"]))
    if "policy" in decision:
        yield f"  policy   {decision['policy']}"
    if "note" in decision:
        yield f"  note     {decision['note']}"
    for each in decision["wants"]:
        wanted = "cannot tell" if each["desired"] is None else f"{each['desired']:g}"
        yield f"  wanted   {wanted} by {each['policy']}: {each['reason']}"
    for each in decision["clamps"]:
        if each["after"] != each["before"]:
            binds = "  ← binds" if each["binds"] else ""
            why = f": {each['reason']}" if each["reason"] else ""
            yield f"  clamp    {each['name']} {each['before']:g} → {each['after']:g}{why}{binds}"
    if decision["counterfactual"]:
        yield f"  else     {decision['counterfactual']}"
    if decision.get("sent"):
        yield f"  sent     the scaler was told (decision {decision['id']})"


def _seen(seen: Mapping[str, Any]) -> Iterator[str]:
    for name, value in seen.items():
        if name in _HIDDEN:
            continue
        if name in _MONEY:
            unit, number = "", figures.number(value)
        else:
            unit = _UNITS.get(name, "" if isinstance(value, int) else " s")
            number = f"{value:.3g}" if isinstance(value, float) else str(value)
        yield f"{name.replace('_', ' ')} {number}{unit}"


def _some(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= DECISIONS:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to {DECISIONS}; so many are kept")
    return int(text)
