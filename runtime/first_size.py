"""What a policy says of a fleet that is launched: how large it may be at first, and whose policy counts."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from flatfleet.runtime import fleet_settings
from flatfleet.runtime.dispatcher import autoscaler_of
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.notices import notices
from flatfleet.runtime.owner import is_dead, place_of
from flatfleet.runtime.policies import costs, naming, schedule
from flatfleet.runtime.policies.settings import settings
from flatfleet.runtime.values import text

FOREVER = 1e9
"""Seconds, 31 years: workers under an autoscaler do not retire by themselves."""


class Bounds(NamedTuple):
    """The fewest and the most parallelism of a fleet that its policy allows now; `why` where that is none for once."""

    fleet: str
    low: int
    high: int
    why: str = ""


async def serve(context: dict[str, Any], fleet: Fleet) -> Bounds | None:
    """Make this process serve a fleet with a `policy`, and return the bounds that it sets now; None without one.

    Where another process scales the fleet by another policy, that one counts, and a notice says so. With `until_empty` it
    is no service: all of it ends with the pool. Raises UsageError for a policy that is none.
    """
    if not context.get("policy"):
        return None
    policy = context["policy"] = fleet_settings.load(context["policy"])
    context["idle_timeout"] = FOREVER
    fleet.served = context.get("until_empty") not in (True, "true", "True")
    name, now = text(context, "pool", "papers"), time.time()
    running = await _running(fleet, name)
    if running is not None:
        owner, theirs = running
        if naming.label(theirs) != naming.label(policy):
            host, pid = place_of(owner)
            notices.warning(
                "fleet %s is scaled by the policy of pid %s on %s (%s); yours (%s) is not used while that one runs",
                *(name, pid, host, naming.label(theirs), naming.label(policy)),
            )
        policy = theirs
    made = settings(policy)
    fleet.spot_wait = made.spot_wait if made.prefer_spot else None
    spent = (await fleet.store.fleet(name).policy_state()).get("cost", {}).get("spent")
    if why := costs.exhausted(made.cost, spent):
        return Bounds(name, 0, 0, why)
    return Bounds(name, *schedule.bounds(made, schedule.overrides(made.schedule, now)))


def bounded(target: int, live: int, bounds: Bounds | None) -> int:
    """The first target of a fleet within its bounds; of what is live already nobody goes by this."""
    if bounds is None:
        return target
    fit = max(bounds.low, min(target, max(bounds.high, live)))
    if fit != target:
        why = bounds.why or f"its policy allows {bounds.low} to {bounds.high}"
        notices.info("fleet %s begins with %s, not %s: %s", bounds.fleet, fit, target, why)
    return fit


async def _running(fleet: Fleet, name: str) -> tuple[str, dict[str, Any]] | None:
    """The living process that runs the fleet's autoscaler, and by which policy."""
    driver, autoscaler = fleet.store.driver, autoscaler_of(name)
    owners = [owner for key, owner, _ in await driver.locks(autoscaler) if key == autoscaler and not is_dead(owner)]
    row = await driver.load_snapshot(autoscaler) if owners else None
    policy = (json.loads(row.body).get("context") or {}).get("policy") if row is not None else None
    return (owners[0], fleet_settings.load(policy)) if policy else None
