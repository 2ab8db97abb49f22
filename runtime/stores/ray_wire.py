"""Waking the processes of a Ray cluster that use one store: each has a call waiting in the store's actor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.stores.datagrams import Topics
from flatfleet.runtime.stores.ray import RayDriver
from flatfleet.runtime.stores.ray_cluster import in_caller, lost

PAUSE = 0.005
"""Seconds for which what is announced is gathered."""
AWAY = 1.0
"""Seconds after which an actor that could not be reached is called again."""


class RayWire:
    """One process's end of the wire. It sends no message that nobody asked for: the actor answers when somebody rings."""

    def __init__(self, driver: RayDriver) -> None:
        self._driver = driver
        self._hear: Callable[[Topics], None] = lambda topics: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._hears = False
        self._topics: set[str] = set()
        self._due: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    @property
    def hears(self) -> bool:
        return self._hears

    def open(self, hear: Callable[[Topics], None]) -> None:
        """Hear on the running loop what other processes announce; without a loop, or if it hears already, do nothing."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._loop is loop and self._task is not None and not self._task.done():
            return
        self._hear, self._loop, self._hears = hear, loop, False
        self._task = loop.create_task(self._listen(), name="flatfleet-ray-wire")

    async def close(self) -> None:
        """Send what is still to be sent, and listen no more; `open` listens again."""
        self._flush()
        task, self._task, self._loop, self._hears = self._task, None, None, False
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def _listen(self) -> None:
        away: tuple[type[BaseException], ...] = (StoreError, *await in_caller(lost))
        last, boot, seen = None, "", 0
        while True:
            try:
                opened = await self._driver.ready()
                if opened is not last:  # since it was opened, who looked has seen all that was rung before
                    if last is not None:
                        self._hear(None)
                    last, boot, seen = opened, opened.boot, opened.rung
                self._hears = True
                answer = await opened.actor.hear.remote(opened.file, self._driver.client, boot, seen)
            except away:
                answer = None
            if answer is None:
                self._hears = False
                if self._driver.opened is not None:
                    self._driver.forget(self._driver.opened)
                await asyncio.sleep(AWAY)
                continue
            boot, seen, topics = answer
            if topics is None or topics:
                self._hear(topics)

    def announce(self, topics: Iterable[str]) -> None:
        """Tell the others, with all else that is announced within PAUSE."""
        self._topics.update(topics)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._flush()
            return
        if self._due is None or self._due[0] is not loop:
            self._due = (loop, loop.call_later(PAUSE, self._flush))

    def _flush(self) -> None:
        if self._due is not None:
            self._due[1].cancel()
        topics, self._topics, self._due = self._topics, set(), None
        opened = self._driver.opened
        if opened is not None and topics:
            opened.actor.tell.remote(opened.file, self._driver.client, topics)
