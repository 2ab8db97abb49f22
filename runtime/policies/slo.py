"""`slo`: the fewest workers for which the queueing model keeps the objective, and works off a queue that is there."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flatfleet.runtime.policies.forecast import smoothed
from flatfleet.runtime.policies.observation import SHORTEST, Observation, Want
from flatfleet.runtime.policies.queueing import workers_for
from flatfleet.runtime.policies.settings import Settings, Slo

PATIENCE = 0.1
"""The share of misses that an objective has to allow for a queue to be worked off within a start and a service."""
LEISURE = 1.25
"""Starts and services that it is given at most, where more misses are allowed."""

STARTUP = 30.0
"""Seconds that a start is taken for until one has been measured."""

CENSORED = 1.5
"""How many times the mean of the first completions a service is taken for at most, if items stay in hand."""

_MOST_CV2 = 25.0


class Load(NamedTuple):
    """What the model is fed with: arrivals /s, mean service s, and their squared coefficients of variation."""

    arrival: float
    service: float
    arrival_cv2: float
    service_cv2: float

    def data(self) -> dict[str, float]:
        return {name: float(f"{value:.4g}") for name, value in self._asdict().items()}


def want(o: Observation, s: Settings, state: dict[str, Any]) -> Want:
    """Want the fewest workers with P(wait ≤ t) ≥ level (G/G/c), and those that a present queue needs beside.

    The measured rates are smoothed until they contradict their mean (`forecast.smoothed`): noise alone moves no worker.
    """
    if o.demand is None:
        return Want("slo", None, "the demand is not known")
    load = measured(o, s, state)
    if load is None and (blind := _blind(o, s, state)) is not None:
        return blind
    if load is None:
        what = "arrival rate" if o.service_mean else "service time"
        if o.queued and o.queued > s.queue_depth:
            return Want("slo", o.target + 1, f"no {what} measured yet, and {o.queued} items wait: one more")
        return Want("slo", None, f"no {what} measured yet")
    return sized("slo", o, s, load, state)


def measured(o: Observation, s: Settings, state: dict[str, Any]) -> Load | None:
    """The smoothed load; None while the arrival rate or the service time has never been measured."""
    ca, cs = (max(1.0, state.get(name, {}).get("value", 1.0)) for name in ("arrival_cv2", "service_cv2"))
    window = max(s.metrics_window, 1e-3)
    if o.arrival_rate is not None:
        rate = state.get("arrival", {}).get("value", o.arrival_rate)
        noise = math.sqrt(max(rate, 1 / window) * ca / window)
        smoothed(state.setdefault("arrival", {}), o.at, o.arrival_rate, noise, rate, window)
    if service := _served(o, state, window):
        count = max(o.throughput or o.arrival_rate or 0.0, 1e-6)
        mean = state.get("service", {}).get("value", service)
        noise = mean * math.sqrt(cs / max(count * window, 1.0))
        smoothed(state.setdefault("service", {}), o.at, service, noise, count, window)
    for name, value in (("arrival_cv2", o.arrival_cv2), ("service_cv2", o.service_cv2)):
        if value is not None:
            count = o.arrival_rate or 0.0
            smoothed(state.setdefault(name, {}), o.at, min(value, _MOST_CV2), math.inf, count, window)
    if "arrival" not in state or "service" not in state:
        return None
    found = [state.get(name, {}).get("value") for name in ("arrival", "service", "arrival_cv2", "service_cv2")]
    return Load(
        found[0], max(found[1], SHORTEST), 1.0 if found[2] is None else found[2], 1.0 if found[3] is None else found[3]
    )


def _blind(o: Observation, s: Settings, state: dict[str, Any]) -> Want | None:
    """What is wanted while no item has ended yet: none takes less than the first has taken so far.

    No more than there is work for now. None while that says nothing, so that the caller has to.
    """
    if "arrival" not in state or not o.claimed or o.service_mean:
        state.pop("claimed_at", None)
        return None
    passed = o.at - state.setdefault("claimed_at", o.at)
    if passed <= 0:
        return None
    made = sized("slo", o, s, Load(state["arrival"]["value"], passed, 1.0, 1.0), {})
    most = o.claimed + (o.queued or 0)
    wanted = max(o.target, min(made.desired or 0.0, most))
    return Want("slo", wanted, f"nothing is done after {passed:.3g} s: {made.reason}", made.seen)


def _served(o: Observation, state: dict[str, Any], window: float) -> float | None:
    """The mean service time; for a window from the first completion up to `CENSORED` times it, as the items in hand say.

    Until then the long ones are still in hand, and the mean of the completions is that of the short ones. All time in hand ÷
    completions is the estimate from times so censored (Epstein, Sobel, *Life testing*, JASA 48, 1953), here less its relative
    standard deviation, 1/√completions. The time in hand is the mean of two looks, which overrates it where many claim
    between them: hence the limit.
    """
    if o.claimed is None or not o.service_mean or not o.throughput:
        return o.service_mean
    begun = state.setdefault("begun", {"at": o.at, "last": o.at, "claimed": o.claimed, "held": 0.0})
    passed = o.at - begun["at"]
    if not 0 < passed <= window:
        return o.service_mean
    begun["held"] += (o.claimed + begun["claimed"]) / 2 * max(0.0, o.at - begun["last"])
    begun.update(last=o.at, claimed=o.claimed)
    sure = 1 - 1 / math.sqrt(max(1.0, o.throughput * passed))
    in_hand = begun["held"] / passed / o.throughput * sure
    return min(max(o.service_mean, in_hand), CENSORED * o.service_mean)


def sized(policy: str, o: Observation, s: Settings, load: Load, state: dict[str, Any]) -> Want:
    """The workers that `load` needs under `s.slo`, or at `target_utilization` where there is none, and why."""
    offered, seen = load.arrival * load.service, load.data()
    most = s.max + s.burst_capacity + max([each.max or each.target or 0 for each in s.schedule], default=0)
    if s.slo is None:
        steady = math.ceil(offered / s.target_utilization - 1e-9)
        return Want(policy, steady, f"offered load {offered:.3g} at {s.target_utilization:g} a worker", seen)
    if offered > most:
        steady = math.ceil(offered)
    else:
        cv2 = {"arrival_cv2": load.arrival_cv2, "service_cv2": load.service_cv2}
        within = max(s.slo.wait - (o.dispatch or 0.0), 0.0)
        steady = workers_for(load.arrival, 1 / load.service, within, s.slo.level, **cv2)
    reason = f"{steady} keep P(wait ≤ {s.slo.wait:g} s) ≥ {s.slo.level:.4g} at an offered load of {offered:.3g}"
    needed, left, within = _cleared(o, s.slo, load)
    if needed > steady:
        seen["queue_left"] = round(left, 1)
        reason = f"{left:.0f} items would still wait when new workers come; {needed} work them off in {within:.3g} s"
    return Want(policy, min(max(steady, needed), 10 * most + 10), reason, seen)


def _cleared(o: Observation, slo: Slo, load: Load) -> tuple[int, float, float]:
    """The fewest workers that work a present queue off in time, the items that they find, and the seconds that they have.

    Of n wanted, those of them that claim already go on until the others do, a start-up later: left(n) = queued +
    (λ − min(n, claiming)/S)·start-up. n are enough if left(n) < 1, or if n ≥ (λ + left(n)/within)·S. So a worker is let
    go only where it would not be missed at the next look.
    """
    queued, within = o.queued or 0, _within(o, slo, load)
    if not queued:
        return 0, 0.0, within
    lead = STARTUP if o.startup is None else o.startup
    claiming = max(0, o.workers - o.starting) + o.starting / 2

    def left(workers: float) -> float:
        return queued + (load.arrival - min(workers, claiming) / load.service) * lead

    few = math.ceil((load.arrival + queued / (within + lead)) * load.service - 1e-9)
    if lead >= 1e-6:
        few = min(few, max(0, math.floor((load.arrival + (queued - 1) / lead) * load.service + 1e-9) + 1))
    if few > claiming and left(claiming) >= 1:
        few = max(few, math.ceil((load.arrival + left(claiming) / within) * load.service - 1e-9))
    return few, left(few), within


def _within(o: Observation, slo: Slo, load: Load) -> float:
    """Seconds in which a queue is to be gone: the objective's wait, or longer where that allows misses.

    What waits when a new worker comes has waited for its start-up already; more workers than it takes to clear the queue
    within a start and a service cost more starts and stops than they save misses. The fewer misses, the less of that.
    """
    lead = STARTUP if o.startup is None else o.startup
    return max(slo.wait, (lead + load.service) * min(LEISURE, (1 - slo.level) / PATIENCE))


def _cv2(value: float | None) -> float:
    return 1.0 if value is None else min(value, _MOST_CV2)
