"""Promise 13: a signal drains; at the deadline leases are handed back unburnt; a second signal stops now.

The same for single workers, pools and items of a fleet that runs on, told so by another process.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import statistics
import time

import pytest

pytestmark = pytest.mark.slow

INTERRUPTED = 130
NOW = 3.0
"""Seconds that an end "now" may take on a busy machine."""


def told(trial, process, number: int, within: float) -> float:
    """Send a signal, wait for the end, and return the seconds that it took."""
    begun = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(within) == INTERRUPTED, process.end()
    return time.monotonic() - begun


def check_unburnt(trial) -> None:
    items = trial.all_items().values()
    assert {item.state for item in items} <= {"ready", "completed"}
    assert {(item.attempts, item.crashes) for item in items} == {(0, 0)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_promise_13_the_first_signal_drains(trial, number):
    """Promise 13: what is in hand is finished, nothing new is begun, nothing is burnt."""
    source = trial.items([{"key": f"i{n:02}", "seconds": 0.1} for n in range(40)])
    process = trial.launch(source, 8)
    trial.until(lambda: trial.lines() >= 9)
    taken = {line["item"] for line in trial.ran()}
    told(trial, process, number, 30)
    check_unburnt(trial)
    counts, ran = trial.counts(), trial.ran_by_item()
    assert (counts.claimed, counts.completed, counts.waiting) == (0, len(ran), 40 - len(ran))
    assert taken <= ran.keys()
    assert len(ran) <= len(taken) + 8
    assert json.loads(process.out.read_text())["handed_back"] == 0


@pytest.mark.parametrize("what", ["wait", "thread"])
def test_promise_13_at_the_deadline_leases_are_handed_back_unburnt(trial, what):
    """Promise 13: items that do not end, asleep or in a busy thread, are handed back; the process ends in time."""
    item = {"do": {"first": what}, "until": str(trial.path / "never"), "seconds": 60.0}
    source = trial.items([{"key": f"i{n:02}", **item} for n in range(20)])
    process = trial.launch(source, 4, "--drain-deadline", "0.5")
    trial.until(lambda: trial.counts().claimed == 4 and trial.lines() >= 4)
    took = told(trial, process, signal.SIGTERM, 30)
    assert 0.4 <= took <= 0.5 + NOW
    check_unburnt(trial)
    assert json.loads(process.out.read_text())["handed_back"] == 4
    released = [a.outcome for history in trial.attempts().values() for a in history]
    assert released == ["released"] * 4
    assert trial.counts().waiting == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_promise_13_a_state_that_blocks_the_event_loop_does_not_keep_the_process(trial, number):
    """Promise 13: with the event loop blocked for a minute, the items are handed back from a thread at the deadline."""
    item = {"do": {"first": "block"}, "seconds": 60.0}
    source = trial.items([{"key": f"i{n:02}", **item} for n in range(4)])
    process = trial.launch(source, 2, "--drain-deadline", "0.5")
    trial.until(lambda: trial.lines() >= 1)
    took = told(trial, process, number, 30)
    assert 0.4 <= took <= 0.5 + NOW
    check_unburnt(trial)
    assert trial.counts().waiting == 4
    said = json.loads(process.out.read_text())
    assert said["interrupted"]
    assert said["handed_back"] == sum(map(len, trial.attempts().values())) > 0


def test_promise_13_claims_that_a_blocked_event_loop_has_not_seen_are_handed_back_too(trial):
    """Promise 13: a claim is committed by the store's thread, and the event loop may be blocked before it hears of it."""
    items = [{"key": f"k{n:03}", "seconds": n % 5 / 1000} for n in range(600)]
    for n in range(50, 600, 100):
        items[n] |= {"seconds": 30.0, "do": {"first": "block"}}
    process = trial.launch(trial.items(items), 32, "--drain-deadline", "0")
    blocking = {item["key"] for item in items if "do" in item}
    trial.until(lambda: any(line["item"].rpartition(":")[2] in blocking for line in trial.ran()))
    assert told(trial, process, signal.SIGTERM, 30) <= NOW
    assert trial.counts().claimed == 0
    check_unburnt(trial)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_promise_13_a_signal_that_the_process_was_started_to_ignore_stays_ignored(trial, number):
    """Promise 13: nohup, and a shell's `&`, mean what they say."""
    source = trial.items([{"key": f"i{n}", "seconds": 0.3} for n in range(4)])
    before = signal.signal(number, signal.SIG_IGN)
    try:
        process = trial.launch(source, 2)
    finally:
        signal.signal(number, before)
    trial.until(lambda: trial.lines() >= 1)
    os.kill(process.pid, number)
    assert process.wait(30) == 0, process.end()
    assert trial.counts().completed == 4


