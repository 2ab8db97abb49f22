"""Promises 1, 3 and 9 under real SIGKILL: the shipped launcher and worker, the SQLite store, a task that checkpoints."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

pytestmark = pytest.mark.slow
both_stores = pytest.mark.parametrize("trial", ["sqlite", "redis"], indirect=True)

ORDER = {"first": 0, "second": 1, "third": 2, "done": 3}


def check_that_nothing_is_lost_or_doubled(trial, names: list[str]) -> None:
    """Every item has one result, committed once, made of each state; its tokens rise."""
    items, attempts = trial.all_items(), trial.attempts()
    assert sorted(items) == sorted(names)
    assert {item.state for item in items.values()} == {"completed"}
    for name, history in attempts.items():
        assert items[name].result == {"item_id": items[name].id, "ran": ["first", "second", "third"]}
        outcomes = Counter(attempt.outcome for attempt in history)
        assert outcomes["completed"] == 1
        assert outcomes.keys() <= {"completed", "crashed"}
        tokens = [attempt.token for attempt in history]
        assert tokens == sorted(set(tokens))
        assert history[-1].outcome == "completed"


@both_stores
def test_promise_01_and_03_nothing_is_lost_and_no_result_commits_twice_whatever_is_killed_when(trial, size):
    """Promises 1 and 3: kill -9 at random moments, 8 workers; one result each, and no committed state runs again."""
    kills, n = size((5, 120), (20, 500))
    names = [f"i{k}" for k in range(n)]
    source = trial.items([{"key": name, "seconds": 0.02} for name in names], max_crashes=1000)
    committed: list[tuple[int, dict[str, str]]] = []
    for _ in range(kills):
        begun = trial.lines()
        process = trial.launch(source, 8)
        some = random.randint(8, 3 * n // (kills + 1))
        trial.until(lambda at=begun + some: trial.lines() >= at)
        time.sleep(random.uniform(0, 0.02))
        assert process.poll() is None
        process.stop()
        committed.append((trial.lines(), trial.checkpoints()))
    last = trial.launch(source, 8)
    assert last.wait(120) == 0, last.end()
    check_that_nothing_is_lost_or_doubled(trial, names)
    assert sum(len(history) - 1 for history in trial.attempts().values()) <= kills * 8
    ran = trial.ran()
    assert any(checkpoints for _, checkpoints in committed)
    for at, checkpoints in committed:
        for line in ran[at:]:
            reached = checkpoints.get(line["item"], "first")
            assert ORDER[line["state"]] >= ORDER[reached], f"{line} ran again behind its checkpoint '{reached}'"
    assert trial.checkpoints() == {}


def test_promise_03_states_never_go_back(trial, size):
    """Promise 3: two processes, either of which dies at any moment; an item's states run in order, each at least once."""
    kills, n = size((4, 80), (20, 400))
    names = [f"i{k}" for k in range(n)]
    source = trial.items([{"key": name, "seconds": 0.02} for name in names], max_crashes=1000)
    running = [trial.launch(source, 4), trial.launch(source, 4)]
    for kill in range(kills):
        at = trial.lines() + random.randint(8, 3 * n // (kills + 1))
        trial.until(lambda at=at: trial.lines() >= at)
        running[kill % 2].stop()
        running[kill % 2] = trial.launch(source, 4)
    for process in running:
        assert process.wait(120) == 0, process.end()
    check_that_nothing_is_lost_or_doubled(trial, names)
    for states in trial.ran_by_item().values():
        assert [ORDER[state] for state in states] == sorted(ORDER[state] for state in states)
        assert set(states) == {"first", "second", "third"}


@both_stores
@pytest.mark.parametrize("where", ["first", "third"])
def test_promise_09_an_item_that_kills_its_worker_is_dead_and_its_neighbours_are_not(trial, where):
    """Promise 9: dead after max_crashes with its history, although it dies so fast that it takes 7 neighbours along."""
    crashes = 4
    neighbours = [{"key": f"n{k}", "seconds": 0.15} for k in range(20)]
    source = trial.items([{"key": "poison", "do": {where: "kill"}}, *neighbours], max_crashes=crashes)
    codes = []
    while not codes or codes[-1] < 0:
        assert len(codes) <= crashes, "the poison lives on"
        codes.append(trial.launch(source, 8).wait(60))
    assert codes == [-9] * crashes + [1]
    items, history = trial.all_items(), trial.attempts()
    poison = items.pop("poison")
    assert (poison.state, poison.crashes, poison.attempts) == ("dead", crashes, 0)
    assert poison.error_type == "WorkerCrashed"
    assert [attempt.outcome for attempt in history["poison"]] == ["crashed"] * crashes
    assert all(attempt.worker and attempt.error for attempt in history["poison"])
    assert {item.state for item in items.values()} == {"completed"}
    assert {item.attempts for item in items.values()} == {0}
