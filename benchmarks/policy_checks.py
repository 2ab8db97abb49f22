"""Conditions that nothing was tuned for: the comparison's traces with another load, service, objective, start-up or begin."""

from __future__ import annotations

from flatfleet.benchmarks.policy_sweeps import LOADS, Load

POLICIES = ("HPA", "slo")
"""Who is compared there."""

_CONV, _MOONCAKE, _LARGE = LOADS
_SLOW = {"service": "5 + 0.2*output_tokens", "scale": 0.1, "wait": 30.0}
_OTHER = {"service": "exp(3)", "wait": 2.0}
_LATE = {"startup": 120.0}
_WARM = {"initial": 30}


def _check(load: Load, about: str, **change: object) -> Load:
    return load._replace(name=f"{load.name}, {about}", **change)  # type: ignore[arg-type]


CHECKS = (
    *(_check(each, "every other request", scale=0.5) for each in (_CONV, _MOONCAKE)),
    *(_check(each, "each request twice", scale=2.0) for each in (_CONV, _MOONCAKE)),
    *(_check(each, "a tenth of them, ten times as long, 30 s", **_SLOW) for each in (_CONV, _MOONCAKE)),
    *(_check(each, "exponential service of 3 s, 2 s", **_OTHER) for each in (_CONV, _MOONCAKE)),
    *(_check(each, "start-up 120 s", **_LATE) for each in (_CONV, _MOONCAKE, _LARGE)),
    *(_check(each, "30 workers at the beginning", **_WARM) for each in (_CONV, _MOONCAKE)),
    _check(_LARGE, "a fifth of the load", scale=0.0002),
    _check(_LARGE, "twice the requests, 5 s each, 5 s", service="5", scale=0.002, wait=5.0),
)
"""Named by what differs: the requests, the service, the seconds that they may wait, the start-up, the first workers."""
