"""Queueing formulas: M/M/c with its correction to G/G/c. No I/O; rates are per second, times in seconds.

A queue is λ arrivals a second, c workers that each serve μ a second, first come first served, and nobody leaves.
a = λ/μ is the offered load in erlangs, ρ = a/c the utilisation. For ρ ≥ 1 the queue grows without end: times and lengths
are `inf`. A load within 10⁻¹² of c counts as c, because 0.3/0.1 is 2.9999999999999996.

Sources: Gross, Shortle, Thompson, Harris, *Fundamentals of Queueing Theory*, 4th ed. (2008), ch. 2, below as [GSTH]; others
are named where they are used. tests/test_queueing.py holds all against published values and a simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime.policies.erlang import erlang_b, log_erlang_b, log_erlang_c, stable


def fewest_stable(arrival: float, service: float) -> int:
    """Find the fewest workers for which ρ < 1; 0 if nothing arrives. Raises ValueError as `Queue` does."""
    offered = Queue(arrival, service, 0).offered
    if offered == 0:
        return 0
    if offered >= 2**53:
        raise ValueError(f"{offered:g} workers' work is more than can be counted")
    first = math.floor(offered) + 1
    return first if stable(offered, first) else first + 1


def workers_for(
    arrival: float,
    service: float,
    within: float,
    level: float,
    *,
    arrival_cv2: float = 1.0,
    service_cv2: float = 1.0,
) -> int:
    """Find the fewest workers c for which P(wait ≤ within) ≥ level; the dispatch delay is no part of the wait.

    The same as trying `Queue(…, c).level(within)` for c = 1, 2, …, in O(√a) steps in all. 0 if nothing arrives.
    Raises ValueError for level outside 0 < level < 1, and as `Queue` does.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it has to be more than 0 and less than 1")
    _check("within", within, 0, math.inf)
    start = Queue(arrival, service, 0, arrival_cv2=arrival_cv2, service_cv2=service_cv2)
    if start.offered == 0:
        return 0
    offered, factor = start.offered, start.factor
    count = fewest_stable(arrival, service)
    loss = erlang_b(offered, count)
    while factor > 0:
        waits = loss / ((count - offered) / count + offered / count * loss)
        if 1 - waits * math.exp(-within * service * (count - offered) / factor) >= level:
            break
        count += 1
        loss = offered * loss / (count + offered * loss)
    return count


