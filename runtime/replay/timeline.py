"""The timeline of a replay as one picture: arrivals, workers and waiting items, one below the other."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flatfleet.runtime.charts import HEIGHT, WIDTH, chart
from flatfleet.runtime.replay.contract import Sample
from flatfleet.runtime.replay.traces import Trace

SAMPLES = 240
"""Points of a line."""
_UNITS = (
    (2 * 86_400.0, 86_400.0, "days"),
    (2 * 3600.0, 3600.0, "hours"),
    (120.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)


def every(trace: Trace) -> float:
    """Seconds between the samples that a timeline wants."""
    longest = max(trace.services)
    return max(trace.end - trace.start, longest, 0.24) / SAMPLES


def timeline(title: str, trace: Trace, runs: Mapping[str, Sequence[Sample]]) -> str:
    """Draw a trace and runs over it as SVG, {policy: samples}, all over the same time.

    Raises ValueError where none of them takes any time.
    """
    start, runs = trace.start, {name: _fewer(samples) for name, samples in runs.items() if samples}
    longest = max([trace.end, *(samples[-1].at for samples in runs.values())]) - start
    if not runs or longest <= 0:
        raise ValueError(f"there is nothing to draw for '{title}'")
    unit, across = next((unit, name) for least, unit, name in _UNITS if longest >= least)
    workers = {name: {(each.at - start) / unit: float(each.workers) for each in run} for name, run in runs.items()}
    waiting = {name: {(each.at - start) / unit: float(each.waiting) for each in run} for name, run in runs.items()}
    rates = {"arrivals": {(at - start) / unit: rate for at, rate in _rates(trace)}}
    panels = {
        f"{title}: arrivals a second": rates,
        "Workers, with those that start or drain": workers,
        "Items that wait": waiting,
    }
    within = (0.0, longest / unit)
    return _stacked(title, [chart(name, lines, across=across, within=within, legend=True)
                            for name, lines in panels.items()])  # fmt: skip


def _fewer(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Some of the samples, with the last, where a run went on for long after its trace."""
    step = len(samples) // (4 * SAMPLES)
    return samples if step < 2 else [*samples[:-1:step], samples[-1]]


def _rates(trace: Trace) -> Iterator[tuple[float, float]]:
    """The arrivals a second of each part of a trace, at its middle; at one moment all, where it has but one."""
    length = every(trace)
    before = 0
    for number in range(max(1, round((trace.end - trace.start) / length))):
        until = trace.start + (number + 1) * length
        last = until >= trace.end - length / 2
        found = len(trace) if last else bisect.bisect_left(trace.arrivals, until)
        yield min(until - length / 2, trace.end), (found - before) / length
        before = found


def _stacked(title: str, panels: Iterable[str]) -> str:
    placed = [
        panel.rstrip().replace("<svg ", f'<svg y="{number * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for number, panel in enumerate(panels)
    ]
    size = f"0 0 {WIDTH} {HEIGHT * len(placed)}"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}">', *placed, "</svg>", ""])
