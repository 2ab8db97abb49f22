"""What limits a decision: one function a clamp, in the order of `ORDER`. Each moves the number, and says why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flatfleet.runtime.policies import costs, effect, memory
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.schedule import Override
from flatfleet.runtime.policies.settings import Settings


class Clamp(NamedTuple):
    """What one clamp made of the number; `binds` where it is the one but for which it would be another."""

    name: str
    before: float
    after: float
    reason: str
    binds: bool = False

    def data(self) -> dict[str, Any]:
        return {**self._asdict(), "before": round(self.before, 3)}


@dataclass(slots=True)
class Case:
    """What the clamps know. `memory` is only read."""

    o: Observation
    s: Settings
    memory: dict[str, Any]
    missing: str | None
    policy: str
    """Whose want it is."""
    floor: int
    """What a forecast wants, even of an idle fleet."""
    scheduled: Mapping[str, Override] = field(default_factory=dict)
    idle: bool = False
    burst: bool = False
    capacity: str | None = None

    @property
    def current(self) -> int:
        return self.o.target

    @property
    def wakes(self) -> bool:
        """Whether a fleet of none has work."""
        return self.current == 0 and not self.missing and bool(self.o.demand)

    @property
    def highest(self) -> int:
        """The largest number outside a burst."""
        found = self.scheduled.get("target") or self.scheduled.get("max")
        return found.value if found else self.s.max

    @property
    def broke(self) -> str:
        """Why nothing more may be spent; empty where something may."""
        return costs.exhausted(self.s.cost, self.o.spent)

    def limits(self) -> tuple[int, int]:
        """Where the number has to be in the end: min, max, schedule, burst and cost together. A spent budget is above all."""
        if self.broke:
            return 0, 0
        low, high = self.s.min, self.highest + (self.s.burst_capacity if self.burst else 0)
        if found := self.scheduled.get("target"):
            return found.value, found.value
        low = min(self.scheduled["min"].value if "min" in self.scheduled else low, high)
        cap = costs.affordable(self.o, self.s, self.capacity)
        return low, high if cap is None else max(low, min(high, cap[0]))


Answer = tuple[float, str]


def steps(rates: Iterable[int | str], current: int) -> int:
    """The largest step that one of the rates allows: workers, or a part of the current ones such as '50%', at least 1."""
    shares = (each if isinstance(each, int) else math.ceil(current * int(each[:-1]) / 100) for each in rates)
    return max([1, *shares])


# -- the clamps --------------------------------------------------------------------------------------------------------


def _tolerance(value: float, case: Case) -> Answer:
    up, down = case.s.tolerance
    if case.policy in ("slo", "predictive"):
        up = 0.0  # what a model says is needed is no ratio: too few is never near enough
    if case.policy in ("target", "latency", "slo", "predictive") and case.current and value > 0:
        ratio = value / case.current
        if 1 - down - 1e-9 <= ratio <= 1 + up + 1e-9 and ratio != 1:
            share = up if ratio > 1 else down
            return case.current, f"{value:.4g} is within the tolerance of {share:g} around {case.current}"
    return math.ceil(value - 1e-9), ""


def _zero(value: float, case: Case) -> Answer:
    if case.wakes:
        return max(value, 1), f"{case.o.demand} items wait and there is no worker: at once"
    if case.policy == "fixed":
        return value, ""
    if case.idle:
        return case.floor, f"no demand for idle_terminate = {case.s.idle_terminate:g} s"
    if value < 1 <= case.current:
        return 1, f"0 only after idle_terminate = {case.s.idle_terminate:g} s without demand"
    return value, ""


def _min(value: float, case: Case) -> Answer:
    known = "min" in case.scheduled or "target" in case.scheduled
    return (value, "") if known else (max(value, case.s.min), f"min = {case.s.min}")


def _max(value: float, case: Case) -> Answer:
    if "max" in case.scheduled or "target" in case.scheduled:
        return value, ""
    extra = case.s.burst_capacity if case.burst else 0
    return min(value, case.s.max + extra), f"max = {case.s.max}" + (f" and burst_capacity = {extra}" if extra else "")


def _schedule(value: float, case: Case) -> Answer:
    if found := case.scheduled.get("target"):
        return found.value, found.why
    extra = case.s.burst_capacity if case.burst else 0
    high, low = case.scheduled.get("max"), case.scheduled.get("min")
    if high and value > high.value + extra:
        return high.value + extra, high.why
    return (low.value, low.why) if low and value < low.value else (value, "")


def _burst(value: float, case: Case) -> Answer:
    return (max(value, case.current), "a burst: nobody goes") if case.burst else (value, "")


def _stabilization(value: float, case: Case) -> Answer:
    s, current = case.s, case.current
    if value < current and s.stabilization.down and not case.idle:
        most = memory.extreme(case.memory, s, "down", int(value))
        return min(current, most), f"{most} were wanted within stabilization.down = {s.stabilization.down:g} s"
    if value > current and s.stabilization.up and not case.burst:
        least = memory.extreme(case.memory, s, "up", int(value))
        kept = max(current, least, int(case.wakes))
        return kept, f"only {least} were wanted within stabilization.up = {s.stabilization.up:g} s"
    return value, ""


def _cooldown(value: float, case: Case) -> Answer:
    current, since = case.current, case.memory.get("changed_at")
    if since is None or value == current or case.burst or (case.idle and value < current):
        return value, ""
    length = case.s.cooldown_period.up if value > current else case.s.cooldown_period.down
    left = since + length - case.memory["at"]
    if left <= 0:
        return value, ""
    return max(current, int(case.wakes)), f"cooldown_period = {length:g} s, {left:.0f} s of it to go"


def _rate(value: float, case: Case) -> Answer:
    s, current = case.s, case.current
    if value > current and s.scale_up_rate is not None and not case.burst:
        most = steps(s.scale_up_rate, current)
        return min(value, current + most), f"scale_up_rate allows +{most}"
    if value < current and s.scale_down_rate is not None and not case.idle:
        most = steps(s.scale_down_rate, current)
        return max(value, current - most), f"scale_down_rate allows −{most}"
    return value, ""


def _effect(value: float, case: Case) -> Answer:
    found = effect.ceiling(case.memory)
    return (value, "") if found is None else (min(value, max(found[0], 1)), found[1])


def _cost(value: float, case: Case) -> Answer:
    found = costs.affordable(case.o, case.s, case.capacity)
    return (value, "") if found is None else (min(value, found[0]), found[1])


def _flap_budget(value: float, case: Case) -> Answer:
    """Starts and stops that are left for this hour; a stop leaves one for a start, a burst leaves its own way back."""
    current, above = case.current, max(0, case.current - case.highest)
    left = case.s.flaps - memory.flaps(case.memory) - above
    if value > current:
        free = max(0, case.highest - current)
        most = left if left <= free else free + (left - free) // 2
        kept = max(min(value, current + max(0, most)), int(case.wakes))
    else:
        kept = max(value, current - above - max(0, left) // 2)
    return kept, f"flap_budget = {case.s.flaps} starts and stops an hour, {max(0, left)} of them left"


def _limits(value: float, case: Case) -> Answer:
    low, high = case.limits()
    return max(low, min(high, value)), case.broke or f"it has to be within {low} to {high}"


def _missing(value: float, case: Case) -> Answer:
    return (max(value, case.current), f"{case.missing}: nobody goes") if case.missing else (value, "")


def _hold(value: float, case: Case) -> Answer:
    left = case.memory.get("hold_until", 0.0) - case.memory["at"]
    return (case.current, f"held by hand for another {left:.0f} s") if left > 0 else (value, "")


def _paused(value: float, case: Case) -> Answer:
    return (case.current, "scaling is paused") if case.memory.get("paused") else (value, "")


ORDER: tuple[tuple[str, Callable[[float, Case], Answer]], ...] = (
    ("tolerance", _tolerance), ("zero", _zero), ("min", _min), ("max", _max), ("schedule", _schedule), ("burst", _burst),
    ("stabilization", _stabilization), ("cooldown", _cooldown), ("rate", _rate), ("effect", _effect), ("cost", _cost),
    ("flap_budget", _flap_budget), ("limits", _limits), ("missing", _missing), ("hold", _hold), ("paused", _paused),
)  # fmt: skip
"""First what is wanted, then how fast, then what is allowed, then what nothing overrides. docs/scaling.md says why."""


def run(raw: float, case: Case, without: frozenset[str] = frozenset()) -> list[Clamp]:
    """Pass the number through all clamps but some."""
    found, value = [], raw
    for name, clamp in ORDER:
        if name not in without:
            after, reason = clamp(value, case)
            found.append(Clamp(name, value, after, reason if after != value else ""))
            value = after
    return found
