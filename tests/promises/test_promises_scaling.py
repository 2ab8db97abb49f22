"""Promises 8, 10 and 11 where they meet: a fleet that is scaled by messages while its processes are killed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from flatfleet.runtime import bundle, scaling
from flatfleet.runtime.owner import is_dead

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CHANNEL = "fleet/trial/scale"
SCALER = "trial.scaler"


class Fleet:
    """The fleet of a trial: its items wait for a file, so it lives until `finish`."""

    def __init__(self, trial, items=6):
        self.trial = trial
        self.file, self.armed = trial.path / "go", trial.path / "armed"
        wait = {"do": {"first": "wait"}, "until": str(self.file)}
        self.source = trial.items([{"key": f"i{n}", **wait} for n in range(items)], max_crashes=1000)

    def host(self, *more, dies=""):
        """Start a host: the launcher over the items. With `dies` its scaler kills it there, once it is armed."""
        os.environ.update(SCALER_DIES=dies, SCALER_ARMED=str(self.armed))
        try:
            return self.trial.python(
                HERE / "scaling_host.py",
                *("machines/launcher.yml", "--task", str(HERE / "trial.yml"), "--input", str(self.source)),
                *("--pool", "trial", "--out", "", "--store", self.trial.url, "--json", "--reap-interval", "0.2", *more),
            )
        finally:
            del os.environ["SCALER_DIES"], os.environ["SCALER_ARMED"]

    def ask(self, question):
        return self.trial.ask(question)

    def send(self, *messages):
        async def send(store):
            return [await store.signals.send(CHANNEL, message) for message in messages]

        return self.ask(send)

    def live(self):
        """The parallelism that is live, as the scaler counts it."""
        return self.ask(live)

    def target(self):
        return self.ask(lambda store: store.fleet("trial").target())

    def decisions(self):
        return self.ask(lambda store: store.fleet("trial").decisions(1000))

    def decided(self, decision_id):
        return self.ask(lambda store: store.fleet("trial").decision(decision_id))

    def until(self, happened, within=30.0):
        """Wait until `await happened(store)` is true; fail, with what the processes said, after `within` seconds."""

        async def wait(store):
            end = time.monotonic() + within
            while time.monotonic() < end:
                if await happened(store):
                    return True
                await asyncio.sleep(0.02)
            return False

        if not self.ask(wait):
            said = [process.err.read_text()[-2000:] for process in self.trial.processes]
            raise AssertionError(f"it has not happened within {within} s; the processes said {said}")

    def idle(self, level, within=30.0, hosts=1):
        """Wait until so much is live in so many processes, and the scaler is parked with nothing to do."""

        async def idle(store):
            row = await store.driver.load_snapshot(SCALER)
            parked = row is not None and row.event == "waiting" and CHANNEL not in await store.signals.channels()
            parked = (
                parked and len(await store.fleet("trial").hosts()) >= hosts and not await store.driver.locks(SCALER)
            )
            return parked and (level is None or await live(store) == level)

        self.until(idle, within)

    def started(self):
        """The workers that have started, in all processes, in order."""
        log = Path(f"{self.trial.log}.workers")
        return [json.loads(line)["worker"] for line in log.read_text().splitlines()] if log.exists() else []

    def finish(self, *processes):
        """Let the items end, and with them the fleet; nothing of the scaler may stay."""
        self.file.touch()
        for process in processes:
            process.wait(30)
            assert process.returncode == 0, process.err.read_text()

        async def left(store):
            rows = [row.execution_id for row in await store.driver.snapshots(None, None)]
            return rows, await store.fleet("trial").target(), await store.signals.channels()

        assert self.ask(left) == ([], None, [])
        assert self.trial.counts().left == 0


async def live(store):
    return scaling.parallelism(scaling.alive(await store.registration.list(), "trial", time.time(), is_dead))


@pytest.fixture
def fleet(trial):
    return Fleet(trial)


# -- killed between any two steps ----------------------------------------------------------------------------------------

UP, DOWN = {"target": 5, "max_launch_per_step": 2}, {"target": 2, "drain_deadline": 0}
POINTS = [
    *(("wait:entered:1", UP), ("wait:done:1", UP), ("drain:entered:1", DOWN), ("drain:done:1", DOWN)),
    *(
        (f"{state}:{when}:1", UP)
        for state in ("validate", "observe", "plan", "launch", "pause", "record")
        for when in ("entered", "done")
    ),
    *(("observe:entered:2", DOWN), ("launch:entered:3", UP), ("launch:done:3", UP), ("observe:done:2", UP)),
    *(("plan:done:2", UP), ("record:done:1", DOWN), ("wait:entered:2", UP), ("wait:parked:1", UP)),
]


def test_promise_10_and_11_a_scaler_killed_at_any_point_meets_its_target_and_launches_nobody_twice(fleet, size):
    """One host after the other dies between two steps of its scaler; the next one finds what is left of it."""
    points = size(POINTS, POINTS * 5)
    if len(points) > len(POINTS):
        Random(1).shuffle(points)
    host, level = fleet.host("--workers", "2", dies=points[0][0]), 2
    fleet.idle(level)
    for (point, message), (following, _) in zip(points, [*points[1:], ("", None)], strict=True):
        before = 7 - message["target"]
        if level != before:
            (made_ready,) = fleet.send(DOWN if message is UP else UP)
            fleet.idle(before)
            decision = fleet.decided(made_ready)
            assert (decision["live_before"], decision["live"]) == (level, before), point  # nobody has come since
        fleet.armed.touch()
        (sent,) = fleet.send(message)
        assert host.wait(20) == -signal.SIGKILL, point
        fleet.armed.unlink()
        host, level = fleet.host(dies=following), message["target"]
        fleet.idle(level)
        decision = fleet.decided(sent)
        assert (decision["outcome"], decision["target"], fleet.target()) == ("applied", level, level), point
    assert max(Counter(each["id"] for each in fleet.decisions()).values()) == 1
    assert max(Counter(fleet.started()).values()) == 1
    time.sleep(0.5)  # two more rounds of the reaper
    assert fleet.live() == level
    fleet.finish(host)


# -- lost workers --------------------------------------------------------------------------------------------------------


def test_promise_8_three_of_eight_are_lost_and_it_is_eight_again_not_nine(fleet):
    host = fleet.host("--workers", "5")
    fleet.idle(5)
    other = fleet.host("--workers", "3")
    fleet.idle(8, hosts=2)
    assert fleet.target() == 8
    other.stop()
    seen = []

    def eight_again():
        seen.append(fleet.live())
        return seen[-1] == 8 and len(seen) > 1 and min(seen) == 5

    fleet.trial.until(eight_again)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        seen.append(fleet.live())
    assert max(seen) == 8
    assert seen[-1] == 8
    done = [each for each in fleet.decisions() if each["outcome"] == "applied"]
    assert [(each["by"], each["launches"], each["live_before"], each["live"]) for each in done] == [("reaper", 3, 5, 8)]

    async def drain(store):
        worker = next(each for each in await store.registration.list() if each.status == "active")
        await store.driver.set_status(
            worker.worker_id, "terminating", {"drain_until": time.time(), "drained_by": "hand"}
        )
        store.bell.announce("workers")

    fleet.ask(drain)
    fleet.trial.until(lambda: fleet.live() == 7)
    time.sleep(1.0)  # five rounds of the reaper: a drained worker is not replaced
    assert fleet.live() == 7
    fleet.finish(host)


def test_promise_8_two_launchers_of_the_same_moment_are_one_fleet_of_both(fleet):
    """What is lost afterwards is replaced to the last worker, whoever of the two has counted first."""
    host, other = fleet.host("--workers", "4"), fleet.host("--workers", "4")
    fleet.idle(8, hosts=2)
    assert fleet.target() == 8
    other.stop()
    fleet.trial.until(lambda: len(fleet.decisions()) == 1)
    fleet.idle(8)
    (decision,) = fleet.decisions()
    assert (decision["by"], decision["launches"], fleet.target()) == ("reaper", 4, 8)
    fleet.finish(host)


def test_promise_11_when_the_host_of_the_scaler_dies_another_one_takes_it_over(fleet):
    first = fleet.host("--workers", "2")
    fleet.idle(2)
    second = fleet.host("--workers", "2")
    fleet.idle(4)
    first.stop()
    fleet.idle(4)
    fleet.send({"delta": 2})
    fleet.idle(6)
    assert fleet.target() == 6
    assert max(Counter(fleet.started()).values()) == 1
    fleet.finish(second)


# -- many messages -------------------------------------------------------------------------------------------------------


def test_promise_10_a_burst_from_eight_processes_is_decided_once_each_and_in_order(fleet, size):
    n = size(400, 1000) // 8
    host = fleet.host("--workers", "4")
    fleet.idle(4)
    more = (str(n), str(size(25, 1)))
    senders = [fleet.trial.python(HERE / "scaling_burst.py", fleet.trial.url, str(k), *more) for k in range(8)]
    for sender in senders:
        assert sender.wait(60) == 0
    sent = [line for sender in senders for line in sender.out.read_text().split()]
    assert len(set(sent)) == 8 * n
    fleet.idle(None, within=120)
    found = fleet.decisions()
    assert Counter(each["id"] for each in found) == Counter(sent)
    for k in range(8):
        mine = [int(each["message"]["reason"]) for each in found if each["message"]["by"] == str(k)]
        assert mine == list(range(n))
    rejected = [each for each in found if each["outcome"] == "rejected"]
    assert {int(each["message"]["reason"]) % 10 for each in rejected} == {9}
    assert len(rejected) == 8 * len(range(9, n, 10))
    assert {each["outcome"] for each in found} <= {"applied", "unchanged", "rejected"}
    last = [each for each in found if each["outcome"] != "rejected"][-1]["message"]["target"]
    assert fleet.target() == last
    assert fleet.live() == last
    assert max(Counter(fleet.started()).values()) == 1
    fleet.finish(host)


@pytest.mark.parametrize("any_kit", ["sqlite"], indirect=True)
async def test_promise_14_memory_is_flat_over_many_wake_ups(any_kit, size):
    config = bundle.load("package:flatfleet/scaler.yml")

    async def wake(times):
        for _ in range(times):
            await any_kit.store.signals.send("fleet/p/scale", {"delta": 1, "dry_run": True})
            await asyncio.wait_for(any_kit.engine.run_named(any_kit.machine(config, "p.scaler"), {"pool": "p"}), 30)
        gc.collect()
        return len(gc.get_objects())

    await wake(30)
    before = await wake(30)
    assert await wake(size(300, 10_000)) - before < 300
