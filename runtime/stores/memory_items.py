"""The item operations of the memory store: push, claim, and every way in which an attempt ends."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.backoff import PROVIDER_WAIT, backoff, crash_text
from flatfleet.runtime.stores.contract import Attempt, Claim, Counts, Failure, Item, NewItem, Outcome, State
from flatfleet.runtime.stores.memory_pool import Entry, Pool
from flatfleet.runtime.stores.memory_tables import Tables
from flatfleet.runtime.stores.text import dump, stamp, storable


class MemoryItems(Tables):
    """The part of `contract.Driver` under "Items"; no operation awaits anything, so each is one atomic step."""

    async def push(self, pool: str, items: Sequence[NewItem]) -> list[bool]:
        now = self._clock()
        texts = [dump(item.data, f"the data of item {item.id!r}") for item in items]
        added = []
        for item, text in zip(items, texts, strict=True):
            new = item.id not in self._items
            added.append(new)
            if new:
                self._add(pool, item, text, now)
        return added

    async def claim(
        self, pool: str, worker: str, owner: str, n: int, lease: float, capabilities: Collection[str]
    ) -> list[Claim]:
        line, now = self._pools.get(pool), self._clock()
        if line is None:
            return []
        line.settle(now)
        for entry in list(line.overdue.values()):
            self._crash(line, entry, now, "its lease ran out")
        able = frozenset(capabilities)
        claims: list[Claim] = []
        alone = line.has_suspects() and not self._holds_suspect(owner)
        while len(claims) < n and (chosen := line.take(able, alone)) is not None:
            alone = alone and not chosen.suspect
            chosen.token += 1
            chosen.worker, chosen.owner, chosen.started = worker, owner, now
            line.move(chosen, "claimed", now + lease)
            claims.append(_claim(chosen))
        return claims

    async def complete(self, item_id: str, result: Any, token: int | None, cost: float) -> None:
        text = dump(result, f"the result of item {item_id!r}")
        entry, now = self._held(item_id, token), self._clock()
        _record(entry, now, "completed", cost=cost)
        entry.result, entry.finished, entry.error_type, entry.error = text, now, None, None
        self._snapshots.drop_tree(item_id)
        self._pools[entry.pool].move(entry, "completed")

    async def fail(self, item_id: str, failure: Failure, token: int | None, cost: float) -> State:
        entry, now = self._held(item_id, token), self._clock()
        kind, text = storable(failure.type), storable(failure.text)
        entry.attempts += failure.consume
        dead = failure.consume and (failure.permanent or entry.attempts >= entry.max_attempts)
        wait = failure.retry_after
        if wait is None:
            wait = backoff(entry.attempts, entry.id) if failure.consume else PROVIDER_WAIT
        state: State = "dead" if dead else "delayed" if wait > 0 else "ready"
        _record(entry, now, "failed" if failure.consume else "provider", error=(kind, text), cost=cost)
        entry.error_type, entry.error = kind, text
        self._snapshots.drop_finished(item_id)
        self._let_go(self._pools[entry.pool], entry, state, now, now + wait)
        return state

    async def release(self, item_id: str, token: int | None) -> None:
        entry = self._held(item_id, token)
        self._release(self._pools[entry.pool], entry, self._clock())

    async def hand_back(
        self, *, pool: str | None = None, worker: str | None = None, owner: str | None = None, crashed: bool
    ) -> int:
        if pool is None and worker is None and owner is None:
            raise ValueError("hand_back without a filter would hand back everything — give pool, worker or owner")
        lines = self._pools.values() if pool is None else filter(None, [self._pools.get(pool)])
        held = [(line, entry) for line in lines for entry in line.claims.values()]
        held = [(line, e) for line, e in held if worker in (None, e.worker) and owner in (None, e.owner)]
        now = self._clock()
        for line, entry in held:
            if crashed:
                self._crash(line, entry, now, "it died")
            else:
                self._release(line, entry, now)
        return len(held)

    async def retry(self, pool: str, ids: Sequence[str] | None) -> int:
        line = self._pools.get(pool)
        if line is None:
            return 0
        chosen = list(line.dead) if ids is None else [item_id for item_id in dict.fromkeys(ids) if item_id in line.dead]
        for item_id in chosen:
            entry = line.dead[item_id]
            entry.attempts = entry.crashes = 0
            entry.error_type = entry.error = None
            entry.finished = None
            self._snapshots.drop_finished(item_id)
            line.move(entry, "ready")
        return len(chosen)

    async def item(self, item_id: str) -> Item | None:
        entry = self._items.get(item_id)
        return None if entry is None else _item(entry)

    async def items(self, pool: str, state: State | None, limit: int, after: str | None) -> list[Item]:
        start = -1 if after is None else self._entry(after).sequence
        entries = self._pools[pool].entries if pool in self._pools else []
        rest = islice(entries, bisect_right(entries, start, key=attrgetter("sequence")), None)
        return [_item(entry) for entry in islice((e for e in rest if state in (None, e.state)), limit)]

    async def attempts(self, item_id: str) -> list[Attempt]:
        entry = self._items.get(item_id)
        return [] if entry is None else list(entry.history)

    async def counts(self, pool: str) -> Counts:
        return self._pools[pool].counts(self._clock()) if pool in self._pools else Counts()

    async def pools(self) -> list[str]:
        return sorted(self._pools)

    async def errors(self, pool: str) -> dict[str, int]:
        dead = self._pools[pool].dead.values() if pool in self._pools else []
        return dict(Counter(entry.error_type or "unknown" for entry in dead).most_common())

    async def next_due(self, pool: str) -> float | None:
        return self._pools[pool].next_due(self._clock()) if pool in self._pools else None

    def _add(self, pool: str, item: NewItem, text: str, now: float) -> None:
        entry = Entry(
            id=item.id,
            pool=pool,
            key=item.key,
            data=text,
            priority=item.priority,
            sequence=next(self._sequence),
            needs=frozenset(item.requires),
            max_attempts=item.max_attempts,
            max_crashes=item.max_crashes,
            created=now,
        )
        line = self._pools.setdefault(pool, Pool())
        self._items[item.id] = entry
        line.entries.append(entry)
        line.move(entry, "delayed" if item.not_before > now else "ready", item.not_before)

    def _entry(self, item_id: str) -> Entry:
        try:
            return self._items[item_id]
        except KeyError:
            raise KeyError(f"no item {item_id!r} in this store") from None

    def _held(self, item_id: str, token: int | None) -> Entry:
        """Return the entry if it is claimed, and under this token if one is given; raise LeaseLost otherwise."""
        entry = self._entry(item_id)
        if entry.state == "claimed" and token in (None, entry.token):
            return entry
        held = f"claimed by worker {entry.worker!r}" if entry.state == "claimed" else str(entry.state)
        raise LeaseLost(
            f"item {item_id!r}: token {token} does not hold it — it is {held}, its newest token is {entry.token}; "
            "nothing was changed"
        )

    def _holds_suspect(self, owner: str) -> bool:
        return any(e.suspect and e.owner == owner for line in self._pools.values() for e in line.claims.values())

    def _crash(self, line: Pool, entry: Entry, now: float, why: str) -> None:
        entry.crashes += 1
        kind, text = "WorkerCrashed", crash_text(entry.crashes, why)
        _record(entry, now, "crashed", error=(kind, text))
        entry.error_type, entry.error = kind, text
        self._let_go(line, entry, "dead" if entry.crashes >= entry.max_crashes else "ready", now)

    def _release(self, line: Pool, entry: Entry, now: float) -> None:
        _record(entry, now, "released")
        self._let_go(line, entry, "ready", now)

    def _let_go(self, line: Pool, entry: Entry, state: State, now: float, due: float = 0.0) -> None:
        entry.worker = entry.owner = None
        entry.finished = now if state == "dead" else None
        line.move(entry, state, due if state == "delayed" else 0.0)


def _record(
    entry: Entry,
    now: float,
    outcome: Outcome,
    *,
    error: tuple[str | None, str | None] = (None, None),
    cost: float = 0.0,
) -> None:
    started = now if entry.started is None else entry.started
    entry.history.append(Attempt(entry.token, entry.worker or "", started, now, outcome, *error, cost))


def _claim(entry: Entry) -> Claim:
    return Claim(
        id=entry.id,
        data=json.loads(entry.data),
        claimed_by=entry.worker,
        attempts=entry.attempts,
        max_retries=entry.max_attempts,
        status="claimed",
        created_at=stamp(entry.created),
        claimed_at=stamp(entry.started or 0.0),
        pool=entry.pool,
        key=entry.key,
        token=entry.token,
        crashes=entry.crashes,
        lease_until=entry.due,
    )


def _item(entry: Entry) -> Item:
    return Item(
        id=entry.id,
        pool=entry.pool,
        key=entry.key,
        state=entry.state or "ready",
        data=json.loads(entry.data),
        result=json.loads(entry.result),
        priority=entry.priority,
        due=entry.due,
        token=entry.token,
        attempts=entry.attempts,
        crashes=entry.crashes,
        max_attempts=entry.max_attempts,
        max_crashes=entry.max_crashes,
        requires=tuple(sorted(entry.needs)),
        worker=entry.worker,
        owner=entry.owner,
        error_type=entry.error_type,
        error=entry.error,
        created=entry.created,
        started=entry.started,
        finished=entry.finished,
    )
