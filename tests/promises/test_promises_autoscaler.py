"""A fleet that decides for itself, as a real process: 0 → N → 0, no busy worker killed, and a store that does not answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
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
    def __init__(self, trial, *more, **policy):
        self.trial, self.go, self.policy = trial, trial.path / "go", trial.path / "policy.yml"
        self.policy.write_text(json.dumps({**POLICY, **policy}))
        self.first = trial.items([{"key": "first", "seconds": 0.01}], "first")
        self.process = self.host(*more)

    def host(self, *more):
        """Start a process that serves the fleet by the policy."""
        return self.trial.start(
            *("machines/launcher.yml", "--task", str(HERE / "trial.yml"), "--pool", "trial", "--out", ""),
            *("--input", str(self.first), "--policy", str(self.policy)),
            *("--store", self.trial.url, "--json", "--reap-interval", "1", *more),
        )

    def push(self, name, n, limits=None, **item):
        """Push a burst; returns when that was."""

        async def push(store):
            pool = store.work.pool("trial")
            await pool.push_many(
                [pool.new({"key": f"{name}{k}", **item}, key=f"{name}{k}", **(limits or {})) for k in range(n)]
            )

        self.trial.ask(push)
        return time.time()

    def decisions(self):
        return self.trial.ask(lambda store: store.fleet("trial").policy_decisions(1000))

    def live(self):
        async def live(store):
            crew = (await store.driver.metrics("trial", 0.0, 0)).crew
            return sum(numbers[0] for numbers in crew.values())

        return self.trial.ask(live)

    def state(self):
        return self.trial.ask(lambda store: store.fleet("trial").policy_state())

    def hosts(self):
        return self.trial.ask(lambda store: store.fleet("trial").hosts())

    def runs_in(self):
        """The process that runs the autoscaler, dead or alive."""
        held = self.trial.ask(lambda store: store.driver.locks("trial.autoscaler"))
        return int(held[0][1].split("/")[-2]) if held else None

    def until(self, happened, within=30.0):
        return self.trial.until(happened, within)

    def settles(self):
        """Wait until all is done, and nobody is left."""
        self.until(lambda: self.trial.db.exists() and self.trial.counts().left == 0 and self.live() == 0)

    def end(self, *processes):
        for process in processes or [self.process]:
            os.kill(process.pid, signal.SIGINT)
        for process in processes or [self.process]:
            assert process.wait(20) == 130


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


def test_workers_of_hosts_that_are_processes_wait_for_work_as_the_policy_says(trial, monkeypatch):
    """They are the launcher's fleet, not batches of their own that end with an empty pool."""
    monkeypatch.setenv("FLATFLEET_COMPOSE", "trial_parts:compose")
    fleet = Fleet(trial, "--engine", "process?min_size=1&max_size=1", mode="fixed", min=2, max=2)
    fleet.until(lambda: trial.db.exists() and trial.counts().completed == 1)
    looks = len(fleet.decisions())
    fleet.until(lambda: len(fleet.decisions()) >= looks + 3)
    workers = trial.ask(lambda store: store.registration.list())
    assert [each.status for each in workers] == ["active"] * 2
    fleet.push("more", 4, seconds=0.01)
    fleet.until(lambda: trial.counts().completed == 5)
    fleet.end()
    assert len(trial.ask(lambda store: store.registration.list())) == 2


