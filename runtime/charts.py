"""Line charts as SVG that reads on light and on dark pages."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 230, 44, 48
COLOURS = ("#2f7ed8", "#8bbc21", "#f28f43", "#c0392b", "#7b5ea7", "#1aadce", "#d4679f", "#8d6e4a")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-size:14px;font-weight:600}"
    ".grid{stroke:#8c959f;stroke-opacity:.3}@media(prefers-color-scheme:dark){text{fill:#9da7b1}}"
)
_DOTS = 60
_NAME = 32
"""Letters of a name in a legend."""

Line = Mapping[float, float]
Label = Callable[[float], str]
Place = Callable[[float], float]


def plain_number(value: float) -> str:
    """1,200 or 0.05: what stands at the axes unless something else is asked for."""
    return f"{value:,g}"


def chart(
    title: str,
    lines: Mapping[str, Line],
    *,
    across: str,
    about: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[float] = (),
    label: Label = plain_number,
    end: Label = plain_number,
    bottom: float = 0.0,
    within: tuple[float, float] | None = None,
    legend: bool = False,
) -> str:
    """Draw {name: {x: y}}; each line is labelled at its right end with its name and its last value.

    With a `legend`, names stand beside the picture instead, one below the other: for lines that end at many places.
    `within` is the range of the x axis (default: from the first x to the last), so that several charts have the same.

    `across` names the x axis, `about` is read out where the picture is not seen (default: the title). A value that is
    infinite, or on a logarithmic axis not above 0, is left out, and so is one below `bottom`. `marks` are the x that get
    a tick (default: chosen). `label` writes a tick of the y axis, `end` a last value.
    Raises ValueError if there is nothing to draw.
    """
    least = max(bottom, 5e-324) if log_y else bottom
    drawn = {
        name: {x: y for x, y in sorted(line.items()) if least <= y < math.inf and (x > 0 or not log_x)}
        for name, line in lines.items()
    }
    drawn = {name: line for name, line in drawn.items() if line}
    if not drawn:
        raise ValueError(f"there is nothing to draw for '{title}'")
    xs = sorted({x for line in lines.values() for x in line if x > 0 or not log_x})
    to_x, x_ticks = _axis(within or xs, log_x, LEFT, WIDTH - RIGHT, tight=True, whole=within is None)
    to_y, y_ticks = _axis([y for line in drawn.values() for y in line.values()], log_y, HEIGHT - BOTTOM, TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{html.escape(about or title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="22">{html.escape(title)}</text>',
    ]
    for tick in y_ticks:
        y = to_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label(tick))}</text>')
    for x in marks or x_ticks:
        parts.append(
            f'<text x="{to_x(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{plain_number(x)}</text>'
        )
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(across)}</text>')
    ends = _apart({name: to_y(line[max(line)]) for name, line in drawn.items()})
    apart = min(18.0, (HEIGHT - TOP - BOTTOM) / len(drawn))
    for number, (name, line) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(to_x(x), to_y(y)) for x, y in line.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        if len(points) <= _DOTS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        if legend:
            parts += _named(name, colour, TOP + 6 + number * apart)
            continue
        text = html.escape(f"{name} · {end(line[max(line)])}")
        x = round(points[-1][0], 1) + 8
        parts.append(f'<text x="{x:g}" y="{ends[name] + 4:.1f}" style="fill:{colour};font-size:11px">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _named(name: str, colour: str, y: float) -> list[str]:
    """A line of the legend."""
    x, short = WIDTH - RIGHT + 16, name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
    return [
        f'<line x1="{x}" x2="{x + 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="3"/>',
        f'<text x="{x + 22}" y="{y + 4:.1f}" style="fill:{colour};font-size:11px">{html.escape(short)}</text>',
    ]


def wide(values: Iterable[float], times: float = 50.0) -> bool:
    """Whether positive, finite values span so many times that they want a logarithmic axis."""
    found = [value for value in values if 0 < value < math.inf]
    return bool(found) and max(found) > times * min(found)


def _axis(
    values: Sequence[float], logarithmic: bool, start: float, stop: float, tight: bool = False, whole: bool = True
) -> tuple[Place, list[float]]:
    """Map values to places between start and stop, and choose ticks; `tight` ends the axis with the values.

    Ticks of a tight axis are `whole` numbers, or not.
    """
    low, high = min(values), max(values)
    if logarithmic:
        if not tight:
            low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
            high = high if high > low else low * 10
        span = math.log(high / low) or 1.0
        ticks = [tick for tick in _decades(low, high) if low * 0.999 <= tick <= high * 1.001]
        return lambda value: start + (stop - start) * math.log(value / low) / span, ticks
    low = low if tight else min(low, 0.0)
    step = _step((high - low) / (10 if tight else 6))
    if tight:
        step = max(step, 1.0) if whole else step
    else:
        high = low + step * max(1, math.ceil((high - low) / step * 0.999))
    ticks = [step * n for n in range(math.ceil(low / step), math.floor(high / step * 1.001) + 1)]
    return lambda value: start + (stop - start) * (value - low) / ((high - low) or 1.0), ticks


def _step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20 … (and 0.5, 0.2 …) that is at least this."""
    if least <= 0:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(least))
    return next(decade * step for step in (1, 2, 5, 10) if decade * step >= least * 0.999)


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 5 else (1,)
    return [10.0**power * step for power in range(first, last + 1) for step in steps]


def _apart(heights: dict[str, float], least: float = 15.0) -> dict[str, float]:
    """Move labels down so far that none covers another."""
    placed: dict[str, float] = {}
    last = -math.inf
    for name, height in sorted(heights.items(), key=lambda pair: pair[1]):
        last = placed[name] = max(height, last + least)
    return placed
