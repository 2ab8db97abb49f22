"""The settings of a fleet's scaling (`settings.fleet`), with their defaults and the presets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MODES = ("fixed", "thresholds", "target", "latency", "slo", "predictive")
PREDICTORS = ("seasonal", "learned")

PRESETS: dict[str, dict[str, Any]] = {
    "aggressive": {
        "mode": ["target", "predictive"],
        "min": 5,
        "max": 50,
        "scale_up_rate": 5,
        "scale_down_rate": 1,
        "predictor": "learned",
    },
    "reactive": {"mode": "target", "min": 0, "max": 100, "burst_capacity": 20, "idle_terminate": 120},
    "conservative": {"mode": "thresholds", "min": 1, "max": 5, "prefer_spot": True, "cost": {"cost_threshold": 100}},
    "auto": {
        "mode": ["thresholds", "target"],
        "min": 1,
        "max": 20,
        "target_utilization": 0.7,
        "scale_up_threshold": 0.8,
        "scale_down_threshold": 0.3,
        "cooldown_period": 60,
    },
}
"""What stands beside a preset in a file overrides it, key by key (`cost` too)."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Both(NamedTuple):
    """One number a direction."""

    up: float
    down: float


_MINUTE, _NOTHING, _TENTH = Both(60.0, 60.0), Both(0.0, 0.0), Both(0.1, 0.1)


class Slo(NamedTuple):
    """A share `level` (0 to 1) of the items waits at most `wait` seconds."""

    wait: float
    level: float


class Cost(NamedTuple):
    """Prices in any one currency: what a worker costs an hour, an item each; and the caps: an hour, and in all."""

    per_worker_hour: float | None = None
    per_spot_hour: float | None = None
    per_item: float = 0.0
    cost_threshold: float | None = None
    budget: float | None = None


class Entry(NamedTuple):
    """One line of the schedule: from each moment of `cron` for `duration` seconds."""

    cron: str
    duration: float
    zone: str = "UTC"
    min: int | None = None
    max: int | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """`settings.fleet`, read: seconds, shares from 0 to 1, workers as parallelism. See docs/scaling.md."""

    mode: tuple[str, ...] = ("thresholds",)
    min: int = 1
    max: int = 20
    workers: int | None = None
    """Of `fixed`; None: the stored target stays."""
    interval: float = 10.0
    idle_terminate: float = 300.0
    target_utilization: float = 0.7
    scale_up_threshold: float = 0.8
    scale_down_threshold: float = 0.3
    queue_depth: int = 5
    max_wait: float = 1.0
    sla: float | None = None
    slo: Slo | None = None
    metrics_window: float = 60.0
    cooldown_period: Both = _MINUTE
    scale_up_rate: tuple[int | str, ...] | None = (1,)
    """Workers, or '50%'; of several the largest step counts. None: no limit."""
    scale_down_rate: tuple[int | str, ...] | None = (1,)
    stabilization: Both = _NOTHING
    tolerance: Both = _TENTH
    burst_capacity: int = 0
    burst_threshold: float = 2.0
    burst_time: float = 300.0
    flap_budget: int | None = None
    schedule: tuple[Entry, ...] = ()
    predictor: str = "seasonal"
    season: float = 86400.0
    cost: Cost = field(default_factory=Cost)
    prefer_spot: bool = False
    spot_wait: float = 120.0
    stale_after: float = 30.0
    preset: str | None = None

    @property
    def flaps(self) -> int:
        """Starts + stops an hour: `flap_budget`, or else ten times the largest fleet."""
        return 10 * (self.max + self.burst_capacity) if self.flap_budget is None else self.flap_budget


def settings(data: Mapping[str, Any]) -> Settings:
    """Read `settings.fleet`, which `schemas/fleet.schema.json` has passed: the data over the preset over the defaults.

    Raises ValueError, in one sentence that begins with the key, where two keys do not fit together.
    """
    merged = {**PRESETS[data["preset"]], **data} if data.get("preset") else dict(data)
    if data.get("preset") and "cost" in data:
        merged["cost"] = {**PRESETS[data["preset"]].get("cost", {}), **data["cost"]}
    said = {name: value for name, value in merged.items() if value is not None or name in _RATES}
    read: dict[str, Any] = {name: _read(name, value) for name, value in said.items()}
    made = Settings(**{"stale_after": 3 * read.get("interval", Settings().interval), **read})
    _fit(made)
    return made


