"""What a store keeps of a fleet beside its pool: its target, the decisions on it, and who hosts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.bell import Bell
from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.keys import check_pool
from flatfleet.runtime.stores.records import POLICY


class FleetRecord:
    """One fleet's record, named after its pool. What changes here is announced under the pool's name."""

    def __init__(self, driver: Driver, bell: Bell, name: str) -> None:
        self.name = check_pool(name)
        self._driver = driver
        self._bell = bell

    @property
    def channel(self) -> str:
        """The channel on which the fleet's scaler waits for messages."""
        return f"fleet/{self.name}/scale"

    async def decide(self, decision: Mapping[str, Any]) -> None:
        """Atomically note a decision under its `id`, and with it the fleet's target, if it was applied.

        The same id again replaces it where it stands. The fleet's channel is announced, too: who sent the message may wait.
        """
        await self._driver.decide(self.name, decision)
        self._bell.announce(self.name, self.channel)

    async def decisions(self, last: int = 100) -> list[dict[str, Any]]:
        """The last so many decisions, newest last."""
        return await self._driver.decisions(self.name, last)

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        return await self._driver.decision(self.name, decision_id)

    async def target(self) -> int | None:
        """The parallelism that the fleet was told to have; None if nobody said."""
        return await self._driver.target(self.name)

    async def set_target(self, target: int | None) -> None:
        """Set the target, or forget it (None)."""
        await self._driver.set_target(self.name, target)
        self._bell.announce(self.name)

    # -- the autoscaler ------------------------------------------------------------------------------------------------

    async def decide_policy(self, decision: Mapping[str, Any]) -> None:
        """Atomically note a decision of the fleet's autoscaler under its `id`; it changes no target."""
        await self._driver.decide(f"{self.name}{POLICY}", decision)

    async def policy_decisions(self, last: int = 100) -> list[dict[str, Any]]:
        """The last so many decisions of the autoscaler, newest last; the newest DECISIONS are kept."""
        return await self._driver.decisions(f"{self.name}{POLICY}", last)

    async def policy_state(self) -> dict[str, Any]:
        """What the autoscaler remembers; {} at first."""
        return await self._entry("autoscaler")

    async def keep_policy_state(self, state: Mapping[str, Any]) -> None:
        await self._driver.put(f"fleet/{self.name}/autoscaler", dict(state))

    async def orders(self) -> dict[str, Any]:
        """What people have told the autoscaler: `paused`, `until` (s; None: until resumed), `by`, `resumed_at`."""
        return await self._entry("orders")

    async def pause_scaling(self, until: float | None, by: str | None = None) -> None:
        """Let the target stay until then (s since the epoch), or until scaling is resumed (None); `by` is who says so."""
        told = {"paused": True, "until": until, "by": by}
        await self._driver.put(f"fleet/{self.name}/orders", {**await self.orders(), **told})

    async def resume_scaling(self, at: float) -> None:
        """Let the autoscaler decide again, also where a message sent before `at` holds the target."""
        await self._driver.put(f"fleet/{self.name}/orders", {"paused": False, "until": None, "resumed_at": at})

    async def fault(self) -> dict[str, Any]:
        """Why the autoscaler cannot decide: `why`, and since when (`at`, s since the epoch); {} if it can."""
        return await self._entry("fault")

    async def keep_fault(self, fault: Mapping[str, Any]) -> None:
        await self._driver.put(f"fleet/{self.name}/fault", dict(fault))

    async def hold(self) -> dict[str, Any]:
        """The last message that holds the target: `until` and `at` (s since the epoch), `by`, its decision's `id`; or {}."""
        return await self._entry("hold")

    async def keep_hold(self, hold: Mapping[str, Any]) -> None:
        await self._driver.put(f"fleet/{self.name}/hold", dict(hold))

    async def _entry(self, name: str) -> dict[str, Any]:
        found, value = await self._driver.get(f"fleet/{self.name}/{name}")
        return value if found and isinstance(value, dict) else {}

    # -- hosts ---------------------------------------------------------------------------------------------------------

    async def hosts(self) -> list[str]:
        """The owners (process identities) of the living processes that host the fleet."""
        held = await self._driver.locks(f"host/{self.name}/")
        return [owner for _, owner, _ in held if not is_dead(owner)]
