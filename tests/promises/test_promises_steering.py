"""Steering survives a crash: what was paused, cancelled or drained stays so over a SIGKILL of whoever works on it.

Real processes, steered by the verbs from another one; coordinators with a limit in common, one of which is killed.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time

import pytest

pytestmark = pytest.mark.slow

HEARD = 0.25
"""Seconds that a ring may take to have its effect in another process (the median of some, on a busy machine)."""
NOW = 3.0
"""Seconds that what comes by a poll may take on a busy machine."""


def say(trial, *words: str) -> None:
    """Run a verb over the trial's store, as a process of its own."""
    process = trial.start(*words, "--store", trial.url)
    assert process.wait(30) == 0, process.end()


def gated(trial, n: int, **more) -> tuple:
    """A source of items that wait in their second state until the file is there, and that file."""
    gate, do = trial.path / "gate", {"first": "pass", "second": "wait", "third": "pass"}
    return trial.items([{"key": f"i{k:02}", "do": do, "until": str(gate), **more} for k in range(n)]), gate


def holders(trial, n: int) -> dict[str, str]:
    """Wait until so many items are in their second state; {key: the worker that holds it}."""
    trial.until(lambda: len({line["item"] for line in trial.ran() if line["state"] == "second"}) >= n)
    return {item.key: item.worker for item in trial.all_items().values() if item.state == "claimed"}


def starts(trial) -> list[float]:
    """When the items' newest attempts began."""
    return sorted(item.started for item in trial.all_items().values() if item.started)


def check_once(trial) -> None:
    """Every result was committed once, under a token of its own, and no failure was counted."""
    for history in trial.attempts().values():
        tokens = [attempt.token for attempt in history]
        assert tokens == sorted(set(tokens))
        assert [attempt.outcome for attempt in history].count("completed") <= 1
        assert "failed" not in [attempt.outcome for attempt in history]


# -- pause -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["launcher", "coordinator"])
def test_a_pause_for_a_time_stops_all_claims_until_then_and_they_begin_again_by_themselves(trial, machine):
    source = trial.items([{"key": f"i{n:04}", "seconds": 0.01} for n in range(3000)], max_crashes=10)
    process = (
        trial.launch(source, 4)
        if machine == "launcher"
        else trial.work("--max-parallel", "4", machine=f"machines/{machine}.yml")
    )
    trial.until(lambda: trial.counts().completed >= 10)
    before = time.time()
    say(trial, "pause", "--for", "2s")
    paused = time.time()
    end = trial.ask(lambda store: store.work.pool("trial").paused())
    assert before + 2 <= end <= paused + 2
    time.sleep(max(0.0, end - 0.2 - time.time()))
    assert trial.counts().claimed == 0
    assert process.poll() is None, process.end()
    trial.until(lambda: max(starts(trial)) >= end)
    after = starts(trial)
    assert not [at for at in after if paused < at < end]
    assert min(at for at in after if at >= end) <= end + HEARD
    os.kill(process.pid, signal.SIGTERM)
    process.wait(30)


def test_a_pause_survives_kill_9_of_the_host_and_the_next_one_works_when_it_is_resumed(trial, size):
    rounds, n = size((3, 80), (10, 250))
    source = trial.items([{"key": f"i{k:03}", "seconds": 0.05} for k in range(n)], max_crashes=100)
    process = trial.launch(source, 2)
    trial.until(lambda: trial.lines() >= 2)
    say(trial, "pause")
    process.stop()
    waits = []
    for _ in range(rounds):
        process = trial.launch(source, 2)
        began, known = time.time(), trial.lines()
        trial.until(lambda: len(trial.ask(active)) == 2)
        time.sleep(0.3)
        assert process.poll() is None, process.end()
        counts = trial.counts()
        assert (counts.claimed, counts.left, trial.lines()) == (0, n - counts.completed, known)
        say(trial, "resume")
        resumed = time.time()
        trial.until(lambda known=known: trial.lines() > known)
        waits.append(min(at for at in starts(trial) if at >= began) - resumed)
        say(trial, "pause")
        process.stop()
    assert statistics.median(waits) <= HEARD
    say(trial, "resume")
    assert trial.launch(source, 2).wait(60) == 0
    assert trial.counts().completed == n
    check_once(trial)


async def active(store) -> list[str]:
    return [
        worker.worker_id
        for worker in await store.registration.list()
        if worker.status == "active" and _lives(worker.pid)
    ]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- cancel and drain ----------------------------------------------------------------------------------------------------


