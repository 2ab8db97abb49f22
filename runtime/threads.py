"""Blocking code in daemon threads: one that is still busy when nobody waits for it any more does not keep the process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


def in_daemon(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in a daemon thread; nobody waits for it who does not await the future."""
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def answer(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(answer, result, error)

    threading.Thread(target=run, name="flatfleet-blocking", daemon=True).start()
    return future
