"""The wire between processes that use one store: real processes hear, nothing blocks a sender, nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flatfleet.runtime.stores import datagrams, open_store, wire
from flatfleet.runtime.stores.bell import Bell, heard
from flatfleet.runtime.stores.datagrams import Ear, send
from flatfleet.runtime.stores.wire import HostWire

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets: processes poll")

LISTENER = """
import asyncio, contextlib, sys
from pathlib import Path
from flatfleet.runtime.stores import open_store, wire
from flatfleet.runtime.stores.bell import heard
place, url, *topics = sys.argv[1:]
wire.places = lambda: [Path(place)]

async def main():
    bell = open_store(url).bell
    async def wait(topic, listening):
        with bell.listen(topic) as rung:
            listening.set()
            while True:
                if await heard(rung, 60):
                    print(topic, flush=True)
    for topic in topics:
        listening = asyncio.Event()
        tasks.append(asyncio.create_task(wait(topic, listening)))
        await listening.wait()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

tasks = []
asyncio.run(main())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of sockets for this test alone, with a path that is short enough."""
    parent = Path(tempfile.mkdtemp(prefix="ff-", dir="/tmp"))
    yield parent / "wire"
    shutil.rmtree(parent)


@pytest.fixture
def bell_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Bell]:
    monkeypatch.setattr(wire, "places", lambda: [place])
    return lambda file: Bell(HostWire(file))


@pytest.fixture
def listener(place: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that prints the topics it hears."""
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str, *topics: str, **options: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", LISTENER, str(place), url, *topics]
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, bufsize=0, **options))
        assert line(started[-1]) == "ready"
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def line(process: subprocess.Popen[bytes]) -> str:
    """The next line that the process prints, within ten seconds; its pipe has no buffer here, so that none is overlooked."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 10)[0], "the process said nothing"
    return process.stdout.readline().decode().strip()


def sockets(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


async def hears(bell: Bell, act: Callable[[], Awaitable[None] | None], topic: str = "p", within: float = 5.0) -> bool:
    with bell.listen(topic) as rung:
        done = act()
        if done is not None:
            await done
        return await heard(rung, within)


# -- who hears ---------------------------------------------------------------------------------------------------------


def test_another_process_is_woken_by_what_it_listens_to(listener: Any, bell_at: Any, tmp_path: Path) -> None:
    process = listener(f"sqlite:{tmp_path}/s.db", "p", "q")
    bell = bell_at(tmp_path / "s.db")
    bell.ring("q")  # this process only
    bell.announce("other", "p")
    assert line(process) == "p"
    bell.announce("q")
    assert line(process) == "q"


async def test_a_wake_up_takes_milliseconds(listener: Any, bell_at: Any, tmp_path: Path) -> None:
    process = listener(f"sqlite:{tmp_path}/s.db", "p")
    bell, took = bell_at(tmp_path / "s.db"), []
    for _ in range(20):
        begun = time.monotonic()
        bell.announce("p")
        await asyncio.to_thread(line, process)
        took.append(time.monotonic() - begun)
    assert sorted(took)[10] < 0.05


def test_every_path_to_a_store_leads_to_one_wire_and_other_stores_to_others(
    listener: Any, bell_at: Any, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "link.db").symlink_to("real/s.db")
    processes = [
        listener("sqlite:s.db", "p", cwd=tmp_path / "real"),
        listener("sqlite:../folder/s.db", "p", cwd=tmp_path / "real"),
        listener(f"sqlite:{tmp_path}/link.db?synchronous=FULL", "p"),
        listener("sqlite:~/real/./s.db", "p", env=os.environ | {"HOME": str(tmp_path)}),
    ]
    stranger = listener(f"sqlite:{tmp_path}/s.db", "p")
    bell_at(tmp_path / "real/s.db").announce("p")
    assert [line(process) for process in processes] == ["p"] * 4
    assert stranger.communicate(b"\n")[0] == b""


async def test_two_stores_of_one_process_hear_each_other_and_not_themselves(bell_at: Any, tmp_path: Path) -> None:
    one, two = bell_at(tmp_path / "s.db"), bell_at(tmp_path / "s.db")
    assert await hears(one, lambda: two.announce("p"))
    assert await hears(two, lambda: one.announce("p"))
    calls: asyncio.Queue[object] = asyncio.Queue()
    one._hear = calls.put_nowait  # type: ignore[method-assign]
    await one.close()
    one.open()
    one.announce("p")
    two.announce("q")
    async with asyncio.timeout(5):
        assert await calls.get() == {"q"}
    await one.close()
    await two.close()


async def test_the_operations_of_a_store_wake_the_others(bell_at: Any, place: Path, tmp_path: Path) -> None:
    one, two = open_store(f"sqlite:{tmp_path}/s.db"), open_store(f"sqlite:{tmp_path}/s.db")
    mine, pool = one.bell, two.work.pool("p")
    assert await hears(mine, lambda: pool.push({}, {"key": "a", "max_retries": 1}))
    assert not await hears(mine, lambda: pool.push({}, {"key": "a"}), within=0.05)  # added nothing
    claim = await pool.claim("w")
    assert claim is not None
    assert await hears(mine, lambda: pool.release(claim.id, token=claim.token))
    again = await pool.claim("w")
    assert again is not None
    assert await hears(mine, lambda: pool.release_by_worker("w"))
    last = await pool.claim("w")
    assert last is not None
    await pool.fail(last.id, "no", token=last.token, permanent=True)
    assert await hears(mine, pool.retry)
    assert await hears(mine, lambda: two.signals.send("c", 1), "c")
    assert await hears(mine, lambda: two.signals.send("c", 1), "signals")
    await one.close()
    await two.close()
    assert sockets(place) == []


async def test_a_store_in_memory_has_no_wire(bell_at: Any, place: Path) -> None:
    store = open_store("memory:")
    assert await hears(store.bell, lambda: store.work.pool("p").push(1))
    await store.close()
    assert not place.exists()


# -- what is sent ------------------------------------------------------------------------------------------------------


async def test_a_burst_is_sent_together(bell_at: Any, place: Path, tmp_path: Path) -> None:
    bell = bell_at(tmp_path / "s.db")
    wire_of = HostWire(tmp_path / "s.db", [place])
    place.mkdir(0o700)
    ear = Ear(place, wire_of._store)
    begun = time.monotonic()
    for n in range(2000):
        bell.announce(f"topic{n % 20}")
        if n % 100 == 0:
            await asyncio.sleep(0)
    await bell.close()
    sends = 2 + (time.monotonic() - begun) / wire.PAUSE
    got: set[str] = set()
    messages = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            got |= datagrams._decode(ear.socket.recv(2000)) or set()
            messages += 1
    assert got == {f"topic{n}" for n in range(20)}
    assert 1 <= messages <= sends
    ear.close()


def test_what_was_announced_last_is_sent_before_the_store_is_closed(bell_at: Any, place: Path, tmp_path: Path) -> None:
    bell = bell_at(tmp_path / "s.db")
    place.mkdir(0o700)
    ear = Ear(place, bell._wire._store)

    async def use() -> None:
        bell.announce("p")
        await asyncio.sleep(0.001)
        bell.announce("q")  # has to wait
        await bell.close()

    asyncio.run(use())
    assert ear.read() == {"p", "q"}
    ear.close()


async def test_what_is_still_to_be_sent_takes_little_memory(bell_at: Any, tmp_path: Path) -> None:
    bell = bell_at(tmp_path / "s.db")
    for n in range(10_000):
        bell.announce(f"topic{n}")
        assert len(bell._wire._topics or ()) <= wire.TOPICS
    await bell.close()


@pytest.mark.parametrize(
    "topics", [["x" * 1_000_000], [f"topic{n}" for n in range(5000)]], ids=["one long name", "very many names"]
)
async def test_what_is_too_large_wakes_everybody(bell_at: Any, tmp_path: Path, topics: list[str]) -> None:
    one, two = bell_at(tmp_path / "s.db"), bell_at(tmp_path / "s.db")
    assert await hears(one, lambda: two.announce(*topics), "p")
    assert two._wire._topics == set()
    await one.close()


async def test_strange_names_arrive_as_they_are(bell_at: Any, tmp_path: Path) -> None:
    one, two = bell_at(tmp_path / "s.db"), bell_at(tmp_path / "s.db")
    for topic in ("a\nb", "\0", "ü/☃", "\udc80", "[]", ""):
        assert await hears(one, lambda topic=topic: two.announce(topic), topic), topic
    await one.close()


@pytest.mark.parametrize("data", [b"", b"\xff", b"7", b"{}", b"[[]", b"[" * 990, b"x" * 4000])
async def test_a_message_that_makes_no_sense_wakes_everybody(
    bell_at: Any, place: Path, tmp_path: Path, data: bytes
) -> None:
    bell = bell_at(tmp_path / "s.db")

    def act() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(data, str(place / sockets(place)[0]))

    assert await hears(bell, act)
    assert await hears(bell, act)
    await bell.close()


# -- who does not read -------------------------------------------------------------------------------------------------


def test_a_stopped_receiver_blocks_nobody_and_hears_all_when_it_goes_on(
    listener: Any, bell_at: Any, tmp_path: Path
) -> None:
    url = f"sqlite:{tmp_path}/s.db"
    stopped, awake = listener(url, "last"), listener(url, "last", "p")
    os.kill(stopped.pid, signal.SIGSTOP)
    bell = bell_at(tmp_path / "s.db")
    slowest = 0.0
    for n in range(300):
        begun = time.monotonic()
        bell.announce("p" if n == 150 else f"topic{n}")
        slowest = max(slowest, time.monotonic() - begun)
    bell.announce("last")
    assert slowest < 1.0
    assert {line(awake), line(awake)} == {"p", "last"}
    os.kill(stopped.pid, signal.SIGCONT)
    assert line(stopped) == "last"


def test_a_queue_that_was_full_may_have_refused_something(place: Path) -> None:
    place.mkdir(0o700)
    ear = Ear(place, "s")
    send(place, [ear.path.name], {"a"})
    send(place, [ear.path.name], {"b"})
    assert ear.read() == ({"a", "b"} if ear.room > 1 else None)
    for n in range(ear.room):
        send(place, [ear.path.name], {str(n)})
    assert ear.read() == {str(n) for n in range(ear.room)}
    for n in range(ear.room + 50):
        send(place, [ear.path.name], {str(n)})
    assert ear.read() is None
    assert ear.read() == set()
    ear.close()


def test_many_who_do_not_read_starve_nobody(place: Path) -> None:
    """What they have not read counts against the sender's buffer."""
    place.mkdir(0o700)
    ears = [Ear(place, "s") for _ in range(200)]
    last = Ear(place, "s")
    others = [ear.path.name for ear in [*ears, last]]
    for n in range(40):
        send(place, others, {"x" * (datagrams.LARGEST - 10), str(n)})
        assert last.read() == {"x" * (datagrams.LARGEST - 10), str(n)}, n
    for ear in [*ears, last]:
        ear.close()


