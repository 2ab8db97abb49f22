"""Scale messages and the decisions on them: read what came, keep what became of it (see schemas/)."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import uuid
from collections.abc import Iterable
from importlib import resources
from typing import Any

from flatfleet.runtime.errors import did_you_mean
from flatfleet.runtime.scaling import Aim

VERSION = 1
LONGEST = 20_000
"""Characters that the JSON text of a message may have; scaler.yml cuts a longer one there."""
SHOWN = 1_000
"""Characters of an invalid message that a decision keeps at most."""
KEPT_IDS = 100
"""Worker ids that a decision lists at most; it counts them all."""

_ASKS = ("target", "delta", "reconcile", "drain")


# -- messages ----------------------------------------------------------------------------------------------------------


def read(text: str) -> tuple[Any, str | None]:
    """The message in a JSON text, and what is wrong with it: one short sentence, or None."""
    if len(text) >= LONGEST:
        return text, f"the message is too long: a scale message has less than {LONGEST} characters"
    try:
        message = json.loads(text)
    except RecursionError:
        return text, "the message is nested too deeply"
    except ValueError as error:
        return text, f"the message is no JSON: {error}"
    if isinstance(message, dict) and message.keys() == {"value"} and not isinstance(message["value"], dict):
        message = message["value"]  # how a machine hands on a message that is no object
    return message, problem(message)


def problem(message: Any) -> str | None:
    """Say why this is no valid scale message, in one short sentence; None if it is one."""
    if not isinstance(message, dict):
        return f'a scale message is an object such as {{"target": 8}}, not {shown(message, 60)}'
    version = message.get("version", VERSION)
    if type(version) is int and version > VERSION:
        return (
            f"version {shown(version, 30)} is newer than this scaler, which knows {VERSION}: update the fleet's process"
        )
    known = _validator().schema["properties"]
    for name in message:
        if name not in known:
            return f"unknown key {shown(name, 60)}" + (did_you_mean(name, known) if len(name) <= 60 else "")
    asked = [name for name in _ASKS if name in message]
    if len(asked) != 1:
        return f"exactly one of target, delta, reconcile and drain is needed, got {' and '.join(asked) or 'none'}"
    error = next(iter(_validator().iter_errors(message)), None)
    return None if error is None else _said(error)


def shown(value: Any, limit: int = SHOWN) -> str:
    """The value as JSON text, at most about `limit` characters of it."""
    if isinstance(value, str):
        value = value[: limit + 1]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}…"


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft7Validator

    text = resources.files("flatfleet.schemas").joinpath("scale-message.schema.json").read_text("utf-8")
    return Draft7Validator(json.loads(text))


def _said(error: Any) -> str:
    name, got, wanted = str(error.absolute_path[0]), shown(error.instance, 60), error.validator_value
    kinds = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false"}
    kinds["array"] = "a list of worker ids"
    needs = {
        "type": f"must be {kinds.get(str(wanted), wanted)}",
        "minimum": f"must be at least {wanted}",
        "maximum": f"must be at most {wanted}",
        "maxLength": f"must have at most {wanted} characters",
        "maxItems": f"must have at most {wanted} workers",
        "pattern": "must be 1 to 100 letters, digits or any of _.:@/+=-",
        "const": f"must be {shown(wanted)}",
        "not": "must not be 0",
    }
    return f"{name} {needs[error.validator]}, got {got}"


# -- decisions: schemas/decision.schema.json ---------------------------------------------------------------------------


def begin(fleet: str, signal: str | None, message: Any, error: str | None) -> dict[str, Any]:
    """A decision on a message that came as `signal`; rejected at once where there is an `error`.

    A stock machine does not tell which signal it has taken (None).
    """
    fields = message if isinstance(message, dict) and error is None else {}
    decision = {
        "id": fields.get("id", signal or uuid.uuid4().hex),
        "fleet": fleet,
        "message": message if fields else _cut(message),
        "by": fields.get("by"),
        "reason": fields.get("reason"),
        "outcome": "rejected" if error else None,
        "parallelism": None,
        **dict.fromkeys(("target_before", "target", "live_before", "live")),
        **{"launches": 0, "launched": [], "drains": 0, "drained": []},
    }
    return decision | ({"error": error} if error else {})


def aimed(decision: dict[str, Any], aim: Aim) -> bool:
    """Enter what the message asks for; True if that is to be done."""
    decision["target"] = aim.target
    decision["outcome"] = "dry_run" if decision["message"].get("dry_run") else "applied"
    if aim.refused:
        decision.update(outcome="refused", error=aim.refused)
    if aim.note:
        decision["note"] = aim.note
    return bool(decision["outcome"] == "applied")


def tally(decision: dict[str, Any], records: Iterable[Any]) -> None:
    """Enter the workers that were launched and drained by this decision, as the registry has them."""
    for many, names, key in (("launches", "launched", "decision"), ("drains", "drained", "drained_by")):
        found = [record.worker_id for record in records if (record.metadata or {}).get(key) == decision["id"]]
        decision[many], decision[names] = len(found), found[:KEPT_IDS]


def imagine(decision: dict[str, Any], launched: Iterable[str], drained: Iterable[str]) -> None:
    """Enter whom a dry run would have launched and drained."""
    for many, names, found in (("launches", "launched", list(launched)), ("drains", "drained", list(drained))):
        decision[many], decision[names] = len(found), found[:KEPT_IDS]


def finish(decision: dict[str, Any], error: str | None) -> None:
    """Enter how it ended: with an error on the way, with something done, or without."""
    if decision["outcome"] in (None, "applied", "dry_run") and (error or decision["outcome"] is None):
        decision.update(outcome="failed", error=error or "the decision was interrupted")
    same = decision["target"] == decision["target_before"] and not decision["launches"] and not decision["drains"]
    if decision["outcome"] == "applied" and same:
        decision["outcome"] = "unchanged"


def short(decision_id: str) -> str:
    """What the ids of the workers begin with that a decision launches: the same for the same decision."""
    plain = re.fullmatch("[0-9a-f]{32}", decision_id)  # a uuid, random from its first digit on
    return "s" + (decision_id[:8] if plain else hashlib.sha256(decision_id.encode()).hexdigest()[:8])


def reconciles(message: Any) -> bool:
    return isinstance(message, dict) and message.get("reconcile") is True


def _cut(message: Any) -> Any:
    """A message that is no valid one, or the beginning of its text."""
    if isinstance(message, str):
        return message if len(message) <= SHOWN else f"{message[:SHOWN]}…"
    text = shown(message)
    return message if len(text) <= SHOWN else text
