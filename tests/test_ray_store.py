"""The Ray store beyond the contract: a killed actor, a deleted file, waking, URLs, and what is said where there is no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flatfleet.runtime.errors import LeaseLost, StoreUnavailable, StoreUrlError, WorkerConflict
from flatfleet.runtime.stores import open_store, ray_address, ray_cluster, ray_keeper
from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.ray import RayDriver
from flatfleet.runtime.stores.ray_url import RayUrl
from flatfleet.runtime.stores.records import Failure, NewItem
from flatmachines import WorkerRegistration

ROOT = Path(__file__).parents[1]


def new(key: str, data: Any = None) -> NewItem:
    return NewItem(f"p:{key}", key, data)


@pytest.fixture
def url(ray_address: str, tmp_path: Path) -> str:
    """A new store, in an actor that only these tests use: it is killed in some of them."""
    return f"ray://{ray_address}/killed?path={tmp_path / 'fleet.db'}"


@pytest.fixture
def store(url: str) -> Any:
    return open_store(url)


async def until(holds: Callable[[], Any]) -> None:
    """Wait until `holds()` is true, for half a minute at most."""
    async with asyncio.timeout(30):
        while not (await found if inspect.isawaitable(found := holds()) else found):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def pid_of(driver: RayDriver) -> int:
    opened = await driver.ready()
    worked, found = pickle.loads(await opened.actor.open.remote(opened.file, "NORMAL", True, driver.client))
    assert worked
    return int(found["pid"])


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ray:", RayUrl()),
        ("ray:papers", RayUrl("papers")),
        ("ray://10.0.0.1:6379", RayUrl("fleet", "10.0.0.1:6379")),
        ("ray://head:6379/papers?synchronous=full", RayUrl("papers", "head:6379", None, "FULL")),
        ("ray:papers?path=~/x.db", RayUrl("papers", None, "~/x.db")),
        ("ray://[::1]:6379/a?path=/data/fleet.db", RayUrl("a", "[::1]:6379", "/data/fleet.db")),
    ],
)
def test_what_a_url_says(url, expected):
    assert RayUrl.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ray:a b", "the name after ray: is like a pool's"),
        ("ray:a/b", "the name after ray: is like a pool's"),
        ("ray:../x", "the name after ray: is like a pool's"),
        ("ray://head", "'head' is not HOST:PORT of a Ray cluster"),
        ("ray://head:what/x", "'head:what' is not HOST:PORT"),
        ("ray://:6379/x", "':6379' is not HOST:PORT"),
        ("ray://me:secret@head:6379/x", "is not HOST:PORT"),
        ("ray:x?path=fleet.db", "path=fleet.db is no absolute file name; it is a file of the cluster's head node"),
        ("ray:x?path=/data/", "no absolute file name"),
        ("ray:x?synchronous=OFF", "synchronous is NORMAL"),
        ("ray:x?pathh=/x", "unknown option 'pathh' — known: path, synchronous. Did you mean 'path'?"),
    ],
)
def test_a_wrong_url_is_refused_at_once(url, told):
    with pytest.raises(StoreUrlError) as error:
        open_store(url)
    assert told in str(error.value)


def test_a_url_is_read_without_importing_ray():
    code = (
        "import sys; from flatfleet.runtime.stores import open_store; open_store('ray:x'); print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreUrlError, match=r"store URL 'ray:x' needs Ray, .* pip install 'flatfleet\[ray\]'"):
        open_store("ray:x")


RUN = """
import asyncio, sys
from flatfleet.runtime.stores import open_store
async def main():
    store = open_store(sys.argv[1], must_exist=sys.argv[2:] == ["must exist"])
    print(await store.driver.pools())
    await store.work.pool("p").push({}, {"key": "a"})
    await store.close()
asyncio.run(main())
"""


def alone(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Use a store in a process of its own, in which every warning is an error."""
    return python(RUN, *args, **env)


def python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    told = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | env
    argv = [sys.executable, "-W", "error", "-c", code, *args]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=150, env=told)


@pytest.mark.slow
def test_where_nobody_listens_the_message_comes_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = alone(f"ray://127.0.0.1:{free.getsockname()[1]}/x")
    assert "StoreUnavailable: no Ray cluster answers at 127.0.0.1:" in done.stderr
    assert "ray start --head" in done.stderr


