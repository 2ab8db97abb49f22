"""Traces: CSV files, also packed (.gz), of arrivals or of arrival rates per window. Read row by row, never as a whole."""

from __future__ import annotations

import contextlib
import csv
import gzip
import math
import random
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flatfleet.runtime.errors import SourceError, did_you_mean
from flatfleet.runtime.replay.expressions import Expression, parse

ARRIVALS = ("arrival_s",)
RATES = ("window_start_s", "rate_per_s")
MOST = 50_000_000
FIRST, LAST = -6e10, 2.5e11
"""Moments in seconds since the epoch that have a date: from about the year 70 to the year 9892."""

Request = tuple[float, float]
"""When it arrives and how long it takes, s."""
Line = tuple[int, dict[str, float]]


@dataclass(frozen=True)
class Trace:
    """A trace in memory, 16 bytes a request: sorted arrivals and service times, s; from `start` to `end`, s."""

    name: str
    arrivals: Sequence[float]
    services: Sequence[float]
    start: float
    end: float
    gap: tuple[float, int] = (0.0, 0)
    """The longest time between two rows, s, and the line that ends it."""

    def __len__(self) -> int:
        return len(self.arrivals)

    def requests(self) -> Iterator[Request]:
        return zip(self.arrivals, self.services, strict=True)

    @property
    def work(self) -> float:
        """All service times together, s."""
        return math.fsum(self.services)


def read(path: str | Path, service: str | None = None, scale: float = 1.0, seed: int = 0) -> Trace:
    """Read a whole trace. `service` is an expression in seconds (default: the column `service`); see `requests`.

    Raises SourceError, with the line, for a file or a row that is none of a trace; UsageError for the expression.
    """
    arrivals, services = array("d"), array("d")
    span = [math.inf, -math.inf, 0.0, 0.0]
    for arrival, takes in requests(path, service, scale, seed, span):
        arrivals.append(arrival)
        services.append(takes)
        if len(arrivals) > MOST:
            raise SourceError(f"{path} has more than {MOST:,} requests; a smaller --scale takes a part of them")
    if not arrivals:
        raise SourceError(f"{path} has no request in it" + (f" at a scale of {scale:g}" if scale < 1 else ""))
    return Trace(str(path), arrivals, services, span[0], max(span[1], arrivals[-1]), (span[2], int(span[3])))


def requests(
    path: str | Path, service: str | None = None, scale: float = 1.0, seed: int = 0, span: list[float] | None = None
) -> Iterator[Request]:
    """The requests of a trace, one by one in the order of their arrival. The same seed gives the same requests.

    A trace has the column arrival_s (seconds, not falling), or window_start_s and rate_per_s: then arrivals are Poisson
    within a window, which lasts until the next begins, the last as long as the one before it. `scale` multiplies the
    number of requests: of arrivals, each is taken so many times on average, without changing when. `span` receives the
    first and the last moment of the trace, the longest time between two rows, and the line that ends it.
    """
    given, span = parse(service) if service is not None else None, span if span is not None else [0.0] * 4
    with _opened(Path(path)) as file:
        lines, heads = _rows(file, path)
        takes = _takes(given, heads, path)
        needed = takes.columns | set(ARRIVALS if ARRIVALS[0] in heads else RATES)
        rows = _numbers(lines, heads, needed, path)
        when, draw = random.Random(f"{seed} arrivals"), random.Random(f"{seed} services")
        found = (
            _arriving(rows, scale, when, span, path)
            if ARRIVALS[0] in heads
            else _poisson(rows, scale, when, span, path)
        )
        for line, at, row in found:
            yield at, _checked(takes, row, draw, f"{path}:{line}")


# -- the file ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """A text file, packed or not; what goes wrong in it is a SourceError."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"cannot read {path}: {error}") from error


def _rows(file: IO[str], path: str | Path) -> tuple[Iterator[tuple[int, list[str]]], dict[str, int]]:
    reader = csv.reader(file)
    first = next(reader, None)
    if first is None:
        raise SourceError(f"{path} is empty; a trace begins with the names of its columns")
    heads = {name.strip(): number for number, name in enumerate(first)}
    if ARRIVALS[0] not in heads and not set(RATES) <= heads.keys():
        known = f"its columns are {', '.join(heads)}"
        raise SourceError(f"{path} is no trace: it needs arrival_s, or window_start_s and rate_per_s; {known}")
    return ((reader.line_num, row) for row in reader if row), heads


