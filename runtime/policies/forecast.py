"""Forecasts of an arrival rate on its own bounded history: smoothing, seasonal naive, and a learned model."""

from __future__ import annotations

import math
from typing import Any

SLOTS = 144
"""Means that are kept of a season."""
BUCKET = 60.0
"""Seconds of one step of the learned model."""
ENOUGH = 200.0
"""Samples that a smoothed mean is taken over, which leaves 7 % of noise where arrivals are Poisson."""
LONGEST = 1800.0
"""Seconds that it is taken over at most."""
SURPRISE = 4.0
"""Standard deviations from which on a sample is no noise: the mean starts anew from it."""

_RECENT = 6
_FORGET = 0.9995
_RIDGE = 0.3
_LEAST_RATE = 1e-4
_FEATURES = 3


def smoothed(state: dict[str, Any], at: float, value: float, noise: float, rate: float, window: float) -> float:
    """The mean of a measured value over about `ENOUGH` samples, which come at `rate` per second.

    `value` is a mean over `window` seconds with the standard deviation `noise`. Starts anew where the value contradicts
    the mean; for a window from then on the last value counts, which holds all that is known. State: `value`, `at`, `age`
    (seconds since it started).
    """
    if "value" not in state or abs(value - state["value"]) > SURPRISE * noise:
        state.update(value=value, at=at, age=0.0)
        return value
    passed = max(0.0, at - state["at"])
    age = state["age"] + passed
    over = min(max(window, min(LONGEST, ENOUGH / rate if rate > 0 else LONGEST)), age) - window
    state["value"] += (value - state["value"]) * (passed / over if over > passed else 1.0 if passed else 0.0)
    state.update(at=at, age=min(age, LONGEST + window))
    return float(state["value"])


def seasonal(
    state: dict[str, Any], at: float, rate: float | None, lead: float, season: float
) -> tuple[float | None, dict[str, Any]]:
    """Seasonal naive: the mean rate of the slot of `at` + `lead` one season ago; None without one.

    Slots that passed between two looks no further apart than `lead` have the rate of the second, which is a mean over them;
    of longer breaks nothing is known. Source: Hyndman, Athanasopoulos, *Forecasting: Principles and Practice*, 3rd ed., 5.2.
    """
    _remember(state, at, rate, lead, season)
    value = state["slots"][_slot(at + lead, season)]
    return value, {"slot": _slot(at + lead, season)}


def learned(
    state: dict[str, Any], at: float, rate: float | None, now: float, lead: float, season: float
) -> tuple[float, dict[str, Any]]:
    """The smoothed rate `now` times the change that a regression forecasts for `at` + `lead`.

    The change of the log rate is regressed on its distance from its recent mean, its recent trend, and its change in the
    last season: ridge regression by recursive least squares with forgetting (Ljung, *System Identification*, 2nd ed.,
    11.2), refitted with each bucket of 60 s. It counts only while its errors are smaller than those of no change at all.
    """
    _remember(state, at, rate, lead, season)
    ahead = min(max(1, math.ceil(lead / BUCKET)), 60)
    if rate is not None:
        _bucket(state, at, rate, now, ahead, season)
    base = _log(now)
    row = _row(state, at, base, ahead, season)
    trusted = state.get("error", 0.0) < state.get("naive", 0.0)
    change = max(-1.0, min(1.0, _dot(state["weights"], row))) if trusted and row else 0.0
    return now * math.exp(change), {"change": round(change, 4), "trusted": trusted, "rate_now": float(f"{now:.4g}")}


# -- a season ----------------------------------------------------------------------------------------------------------


def _slot(at: float, season: float) -> int:
    return int(at % season / season * SLOTS) % SLOTS


