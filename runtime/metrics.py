"""What a fleet's store measures, as the observation that its policies decide on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import Settings
from flatfleet.runtime.stores.buckets import KEPT, Activity, Bucket, merged, quantile
from flatfleet.runtime.stores.store import Store

Count = Callable[[Activity], Awaitable[int]]


async def observe(store: Store, fleet: str, settings: Settings, spot: Count | None = None) -> Observation:
    """Look at a fleet and its pool now; `spot` counts its workers on spot hosts, where there can be some. Raises
    StoreUnavailable.

    Costs by the seconds of the window and the workers, whatever number of items there are.
    """
    driver, since = store.driver, time.time() - settings.metrics_window
    activity, target = await asyncio.gather(driver.metrics(fleet, since, KEPT), driver.target(fleet))
    seen = observation(activity, target, settings.metrics_window)
    if settings.cost.per_item:
        seen = replace(seen, completed=activity.counts.completed)
    return seen if spot is None else replace(seen, spot=await spot(activity))


def observation(
    activity: Activity, target: int | None, window: float, dead: Callable[[str], bool] = is_dead
) -> Observation:
    """The observation of what a store measured over the last `window` seconds, an hour at most.

    Rates are per second of the whole window. `dead` says of a process whether it is known to have ended: its workers do
    not count. Without a stored target the live parallelism stands for it.
    """
    at, counts, window = activity.at, activity.counts, max(1.0, min(window, float(KEPT)))
    live, starting, draining = crew(activity, dead)
    recent = [bucket for bucket in activity.buckets if bucket.at > at - window - 1]
    ended = sum(bucket.completed + bucket.failed for bucket in recent)
    waits = merged(bucket.hist for bucket in recent)
    demand = counts.waiting + counts.claimed + counts.expired
    last = max((each for each in (activity.last_arrival, activity.last_end) if each is not None), default=None)
    return Observation(
        at=at,
        workers=live,
        starting=starting,
        draining=draining,
        target=live if target is None else target,
        waiting=counts.waiting,
        claimed=counts.claimed,
        expired=counts.expired,
        delayed=counts.delayed,
        arrival_rate=_sum(recent, "arrivals") / window if last is not None else None,
        arrival_cv2=_cv2(recent, "gaps", "gap", "gap2"),
        service_mean=_mean(_sum(recent, "service"), ended),
        service_cv2=_variation(ended, _sum(recent, "service"), _sum(recent, "service2")),
        startup=activity.startup,
        wait_mean=_mean(_sum(recent, "wait"), _sum(recent, "waits")),
        wait_p50=quantile(waits, 0.5),
        wait_p95=quantile(waits, 0.95),
        oldest_wait=0.0 if activity.oldest is None else max(0.0, at - activity.oldest),
        response=_mean(_sum(recent, "response"), _sum(recent, "completed")),
        throughput=_sum(recent, "completed") / window if last is not None else None,
        utilisation=min(1.0, counts.claimed / (live + draining)) if live + draining else None,
        idle=0.0 if demand else None if last is None else max(0.0, at - last),
        provider_faults=_sum(recent, "provider") / window if last is not None else None,
        measured=at,
    )


def crew(activity: Activity, dead: Callable[[str], bool] = is_dead) -> tuple[int, int, int]:
    """The parallelism that is live, how much of it has not asked for an item yet, and what is draining."""
    found = [numbers for owner, numbers in activity.crew.items() if not dead(owner)]
    live, starting, draining = (sum(numbers[n] for numbers in found) for n in range(3))
    return live, starting, draining


def _sum(buckets: Sequence[Bucket], name: str) -> float:
    return float(sum(getattr(bucket, name) for bucket in buckets))


def _mean(total: float, n: float) -> float | None:
    return total / n if n else None


def _cv2(buckets: Sequence[Bucket], n: str, total: str, squares: str) -> float | None:
    return _variation(_sum(buckets, n), _sum(buckets, total), _sum(buckets, squares))


def _variation(n: float, total: float, squares: float) -> float | None:
    """Squared coefficient of variation, variance / mean², of n numbers by their sum and the sum of their squares."""
    if n < 2 or total <= 0:
        return None
    mean = total / n
    return max(0.0, squares / n - mean * mean) / (mean * mean)
