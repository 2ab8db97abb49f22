"""The promises hold for coordinators and pipelines as for workers: real processes, real SIGKILL, real SIGTERM."""

from __future__ import annotations

import json
import os
import random
import signal

import pytest

pytestmark = pytest.mark.slow

COORDINATOR = "machines/coordinator.yml"
INTERRUPTED = 130
ORDER = {"first": 0, "second": 1, "third": 2, "done": 3}


def push(trial, names, **item):
    trial.items([{"key": name, **item} for name in names], max_crashes=1000)


def coordinate(trial, *more):
    return trial.work(*more, machine=COORDINATOR)


def check(trial, names):
    """Every item has one result, committed once, made of each state; no state ran behind one that was committed."""
    items, attempts = trial.all_items(), trial.attempts()
    assert sorted(items) == sorted(names)
    assert {item.state for item in items.values()} == {"completed"}
    for name, history in attempts.items():
        assert items[name].result == {"item_id": items[name].id, "ran": ["first", "second", "third"]}
        assert [attempt.outcome for attempt in history].count("completed") == 1
        tokens = [attempt.token for attempt in history]
        assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("parallel", [20, 3])
def test_two_coordinators_in_two_processes_never_run_more_than_the_pools_size_together(trial, parallel):
    names = [f"i{n:03}" for n in range(60)]
    push(trial, names, seconds=0.02)
    both = [coordinate(trial, "--max-parallel", str(parallel), "--pool-size", "5") for _ in range(2)]
    most = 0
    while any(process.poll() is None for process in both):
        most = max(most, trial.counts().claimed)
    assert [process.wait(30) for process in both] == [0, 0], [process.end() for process in both]
    check(trial, names)
    spans = {}
    for line in trial.ran():
        begun, _ = spans.get(line["item"], (line["at"], 0.0))
        spans[line["item"]] = (begun, line["at"])
    edges = sorted([(begun, 1) for begun, _ in spans.values()] + [(end, -1) for _, end in spans.values()])
    running = at_once = 0
    for _, step in edges:
        running += step
        at_once = max(at_once, running)
    assert at_once == most == 5
    if parallel < 5:
        assert len({line["pid"] for line in trial.ran()}) == 2


def test_kill_9_of_a_coordinator_in_the_middle_loses_nothing_and_repeats_no_committed_state(trial, size):
    kills, n = size((4, 80), (15, 300))
    names = [f"i{k}" for k in range(n)]
    push(trial, names, seconds=0.02)
    committed = []
    for _ in range(kills):
        at = trial.lines() + random.randint(10, 2 * n // (kills + 1))
        process = coordinate(trial, "--max-parallel", "10")
        trial.until(lambda at=at: trial.lines() >= at)
        process.stop()
        committed.append((trial.lines(), trial.checkpoints()))
    last = coordinate(trial, "--max-parallel", "10")
    assert last.wait(120) == 0, last.end()
    check(trial, names)
    ran = trial.ran()
    assert any(checkpoints for _, checkpoints in committed)
    for at, checkpoints in committed:
        for line in ran[at:]:
            reached = checkpoints.get(line["item"], "first")
            assert ORDER[line["state"]] >= ORDER[reached], f"{line} ran again behind its checkpoint '{reached}'"
    assert trial.checkpoints() == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_a_coordinator(trial, number):
    push(trial, [f"i{n:02}" for n in range(30)], seconds=0.1)
    process = coordinate(trial, "--max-parallel", "8")
    trial.until(lambda: trial.lines() >= 8)
    os.kill(process.pid, number)
    assert process.wait(30) == INTERRUPTED, process.end()
    counts = trial.counts()
    assert (counts.claimed, counts.completed, counts.waiting) == (0, 8, 22)
    assert json.loads(process.out.read_text())["handed_back"] == 0


def test_at_the_deadline_a_coordinator_hands_everything_back_unburnt(trial):
    push(trial, [f"i{n:02}" for n in range(20)], do={"first": "wait"}, until=str(trial.path / "never"))
    process = coordinate(trial, "--max-parallel", "8", "--drain-deadline", "0.3")
    trial.until(lambda: trial.counts().claimed == 8 and trial.lines() >= 8)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == INTERRUPTED, process.end()
    assert json.loads(process.out.read_text())["handed_back"] == 8
    items = trial.all_items().values()
    assert {(item.state, item.attempts, item.crashes) for item in items} == {("ready", 0, 0)}


def test_kill_9_of_a_pipeline_loses_nothing_and_the_same_command_ends_it(trial, size):
    kills, n = size((3, 60), (10, 200))
    names = [f"i{k}" for k in range(n)]
    source = trial.items([{"key": name, "seconds": 0.02} for name in names])
    argv = ("machines/pipeline.yml", "--task", str(trial.root / "tests/promises/trial.yml"), "--input", str(source))
    argv += ("--pool", "trial", "--in-flight", "12", "--workers", "6", "--out", str(trial.path / "out"))
    for _ in range(kills):
        at = trial.lines() + random.randint(5, 2 * n // (kills + 1))
        process = trial.start(*argv, "--store", trial.url, "--json")
        trial.until(lambda at=at: trial.lines() >= at)
        process.stop()
    last = trial.start(*argv, "--store", trial.url, "--json")
    assert last.wait(120) == 0, last.end()
    check(trial, names)
    report = json.loads((trial.path / "out/trial-aggregate/report.json").read_text())
    assert (len(report["items"]), report["missing"]) == (n, [])
    before = trial.lines()
    again = trial.start(*argv, "--store", trial.url, "--json")
    assert again.wait(60) == 0, again.end()
    assert trial.lines() == before
    assert json.loads(again.out.read_text())["output"]["report"]["completed"] == n


def test_a_signal_drains_a_pipeline_and_the_same_command_goes_on(trial):
    names = [f"i{n:02}" for n in range(40)]
    source = trial.items([{"key": name, "seconds": 0.05} for name in names])
    argv = ("machines/pipeline.yml", "--task", str(trial.root / "tests/promises/trial.yml"), "--input", str(source))
    argv += ("--pool", "trial", "--in-flight", "8", "--workers", "4", "--out", "", "--store", trial.url, "--json")
    process = trial.start(*argv)
    trial.until(lambda: trial.lines() >= 6)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == INTERRUPTED, process.end()
    counts = trial.counts()
    assert counts.claimed == 0
    assert 0 < counts.completed < 40
    last = trial.start(*argv)
    assert last.wait(60) == 0, last.end()
    check(trial, names)
    assert {attempt.outcome for history in trial.attempts().values() for attempt in history} == {"completed"}
