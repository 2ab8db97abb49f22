"""Promises 1, 3, 4 and 6 over Redis: its server is killed, restarted or stopped amid the work; a host's link is cut."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LINK = Path(__file__).with_name("link.py")
STORE_FAILED = 3


@pytest.fixture
def server(own_redis):
    """A server whose file has every write."""
    return own_redis("--appendonly", "yes", "--appendfsync", "always")


def check_that_each_is_done_once(trial, n: int) -> None:
    counts = trial.counts()
    assert (counts.completed, counts.total) == (n, n)
    for name, history in trial.attempts().items():
        outcomes = Counter(attempt.outcome for attempt in history)
        assert outcomes == {"completed": 1}, f"{name}: {outcomes}"


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_promise_01_and_03_the_server_is_away_amid_the_work_and_nobody_hears_of_it(trial, server, size, how):
    """Promises 1 and 3: two launchers work on while their server comes and goes; each item is done once, none is failed."""
    times, n = size((2, 400), (10, 2000))
    trial.at = f"{server.url}?timeout=2"
    source = trial.items([{"key": f"i{k}", "seconds": 0.01} for k in range(n)], max_crashes=1)
    both = [trial.launch(source, 8) for _ in range(2)]
    for time_ in range(times):
        at = 3 * n * (time_ + 1) // (times + 2)
        trial.until(lambda at=at: trial.lines() >= at, 60)
        if how == "killed":
            server.kill()
            time.sleep(0.2)
            server.start()
        else:
            server.signal(signal.SIGSTOP)
            time.sleep(3)
            server.signal(signal.SIGCONT)
    for process in both:
        assert process.wait(120) == 0, process.end()
        assert "Traceback" not in process.end()
    check_that_each_is_done_once(trial, n)
    assert len(trial.ran()) == 3 * n


@pytest.mark.parametrize(
    ("how", "more"), [("restarted", ()), ("flushed", ()), ("flushed", ("--engine", "process?min_size=2&max_size=4"))]
)
def test_promise_01_a_server_that_comes_back_empty_is_a_clear_end(trial, own_redis, monkeypatch, how, more):
    """Promise 1: what was acknowledged is gone, and nobody goes on as if it was not."""
    monkeypatch.setenv("FLATFLEET_COMPOSE", "trial_parts:compose")
    server = own_redis()
    trial.at = server.url
    source = trial.items([{"key": f"i{k}", "seconds": 0.02} for k in range(200)], max_crashes=1)
    process = trial.launch(source, 4, *more)
    trial.until(lambda: trial.lines() >= 30)
    if how == "restarted":
        server.kill()
        server.start()
    else:
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            link.sendall(b"FLUSHALL\r\n")
            assert link.recv(64) == b"+OK\r\n"
    assert process.wait(60) == STORE_FAILED, process.end()
    said = process.end()
    assert "not on the server any more" in said
    assert "Traceback" not in said
    assert "left: 200" not in said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_promise_04_and_06_a_host_whose_link_is_cut_loses_its_items_and_comes_back(trial, server, size):
    """Promises 4 and 6: its items are done by the other host, its late commits are refused, and it goes on afterwards."""
    n, trial.lease, go, port = size(6, 30), 2.0, trial.path / "go", free_port()
    trial.at = server.url
    source = trial.items(
        [{"key": f"a{k}", "do": {"second": "wait"}, "until": str(go)} for k in range(n)], name="a", max_crashes=10
    )
    link = trial.python(LINK, str(port), str(server.port))
    trial.until(lambda: listens(port))
    trial.at = f"redis://127.0.0.1:{port}?timeout=1"
    cut = trial.launch(source, n)
    trial.at = server.url
    trial.until(lambda: sum(line["state"] == "second" for line in trial.ran()) == n)
    os.kill(link.pid, signal.SIGSTOP)
    go.touch()
    other = trial.work()
    assert other.wait(60) == 0, other.end()
    assert trial.counts().completed == n
    trial.items([{"key": f"b{k}"} for k in range(n)], name="b", max_crashes=10)
    os.kill(link.pid, signal.SIGCONT)
    assert cut.wait(60) == 0, cut.end()
    assert (trial.counts().completed, trial.counts().total) == (2 * n, 2 * n)
    for name, history in trial.attempts().items():
        outcomes = [(attempt.token, attempt.outcome) for attempt in history]
        assert outcomes == ([(1, "crashed"), (2, "completed")] if name[0] == "a" else [(1, "completed")])
    assert {line["pid"] for line in trial.ran() if line["item"].startswith("trial:b")} == {cut.pid}
