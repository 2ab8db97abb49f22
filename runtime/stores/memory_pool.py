"""One pool in memory: heaps for what can run, what is delayed and whose lease ends next, and the counters over them."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from flatfleet.runtime.stores.records import SUSPECT, Attempt, Counts, State

WAITS = ("ready", "delayed")


@dataclass(slots=True, eq=False)
class Entry:
    """An item as the memory store holds it; `data` and `result` are JSON text, so that nobody else can change them."""

    id: str
    pool: str
    key: str
    data: str
    priority: int
    sequence: int
    needs: frozenset[str]
    max_attempts: int
    max_crashes: int
    created: float
    state: State | None = None
    due: float = 0.0
    result: str = "null"
    token: int = 0
    attempts: int = 0
    crashes: int = 0
    worker: str | None = None
    owner: str | None = None
    error_type: str | None = None
    error: str | None = None
    started: float | None = None
    finished: float | None = None
    ready_at: float = 0.0
    """Since when it waits, or will."""
    history: list[Attempt] = field(default_factory=list)

    @property
    def suspect(self) -> bool:
        return self.crashes >= SUSPECT


class Pool:
    """The items of one pool by state.

    A ready entry stands once in the heap of its `requires` and of whether it is a suspect, a delayed one once in the
    delayed heap or, when it is due, in the ready one. The lease heap is lazy: an entry that was renewed or ended leaves
    a stale row behind, which is skipped when it comes up and swept when the stale ones outnumber the claims.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.claims: dict[str, Entry] = {}
        self.overdue: dict[str, Entry] = {}
        self.dead: dict[str, Entry] = {}
        self._ready: dict[tuple[frozenset[str], bool], list[tuple[int, int, Entry]]] = {}
        self._delayed: list[tuple[float, int, Entry]] = []
        self._leases: list[tuple[float, int, Entry]] = []
        self._ticks = itertools.count()
        self._tally: Counter[State] = Counter()
        self._needs: Counter[frozenset[str]] = Counter()
        self._ripe = 0

    def move(self, entry: Entry, state: State, due: float = 0.0) -> None:
        """Take the entry out of its present state's books and enter it into those of `state`."""
        self._leave(entry)
        entry.state, entry.due = state, due
        self._tally[state] += 1
        if entry.needs and state in WAITS:
            self._needs[entry.needs] += 1
        if state == "ready":
            self._line_up(entry)
        elif state == "delayed":
            heapq.heappush(self._delayed, (due, next(self._ticks), entry))
        elif state == "claimed":
            self.claims[entry.id] = entry
            self._watch(entry)
        elif state == "dead":
            self.dead[entry.id] = entry

    def renew(self, entry: Entry, until: float) -> None:
        """Let the lease of a claimed entry end at `until`."""
        entry.due = until
        self.overdue.pop(entry.id, None)
        self._watch(entry)

    def settle(self, now: float) -> None:
        """Line up what is due and list the claims whose lease has run out, without changing any item."""
        while self._delayed and self._delayed[0][0] <= now:
            self._line_up(heapq.heappop(self._delayed)[2])
            self._ripe += 1
        while self._leases and self._leases[0][0] <= now:
            until, _, entry = heapq.heappop(self._leases)
            if entry.state == "claimed" and entry.due == until:
                self.overdue[entry.id] = entry

    def has_suspects(self) -> bool:
        """True if a suspect is ready."""
        return any(suspect for _, suspect in self._ready)

    def take(self, able: frozenset[str], suspects: bool) -> Entry | None:
        """Remove and return the entry that is next in line among those whose needs are met; the caller moves it."""
        lines = [line for (needs, suspect), line in self._ready.items() if needs <= able and suspect <= suspects]
        if not lines:
            return None
        entry = heapq.heappop(line := min(lines, key=itemgetter(0)))[2]
        if not line:
            del self._ready[entry.needs, entry.suspect]
        return entry

    def withdraw(self, entries: Set[Entry]) -> None:
        """Take ready and delayed entries out of the lines that they stand in; the caller moves them."""
        for kind, line in list(self._ready.items()):
            self._ready[kind] = _without(line, entries)
            if not self._ready[kind]:
                del self._ready[kind]
        before, self._delayed = len(self._delayed), _without(self._delayed, entries)
        self._ripe += before - len(self._delayed)

    def counts(self, now: float) -> Counts:
        self.settle(now)
        return Counts(
            waiting=self._tally["ready"] + self._ripe,
            delayed=self._tally["delayed"] - self._ripe,
            claimed=len(self.claims) - len(self.overdue),
            expired=len(self.overdue),
            completed=self._tally["completed"],
            dead=len(self.dead),
        )

    def requirements(self) -> dict[tuple[str, ...], int]:
        """How many entries that wait need each set of capabilities."""
        return {tuple(sorted(needs)): n for needs, n in self._needs.items()}

    def oldest(self, now: float, look: int) -> float | None:
        """Since when the entry waits that has waited longest, among the first `look` of each line; None if none waits."""
        self.settle(now)
        heads = [_first(line, look) for line in self._ready.values()]
        waiting = [entry.ready_at for head in heads for _, _, entry in head]
        return min([*waiting, *(entry.due for entry in self.overdue.values())], default=None)

    def next_due(self, now: float) -> float | None:
        """Return when the next delayed entry ripens or the next lease ends; an expired claim's end lies in the past."""
        self.settle(now)
        while self._leases and (self._leases[0][2].state != "claimed" or self._leases[0][2].due != self._leases[0][0]):
            heapq.heappop(self._leases)
        heads = [heap[0][0] for heap in (self._delayed, self._leases) if heap]
        return min([*heads, *(entry.due for entry in self.overdue.values())], default=None)

    def _leave(self, entry: Entry) -> None:
        if entry.state is None:
            return
        self._tally[entry.state] -= 1
        if entry.needs and entry.state in WAITS:
            self._needs[entry.needs] -= 1
            if not self._needs[entry.needs]:
                del self._needs[entry.needs]
        if entry.state == "delayed":
            self._ripe -= 1
        elif entry.state == "claimed":
            del self.claims[entry.id]
            self.overdue.pop(entry.id, None)
        elif entry.state == "dead":
            del self.dead[entry.id]

    def _line_up(self, entry: Entry) -> None:
        line = self._ready.setdefault((entry.needs, entry.suspect), [])
        heapq.heappush(line, (-entry.priority, entry.sequence, entry))

    def _watch(self, entry: Entry) -> None:
        heapq.heappush(self._leases, (entry.due, next(self._ticks), entry))
        if len(self._leases) > 2 * len(self.claims) + 64:
            self._leases = [(claim.due, next(self._ticks), claim) for claim in self.claims.values()]
            heapq.heapify(self._leases)


def _first(heap: list[Any], n: int) -> list[Any]:
    """The `n` smallest of a heap, which stays as it is; costs by `n`, not by the heap."""
    found: list[Any] = []
    edge = [(heap[0], 0)] if heap else []
    while edge and len(found) < n:
        row, at = heapq.heappop(edge)
        found.append(row)
        for child in (2 * at + 1, 2 * at + 2):
            if child < len(heap):
                heapq.heappush(edge, (heap[child], child))
    return found


def _without(heap: list[Any], entries: Set[Entry]) -> list[Any]:
    left = [row for row in heap if row[-1] not in entries]
    heapq.heapify(left)
    return left
