"""Fleets and housekeeping in the Redis store (lua/fleets.lua, lua/gc.lua)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.stores.leftovers import CONFIG_GRACE, DECISIONS_KEPT
from flatfleet.runtime.stores.records import POLICY
from flatfleet.runtime.stores.redis_base import CHUNK, Base, behind, decoded
from flatfleet.runtime.stores.text import dump

BODIES = 50
"""Snapshots that are read at one go: each may be large."""


class RedisFleets(Base):
    """The parts of `contract.Driver` under "fleets" and "housekeeping"."""

    async def decide(self, fleet: str, decision: Mapping[str, Any]) -> None:
        name = decision["id"]
        body, at = dump(dict(decision), f"decision {name!r}"), decision.get("at")
        target = decision.get("target") if decision.get("outcome") == "applied" else None
        await self._run("decide", fleet, name, None if at is None else dump(at, "at"), body, target)

    async def decisions(self, fleet: str, last: int) -> list[dict[str, Any]]:
        if last < 1:
            return []
        return [_decision(text) for text in await self._run("decisions", fleet, last)]

    async def decision(self, fleet: str, decision_id: str) -> dict[str, Any] | None:
        text = await self._run("decision", fleet, decision_id)
        return _decision(text) if text else None

    async def target(self, fleet: str) -> int | None:
        found = await self._run("target", fleet)
        return int(found) if found else None

    async def set_target(self, fleet: str, target: int | None) -> None:
        await self._run("set_target", fleet, target)

    async def fleets(self) -> list[str]:
        deciding, targeted = await self._run("fleets")
        names = {decoded(name) for name in deciding}
        return sorted({name for name in names if not name.endswith(POLICY)} | {decoded(name) for name in targeted})

    # -- housekeeping --------------------------------------------------------------------------------------------------

    async def gc(self, before: float) -> dict[str, int]:
        """Deletes at most 500 rows in a step, between which everybody has a turn."""
        before = float(before)
        return {
            "workers": await self._gc_workers(before),
            "executions": await self._gc_executions(before),
            "decisions": await self._gc_decisions(before),
            "attempts": await self._gc_attempts(before),
            "configs": await self._gc_configs(before),
        }

    async def vacuum(self) -> int:
        """Return 0: the server gives memory back by itself."""
        return 0

    async def _gc_workers(self, before: float) -> int:
        n = kept = 0
        while True:
            looked, gone = await self._run("gc_workers", before, CHUNK, kept)
            n, kept = n + gone, kept + looked - gone
            if looked < CHUNK:
                return n

    async def _gc_executions(self, before: float) -> int:
        n, after = 0, b"-"
        while True:
            last, gone = await self._run("gc_executions", before, CHUNK, after)
            n += gone
            if not last:
                return n
            after = behind(last)

    async def _gc_decisions(self, before: float) -> int:
        fleets = (await self._run("fleets"))[0]
        return sum([await self._run("gc_decisions", before, fleet, DECISIONS_KEPT) for fleet in fleets])

    async def _gc_attempts(self, before: float) -> int:
        n = 0
        while True:
            looked, gone = await self._run("gc_attempts", before, CHUNK)
            n += gone
            if looked < CHUNK:
                return n

    async def _gc_configs(self, before: float) -> int:
        until = min(before, float(await self._run("now")) - CONFIG_GRACE)
        old = [decoded(key) for key in await self._run("old_configs", until)]
        used: set[str] = set()
        after: bytes | None = b"-" if old else None
        while after is not None:
            last, *bodies = await self._run("bodies", after, BODIES)
            used |= {f"config:{_config_of(body)}" for body in bodies}
            after = behind(last) if last else None
        gone = [key for key in old if key not in used]
        n = 0
        for start in range(0, len(gone), CHUNK):
            n += await self._run("drop_configs", until, *gone[start : start + CHUNK])
        return n


def _decision(text: bytes) -> dict[str, Any]:
    at, _, body = text.partition(b"\n")
    decision: dict[str, Any] = json.loads(body)
    return {**decision, "at": json.loads(at)}


def _config_of(body: bytes) -> Any:
    """The hash of the config that a snapshot was taken under; None if it tells of none."""
    try:
        snapshot = json.loads(body)
    except ValueError:
        return None
    return snapshot.get("config_hash") if isinstance(snapshot, dict) else None
