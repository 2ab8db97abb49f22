"""Waking the other processes that use the same Redis store, on whatever host: a message to all who are subscribed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from flatfleet.runtime.errors import FleetError
from flatfleet.runtime.stores.datagrams import Topics
from flatfleet.runtime.stores.redis_link import LATEST, SOONEST, Link
from flatfleet.runtime.stores.redis_scripts import key
from flatfleet.runtime.stores.redis_session import ask, connect, packed
from flatfleet.runtime.stores.redis_url import Target

logger = logging.getLogger(__name__)

PAUSE = 0.005
"""Seconds between two messages of a process: what is announced meanwhile goes together."""
TOPICS = 1000
"""Topics that go in one message; more of them are sent as "anything"."""


class RedisWire:
    """One process's end of the wire: a connection of its own to hear with, and that of the driver to tell with.

    A connection that breaks is made again; whatever was rung meanwhile may have been missed, so "anything" is rung then.
    """

    def __init__(self, target: Target, link: Link) -> None:
        self._target = target
        self._link = link
        self._channel = f"{target.tag}{key('BELL')}".encode()
        self._name = uuid.uuid4().hex
        self._hear: Callable[[Topics], None] = lambda topics: None
        self._hears = self._missed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening: asyncio.Task[None] | None = None
        self._topics: Topics = set()
        self._telling: asyncio.Task[None] | None = None

    # -- hearing -------------------------------------------------------------------------------------------------------

    @property
    def hears(self) -> bool:
        return self._hears

    def open(self, hear: Callable[[Topics], None]) -> None:
        """Hear on the running loop what other processes announce; without a loop, or if it hears already, do nothing."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._loop is loop and self._listening is not None:
            return
        self._hear, self._loop, self._hears, self._missed = hear, loop, False, False
        self._listening = loop.create_task(self._listen(), name="flatfleet-redis-wire")

    async def close(self) -> None:
        """Send what is still to be sent and hear no more; `open` opens it again."""
        if self._telling is not None and self._loop_is_here(self._telling):
            await asyncio.wait([self._telling])
        task, self._listening, self._hears = self._listening, None, False
        while task is not None and self._loop_is_here(task) and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)

    async def _listen(self) -> None:
        pause = SOONEST
        while True:
            try:
                await self._subscribed()
                pause = SOONEST
            except (FleetError, OSError, EOFError, TimeoutError) as error:
                logger.debug("nothing is heard over the store: %s", self._target.scrub(str(error)))
            except Exception as error:  # the library's
                logger.debug("nothing is heard over the store: %s", self._target.scrub(str(error)))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(LATEST, 2 * pause)

    async def _subscribed(self) -> None:
        """Hear until the connection breaks, or has not answered for the target's `timeout`."""
        connection = connect(self._target)
        reading: asyncio.Task[Any] | None = None
        try:
            async with asyncio.timeout(self._target.timeout):
                await connection.connect()
                await ask(connection, b"SUBSCRIBE", self._channel)
            self._hears, asked = True, False
            if self._missed:
                self._hear(None)
            self._missed = True
            while True:
                reading = reading or asyncio.create_task(
                    connection.read_response(disable_decoding=True), name="flatfleet-redis-hears"
                )
                if (await asyncio.wait([reading], timeout=self._target.timeout))[0]:
                    message, reading, asked = reading.result(), None, False
                    self._heard(message)
                elif asked:
                    raise TimeoutError(f"no answer within {self._target.timeout:g} s")
                else:
                    asked = True
                    await connection.send_packed_command(packed(b"PING"), check_health=False)
        finally:
            self._hears = False
            if reading is not None:
                reading.cancel()
                with contextlib.suppress(BaseException):
                    await reading
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)

    def _heard(self, message: Any) -> None:
        if not isinstance(message, list) or message[0] != b"message":
            return
        try:
            sender, topics = json.loads(message[2])
            told: Topics = None if topics is None else set(map(str, topics))
        except (ValueError, TypeError):
            sender, told = "", None
        if sender != self._name:
            self._hear(told)

    # -- telling -------------------------------------------------------------------------------------------------------

    def announce(self, topics: Iterable[str]) -> None:
        """Tell the others, with all else that is announced within PAUSE or until the last message has gone."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._topics is not None:
            self._topics.update(topics)
            if len(self._topics) > TOPICS:
                self._topics = None
        if self._telling is None or self._telling.done() or not self._loop_is_here(self._telling):
            self._telling = loop.create_task(self._tell(), name="flatfleet-redis-tell")

    async def _tell(self) -> None:
        while self._topics is None or self._topics:
            topics, self._topics = self._topics, set()
            text = json.dumps([self._name, None if topics is None else sorted(topics)])
            with contextlib.suppress(FleetError):
                await self._link.call("PUBLISH", self._channel, text)
            await asyncio.sleep(PAUSE)

    @staticmethod
    def _loop_is_here(task: asyncio.Task[Any]) -> bool:
        return task.get_loop() is asyncio.get_running_loop()
