"""Spans and moments of time, as people type and read them: 90s, 10m, 2h, 1d."""

from __future__ import annotations

import argparse
import math
import time
from datetime import datetime

from flatfleet.runtime.policies.settings import number

DAY = 86_400.0
LONGEST = 36_500 * DAY
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": DAY}


def seconds(text: str) -> float:
    """The type of a flag that takes a span of time, as seconds: a number, or one with ms, s, m, h or d behind it."""
    digits = text.strip(" ")
    unit = next((unit for unit in ("ms", *_UNITS) if digits.endswith(unit)), "")
    try:
        value = number(digits.removesuffix(unit).rstrip(" ")) * _UNITS.get(unit, 0.001 if unit else 1.0)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds, and no span such as 90s, 10m, 2h or 1d")
    if value > LONGEST:
        raise argparse.ArgumentTypeError(f"'{text}' is too long: at most {LONGEST / DAY:.0f}d")
    return value


def add_for(parser: argparse.ArgumentParser) -> None:
    """Add `--for SPAN`, how long a pause lasts: `span` in seconds, None until somebody ends it."""
    parser.add_argument(
        "--for",
        dest="span",
        type=seconds,
        metavar="SPAN",
        help="for so long: 90s, 10m, 2h, 1d (default: until it is resumed)",
    )


def span(seconds: float) -> str:
    """A duration in words of at most two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def took(seconds: float) -> str:
    """A duration that may be short."""
    return f"{max(0.0, seconds):.2f}s" if seconds < 10 else span(seconds)


def until(at: float) -> str:
    """Until when a pool is paused."""
    return "it is resumed" if math.isinf(at) else f"{moment(at)} (in {span(max(0.0, at - time.time()))})"


def moment(at: float) -> str:
    """A time in seconds since the epoch, by the local clock."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