HOLD_LOCK = """
import sqlite3, sys
lock = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
lock.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def silent(db, how):
    """No process gets an answer of the store meanwhile: another one has locked it for itself, or it is not there."""
    if how == "moved":
        aside = db.rename(db.with_name("aside"))
        yield
        aside.rename(db)
        return
    command = [sys.executable, "-c", HOLD_LOCK, str(db)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            yield
        finally:
            other.kill()


@pytest.mark.parametrize("how", ["locked", "moved"])
def test_a_store_that_does_not_answer_gives_no_scale_down_and_a_reason(trial, size, how):
    """The long form is a minute and more with the settings' and the lease's defaults."""
    settled = size({}, {"interval": 10, "stale_after": 30, "idle_terminate": 300})
    seconds, trial.lease = size(3.0, 65.0), size(2.0, 60.0)
    fleet = Fleet(trial, min=1, **settled)
    fleet.until(lambda: trial.db.exists() and trial.counts().completed == 1)
    fleet.push("a", 4, do={"first": "wait"}, until=str(fleet.go), seconds=0.01)
    fleet.until(lambda: trial.counts().claimed == 4, size(30.0, 60.0))
    began = fleet.decisions()[-1]["at"]
    with silent(trial.db, how):
        time.sleep(seconds)
    answers = time.time()

    def recovered():
        later = [each for each in fleet.decisions() if each["at"] > began]
        return [each for each in later if each["at"] >= answers - 0.1 and "note" not in each] and later

    later = fleet.until(recovered, size(30.0, 90.0))
    assert "down" not in {each["outcome"] for each in later}
    (held,) = [each for each in later if "note" in each]
    assert held["note"].startswith("the store had not answered for")
    assert held["reason"].startswith("the demand was measured")
    assert (held["desired"], held["sent"]) == (held["current"], False) == (4, False)
    after = [each for each in later if each["at"] >= held["at"]]
    assert ("note" in after[0], "note" in after[1]) == (
        True,
        False,
    )  # the second look after the silence decides as ever
    fleet.until(lambda: fleet.live() == trial.counts().claimed == 4, size(30.0, 90.0))
    fleet.go.touch()
    fleet.until(lambda: trial.counts().left == 0, size(30.0, 90.0))
    assert {key: found[-1].outcome for key, found in trial.attempts().items()} == dict.fromkeys(
        ["first", "a0", "a1", "a2", "a3"], "completed"
    )
    fleet.end()
    said = [line for line in fleet.process.err.read_text().splitlines() if "the autoscaler of fleet trial" in line]
    assert len(said) == 2, said
    assert said[0].startswith("WARNING the autoscaler of fleet trial cannot decide: the store ")
    assert said[1] == "INFO the autoscaler of fleet trial can decide again"


def test_the_autoscaler_of_a_killed_host_goes_on_in_another_one(trial, size):
    """One at a time, with its windows; what a person has ordered stays. When the last host goes, it does."""
    fleet = Fleet(trial)
    fleet.until(lambda: trial.db.exists() and trial.counts().completed == 1)
    fleet.push("a", 4, do={"first": "wait"}, until=str(fleet.go), seconds=0.01, limits={"max_crashes": 1000})
    fleet.until(lambda: trial.counts().claimed == 4)
    fleet.until(lambda: fleet.decisions()[-1]["outcome"] == "hold")
    hosts = {fleet.process.pid: fleet.process}
    for _ in range(2):
        process = fleet.host("--workers", "0", "--reap-interval", "0.2")
        hosts[process.pid] = process
    fleet.until(lambda: len(fleet.hosts()) == 3)
    trial.ask(lambda store: store.fleet("trial").pause_scaling(None))
    fleet.until(lambda: fleet.decisions()[-1]["bound_by"] == "paused" or fleet.state().get("paused"))
    for _ in range(size(2, 20)):
        before, killed = fleet.state(), hosts.pop(fleet.runs_in())
        killed.stop()
        at = time.time()
        fleet.until(lambda: fleet.runs_in() in hosts)
        first = fleet.until(lambda: [each for each in fleet.decisions() if each["at"] > at])[0]  # noqa: B023
        assert first["state"]["changed_at"] == before["changed_at"]
        assert (first["state"]["paused"], first["desired"], first["outcome"]) == (True, 4, "hold")
        process = fleet.host("--workers", "0", "--reap-interval", "0.2")
        hosts[process.pid] = process
        fleet.until(lambda: len(fleet.hosts()) == 3 and fleet.live() == 4)
    trial.ask(lambda store: store.fleet("trial").resume_scaling(time.time()))
    fleet.go.touch()
    fleet.settles()
    found = fleet.decisions()
    gaps = [after["at"] - before["at"] for before, after in pairwise(found) if "state" not in after]
    assert min(gaps) >= INTERVAL * 0.95  # two at a time would not wait for each other
    again = list(log.again(enumerate(found), settings(POLICY)))
    assert [difference for _, difference in again if difference] == []
    fleet.end(*hosts.values())
    assert not trial.ask(lambda store: store.driver.load_snapshot("trial.autoscaler"))


def test_a_batch_with_a_policy_ends_with_its_pool_where_it_is_told_to(trial):
    source = trial.items([{"key": f"i{n}", "seconds": 0.01} for n in range(8)])
    fleet = Fleet(trial, "--input", str(source), "--until-empty", "true")
    assert fleet.process.wait(30) == 0
    assert trial.counts().completed == 8
    assert fleet.decisions()[0]["outcome"] == "up"
    assert not trial.ask(lambda store: store.driver.load_snapshot("trial.autoscaler"))


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_served_fleet_ends_with_its_store(trial, what):
    """One that never comes back, unlike those above: exit code 3, and the reason."""
    fleet = Fleet(trial, min=1)
    fleet.until(lambda: trial.db.exists() and trial.counts().completed == 1)
    fleet.until(lambda: fleet.live() == 1)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{trial.db}{suffix}").unlink(missing_ok=True)
    if what == "replaced":
        trial.counts()  # makes a new one
    assert fleet.process.wait(30) == 3
    error = json.loads(fleet.process.out.read_text())["error"]
    assert error["type"] == "StoreGone"
    assert "deleted or replaced" in error["message"]


def test_a_launcher_keeps_to_the_policy_that_counts(trial):
    """Its own, if it is the first one; else that of the process which scales the fleet already, and it says so."""
    fleet = Fleet(trial, "--workers", "15", min=2, max=2)
    fleet.until(lambda: trial.db.exists() and fleet.decisions())
    assert fleet.live() == 2
    assert "INFO fleet trial begins with 2, not 15: its policy allows 2 to 2\n" in fleet.process.err.read_text()
    fleet.push(
        "a", 3, do={"first": "wait"}, until=str(fleet.go), seconds=0.01
    )  # with nothing left none would be launched
    fleet.policy.write_text(json.dumps({**POLICY, "max": 30}))
    second = fleet.host("--workers", "9")
    fleet.until(lambda: len(fleet.hosts()) == 2)
    fleet.until(lambda: "begins with" in second.err.read_text())
    said = second.err.read_text()
    assert f"WARNING fleet trial is scaled by the policy of pid {fleet.process.pid} on " in said
    assert "INFO fleet trial begins with 2, not 11: its policy allows 2 to 2\n" in said
    assert fleet.live() == 2
    fleet.go.touch()
    fleet.until(lambda: trial.counts().left == 0)
    fleet.end(second, fleet.process)
    assert len({each["policy"] for each in fleet.decisions()}) == 1


def test_a_served_fleet_of_none_says_that_it_is_served(trial):
    fleet = Fleet(trial)
    fleet.until(lambda: trial.db.exists() and trial.counts().completed == 1)
    fleet.end()
    argv = ["machines/launcher.yml", "--task", str(HERE / "trial.yml"), "--pool", "trial", "--out", ""]
    argv += ["--input", str(fleet.first), "--policy", str(fleet.policy), "--store", trial.url, "--workers", "0"]
    process = trial.start(*argv)
    fleet.until(lambda: "fleet trial is served here" in process.err.read_text())
    fleet.end(process)