def _remember(state: dict[str, Any], at: float, rate: float | None, lead: float, season: float) -> None:
    if state.get("season") != season:
        state.update(season=season, slots=[None] * SLOTS, slot=None, total=0.0, count=0, at=at)
    turn = int(at / season * SLOTS)
    if state["slot"] != turn:
        last = state["slot"]
        if last is not None:
            if state["count"]:
                state["slots"][last % SLOTS] = _rounded(state["total"] / state["count"])
            between = None if rate is None or not 0 <= at - state.get("at", -math.inf) <= lead else _rounded(rate)
            for passed in range(max(last + 1, turn - SLOTS), turn):
                state["slots"][passed % SLOTS] = between
        state.update(slot=turn, total=0.0, count=0)
    state["at"] = at
    if rate is not None:
        state["total"] += rate
        state["count"] += 1


def _rounded(rate: float) -> float:
    return float(f"{rate:.5g}")


# -- the learned model -------------------------------------------------------------------------------------------------


def _log(rate: float) -> float:
    return math.log(max(rate, _LEAST_RATE))


def _bucket(state: dict[str, Any], at: float, rate: float, now: float, ahead: int, season: float) -> None:
    """Enter a rate; where a bucket is over, learn from what was forecast for it, and forecast anew."""
    step = int(at / BUCKET)
    if state.get("ahead") != ahead:
        square = [_RIDGE if i == j else 0.0 for i in range(_FEATURES) for j in range(_FEATURES)]
        state.update(ahead=ahead, step=step, sum=0.0, many=0, recent=[], open=[], square=square)
        state.update(product=[0.0] * _FEATURES, weights=[0.0] * _FEATURES, error=0.0, naive=0.0)
    if step != state["step"]:
        if step > state["step"] + 1 or step < state["step"] or not state["many"]:
            state.update(recent=[], open=[])
        else:
            value = _log(state["sum"] / state["many"])
            state["recent"] = [*state["recent"][1 - _RECENT :], value]
            _learn(state, state["step"], value)
            base = _log(now)
            if row := _row(state, at, base, ahead, season):
                guess = _dot(state["weights"], row)
                state["open"] = [*state["open"][-ahead:], [state["step"] + ahead, base, guess, *row]]
        state.update(step=step, sum=0.0, many=0)
    state["sum"] += rate
    state["many"] += 1


def _row(state: dict[str, Any], at: float, base: float, ahead: int, season: float) -> list[float]:
    recent = state.get("recent", ())
    if len(recent) < _RECENT:
        return []
    then, soon = state["slots"][_slot(at, season)], state["slots"][_slot(at + ahead * BUCKET, season)]
    cycle = _log(soon) - _log(then) if then is not None and soon is not None else 0.0
    return [sum(recent) / len(recent) - base, recent[-1] - recent[0], cycle]


def _learn(state: dict[str, Any], step: int, value: float) -> None:
    due = [each for each in state["open"] if each[0] == step]
    state["open"] = [each for each in state["open"] if each[0] > step]
    for _, base, guess, *row in due:
        change = max(-1.0, min(1.0, value - base))
        state["error"] = 0.98 * state["error"] + 0.02 * (change - guess) ** 2
        state["naive"] = 0.98 * state["naive"] + 0.02 * change**2
        for i in range(_FEATURES):
            state["product"][i] = _FORGET * state["product"][i] + row[i] * change
            for j in range(_FEATURES):
                at = i * _FEATURES + j
                state["square"][at] = _FORGET * state["square"][at] + row[i] * row[j]
            state["square"][i * _FEATURES + i] += (1 - _FORGET) * _RIDGE
        state["weights"] = _solved(state["square"], state["product"])


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _solved(square: list[float], product: list[float]) -> list[float]:
    """Solve square · x = product (positive definite) by Gaussian elimination."""
    rows = [[*square[i * _FEATURES : (i + 1) * _FEATURES], product[i]] for i in range(_FEATURES)]
    for i in range(_FEATURES):
        for below in rows[i + 1 :]:
            factor = below[i] / rows[i][i]
            below[i:] = [b - factor * a for a, b in zip(rows[i][i:], below[i:], strict=True)]
    found = [0.0] * _FEATURES
    for i in reversed(range(_FEATURES)):
        rest = sum(rows[i][j] * found[j] for j in range(i + 1, _FEATURES))
        found[i] = (rows[i][_FEATURES] - rest) / rows[i][i]
    return found
