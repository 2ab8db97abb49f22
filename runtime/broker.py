"""A broker for programs of your own, on an event loop: put items into a pool, get them with a lease, hear their results.

`blocking.py` is the same for programs without an event loop.
"""

from __future__ import annotations

import asyncio
import math
import queue
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Iterable
from typing import Any

from flatfleet.runtime.errors import BrokerClosed, UsageError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.messages import AsyncQueue, Outcome, outcome_of
from flatfleet.runtime.stores import DEFAULT_URL, open_store
from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.records import LEASE

QUEUE = "queue"
LOOK = 0.5
"""Seconds between two looks for what other processes have done; what this one does is heard of at once."""
WHOLE_LOOK = 5.0
"""Seconds between two looks at all results that are waited for, whether the counters have moved or not."""
CHUNK = 200
EXPECTED = 1_000_000


class AsyncBroker:
    """A broker on the running event loop; as a context manager it shuts itself down.

    `capabilities` are those that its `get` serves, `lease` how many seconds an item stays with a process that is dead.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, queue: str = QUEUE, capabilities: Collection[str] = (), lease: float = LEASE
    ) -> None:
        self.store = open_store(url, lease=lease)
        self.fleet = Fleet(self.store, capabilities=capabilities, served=True)
        self.name = f"broker-{uuid.uuid4().hex[:8]}"
        """The worker that its claims name."""
        self._sent: dict[str, None] = {}
        self.queue = AsyncQueue(self, queue)
        self._begun = False
        self._closing: asyncio.Task[int] | None = None

    async def publish(self, topic: str, message: Any) -> str:
        """Send a message (JSON data) to a topic, and return its id: to the machines parked there, else to who receives it."""
        self.check()
        if not isinstance(topic, str) or not topic:
            raise UsageError(f"a topic is a text that is not empty, got {topic!r}")
        return await self.store.signals.send(topic, message)

    async def receive(self, topic: str, timeout: float | None = None) -> Any:
        """Take the oldest message of a topic; each is received once. queue.Empty after `timeout` seconds (None: never)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.store.bell.listen(topic) as rung:
            while True:
                self.check()
                signal = await self.store.signals.consume(topic)
                if signal is not None:
                    return signal.data
                left = LOOK if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise queue.Empty(f"no message came to {topic} within {timeout} s")
                await heard(rung, min(LOOK, left))

    async def results(
        self, ids: Iterable[str] | None = None, *, timeout: float | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Yield how items end, as they do, whoever works on them: those of `ids`, else those that were put here so far.

        Each that was put here is told once without `ids`, of the last million. Ends once all have. Raises TimeoutError if
        that takes longer than `timeout` seconds, KeyError for an unknown id.
        """
        waiting = dict.fromkeys(self._sent if ids is None else ids)
        deadline = None if timeout is None else time.monotonic() + timeout
        pools = {each.rpartition(":")[0] for each in waiting}
        seen, looked = 0, -math.inf
        with self.store.bell.listen(*pools) as rung:
            while waiting:
                self.check()
                ended = sum([await self._ended(name) for name in pools])
                whole = time.monotonic() >= looked + WHOLE_LOOK
                if whole or ended != seen:
                    most = math.inf if whole else ended - seen
                    seen, looked = ended, time.monotonic() if whole else looked
                    async for outcome in self._over(list(waiting), most):
                        del waiting[outcome.id]
                        self._sent.pop(outcome.id, None)
                        yield outcome
                left = LOOK if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{len(waiting)} items have not ended within {timeout} s")
                await heard(rung, min(LOOK, left))

    async def shutdown(self) -> int:
        """Hand back what is held, and close the store; return how many items that were. Again: nothing."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        return await asyncio.shield(self._closing)

    def expect(self, *ids: str) -> None:
        """Note ids whose results have not been told yet; the oldest beyond a million are forgotten."""
        self._sent.update(dict.fromkeys(ids))
        while len(self._sent) > EXPECTED:
            del self._sent[next(iter(self._sent))]

    async def begin(self) -> None:
        """Before the first item is got: hand back what dead processes of this machine held."""
        if not self._begun:
            self._begun = True
            await self.fleet.recover()

    def check(self) -> None:
        """Raise BrokerClosed once it is shut down."""
        if self.fleet.draining:
            raise BrokerClosed("this broker is shut down; open another one")

    async def __aenter__(self) -> AsyncBroker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def _close(self) -> int:
        self.fleet.drain()
        try:
            return await self.fleet.hand_back()
        finally:
            await self.fleet.close()

    async def _ended(self, pool: str) -> int:
        counts = await self.store.work.pool(pool).counts()
        return counts.completed + counts.dead

    async def _over(self, ids: list[str], most: float) -> AsyncGenerator[Outcome, None]:
        """Those of the items that have ended; no more are looked for once `most` are found."""
        found = 0
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            for item_id, item in zip(chunk, await asyncio.gather(*map(self.store.driver.item, chunk)), strict=True):
                if item is None:
                    raise KeyError(f"no item {item_id!r} in this store")
                if item.state in ("completed", "dead"):
                    found += 1
                    yield outcome_of(item)
            if found >= most:
                return