def test_what_was_cancelled_stays_so_whoever_is_killed(trial):
    """Cancelled in the hands of a worker that is stopped, and then killed before it could hear of it."""
    source, gate = gated(trial, 6)
    process = trial.launch(source, 2)
    key, other = sorted(holders(trial, 2))
    os.kill(process.pid, signal.SIGSTOP)
    say(trial, "cancel", key, "i05", "--yes")
    items = trial.all_items()
    assert {items[name].state for name in (key, "i05")} == {"dead"}
    process.stop()
    gate.touch()
    process = trial.launch(source, 2)
    assert process.wait(60) == 1, process.end()
    items, attempts = trial.all_items(), trial.attempts()
    assert {name for name, item in items.items() if item.state == "dead"} == {key, "i05"}
    assert {item.error_type for item in items.values()} == {None, "Cancelled"}
    assert trial.counts().completed == 4
    assert [[a.outcome for a in attempts[name]] for name in (key, "i05")] == [["cancelled"], []]
    assert [a.outcome for a in attempts[other]] == ["crashed", "completed"]
    assert trial.ran_by_item()[f"trial:{key}"] == ["first", "second"]
    check_once(trial)


def test_a_worker_killed_while_it_was_drained_costs_its_item_no_attempt(trial):
    source, gate = gated(trial, 4)
    process = trial.launch(source, 2)
    (key, name), _ = sorted(holders(trial, 2).items())
    say(trial, "drain", name, "--drain-deadline", "1h")
    process.stop()
    gate.touch()
    process = trial.launch(source, 2)
    assert process.wait(60) == 0, process.end()
    attempts = trial.attempts()
    assert [a.outcome for a in attempts[key]] == ["crashed", "completed"]
    assert attempts[key][0].worker == name != attempts[key][1].worker
    assert {item.attempts for item in trial.all_items().values()} == {0}
    check_once(trial)


def test_a_coordinator_that_is_drained_hands_back_at_its_time_what_it_has_not_done(trial):
    done = [{"key": f"a{k}", "do": {"first": "pass", "second": "pass", "third": "pass"}} for k in range(3)]
    late = [{"key": f"b{k}", "do": {"first": "pass", "second": "wait"}, "until": str(trial.path / "no")} for k in "01"]
    trial.items([*done, *late], max_crashes=10)
    process = trial.work("--max-parallel", "5", "--worker-id", "c", machine="machines/coordinator.yml")
    trial.until(lambda: trial.counts().completed == 3)
    begun = time.time()
    say(trial, "drain", "c", "--drain-deadline", "1")
    assert process.wait(30) == 130, process.end()
    assert time.time() <= begun + 1 + NOW
    counts, attempts = trial.counts(), trial.attempts()
    assert (counts.completed, counts.waiting, counts.claimed) == (3, 2, 0)
    assert [(a.outcome, a.walked) for a in attempts["b0"]] == [("released", ("first", "second"))]
    assert {(item.attempts, item.crashes) for item in trial.all_items().values()} == {(0, 0)}
    (record,) = trial.ask(lambda store: store.registration.list())
    assert (record.status, record.metadata["ended"]) == ("terminated", "drained")


# -- coordinators --------------------------------------------------------------------------------------------------------


def test_when_one_of_two_coordinators_is_killed_the_other_does_its_items_within_the_limit(trial, size):
    """Its leases run out by themselves: nobody has to be told, and nothing is committed twice."""
    trial.lease = 2.0
    n = size(60, 300)
    trial.items([{"key": f"i{k:03}", "seconds": 0.03} for k in range(n)], max_crashes=100)
    argv = ("--max-parallel", "3", "--pool-size", "5")
    both = [trial.work(*argv, "--worker-id", name, machine="machines/coordinator.yml") for name in ("c0", "c1")]
    most = 0

    def held_by(name: str) -> list[str]:
        return [item.key for item in trial.all_items().values() if item.state == "claimed" and item.worker == name]

    killed = random.randrange(2)
    taken = trial.until(lambda: trial.counts().completed >= n // 4 and held_by(f"c{killed}"))
    both[killed].stop()
    left = held_by(f"c{killed}")
    while both[1 - killed].poll() is None:
        most = max(most, trial.counts().claimed)
    assert both[1 - killed].wait(60) == 0, both[1 - killed].end()
    assert most <= 5
    assert taken
    counts, attempts = trial.counts(), trial.attempts()
    assert (counts.completed, counts.total) == (n, n)
    check_once(trial)
    for key in left:
        assert [(a.worker, a.outcome) for a in attempts[key]][-1] == (f"c{1 - killed}", "completed")
        assert attempts[key][0].outcome == "crashed"
    assert {item.attempts for item in trial.all_items().values()} == {0}
