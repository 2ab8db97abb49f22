"""Erlang's formulas B and C, in numbers that stay right for a million workers. No I/O.

`offered` is the load a = λ/μ in erlangs: the number of workers that are busy on average. [GSTH] is Gross, Shortle, Thompson,
Harris, *Fundamentals of Queueing Theory*, 4th ed. (2008), ch. 2.
"""

from __future__ import annotations

import math

_NEAR = 1e-12
_NOTHING = 1e-17


def log_erlang_b(offered: float, workers: int) -> float:
    """Compute ln B(c, a): the part of a Poisson stream that c workers without a queue turn away.

    For c ≤ a by 1/B = Σₖ Πⱼ₌₀..ₖ₋₁ (c − j)/a (Jagerman, *Some properties of the Erlang loss function*, BSTJ 53, 1974), whose
    terms only fall; from there on by the recurrence B(c) = a·B(c−1)/(c + a·B(c−1)) [GSTH], which damps its errors; and
    where B no longer matters beside c/a, by B(c) = B(k)·aᶜ⁻ᵏ·k!/c!. Takes O(√a) steps, whatever c is.
    """
    if offered == 0:
        return 0.0 if workers == 0 else -math.inf
    start = workers if offered >= workers else math.floor(offered)
    loss = _loss_below(offered, start)
    for count in range(start + 1, workers + 1):
        loss = offered * loss / (count + offered * loss)
        if offered * loss < _NOTHING * count:
            rest = math.lgamma(workers + 1) - math.lgamma(count + 1)
            return math.log(loss) + (workers - count) * math.log(offered) - rest
    return math.log(loss)


def erlang_b(offered: float, workers: int) -> float:
    """Compute B(c, a); see `log_erlang_b`. 0 below 10⁻³⁰⁸."""
    return math.exp(log_erlang_b(offered, workers))


def log_erlang_c(offered: float, workers: int) -> float:
    """Compute ln C(c, a), C = B/(1 − ρ(1 − B)) [GSTH]: the part of a Poisson stream that has to wait. 0 (all) for ρ ≥ 1."""
    if offered == 0:
        return -math.inf
    if not stable(offered, workers):
        return 0.0
    log_b = log_erlang_b(offered, workers)
    return log_b - math.log((workers - offered) / workers + offered / workers * math.exp(log_b))


def erlang_c(offered: float, workers: int) -> float:
    """Compute C(c, a); see `log_erlang_c`. 0 below 10⁻³⁰⁸."""
    return math.exp(log_erlang_c(offered, workers))


def stable(offered: float, workers: int) -> bool:
    """Tell whether ρ < 1, so that there is a steady state. Nothing offered is always stable."""
    return offered == 0 or workers - offered > _NEAR * workers


def _loss_below(offered: float, workers: int) -> float:
    total = term = 1.0
    for left in range(workers, 0, -1):
        term *= left / offered
        total += term
        if term < _NOTHING * total:
            break
    return 1 / total
