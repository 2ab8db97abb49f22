"""Promises 1, 3, 8 and 13 with `--engine process`: hosts are killed, their parent is killed, terminals and others interrupt."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULT = ["first", "second", "third"]


@pytest.fixture
def launch(trial, monkeypatch):
    """`launch(source, workers, *flags, engine=…)`: the shipped launcher with hosts that know the hooks of trial.py."""
    monkeypatch.setenv("FLATFLEET_COMPOSE", "trial_parts:compose")

    def start(source, workers, *more, engine="process?min_size=2&max_size=4", **options):
        return trial.launch(source, workers, "--engine", engine, *more, **options)

    return start


def hosts_of(process) -> list[int]:
    """The processes that a process has started and that have come up as far as to have a session of their own."""
    try:
        found = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []
    return [pid for pid in found if alive(pid) and b"host" in command(pid)]


def command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def check_results(trial, names) -> Counter[str]:
    """Every item has one result, committed once; return how its attempts ended."""
    items, attempts = trial.all_items(), trial.attempts()
    assert sorted(items) == sorted(names)
    assert {item.state for item in items.values()} == {"completed"}
    for name, history in attempts.items():
        assert items[name].result == {"item_id": items[name].id, "ran": RESULT}
        assert [attempt.outcome for attempt in history].count("completed") == 1
        assert history[-1].outcome == "completed"
    return Counter(attempt.outcome for history in attempts.values() for attempt in history)


def test_promise_01_a_host_is_killed_each_second_and_every_item_has_its_result_once(trial, launch, size):
    """Promises 1, 3 and 8: kill -9 of one host after the other; 2,000 results, once each, and the fleet goes on."""
    seconds, n = size((6, 2000), (60, 6000))
    names = [f"i{k:04}" for k in range(n)]
    wait = {"first": "pass", "second": "pass"}
    source = trial.items([{"key": name, "do": wait, "seconds": 0.02} for name in names], max_crashes=1000)
    process, killed = launch(source, 8), set()
    trial.until(lambda: trial.lines() > 20)
    ends = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < ends:
        victims = [pid for pid in hosts_of(process) if pid not in killed]
        if victims:
            killed.add(victim := random.choice(victims))
            os.kill(victim, signal.SIGKILL)
        time.sleep(1)
    assert process.wait(300) == 0, process.end()
    outcomes = check_results(trial, names)
    assert len(killed) >= 4
    assert outcomes.keys() <= {"completed", "crashed"}
    assert outcomes["crashed"] >= 1
    assert json.loads(process.out.read_text())["failures"] == {}
    assert not any(map(alive, killed))


def test_promise_01_without_a_scaler_too_the_workers_of_a_dead_host_are_replaced(trial, launch):
    """Promises 1 and 8: nobody but the engine can replace workers that do not register."""
    names = [f"i{k:03}" for k in range(60)]
    source = trial.items([{"key": name, "seconds": 0.03} for name in names])
    process = launch(source, 2, "--registration", "none", engine="process?min_size=2&max_size=2")
    trial.until(lambda: trial.lines() > 6)
    for victim in hosts_of(process):
        os.kill(victim, signal.SIGKILL)
    assert process.wait(120) == 0, process.end()
    check_results(trial, names)


@pytest.mark.parametrize("do", ["wait", "block"])
def test_promise_01_hosts_end_with_their_parent_whatever_ends_it(trial, launch, do):
    """Promise 1: kill -9 of the parent leaves no process, asleep or with a blocked event loop, and no item is lost."""
    item = {"do": {"first": do}, "until": str(trial.path / "never"), "seconds": 600.0}
    source = trial.items([{"key": f"i{k}", **item} for k in range(4)])
    process = launch(source, 4)
    trial.until(lambda: len({line["pid"] for line in trial.ran()}) >= 2)
    hosts = hosts_of(process)
    assert len(hosts) >= 2
    os.kill(process.pid, signal.SIGKILL)
    trial.until(lambda: not any(map(alive, hosts)), 20)
    assert trial.counts().claimed == 0
    outcomes = Counter(attempt.outcome for history in trial.attempts().values() for attempt in history)
    assert outcomes.keys() == {"released"}


def test_promise_8_the_workers_of_a_dead_launchers_hosts_are_replaced_by_another_launcher(trial, launch):
    """Promise 8: hosts that end because nobody is there to tell them anything leave workers that are lost, not ended."""
    go = trial.path / "go"
    source = trial.items([{"key": f"i{k}", "do": {"first": "wait"}, "until": str(go)} for k in range(12)])
    more = ("--reap-interval", "0.2")
    first, second = launch(source, 2, *more), launch(source, 2, *more)
    trial.until(lambda: trial.db.exists() and trial.counts().claimed == 4)
    os.kill(first.pid, signal.SIGKILL)

    def replaced():
        found = trial.ask(lambda store: store.registration.list())
        return [each.status for each in found if each.status != "active"] == ["lost"] * 2 and len(found) == 6

    trial.until(lambda: replaced() and trial.counts().claimed == 4)
    go.touch()
    assert second.wait(60) == 0, second.end()
    check_results(trial, [f"i{k}" for k in range(12)])


def test_promise_8_the_same_command_goes_on_while_hosts_of_the_killed_launcher_still_block(trial, launch):
    """Promises 1, 3 and 8: a host counts as dead from the moment its launcher is; what it commits later is refused."""
    names = [f"i{k}" for k in range(6)]
    blocks = {"do": {"first": "block"}, "seconds": 4.0}
    source = trial.items([{"key": name, **(blocks if name in ("i0", "i1") else {})} for name in names])
    engine = "process?min_size=2&max_size=2"
    first = launch(source, 2, engine=engine)
    trial.until(lambda: len({line["pid"] for line in trial.ran()}) == 2)
    os.kill(first.pid, signal.SIGKILL)
    second = launch(source, 2, engine=engine)
    assert second.wait(60) == 0, second.end()
    assert check_results(trial, names).keys() <= {"completed", "crashed", "released"}
    assert trial.ask(lambda store: store.fleet("trial").target()) in (None, 2)
    workers = trial.ask(lambda store: store.registration.list())
    assert sorted(each.status for each in workers) == ["lost", "lost", "terminated", "terminated"]


def test_promise_13_a_second_signal_to_a_host_means_now(trial, launch):
    item = {"do": {"first": "wait"}, "until": str(trial.path / "never"), "seconds": 600.0}
    source = trial.items([{"key": f"i{k}", **item} for k in range(4)])
    process = launch(source, 2, "--drain-deadline", "3600", engine="process?min_size=1&max_size=1")
    trial.until(lambda: trial.counts().claimed == 2)
    (host,) = hosts_of(process)
    for _ in range(2):
        os.kill(host, signal.SIGTERM)
        time.sleep(0.3)
    trial.until(lambda: not alive(host))
    trial.until(lambda: trial.counts().claimed == 2)
    assert "died" not in process.err.read_text()  # as it says where the host's watchdog has ended it, seconds later
    assert {each.outcome for history in trial.attempts().values() for each in history} == {"released"}


def test_promise_8_a_host_that_was_told_to_go_and_lost_its_launcher_leaves_lost_workers(trial, launch):
    go = trial.path / "go"
    source = trial.items([{"key": f"i{k}", "do": {"first": "wait"}, "until": str(go)} for k in range(6)])
    first = launch(source, 2, engine="process?min_size=1&max_size=1")
    trial.until(lambda: trial.counts().claimed == 2)
    (host,) = hosts_of(first)
    os.kill(host, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGKILL)
    trial.until(lambda: not alive(host), 20)
    workers = trial.ask(lambda store: store.registration.list())
    assert "terminated" not in {each.status for each in workers}  # of dead processes: whoever looks finds them lost
    go.touch()
    second = launch(source, 2)
    assert second.wait(60) == 0, second.end()
    check_results(trial, [f"i{k}" for k in range(6)])


def test_promise_13_a_terminals_interrupt_reaches_the_whole_group_and_the_hosts_are_drained(trial, launch):
    """Promise 13: what hosts hold is finished, nothing new is begun, nothing is burnt."""
    source = trial.items([{"key": f"i{n:02}", "seconds": 0.2} for n in range(80)])
    process = launch(source, 6)
    trial.until(lambda: trial.lines() >= 7)
    taken = {line["item"] for line in trial.ran()}
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, process.end()
    items = trial.all_items().values()
    assert {item.state for item in items} == {"ready", "completed"}
    assert {(item.attempts, item.crashes) for item in items} == {(0, 0)}
    counts, ran = trial.counts(), trial.ran_by_item()
    assert (counts.claimed, counts.completed) == (0, len(ran))
    assert taken <= ran.keys()
    said = json.loads(process.out.read_text())
    assert (said["handed_back"], said["interrupted"], said["failures"]) == (0, True, {})
    assert "in hand" not in process.err.read_text()  # --json


@pytest.mark.parametrize(("do", "again"), [("wait", False), ("block", False), ("wait", True)])
def test_promise_13_at_the_deadline_or_a_second_signal_hosts_hand_back_unburnt(trial, launch, do, again):
    """Promise 13: whether the hosts sleep or their event loops are blocked; the process is gone some seconds later."""
    item = {"do": {"first": do}, "until": str(trial.path / "never"), "seconds": 600.0}
    source = trial.items([{"key": f"i{n:02}", **item} for n in range(20)])
    process = launch(source, 4, "--drain-deadline", "3600" if again else "0.5", engine="process?max_size=4&min_size=4")
    trial.until(lambda: trial.counts().claimed == 4 and trial.lines() >= 4)
    hosts = hosts_of(process)
    os.kill(process.pid, signal.SIGTERM)
    if again:
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 130, process.end()
    assert not any(map(alive, hosts))
    released = [a.outcome for history in trial.attempts().values() for a in history]
    assert released == ["released"] * 4
    assert trial.counts().waiting == 20
    assert json.loads(process.out.read_text())["handed_back"] == 4


def test_promise_13_everybody_is_told_to_go_at_once_as_systemd_does(trial, launch):
    """Promise 13: SIGTERM to the parent and to each of its hosts: what they hold is finished, nothing is burnt."""
    source = trial.items([{"key": f"i{n:02}", "seconds": 0.2} for n in range(80)])
    process = launch(source, 4)
    trial.until(lambda: trial.lines() >= 5)
    hosts = hosts_of(process)
    for pid in (*hosts, process.pid):
        os.kill(pid, signal.SIGTERM)
    assert process.wait(60) == 130, process.end()
    assert not any(map(alive, hosts))
    items = trial.all_items().values()
    assert {item.state for item in items} <= {"ready", "completed"}
    assert {(item.attempts, item.crashes) for item in items} == {(0, 0)}
    assert trial.counts().claimed == 0


def test_promise_13_a_host_that_is_told_to_go_drains_and_the_run_goes_on(trial, launch):
    """Promise 13: SIGTERM on one host, a notice that its machine is wanted: its items are finished, its workers replaced."""
    names = [f"i{n:03}" for n in range(60)]
    source = trial.items([{"key": name, "seconds": 0.05} for name in names])
    process = launch(source, 4, engine="process?max_size=2")
    trial.until(lambda: trial.lines() >= 8)
    victim = hosts_of(process)[0]
    os.kill(victim, signal.SIGTERM)
    trial.until(lambda: not alive(victim))
    assert process.wait(120) == 0, process.end()
    assert check_results(trial, names).keys() == {"completed"}


def test_promise_13_while_a_busy_host_drains_others_work_in_the_place_of_its_workers(trial, launch):
    """Promise 13: nothing waits for what a host that has to go still holds, and each item is done once."""
    go, names = trial.path / "go", [f"i{k}" for k in range(6)]
    source = trial.items([{"key": name, "do": {"first": "wait"}, "until": str(go)} for name in names])
    process = launch(source, 3, engine="process?min_size=1&max_size=2&slots=3")
    trial.until(lambda: trial.db.exists() and trial.counts().claimed == 3)
    before = trial.ask(lambda store: store.registration.list())
    for pid in {each.pid for each in before}:
        os.kill(pid, signal.SIGTERM)
    trial.until(lambda: trial.counts().claimed == 6)
    found = {each.worker_id: each for each in trial.ask(lambda store: store.registration.list())}
    assert len(found) == 6
    for each in before:
        assert found[each.worker_id].status == "terminating"
        assert found[f"{each.worker_id}.2"].status == "active"
    go.touch()
    assert process.wait(60) == 0, process.end()
    assert check_results(trial, names) == {"completed": 6}
    said = json.loads(process.out.read_text())
    assert (said["handed_back"], said["failures"]) == (0, {})
    assert len(trial.ask(lambda store: store.registration.list())) == 6


def test_a_run_leaves_nothing_open_and_says_nothing_of_what_it_left(trial, launch, monkeypatch):
    """A ResourceWarning of the parent or of a host, or a word of multiprocessing's resource tracker, would be a leak."""
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning")
    source = trial.items([{"key": f"i{n:03}", "do": dict.fromkeys(RESULT, "pass")} for n in range(200)])
    process = launch(source, 20, engine="process?min_size=1&max_size=3&idle_timeout=0.1")
    said = process.end(120)
    assert process.returncode == 0, said
    assert "ResourceWarning" not in said
    assert "resource_tracker" not in said


def test_many_workers_run_on_few_hosts(trial, launch):
    """Without `slots` nobody queues: 200 workers on three hosts."""
    source = trial.items([{"key": f"i{n:03}", "do": dict.fromkeys(RESULT, "pass")} for n in range(400)])
    process = launch(source, 200, engine="process?max_size=3")
    assert process.wait(120) == 0, process.end()
    assert trial.counts().completed == 400
    said = json.loads(process.out.read_text())
    assert (said["output"]["workers"], said["failures"]) == (200, {})


def test_a_machine_without_a_launch_runs_with_any_engine(trial):
    """A worker by itself: where nothing is launched, no host is started."""
    trial.items([{"key": "a", "do": dict.fromkeys(RESULT, "pass")}], max_crashes=5)
    process = trial.work("--engine", "process")
    assert process.wait(60) == 0, process.end()
    assert {line["pid"] for line in trial.ran()} == {process.pid}
