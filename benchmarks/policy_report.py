"""What the comparison of scaling policies has found, as Markdown and as one picture a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flatfleet.benchmarks.policy_checks import CHECKS
from flatfleet.benchmarks.policy_sweeps import FAMILIES, LEVELS, LOADS, Load, Point, at_level
from flatfleet.runtime.charts import chart

REFERENCE, OURS = "HPA", "slo"
HOURS = {"conv": 0.85, "mooncake": 0.85, "m_large": 1.0}
"""The goals: ours ÷ HPA's worker-hours at most; starts + stops at most `FLAPS` of them."""
FLAPS = 0.5
_HEADS = ["policy", "knob", "worker-hours", "÷ HPA", "starts+stops", "÷ HPA", "mean wait", "p95 wait"]
_ALIGN = ["---", "---", *["---:"] * (len(_HEADS) - 2)]
_LEAST, _MOST = 0.001, 0.3
"""The shares of misses that are drawn."""

Found = Mapping[str, Mapping[str, Any]]


def markdown(found: Found, command: str) -> str:
    """All tables: the goals first, then the checks, then one a trace and level, then the sweeps themselves."""
    parts = [f"Made by `{command}`.", *_goals(found, _loads(found))]
    if checks := [load for load in CHECKS if load.name in found]:
        parts += ["", "### Not tuned for", *_goals(found, checks)]
    for load in _loads(found):
        parts += ["", f"### {load.name}: {load.about}", "", _about(load, found[load.name]["bounds"])]
        for level in LEVELS:
            parts += ["", f"At {level:.0%} of the requests within {load.wait:g} s:", ""]
            parts += _table(_HEADS, _ALIGN, _rows(found[load.name]["sweeps"], level))
        parts += ["", "No knob:", "", *_table(["", "within", *_HEADS[2:3], "starts+stops", *_HEADS[6:]],
                  ["---", *["---:"] * 5], _fixed(found[load.name]["bounds"])), "",
                  f"![Misses against worker-hours, {load.name}](images/policies-{load.name}.svg)", ""]  # fmt: skip
    return "\n".join([*parts, "", "### The sweeps", "", *_sweeps(found)])


def picture(load: Load, sweeps: Mapping[str, Sequence[Point]]) -> str:
    """Misses against worker-hours, a line a policy. Left out: what takes more than twice the cheapest good hours, fewer misses
    than can be told apart, and a setting to which the policy has another that costs less and misses less.
    """
    least = min(point.hours for points in sweeps.values() for point in points if point.slo >= LEVELS[0])
    lines = {
        name: {each.hours: 100 * (1 - each.slo) for each in _front(points) if _drawn(each) and each.hours <= 2 * least}
        for name, points in _ordered(sweeps).items()
    }
    return chart(
        f"{load.name}: requests that waited longer than {load.wait:g} s, %",
        lines,
        across="worker-hours",
        log_y=True,
        end=lambda value: f"{value:.2g}%",
    )


def _ordered(sweeps: Mapping[str, Sequence[Point]]) -> dict[str, Sequence[Point]]:
    """The sweeps in the order of `FAMILIES`, whatever they were put together from."""
    names = [each.name for each in FAMILIES]
    return {
        name: sweeps[name]
        for name in sorted(sweeps, key=lambda name: names.index(name) if name in names else len(names))
    }


def _drawn(point: Point) -> bool:
    return _LEAST <= 1 - point.slo <= _MOST


def _front(points: Sequence[Point]) -> list[Point]:
    """The points, by their hours, that no other one beats."""
    kept: list[Point] = []
    for each in sorted(points, key=lambda point: (point.hours, -point.slo)):
        if not kept or each.slo > kept[-1].slo:
            kept.append(each)
    return kept


def _loads(found: Found) -> list[Load]:
    return [load for load in LOADS if load.name in found]


def _about(load: Load, bounds: Mapping[str, Any]) -> str:
    phases = f"means of {load.phases} phases" if load.phases > 1 else "one phase"
    return (
        f"{bounds['requests']:,} requests in {bounds['hours']:,.3g} h, {bounds['busy']:.3g} busy on average; the work itself "
        f"is {bounds['floor']:,.4g} worker-hours; service `{load.service}`; {phases}."
    )


