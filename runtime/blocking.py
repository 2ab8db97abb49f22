"""The broker for programs without an event loop: the same as `broker.py`, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, TypeVar

from flatfleet.runtime import loop
from flatfleet.runtime.broker import AsyncBroker
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.messages import Message, Outcome
from flatfleet.runtime.stores import DEFAULT_URL

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a program which ends without a shutdown waits for what it held to be handed back."""


def broker(url: str = DEFAULT_URL, **options: Any) -> Broker:
    """Open a broker over a store: `with broker(url) as b` in plain code, `async with broker(url) as b` on an event loop.

    Options: `queue`, the name of its pool ("queue"); `capabilities`, that its `get` serves; `lease`, in seconds. Raises
    StoreUrlError for a URL that names no store; it is opened when it is first used.
    """
    return Broker(url, **options)


class Broker:
    """A broker whose methods block; any thread may use it. `shutdown` it, or what it holds goes back at the program's end."""

    def __init__(self, url: str = DEFAULT_URL, **options: Any) -> None:
        self._async = AsyncBroker(url, **options)
        self._thread = _Thread()
        self.queue = Queue(self)

    def publish(self, topic: str, message: Any) -> str:
        """Send a message (JSON data) to a topic, and return its id: to the machines parked there, else to who receives it."""
        return self.wait(self._async.publish(topic, message))

    def receive(self, topic: str, timeout: float | None = None) -> Any:
        """Take the oldest message of a topic; each is received once. queue.Empty after `timeout` seconds (None: never)."""
        return self.wait(self._async.receive(topic, timeout))

    def results(self, ids: Iterable[str] | None = None, *, timeout: float | None = None) -> Iterator[Outcome]:
        """Yield how items end, as they do, whoever works on them: those of `ids`, else those that were put here so far.

        Each that was put here is told once without `ids`, of the last million. Ends once all have. Raises TimeoutError if
        that takes longer than `timeout` seconds, KeyError for an unknown id.
        """
        found = self._async.results(ids, timeout=timeout)
        try:
            while (outcome := self.wait(_next(found))) is not None:
                yield outcome
        finally:
            if not self._async.fleet.draining:
                self.wait(found.aclose())

    def shutdown(self) -> int:
        """Hand back what is held, and close the store; return how many items that were. Again: nothing."""
        atexit.unregister(self.shutdown)
        if not self._thread.alive:
            self._async.fleet.drain()
            return 0
        try:
            return self._thread.run(self._async.shutdown())
        finally:
            self._thread.stop()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the broker to its end. UsageError on an event loop, and in a process that was forked off."""
        try:
            self._async.check()
            self._thread.check()
            if self._thread.start():
                atexit.register(self.shutdown)
        except BaseException:
            work.close()
            raise
        try:
            return self._thread.run(work)
        except CancelledError:
            self._async.check()
            raise

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    async def __aenter__(self) -> AsyncBroker:
        if self._thread.alive:
            raise UsageError("this broker is used without an event loop already; open another one with `async with`")
        return self._async

    async def __aexit__(self, *_: object) -> None:
        await self._async.shutdown()


class Queue:
    """The items of a broker: work items of the pool of that name, which workers may serve as well."""

    def __init__(self, broker: Broker) -> None:
        self._wait = broker.wait
        self._async = broker._async.queue
        self.name = self._async.name

    def put(
        self,
        item: Any,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float = 0.0,
        requires: str | Iterable[str] = (),
    ) -> str:
        """Add an item (JSON data) and return its id, once it is stored. One `key` is one item, ever."""
        return self._wait(self._async.put(item, key=key, priority=priority, delay=delay, requires=requires))

    def put_many(self, items: Iterable[Any]) -> list[str]:
        """Add items, a thousand in one step, and return their ids."""
        return self._wait(self._async.put_many(items))

    def get(self, timeout: float | None = None, *, autoack: bool = False) -> BlockingMessage:
        """Return the next item, as soon as there is one; queue.Empty after `timeout` seconds (0: at once; None: never).

        It is leased, and handed to nobody else while this process lives. With `autoack` it is done at once, with the
        result None: at most once, where it is otherwise at least once.
        """
        return BlockingMessage(self._wait, self._wait(self._async.get(timeout, autoack=autoack)))

    def size(self) -> int:
        """Items that nobody holds."""
        return self._wait(self._async.size())


class BlockingMessage:
    """An item that was got, held under a lease that is renewed until `done`, `failed` or `release`.

    As a context manager it is done at the end of the block, and failed by an exception, which goes on.
    """

    def __init__(self, wait: Any, message: Message) -> None:
        self._wait = wait
        self._message = message
        self.id, self.key, self.data, self.attempt = message.id, message.key, message.data, message.attempt

    @property
    def open(self) -> bool:
        """Whether it is still to be acknowledged."""
        return self._message.open

    def done(self, result: Any = None) -> None:
        """Commit the result, once. Raises LeaseLost if somebody else has the item by now, TypeError if it is not JSON data."""
        self._wait(self._message.done(result))

    def failed(self, error: BaseException | str = "", *, retry: bool = True, after: float | None = None) -> None:
        """End the attempt: the item comes again, at most three times in all, after `after` seconds (None: backoff).

        Without `retry` it is dead at once. Raises LeaseLost if somebody else has it by now.
        """
        self._wait(self._message.failed(error, retry=retry, after=after))

    def release(self) -> None:
        """Give the item back as if it had not been got. Raises LeaseLost if somebody else has it by now."""
        self._wait(self._message.release())

    def __enter__(self) -> BlockingMessage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.open:
            self._wait(self._message.__aexit__(kind, error, trace))


class _Thread:
    """An event loop in a daemon thread of this process, which begins when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    @property
    def alive(self) -> bool:
        return self._thread is not None and os.getpid() == self._pid

    def check(self) -> None:
        """Raise UsageError where this thread cannot be waited for."""
        if os.getpid() != self._pid:
            raise UsageError("this broker was opened in another process, before a fork; open one in this process")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise UsageError("this would block the event loop; use the broker with: async with flatfleet.broker(url)")

    def start(self) -> bool:
        """Begin, unless it has begun: False."""
        with self._lock:
            if self._thread is not None:
                return False
            self._loop = loop.new_event_loop()
            self._thread = threading.Thread(target=_turn, args=(self._loop,), name="flatfleet-broker", daemon=True)
            self._thread.start()
            return True

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and wait for it; an interrupt of the caller cancels it."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop, cancel what still runs on it, and wait for the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if self._loop is not None and thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(PATIENCE)


def _turn(running: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: running) as runner:
        runner.get_loop().run_forever()


async def _next(found: Any) -> Outcome | None:
    return await anext(found, None)