@dataclass(frozen=True, slots=True)
class Queue:
    """The steady state of M/M/c, or of G/G/c where a squared coefficient of variation is not 1.

    `arrival` λ /s; `service` μ /s of one worker; `workers` c; `dispatch` d s, on top of every answer, and no load on a
    worker; `arrival_cv2` and `service_cv2`: variance ÷ squared mean of the times between arrivals and of the service times
    (1: exponential, 0: all the same). Raises ValueError, which names the argument, for one that is negative or no
    number, and for a service of 0.
    """

    arrival: float
    service: float
    workers: int
    dispatch: float = 0.0
    arrival_cv2: float = 1.0
    service_cv2: float = 1.0
    log_b: float = field(init=False, repr=False)
    log_c: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("arrival", "service", "workers", "dispatch", "arrival_cv2", "service_cv2"):
            _check(name, getattr(self, name), 0, math.inf)
        if self.service == 0 or not math.isfinite(self.offered):
            raise ValueError(f"service is {self.service!r}; it has to be more than 0, and arrival / service finite")
        if not isinstance(self.workers, int):
            raise ValueError(f"workers is {self.workers!r}; it has to be a whole number")
        object.__setattr__(self, "log_b", log_erlang_b(self.offered, self.workers))
        object.__setattr__(self, "log_c", log_erlang_c(self.offered, self.workers))

    @property
    def offered(self) -> float:
        """The offered load a = λ/μ, in erlangs (busy workers) [GSTH]."""
        return self.arrival / self.service

    @property
    def utilisation(self) -> float:
        """ρ = λ/(cμ) [GSTH]; what is offered to a worker, so it can be above 1; inf for work without workers."""
        return self.offered / self.workers if self.workers else math.inf if self.offered else 0.0

    @property
    def stable(self) -> bool:
        """Whether ρ < 1."""
        return stable(self.offered, self.workers)

    @property
    def factor(self) -> float:
        """(ca² + cs²)/2, by which waits differ from M/M/c: Allen–Cunneen (Allen, *Probability, Statistics, and Queueing
        Theory*, 2nd ed. 1990). 1 for M/M/c. Exact for M/G/1 (Pollaczek–Khinchine); an approximation for all else.
        """
        return (self.arrival_cv2 + self.service_cv2) / 2

    @property
    def erlang_b(self) -> float:
        """B(c, a) of Poisson arrivals: the part that is turned away where nobody can wait; see `log_erlang_b`."""
        return math.exp(self.log_b)

    @property
    def p0(self) -> float:
        """P0 of M/M/c, that no worker is busy: C·(1 − ρ)·c!/aᶜ, which is [GSTH]'s 1/(Σ aⁿ/n! + …). 0 below 10⁻³⁰⁸."""
        if self.offered == 0 or not self.stable:
            return float(self.offered == 0)
        idle = math.log((self.workers - self.offered) / self.workers)
        return math.exp(self.log_c + idle + math.lgamma(self.workers + 1) - self.workers * math.log(self.offered))

    @property
    def p_wait(self) -> float:
        """P(wait > 0): Erlang C, which G/G/c keeps, but for D/D/c (factor 0), where nobody waits. 1 for ρ ≥ 1."""
        return self.longer(0.0)

    @property
    def wq(self) -> float:
        """Wq, the mean wait for a worker in seconds: factor · C/(cμ − λ) [GSTH, Allen–Cunneen]."""
        if not self.stable:
            return math.inf
        return self.factor * math.exp(self.log_c) / self._spare if self.offered else 0.0

    @property
    def lq(self) -> float:
        """Lq = λ·Wq, the mean number that wait (Little, *A proof for the queuing formula L = λW*, 1961)."""
        return self.arrival * self.wq if self.offered else 0.0

    @property
    def w(self) -> float:
        """W = Wq + 1/μ, the mean time from arrival to the end of service, in seconds [GSTH]."""
        return self.wq + 1 / self.service

    @property
    def l(self) -> float:  # noqa: E743
        """L = Lq + a = λ·W, the mean number that wait or are served (Little)."""
        return self.lq + self.offered

    @property
    def response(self) -> float:
        """T = d + W = d + Lq/λ + 1/μ, the mean time to the answer, in seconds."""
        return self.dispatch + self.w

    @property
    def throughput(self) -> float:
        """min(λ, cμ), in answers a second: what goes in comes out, up to what the workers can do."""
        return min(self.arrival, self.workers * self.service)

    def longer(self, within: float) -> float:
        """P(wait > within): C·exp(−(cμ − λ)·within/factor); `within` in seconds. 1 for ρ ≥ 1.

        Exact for M/M/c [GSTH]. For G/G/c the waits of those that wait are taken as exponential with the mean that makes Wq
        that of Allen–Cunneen; they are so in the limit ρ → 1 (Köllerström, *Heavy traffic theory for queues with several
        servers*, 1974).
        """
        _check("within", within, 0, math.inf)
        if not self.stable:
            return 1.0
        if self.offered == 0 or self.factor == 0:
            return 0.0
        return math.exp(self.log_c - self._spare * within / self.factor)

    def level(self, within: float) -> float:
        """P(wait ≤ within), the service level; `within` in seconds. See `longer`."""
        return 1 - self.longer(within)

    def percentile(self, part: float) -> float:
        """The wait in seconds that `part` (0 ≤ part < 1) of all stay within: ln(C/(1 − part))·factor/(cμ − λ), at least 0."""
        if not 0 <= part < 1:
            raise ValueError(f"part is {part!r}; it has to be at least 0 and less than 1")
        if not self.stable:
            return math.inf
        if self.offered == 0:
            return 0.0
        return max(0.0, self.log_c - math.log1p(-part)) * self.factor / self._spare

    def data(self) -> dict[str, Any]:
        """All of it as a dict; infinite where the queue grows without end."""
        return {
            "workers": self.workers, "stable": self.stable, "utilisation": self.utilisation, "p0": self.p0,
            "p_wait": self.p_wait, "erlang_b": self.erlang_b, "lq": self.lq, "l": self.l, "wq": self.wq, "w": self.w,
            "response": self.response, "wait_p50": self.percentile(0.5), "wait_p95": self.percentile(0.95),
            "wait_p99": self.percentile(0.99), "throughput": self.throughput,
        }  # fmt: skip

    @property
    def _spare(self) -> float:
        return self.service * (self.workers - self.offered)


def _check(name: str, value: float, least: float, limit: float) -> None:
    if not least <= value < limit:
        raise ValueError(f"{name} is {value!r}; it has to be a number of at least {least}")
