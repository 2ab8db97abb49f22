"""The autoscaler's actions: look, decide, tell the scaler, keep the decision; see runtime/autoscaler.py."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.autoscaler import Autoscaler
from flatfleet.runtime.fleet import Fleet


async def observe(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Look at the fleet: `seen`; `closed` says that this process is stopping."""
    return await Autoscaler(context, fleet).observe()


async def decide(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Decide on what was `seen`: `decision`, and whether the scaler has to be told (`sends`)."""
    return await Autoscaler(context, fleet).decide()


async def send(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Send the scaler the message that a person would send."""
    return await Autoscaler(context, fleet).send()


async def record(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Keep the `decision`, and what is remembered for the next one."""
    return await Autoscaler(context, fleet).record()


async def away(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Note since when the store has not answered, or that deciding has failed."""
    return await Autoscaler(context, fleet).away()


async def rest(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Wait for the policy's `interval`, or until this process is told to stop."""
    return await Autoscaler(context, fleet).rest()
