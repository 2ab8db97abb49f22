"""Lifecycle hook: a worker registers itself when it starts and deregisters however it ends."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.bookings import register
from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.values import text, whole, worker_id
from flatmachines import MachineHooks

ERROR_KEPT = 1000
"""Characters of the error that ended a worker, as its registration keeps them."""


class Registration(MachineHooks):
    """Registers unless the machine's `registration` is "none"; claims and results are the same either way."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_machine_start(self, context: dict[str, Any]) -> dict[str, Any]:
        name = worker_id(context)
        if text(context, "registration", "store") == "none":
            return context
        about = {
            "pool": text(context, "pool", "papers"),
            "parallelism": whole(context, "parallelism", 1),
            "machine": context.get("machine", {}).get("machine_name"),
        }
        record = await register(self._fleet, name, about)
        self._fleet.enlist(name, record.status)
        return context

    async def on_machine_end(self, context: dict[str, Any], final_output: dict[str, Any]) -> dict[str, Any]:
        await self._deregister(context, (final_output or {}).get("status", "ended"))
        return final_output

    async def on_machine_abort(self, context: dict[str, Any], error: BaseException) -> None:
        try:
            await self._deregister(context, type(error).__name__, error=str(error)[:ERROR_KEPT])
        except StoreError:
            return  # the registration's lease runs out by itself

    async def _deregister(self, context: dict[str, Any], ended: str, **more: str) -> None:
        name = context.get("worker_id")
        if name not in self._fleet.workers:
            return
        self._fleet.discharge(name)
        await self._fleet.store.driver.set_status(
            name, "terminated", {"ended": ended, "processed": context.get("processed", 0), **more}
        )
