"""Promises 4, 6 and 7 between processes: one is stopped beyond its lease, or blocks its own event loop for longer."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time

import pytest

pytestmark = pytest.mark.slow
both_stores = pytest.mark.parametrize("trial", ["sqlite", "redis"], indirect=True)


def freeze(trial, process) -> None:
    """SIGSTOP the process, at a moment when it does not hold the database's write lock."""
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        if trial.at:
            return
        db = sqlite3.connect(trial.db, isolation_level=None, timeout=0)
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.01)
        finally:
            db.close()


@both_stores
@pytest.mark.parametrize("state", ["second", "third"])
def test_promise_04_and_06_a_stopped_worker_loses_its_item_and_goes_on_with_the_next(trial, state):
    """Promises 4 and 6: expiry alone recovers the item; what the zombie brings is refused; its worker takes the next."""
    trial.lease, go = 0.6, trial.path / "go"
    trial.items([{"key": "a", "do": {state: "wait"}, "until": str(go)}], name="a", max_crashes=10)
    zombie = trial.work()
    trial.until_ran("trial:a", state)
    freeze(trial, zombie)
    go.touch()
    other = trial.work()
    assert other.wait(30) == 0, other.end()
    assert trial.all_items()["a"].state == "completed"
    trial.items([{"key": "b"}], name="b", max_crashes=10)
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.wait(30) == 0, zombie.end()
    history = trial.attempts()
    assert [(attempt.token, attempt.outcome) for attempt in history["a"]] == [(1, "crashed"), (2, "completed")]
    assert [(attempt.token, attempt.outcome) for attempt in history["b"]] == [(1, "completed")]
    assert json.loads(zombie.out.read_text())["output"]["processed"] == 1
    late = [line["state"] for line in trial.ran() if line["pid"] == zombie.pid and line["item"] == "trial:a"]
    assert late[-1] == state, "the zombie went on with work that is not its own"


@both_stores
def test_promise_07_a_blocked_event_loop_does_not_lose_its_lease(trial):
    """Promise 7: a state that blocks the whole event loop for three leases keeps its item; a hungry neighbour waits."""
    trial.lease = 0.6
    trial.items([{"key": "a", "seconds": 1.8, "do": {"second": "block"}}], max_crashes=2)
    busy = trial.work("--verbose")
    trial.until_ran("trial:a", "second")
    hungry = trial.work()
    assert busy.wait(30) == 0, busy.end()
    assert hungry.wait(30) == 0, hungry.end()
    assert [(attempt.token, attempt.outcome) for attempt in trial.attempts()["a"]] == [(1, "completed")]
    assert len(trial.ran()) == 3
    assert "event loop" in busy.err.read_text()


@both_stores
def test_promise_07_claims_that_a_blocked_event_loop_has_not_seen_are_renewed(trial):
    """Promise 7: the store's thread may commit a claim that the event loop, blocked, hears of only after a lease's time."""
    trial.lease = 2.0
    items = [{"key": f"k{n:03}", "seconds": n % 5 / 1000} for n in range(300)]
    items[100] |= {"seconds": 6.0, "do": {"first": "block"}}
    source = trial.items(items)
    first = trial.launch(source, 32)
    trial.until_ran("trial:k100", "first")
    second = trial.launch(source, 1)
    assert second.wait(60) == 0, second.end()
    assert first.wait(60) == 0, first.end()
    attempts = trial.attempts()
    assert {key: [each.outcome for each in history] for key, history in attempts.items()} == {
        item["key"]: ["completed"] for item in items
    }
    assert len({line["pid"] for line in trial.ran()}) == 2
