"""Waking waiters of this process: a topic is rung, whoever listens to it looks again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Bell:
    """Topics that can be rung and listened to; a ring reaches all who listen at that moment."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def ring(self, *topics: str) -> None:
        for topic in topics:
            for listener in self._listeners.get(topic, ()):
                listener.set()

    @contextmanager
    def listen(self, topic: str) -> Iterator[asyncio.Event]:
        """Yield an event that every ring sets. Listen first and look then, so that no ring is missed."""
        event = asyncio.Event()
        self._listeners[topic].add(event)
        try:
            yield event
        finally:
            self._listeners[topic].discard(event)
            if not self._listeners[topic]:
                del self._listeners[topic]


async def heard(event: asyncio.Event, timeout: float) -> bool:
    """Wait until the event is set, clear it, and return True; False if `timeout` (seconds) passed first."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
