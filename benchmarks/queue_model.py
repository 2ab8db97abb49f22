"""`python -m benchmarks.queue_model [--trace FILE …]`: the formulas of the capacity model against simulated queues.

Prints the tables of docs/capacity.md, in three minutes. Two simulations, neither of which knows a formula of the model:
`walk` counts the items in M/M/c, event by event; `waits` follows each item of any first-come-first-served queue.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, linear_regression, pvariance, stdev
from typing import NamedTuple

from flatfleet.runtime.policies.queueing import Queue

VARIABILITY = [(1, 0), (1, 0.25), (1, 4), (0.25, 1), (0.25, 0.25), (4, 1), (4, 4)]
QUEUES, LATTICE = 987, 610
FIXED, PER_TOKEN = 0.5, 0.02
"""Service time of a request of a trace in seconds, and for each of its output tokens."""

Draw = Callable[[], float]


class Simulated(NamedTuple):
    """A mean, and its standard error."""

    mean: float
    error: float


def walk(arrival: float, service: float, workers: int, steps: int, seed: int) -> float:
    """Simulate the mean wait Wq of M/M/c in seconds by the next event of 987 queues, `steps` times over, after a warm-up.

    An event is an arrival, the end of one service, or, with idle workers, nothing. The events of the queues, sorted by
    their lengths, are drawn from one shifted lattice, so that they balance (L'Ecuyer, Lécot, Tuffin, *A randomized
    quasi-Monte Carlo simulation method for Markov chains*, 2008): some hundred times fewer do. Wq = Lq/λ (Little).
    """
    source = random.Random(seed)
    base = [i * LATTICE % QUEUES / QUEUES for i in range(QUEUES)]
    rate = arrival + workers * service
    comes = arrival / rate
    leaves = [1 - service / rate * busy for busy in range(workers + 1)]
    relaxed = 2 * workers + 2 / (1 - math.sqrt(arrival / service / workers)) ** 2
    lengths, waiting = [int(arrival / service)] * QUEUES, 0
    for step in range(-4 * int(relaxed), steps):
        lengths.sort()
        shift, moved = source.random(), []
        for length, place in zip(lengths, base, strict=True):
            u = (place + shift) % 1
            ends = u >= leaves[length if length < workers else workers]
            moved.append(length + 1 if u < comes else length - 1 if ends else length)
        lengths = moved
        if step >= 0:
            waiting += sum([length - workers for length in lengths if length > workers])
    return waiting / (steps * QUEUES) / arrival


def waits(items: Iterable[tuple[float, float]], workers: int) -> Iterator[float]:
    """The wait of each item (seconds since the one before, service time), in order, from an empty queue.

    An item starts when it has come and the first worker is free (Kiefer, Wolfowitz, 1955).
    """
    free, now = [0.0] * workers, 0.0
    for gap, service in items:
        now += gap
        start = max(now, free[0])
        heapq.heapreplace(free, start + service)
        yield start - now


def draws(source: random.Random, mean: float, cv2: float) -> Draw:
    """Draw spans with this mean and squared coefficient of variation.

    0: constant; below 1: gamma; 1: exponential; above: one of two exponentials with balanced means.
    """
    if cv2 == 0:
        return lambda: mean
    if cv2 == 1:
        return lambda: source.expovariate(1 / mean)
    if cv2 < 1:
        return lambda: source.gammavariate(1 / cv2, mean * cv2)
    often = (1 + math.sqrt((cv2 - 1) / (cv2 + 1))) / 2
    return lambda: source.expovariate(2 / mean * (often if source.random() < often else 1 - often))


def simulate(
    arrival: float, service: float, workers: int, n: int, seed: int,
    cv2: tuple[float, float] = (1, 1), within: float | None = None,
) -> Simulated:  # fmt: skip
    """Simulate the mean wait of n items in seconds, or the part of them that waits longer than `within`.

    In 40 batches, after a warm-up of one. A part of what the batches differ by is that more work came in some than in
    others; a regression on that takes it out (a control variate).
    """
    source = random.Random(seed)
    gap, serve = draws(source, 1 / arrival, cv2[0]), draws(source, 1 / service, cv2[1])
    excess = 0.0

    def items() -> Iterator[tuple[float, float]]:
        nonlocal excess
        while True:
            between, span = gap(), serve()
            excess += (span - 1 / service) / workers - (between - 1 / arrival)
            yield between, span

    flow, size = waits(items(), workers), n // 40
    xs, ys = [], []
    for _ in range(41):
        excess = 0.0
        found = [next(flow) for _ in range(size)]
        ys.append(fmean(found) if within is None else sum(wait > within for wait in found) / size)
        xs.append(excess / size)
    slope, mean = linear_regression(xs[1:], ys[1:])
    rests = [y - mean - slope * x for x, y in zip(xs[1:], ys[1:], strict=True)]
    return Simulated(mean, stdev(rests) / math.sqrt(len(rests)))


def load(path: Path) -> list[tuple[float, float]]:
    """The requests of a trace (CSV with arrival_s and output_tokens): seconds since the one before, service time."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [(float(row["arrival_s"]), int(row["output_tokens"])) for row in csv.DictReader(file)]
    return [
        (at - before, FIXED + PER_TOKEN * tokens)
        for (before, _), (at, tokens) in zip([rows[0], *rows], rows, strict=False)
    ]


