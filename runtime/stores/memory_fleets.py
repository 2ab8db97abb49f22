"""The fleet operations of the memory store: decisions and targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.stores.memory_tables import Tables
from flatfleet.runtime.stores.records import DECISIONS, POLICY
from flatfleet.runtime.stores.text import dump


class MemoryFleets(Tables):
    """The part of `contract.Driver` under "fleets"; no operation awaits anything, so each is one atomic step."""

    async def decide(self, fleet: str, decision: Mapping[str, Any]) -> None:
        name, known = decision["id"], self._decisions.get(fleet, {})
        at = decision.get("at")
        if at is None:
            at = json.loads(known[name])["at"] if name in known else self._clock()
        known[name] = dump({**decision, "at": at}, f"decision {name!r}")
        self._decisions[fleet] = known
        while len(known) > DECISIONS:
            del known[next(iter(known))]
        if decision.get("outcome") == "applied" and decision.get("target") is not None:
            self._targets[fleet] = decision["target"]

    async def decisions(self, fleet: str, last: int) -> list[dict[str, Any]]:
        texts = list(self._decisions.get(fleet, {}).values())
        return [json.loads(text) for text in texts[max(0, len(texts) - last) :]]

    async def decision(self, fleet: str, decision_id: str) -> dict[str, Any] | None:
        text = self._decisions.get(fleet, {}).get(decision_id)
        return None if text is None else json.loads(text)

    async def target(self, fleet: str) -> int | None:
        return self._targets.get(fleet)

    async def set_target(self, fleet: str, target: int | None) -> None:
        if target is None:
            self._targets.pop(fleet, None)
        else:
            self._targets[fleet] = target

    async def fleets(self) -> list[str]:
        deciding = {name for name in self._decisions if not name.endswith(POLICY)}
        return sorted(deciding | self._targets.keys())
