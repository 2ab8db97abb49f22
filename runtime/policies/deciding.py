"""One decision: what each policy wants, what the clamps leave of it, and why. Pure: time and state are arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flatfleet.runtime.policies import (
    clamps,
    costs,
    effect,
    fixed,
    latency,
    memory,
    predictive,
    schedule,
    slo,
    target,
    thresholds,
)
from flatfleet.runtime.policies.clamps import Case, Clamp
from flatfleet.runtime.policies.observation import Observation, Want
from flatfleet.runtime.policies.settings import Settings

Outcome = Literal["up", "down", "hold"]
Policy = Callable[[Observation, Settings, dict[str, Any]], Want]

POLICIES: dict[str, Policy] = {
    "fixed": fixed.want,
    "thresholds": thresholds.want,
    "target": target.want,
    "latency": latency.want,
    "slo": slo.want,
    "predictive": predictive.want,
}

_BOUNDS = frozenset(("min", "max", "schedule", "burst", "cost"))


@dataclass(frozen=True)
class Decision:
    """What was decided at one moment, with all that led to it. `desired` and `current` are targets, in parallelism.

    What explains it is worked out when it is asked for.
    """

    seen: Observation
    wants: tuple[Want, ...]
    raw: float
    desired: int
    case: Case
    passed: tuple[Clamp, ...]

    @property
    def current(self) -> int:
        return self.seen.target

    @property
    def outcome(self) -> Outcome:
        return "up" if self.desired > self.current else "down" if self.desired < self.current else "hold"

    @property
    def capacity(self) -> str | None:
        """Where `prefer_spot` is set, what to ask for: spot, or on-demand."""
        return self.case.capacity

    @property
    def broke(self) -> str:
        """Why there is none left, where that is because the budget is spent."""
        return "" if self.desired else self.case.broke

    @property
    def enough(self) -> bool:
        """Whether whoever is live beyond `desired` may go: nothing but a limit keeps it from being more, and no person
        and no missing metric says that nobody goes.
        """
        kept, at = self.case.memory, self.seen.at
        if self.case.missing or kept.get("paused") or kept.get("hold_until", 0.0) > kept.get("at", at):
            return False
        wanted = next(each.before for each in self.passed if each.name == "stabilization")
        return min(wanted, self.case.limits()[1]) <= self.desired

    @property
    def clamps(self) -> tuple[Clamp, ...]:
        return tuple(each._replace(binds=each.name == self.bound_by) for each in self.passed)

    @property
    def bound_by(self) -> str | None:
        """The clamp but for which the number would be another; of several the one that took the most."""
        return self._bound[0]

    @property
    def counterfactual(self) -> str | None:
        """Such as: would be 12 but for max = 8."""
        return self._bound[1]

    @property
    def reason(self) -> str:
        zero = [each.reason for each in self.passed if each.name == "zero"]
        said = [f"{each.policy}: {each.reason}" for each in self.wants if each.policy == self.case.policy]
        if not said:
            unknown = [f"{each.policy}: {each.reason}" for each in self.wants if each.desired is None]
            said = [self.case.missing or "; ".join(unknown)]
        bound = [each.reason for each in self.passed if each.name == self.bound_by]
        return "; ".join(dict.fromkeys(filter(None, [*zero, *said, *bound])))

    def data(self) -> dict[str, Any]:
        """This as JSON data; `Observation.of(data["seen"])` and the settings are enough to decide it again."""
        found: dict[str, Any] = {
            "at": self.seen.at,
            "seen": self.seen.data(),
            "wants": [each.data() for each in self.wants],
            "raw": round(self.raw, 3),
            "clamps": [each.data() for each in self.clamps],
            "bound_by": self.bound_by,
            "desired": self.desired,
            "current": self.current,
            "outcome": self.outcome,
            "reason": self.reason,
            "counterfactual": self.counterfactual,
        }
        said = self.case.s.cost._asdict()
        cost = {name: said[name] for name in said if said[name] is not None and (said[name] or name != "per_item")}
        return found | ({"capacity": self.capacity} if self.capacity else {}) | ({"cost": cost} if cost else {})

    @functools.cached_property
    def _bound(self) -> tuple[str | None, str | None]:
        took = [each for each in self.passed if each.reason and each.name != "zero"]
        best: tuple[int, Clamp] | None = None
        for each in took:
            other = self._without({each.name})
            if other != self.desired and (best is None or abs(other - self.desired) > abs(best[0] - self.desired)):
                best = other, each
        if best:
            return best[1].name, f"would be {best[0]} but for {best[1].reason}"
        names, why = list[str](), list[str]()
        while took:  # several that would each have come to the same: the last one, and those that it hides
            names.append(took[-1].name)
            why.append(took[-1].reason)
            passed = self._run(set(names))
            if (other := math.ceil(passed[-1].after - 1e-9)) != self.desired:
                return names[0], f"would be {other} but for {' and '.join(why)}"
            took = [each for each in passed if each.reason and each.name != "zero"]
        return None, None

    def _without(self, names: set[str]) -> int:
        return math.ceil(self._run(names)[-1].after - 1e-9)

    def _run(self, names: set[str]) -> list[Clamp]:
        names = names | {"limits"} if names & _BOUNDS else names
        return clamps.run(self.raw, self.case, frozenset(names))


def decide(o: Observation, s: Settings, state: Mapping[str, Any]) -> tuple[Decision, dict[str, Any]]:
    """Return the decision and the state for the next one. `state` is JSON data, {} at first, and is not changed.

    Of several policies the largest want counts upwards; downwards all have to agree, and one that cannot tell does not.
    Without a recent measurement of the demand nobody is asked, and nobody goes.
    """
    kept = memory.begin(state, o.at)
    missing = o.missing(s.stale_after)
    effect.judge(kept, o, s, o.target)
    scheduled = schedule.overrides(s.schedule, o.at)
    planned = schedule.want(scheduled)
    wants = () if missing else tuple(POLICIES[name](o, s, kept["policies"].setdefault(name, {})) for name in s.mode)
    policy, raw = _largest(wants, o.target)
    wants = (*wants, planned) if planned else wants
    rising = [each for each in wants if each.policy == "predictive" and each.seen.get("rises")]
    floor = math.ceil(rising[0].desired or 0.0) if rising else 0
    case = Case(o, s, dict(kept), missing, policy, floor, scheduled)
    case.idle = _idle(kept, o, s, missing)
    case.burst = _burst(kept, o, s, missing)
    case.capacity = _capacity(kept, o, s)

    passed = tuple(clamps.run(raw, case))
    desired = int(passed[-1].after)
    if not missing:
        before = next(each.before for each in passed if each.name == "stabilization")
        memory.recommend(kept, s, int(before))
        effect.begin(kept, o, desired, o.target)
    if desired != o.target:
        low, high = schedule.bounds(s, scheduled)
        outside = o.target if case.broke else max(0, o.target - high - s.burst_capacity, low - o.target)
        memory.changed(kept, abs(desired - o.target) - outside)
    return Decision(o, wants, raw, desired, case, passed), kept


def _largest(wants: tuple[Want, ...], current: int) -> tuple[str, float]:
    """Whose want counts, and what it is; the current number where not all agree on fewer."""
    told = [each for each in wants if each.desired is not None]
    if not told:
        return "none", current
    most = max(told, key=lambda each: each.desired or 0.0)
    if (most.desired or 0.0) < current:
        if any(each.desired is None and not each.abstains for each in wants):
            return "none", current
        if all(each.abstains for each in told):
            return most.policy, current
    return most.policy, most.desired or 0.0


def _idle(kept: dict[str, Any], o: Observation, s: Settings, missing: str | None) -> bool:
    """Whether there has been no demand for `idle_terminate` seconds: one rule for N → 1 → 0."""
    if missing or o.demand or o.claimed or "fixed" in s.mode:
        kept["demand_at"] = o.at
        return False
    since = kept.setdefault("demand_at", o.at)
    return (o.at - since if o.idle is None else o.idle) >= s.idle_terminate


def _burst(kept: dict[str, Any], o: Observation, s: Settings, missing: str | None) -> bool:
    """Whether the fleet is in a burst, which lasts `burst_time` at most and is followed by as long a rest.

    After the panic mode of Knative's autoscaler: it begins where the demand is twice what the workers can hold.
    """
    if not s.burst_capacity:
        kept.pop("burst", None)
        return False
    burst = kept.setdefault("burst", {})
    at, since = kept["at"], burst.get("since")
    if missing:
        return since is not None
    demand = o.demand or 0
    if since is None and at >= burst.get("rest_until", at) and o.target and demand >= s.burst_threshold * o.target:
        burst["since"] = at
        return True
    if since is not None and (at - since >= s.burst_time or demand <= min(o.target, s.max)):
        kept["burst"] = {"rest_until": at + (at - since)}
        return False
    return since is not None


def _capacity(kept: dict[str, Any], o: Observation, s: Settings) -> str | None:
    """What to ask for: spot, unless there can be none, or workers have been wanting for `spot_wait` seconds."""
    if not s.prefer_spot:
        return None
    if o.spot is None or o.workers - o.starting >= o.target:
        kept.pop("short_since", None)
        return costs.ON_DEMAND if o.spot is None else costs.SPOT
    short = kept["at"] - kept.setdefault("short_since", kept["at"])
    return costs.SPOT if short < s.spot_wait else costs.ON_DEMAND
