"""`schedule`: times of the week at which a fleet has another min, max or target. Cron with five fields, in any time zone."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple
from zoneinfo import ZoneInfo

from flatfleet.runtime.policies.observation import Want
from flatfleet.runtime.policies.settings import Entry, Settings

_DAY = datetime.timedelta(days=1)
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONGEST = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
"""Days of a month that has fewer than 31."""
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))


class Cron(NamedTuple):
    """When it is time: sorted minutes and hours; the days; whether a day has to match one field of days, or both."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def on(self, day: datetime.date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either else of_month and of_week


class Override(NamedTuple):
    """A number that the schedule sets now, and the line that says so."""

    value: int
    why: str


def overrides(entries: Iterable[Entry], at: float) -> dict[str, Override]:
    """What the schedule sets at this time (seconds since the epoch) of min, max and target; of two lines the later one."""
    found = {}
    for entry in entries:
        if active(entry, at):
            for name in ("min", "max", "target"):
                if (value := getattr(entry, name)) is not None:
                    found[name] = Override(value, f"schedule '{entry.cron}' {name} = {value}")
    return found


def bounds(s: Settings, found: dict[str, Override]) -> tuple[int, int]:
    """The fewest and the most workers outside a burst, where the schedule sets what was `found`."""
    if "target" in found:
        return found["target"].value, found["target"].value
    low, high = (found[name].value if name in found else getattr(s, name) for name in ("min", "max"))
    return min(low, high), high


def want(found: dict[str, Override]) -> Want | None:
    """The schedule's target as a want; None where it sets none."""
    return Want("schedule", found["target"].value, found["target"].why) if "target" in found else None


def active(entry: Entry, at: float) -> bool:
    """Whether `at` is within `duration` seconds from one of the entry's moments, the first second included."""
    return _active(entry.cron, entry.duration, entry.zone, int(at // 60)) if entry.duration >= 60 else False


@functools.lru_cache(maxsize=4096)
def _active(text: str, duration: float, name: str, minute: int) -> bool:
    zone, cron = timezone(name), parse(text)
    now = datetime.datetime.fromtimestamp(minute * 60, zone)
    first = datetime.datetime.fromtimestamp(minute * 60 - duration, zone).date()
    day = now.date()
    while day >= first:
        if cron.on(day):
            for hour in reversed(cron.hours):
                for at in reversed(cron.minutes):
                    begin = datetime.datetime.combine(day, datetime.time(hour, at), zone).timestamp()
                    if begin <= minute * 60:
                        return minute * 60 < begin + duration
        day -= _DAY
    return False


@functools.cache
def timezone(name: str) -> datetime.tzinfo:
    """The time zone of an IANA name. Raises ValueError for an unknown one."""
    if name == "UTC":
        return datetime.UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"'{name}' is no known time zone, such as UTC or Europe/Berlin") from error


@functools.cache
def parse(text: str) -> Cron:
    """Read 'minute hour day month weekday'. Raises ValueError that says which field is wrong, and what it may be,
    and for one that never comes.

    A field is `*`, a number, a range `a-b`, either with a step `/n`, or several with commas; months and weekdays also as
    jan, mon. Where day and weekday are both given, one of them is enough, as in every cron.
    """
    parts = text.lower().split()
    if len(parts) != len(_FIELDS):
        raise ValueError(f"'{text}' has {len(parts)} fields; a cron has 5: minute hour day month weekday")
    found = [_field(part, *field) for part, field in zip(parts, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = found
    fits = any(min(days) <= _LONGEST.get(month, 31) for month in months)
    either = not parts[2].startswith("*") and not parts[4].startswith("*")
    if not (fits or either):
        raise ValueError(f"cron '{text}' never comes: none of its months has a day {min(days)}")
    sundays = frozenset(day % 7 for day in weekdays)
    return Cron(tuple(sorted(minutes)), tuple(sorted(hours)), frozenset(days), frozenset(months), sundays, either)


def _field(text: str, name: str, low: int, high: int) -> set[int]:
    names = {"month": {each: n + 1 for n, each in enumerate(_MONTHS)},
             "weekday": {each: n for n, each in enumerate(_WEEKDAYS)}}.get(name, {})  # fmt: skip
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        begin, end = names.get(first, first), names.get(last, last)
        if span == "*":
            begin, end = low, high
        elif not dash:
            end = high if slash else begin
        try:
            numbers = range(_whole(begin), _whole(end) + 1, _whole(step) if slash else 1)
        except ValueError:
            numbers = range(0)
        if not numbers or not low <= numbers[0] <= int(end) <= high:
            also = f", or {next(iter(names))} to {list(names)[-1]}" if names else ""
            raise ValueError(f"{name} '{part}' is none of: *, {low} to {high}{also}, a-b, */n")
        found.update(numbers)
    return found


def _whole(text: str | int) -> int:
    if not re.fullmatch("[0-9]{1,9}", str(text)):
        raise ValueError(f"'{text}' is no whole number")
    return int(text)
