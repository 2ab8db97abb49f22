"""What a replay comes to: one row of numbers a policy, and the conditions under which a build is to fail."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from flatfleet.runtime.errors import UsageError, did_you_mean
from flatfleet.runtime.policies.settings import Slo, number, seconds
from flatfleet.runtime.replay.contract import Run
from flatfleet.runtime.replay.windows import percentile

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One policy over one trace: times in s, shares from 0 to 1. What has not ended waits without end."""

    policy: str
    requests: int
    slo: float
    """The share of the requests that waited no longer than the objective says."""
    wait_mean: float
    wait_p50: float
    wait_p95: float
    wait_max: float
    worker_hours: float
    """From launch to end, with the start-up."""
    cost: float | None
    peak: int
    starts: int
    stops: int
    flaps: int
    """starts + stops."""
    decisions: int
    changes: int
    """Decisions that changed the target."""
    utilisation: float
    """The share of the worker-hours in which an item was served."""
    lost: int
    unfinished: int

    def data(self) -> dict[str, Any]:
        return asdict(self)


METRICS = tuple(name for name in Result.__annotations__ if name != "policy")


def summarise(policy: str, run: Run, slo: Slo) -> Result:
    """The numbers of a run. `slo.wait` is what a request may wait, in s."""
    done = len(run.waits)
    requests = done + run.unfinished
    waits = sorted(run.waits)
    waits += [math.inf] * run.unfinished
    kept = sum(wait <= slo.wait for wait in waits)
    return Result(
        policy=policy,
        requests=requests,
        slo=kept / requests if requests else 1.0,
        wait_mean=math.fsum(waits) / requests if requests else 0.0,
        wait_p50=percentile(waits, 0.5) if requests else 0.0,
        wait_p95=percentile(waits, 0.95) if requests else 0.0,
        wait_max=waits[-1] if requests else 0.0,
        worker_hours=run.paid / 3600,
        cost=run.cost,
        peak=run.peak,
        starts=run.starts,
        stops=run.stops,
        flaps=run.starts + run.stops,
        decisions=run.decisions,
        changes=run.changes,
        utilisation=run.busy / run.paid if run.paid else 0.0,
        lost=run.lost,
        unfinished=run.unfinished,
    )


# -- failing -----------------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """Such as slo < 0.99."""

    text: str
    metric: str
    operator: str
    limit: float

    def failing(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """One line for each row, with its `policy`, of which this holds. Raises UsageError where a number is not known."""
        found = []
        for row in rows:
            value = row[self.metric]
            if value is None:
                raise UsageError(
                    f"--fail-if '{self.text}': the {self.metric} of {row['policy']} is not known; see --price"
                )
            if _OPERATORS[self.operator](value, self.limit):
                found.append(f"{row['policy']}: {self.metric} is {value:.6g}, and that fails: {self.text}")
        return found


def condition(text: str, metrics: Iterable[str] = METRICS) -> Condition:
    """Read `slo<0.99`, `slo<99%`, `wait_p95 > 5s`, `starts+stops>=100`. Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*(starts\+stops|\w+)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*", text)
    if not match:
        raise UsageError(f"'{text}' is no condition, such as slo<0.99, 'wait_p95>5s' or 'worker_hours>40'")
    name = "flaps" if match[1] == "starts+stops" else match[1]
    if name not in metrics:
        raise UsageError(f"unknown number '{name}' in '{text}'{did_you_mean(name, metrics)}")
    return Condition(text, name, match[2], _limit(match[3], text))


def _limit(text: str, whole: str) -> float:
    try:
        if text.endswith("%"):
            value = number(text[:-1]) / 100
        elif re.search("[a-z]$", text):
            value = seconds(text)
        else:
            value = number(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"'{text}' in '{whole}' is no number, percentage or time, such as 0.99, 99% or 5s")
    return value
