"""Recorded decisions, decided again: the same code on what was seen then, and what comes out differently."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatfleet.runtime.errors import SourceError
from flatfleet.runtime.policies import naming
from flatfleet.runtime.policies.deciding import Decision, decide
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import Settings
from flatfleet.runtime.replay.traces import FIRST, LAST

COMPARED = ("desired", "outcome", "raw", "bound_by")
"""What two decisions are compared by. Texts may change from version to version."""
MOST = 1e15
"""What no number of an observation is above."""
_PAIRS = ("up", "down", "changes")
_BROKEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Difference:
    """A decision that came out differently: its line in the log, and {what: (then, now)}."""

    line: int
    at: float
    changed: dict[str, tuple[Any, Any]]
    reason: str

    def data(self) -> dict[str, Any]:
        changed = {name: {"then": then, "now": now} for name, (then, now) in self.changed.items()}
        return {"line": self.line, "at": self.at, "changed": changed, "reason": self.reason}


def is_log(path: str | Path) -> bool:
    """Whether a file is named as a log of decisions: .jsonl, also packed."""
    return str(path).removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def read(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The records of a log, each with its line. Raises SourceError, with the line, for what is no decision, and
    for a log that has none."""
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        empty = True
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    empty = False
                    yield number, _record(line, f"{path}:{number}")
        if empty:
            raise SourceError(f"{path} has no decision in it; a log has one a line")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error


def again(
    records: Iterable[tuple[int, Mapping[str, Any]]], settings: Settings
) -> Iterator[tuple[Decision, Difference | None]]:
    """Decide each record again, in order. Yields each decision, with how it differs from the recorded one.

    The state goes on from record to record, and begins empty, unless a record brings its own as `state`: the first
    decisions of a log that does not reach back to the fleet's beginning may differ by their windows.
    """
    state: Mapping[str, Any] = {}
    brought = 0
    for line, record in records:
        if record.get("state") is not None:
            state, brought = record["state"], line
        try:
            decision, state = decide(Observation.of(record["seen"]), settings, state)
            now = decision.data()
        except _BROKEN as error:
            if not brought:
                raise
            raise SourceError(
                f"line {line} cannot be decided again: the 'state' of line {brought} is none that a decision leaves "
                f"({type(error).__name__}: {error})"
            ) from error
        changed = {name: (record[name], now[name]) for name in COMPARED if name in record and record[name] != now[name]}
        yield decision, Difference(line, decision.seen.at, changed, now["reason"]) if changed else None


def others(records: Iterable[tuple[int, Mapping[str, Any]]], settings: Settings) -> dict[str, int]:
    """Policies with other settings by which records were decided, with how many; a record that names none is left out."""
    mine = naming.digest(settings)
    labels = (record.get("policy") for _, record in records)
    return dict(Counter(str(label) for label in labels if naming.digest_of(label) not in (None, mine)))


def _record(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: no JSON: {error}") from None
    seen = record.get("seen") if isinstance(record, dict) else None
    if not isinstance(seen, dict) or seen.get("at") is None:
        raise SourceError(f"{where}: no decision: it needs 'seen' with 'at', as the log of an autoscaler has it")
    for name, value in seen.items():
        low, high = (FIRST, LAST) if name in ("at", "measured") else (0, MOST)
        if value is not None and not _number(value, low, high):
            raise SourceError(f"{where}: seen.{name} must be a number from {low:g} to {high:g}, got {_shown(value)}")
    if (state := record.get("state")) is not None and (said := _state(state)):
        raise SourceError(f"{where}: {said}")
    for name in COMPARED:
        if isinstance(record.get(name), float) and not math.isfinite(record[name]):
            raise SourceError(f"{where}: {name} must be a finite number, got {record[name]}")
    return record


def _state(state: Any) -> str:
    """What is wrong with the shape of a state; nothing where it is that of one that a decision leaves."""
    if not isinstance(state, dict):
        return f"state must be a mapping, got {_shown(state)}"
    policies = state.get("policies", {})
    if not isinstance(policies, dict) or not all(isinstance(each, dict) for each in policies.values()):
        return f"state.policies must be a mapping of mappings, got {_shown(policies)}"
    for name in _PAIRS:
        found = state.get(name, [])
        if not isinstance(found, list) or not all(isinstance(each, list) and len(each) == 2 for each in found):
            return f"state.{name} must be a list of pairs of a moment and a number, got {_shown(found)}"
    place, value = next(_unfit("state", state), ("", None))
    return f"{place} must be a finite number, got {_shown(value)}" if place else ""


def _unfit(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _unfit(f"{place}.{name}", each)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _unfit(f"{place}[{number}]", each)
    elif isinstance(value, int | float) and not -1e100 <= value <= 1e100:
        yield place, value


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
