"""Recorded decisions, decided again: the same code on what was seen then, and what comes out differently."""

from __future__ import annotations

import gzip
import json
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

COMPARED = ("desired", "outcome", "raw", "bound_by")
"""What two decisions are compared by. Texts may change from version to version."""


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
    """The records of a log, each with its line. Raises SourceError, with the line, for what is no decision."""
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _record(line, f"{path}:{number}")
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
    for line, record in records:
        before = record.get("state")
        decision, state = decide(
            Observation.of(record["seen"]), settings, before if isinstance(before, Mapping) else state
        )
        now = decision.data()
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
    if not isinstance(seen, dict) or not _number(seen.get("at")):
        raise SourceError(f"{where}: no decision: it needs 'seen' with 'at', as the log of an autoscaler has it")
    wrong = [name for name, value in seen.items() if value is not None and not _number(value)]
    if wrong:
        raise SourceError(f"{where}: seen.{wrong[0]} must be a number, got {json.dumps(seen[wrong[0]])[:80]}")
    return record


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
