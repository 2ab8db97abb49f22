"""What workers and items cost: prices, what is spent, and how many workers the caps allow. Pure: account in, account out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import Cost, Settings

SPOT, ON_DEMAND = "spot", "on-demand"
"""What can be asked for, and the capability that says it: a host that may be taken away at any time, and one that stays."""
NEARLY = 0.8
"""The part of a budget from which on a decision says how much of it is spent."""

_ROUNDING = 1e-9
_HOUR = 3600.0


class Mix(NamedTuple):
    """Something of each kind of worker: how many there are, what one costs an hour, how long they ran."""

    on_demand: float = 0.0
    spot: float = 0.0

    @property
    def total(self) -> float:
        return self.on_demand + self.spot

    def times(self, other: Mix) -> float:
        return self.on_demand * other.on_demand + self.spot * other.spot


class Ran(NamedTuple):
    """What the registry says of a time in which nobody looked, of those workers that are live at its end.

    `seconds` that they ran in it, and the parallelism of those that were there at its beginning (`still`).
    """

    seconds: Mix
    still: Mix


def priced(cost: Cost) -> bool:
    """Whether anything has a price."""
    return bool(cost.per_worker_hour or cost.per_spot_hour or cost.per_item)


def running(o: Observation) -> Mix:
    """The parallelism that is paid for, the draining one too."""
    paid = o.workers + o.draining
    spot = min(o.spot or 0, paid)
    return Mix(paid - spot, spot)


def prices(cost: Cost) -> Mix:
    """What a worker costs an hour; a spot worker without a price of its own costs what others do."""
    usual = cost.per_worker_hour or 0.0
    return Mix(usual, usual if cost.per_spot_hour is None else cost.per_spot_hour)


# -- what is spent -----------------------------------------------------------------------------------------------------


def charged(
    o: Observation, s: Settings, account: Mapping[str, Any], ran: Ran | None = None
) -> tuple[Observation, dict[str, Any]]:
    """The observation with `cost_per_hour` and `spent`, and the account for the next look; `account` is {} at first.

    Between two looks the mean of what ran at either is charged, and every item that completed. Of a time longer than
    `stale_after` nobody knows: those that `ran` are charged for it, all others for `stale_after` of it. Time under a policy
    without prices costs nothing; what is spent stays spent.
    """
    now, cost = running(o), s.cost
    told = {"at": o.at, "spent": account.get("spent", 0.0), **now._asdict()}
    if o.completed is not None:
        told["completed"] = o.completed
    if not priced(cost):
        return o, {**told, "per_hour": 0.0} if account else {}
    if account:
        told["spent"] += prices(cost).times(_worked(o, s, account, now, ran)) / _HOUR
        told["spent"] += cost.per_item * max(0, (o.completed or 0) - account.get("completed", o.completed or 0))
    told["per_hour"] = prices(cost).times(now)
    if now.total:
        told["per_hour"] += cost.per_item * _HOUR * (o.throughput or 0.0)
    return replace(o, cost_per_hour=told["per_hour"], spent=told["spent"]), told


def unseen(o: Observation, s: Settings, account: Mapping[str, Any]) -> bool:
    """Whether nobody has looked for so long that it matters what `ran` meanwhile."""
    return bool(account) and priced(s.cost) and o.at - account["at"] > s.stale_after


def exhausted(cost: Cost, spent: float | None) -> str:
    """Why nothing more may be spent; empty where something may."""
    if cost.budget is None or spent is None or spent < cost.budget:
        return ""
    return f"budget = {cost.budget:g}, and {shown(spent)} are spent"


def nearly(cost: Cost, spent: float | None) -> str:
    """That most of a budget is spent; empty where less is, or all of it."""
    if not cost.budget or spent is None or not NEARLY <= spent / cost.budget < 1:
        return ""
    return f"{shown(spent)} of budget = {cost.budget:g} are spent"


def shown(value: float) -> str:
    """An amount of money in four digits, or more where it is larger."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _worked(o: Observation, s: Settings, account: Mapping[str, Any], now: Mix, ran: Ran | None) -> Mix:
    """Worker-seconds since the last look."""
    passed, before = max(0.0, o.at - account["at"]), Mix(account["on_demand"], account["spot"])
    if passed <= s.stale_after:
        return Mix(*((a + b) / 2 * passed for a, b in zip(before, now, strict=True)))
    found = ran or Ran(Mix(), Mix())
    gone = (max(0.0, a - b) * s.stale_after for a, b in zip(before, found.still, strict=True))
    return Mix(*(a + b for a, b in zip(found.seconds, gone, strict=True)))


# -- the caps ----------------------------------------------------------------------------------------------------------


def affordable(o: Observation, s: Settings, capacity: str | None) -> tuple[int, str] | None:
    """The most workers that the cost caps allow, and why; None where there is no cap, or no price.

    Those that run cost what they are, further ones what is asked for (`capacity`); where those that run cost too much
    already, as many may stay as the threshold pays for at their mean price. A busy worker costs its hour and the items that
    it does in one.
    """
    cost = s.cost
    if said := exhausted(cost, o.spent):
        return 0, said
    if cost.cost_threshold is None:
        return None
    most, there, each = cost.cost_threshold, running(o), prices(cost)
    if not priced(cost) and o.cost_per_hour is not None and there.total:
        each = Mix(*[o.cost_per_hour / there.total] * 2)
    items = cost.per_item * _HOUR / o.service_mean if o.service_mean else 0.0
    each = Mix(each.on_demand + items, each.spot + items)
    asked, costs = each.spot if capacity == SPOT else each.on_demand, there.times(each)
    if costs > most * (1 + _ROUNDING):
        mean = costs / there.total
        return min(o.workers, math.floor(most / mean + _ROUNDING)), _why(most, there, each, mean, f"{shown(mean)} each")
    if asked <= 0 or (most - costs) / asked > 1e9:
        return None
    further = math.floor((most - costs) / asked + _ROUNDING)
    return o.workers + further, _why(most, there, each, asked, f"a further {capacity or 'one'} {shown(asked)}")


def _why(most: float, there: Mix, each: Mix, price: float, last: str) -> str:
    """Where all that run cost this price, that says it; else what they are, and `last`."""
    said, costs = f"cost_threshold = {most:g}/h", there.times(each)
    kinds = [(n, kind, one) for n, kind, one in zip(there, (ON_DEMAND, SPOT), each, strict=True) if n]
    if all(math.isclose(one, price) for _, _, one in kinds):
        return f"{said} at {shown(price)} a worker"
    return f"{said}: {' and '.join(f'{n:g} {kind}' for n, kind, _ in kinds)} cost {shown(costs)}/h, {last}"
