"""capacity: what so many workers are able to do, by queueing theory, before anything runs."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flatfleet.commands import cli, exits, figures
from flatfleet.commands.durations import seconds
from flatfleet.commands.terminal import document, show
from flatfleet.runtime.charts import chart, wide
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.policies.queueing import Queue, fewest_stable, workers_for
from flatfleet.runtime.policies.settings import number

MOST_WORKERS = 10_000_000
MOST_ROWS = 10_000
_PER = {"": 1.0, "/s": 1.0, "/m": 60.0, "/h": 3600.0}
_EXAMPLE = "flatfleet capacity --arrival 100 --service 120 --workers 1..8"


class Slo(NamedTuple):
    """P(d + Wq ≤ within) ≥ level: d the dispatch delay, Wq the wait for a worker; seconds, 0 < level < 1, d ≤ within."""

    within: float
    level: float
    dispatch: float = 0.0

    @property
    def event(self) -> str:
        return f"P({'d + ' if self.dispatch else ''}wait ≤ {figures.time(self.within)})"

    @property
    def left(self) -> float:
        """The wait for a worker that the dispatch delay leaves room for, in seconds."""
        return self.within - self.dispatch

    def __str__(self) -> str:
        return f"{self.event} ≥ {100 * self.level:.12g}%"


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = (
        "Tell how long items wait, and how many are done, with so many workers: M/M/c, and G/G/c where the variability is "
        "given. For one pool whose workers take one item at a time, first come first served; see docs/capacity.md."
    )
    made = cli.parser("capacity", about)
    made.add_argument("--arrival", type=_rate, metavar="RATE", help="items that arrive a second: 100, 90/m, 5/h")
    made.add_argument("--service", type=_rate, metavar="RATE", help="items that one worker does a second: 120, 7/m")
    made.add_argument(
        "--service-time", type=seconds, metavar="SPAN", help="instead: how long one item takes: 50ms, 2s, 1m"
    )
    made.add_argument(
        "--dispatch", type=seconds, default=0.0, metavar="SPAN", help="delay before the queue (default: 0)"
    )
    made.add_argument(
        "--workers", type=_workers, metavar="N..M", help="1..8, 5, or 1,2,4..9 (default: around the need)"
    )
    made.add_argument(
        "--slo",
        type=_slo,
        metavar="SPAN@PERCENT",
        help="which wait, dispatch included, how many may have at most: 0.1s@95%%",
    )
    made.add_argument(
        "--arrival-cv2", type=_cv2, default=1.0, metavar="X", help="variability: variance ÷ mean² (default: 1)"
    )
    made.add_argument(
        "--service-cv2", type=_cv2, default=1.0, metavar="X", help="the same of the service time (default: 1)"
    )
    made.add_argument("--plot", type=Path, metavar="FOLDER", help="draw capacity-latency.svg, capacity-throughput.svg")
    options = cli.finish(made, argv, "capacity")
    if options.arrival is None:
        raise UsageError(f"capacity needs --arrival, as in: {_EXAMPLE}")
    if (options.service is None) == (options.service_time is None):
        raise UsageError(f"capacity needs one of --service (a rate) and --service-time (a span), as in: {_EXAMPLE}")
    if options.service_time is not None:
        if not options.service_time:
            raise UsageError("--service-time is 0; an item has to take some time")
        options.service = 1 / options.service_time
        if math.isinf(options.service):
            raise UsageError(f"--service-time is {options.service_time:g} s, which is too short to be counted")
    if options.arrival / options.service > MOST_WORKERS:
        raise UsageError(f"--arrival is more than {MOST_WORKERS:,} workers do; is its unit that of --service?")
    if options.slo is not None:
        options.slo = options.slo._replace(dispatch=options.dispatch)
        if options.slo.left < 0:
            raise UsageError(
                f"--slo allows {figures.time(options.slo.within)} until an item is begun, and --dispatch alone takes "
                f"{figures.time(options.dispatch)}: no number of workers keeps that"
            )
    options.needs_loop, options.must_exist, options.command = False, False, command
    return options


def command(options: Any, parts: None) -> int:
    first = max(1, fewest_stable(options.arrival, options.service))
    variability, slo = {"arrival_cv2": options.arrival_cv2, "service_cv2": options.service_cv2}, options.slo
    found = workers_for(options.arrival, options.service, slo.left, slo.level, **variability) if slo else first
    need = max(1, found)
    counts = options.workers or _around(first, need)
    rates = (options.arrival, options.service)
    queues = [Queue(*rates, count, options.dispatch, **variability) for count in counts]
    reached = Queue(*rates, need, options.dispatch, **variability).level(slo.left) if slo else None
    written = _plots(queues, options.plot, first) if options.plot else []
    if options.json:
        rows = [each.data() | ({"service_level": each.level(slo.left)} if slo else {}) for each in queues]
        about = {"within": slo.within, "level": slo.level, "workers": need, "reached": reached} if slo else None
        model = {"arrival": rates[0], "service": rates[1], "dispatch": options.dispatch, **variability}
        told = {"offered": queues[0].offered, "fewest_stable": first, "slo": about, "rows": rows}
        document(model | told | {"plots": list(map(str, written))})
        return exits.DONE
    lines = [_title(queues[0]), "", *_table(queues, slo), ""]
    if counts[0] < first:
        lines.append(f"ρ ≥ 1 with fewer than {first:,} workers: the queue grows without end")
    if slo:
        lines.append(
            f"{slo} needs at least {need:,} worker{'s' * (need != 1)}, which reach {figures.reached(reached or 0)}"
        )
    show("\n".join(lines + [f"wrote {path}" for path in written]).rstrip())
    return exits.DONE


def _around(first: int, need: int) -> Sequence[int]:
    """Rows for somebody who named none: from just below the first that can to just above the need, ten or so."""
    low = max(1, first - 1)
    return sorted({*range(low, max(low + 8, need + 3), max(1, math.ceil((need - low) / 10))), need})


def _title(queue: Queue) -> str:
    words = [f"λ = {queue.arrival:g}/s", f"μ = {queue.service:g}/s a worker", f"offered load {queue.offered:.4g}"]
    words += [f"dispatch {figures.time(queue.dispatch)}"] if queue.dispatch else []
    exact = queue.arrival_cv2 == queue.service_cv2 == 1
    kind = "M/M/c" if exact else f"G/G/c, approximated: ca² = {queue.arrival_cv2:g}, cs² = {queue.service_cv2:g}"
    return ", ".join([*words, kind])


def _table(queues: Sequence[Queue], slo: Slo | None) -> list[str]:
    heads = ["workers", "ρ", "P0", "P(wait)", "Lq", "L", "Wq", "W", "T", "95% wait ≤", "B", "done/s"]
    heads += [slo.event] if slo else []
    rows = [heads]
    for each in queues:
        numbers = map(figures.number, (each.utilisation, each.p0, each.p_wait, each.lq, each.l))
        times = map(figures.time, (each.wq, each.w, each.response, each.percentile(0.95)))
        rows.append(
            [f"{each.workers:,}", *numbers, *times, figures.number(each.erlang_b), figures.number(each.throughput)]
        )
        rows[-1] += [figures.percent(each.level(slo.left))] if slo else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _plots(queues: Sequence[Queue], folder: Path, first: int) -> list[Path]:
    """Draw latency and throughput against workers; raises UsageError if none of the counts has a latency."""
    if not any(each.stable for each in queues):
        raise UsageError(
            f"--plot: ρ ≥ 1 with all of these workers, so there is no latency to draw; {first:,} are enough"
        )
    model = f"λ = {queues[0].arrival:g}/s, μ = {queues[0].service:g}/s"
    delay = f", d = {figures.time(queues[0].dispatch)}" if queues[0].dispatch else ""
    log_x = wide(each.workers for each in queues)
    latency: dict[str, dict[float, float]] = {
        "answer, mean T": {each.workers: each.response for each in queues},
        "wait, 95 %": {each.workers: each.percentile(0.95) for each in queues},
        "wait, mean Wq": {each.workers: each.wq for each in queues},
    }
    done: dict[str, dict[float, float]] = {
        "able, cμ": {each.workers: each.workers * each.service for each in queues},
        "done": {each.workers: each.throughput for each in queues},
    }
    times = [y for line in latency.values() for y in line.values() if math.isfinite(y)]
    bottom = min(max(times) / 1e4, min(latency["answer, mean T"].values()) / 10)
    gone = f"; none below {first:,}: ρ ≥ 1" if queues[0].workers < first else ""
    pictures = {
        "capacity-latency.svg": chart(
            f"Latency, {model}{delay}{gone}", latency, across="workers", log_x=log_x, log_y=wide(times),
            label=figures.time, end=figures.time,
            bottom=bottom if wide(times) else 0.0, marks=_marks(queues),
        ),
        "capacity-throughput.svg": chart(
            f"Items per second, {model}", done, across="workers", log_x=log_x, end=figures.number, marks=_marks(queues),
            log_y=wide(y for line in done.values() for y in line.values()),
        ),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (folder / name).write_text(picture, encoding="utf-8")
    return [folder / name for name in pictures]


def _marks(queues: Sequence[Queue]) -> Sequence[int]:
    return [each.workers for each in queues] if len(queues) <= 12 else ()


def _rate(text: str) -> float:
    match = re.fullmatch(r" *([0-9.]+(?:[eE][+-]?[0-9]+)?)(/[smh])? *", text)
    value = _read(match[1]) / _PER[match[2] or ""] if match else 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no rate above 0, such as 100 (a second), 90/m or 5/h")
    return value


def _read(text: str) -> float:
    """-1 for what is no number."""
    try:
        return number(text)
    except ValueError:
        return -1.0


def _cv2(text: str) -> float:
    value = _read(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no variance ÷ mean² (1: exponential, 0: all the same)")
    return value


def _slo(text: str) -> Slo:
    within, at, level = text.partition("@")
    level = level.strip(" ")
    part = round(_read(level.removesuffix("%")) / (100 if level.endswith("%") else 1), 12)
    if not at or not 0 < part < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no wait and percentage (more than 0%, less than 100%): 0.1s@95%")
    return Slo(seconds(within), part)


def _workers(text: str) -> Sequence[int]:
    counts: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r" *([0-9]{1,18})(?:\.\.([0-9]{1,18}))? *", piece)
        if not match:
            raise argparse.ArgumentTypeError(f"'{text}' is no number of workers, and no list such as 1..8 or 1,2,4..9")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise argparse.ArgumentTypeError(f"'{piece}' counts down; did you mean {high}..{low}?")
        if not 1 <= low <= high <= MOST_WORKERS or high - low + len(counts) >= MOST_ROWS:
            limits = f"1 to {MOST_WORKERS:,} workers, in at most {MOST_ROWS:,} rows"
            raise argparse.ArgumentTypeError(f"'{text}' is out of bounds: {limits}")
        counts += range(low, high + 1)
    return sorted(set(counts))