def test_promise_13_a_second_signal_ends_a_blocked_event_loop_now(trial):
    """Promise 13: the same with an hour to finish and a second Ctrl-C."""
    source = trial.items([{"key": "i", "do": {"first": "block"}, "seconds": 60.0}])
    process = trial.launch(source, 1, "--drain-deadline", "3600")
    trial.until(lambda: trial.lines() >= 1)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, process.end()
    assert told(trial, process, signal.SIGINT, 30) <= NOW
    check_unburnt(trial)
    assert trial.counts().waiting == 1


def test_promise_13_a_third_signal_leaves_without_a_word(trial):
    """Promise 13: who cannot wait for the hand-back leaves it to the leases."""
    source = trial.items([{"key": "i", "do": {"first": "block"}, "seconds": 60.0}])
    process = trial.launch(source, 1, "--drain-deadline", "3600")
    trial.until(lambda: trial.lines() >= 1)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.05)
    assert told(trial, process, signal.SIGINT, 30) <= NOW
    assert trial.counts().claimed == 1


def test_promise_13_a_second_signal_stops_now(trial):
    """Promise 13: with an hour to finish, a second Ctrl-C ends it at once, and still hands everything back."""
    item = {"do": {"first": "wait"}, "until": str(trial.path / "never")}
    source = trial.items([{"key": f"i{n}", **item} for n in range(8)])
    process = trial.launch(source, 4, "--drain-deadline", "3600")
    trial.until(lambda: trial.lines() == 4)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, process.end()
    assert told(trial, process, signal.SIGINT, 30) <= NOW
    check_unburnt(trial)
    assert trial.counts().waiting == 8


@pytest.mark.parametrize("machine", ["launcher", "worker", "coordinator"])
def test_promise_13_no_claim_is_left_behind_however_late_it_was_made(trial, machine, size):
    """Promise 13: stopped without a deadline while items fly through; claims that were under way are given back."""
    source = trial.items([{"key": f"i{n}"} for n in range(20_000)], max_crashes=10)
    for _ in range(size(3, 30)):
        begun = trial.lines()
        if machine == "launcher":
            process = trial.launch(source, 8, "--drain-deadline", "0")
        else:
            process = trial.work("--drain-deadline", "0", machine=f"machines/{machine}.yml")
        trial.until(lambda at=begun + 200: trial.lines() > at)
        assert told(trial, process, signal.SIGTERM, 30) <= NOW
        assert trial.counts().claimed == 0
        check_unburnt(trial)


def test_promise_13_the_process_ends_although_a_thread_of_a_timed_out_item_is_busy(trial):
    """Promise 13: an item's time-out cannot end its thread; neither a drain nor the end of a run waits for that."""
    worker = trial.path / "worker.yml"
    text = (trial.root / "machines" / "worker.yml").read_text()
    assert "timeout: 3600" in text
    text = text.replace("timeout: 3600", "timeout: 0.3").replace("./paper.yml", str(trial.root / "machines/paper.yml"))
    worker.write_text(text)
    trial.items([{"key": "a", "seconds": 60.0, "do": {"first": "thread"}}], max_crashes=10, max_retries=1)
    process = trial.work(machine=str(worker))
    begun = time.monotonic()
    assert process.wait(30) == 1, process.end()
    assert time.monotonic() - begun <= 0.3 + 2 * NOW
    assert trial.all_items()["a"].error_type == "ItemTimeout"


