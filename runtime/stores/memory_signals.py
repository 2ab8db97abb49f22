"""The signal operations of the memory store: channels, and the inboxes of those who wait for their messages."""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from operator import attrgetter
from typing import Any

from flatfleet.runtime.stores.memory_tables import Tables
from flatfleet.runtime.stores.records import DELIVERED, WAITING
from flatfleet.runtime.stores.text import dump, stamp
from flatmachines import Signal


class MemorySignals(Tables):
    """The part of `contract.Driver` under "signals"; no operation awaits anything, so each is one atomic step."""

    async def send(self, channel: str, data: Any) -> str:
        copy = json.loads(dump(data, f"the message to {channel!r}"))
        signal = Signal(id=uuid.uuid4().hex, channel=channel, data=copy, created_at=stamp(self._clock()))
        self._signals.setdefault(channel, deque()).append(signal)
        return str(signal.id)

    async def take(self, channel: str, waiter: str, skip: Collection[str] = ()) -> Signal | None:
        inboxes = self._snapshots.inboxes
        found = inboxes.oldest(waiter, channel, skip)
        if found is None and channel in self._signals:
            self._hand_out(channel, waiter)
            found = inboxes.oldest(waiter, channel, skip)
        return found

    async def deliver(self, skip: Collection[str] = ()) -> list[str]:
        waiters, inboxes, skipped = self._snapshots.waiters, self._snapshots.inboxes, frozenset(skip)
        for channel in list(self._signals):
            rows = waiters.get(channel, {}).values()
            if any(row.event == WAITING and not inboxes.has(row.execution_id, channel) for row in rows):
                self._hand_out(channel)
        held = filter(None, (self._snapshots.rows.get(name) for name in inboxes.rows if name not in skipped))
        woken = [row for row in held if row.event == WAITING and row.channel in inboxes.rows[row.execution_id]]
        return [row.execution_id for row in sorted(woken, key=attrgetter("updated"))[:DELIVERED]]

    async def consume(self, channel: str) -> Signal | None:
        return self._next(channel) if channel in self._signals else None

    async def peek(self, channel: str) -> list[Signal]:
        return [replace(s, data=json.loads(json.dumps(s.data))) for s in self._signals.get(channel, ())]

    async def channels(self) -> list[str]:
        return sorted(self._signals)

    def _next(self, channel: str) -> Signal:
        """Remove the oldest message from a channel that has one, and return it."""
        queue = self._signals[channel]
        signal = queue.popleft()
        if not queue:
            del self._signals[channel]
        return signal

    def _hand_out(self, channel: str, *more: str) -> None:
        """Move the channel's oldest message into the inboxes of its waiters, and of `more`."""
        signal = self._next(channel)
        for waiter in [*self._snapshots.waiters.get(channel, ()), *more]:
            self._snapshots.inboxes.put(waiter, signal)
