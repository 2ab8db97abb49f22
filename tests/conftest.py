"""Coroutine tests run with asyncio.run; `driver` is each implementation of the store contract, on a simulated clock.

`kit` is a process's parts over a memory store, `any_kit` over each store: machines of inline configs run on them.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("FLATAGENTS_LOG_LEVEL", "WARNING")
os.environ.setdefault("FLATAGENTS_METRICS_ENABLED", "false")

import pytest
from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.ray import RayDriver
from flatfleet.runtime.stores.ray_url import RayUrl
from servers import RedisServer, fresh_redis, ray_cluster, redis_at

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell's `&` leaves it: processes of tests would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


def _ray(path: Path, clock: Clock) -> Driver:
    return RayDriver(RayUrl("tests", ray_cluster(), f"{path}.db"), clock=clock)  # type: ignore[return-value]


@pytest.fixture
def ray_address() -> str:
    return ray_cluster()


@pytest.fixture
def redis() -> Callable[[], str]:
    """A function that returns the URL of a store with nothing in it, on the server of the session."""
    return fresh_redis


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    """A function that starts a server of the test's own, with these options; all end with the test."""
    made: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        made.append(RedisServer(*options))
        return made[-1]

    yield start
    for server in made:
        server.close()


def _redis(path: Path, clock: Clock) -> Driver:
    from flatfleet.runtime.stores.redis import RedisDriver
    from flatfleet.runtime.stores.redis_url import parse

    return RedisDriver(parse(redis_at(path)), clock=clock)


#: Every driver that has to keep the contract. A new one is one line here: (fresh path, clock) → driver.
DRIVERS: dict[str, Callable[[Path, Clock], Driver]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "ray": _ray,
}

if _named := os.environ.get("FLATFLEET_TEST_DRIVER"):  # module:function, of somebody else's store: docs/backends.md
    _module, _, _function = _named.partition(":")
    DRIVERS[_module] = getattr(importlib.import_module(_module), _function)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Opener:
    """Opens stores of one kind: a new one by a call, and `again` a durable one as another process has it open.

    `lives` is how many random lives it is worth trying on one.
    """

    def __init__(self, kind: Callable[[Path, Clock], Driver], folder: Path, lives: int) -> None:
        self.lives = lives
        self._kind = kind
        self._folder = folder
        self._numbers = itertools.count()
        self._paths: weakref.WeakKeyDictionary[Driver, Path] = weakref.WeakKeyDictionary()

    def __call__(self, clock: Clock) -> Driver:
        return self._at(self._folder / f"store{next(self._numbers)}", clock)

    def again(self, driver: Driver, clock: Clock) -> Driver:
        return self._at(self._paths[driver], clock)

    def _at(self, path: Path, clock: Clock) -> Driver:
        driver = self._kind(path, clock)
        self._paths[driver] = path
        return driver


@pytest.fixture(params=list(DRIVERS))
def open_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """A function that opens a new, empty store; who calls it closes it."""
    lives = {"ray": 4, "redis": 15, "sqlite": 15}.get(request.param, 40)
    return Opener(DRIVERS[request.param], tmp_path, 40 if os.environ.get("FLATFLEET_SOAK") == "1" else lives)


@pytest.fixture
def driver(open_driver: Opener, clock: Clock) -> Driver:
    return open_driver(clock)


class Kit:
    """One process of a fleet: its parts, and machines of inline configs whose actions are a test's own functions."""

    def __init__(self, store: Any, engine: str = "inline", **hosts: Any) -> None:
        from flatfleet import hooks
        from flatfleet.run import Parts
        from flatfleet.runtime import engines
        from flatfleet.runtime.adapters.registry import adapters
        from flatfleet.runtime.fleet import Fleet

        self.store = store
        self.fleet = Fleet(store)
        self.engine: Any = engines.make(engine, self.fleet, **hosts)
        self.parts = Parts(store, self.fleet, self.engine, hooks.registry(self.fleet), adapters())
        self.functions: dict[str, Any] = {}
        self._others: list[Kit] = []
        shared = hooks.Actions("test", self.functions, self.fleet)
        self.parts.hooks.register("test", lambda: shared)

    def does(self, function: Any) -> Any:
        """Make `async def name(context, fleet)` the action `name` of the hooks `test`."""
        self.functions[function.__name__] = function
        return function

    def machine(self, config: dict[str, Any], execution_id: str | None = None) -> Any:
        return self.parts.machine(config, str(Path.cwd()), execution_id)

    def other(self, owner: str = "other", **options: Any) -> Kit:
        """Another process on the same store, with its own owner and lease; closed with this one at the latest."""
        from flatfleet.runtime.stores import open_store
        from flatfleet.runtime.stores.store import Store

        if self.store.durable:
            made = Kit(open_store(self.store.url, owner=owner, **options))
        else:
            made = Kit(Store(self.store.driver, self.store.url, owner, **options))
        self._others.append(made)
        return made

    async def close(self) -> None:
        for other in self._others:
            await other.close()
        await self.engine.close(0)
        await self.fleet.close()


@pytest.fixture
def kit() -> Kit:
    from flatfleet.runtime.stores import open_store

    return Kit(open_store("memory:"))


#: A URL of a fresh store of every kind. A new one is one line here: fresh path → URL.
URLS: dict[str, Callable[[Path], str]] = {
    "memory": lambda path: "memory:",
    "sqlite": lambda path: f"sqlite:{path.with_suffix('.db')}",
    "redis": redis_at,
}


@pytest.fixture(params=list(URLS))
def any_kit(request: pytest.FixtureRequest, tmp_path: Path) -> Kit:
    from flatfleet.runtime.stores import open_store

    return Kit(open_store(URLS[request.param](tmp_path / "fleet")))


@pytest.fixture(params=list(URLS))
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh store, for who opens it himself."""
    return URLS[request.param](tmp_path / "fleet")


@pytest.fixture(params=[name for name in URLS if name != "memory"])
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same, of the stores that outlive their process."""
    return URLS[request.param](tmp_path / "fleet")


@pytest.fixture
def make_kit() -> Callable[..., Kit]:
    """`make_kit(url, engine, **hosts)`: a process's parts over that store, with that engine (see runtime/engines)."""
    from flatfleet.runtime.stores import open_store

    return lambda url, engine="inline", **hosts: Kit(open_store(url), engine, **hosts)


@pytest.fixture
def busy_tasks() -> Callable[[], set[Any]]:
    """A function that returns the tasks of the running loop, but for those that hold a store's connections."""
    return lambda: {task for task in asyncio.all_tasks() if not task.get_name().startswith("flatfleet-redis")}


def flow(states: dict[str, Any], context: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    """A machine config of these states; `inputs` becomes metadata.inputs, the rest goes into `data`."""
    metadata = {"inputs": data.pop("inputs")} if "inputs" in data else {}
    return {
        "spec": "flatmachine",
        "spec_version": "4.2.1",
        "data": {"name": "flow", "context": context or {}, **data, "states": states},
        "metadata": metadata,
    }


@pytest.fixture(name="flow")
def flow_of() -> Callable[..., dict[str, Any]]:
    return flow


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in its own loop, and close in it every fixture value that has a coroutine `close()`."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    values: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run() -> None:
        try:
            await pyfuncitem.obj(**values)
        finally:
            for value in values.values():
                close = getattr(value, "close", None)
                if inspect.iscoroutinefunction(close) and not inspect.signature(close).parameters:
                    await close()

    asyncio.run(run())
    return True