# -- told by another process -------------------------------------------------------------------------------------------

HEARD = 0.25
"""Seconds that a ring may take to have its effect in another process (the median of some, on a busy machine)."""


async def drain(store, worker: str, ring: bool = True, **about) -> None:
    await store.driver.set_status(worker, "terminating", about)
    if ring:
        store.bell.announce("workers")


async def ended(store, worker: str) -> str:
    """Wait for the end of a worker, and return how it ended."""
    async with asyncio.timeout(30):
        while (record := await store.registration.get(worker)).status != "terminated":  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return str(record.metadata["ended"])


def workers(trial) -> list[str]:
    """The names of the workers that are active."""

    async def listed(store):
        return [w.worker_id for w in await store.registration.list() if w.status == "active"]

    return trial.ask(listed)


def holders(trial, n: int) -> dict[str, str]:
    """Wait until so many items are in their second state; {key: the worker that holds it}."""
    trial.until(lambda: len([line for line in trial.ran() if line["state"] == "second"]) >= n)
    return {item.key: item.worker for item in trial.all_items().values() if item.state == "claimed"}


def waiting_items(trial, n: int, what: str = "wait") -> tuple:
    """A source of items that are busy in their second state until the file is there, and that file."""
    gate, do = trial.path / "gate", {"first": "pass", "second": what, "third": "pass"}
    items = [{"key": f"i{k}", "do": do, "until": str(gate), "seconds": 60.0} for k in range(n)]
    return trial.items(items), gate


@pytest.mark.parametrize(("ring", "within"), [(True, HEARD), (False, 5.0 + HEARD)], ids=["rung", "unheard"])
def test_an_idle_worker_told_to_end_ends_at_once_and_its_process_goes_on(trial, ring, within, size):
    process = trial.launch(trial.items([{"key": "a"}]), 8, "--stay")
    trial.until(lambda: trial.counts().completed == 1 and len(workers(trial)) == 8)
    names, n = workers(trial), size(5, 7) if ring else 1

    async def drain_some(store):
        took = []
        for name in names[:n]:
            begun = time.monotonic()
            await drain(store, name, ring)
            assert await ended(store, name) == "drained"
            took.append(time.monotonic() - begun)
        return took

    assert statistics.median(trial.ask(drain_some)) <= within
    assert sorted(workers(trial)) == sorted(names[n:])
    trial.items([{"key": "b"}], "more", max_retries=3)
    trial.until(lambda: trial.counts().completed == 2)
    assert process.poll() is None
    told(trial, process, signal.SIGTERM, 30)


def test_a_busy_worker_told_to_end_ends_after_its_item(trial):
    source, gate = waiting_items(trial, 3)
    process = trial.launch(source, 2)
    held = holders(trial, 2)
    key, name = min(held.items())
    trial.ask(lambda store: drain(store, name, drain_until=time.time() + 3600))
    time.sleep(0.3)
    assert trial.all_items()[key].worker == name
    gate.touch()
    assert trial.ask(lambda store: ended(store, name)) == "drained"
    assert process.wait(30) == 0, process.end()
    by_key = trial.attempts()
    assert [(a.worker, a.outcome) for a in by_key[key]] == [(name, "completed")]
    assert [a.worker for history in by_key.values() for a in history].count(name) == 1
    check_unburnt(trial)


