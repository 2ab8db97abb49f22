"""What a broker deals in: a queue of items, the message that `get` returns, and the outcome of an item."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flatfleet.runtime.errors import LeaseLost, UsageError
from flatfleet.runtime.stores.keys import check_seconds
from flatfleet.runtime.stores.records import Claim, Item

if TYPE_CHECKING:
    from flatfleet.runtime.broker import AsyncBroker

FOREVER = 3600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an item ended: `result` if it was done, else `error` and `error_type`. `id` is what `put` returned."""

    id: str
    key: str
    data: Any
    ok: bool
    result: Any = None
    error: str | None = None
    error_type: str | None = None


class Message:
    """An item that was got, held under a lease that is renewed until `done`, `failed` or `release`.

    As a context manager it is done at the end of the block, and failed by an exception, which goes on.
    """

    def __init__(self, broker: AsyncBroker, claim: Claim) -> None:
        self._broker = broker
        self._claim = claim
        self.open = True
        """Whether it is still to be acknowledged."""

    @property
    def id(self) -> str:
        return str(self._claim.id)

    @property
    def key(self) -> str:
        return self._claim.key

    @property
    def data(self) -> Any:
        return self._claim.data

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1 on; those that a dead process has left count, too."""
        return int(self._claim.attempts) + self._claim.crashes + 1

    async def done(self, result: Any = None) -> None:
        """Commit the result, once. Raises LeaseLost if somebody else has the item by now, TypeError if it is not JSON data."""
        pool, token = self._held()
        await pool.complete(self.id, result, token=token)
        self._let_go()

    async def failed(self, error: BaseException | str = "", *, retry: bool = True, after: float | None = None) -> None:
        """End the attempt: the item comes again, at most three times in all, after `after` seconds (None: backoff).

        Without `retry` it is dead at once. Raises LeaseLost if somebody else has it by now.
        """
        pool, token = self._held()
        kind = type(error).__name__ if isinstance(error, BaseException) else "Error"
        await pool.fail(self.id, str(error), error_type=kind, token=token, permanent=not retry, retry_after=after)
        self._let_go()

    async def release(self) -> None:
        """Give the item back as if it had not been got. Raises LeaseLost if somebody else has it by now."""
        pool, token = self._held()
        await pool.release(self.id, token=token)
        self._let_go()

    async def __aenter__(self) -> Message:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not self.open:
            return
        if error is None:
            await self.done()
        elif isinstance(error, Exception):
            await self.failed(error)
        else:
            await self.release()

    def _held(self) -> tuple[Any, int]:
        if not self.open:
            raise UsageError(f"item {self.id} was acknowledged before: done, failed and release end an attempt once")
        try:
            lease = self._broker.fleet.held(self.id, self._broker.name)
        except LeaseLost:
            self._let_go()
            raise
        return self._broker.store.work.pool(lease.pool), lease.token

    def _let_go(self) -> None:
        self.open = False
        self._broker.fleet.let_go(self.id, self._broker.name)


class AsyncQueue:
    """The items of a broker: work items of the pool of that name, which workers may serve as well."""

    def __init__(self, broker: AsyncBroker, name: str) -> None:
        self._broker = broker
        self._pool = broker.store.work.pool(name)
        self.name = name

    async def put(
        self,
        item: Any,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float = 0.0,
        requires: str | Iterable[str] = (),
    ) -> str:
        """Add an item (JSON data) and return its id, once it is stored. One `key` is one item, ever."""
        self._broker.check()
        due = time.time() + check_seconds(delay, "an item's delay") if delay else 0.0
        new = self._pool.new(_finite(item), key=key, priority=priority, not_before=due, requires=requires)
        await self._pool.push_many([new])
        self._broker.expect(new.id)
        return new.id

    async def put_many(self, items: Iterable[Any]) -> list[str]:
        """Add items, a thousand in one step, and return their ids."""
        self._broker.check()
        news = [self._pool.new(_finite(item)) for item in items]
        await self._pool.push_many(news)
        ids = [new.id for new in news]
        self._broker.expect(*ids)
        return ids

    async def get(self, timeout: float | None = None, *, autoack: bool = False) -> Message:
        """Return the next item, as soon as there is one; queue.Empty after `timeout` seconds (0: at once; None: never).

        It is leased, and handed to nobody else while this process lives. With `autoack` it is done at once, with the
        result None: at most once, where it is otherwise at least once.
        """
        fleet, name, again = self._broker.fleet, self._broker.name, False
        deadline = None if timeout is None else time.monotonic() + timeout
        await self._broker.begin()
        while True:
            self._broker.check()
            await fleet.catch_up()
            claims = await self._pool.claim_many(name, 1, fleet.capabilities)
            if claims:
                break
            left = FOREVER if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise queue.Empty(f"no item came into {self.name} within {timeout} s")
            again = await fleet.lounge.wait(self.name, min(left, FOREVER), again=again) == "woken"
        message = Message(self._broker, claims[0])
        fleet.hold(claims[0], name)
        if autoack:
            await message.done()
        return message

    async def size(self) -> int:
        """Items that nobody holds."""
        return await self._pool.size()


def _finite(item: Any) -> Any:
    """Return the item if every number in it is one in JSON, too; UsageError otherwise. The store refuses other objects."""
    try:
        json.dumps(item, allow_nan=False)
    except (TypeError, RecursionError):
        return item
    except ValueError as error:
        raise UsageError(
            f"an item is JSON data, where NaN, infinity and what holds itself are none: {error}"
        ) from error
    return item


def outcome_of(item: Item) -> Outcome:
    ok = item.state == "completed"
    error = (None, None) if ok else (item.error, item.error_type)
    return Outcome(item.id, item.key, item.data, ok, item.result if ok else None, *error)
