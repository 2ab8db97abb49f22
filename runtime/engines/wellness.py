"""The watch over a pool: hosts are asked whether they are well, and let go when they have been idle for too long."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from flatfleet.runtime.engines.places import Place

if TYPE_CHECKING:
    from flatfleet.runtime.engines.pool import HostPool

logger = logging.getLogger(__name__)

HEALTH = 5.0
"""Seconds between two looks at each host."""
SOON = 0.02


async def watch(pool: HostPool) -> None:
    """Look from now on, until cancelled."""
    idle = pool.settings.idle_timeout
    while True:
        await asyncio.sleep(min(HEALTH, max(SOON, idle / 4), pool.hung / 4))
        for place in list(pool.places):
            if place.ready and place.asked is None:
                place.asked = asyncio.create_task(_ask(pool, place))
        resting = sorted(
            (each for each in pool.places if each.ready and not each.reserved), key=lambda each: each.idle_since
        )
        spare = len(pool.counted()) - pool.settings.min_size
        for place in resting[: max(0, spare)]:
            if time.monotonic() - place.idle_since >= idle:
                pool.retire(place)


async def _ask(pool: HostPool, place: Place) -> None:
    """Ask a host whether it is well; one that does not answer while a lease lasts is killed: its items are others' by then."""
    try:
        async with asyncio.timeout(pool.hung):
            well = await place.host.ping()
    except TimeoutError:
        well = False
    place.asked = None
    if not well and place.state in ("ready", "leaving"):
        logger.error("%s has not answered for %g s: it is replaced", place.host.id, pool.hung)
        place.host.kill()
