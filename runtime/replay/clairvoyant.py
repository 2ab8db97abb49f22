"""What is possible at all: a schedule that knows the future, and the work itself, below which nothing goes."""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_right
from collections.abc import Iterator
from heapq import heappop, heappush

from flatfleet.runtime.replay.contract import Run, Sample
from flatfleet.runtime.replay.traces import Trace

Span = tuple[float, float]


def floor(trace: Trace, least: int = 1) -> float:
    """A lower bound of the worker-hours of any fleet that serves it all and has at least so many workers.

    All service times together, as if no worker ever waited or started up.
    """
    return max(trace.work, least * (trace.end - trace.start)) / 3600


def clairvoyant(
    trace: Trace, within: float, startup: float, price: float | None = None, sample: float | None = None
) -> Run:
    """A schedule in which nobody waits longer than `within` s, made in the knowledge of all arrivals and service times.

    A request goes to the first worker that will be done within its time, if there is none to the one that became idle
    last, else to a new one, launched so that it is ready at the arrival. A worker whose next request is further away than
    a start-up takes stops in between. One worker is there from the beginning to the end. What it needs is possible, and
    near to the least; `floor` is the proven bound. `sample` is the time between the samples of a timeline, s.
    """
    run = Run(trace.start)
    busy: list[float] = []
    idle = [trace.start]
    spans: list[Span] = []
    for arrival, service in trace.requests():
        while busy and busy[0] < arrival:
            idle.append(heappop(busy))
        begin = arrival
        if busy and busy[0] <= arrival + within:
            begin = heappop(busy)
        elif idle and arrival - idle[-1] <= startup:
            spans.append((idle.pop(), arrival))
        else:
            run.starts += 1
            if idle:
                idle.pop()
            spans.append((arrival - startup, arrival))
        spans.append((begin, begin + service))
        heappush(busy, begin + service)
        run.waits.append(begin - arrival)
        run.busy += service
        run.end = max(run.end, begin + service)
    run.end = max(run.end, trace.end)
    run.stops = run.starts
    run.paid, run.peak = _paid(spans, run.start, run.end)
    run.cost = None if price is None else run.paid / 3600 * price
    if sample is not None:
        run.samples = [*_samples(run, trace, spans, sample)]
    return run


def _samples(run: Run, trace: Trace, spans: list[Span], length: float) -> Iterator[Sample]:
    begun, ended = sorted(a for a, _ in spans), sorted(b for _, b in spans)
    claims = sorted(map(operator.add, trace.arrivals, run.waits))
    times = (run.start + n * length for n in range(math.ceil((run.end - run.start) / length)))
    for at in itertools.chain(times, [run.end]):
        workers = max(1, bisect_right(begun, at) - bisect_right(ended, at))
        arrived = bisect_right(trace.arrivals, at)
        yield Sample(at, workers, arrived - bisect_right(claims, at), arrived)


def _paid(spans: list[Span], start: float, end: float) -> tuple[float, int]:
    """The time of all spans, with that in which there is none between start and end; and the most at one moment."""
    paid, peak, live, since = 0.0, 1, 0, start
    for at, change in sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans]):
        paid += max(0.0, at - since) * max(1, live) if at > start else max(0.0, at - since)
        since, live = max(since, at), live + change
        peak = max(peak, live)
    return paid + max(0.0, end - since), peak
