"""The fleet operations of the SQLite store: plain functions of one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.records import DECISIONS
from flatfleet.runtime.stores.text import dump


def decide(tx: Tx, fleet: str, decision: Mapping[str, Any]) -> None:
    name, at = decision["id"], decision.get("at")
    known = tx.run("decision", (fleet, name)).fetchone()
    if at is None:
        at = json.loads(known[0])["at"] if known else tx.now
    tx.run("decide", (fleet, name, dump({**decision, "at": at}, f"the decision {name}")))
    if known is None:
        tx.run("trim_decisions", {"fleet": fleet, "keep": DECISIONS})
    if decision.get("outcome") == "applied" and decision.get("target") is not None:
        set_target(tx, fleet, decision["target"])


def decisions(tx: Tx, fleet: str, last: int) -> list[dict[str, Any]]:
    rows = tx.run("decisions", (fleet, max(0, last))).fetchall()
    return [json.loads(row[0]) for row in reversed(rows)]


def decision(tx: Tx, fleet: str, decision_id: str) -> dict[str, Any] | None:
    row = tx.run("decision", (fleet, decision_id)).fetchone()
    return json.loads(row[0]) if row else None


def target(tx: Tx, fleet: str) -> int | None:
    row = tx.run("target", (fleet,)).fetchone()
    return row[0] if row else None


def set_target(tx: Tx, fleet: str, target: int | None) -> None:
    if target is None:
        tx.run("forget_target", (fleet,))
    else:
        tx.run("set_target", (fleet, target))


def fleets(tx: Tx) -> list[str]:
    return [row[0] for row in tx.run("fleets")]
