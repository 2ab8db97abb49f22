"""replay: a policy against a recorded trace in simulated time, before it is deployed; or against recorded decisions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatfleet.commands import cli, exits
from flatfleet.commands.durations import seconds, span
from flatfleet.commands.terminal import document, plain, show
from flatfleet.runtime.errors import SourceError, UsageError
from flatfleet.runtime.policies.settings import Slo, number, objective
from flatfleet.runtime.replay import decisions, results, traces
from flatfleet.runtime.replay.choosing import BASELINES, Choice, choose
from flatfleet.runtime.replay.clairvoyant import clairvoyant, floor
from flatfleet.runtime.replay.contract import Conditions, Run
from flatfleet.runtime.replay.results import Result
from flatfleet.runtime.replay.simulator import simulate
from flatfleet.runtime.replay.timeline import every, timeline

SHOWN = 10
"""Differences that are shown of each policy."""
PICTURE = "replay.svg"
_EXAMPLE = "flatfleet replay --policy auto --trace arrivals.csv --service '0.5 + 0.02*output_tokens'"


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = (
        "Run policies over a recorded trace in simulated time, by the code that decides in production, and tell what each "
        "would have come to. A .jsonl file of recorded decisions is decided again instead. See docs/replay.md."
    )
    made = cli.parser("replay", about)
    names = ", ".join(BASELINES)
    made.add_argument(
        "--policy", action="append", metavar="FILE", help=f"a file with settings.fleet, a preset, or one of {names}"
    )
    made.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="CSV (.gz) with arrival_s, or window_start_s and rate_per_s; or .jsonl",
    )
    made.add_argument(
        "--service", metavar="EXPR", help="seconds a request takes: '0.5 + 0.02*output_tokens', 'exp(50)'"
    )
    made.add_argument("--startup", type=seconds, default=30.0, metavar="SPAN", help="from launch to first claim (30s)")
    made.add_argument(
        "--slo", type=_slo, default=Slo(5.0, 0.95), metavar="SPAN@PERCENT", help="which wait how many may have: 5s@95%%"
    )
    made.add_argument(
        "--interval", type=_interval, metavar="SPAN", help="between decisions, in place of each policy's own"
    )
    made.add_argument("--scale", type=_factor, default=1.0, metavar="X", help="so many times the requests (default: 1)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn at random (default: 0)")
    made.add_argument("--price", type=_amount, metavar="X", help="of a worker-hour, in place of each policy's own")
    made.add_argument("--spot-loss", type=_amount, default=0.0, metavar="X", help="losses per worker-hour (default: 0)")
    made.add_argument("--lease", type=seconds, default=60.0, metavar="SPAN", help="until a loss is noticed (60s)")
    made.add_argument("--plot", type=Path, metavar="FOLDER", help=f"draw the timeline: {PICTURE}")
    made.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="COND",
        help="exit code 1 where it holds: 'slo<0.99'; again for more",
    )
    options = cli.finish(made, argv, "replay")
    if not options.policy or options.trace is None:
        raise UsageError(f"replay needs {'--trace' if options.policy else '--policy'}, as in: {_EXAMPLE}")
    options.needs_loop, options.must_exist, options.command = False, False, command
    return options


def command(options: Any, parts: None) -> int:
    chosen = [choose(text, options.startup, options.interval, options.price) for text in options.policy]
    return _again(options, chosen) if decisions.is_log(options.trace) else _simulated(options, chosen)


# -- over a trace ------------------------------------------------------------------------------------------------------


def _simulated(options: Any, chosen: Sequence[Choice]) -> int:
    conditions = [results.condition(text) for text in options.fail_if]
    trace = traces.read(options.trace, options.service, options.scale, options.seed)
    rows, drawn = [], {}
    for name, choice in zip(_names(options.policy, chosen), chosen, strict=True):
        run = _run(choice, trace, options)
        rows.append(results.summarise(name, run, options.slo))
        drawn[name] = run.samples
    failed = [line for each in conditions for line in each.failing(row.data() for row in rows)]
    written, missing = [], ""
    if options.plot:
        try:
            written = [_written(options.plot, timeline(options.trace.name, trace, drawn))]
        except ValueError as error:
            missing = f"no picture: {error}, which takes no time"
    least = floor(trace)
    if options.json:
        about = {"trace": trace.name, "requests": len(trace), "start": trace.start, "end": trace.end}
        given = {"slo": options.slo._asdict(), "startup": options.startup, "scale": options.scale, "seed": options.seed}
        told = {"policies": [row.data() for row in rows], "floor_worker_hours": least, "work": trace.work}
        document(about | given | told | {"failed": failed, "plots": list(map(str, written))})
    else:
        lines = [_title(trace, options), "", *_table(rows, options.slo), ""]
        lines += [f"no fleet can do it in less than {least:,.4g} worker-hours, which is the work itself"]
        lines += [f"wrote {path}" for path in written] + [plain(missing)] * bool(missing)
        show("\n".join(lines + list(map(plain, failed))))
    return exits.SOME_FAILED if failed else exits.DONE


def _run(choice: Choice, trace: traces.Trace, options: Any) -> Run:
    sample = every(trace) if options.plot else None
    if choice.make is None:
        return clairvoyant(trace, options.slo.wait, options.startup, options.price, sample)
    conditions = Conditions(options.startup, options.spot_loss, options.lease, options.seed, sample)
    try:
        return simulate(trace.requests(), choice.make(), conditions, trace.start, trace.end)
    except SourceError as error:
        longest, line = trace.gap
        hint = f"; the longest gap is {longest:.6g} s, at {trace.name}:{line}: are these milliseconds?"
        raise SourceError(f"{error}; a longer interval takes fewer{hint if line else ''}") from error


def _names(texts: Sequence[str], chosen: Sequence[Choice]) -> list[str]:
    """The names of the rows: those of the files, or what was typed where two would be the same."""
    names = [each.name for each in chosen]
    return [text if names.count(name) > 1 else name for text, name in zip(texts, names, strict=True)]


def _title(trace: traces.Trace, options: Any) -> str:
    length = max(trace.end - trace.start, 1e-9)
    what = f"{plain(options.trace.name)}: {len(trace):,} requests in {span(length)}, {trace.work / length:.3g} busy on average"
    slo = f"wait ≤ {_time(options.slo.wait)} for {100 * options.slo.level:.12g}%"
    return f"{what}, start-up {span(options.startup)}, SLO: {slo}"


def _table(rows: Sequence[Result], slo: Slo) -> list[str]:
    priced = any(row.cost is not None for row in rows)
    heads = f"policy|≤ {_time(slo.wait)}||mean wait|p50|p95|worker-hours|peak|starts+stops|busy".split("|")
    cells = [heads + ["cost"] * priced + ["lost"] * any(row.lost for row in rows)]
    for row in rows:
        times = map(_time, (row.wait_mean, row.wait_p50, row.wait_p95))
        numbers = [f"{row.worker_hours:,.1f}", f"{row.peak:,}", f"{row.flaps:,}", _percent(row.utilisation)]
        cells.append([plain(row.policy), _percent(row.slo), "✓" if row.slo >= slo.level else "✗", *times, *numbers])
        cells[-1] += ["–" if row.cost is None else f"{row.cost:,.2f}"] * priced
        cells[-1] += [f"{row.lost:,}"] * any(each.lost for each in rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    lines = ["  ".join([line[0].ljust(widths[0]), *pad[1:]]).rstrip() for line, pad in zip(cells, padded, strict=True)]
    late = [row for row in rows if row.unfinished]
    return lines + [f"{plain(row.policy)}: {row.unfinished:,} requests had not ended a day later" for row in late]


def _written(folder: Path, picture: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PICTURE).write_text(picture, encoding="utf-8")
    return folder / PICTURE


# -- over recorded decisions -------------------------------------------------------------------------------------------


def _again(options: Any, chosen: Sequence[Choice]) -> int:
    conditions = [results.condition(text, ("decisions", "differences")) for text in options.fail_if]
    rows: list[dict[str, Any]] = []
    lines = []
    for name, choice in zip(_names(options.policy, chosen), chosen, strict=True):
        if choice.settings is None:
            raise UsageError(
                f"--policy {choice.name}: a baseline decides nothing by what a log has seen; name settings"
            )
        decided = list(decisions.again(decisions.read(options.trace), choice.settings))
        found = [difference for _, difference in decided if difference]
        others = decisions.others(decisions.read(options.trace), choice.settings)
        rows.append({"policy": name, "decisions": len(decided), "differences": len(found), "others": others})
        lines.append(f"{plain(name)}: {len(decided):,} decisions, {len(found):,} come out differently")
        lines += [f"  {n:,} of them were decided by other settings then: {plain(label)}" for label, n in others.items()]
        lines += [_difference(each) for each in found[:SHOWN]]
        lines += [f"  and {len(found) - SHOWN:,} more (--json has them all)"] if len(found) > SHOWN else []
        rows[-1] |= {"changed": [each.data() for each in found]} if options.json else {}
    failed = [line for each in conditions for line in each.failing(rows)]
    if options.json:
        document({"log": str(options.trace), "policies": rows, "failed": failed})
    else:
        show("\n".join(lines + list(map(plain, failed))))
    return exits.SOME_FAILED if failed else exits.DONE


def _difference(each: decisions.Difference) -> str:
    what = ", ".join(f"{name} {then} → {now}" for name, (then, now) in each.changed.items())
    return plain(f"  line {each.line}: {what} ({each.reason})")


# -- numbers -----------------------------------------------------------------------------------------------------------


def _time(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value * 1000:.3g}ms" if 0 < value < 1 else f"{value:.3g}s" if value < 600 else span(value)


def _percent(part: float) -> str:
    text = f"{part * 100:.2f}"
    return ">99.99%" if text == "100.00" and part < 1 else f"{text}%"


def _slo(text: str) -> Slo:
    try:
        found = objective(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found


def _amount(text: str) -> float:
    try:
        value = number(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of at least 0")
    return value


def _factor(text: str) -> float:
    value = _amount(text)
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0, up to 1,000,000")
    return value


def _interval(text: str) -> float:
    value = seconds(text)
    if value < 0.01:
        raise argparse.ArgumentTypeError(f"'{text}' is no time of 0.01 s at least")
    return value
