"""`predictive`: the workers for the arrival rate that is forecast for when a worker launched now would claim."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.policies import forecast
from flatfleet.runtime.policies.observation import Observation, Want
from flatfleet.runtime.policies.settings import Settings
from flatfleet.runtime.policies.slo import STARTUP, Load, measured, sized


def want(o: Observation, s: Settings, state: dict[str, Any]) -> Want:
    """Want what the forecast rate needs: by the model of `slo` where that is set, else at `target_utilization`.

    The lead is the measured start-up time and one interval. It only raises: below the current target it keeps nobody
    from going but those it wants. `rises` says that even an idle fleet is to be ready for it.
    """
    load = measured(o, s, state)
    if load is None:
        return Want("predictive", None, "no arrival rate or service time measured yet", abstains=True)
    lead = (STARTUP if o.startup is None else o.startup) + s.interval
    memory = state.setdefault(s.predictor, {})
    rate: float | None
    seen: dict[str, Any]
    if s.predictor == "learned":
        rate, seen = forecast.learned(memory, o.at, o.arrival_rate, load.arrival, lead, s.season)
    else:
        rate, seen = forecast.seasonal(memory, o.at, o.arrival_rate, lead, s.season)
    seen |= {"lead": round(lead, 3)}
    if rate is None:
        return Want("predictive", None, f"{s.predictor}: no season of {s.season:g} s is over yet", seen, abstains=True)
    seen["rises"] = rate > 1.05 * load.arrival and rate * s.idle_terminate >= 1
    made = sized("predictive", o, s, Load(rate, load.service, load.arrival_cv2, load.service_cv2), state)
    reason = f"{s.predictor}: {rate:.3g}/s in {lead:.0f} s; {made.reason}"
    return Want("predictive", made.desired, reason, made.seen | seen, abstains=True)
