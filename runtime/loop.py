"""The event loop of our processes: asyncio's own, whose timers are exact to some 50 µs where epoll rounds them up to 1 ms."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

COARSE = 1.0
"""Seconds from which a millisecond does not matter."""
FD_SETSIZE = 1024
"""select(2) knows no larger file descriptors."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run on such a loop."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def new_event_loop() -> asyncio.AbstractEventLoop:
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()
    selector = _Exact()
    if selector.fileno() >= FD_SETSIZE:
        selector.close()
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(selector)


if hasattr(selectors, "EpollSelector"):

    class _Exact(selectors.EpollSelector):
        """Waits for the epoll object with select(2), which counts microseconds, and then asks it without waiting."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and 0 < timeout < COARSE:
                select.select((self.fileno(),), (), (), timeout)
                timeout = 0
            return super().select(timeout)