def _goals(found: Found, loads: Sequence[Load]) -> Iterator[str]:
    rows = []
    for load in loads:
        for level in LEVELS:
            sweeps = found[load.name]["sweeps"]
            theirs, ours = (_at(sweeps, name, level) for name in (REFERENCE, OURS))
            if theirs is None or ours is None:
                who = " nor ".join(n for n, each in ((REFERENCE, theirs), (OURS, ours)) if each is None)
                ends = "; ".join(_nearest(name, sweeps.get(name, ()), level) for name in (REFERENCE, OURS))
                rows.append([load.name, f"{level:.0%}", f"no {who} comes to it exactly; {ends}", "", "", ""])
                continue
            hours, flaps = ours.hours / theirs.hours, ours.flaps / theirs.flaps
            most = HOURS[load.name.partition(",")[0]]
            rows.append([
                load.name, f"{level:.0%}", f"{_number(theirs.hours)} → {_number(ours.hours)} ({hours - 1:+.1%})",
                _verdict(hours, most), f"{theirs.flaps:,.0f} → {ours.flaps:,.0f} ({flaps:.0%})",
                _verdict(flaps, FLAPS),
            ])  # fmt: skip
    yield ""
    yield from _table(
        ["trace", "within", "worker-hours, HPA → slo", "goal", "starts+stops, HPA → slo", "goal"],
        ["---", "---:", "---", "---", "---", "---"],
        rows,
    )


def _nearest(name: str, points: Sequence[Point], level: float) -> str:
    """What a policy comes to at a level, or at the end of its sweep that is nearest to it."""
    found = at_level(points, level) or min(points, key=lambda each: abs(each.slo - level), default=None)
    if found is None:
        return f"{name} was not measured"
    side = "at" if found.slo == level else "at most" if found.slo < level else "at least"
    return f"{name} {side} {found.slo:.2%} ({_number(found.hours)} h, {found.flaps:,.0f})"


def _verdict(ratio: float, goal: float) -> str:
    return f"≤ {goal:.2g}: {'met' if ratio <= goal else '**missed**'}"


def _at(sweeps: Mapping[str, Sequence[Point]], name: str, level: float) -> Point | None:
    return at_level(sweeps.get(name, ()), level)


def _rows(sweeps: Mapping[str, Sequence[Point]], level: float) -> Iterator[list[str]]:
    theirs = _at(sweeps, REFERENCE, level)
    for family in FAMILIES:
        if family.name not in sweeps:
            continue
        found = _at(sweeps, family.name, level)
        if found is None:
            shares = [each.slo for each in sweeps[family.name]]
            yield [family.name, f"{min(shares):.2%} to {max(shares):.2%} only", *["–"] * (len(_HEADS) - 2)]
            continue
        hours, flaps = (
            (f"{found.hours / theirs.hours:.2f}", f"{found.flaps / theirs.flaps:.2f}") if theirs else ("–", "–")
        )
        knob = f"{family.knob} {found.knob:.4g}"
        yield [family.name, knob, _number(found.hours), hours, f"{found.flaps:,.0f}", flaps, *_waits(found)]


def _fixed(bounds: Mapping[str, Any]) -> Iterator[list[str]]:
    for name in ("mean", "peak", "clairvoyant"):
        point = Point(*bounds[name])
        said = "clairvoyant schedule" if name == "clairvoyant" else f"fixed at the {name}, {point.knob:.0f} workers"
        yield [said, f"{point.slo:.2%}", _number(point.hours), f"{point.flaps:,.0f}", *_waits(point)]


def _sweeps(found: Found) -> Iterator[str]:
    for load in _loads(found):
        rows = []
        for name, points in _ordered(found[load.name]["sweeps"]).items():
            for each in points:
                cells = [f"{each.slo:.2%}", _number(each.hours), f"{each.flaps:,.0f}", *_waits(each)]
                rows.append([name if each is points[0] else "", f"{each.knob:.4g}", *cells])
        heads = [load.name, "knob", "within", "worker-hours", "starts+stops", "mean wait", "p95 wait"]
        yield from ("<details>", f"<summary>{load.name}</summary>", "")
        yield from _table(heads, ["---", *["---:"] * 6], rows)
        yield from ("", "</details>", "")


def _table(heads: Sequence[str], align: Sequence[str], rows: Any) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [heads, align, *rows]]


def _waits(point: Point) -> list[str]:
    return [f"{value:,.3g} s" for value in (point.wait_mean, point.wait_p95)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
