"""Waking waiters of this process: a topic is rung, whoever waits on it looks again."""

from __future__ import annotations

import asyncio
from collections import defaultdict


class Bell:
    """Topics that can be rung and waited on. A ring wakes all who wait at that moment, and is not remembered."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def ring(self, *topics: str) -> None:
        for topic in topics:
            for waiter in self._waiters.pop(topic, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, topic: str, timeout: float | None = None) -> bool:
        """Wait for the next ring; False if `timeout` (seconds) passed first."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[topic].add(waiter)
        try:
            await asyncio.wait_for(waiter, timeout)
        except TimeoutError:
            return False
        finally:
            waiters = self._waiters.get(topic)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[topic]
        return True
