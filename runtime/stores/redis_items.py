"""Work items in the Redis store: every change is one script (lua/items.lua)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from flatfleet.runtime.stores.backoff import PROVIDER_WAIT, backoff
from flatfleet.runtime.stores.records import WALKED, Claim, Failure, NewItem, State
from flatfleet.runtime.stores.redis_base import CHUNK, Base, decoded, lease_lost, loaded, operation, optional
from flatfleet.runtime.stores.text import CANCELLED, dump, stamp, state_in, storable

WAITS = 8
"""Waits that one `fail` offers: those after the first so many failures; an item with more of them is asked again."""
REMEMBERED = 10_000
"""Workers of which a process remembers that they have asked for items."""


class RedisItems(Base):
    """The part of `contract.Driver` under "Items" that changes them."""

    _asked: set[str]

    async def push(self, pool: str, items: Sequence[NewItem]) -> list[bool]:
        rows = [row for item in items for row in _row(item)]
        added: list[bool] = []
        for start in range(0, len(rows), 7 * CHUNK):
            answer = await self._run("push", pool, operation(), *rows[start : start + 7 * CHUNK])
            added += map(bool, answer)
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
        first = 0 if worker in self._asked else 1
        told = (pool, worker, owner, n, float(lease), limit, first, operation(), *capabilities)

        async def undo(answer: list[bytes]) -> None:
            for claim in _claims(pool, worker, answer):
                await self.release(claim.id, claim.token)

        answer = await self._run("claim", *told, undo=undo)
        if first:
            if len(self._asked) >= REMEMBERED:
                self._asked.clear()
            self._asked.add(worker)
        return _claims(pool, worker, answer)

    async def complete(
        self, item_id: str, result: Any, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> None:
        text = dump(result, f"the result of item {item_id!r}")
        answer = await self._run("complete", item_id, token, text, float(cost), _walked(walked))
        if answer != 1:
            raise lease_lost(item_id, token, answer)

    async def fail(
        self, item_id: str, failure: Failure, token: int | None, cost: float, walked: Sequence[str] = ()
    ) -> State:
        error = (optional(storable(failure.type)), optional(storable(failure.text)))
        how = (int(failure.consume), int(failure.permanent), float(cost), _walked(walked))
        waits: list[float] = []
        first = 0 if failure.retry_after is not None or not failure.consume else 1
        while True:
            if first:
                waits = [backoff(attempt, item_id) for attempt in range(first, first + WAITS)]
            else:
                waits = [float(PROVIDER_WAIT if failure.retry_after is None else failure.retry_after)]
            answer = await self._run("fail", item_id, token, *error, *how, first, *waits)
            if isinstance(answer, int):
                first = answer
            elif len(answer) == 1 and answer[0] != b"none":
                state: State = decoded(answer[0])  # type: ignore[assignment]
                return state
            else:
                raise lease_lost(item_id, token, answer)

    async def release(self, item_id: str, token: int | None, walked: Sequence[str] = ()) -> None:
        answer = await self._run("release", item_id, token, _walked(walked))
        if answer != 1:
            raise lease_lost(item_id, token, answer)

    async def hand_back(
        self, *, pool: str | None = None, worker: str | None = None, owner: str | None = None, crashed: bool
    ) -> int:
        if pool is None and worker is None and owner is None:
            raise ValueError("hand_back without a filter would hand back everything — give pool, worker or owner")
        n = await self._once("hand_back", int(crashed), optional(pool), optional(worker), optional(owner))
        return int(n)

    async def retry(self, pool: str, ids: Sequence[str] | None) -> int:
        n = 0
        if ids is not None:
            for start in range(0, len(ids), CHUNK):
                n += await self._once("retry", pool, *ids[start : start + CHUNK])
            return n
        after = b"-inf"
        while after:
            after, found = await self._run("dead", pool, after, CHUNK)
            if found:
                n += await self._once("retry", pool, *found)
        return n

    async def cancel(self, pool: str, ids: Sequence[str]) -> int:
        n = 0
        for start in range(0, len(ids), CHUNK):
            rows: list[str] = []
            for item_id in ids[start : start + CHUNK]:
                rows += (item_id, await self._state_of(item_id))
            n += await self._once("cancel", pool, *map(optional, CANCELLED), *rows)
        return n

    async def pause(self, pool: str, until: float | None) -> None:
        await self._run("pause", pool, None if until is None else float(until))

    async def _state_of(self, item_id: str) -> str:
        """The state that the item's checkpoint is in, as what its attempt has walked."""
        found = await self._run("load_snapshot", item_id)
        return _walked(state_in(found[1] if found else None))


def _row(item: NewItem) -> tuple[Any, ...]:
    data = f"[{json.dumps(item.key)},{dump(item.data, f'the data of item {item.id!r}')}]"
    limits = (item.max_attempts, item.max_crashes)
    return item.id, data, item.priority, float(item.not_before), needs(item.requires), *limits


def needs(requires: Collection[str]) -> bytes:
    """Requirements as netstrings: the same for the same set."""
    words = sorted(word.encode("utf-8", "surrogatepass") for word in set(requires))
    return b"".join(b"%d:%s" % (len(word), word) for word in words)


def required(text: bytes) -> tuple[str, ...]:
    """The requirements in netstrings."""
    found = []
    while text:
        size, _, text = text.partition(b":")
        found.append(decoded(text[: int(size)]))
        text = text[int(size) :]
    return tuple(found)


def _claims(pool: str, worker: str, answer: list[bytes]) -> list[Claim]:
    now = float(answer[0])
    claims, claimed_at = [], stamp(now)
    for about, text in zip(answer[1::2], answer[2::2], strict=True):
        item_id, token, attempts, crashes, most, created, due = loaded(about)
        key, data = json.loads(text)
        claims.append(
            Claim(
                id=item_id,
                data=data,
                claimed_by=worker,
                attempts=int(attempts or 0),
                max_retries=int(most),
                status="claimed",
                created_at=stamp(float(created)),
                claimed_at=claimed_at,
                pool=pool,
                key=key,
                token=int(token),
                crashes=int(crashes or 0),
                lease_until=float(due),
            )
        )
    return claims


def _walked(walked: Sequence[str]) -> str:
    return dump(list(walked)[-WALKED:], "the states of an attempt") if walked else ""
