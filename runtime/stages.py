"""Pools that are the stages of one pipeline: when all of them have come to their end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.stores.store import Pool

LOOK = 0.1
"""Seconds between two looks of who waits for a stage to end."""
GONE = 2.0
"""Seconds without a worker in this process after which nobody here is expected to settle what is left."""


async def settle(fleet: Fleet, stages: Sequence[Pool]) -> int:
    """Wait until nothing is left in any pool, the first stage first: 0; or how much is left when nobody here works on it."""
    seen = time.monotonic()
    while lefts := [left for stage in stages if (left := (await stage.counts()).left)]:
        seen = time.monotonic() if fleet.workers else seen
        if time.monotonic() - seen > GONE:
            break
        await asyncio.sleep(LOOK)
    return sum(lefts)
