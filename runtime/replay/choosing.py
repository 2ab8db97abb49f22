"""What `--policy` may name: a machine file with `settings.fleet`, a file of such settings alone, a preset, or a baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flatfleet.runtime import fleet_settings
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.policies.settings import PRESETS, Settings, number
from flatfleet.runtime.replay.baselines import MOST, Fixed, Hpa, SeasonalNaive
from flatfleet.runtime.replay.candidates import Production
from flatfleet.runtime.replay.contract import Candidate

BASELINES = ("fixed:N", "hpa", "hpa:TARGET", "seasonal", "seasonal:UTILISATION", "clairvoyant")


@dataclass(frozen=True)
class Choice:
    """One `--policy`: its name in the table; its settings, None for a baseline; `make()`, None for the clairvoyant."""

    name: str
    settings: Settings | None
    make: Callable[[], Candidate] | None


def choose(text: str, startup: float, interval: float | None = None, price: float | None = None) -> Choice:
    """Find what `text` names. `interval` (s) and `price` (a worker-hour) stand in for those of settings.

    Raises UsageError for what is no policy, and for faults in its settings.
    """
    kind, _, given = text.partition(":")
    if kind == "clairvoyant" and not given:
        return Choice(text, None, None)
    if kind == "fixed" and not Path(text).exists():
        workers = _number(text, given, whole=True)
        return Choice(text, None, lambda: Fixed(int(workers), price))
    if kind in ("hpa", "seasonal") and not Path(text).exists():
        value = _number(text, given) if given else 0.7
        if kind == "hpa":
            return Choice(f"hpa:{value:g}", None, lambda: Hpa(value, price=price))
        return Choice(f"seasonal:{value:g}", None, lambda: SeasonalNaive(value, startup, price))
    name = text if text in PRESETS else Path(text).stem
    settings = fleet_settings.validate(fleet_settings.load(text, BASELINES))
    return Choice(name, settings, lambda: Production(name, settings, interval, price))


def _number(text: str, given: str, whole: bool = False) -> float:
    try:
        value = number(given)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST or (whole and value != int(value)):
        wanted = f"whole number from 1 to {MOST:,}, such as fixed:31" if whole else "number above 0, such as hpa:0.7"
        raise UsageError(f"--policy '{text}': '{given}' is no {wanted}")
    return value
