"""Items a second against workers, as an SVG that reads on light and on dark pages."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable

from flatfleet.benchmarks.harness import Row

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 230, 44, 48
COLOURS = ("#2f7ed8", "#8bbc21", "#f28f43", "#c0392b", "#7b5ea7", "#1aadce")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-size:14px;font-weight:600}"
    ".grid{stroke:#8c959f;stroke-opacity:.3}@media(prefers-color-scheme:dark){text{fill:#9da7b1}}"
)


def curves(rows: Iterable[Row]) -> dict[str, dict[int, float]]:
    """{contestant: {workers: median}} of the cases loop-1, loop-4 …"""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        match = re.fullmatch(r"loop-(\d+)", row.case)
        if match and row.median:
            found.setdefault(row.contestant, {})[int(match[1])] = row.median
    return found


def svg(lines: dict[str, dict[int, float]]) -> str:
    """Draw the curves on two logarithmic axes; each is labelled at its end."""
    workers = sorted({x for line in lines.values() for x in line})
    rates = [y for line in lines.values() for y in line.values()]
    low, high = 10 ** math.floor(math.log10(min(rates))), 10 ** math.ceil(math.log10(max(rates)))
    span = math.log(workers[-1] / workers[0]) or 1.0

    def across(x: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / workers[0]) / span

    def down(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - math.log(y / low) / math.log(high / low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>No-op items per second against workers</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="22">No-op items per second, one process</text>',
    ]
    for tick in _ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    for x in workers:
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">workers</text>')
    ends = _apart({name: down(line[max(line)]) for name, line in lines.items()})
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        points = [(across(x), down(y)) for x, y in sorted(line.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        text = html.escape(f"{name} · {line[max(line)]:,.0f}")
        parts.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{ends[name] + 4:.1f}" style="fill:{colour};font-size:11px">{text}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    ticks, tick = [], low
    while tick <= high * 1.001:
        ticks += [tick * step for step in (1, 2, 5) if tick * step <= high * 1.001]
        tick *= 10
    return ticks


def _apart(heights: dict[str, float], least: float = 15.0) -> dict[str, float]:
    """Move labels down so far that none covers another."""
    placed: dict[str, float] = {}
    last = -math.inf
    for name, height in sorted(heights.items(), key=lambda pair: pair[1]):
        last = placed[name] = max(height, last + least)
    return placed
