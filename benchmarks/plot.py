"""Items a second against workers, as an SVG that reads on light and on dark pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from flatfleet.benchmarks.harness import Row
from flatfleet.runtime.charts import chart


def curves(rows: Iterable[Row]) -> dict[str, dict[float, float]]:
    """{contestant: {workers: median}} of the cases loop-1, loop-4 …"""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        match = re.fullmatch(r"loop-(\d+)", row.case)
        if match and row.median:
            found.setdefault(row.contestant, {})[int(match[1])] = row.median
    return found


def svg(lines: Mapping[str, Mapping[float, float]]) -> str:
    """Draw the curves on two logarithmic axes; each is labelled at its end."""
    return chart(
        "No-op items per second, one process",
        lines,
        across="workers",
        about="No-op items per second against workers",
        log_x=True,
        log_y=True,
        marks=sorted({x for line in lines.values() for x in line}),
        end=lambda rate: f"{rate:,.0f}",
    )
