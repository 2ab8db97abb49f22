"""What is asked about items in the Redis store: nothing here changes any of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

from flatfleet.runtime.stores.buckets import Activity, Bucket
from flatfleet.runtime.stores.records import Attempt, Counts, Item, State
from flatfleet.runtime.stores.redis_base import Base, decoded, loaded, maybe, moment, number, pairs, told
from flatfleet.runtime.stores.redis_items import required
from flatfleet.runtime.stores.redis_scripts import ATTEMPT
from flatfleet.runtime.stores.text import dump

_FIELDS = (
    *(
        "pool",
        "state",
        "priority",
        "due",
        "token",
        "attempts",
        "crashes",
        "max_attempts",
        "max_crashes",
        "needs",
        "worker",
    ),
    *("owner", "error_type", "error", "created", "started", "finished"),
)
"""What the script answers with of an item."""
_SUMS = ("gap", "gap2", "service", "service2", "response", "wait")


class RedisReads(Base):
    """The questions of `contract.Driver` under "Items"."""

    async def paused(self, pool: str) -> float | None:
        return moment(await self._run("paused", pool))

    async def item(self, item_id: str) -> Item | None:
        found = await self._run("item", item_id)
        return _item(found) if found else None

    async def items(self, pool: str, state: State | None, limit: int, after: str | None) -> list[Item]:
        """Looks at 500 items at a time, so that one of a rare state among many does not hold up the others."""
        found: list[Item] = []
        start: Any = "-inf" if after is None else f"={after}"
        while start and len(found) < limit:
            page = await self._run("items", pool, state, start, min(500, max(limit, 1)))
            if page is None:
                raise KeyError(f"no item {after!r} in this store")
            start = page[0]
            found += map(_item, page[1:])
        return found[: max(0, limit)]

    async def attempts(self, item_id: str) -> list[Attempt]:
        ended, last = await self._run("attempts", item_id)
        found = [_attempt(ended[at : at + ATTEMPT]) for at in range(0, len(ended), ATTEMPT)]
        state, token, worker, started, finished, cost, walked = last
        if state == b"completed":
            found.append(_attempt([token, worker, started, finished, b"completed", b"", b"", cost, walked]))
        return found

    async def counts(self, pool: str) -> Counts:
        return Counts(*await self._run("counts", pool))

    async def pools(self) -> list[str]:
        return sorted(map(decoded, await self._run("pools")))

    async def errors(self, pool: str) -> dict[str, int]:
        found = pairs(await self._run("errors", pool))
        return dict(Counter({name[1:]: int(n) for name, n in found.items()}).most_common())

    async def requirements(self, pool: str) -> dict[tuple[str, ...], int]:
        """How many items that wait (ready or delayed) require each set of capabilities; costs by the sets."""
        answer = await self._run("requirements", pool)
        found: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for text, n in zip(answer[::2], answer[1::2], strict=True):
            found[required(text)] += int(n)
        return dict(found)

    async def next_due(self, pool: str) -> float | None:
        return moment(await self._run("next_due", pool))

    async def metrics(self, pool: str, since: float, most: int) -> Activity:
        name = dump(pool, "the name of a pool")
        at, counts, seconds, last, oldest, crew = await self._run("metrics", pool, int(since), max(0, most), name)
        arrival, end, startup = map(moment, last)
        return Activity(
            at=float(at),
            counts=Counts(*counts),
            buckets=tuple(map(_bucket, seconds[::2], seconds[1::2])),
            last_arrival=arrival,
            last_end=end,
            startup=startup,
            oldest=moment(oldest),
            crew={decoded(owner): (live, starting, draining) for owner, live, starting, draining in crew},
        )


def _item(answer: list[bytes]) -> Item:
    item_id, about, text, result = answer
    found = dict(zip(_FIELDS, loaded(about), strict=True))
    key, data = json.loads(text)
    required_text, worker, owner = (found[name] or "" for name in ("needs", "worker", "owner"))
    return Item(
        id=decoded(item_id),
        pool=found["pool"],
        key=key,
        state=found["state"],
        data=data,
        result=json.loads(result) if result is not None else None,
        priority=int(found["priority"]),
        due=float(found["due"]),
        token=int(found["token"] or 0),
        attempts=int(found["attempts"] or 0),
        crashes=int(found["crashes"] or 0),
        max_attempts=int(found["max_attempts"]),
        max_crashes=int(found["max_crashes"]),
        requires=required(required_text.encode("utf-8", "surrogatepass")),
        worker=worker or None,
        owner=owner or None,
        error_type=told(found["error_type"]),
        error=told(found["error"]),
        created=float(found["created"]),
        started=moment(found["started"]),
        finished=moment(found["finished"]),
    )


def _attempt(row: list[bytes]) -> Attempt:
    token, worker, started, ended, outcome, error_type, error, cost, walked = row
    return Attempt(
        token=int(token),
        worker=decoded(worker),
        started=float(started),
        ended=float(ended),
        outcome=decoded(outcome),  # type: ignore[arg-type]
        error_type=told(maybe(error_type)),
        error=told(maybe(error)),
        cost=number(cost),
        walked=tuple(json.loads(walked)) if walked else (),
    )


def _bucket(second: bytes, fields: list[bytes]) -> Bucket:
    bucket = Bucket(int(second))
    for name, value in pairs(fields).items():
        if name.startswith("h"):
            bucket.hist[name[1:]] = int(value)
        elif name in _SUMS:
            setattr(bucket, name, float(value))
        else:
            setattr(bucket, name, int(value))
    return bucket
