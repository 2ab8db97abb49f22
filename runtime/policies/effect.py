"""Whether more workers brought more throughput: where not (a provider's rate limit), the scale-up is undone."""

from __future__ import annotations

import math
from typing import Any

from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import Settings

PAUSE = 300.0
"""Seconds until the next try; twice as long after each that failed, up to `LONGEST`."""
LONGEST = 3600.0
EXPECTED = 0.25
"""A scale-up that brought less than this part of the throughput it should have brought was in vain."""

_SIGMAS = 3.0


def begin(memory: dict[str, Any], o: Observation, desired: int, current: int) -> None:
    """Watch a scale-up: what it is to bring shows only where items wait, so that throughput is what the workers can do."""
    effect = memory.setdefault("effect", {})
    if desired > current > 0 and "trial" not in effect and o.queued and o.throughput and not o.starting:
        effect["trial"] = {"at": memory["at"], "from": current, "to": desired, "throughput": o.throughput}


def judge(memory: dict[str, Any], o: Observation, s: Settings, current: int) -> None:
    """Say what a watched scale-up brought, once its workers have claimed for a metrics window. Sets or lifts the ceiling."""
    effect = memory.setdefault("effect", {})
    trial, at = effect.get("trial"), memory["at"]
    if not trial or o.missing(s.stale_after):
        return
    if not o.queued or o.throughput is None or current < trial["to"] or at - trial["at"] > LONGEST:
        del effect["trial"]
        return
    if "ready" not in trial:
        if o.workers - o.starting >= trial["to"]:
            trial["ready"] = at
        return
    if at - trial["ready"] < s.metrics_window + (o.service_mean or 0.0):
        return
    del effect["trial"]
    before, after = trial["throughput"], o.throughput
    if not _in_vain(trial, o, s):
        effect.pop("tries", None)
        effect.pop("until", None)
        return
    tries = effect.get("tries", 0) + 1
    pause = min(LONGEST, PAUSE * 2 ** (tries - 1))
    errors = (
        f", with {o.provider_faults:.3g}/s ended by the provider's fault (429, 5xx or no answer)"
        if o.provider_faults
        else ""
    )
    why = f"{trial['from']} → {trial['to']} workers changed the throughput from {before:.3g}/s to {after:.3g}/s{errors}"
    effect.update(level=trial["from"], until=at + pause, tries=min(tries, 10), why=why)


def ceiling(memory: dict[str, Any]) -> tuple[int, str] | None:
    """The most workers that brought something, and why; None where nothing is known against more."""
    effect = memory.get("effect", {})
    if memory["at"] >= effect.get("until", -math.inf):
        return None
    return int(effect["level"]), f"{effect['why']}; next try in {effect['until'] - memory['at']:.0f} s"


def _in_vain(trial: dict[str, Any], o: Observation, s: Settings) -> bool:
    """Less than a quarter of the expected gain, and a shortfall that noise does not explain.

    A count over a window has a variance of about its mean, times the squared variation of the service times. One standard
    deviation is enough where the provider refuses or fails.
    """
    before, after = float(trial["throughput"]), o.throughput or 0.0
    expected = before * trial["to"] / trial["from"]
    noise = math.sqrt((before + after) / max(s.metrics_window, 1e-3) * max(1.0, o.service_cv2 or 1.0))
    sigmas = 1.0 if o.provider_faults else _SIGMAS
    return after - before < EXPECTED * (expected - before) and expected - after > sigmas * noise
