"""The timeline of a replay as one picture: arrivals, workers and waiting items, one below the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from flatfleet.runtime.charts import HEIGHT, WIDTH, chart
from flatfleet.runtime.replay.contract import Sample

SAMPLES = 240
"""Points of a line."""
_UNITS = (
    (2 * 86_400.0, 86_400.0, "days"),
    (2 * 3600.0, 3600.0, "hours"),
    (120.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)


def every(start: float, end: float) -> float:
    """Seconds between the samples that a timeline wants."""
    return max((end - start) / SAMPLES, 1e-3)


def timeline(title: str, runs: Mapping[str, Sequence[Sample]]) -> str:
    """Draw the runs as SVG: {policy: samples}. Raises ValueError where no run has two samples."""
    runs = {name: samples for name, samples in runs.items() if len(samples) > 1}
    if not runs:
        raise ValueError(f"there is nothing to draw for '{title}'")
    first = next(iter(runs.values()))
    start = first[0].at
    longest = max(samples[-1].at for samples in runs.values()) - start
    unit, across = next((unit, name) for least, unit, name in _UNITS if longest >= least)
    rate = {
        (b.at - start) / unit: (b.arrived - a.arrived) / (b.at - a.at)
        for a, b in itertools.pairwise(first)
        if b.at > a.at and b.arrived >= a.arrived
    }
    workers = {name: {(each.at - start) / unit: float(each.workers) for each in run} for name, run in runs.items()}
    waiting = {name: {(each.at - start) / unit: float(each.waiting) for each in run} for name, run in runs.items()}
    panels = [
        chart(f"{title}: arrivals a second", {"arrivals": rate}, across=across, end=_rounded),
        chart("Workers, with those that start or drain", workers, across=across, end=_rounded),
        chart("Items that wait", waiting, across=across, end=_rounded),
    ]
    return _stacked(title, panels)


def _stacked(title: str, panels: Iterable[str]) -> str:
    placed = [
        panel.rstrip().replace("<svg ", f'<svg y="{number * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for number, panel in enumerate(panels)
    ]
    size = f"0 0 {WIDTH} {HEIGHT * len(placed)}"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}">', *placed, "</svg>", ""])


def _rounded(value: float) -> str:
    return f"{value:,.3g}"
