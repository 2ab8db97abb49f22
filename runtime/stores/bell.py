"""Waking waiters: a topic is rung, whoever listens to it looks again; in this process, or in all that use the store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from flatfleet.runtime.stores.datagrams import Topics


class Wire(Protocol):
    """How the processes that use one store wake each other. A hint: what it loses is found by the next poll."""

    @property
    def hears(self) -> bool:
        """True while others can reach this process."""
        ...

    def open(self, hear: Callable[[Topics], None]) -> None:
        """Call `hear` on the running loop with what others announce (None: anything); again, or without a loop: nothing."""
        ...

    def announce(self, topics: Iterable[str]) -> None:
        """Tell the others, soon. Never blocks, never raises."""
        ...

    async def close(self) -> None:
        """Tell what is still to be told, and hear no more."""
        ...


class Bell:
    """Topics that can be rung and listened to; a ring reaches all who listen at that moment.

    `wire` leads to the other processes that use the store. They are reached within some milliseconds; that is a hint,
    and a listener who must not miss anything also polls.
    """

    def __init__(self, wire: Wire | None = None) -> None:
        self._listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._wire = wire

    def ring(self, *topics: str) -> None:
        """Wake who listens in this process."""
        self._ring(topics)

    def announce(self, *topics: str) -> None:
        """Wake who listens in this process, and in every other that uses the store. Never blocks, never raises."""
        self._ring(topics)
        if self._wire is not None and topics:
            self._wire.announce(topics)

    @contextmanager
    def listen(self, *topics: str) -> Iterator[asyncio.Event]:
        """Yield an event that every ring of one of the topics sets. Listen first and look then: no ring is missed."""
        self.open()
        event = asyncio.Event()
        for topic in topics:
            self._listeners[topic].add(event)
        try:
            yield event
        finally:
            for topic in topics:
                self._listeners[topic].discard(event)
                if not self._listeners[topic]:
                    del self._listeners[topic]

    @property
    def hears(self) -> bool:
        """True while other processes can wake who listens here."""
        return self._wire is not None and self._wire.hears

    def open(self) -> None:
        """Hear on the running loop what other processes announce, if that is not so already."""
        if self._wire is not None:
            self._wire.open(self._hear)

    async def close(self) -> None:
        """Send what was announced, and hear other processes no longer."""
        if self._wire is not None:
            await self._wire.close()

    def _hear(self, topics: Topics) -> None:
        self._ring(list(self._listeners) if topics is None else topics)

    def _ring(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for listener in self._listeners.get(topic, ()):
                listener.set()


async def heard(event: asyncio.Event, timeout: float) -> bool:
    """Wait until the event is set, clear it, and return True; False if `timeout` (seconds) passed first."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