@pytest.mark.parametrize("what", ["wait", "thread"])
def test_at_its_time_a_worker_hands_its_item_back_unburnt_and_its_process_goes_on(trial, what):
    source, gate = waiting_items(trial, 2, what)
    process = trial.launch(source, 2)
    held = holders(trial, 2)
    key, name = min(held.items())
    due = time.time() + 0.4
    trial.ask(lambda store: drain(store, name, drain_until=due))
    assert trial.ask(lambda store: ended(store, name)) == "drained"
    (attempt,) = trial.attempts()[key]
    assert due <= attempt.ended <= due + NOW
    assert (attempt.outcome, attempt.worker, tuple(attempt.walked)) == ("released", name, ("first", "second"))
    item = trial.all_items()[key]
    assert (item.state, item.attempts, item.crashes) == ("ready", 0, 0)
    assert process.poll() is None
    if what == "wait":
        gate.touch()
        assert process.wait(30) == 0, process.end()
        check_unburnt(trial)
        assert trial.counts().completed == 2
        assert trial.ran_by_item()[f"trial:{key}"] == ["first", "second", "second", "third"]


@pytest.mark.parametrize(("ring", "within"), [(True, HEARD), (False, 1.0 + HEARD)], ids=["rung", "unheard"])
def test_a_pause_stops_claims_at_once_and_a_resumption_starts_them(trial, ring, within, size):
    process = trial.launch(trial.items([{"key": f"i{n:04}", "seconds": 0.01} for n in range(5000)]), 8)
    trial.until(lambda: trial.counts().completed >= 20)

    async def pause_and_resume(store):
        pool, pauses = store.work.pool("trial"), []
        for _ in range(size(3, 15)):
            await pool.pause(math.inf)
            paused = time.time()
            async with asyncio.timeout(30):
                while (await pool.counts()).claimed:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            await asyncio.sleep(0.2)
            resumed = time.time()
            await (pool.pause(None) if ring else store.driver.pause("trial", None))
            pauses.append((paused, resumed))
            await asyncio.sleep(within + 0.5)
        return pauses

    pauses = trial.ask(pause_and_resume)
    started = sorted(item.started for item in trial.all_items().values() if item.started)
    waits = []
    for paused, resumed in pauses:
        assert not [at for at in started if paused < at < resumed]
        waits.append(min(at for at in started if at >= resumed) - resumed)
    assert statistics.median(waits) <= within
    told(trial, process, signal.SIGTERM, 30)
    check_unburnt(trial)


def test_a_batch_does_not_end_while_it_is_paused_and_the_pause_passes_by_itself(trial):
    source, gate = waiting_items(trial, 4)
    process = trial.launch(source, 2)
    holders(trial, 2)
    end = time.time() + 2.5
    trial.ask(lambda store: store.work.pool("trial").pause(end))
    gate.touch()
    trial.until(lambda: trial.counts().completed == 2)
    time.sleep(max(0.0, end - 0.3 - time.time()))
    assert process.poll() is None
    assert (trial.counts().completed, trial.counts().waiting) == (2, 2)
    assert process.wait(30) == 0, process.end()
    assert trial.counts().completed == 4
    late = sorted(item.started for item in trial.all_items().values())[2:]
    assert all(end <= at <= end + NOW for at in late)


def test_the_work_of_an_item_cancelled_elsewhere_is_cancelled_and_the_worker_goes_on(trial):
    source, gate = waiting_items(trial, 3)
    process = trial.launch(source, 1)
    ((key, name),) = holders(trial, 1).items()

    async def cancel(store):
        return await store.work.pool("trial").cancel([f"trial:{key}", "trial:unknown"])

    begun = time.monotonic()
    assert trial.ask(cancel) == 1
    holders(trial, 2)
    assert time.monotonic() - begun <= NOW
    gate.touch()
    assert process.wait(30) == 1, process.end()
    items, attempts = trial.all_items(), trial.attempts()
    assert (items[key].state, items[key].error_type) == ("dead", "Cancelled")
    assert [a.outcome for a in attempts[key]] == ["cancelled"]
    assert {a.worker for history in attempts.values() for a in history} == {name}
    assert trial.ran_by_item()[f"trial:{key}"] == ["first", "second"]
    assert trial.counts().completed == 2
