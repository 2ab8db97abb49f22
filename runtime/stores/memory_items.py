"""What changes items in the memory store: push, claim, and every way in which an attempt ends."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Literal

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.backoff import PROVIDER_WAIT, backoff, crash_text
from flatfleet.runtime.stores.memory_metrics import MemoryMetrics
from flatfleet.runtime.stores.memory_pool import Entry, Pool
from flatfleet.runtime.stores.memory_reads import MemoryReads
from flatfleet.runtime.stores.records import WALKED, Attempt, Claim, Failure, NewItem, Outcome, State
from flatfleet.runtime.stores.text import CANCELLED, dump, stamp, state_in, storable


class MemoryItems(MemoryReads, MemoryMetrics):
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
        if n := sum(added):
            self._note(pool, now, "pushed", n)
        return added

    async def claim(
        self,
        pool: str,
        worker: str,
        owner: str,
        n: int,
        lease: float,
        capabilities: Collection[str],
        limit: int | None = None,
    ) -> list[Claim]:
        line, now = self._pools.get(pool), self._clock()
        self._first_ask(pool, worker, now)
        if line is None:
            return []
        line.settle(now)
        for entry in list(line.overdue.values()):
            self._crash(line, entry, now, "its lease ran out")
        if self._pauses and await self.paused(pool) is not None:
            return []
        if limit is not None:
            n = min(n, limit - len(line.claims))
        able = frozenset(capabilities)
        claims: list[Claim] = []
        alone = line.has_suspects() and not self._holds_suspect(owner)
        while len(claims) < n and (chosen := line.take(able, alone)) is not None:
            alone = alone and not chosen.suspect
            chosen.token += 1
            chosen.worker, chosen.owner, chosen.started = worker, owner, now
            line.move(chosen, "claimed", now + lease)
            self._note(pool, now, "claimed", now - chosen.ready_at)
            claims.append(_claim(chosen))
        return claims

    async def complete(
        self, item_id: str, result: Any, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> None:
        text = dump(result, f"the result of item {item_id!r}")
        entry, now = self._held(item_id, token), self._clock()
        _record(entry, now, "completed", cost=cost, walked=walked)
        entry.result, entry.finished, entry.error_type, entry.error = text, now, None, None
        self._snapshots.drop_tree(item_id)
        self._pools[entry.pool].move(entry, "completed")
        self._note(entry.pool, now, "completed", now - (entry.started or now), now - entry.created)

    async def fail(
        self, item_id: str, failure: Failure, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> State:
        entry, now = self._held(item_id, token), self._clock()
        kind, text = storable(failure.type), storable(failure.text)
        entry.attempts += failure.consume
        dead = failure.consume and (failure.permanent or entry.attempts >= entry.max_attempts)
        wait = failure.retry_after
        if wait is None:
            wait = backoff(entry.attempts, entry.id) if failure.consume else PROVIDER_WAIT
        state: State = "dead" if dead else "delayed" if wait > 0 else "ready"
        outcome: Literal["failed", "provider"] = "failed" if failure.consume else "provider"
        _record(entry, now, outcome, error=(kind, text), cost=cost, walked=walked)
        entry.error_type, entry.error = kind, text
        self._snapshots.drop_finished(item_id)
        self._let_go(self._pools[entry.pool], entry, state, now, now + wait)
        self._note(entry.pool, now, outcome, now - (entry.started or now))
        return state

    async def release(self, item_id: str, token: int | None, walked: Sequence[str] = ()) -> None:
        entry = self._held(item_id, token)
        self._release(self._pools[entry.pool], entry, self._clock(), walked)

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
            entry.ready_at = self._clock()
            self._snapshots.drop_finished(item_id)
            line.move(entry, "ready")
        return len(chosen)

    async def cancel(self, pool: str, ids: Sequence[str]) -> int:
        now, named = self._clock(), filter(None, map(self._items.get, dict.fromkeys(ids)))
        chosen = [each for each in named if each.pool == pool and each.state in ("ready", "delayed", "claimed")]
        if chosen:
            self._pools[pool].withdraw({each for each in chosen if each.state != "claimed"})
        for entry in chosen:
            if entry.state == "claimed":
                saved = self._snapshots.rows.get(entry.id)
                _record(entry, now, "cancelled", error=CANCELLED, walked=state_in(saved.body if saved else None))
            entry.error_type, entry.error = CANCELLED
            self._snapshots.drop_tree(entry.id)
            self._let_go(self._pools[pool], entry, "dead", now)
        return len(chosen)

    async def pause(self, pool: str, until: float | None) -> None:
        self._pauses.pop(pool, None)
        if until is not None:
            self._pauses[pool] = until

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
            ready_at=max(now, item.not_before),
        )
        line = self._pools.setdefault(pool, Pool())
        self._items[item.id] = entry
        line.entries.append(entry)
        line.move(entry, "delayed" if item.not_before > now else "ready", item.not_before)

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

    def _release(self, line: Pool, entry: Entry, now: float, walked: Sequence[str] = ()) -> None:
        _record(entry, now, "released", walked=walked)
        self._let_go(line, entry, "ready", now)

    def _let_go(self, line: Pool, entry: Entry, state: State, now: float, due: float = 0.0) -> None:
        entry.worker = entry.owner = None
        entry.finished = now if state == "dead" else None
        entry.ready_at = max(now, due)
        line.move(entry, state, due if state == "delayed" else 0.0)


def _record(
    entry: Entry,
    now: float,
    outcome: Outcome,
    *,
    error: tuple[str | None, str | None] = (None, None),
    cost: float = 0.0,
    walked: Sequence[str] = (),
) -> None:
    started = now if entry.started is None else entry.started
    states = tuple(walked)[-WALKED:] if walked else ()
    entry.history.append(Attempt(entry.token, entry.worker or "", started, now, outcome, *error, cost, states))


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