def dispersion(gaps: Iterable[float], window: float) -> float:
    """The index of dispersion: variance ÷ mean of the arrivals in windows of so many seconds; 1 for Poisson arrivals."""
    times = list(accumulate(gaps))
    counts = [0] * int(times[-1] // window)
    for time in times:
        if time < len(counts) * window:
            counts[int(time / window)] += 1
    return pvariance(counts) / fmean(counts)


def of_trace(items: Sequence[tuple[float, float]], rho: float, shuffles: int = 20) -> list[str]:
    """One row of the table: the formulas against the trace as it is, and against its spans in random order."""
    gaps, services = map(list, zip(*items, strict=True))
    arrival, service = 1 / fmean(gaps[1:]), 1 / fmean(services)
    ca2, cs2 = (pvariance(spans) / fmean(spans) ** 2 for spans in (gaps[1:], services))
    spread = dispersion(gaps, 2 / service)
    workers = round(arrival / service / rho)
    real = sorted(waits(items, workers))
    wq, p95 = fmean(real), real[int(0.95 * len(real))]
    source, mixed = random.Random(1), []
    for _ in range(shuffles):
        source.shuffle(gaps)
        source.shuffle(services)
        mixed.append(fmean(waits(zip(gaps, services, strict=True), workers)))
    cells = [f"{workers}", f"{arrival / service / workers:.3f}", f"{wq:.3f}, {p95:.2f}"]
    for cv2 in ((1, 1), (ca2, cs2), (spread, cs2)):
        queue = Queue(arrival, service, workers, 0.0, *cv2)
        cells.append(f"{queue.wq:.3f}, {queue.percentile(0.95):.2f}: {queue.wq / wq - 1:+.0%}")
    error = Queue(arrival, service, workers, 0.0, ca2, cs2).wq / fmean(mixed) - 1
    return [*cells, f"{fmean(mixed):.3f} ± {stdev(mixed):.3f}", f"{error:+.0%}", f"{ca2:.2f}, {cs2:.2f}, {spread:.2f}"]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---:"] * len(heads), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--trace", type=Path, nargs="*", default=[], metavar="FILE", help="CSV.gz: arrival_s, output_tokens"
    )
    options = parser.parse_args()
    for path in options.trace:
        items = load(path)
        heads = ["c", "ρ", "Wq, 95 % s", "M/M/c", "corrected", "by dispersion", "shuffled", "corrected", "ca², cs², I"]
        print(f"{path.name}\n{table(heads, [of_trace(items, rho) for rho in (0.7, 0.8, 0.9)])}\n")  # noqa: T201
    if options.trace:
        return
    print(table(["ρ", *(f"c = {c}" for c in (1, 4, 16, 64))], _grid()), end="\n\n")  # noqa: T201
    print(table(["ca²", "cs²", *(f"c = {c}, ρ = {r}" for c in (4, 16) for r in (0.7, 0.9))], _corrected()))  # noqa: T201


def _grid() -> Iterator[list[str]]:
    for rho in (0.5, 0.7, 0.8, 0.9, 0.95):
        row = [f"{rho}"]
        for c in (1, 4, 16, 64):
            model, steps = Queue(rho * c, 1, c).wq, 2000 if c < 16 else 6000
            found = [walk(rho * c, 1, c, steps, seed) / model - 1 for seed in range(4)]
            error = stdev(found) / 2
            row.append(f"{fmean(found):+.2%} ± {error:.2%}" if error < 0.01 else "–")
        yield row


def _corrected() -> Iterator[list[str]]:
    for cv2 in VARIABILITY:
        row = [f"{cv2[0]}", f"{cv2[1]}"]
        for c in (4, 16):
            for rho in (0.7, 0.9):
                mean, error = simulate(rho * c, 1, c, 2_000_000, 1, cv2)
                row.append(f"{Queue(rho * c, 1, c, 0, *cv2).wq / mean - 1:+.1%} ± {error / mean:.1%}")
        yield row


if __name__ == "__main__":
    main()
