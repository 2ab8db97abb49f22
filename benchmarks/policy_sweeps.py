"""The comparison of scaling policies: the traces, the policies with one knob each, their sweeps, and equal attainment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from flatfleet.runtime import fleet_settings
from flatfleet.runtime.policies.settings import Slo
from flatfleet.runtime.replay import results, traces
from flatfleet.runtime.replay.baselines import Fixed, Hpa, SeasonalNaive
from flatfleet.runtime.replay.candidates import Production
from flatfleet.runtime.replay.clairvoyant import clairvoyant, floor
from flatfleet.runtime.replay.contract import Candidate, Conditions
from flatfleet.runtime.replay.simulator import simulate
from flatfleet.runtime.replay.traces import Trace

STARTUP, SEED = 30.0, 0
LEVELS = (0.95, 0.98)
NEAR = 0.002
"""How near to a level a sweep has to come for its neighbours to be interpolated."""
ENOUGH = 0.995
"""Attainment beyond which a sweep does not go on: it would only cost more."""
REFINED = 5
"""Points that may be added to a sweep for one level."""


class Load(NamedTuple):
    """A trace under the conditions of the comparison: what a request takes, the objective, phases that are averaged."""

    name: str
    file: str
    about: str
    service: str
    scale: float
    wait: float
    phases: int
    startup: float = STARTUP
    initial: int | None = None
    """Workers at the beginning; None: as the candidate says."""


_TOKENS = "0.5 + 0.02*output_tokens"
LOADS = (
    Load("conv", "azure_llm_2023_conv.csv.gz", "Azure LLM inference 2023, conversation", _TOKENS, 1.0, 5.0, 5),
    Load("mooncake", "mooncake_conversation.csv.gz", "Mooncake, conversation", _TOKENS, 1.0, 5.0, 5),
    Load("m_large", "servegen_m_large_rate10min.csv.gz", "ServeGen m_large, rates × 0.001", "exp(50)", 0.001, 30.0, 1),
)

OURS: dict[str, Any] = {
    "mode": "slo",
    "max": 200,
    "interval": 15,
    "metrics_window": 120,
    "scale_up_rate": None,
    "scale_down_rate": None,
    "cooldown_period": 0,
    "stabilization": {"down": 120},
    "tolerance": {"down": 0.05},
}
"""Our one parameter set for all traces, that of examples/policies/slo.yml; only the level of the objective is swept."""
_FREE = {**OURS, "metrics_window": 60, "stabilization": {"down": 300}, "tolerance": 0.1}


@dataclass(frozen=True)
class Family:
    """A policy with one knob: the values in the order in which attainment rises, and what makes the candidate."""

    name: str
    knob: str
    values: tuple[float, ...]
    make: Callable[[Load, float], Candidate]
    only: tuple[str, ...] = ()
    """The loads that it is for; () is all of them."""
    whole: bool = False
    """Whether only whole numbers can be set."""


def _ours(change: Mapping[str, Any]) -> Callable[[Load, float], Candidate]:
    def make(load: Load, level: float) -> Candidate:
        return Production("", fleet_settings.validate({**OURS, **change, "slo": {"wait": load.wait, "level": level}}))

    return make


def _thresholds(load: Load, up: float) -> Candidate:
    rates = {"scale_up_rate": [4, "100%"], "scale_down_rate": [1, "10%"], "cooldown_period": {"up": 0, "down": 60}}
    signs = {"scale_up_threshold": up, "scale_down_threshold": 0.75 * up, "max_wait": load.wait, "idle_terminate": 60}
    return Production("", fleet_settings.validate({**_FREE, "mode": "thresholds", **rates, **signs}))


def _latency(load: Load, share: float) -> Candidate:
    return Production("", fleet_settings.validate({**_FREE, "mode": "latency", "max_wait": share * load.wait}))


_HPA = (2, 1.7, 1.5, 1.4, 1.3, 1.2, 1.1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_LEVEL = (0.6, 0.75, 0.85, 0.9, 0.93, 0.96, 0.98, 0.995)
_FORECAST = {"mode": ["slo", "predictive"], "season": "1d"}
FAMILIES = (
    Family("HPA", "target", _HPA, lambda load, target: Hpa(target)),
    Family("slo", "level", _LEVEL, _ours({})),
    Family("slo + predictive, learned", "level", _LEVEL, _ours({**_FORECAST, "predictor": "learned"})),
    Family("slo + predictive, seasonal", "level", _LEVEL, _ours(_FORECAST), ("m_large",)),
    Family("latency", "max_wait ÷ objective", (2.5, 2, 1.5, 1.2, 1, 0.8, 0.6, 0.4, 0.2, 0.05), _latency),
    Family("thresholds", "scale_up_threshold", (0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5), _thresholds),
    Family("seasonal naive", "utilisation", (1.1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), lambda load, u: SeasonalNaive(u)),
    Family("fixed", "workers", (12, 15, 18, 21, 24, 27, 30, 33, 36), lambda load, n: Fixed(round(n)), whole=True),
)


class Point(NamedTuple):
    """What a policy came to at one setting of its knob, as the mean over the phases. `hours`: worker-hours; times in s."""

    knob: float
    slo: float
    hours: float
    flaps: float
    wait_mean: float
    wait_p95: float


def measure(load: Load, trace: Trace, make: Callable[[], Candidate], knob: float) -> Point:
    """Run a policy with its first decision at several moments of its first interval: what it comes to hangs on that."""
    interval = make().interval
    rows = []
    for phase in range(load.phases if interval else 1):
        conditions = Conditions(load.startup, seed=SEED, phase=(interval or 0.0) * phase / load.phases)
        candidate = make()
        if interval and load.initial is not None:
            candidate.initial = load.initial
        run = simulate(trace.requests(), candidate, conditions, trace.start, trace.end)
        rows.append(results.summarise("", run, Slo(load.wait, LEVELS[0])))
    names = ("slo", "worker_hours", "flaps", "wait_mean", "wait_p95")
    return Point(knob, *(fmean(getattr(row, name) for row in rows) for name in names))


def sweep(family: Family, load: Load, trace: Trace) -> list[Point]:
    """Sweep the knob, and go on between two settings until one is near each of `LEVELS`, in the order of the knob."""

    def at(value: float) -> Point:
        return measure(load, trace, lambda: family.make(load, value), value)

    points: list[Point] = []
    for value in family.values:
        points.append(at(value))
        if points[-1].slo >= ENOUGH:
            break
    for level, _ in itertools.product(LEVELS, range(REFINED)):
        place = _crossing(points, level)
        if place is None:
            break
        left, right = points[place], points[place + 1]
        middle = (left.knob + right.knob) / 2
        middle = round(middle) if family.whole else middle
        if min(abs(each.slo - level) for each in (left, right)) <= NEAR or middle in (left.knob, right.knob):
            break
        points.insert(place + 1, at(middle))
    return points


def at_level(points: Sequence[Point], level: float) -> Point | None:
    """What the policy comes to where its attainment is `level`, interpolated between its neighbours; None beyond them."""
    place = _crossing(points, level)
    if place is None:
        return None
    left, right = points[place], points[place + 1]
    share = (level - left.slo) / (right.slo - left.slo) if right.slo != left.slo else 0.0
    return Point(*(a + (b - a) * share for a, b in zip(left, right, strict=True)))


def _crossing(points: Sequence[Point], level: float) -> int | None:
    """The pair of neighbours that the level lies between; of several that with the fewest worker-hours."""
    pairs = [n for n, (a, b) in enumerate(itertools.pairwise(points)) if a.slo <= level <= b.slo]
    return min(pairs, key=lambda n: points[n].hours + points[n + 1].hours, default=None)


# -- a trace -----------------------------------------------------------------------------------------------------------


def read(load: Load, folder: Path) -> Trace:
    return traces.read(folder / load.file, load.service, load.scale, SEED)


def busiest(trace: Trace) -> int:
    """The most requests that would be served at one moment if each had a worker at once."""
    events = sorted([(at, 1) for at in trace.arrivals] + [(at + takes, -1) for at, takes in trace.requests()])
    return max(itertools.accumulate(change for _, change in events))


def bounds(load: Load, trace: Trace) -> dict[str, Any]:
    """What needs no knob: the trace itself, the floor, the clairvoyant schedule, fixed fleets of the mean and the peak."""
    length = trace.end - trace.start
    best = results.summarise("", clairvoyant(trace, load.wait, load.startup), Slo(load.wait, LEVELS[0]))
    mean, peak = max(1, math.ceil(trace.work / length)), busiest(trace)
    rows = [Point(0, best.slo, best.worker_hours, best.flaps, best.wait_mean, best.wait_p95)]
    rows += [measure(load, trace, lambda n=n: Fixed(n), n) for n in (mean, peak)]  # type: ignore[misc]
    about = {"requests": len(trace), "hours": length / 3600, "busy": trace.work / length, "floor": floor(trace)}
    return about | dict(zip(("clairvoyant", "mean", "peak"), rows, strict=True))


def run(load: Load, families: Sequence[Family], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure a trace: {bounds, sweeps: {policy: points}}."""
    trace = read(load, folder)
    found: dict[str, Any] = {"bounds": bounds(load, trace), "sweeps": {}}
    for family in families:
        if not family.only or load.name in family.only:
            say(f"{load.name}: {family.name}")
            found["sweeps"][family.name] = sweep(family, load, trace)
    return found
