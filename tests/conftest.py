"""Coroutine tests run with asyncio.run; `driver` is each implementation of the store contract, on a simulated clock."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flatfleet.runtime.stores.contract import Driver


class Clock:
    """A clock that stands still until it is told to advance."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def _memory(path: Path, clock: Clock) -> Driver:
    from flatfleet.runtime.stores.memory import MemoryDriver

    return MemoryDriver(clock=clock)


def _sqlite(path: Path, clock: Clock) -> Driver:
    from flatfleet.runtime.stores.sqlite import SQLiteDriver

    return SQLiteDriver(path.with_suffix(".db"), clock=clock)


#: Every driver that has to keep the contract. A new one is one line here: (fresh path, clock) → driver.
DRIVERS: dict[str, Callable[[Path, Clock], Driver]] = {"memory": _memory, "sqlite": _sqlite}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=list(DRIVERS))
def open_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Clock], Driver]:
    """A function that opens a new, empty store; who calls it closes it."""
    numbers = itertools.count()
    return lambda clock: DRIVERS[request.param](tmp_path / f"store{next(numbers)}", clock)


@pytest.fixture
def driver(open_driver: Callable[[Clock], Driver], clock: Clock) -> Driver:
    return open_driver(clock)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in its own loop, and close in it every fixture value that has a coroutine `close`."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    values: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run() -> None:
        try:
            await pyfuncitem.obj(**values)
        finally:
            for value in values.values():
                if inspect.iscoroutinefunction(getattr(value, "close", None)):
                    await value.close()

    asyncio.run(run())
    return True