# -- what is left over -------------------------------------------------------------------------------------------------


def test_the_socket_of_a_killed_process_is_removed_by_whoever_sends(
    listener: Any, bell_at: Any, place: Path, tmp_path: Path
) -> None:
    process = listener(f"sqlite:{tmp_path}/s.db", "p")
    process.kill()
    process.wait()
    assert len(sockets(place)) == 1
    bell_at(tmp_path / "s.db").announce("p")
    assert sockets(place) == []


def test_who_comes_removes_what_the_dead_of_any_store_left(listener: Any, place: Path, tmp_path: Path) -> None:
    dead = [listener(f"sqlite:{tmp_path}/{n}.db", "p") for n in range(2)]
    alive = listener(f"sqlite:{tmp_path}/alive.db", "p")
    for process in dead:
        process.kill()
        process.wait()
    assert len(sockets(place)) == 3
    last = listener(f"sqlite:{tmp_path}/last.db", "p")
    assert sorted(int(name.split(".")[1]) for name in sockets(place)) == sorted([alive.pid, last.pid])


def test_a_process_that_ends_without_closing_its_store_leaves_nothing(
    listener: Any, place: Path, tmp_path: Path
) -> None:
    process = listener(f"sqlite:{tmp_path}/s.db", "p")
    process.communicate(b"\n")
    assert process.returncode == 0
    assert sockets(place) == []