def number(text: str) -> float:
    """The number that a text is, in digits 0 to 9: 5, 0.5, .5, 1e-3. Raises ValueError for another text."""
    if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", text):
        raise ValueError(f"'{text}' is no number")
    return float(text)


def seconds(value: float | str) -> float:
    """Seconds of a number, or of a text such as '90s', '5m', '2h' (ms, s, m, h, d). Raises ValueError for another text."""
    if not isinstance(value, str):
        return float(value)
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(ms|s|m|h|d)", value)
    if not found:
        raise ValueError(f"'{value}' is no duration: a number of seconds, or a text such as '90s', '5m', '2h'")
    return float(found[1]) * _UNITS[found[2]]


def objective(value: str | Mapping[str, Any]) -> Slo:
    """The objective of '5s@95%' or of {wait: 5, level: 0.95}. Raises ValueError for another text."""
    if not isinstance(value, str):
        return Slo(seconds(value["wait"]), float(value["level"]))
    wait, at, level = value.partition("@")
    found = re.fullmatch(r" *([0-9]{1,2}(?:\.[0-9]{1,9})?)%", level)
    if not at or not found or not 0 < float(found[1]) < 100:
        raise ValueError(f"'{value}' is no objective, a wait and the share of items that keep it, such as '5s@95%'")
    return Slo(seconds(wait.rstrip(" ")), round(float(found[1]) / 100, 12))


# -- reading -----------------------------------------------------------------------------------------------------------

_NUMBERS = frozenset(("interval", "idle_terminate", "max_wait", "sla", "metrics_window", "burst_time", "season",
                      "spot_wait", "stale_after"))  # fmt: skip
_INTEGERS = ("min", "max", "workers", "queue_depth", "burst_capacity", "flap_budget")
_RATES = ("scale_up_rate", "scale_down_rate")
_BOTH: dict[str, Callable[[Any], float]] = {"cooldown_period": seconds, "stabilization": seconds, "tolerance": float}


def _read(name: str, value: Any) -> Any:
    if name == "mode":
        return (value,) if isinstance(value, str) else tuple(value)
    if name in _NUMBERS:
        return seconds(value)
    if name in _BOTH:
        one = _BOTH[name]
        default = getattr(Settings(), name)
        if isinstance(value, Mapping):
            return Both(*(one(value.get(way, getattr(default, way))) for way in ("up", "down")))
        return Both(one(value), one(value))
    if name in _RATES:
        return None if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if name == "slo":
        return objective(value)
    if name == "cost":
        return Cost(**{key: each for key, each in value.items() if each is not None})
    if name in _INTEGERS:
        return int(value)
    if name == "schedule":
        return tuple(Entry(**{**each, "duration": seconds(each["duration"])}) for each in value)
    return value


def _fit(made: Settings) -> None:
    if made.min > made.max:
        raise ValueError(f"min is {made.min}, which is more than max, {made.max}")
    if made.workers is not None and not made.min <= made.workers <= made.max:
        raise ValueError(f"workers is {made.workers}, which is not within min and max, {made.min} to {made.max}")
    if made.scale_down_threshold >= made.scale_up_threshold:
        raise ValueError(
            f"scale_down_threshold is {made.scale_down_threshold}, and must be less than scale_up_threshold, "
            f"{made.scale_up_threshold}: else the fleet goes up and down for ever"
        )
    if "slo" in made.mode and made.slo is None:
        raise ValueError("slo is missing: mode slo needs it, such as slo: 5s@95%")
    if made.mode == ("predictive",):
        raise ValueError(
            "mode is predictive alone, which only scales up: name another beside it, such as [predictive, target]"
        )
    if "fixed" in made.mode and len(made.mode) > 1:
        raise ValueError(f"mode is [{', '.join(made.mode)}]: fixed stands alone")
    if made.stale_after < made.interval:
        raise ValueError(f"stale_after is {made.stale_after:g} s, which is less than interval, {made.interval:g} s")
    for number, each in enumerate(made.schedule):
        low, high = (made.min if each.min is None else each.min), (made.max if each.max is None else each.max)
        if low > high:
            raise ValueError(f"schedule[{number}]: min is {low}, which is more than max, {high}")
