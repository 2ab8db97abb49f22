"""Numbers, times, shares and costs, as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def number(value: float) -> str:
    """Four digits, or whole from 10,000 on; — for what is not known."""
    if not math.isfinite(value):
        return "—" if math.isnan(value) else "∞"
    return f"{value:,.0f}" if 10_000 <= value < 1e12 else f"{value:.4g}"


def time(value: float) -> str:
    """Seconds in the unit that suits them."""
    if 0 < value < 1e-9:
        return "<1ns"
    size, unit = next((pair for pair in _UNITS if value >= pair[0]), (1.0, "s"))
    return f"{number(value / size)}{unit}" if math.isfinite(value) else number(value)


def percent(part: float) -> str:
    """Four digits of a share; 100% is all of it."""
    text = f"{part * 100:.4g}"
    return ">99.99%" if text == "100" and part < 1 else f"{text}%"


def reached(part: float) -> str:
    """With as many digits as it takes not to say 100%."""
    texts = (f"{part * 100:.{digits}g}" for digits in range(4, 16))
    return f"{next((text for text in texts if text != '100' or part >= 1), '>99.9999999999999')}%"


def spent(account: Mapping[str, Any]) -> str:
    """What is spent by an account (runtime/spending.py), of its budget if there is one: `10.02 of a budget of 10`."""
    of = "" if account["budget"] is None else f" of a budget of {number(account['budget'])}"
    return f"{number(account['spent'])}{of}"


def costs(account: Mapping[str, Any]) -> str:
    """What a fleet costs: `4.5 an hour for 3 workers (2 spot), 10.02 of a budget of 10 spent`."""
    workers = f"{account['workers']} worker" + ("" if account["workers"] == 1 else "s")
    spot = "" if account["spot"] is None else f" ({account['spot']} spot)"
    return f"{number(account['per_hour'])} an hour for {workers}{spot}, {spent(account)} spent"
