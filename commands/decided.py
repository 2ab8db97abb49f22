"""Decisions of the scaler, as people read them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from flatfleet.commands import exits
from flatfleet.commands.durations import span
from flatfleet.commands.finding import count, few
from flatfleet.commands.terminal import plain
from flatfleet.runtime import decisions
from flatfleet.runtime.dispatcher import scaler_of
from flatfleet.runtime.stores.records import WOKEN

CODES = {"rejected": exits.WRONG_INPUT, "refused": exits.SOME_FAILED, "failed": exits.MACHINE_FAILED}
"""What a command ends with whose message came to nothing, by the decision's outcome."""


def code(decision: Mapping[str, Any] | None) -> int:
    return exits.DONE if decision is None else CODES.get(decision["outcome"], exits.DONE)


def told(decision: Mapping[str, Any]) -> str:
    """One line: `4 → 8: launching 4 workers (decision …): reason`."""
    outcome, reason, note = decision["outcome"], decision.get("reason"), decision.get("note")
    text = f"{_levels(decision)}: {_steps(decision) or 'nothing to do'}"
    if outcome == "dry_run":
        text = f"dry run: {text}"
    if outcome in CODES:
        done = _steps(decision)
        text = f"{outcome}: {decision.get('error')}" + (f"; {done}" if done else "")
    text += f"; {note}" if note else ""
    return plain(f"{text} (decision {decision['id']})" + (f": {reason}" if reason else ""))


async def at_work(store: Any, fleet: str) -> dict[str, Any] | None:
    """The message that the fleet's scaler has taken and not decided on yet, with what is known of the decision."""
    row = await store.driver.load_snapshot(scaler_of(fleet))
    if row is None or row.event != WOKEN:
        return None
    context = json.loads(row.body).get("context") or {}
    begun = context.get("decision") or {}
    if not begun and not context.get("message"):
        return None
    message = begun["message"] if begun else decisions.read(str(context["message"]))[0]
    return {
        **{name: begun.get(name) for name in ("id", "by", "reason", "target_before", "target", "live_before")},
        "message": message,
    }


def doing(work: Mapping[str, Any], live: int, *, hosted: bool) -> str:
    """One line about `at_work`: `at work on: 2 → 12, 10 live`."""
    known = work["target"] is not None
    text = _levels({**work, "live": live}) if known else asked(work["message"])
    reason = f": {work['reason']}" if work["reason"] else ""
    begun = "at work on" if hosted else "was at work on, and whoever hosts the fleet next goes on with"
    return plain(f"{begun}: {text}, {live} live{reason}")


def asked(message: Any) -> str:
    """What a message asks for, in a few words."""
    for name, text in (("target", "target {}"), ("delta", "{:+}"), ("reconcile", "replace lost workers")):
        if isinstance(message, dict) and type(message.get(name)) in (int, bool):
            return text.format(message[name])
    if isinstance(message, dict) and isinstance(message.get("drain"), list):
        return f"drain {few(map(str, message['drain']), 3)}"
    return decisions.shown(message, 60)


def since(fault: Mapping[str, Any]) -> str:
    """Since when an autoscaler cannot decide, and why."""
    return plain(f"for {span(max(0.0, time.time() - fault['at']))} by now: {fault['why']}")


def _levels(decision: Mapping[str, Any]) -> str:
    before = decision["target_before"] if decision["target_before"] is not None else decision["live_before"]
    after = decision["target"] if decision["target"] is not None else decision["live"]
    return str(after) if before in (None, after) else f"{before} → {after}"


def _steps(decision: Mapping[str, Any]) -> str:
    launch, drain = ("would launch", "would drain") if decision["outcome"] == "dry_run" else ("launching", "draining")
    steps = [(launch, decision["launches"]), (drain, decision["drains"])]
    return ", ".join(f"{what} {count(n, 'worker')}" for what, n in steps if n)