@pytest.mark.slow
def test_what_is_no_ray_is_waited_for_no_longer_than_join():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        sooner = """
from flatfleet.runtime.stores import open_store, ray_cluster
ray_cluster.JOIN = 0.5
import asyncio, sys, time
async def main():
    store = open_store(sys.argv[1])
    for _ in range(2):
        try:
            await store.driver.pools()
        except Exception as error:
            print(type(error).__name__, error)
            ray_cluster.join = None  # whoever asks again would fail in another way
asyncio.run(main())
"""
        done = python(sooner, f"ray://127.0.0.1:{other.getsockname()[1]}/x")
    first, second = done.stdout.splitlines()
    assert first == second, done
    assert first.startswith("StoreUnavailable the Ray cluster 127.0.0.1:")
    assert "has not let this process in within" in first


def test_what_answers_in_other_words_is_no_ray():
    def answer() -> None:
        with other.accept()[0] as link:
            link.recv(64)
            link.sendall(b"-ERR unknown command 'PRI'\r\n")

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StoreUnavailable, match=r"is no Ray cluster \(it says b\"-ERR unknown command 'PRI'"):
            ray_address.greet(f"127.0.0.1:{other.getsockname()[1]}")
        thread.join()


def test_what_says_nothing_is_waited_for_once(monkeypatch):
    monkeypatch.setattr(ray_address, "GREET", 0.01)
    monkeypatch.setattr(ray_address, "_silent", set())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="is no Ray cluster: name the port"):
                ray_address.greet(address)
            monkeypatch.setattr(ray_address, "GREET", 1e6)


