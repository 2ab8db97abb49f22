"""Benchmarks leave no process behind: not the Redis server, not a contestant's workers, whatever ends the benchmark."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flatfleet.benchmarks import server
from flatfleet.benchmarks.processes import Crew, children

FORKING = "import os, time; os.fork(); time.sleep(600)"
HOLDER = f"""
import sys, time
from pathlib import Path
from flatfleet.benchmarks import processes, server
processes.leave_in_order()
with server.running(), processes.Crew(Path(sys.argv[1])) as crew:
    crew.start([sys.executable, "-c", {FORKING!r}])
    print("ready", flush=True)
    time.sleep(600)
"""
RUNNER = """
import sys
from flatfleet.benchmarks import processes
processes.leave_in_order()
processes.output([sys.executable, "-c", sys.argv[1], sys.argv[2]], "/", 600)
"""


def below(pid: int) -> set[int]:
    """All processes below this one."""
    return {each for child in children(pid) for each in (child, *below(child))}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(true: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_whatever_ends_the_benchmark(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", RUNNER, HOLDER, str(tmp_path)], start_new_session=True)
    try:
        until(lambda: len(below(process.pid)) == 4, "the server and the workers have not come up")
        left = below(process.pid)
        process.send_signal(number)
        assert process.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
        until(lambda: not any(map(alive, left)), "a process is left")
    finally:
        process.kill()
        process.wait()


def test_the_last_words_of_a_process_that_has_ended_are_told(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew:
        crew.start([sys.executable, "-c", "import sys; sys.exit('no such broker')"])
        until(lambda: crew.failed() is not None, "it has not ended")
        assert crew.failed() == "exit code 1: no such broker"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_processes_that_are_held_do_nothing_until_they_are_let_go(tmp_path: Path) -> None:
    log = tmp_path / "crew-0.log"
    with Crew(tmp_path) as crew:
        process = crew.start([sys.executable, "-uc", "import time\nwhile True: print(1); time.sleep(0.001)"])
        until(lambda: log.stat().st_size > 0, "it has not begun")
        crew.hold()
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it runs")
        size = log.stat().st_size
        crew.go()
        until(lambda: log.stat().st_size > size, "it has not gone on")
    assert process.returncode == -signal.SIGKILL


def test_a_worker_that_is_killed_and_not_yet_dead_gets_no_task_of_the_next_run() -> None:
    url = server.fresh()
    with server.client(url) as late, server.client(url) as redis:
        late.connection_pool.get_connection().send_command("BRPOP", "queue", 30)
        until(lambda: any(each["cmd"] == "brpop" for each in redis.client_list()), "nobody waits for a task")
        server.fresh()
        redis.lpush("queue", "task")
        assert redis.llen("queue") == 1
