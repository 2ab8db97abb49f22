"""A fleet that decides for itself, as a real process: 0 → N → 0, no busy worker killed, and a store that does not answer."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from flatfleet.runtime.policies.settings import settings
from flatfleet.runtime.replay import decisions as log

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
INTERVAL = 0.3
POLICY = {
    "mode": "target", "min": 0, "max": 4, "target_utilization": 1, "interval": INTERVAL, "stale_after": 1,
    "idle_terminate": 0.6, "cooldown_period": 0, "scale_up_rate": None, "scale_down_rate": None,
}  # fmt: skip


class Fleet:
    def __init__(self, trial):
        self.trial, self.go = trial, trial.path / "go"
        policy = trial.path / "policy.yml"
        policy.write_text(json.dumps(POLICY))
        self.process = trial.start(
            *("machines/launcher.yml", "--task", str(HERE / "trial.yml"), "--pool", "trial", "--out", ""),
            *("--input", str(trial.items([{"key": "first", "seconds": 0.01}])), "--policy", str(policy)),
            *("--store", trial.url, "--json", "--reap-interval", "1"),
        )

    def push(self, name, n, **item):
        """Push a burst; returns when that was."""

        async def push(store):
            pool = store.work.pool("trial")
            await pool.push_many([pool.new({"key": f"{name}{k}", **item}, key=f"{name}{k}") for k in range(n)])

        self.trial.ask(push)
        return time.time()

    def decisions(self):
        return self.trial.ask(lambda store: store.fleet("trial").policy_decisions(1000))

    def live(self):
        async def live(store):
            crew = (await store.driver.metrics("trial", 0.0, 0)).crew
            return sum(numbers[0] for numbers in crew.values())

        return self.trial.ask(live)

    def until(self, happened):
        return self.trial.until(lambda: self.process.poll() is None and happened())

    def settles(self):
        """Wait until all is done, and nobody is left."""
        self.until(lambda: self.trial.db.exists() and self.trial.counts().left == 0 and self.live() == 0)

    def end(self):
        os.kill(self.process.pid, signal.SIGINT)
        self.process.wait(20)


def test_a_bursty_feed_is_followed_from_none_to_many_and_back(trial):
    fleet = Fleet(trial)
    fleet.until(lambda: trial.db.exists() and trial.counts().completed == 1)
    fleet.settles()
    pushed = []
    for burst in ("a", "b"):
        pushed.append(fleet.push(burst, 12, seconds=0.15))
        fleet.until(lambda: fleet.live() == 4)
        fleet.settles()
    fleet.end()

    attempts = trial.attempts()
    assert len(attempts) == 25
    assert {key: [each.outcome for each in found] for key, found in attempts.items()} == {
        key: ["completed"] for key in attempts
    }
    found = fleet.decisions()
    assert max(each["desired"] for each in found) == 4
    for at in pushed:  # the first two looks after a step: one may have begun before it
        assert 4 in [each["desired"] for each in found if each["at"] > at][:2]
    again = list(log.again(enumerate(found), settings(POLICY)))
    assert len(again) == len(found)
    assert [difference for _, difference in again if difference] == []


@pytest.mark.parametrize("how", ["locked", "moved"])
def test_a_store_that_does_not_answer_gives_no_scale_down(trial, how):
    trial.lease = 2.0
    fleet = Fleet(trial)
    fleet.until(lambda: trial.db.exists() and trial.counts().completed == 1)
    fleet.push("a", 4, do={"first": "wait"}, until=str(fleet.go), seconds=0.01)
    fleet.until(lambda: trial.counts().claimed == 4)
    before = len(fleet.decisions())
    if how == "locked":
        lock = sqlite3.connect(trial.db, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        time.sleep(3)
        lock.execute("ROLLBACK")
        lock.close()
    else:
        aside = trial.db.rename(trial.path / "aside")
        time.sleep(3)
        aside.rename(trial.db)

    def recovered():
        later = fleet.decisions()[before:]
        return len(later) > 3 and "note" not in later[-1] and later

    later = fleet.until(recovered)
    assert "down" not in {each["outcome"] for each in later}
    if how == "moved":
        (silent,) = [each for each in later if "note" in each]
        assert silent["note"].startswith("the store had not answered for")
        assert silent["reason"].startswith("the demand was measured")
        assert silent["desired"] == silent["current"] == 4
    fleet.go.touch()
    fleet.settles()
    fleet.end()
    assert fleet.decisions()[-1]["desired"] == 0