def test_what_speaks_http_2_may_be_ray():
    def answer() -> None:
        with other.accept()[0] as link:
            link.recv(64)
            link.sendall(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        ray_address.greet(f"127.0.0.1:{other.getsockname()[1]}")
        thread.join()


def test_an_engine_alone_does_not_depend_on_the_cluster_of_another_process(monkeypatch):
    """That ends with whoever began it; what stands by itself, or was named, is joined all the same."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "ray_module", lambda: SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setattr(ray_cluster, "recorded", lambda record: contextlib.nullcontext("of another:1"))
    monkeypatch.setattr(ray_cluster, "started_by_ray", lambda: None)
    monkeypatch.setattr(ray_cluster, "_enter", lambda address: address)
    monkeypatch.setattr(ray_cluster, "_start", lambda: "own:1")
    assert [ray_cluster._join(None, True, alone) for alone in (False, True)] == ["of another:1", "own:1"]
    monkeypatch.setattr(ray_cluster, "started_by_ray", lambda: "stands:1")
    assert ray_cluster._join(None, True, True) == "stands:1"
    assert ray_cluster._join("named:1", True, True) == "named:1"


@pytest.mark.slow
def test_two_processes_use_one_local_cluster_and_nothing_is_left_of_it(tmp_path):
    """The second finds the cluster that the first has started; data is there again in the next cluster."""
    env = {"XDG_STATE_HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    code = textwrap.dedent(
        """
        import os, subprocess, sys
        exec(sys.argv[2])
        import ray
        told = "import ray; print(ray.get_runtime_context().gcs_address)"
        print(ray.get_runtime_context().gcs_address, flush=True)
        argv = [sys.executable, "-c", sys.argv[2] + told, sys.argv[1]]
        other = subprocess.run(argv, capture_output=True, text=True, timeout=100)
        print(other.stdout, other.stderr, flush=True)
        os.kill(os.getpid(), 9)
        """
    )
    done = python(code, "ray:mine", RUN, **env)
    lines = done.stdout.split("\n")
    assert lines[0] == "[]", done
    assert lines[2:4] == ["['p']", lines[1]], done
    assert lines[1].startswith("127.0.0.1:")
    assert (tmp_path / "flatfleet/ray/mine.db").exists()
    assert (tmp_path / "flatfleet/ray/cluster").read_text() == lines[1]
    host, _, port = lines[1].rpartition(":")
    for _ in range(200):
        with socket.socket() as knock:
            if knock.connect_ex((host, int(port))):
                break
        time.sleep(0.05)
    else:
        raise AssertionError("the cluster has outlived who started it")
    again = alone("ray:mine", "must exist", **env)
    assert again.stdout == "['p']\n", again


@pytest.mark.slow
def test_a_signal_is_its_processes_own_to_handle(ray_address):
    """Ray's own handler would abort the process 3 s later, in the middle of a drain."""
    code = textwrap.dedent(
        """
        import os, signal, sys
        from flatfleet.runtime.stores.ray_cluster import join
        signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
        join(sys.argv[1]).result(60)
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    done = python(code, ray_address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "heard\n", "")


async def test_who_only_looks_makes_no_store(ray_address, tmp_path):
    store = open_store(f"ray://{ray_address}/killed?path={tmp_path}/none.db", must_exist=True)
    with pytest.raises(StoreUnavailable, match=r"there is no store .*none\.db on the head node of the Ray cluster"):
        await store.driver.pools()
    assert list(tmp_path.iterdir()) == []
    await store.close()


# -- the actor ---------------------------------------------------------------------------------------------------------


async def test_an_operation_whose_answer_was_lost_has_its_effect_once(store, monkeypatch):
    """Each batch is carried out, its answer is thrown away, and it is sent again: as if the connection had broken."""
    driver = store.driver
    await driver.push("p", [new("a"), new("b"), new("c")])
    opened = await driver.ready()

    class Lossy:
        """Loses the first answer to each batch."""

        def __init__(self) -> None:
            self.seen: set[int] = set()
            self.calls = self

        def remote(self, file: str, store: str, client: str, done: int, now: float | None, calls: list[Any]) -> Any:
            async def answer() -> Any:
                found = await opened.actor.calls.remote(file, store, client, done, now, calls)
                if not {number for number, *_ in calls} <= self.seen:
                    self.seen |= {number for number, *_ in calls}
                    return None
                return found

            return answer()

    lossy = Lossy()
    opened_by_hand = replace(opened, actor=lossy)

    async def ready() -> Any:
        return opened_by_hand

    monkeypatch.setattr(driver, "ready", ready)
    monkeypatch.setattr(driver, "forget", lambda opened: None)
    claims = [await driver.claim("p", "w", "o", 1, 60, ()) for _ in range(2)]
    assert [(claim.key, claim.token) for (claim,) in claims] == [("a", 1), ("b", 1)]
    await driver.complete("p:a", {"n": 1}, 1, 0.5)
    assert await driver.fail("p:b", Failure("ValueError", "no"), 1, 0.0) == "delayed"
    sent = await driver.send("c", {"n": 1})
    assert [each.id for each in await driver.peek("c")] == [sent]
    assert (await driver.consume("c")).id == sent
    assert await driver.push("p", [new("d"), new("a")]) == [True, False]
    assert await driver.cancel("p", ["p:c"]) == 1
    counts = await driver.counts("p")
    assert (counts.completed, counts.delayed, counts.waiting, counts.claimed, counts.dead) == (1, 1, 1, 0, 1)
    assert [len(await driver.attempts(item)) for item in ("p:a", "p:b")] == [1, 1]
    with pytest.raises(LeaseLost):
        await driver.complete("p:b", None, 1, 0.0)


@pytest.mark.slow
async def test_an_actor_that_is_killed_again_and_again_loses_and_doubles_nothing(store):
    driver = store.driver
    n = 300
    await driver.push("p", [new(str(i)) for i in range(n)])
    first = await pid_of(driver)
    held: list[str] = []

    async def work(name: str) -> None:
        while claims := await driver.claim("p", name, "o", 1, 60, ()):
            held.extend(claim.id for claim in claims)
            await driver.complete(claims[0].id, {"by": name}, claims[0].token, 0.0)

    async def done(least: int) -> bool:
        return (await driver.counts("p")).completed >= least

    async def kill() -> None:
        for least in (50, 200):
            await until(lambda least=least: done(least))
            os.kill(await pid_of(driver), signal.SIGKILL)

    await asyncio.gather(kill(), *(work(f"w{i}") for i in range(8)))
    assert sorted(held) == sorted(f"p:{i}" for i in range(n))
    assert (await driver.counts("p")).completed == n
    for i in range(n):
        assert [attempt.outcome for attempt in await driver.attempts(f"p:{i}")] == ["completed"]
    assert await pid_of(driver) != first


async def test_the_answers_that_are_kept_are_few(store):
    driver = store.driver
    for i in range(3 * ray_keeper.SWEEP):
        await driver.put(f"k{i}", i)
    file = driver.opened.file

    def kept() -> int:
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(file)) as db:
            return int(db.execute("SELECT COUNT(*) FROM ray_answers").fetchone()[0])

    assert 0 < kept() <= 2 * ray_keeper.SWEEP
    await driver.put("last", 1)
    other = RayDriver(driver.url)
    await other.put("x", 1)
    await driver.close()
    assert kept() == 1
    await other.close()


async def test_errors_arrive_as_what_they_are(store):
    driver = store.driver
    await driver.push("p", [new("a")])
    with pytest.raises(LeaseLost):
        await driver.complete("p:a", None, 7, 0.0)
    await driver.register(WorkerRegistration("w", "h", 1, []), "one", 60, {})
    with pytest.raises(WorkerConflict, match="alive under one"):
        await driver.register(WorkerRegistration("w", "h", 1, []), "two", 60, {})
    with pytest.raises(KeyError, match="no worker 'x'"):
        await driver.set_status("x", "active")
    with pytest.raises(TypeError, match="is not JSON data"):
        await driver.put("k", object())
    with pytest.raises(TypeError, match="is not JSON data"):
        await driver.put("k", lambda: None)
    with pytest.raises(AttributeError):
        _ = driver.no_such_operation


class Colour(enum.StrEnum):
    RED = "red"


class Number(int):
    pass


async def test_classes_of_the_users_modules_stay_at_home(store):
    """The head node has flatfleet, not the modules of whoever runs it."""
    value = {Colour.RED: [Number(3), Colour.RED, True, (1.5, None)]}
    await store.driver.put("k", value)
    assert await store.driver.get("k") == (True, {"red": [3, "red", True, [1.5, None]]})
    await store.driver.push("p", [new("a")])
    assert len(await store.driver.claim("p", "w", "o", 1, 60, {"gpu": 1}.keys())) == 1


async def test_a_file_that_was_deleted_is_not_begun_again_by_who_used_it(store, url):
    driver = store.driver
    await driver.push("p", [new("a")])
    file = Path(driver.opened.file)
    for each in file.parent.glob("fleet.db*"):
        each.unlink()
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        for _ in range(200):
            await driver.counts("p")
            await asyncio.sleep(0.05)
    fresh = open_store(url)
    assert (await fresh.driver.counts("p")).total == 0
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await driver.push("p", [new("b")])
    assert await fresh.driver.pools() == []
    await fresh.close()


async def test_a_claim_whose_caller_has_gone_is_given_back(store):
    driver = store.driver
    await driver.push("p", [new("a")])
    task = asyncio.create_task(driver.claim("p", "w", "o", 1, 60, ()))
    await until(lambda: driver._waiting and not driver._queue)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: driver.attempts("p:a"))
    assert [attempt.outcome for attempt in await driver.attempts("p:a")] == ["released"]
    assert (await driver.counts("p")).waiting == 1


async def test_the_store_is_used_from_two_threads(store, url):
    """As the guard does it, in whose thread the event loop is another one."""
    await store.driver.push("p", [new("a")])
    found = []

    def beat() -> None:
        async def run() -> None:
            other = open_store(url, must_exist=True)
            found.append(await other.driver.counts("p"))
            await other.close()

        asyncio.run(run())

    thread = threading.Thread(target=beat)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found[0].waiting == 1
    assert (await store.driver.counts("p")).waiting == 1


# -- waking ------------------------------------------------------------------------------------------------------------


async def test_a_ring_reaches_the_other_processes_and_not_the_own(store, url):
    other = open_store(url)
    with store.bell.listen("x") as mine, other.bell.listen("x") as theirs, other.bell.listen("y") as not_theirs:
        await until(lambda: store.bell.hears and other.bell.hears)
        for event in (mine, theirs, not_theirs):
            event.clear()
        store.bell._wire.announce(["x"])
        assert await heard(theirs, 20)
        assert not mine.is_set()
        assert not not_theirs.is_set()
    await other.close()
    assert not other.bell.hears


@pytest.mark.slow
async def test_after_the_actor_was_killed_rings_arrive_again(store, url):
    other = open_store(url)
    with other.bell.listen("x") as theirs:
        await until(lambda: other.bell.hears)
        theirs.clear()
        os.kill(await pid_of(store.driver), signal.SIGKILL)
        assert await heard(theirs, 30)  # anything may have been rung meanwhile
        await until(lambda: other.bell.hears)
        theirs.clear()
        await store.driver.counts("p")
        store.bell.announce("x")
        assert await heard(theirs, 20)
    await other.close()
