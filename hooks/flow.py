"""Counting and pacing, which the expressions of YAML cannot do."""

from __future__ import annotations

import asyncio
from typing import Any

from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.values import number, whole


async def count(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Add one to `n`."""
    context["n"] = whole(context, "n", 0) + 1
    return context


async def pace(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Wait `interval` seconds; where that is not given, `launch_interval`."""
    await asyncio.sleep(number(context, "interval", number(context, "launch_interval", 0.0)))
    return context
