"""Promises 2, 5, 12 and 15: several processes at once over one SQLite file."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
both_stores = pytest.mark.parametrize("trial", ["sqlite", "redis"], indirect=True)

CROWD = Path(__file__).parent / "crowd.py"


def holdings(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each item's holders noted, by the time of the claim."""
    found = defaultdict(list)
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            held = json.loads(line)
            found[held["item"]].append(held)
    return {item: sorted(held, key=lambda each: each["from"]) for item, held in found.items()}


def crowd(trial, processes: int, coroutines: int, items: int) -> dict[str, list[dict[str, Any]]]:
    """Let a crowd work through the items; it says nothing, and nobody fails."""
    trial.items([{"key": f"i{n}"} for n in range(items)], max_crashes=10)
    folder = trial.path / "held"
    folder.mkdir()
    process = trial.python(CROWD, trial.url, str(processes), str(coroutines), str(folder))
    said = process.end(300)
    assert (process.returncode, said) == (0, "")
    counts = trial.counts()
    assert (counts.completed, counts.total) == (items, items)
    return holdings(folder)


def check_one_holder_at_a_time(held: dict[str, list[dict[str, Any]]], items: int) -> None:
    assert len(held) == items
    for item, holders in held.items():
        tokens = [each["token"] for each in holders]
        assert tokens == list(range(1, len(holders) + 1)), f"{item}: tokens {tokens}"
        assert sum(each.get("completed", False) for each in holders) == 1
        for earlier, later in pairwise(holders):
            assert earlier["to"] <= later["from"], f"{item} was held twice at once: {earlier}, {later}"


@both_stores
def test_promise_02_and_05_one_holder_at_a_time_and_tokens_that_rise(trial, size):
    """Promises 2 and 5: four processes claim, release, fail and complete; no item is held twice at once."""
    items = size(2_000, 20_000)
    held = crowd(trial, 4, 8, items)
    check_one_holder_at_a_time(held, items)
    assert sum(map(len, held.values())) > 1.1 * items


@both_stores
def test_promise_15_many_processes_and_no_database_is_locked(trial, size):
    """Promises 2, 5 and 15: a crowd of processes over one file; each of them ends well and says nothing."""
    processes, each = size((20, 50), (100, 100))
    held = crowd(trial, processes, 1, processes * each)
    check_one_holder_at_a_time(held, processes * each)


@both_stores
def test_promise_12_two_launchers_at_once_make_each_item_once(trial, size):
    """Promise 12: the same sources pushed and worked through by two launchers at once; no item and no state twice."""
    n = size(200, 1000)
    source = trial.items([{"key": f"i{k}"} for k in range(n)])
    both = [trial.launch(source, 4), trial.launch(source, 4)]
    outputs = []
    for process in both:
        assert process.wait(120) == 0, process.end()
        outputs.append(json.loads(process.out.read_text())["output"])
    assert sum(output["added"] for output in outputs) == n
    assert all(output["added"] + output["known"] == n for output in outputs)
    counts = trial.counts()
    assert (counts.completed, counts.total) == (n, n)
    assert {len(history) for history in trial.attempts().values()} == {1}
    assert len(trial.ran()) == 3 * n


def test_promise_15_a_database_that_is_busy_for_two_seconds_is_waited_for(trial):
    """Promise 15: somebody else holds the write lock; everybody waits, nobody hears of it."""
    source = trial.items([{"key": f"i{k}", "seconds": 0.01} for k in range(60)])
    process = trial.launch(source, 4)
    trial.until(lambda: trial.lines() >= 10)
    other = sqlite3.connect(trial.db, isolation_level=None, timeout=10)
    try:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(0.1)
        before = trial.lines()
        time.sleep(1.9)
        assert trial.lines() == before, "somebody wrote"
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert process.wait(30) == 0, process.end()
    assert process.err.read_text().count("\n") <= 1
    assert {len(history) for history in trial.attempts().values()} == {1}