async def test_closing_removes_the_socket_and_who_only_sends_has_none(
    bell_at: Any, place: Path, tmp_path: Path
) -> None:
    bell = bell_at(tmp_path / "s.db")
    bell.announce("p")
    await asyncio.sleep(0.01)
    assert not place.exists()
    with bell.listen("p"), bell.listen("q"):
        assert len(sockets(place)) == 1
    await bell.close()
    assert sockets(place) == []
    assert [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]
    bell.open()
    assert len(sockets(place)) == 1
    await bell.close()
    await bell.close()


async def test_a_directory_that_goes_is_made_again(
    bell_at: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CHECK", 0.01)
    one, two = bell_at(tmp_path / "s.db"), bell_at(tmp_path / "s.db")
    with one.listen("p") as rung:
        before = sockets(place)
        shutil.rmtree(place)
        async with asyncio.timeout(5):
            while not await heard(rung, 0.02):
                two.announce("p")
        assert len(sockets(place)) == 1
        assert sockets(place) != before
    await one.close()
    assert sockets(place) == []


# -- whom to trust -----------------------------------------------------------------------------------------------------


def _owned_by_somebody_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def _open_to_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    place.chmod(0o770)


def _a_link(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.parent / "theirs").mkdir(0o700)
    place.symlink_to("theirs")


def _a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.touch(0o600)


@pytest.mark.parametrize("make", [_owned_by_somebody_else, _open_to_others, _a_link, _a_file])
async def test_a_directory_that_is_not_ones_own_is_not_used(
    bell_at: Any, place: Path, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    make(place, monkeypatch)
    bell = bell_at(tmp_path / "s.db")
    planted = None
    if place.is_dir():
        planted = Ear(place, bell._wire._store)
    with caplog.at_level(logging.WARNING):
        assert await hears(bell, lambda: bell.announce("p"))  # this process hears itself as ever
        bell.announce("p")
        await asyncio.sleep(0.01)
    assert "is not this user's own directory" in caplog.text
    assert len(caplog.records) == 1
    if planted is not None:
        assert sockets(place.resolve()) == [planted.path.name]
        assert planted.read() == set()  # nothing was told to strangers
        planted.close()
    await bell.close()


async def test_the_second_directory_is_used_where_the_first_cannot_be(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dirs = [place.parent / "no" / "such", place]
    monkeypatch.setattr(wire, "places", lambda: dirs)
    one, two = Bell(HostWire(tmp_path / "s.db")), Bell(HostWire(tmp_path / "s.db"))
    assert await hears(one, lambda: two.announce("p"))
    assert len(sockets(place)) == 1
    assert place.stat().st_mode & 0o777 == 0o700
    await one.close()


@pytest.mark.parametrize("dirs", [[], ["/proc/nowhere"], ["/tmp/" + "x" * 120]], ids=["none", "unwritable", "too long"])
async def test_where_there_can_be_no_socket_this_process_still_hears_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dirs: list[str]
) -> None:
    monkeypatch.setattr(wire, "places", lambda: [Path(each) for each in dirs])
    bell = Bell(HostWire(tmp_path / "s.db"))
    assert await hears(bell, lambda: bell.announce("p"))
    await asyncio.sleep(0.01)
    await bell.close()
    for each in dirs:
        if Path(each).exists():
            Path(each).rmdir()


def test_the_places_are_short_and_the_users_own() -> None:
    for each in wire.places():
        assert str(os.geteuid()) in str(each)
        assert len(f"{each}/new-{'0' * 16}.4194304.{'0' * 8}") < 100


# -- loops and forks ---------------------------------------------------------------------------------------------------


def test_a_store_used_under_one_loop_after_another(bell_at: Any, place: Path, tmp_path: Path) -> None:
    one, two = bell_at(tmp_path / "s.db"), bell_at(tmp_path / "s.db")

    async def use() -> None:
        assert await hears(one, lambda: two.announce("p"))
        assert len(sockets(place)) == 1
        two.announce("q")  # is still to be sent when the loop ends

    asyncio.run(use())
    asyncio.run(use())

    async def close() -> None:
        await one.close()
        await two.close()

    asyncio.run(close())
    assert sockets(place) == []


FORK = """
import asyncio, atexit, os, sys
from pathlib import Path
from flatfleet.runtime.stores import wire
from flatfleet.runtime.stores.wire import HostWire
from flatfleet.runtime.stores.bell import Bell, heard
place, file = map(Path, sys.argv[1:])
wire.places = lambda: [place]
bell, other = Bell(HostWire(file)), Bell(HostWire(file))

async def hears(teller):
    with bell.listen("p") as rung:
        teller.announce("p")
        return await heard(rung, 5)

async def child():
    assert await hears(Bell(HostWire(file)))
    assert len(list(place.iterdir())) == 2
    await bell.close()
    assert len(list(place.iterdir())) == 1

async def main():
    with bell.listen("p") as rung:
        pid = os.fork()
        if not pid:
            asyncio._set_running_loop(None)
            try:
                asyncio.run(child())
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            atexit._run_exitfuncs()
            os._exit(0)
        status = (await asyncio.to_thread(os.waitpid, pid, 0))[1]
        assert os.waitstatus_to_exitcode(status) == 0, status
        assert await heard(rung, 5)  # by the child's
        other.announce("p")
        assert await heard(rung, 5)
        assert len(list(place.iterdir())) == 1

asyncio.run(main())
assert list(place.iterdir())
"""


def test_a_forked_child_has_its_own_socket_and_leaves_its_parents_alone(place: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(place), str(tmp_path / "s.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sockets(place) == []