def _takes(given: Expression | None, heads: Iterable[str], path: str | Path) -> Expression:
    heads = [each for each in heads if each.isidentifier()]
    if given is None:
        if "service" not in heads:
            raise SourceError(
                f"{path} has no column 'service': say how long a request takes, "
                f"as in --service '0.5 + 0.02*output_tokens' (its columns are {', '.join(heads)})"
            )
        return parse("service")
    for name in sorted(given.columns):
        if name not in heads:
            raise SourceError(f"--service: unknown column '{name}' in {path}{did_you_mean(name, heads)}")
    return given


def _numbers(
    lines: Iterator[tuple[int, list[str]]], heads: dict[str, int], needed: Iterable[str], path: str | Path
) -> Iterator[Line]:
    places = [(name, heads[name]) for name in sorted(needed)]
    for line, row in lines:
        try:
            found = {name: float(row[place]) for name, place in places}
        except (IndexError, ValueError):
            name, text = next(_wrong(places, row))
            raise SourceError(f"{path}:{line}: {name} is '{text}', which is no number") from None
        yield line, found


def _wrong(places: Iterable[tuple[str, int]], row: list[str]) -> Iterator[tuple[str, str]]:
    for name, place in places:
        text = row[place] if place < len(row) else ""
        try:
            float(text)
        except ValueError:
            yield name, text


# -- arrivals ----------------------------------------------------------------------------------------------------------

Arrival = tuple[int, float, dict[str, float]]
_NO_MOMENT = "is no moment in seconds; are these milliseconds?"


def _arriving(
    rows: Iterator[Line], scale: float, rng: random.Random, span: list[float], path: str | Path
) -> Iterator[Arrival]:
    last, whole, part = -math.inf, int(scale), scale - int(scale)
    for line, row in rows:
        at = row["arrival_s"]
        if not (last <= at and FIRST <= at <= LAST):
            why = "is before the row above; sort the trace by it" if FIRST <= at < last else _NO_MOMENT
            raise SourceError(f"{path}:{line}: arrival_s is {at:g}, which {why}")
        if at - last > span[2] and last > -math.inf:
            span[2:] = at - last, line
        span[0], span[1], last = min(span[0], at), at, at
        for _ in range(whole + (rng.random() < part if part else 0)):
            yield line, at, row


def _poisson(
    rows: Iterator[Line], scale: float, rng: random.Random, span: list[float], path: str | Path
) -> Iterator[Arrival]:
    """Exponential gaps within each window; what is left of a gap at its end is drawn anew, which Poisson does not mind."""
    current = next(rows, None)
    length = 0.0
    while current is not None:
        line, row = current
        current = next(rows, None)
        at, rate = row["window_start_s"], row["rate_per_s"] * scale
        if current is not None:
            length = current[1]["window_start_s"] - at
        if math.isfinite(at) and not FIRST <= at <= LAST:
            raise SourceError(f"{path}:{line}: window_start_s is {at:g}, which {_NO_MOMENT}")
        if not (math.isfinite(at) and 0 <= rate < math.inf):
            raise SourceError(
                f"{path}:{line}: a window needs a start and a rate of at least 0, got {at:g} and {rate:g}"
            )
        if length > span[2] and current is not None:
            span[2:] = length, current[0]
        if not 0 < length < math.inf:
            where = f"{path}:{current[0]}" if current else f"{path}:{line}"
            raise SourceError(f"{where}: a window begins after the one above it, and a trace of rates has at least two")
        end = at + length
        span[0], span[1] = min(span[0], at), end
        if rate > 0:
            at += rng.expovariate(rate)
            while at < end:
                yield line, at, row
                at += rng.expovariate(rate)


def _checked(takes: Expression, row: dict[str, float], rng: random.Random, where: str) -> float:
    try:
        value = takes.value(row, rng)
    except (ZeroDivisionError, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise SourceError(
            f"{where}: '{takes.text}' comes to {value:g} s there; a service time is a number of at least 0"
        )
    return value
