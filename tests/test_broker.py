"""The broker for programs of your own, over every store: items with leases, topics, results, and a clean end."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import flatfleet
import pytest
from flatfleet.runtime.blocking import Broker
from flatfleet.runtime.errors import BrokerClosed, LeaseLost, StoreUrlError, UsageError
from flatfleet.runtime.stores import open_store

SOON = 30.0
"""Seconds after which a test gives up; nothing takes as long where all is well."""


@pytest.fixture
def broker(store_url: str) -> Iterator[Broker]:
    with flatfleet.broker(store_url) as opened:
        yield opened


def state(broker: Broker, item_id: str) -> Any:
    return broker.wait(broker._async.store.driver.item(item_id))


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_what_is_put_is_got_once_and_its_result_is_heard(broker):
    item_id = broker.queue.put({"n": 1})
    message = broker.queue.get(timeout=SOON)
    assert (message.id, message.data, message.attempt, message.open) == (item_id, {"n": 1}, 1, True)
    with pytest.raises(queue.Empty, match="no item came into queue within 0 s"):
        broker.queue.get(timeout=0)
    message.done({"twice": 2})
    (outcome,) = broker.results(timeout=SOON)
    assert (outcome.id, outcome.ok, outcome.data) == (item_id, True, {"n": 1})
    assert (outcome.result, outcome.error, outcome.error_type) == ({"twice": 2}, None, None)
    assert not message.open
    assert list(broker.results(timeout=SOON)) == []


def test_items_come_by_priority_and_then_in_order(broker):
    ids = broker.queue.put_many(range(3))
    urgent = broker.queue.put("urgent", priority=1)
    assert broker.queue.size() == 4
    assert [broker.queue.get(timeout=0).id for _ in range(4)] == [urgent, *ids]


def test_one_key_is_one_item(broker):
    assert broker.queue.put("first", key="k") == broker.queue.put("second", key="k")
    message = broker.queue.get(timeout=0)
    assert (message.key, message.data, broker.queue.size()) == ("k", "first", 0)


@pytest.mark.parametrize(
    ("item", "about", "told"),
    [
        ({"n": 1}, {"priority": "x"}, r"an item's priority is a whole number from -10\^13 to 10\^13, got 'x' \(str\)"),
        ({"n": 1}, {"priority": 0.5}, r"an item's priority is a whole number .* got '0\.5' \(float\)"),
        ({"n": 1}, {"priority": 10**14}, "an item's priority is a whole number"),
        ({"n": 1}, {"key": 5}, r"an item's key is a text, got '5' \(int\); write key='5'"),
        ({"n": 1}, {"delay": "x"}, r"an item's delay is a number of seconds, got 'x' \(str\)"),
        ({"n": 1}, {"delay": math.inf}, r"an item's delay is a number of seconds, got 'inf' \(float\)"),
        (math.nan, {}, "an item is JSON data, where NaN, infinity"),
        ({"n": [math.inf]}, {}, "an item is JSON data, where NaN, infinity"),
    ],
)
def test_what_no_store_can_keep_is_refused_with_one_message(broker, item, about, told):
    with pytest.raises(UsageError, match=told):
        broker.queue.put(item, **about)
    if not about:
        with pytest.raises(UsageError, match=told):
            broker.queue.put_many([1, item])
    assert broker.queue.size() == 0


def test_who_waits_gets_what_comes(broker):
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(broker.queue.get(timeout=SOON).data))
    thread.start()
    broker.queue.put("late", delay=0.1)
    thread.join(SOON)
    assert got == ["late"]


def test_many_threads_share_what_there_is(broker):
    ids, got, lock = broker.queue.put_many(range(60)), [], threading.Lock()

    def work() -> None:
        while True:
            try:
                message = broker.queue.get(timeout=0)
            except queue.Empty:
                return
            message.done(message.data + 1)
            with lock:
                got.append(message.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert sorted(got) == sorted(ids)
    assert sorted(outcome.result for outcome in broker.results(timeout=SOON)) == list(range(1, 61))


def test_a_failed_item_comes_again_until_its_attempts_are_used_up(broker):
    item_id = broker.queue.put("x")
    for attempt in (1, 2, 3):
        message = broker.queue.get(timeout=SOON)
        assert (message.id, message.attempt) == (item_id, attempt)
        message.failed(ValueError("bad"), after=0)
    (outcome,) = broker.results([item_id], timeout=SOON)
    assert (outcome.ok, outcome.result, outcome.error_type, outcome.error) == (False, None, "ValueError", "bad")


def test_what_no_retry_will_mend_is_dead_at_once(broker):
    broker.queue.put("x")
    broker.queue.get(timeout=0).failed("hopeless", retry=False)
    (outcome,) = broker.results(timeout=SOON)
    assert (outcome.error_type, outcome.error) == ("Error", "hopeless")


def test_a_released_item_burns_no_attempt(broker):
    broker.queue.put("x")
    broker.queue.get(timeout=0).release()
    assert broker.queue.get(timeout=0).attempt == 1


def test_a_block_acknowledges_its_message(broker):
    ids = broker.queue.put_many(["done", "told", "failed", "stopped"])
    with broker.queue.get(timeout=0):
        pass
    with broker.queue.get(timeout=0) as message:
        message.done("so")
    with pytest.raises(ValueError, match="bad"), broker.queue.get(timeout=0):
        raise ValueError("bad")
    with pytest.raises(KeyboardInterrupt), broker.queue.get(timeout=0):
        raise KeyboardInterrupt
    items = [state(broker, item_id) for item_id in ids]
    assert [item.state for item in items] == ["completed", "completed", "delayed", "ready"]
    assert [items[1].result, items[2].error_type, items[3].attempts] == ["so", "ValueError", 0]


def test_an_attempt_ends_once(broker):
    broker.queue.put("x")
    message = broker.queue.get(timeout=0)
    message.done(1)
    for again in (message.done, message.failed, message.release):
        with pytest.raises(UsageError, match="was acknowledged before"):
            again()


def test_a_result_that_is_no_data_leaves_the_item_in_hand(broker):
    broker.queue.put("x")
    message = broker.queue.get(timeout=0)
    with pytest.raises(TypeError, match="is not JSON data"):
        message.done(object())
    message.done("data")
    assert [outcome.result for outcome in broker.results(timeout=SOON)] == ["data"]
    with pytest.raises(TypeError, match="is not JSON data"):
        broker.queue.put({1, 2})


def test_autoack_hands_an_item_out_at_most_once(broker):
    item_id = broker.queue.put("x")
    message = broker.queue.get(timeout=0, autoack=True)
    assert (message.data, message.open, state(broker, item_id).state) == ("x", False, "completed")


def test_capabilities_decide_who_gets_an_item(store_url):
    with flatfleet.broker(store_url, capabilities=["gpu"]) as broker:
        broker.queue.put("tpu", requires="tpu")
        broker.queue.put("gpu", requires=["gpu"])
        assert broker.queue.get(timeout=0).data == "gpu"
        with pytest.raises(queue.Empty):
            broker.queue.get(timeout=0.05)
    with pytest.raises(UsageError, match="capabilities: 'a b' names no capability"):
        flatfleet.broker(store_url, capabilities=["a b"])


def test_a_lost_lease_is_told_and_changes_nothing(broker):
    item_id = broker.queue.put("x")
    message = broker.queue.get(timeout=0)
    broker.wait(broker._async.store.work.pool("queue").cancel([item_id]))
    broker.wait(broker._async.fleet.beat())
    with pytest.raises(LeaseLost):
        message.done("late")
    assert state(broker, item_id).state == "dead"


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_come_as_items_end_and_each_once(broker):
    first, second, third = broker.queue.put_many(["a", "b", "c"])
    found = broker.results(timeout=SOON)
    messages = {message.id: message for message in (broker.queue.get(timeout=0) for _ in range(3))}
    for item_id in (second, third, first):
        messages[item_id].done(item_id)
        assert next(found).id == item_id
    with pytest.raises(StopIteration):
        next(found)


def test_results_may_be_asked_for_by_id_and_again(broker):
    ids = broker.queue.put_many(["a", "b"])
    for _ in ids:
        broker.queue.get(timeout=0).done("x")
    for _ in range(2):
        assert {outcome.id for outcome in broker.results(ids, timeout=SOON)} == set(ids)
    with pytest.raises(KeyError, match="no item 'queue:none'"):
        list(broker.results(["queue:none"]))


def test_results_that_do_not_come_in_time(broker):
    broker.queue.put_many(["a", "b"])
    broker.queue.get(timeout=0).done("x")
    found = broker.results(timeout=0.05)
    assert next(found).result == "x"
    with pytest.raises(TimeoutError, match=r"1 items have not ended within 0\.05 s"):
        next(found)


def test_more_results_than_are_looked_at_in_one_go(broker):
    ids = broker.queue.put_many(range(450))
    found = broker.results(timeout=60)
    last = [broker.queue.get(timeout=0) for _ in range(450)][-1]
    last.done("last")
    assert next(found).id == ids[-1] == last.id
    found.close()


# -- topics ------------------------------------------------------------------------------------------------------------


def test_a_message_to_a_topic_is_received_once_and_in_order(broker):
    for n in range(3):
        assert broker.publish("news", {"n": n})
    assert [broker.receive("news", timeout=0)["n"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(queue.Empty, match="no message came to news within 0 s"):
        broker.receive("news", timeout=0)
    with pytest.raises(UsageError, match="a topic is a text"):
        broker.publish("", 1)


def test_who_listens_hears_it(broker):
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.append(broker.receive("news", timeout=SOON)))
    thread.start()
    broker.publish("news", "now")
    thread.join(SOON)
    assert heard == ["now"]


# -- the end -----------------------------------------------------------------------------------------------------------


def test_what_is_held_goes_back_at_shutdown(durable_url):
    broker = flatfleet.broker(durable_url)
    item_id = broker.queue.put("x")
    message = broker.queue.get(timeout=0)
    assert broker.shutdown() == 1
    assert broker.shutdown() == 0
    for call in (lambda: broker.queue.put("y"), message.done, lambda: list(broker.results([item_id]))):
        with pytest.raises(BrokerClosed, match="this broker is shut down; open another one"):
            call()
    with flatfleet.broker(durable_url) as again:
        assert again.queue.get(timeout=0).attempt == 1


def test_who_waits_hears_of_the_shutdown(store_url):
    broker, ended = flatfleet.broker(store_url), []

    def wait(call: Any) -> None:
        try:
            call(timeout=SOON)
        except BrokerClosed:
            ended.append(call)

    broker.queue.size()
    calls = [broker.queue.get, lambda timeout: broker.receive("news", timeout=timeout)]
    threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    while len(broker._async.fleet.lounge._waiters["queue"]) == 0:
        time.sleep(0.001)
    broker.shutdown()
    for thread in threads:
        thread.join(SOON)
    assert len(ended) == 2


def test_a_broker_that_was_never_used_ends_without_a_trace(store_url, tmp_path):
    assert flatfleet.broker(store_url).shutdown() == 0
    with flatfleet.broker(store_url):
        pass
    assert not list(tmp_path.iterdir())


def test_a_wrong_url_is_told_at_once():
    with pytest.raises(StoreUrlError, match=r"unknown kind 'sqlit'.*Did you mean 'sqlite'"):
        flatfleet.broker("sqlit:x.db")


# -- with an event loop ------------------------------------------------------------------------------------------------


async def test_the_same_on_an_event_loop(store_url):
    async with flatfleet.broker(store_url) as broker:
        ids = await broker.queue.put_many(range(20))
        late = asyncio.create_task(broker.receive("news", timeout=SOON))

        async def work() -> int:
            n = 0
            while True:
                try:
                    message = await broker.queue.get(timeout=0)
                except queue.Empty:
                    return n
                async with message:
                    await message.done(message.data * 2)
                n += 1

        assert sum(await asyncio.gather(*(work() for _ in range(5)))) == 20
        outcomes = [outcome async for outcome in broker.results(timeout=SOON)]
        assert {outcome.id: outcome.result for outcome in outcomes} == {each: 2 * n for n, each in enumerate(ids)}
        await broker.publish("news", "now")
        assert await late == "now"
        with pytest.raises(ValueError, match="bad"):
            await broker.queue.put("x")
            async with await broker.queue.get(timeout=0):
                raise ValueError("bad")
    with pytest.raises(BrokerClosed):
        await broker.queue.put(1)
    assert "flatfleet-broker" not in {thread.name for thread in threading.enumerate()}


async def test_a_blocking_call_on_an_event_loop_is_refused(store_url):
    broker = flatfleet.broker(store_url)
    with pytest.raises(UsageError, match="would block the event loop; use the broker with: async with"):
        broker.queue.put(1)


async def test_a_get_that_is_given_up_takes_no_item_with_it(store_url):
    async with flatfleet.broker(store_url) as broker:
        waiting = asyncio.create_task(broker.queue.get())
        await asyncio.sleep(0)
        await broker.queue.put("x")
        waiting.cancel()
        await asyncio.wait([waiting])
        if waiting.cancelled():
            assert (await broker.queue.get(timeout=SOON)).data == "x"


# -- several processes -------------------------------------------------------------------------------------------------

CONSUMER = """
import logging, queue, sys, flatfleet
logging.getLogger("flatfleet").setLevel(logging.ERROR)  # a store may have something to say of its server
with flatfleet.broker(sys.argv[1]) as broker:
    while True:
        try:
            with broker.queue.get(timeout=float(sys.argv[2])) as message:
                message.done([message.data, 1])
        except queue.Empty:
            break
"""
DIES = """
import os, sys, flatfleet
broker = flatfleet.broker(sys.argv[1])
print(broker.queue.get(timeout=10).data, flush=True)
os._exit(1)
"""


def child(script: str, *argv: str, python: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, *python, "-c", script, *argv], **pipes)


@pytest.mark.slow
def test_items_are_shared_between_processes_and_results_come_from_them(durable_url):
    children = [child(CONSUMER, durable_url, "2") for _ in range(2)]
    with flatfleet.broker(durable_url) as broker:
        broker.queue.put_many(range(100))
        outcomes = list(broker.results(timeout=60))
    assert sorted(outcome.result[0] for outcome in outcomes) == list(range(100))
    assert [each.communicate(timeout=60) for each in children] == [("", "")] * 2


@pytest.mark.slow
def test_what_a_dead_process_held_comes_again_at_once(durable_url):
    with flatfleet.broker(durable_url) as broker:
        broker.queue.put("x")
        assert child(DIES, durable_url).communicate(timeout=60)[0] == "x\n"
        message = broker.queue.get(timeout=SOON)
        assert (message.data, message.attempt) == ("x", 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_open_its_own(durable_url):
    with flatfleet.broker(durable_url) as broker:
        broker.queue.put("x")
        told = multiprocessing.get_context("fork").SimpleQueue()

        def inside() -> None:
            try:
                broker.queue.put("y")
            except UsageError as error:
                told.put(str(error))

        process = multiprocessing.get_context("fork").Process(target=inside)
        process.start()
        process.join(SOON)
        assert told.get().startswith("this broker was opened in another process, before a fork")
        assert broker.queue.size() == 1


TIDY = """
import asyncio, logging, queue, sys, threading
import flatfleet
for name in ("asyncio", "flatfleet"):  # how busy the machine is, and what a store has to say of its server
    logging.getLogger(name).setLevel(logging.ERROR)
url, how = sys.argv[1:]

def serve(broker):
    broker.queue.put_many(range(20))
    broker.publish("news", 1)
    assert broker.receive("news", timeout=5) == 1
    for n in range(19):
        with broker.queue.get(timeout=5) as message:
            message.done(message.data)
    held = broker.queue.get(timeout=5)
    found = broker.results(timeout=5)
    assert len([next(found) for _ in range(19)]) == 19
    try:
        broker.queue.get(timeout=0.01)
    except queue.Empty:
        pass

async def serve_on_a_loop():
    async with flatfleet.broker(url) as broker:
        await broker.queue.put_many(range(20))
        for n in range(19):
            async with await broker.queue.get(timeout=5) as message:
                await message.done(message.data)
        await broker.queue.get(timeout=5)
        async for outcome in broker.results(timeout=5):
            break

if how == "with":
    with flatfleet.broker(url) as broker:
        serve(broker)
elif how == "forgotten":
    serve(flatfleet.broker(url))
else:
    asyncio.run(serve_on_a_loop())
print("ended", how == "forgotten" or threading.active_count() < 3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["with", "forgotten", "loop"])
def test_nothing_is_left_open_by_a_program_that_ends(store_url, how):
    """No ResourceWarning, no line of the resource tracker, no thread that fails at the end: nothing on standard error."""
    out, err = child(TIDY, store_url, how, python=("-X", "dev", "-W", "error")).communicate(timeout=60)
    assert (out, err) == ("ended True\n", "")


@pytest.mark.slow
def test_what_a_forgotten_broker_held_is_free_at_the_end_of_the_program(durable_url):
    assert child(TIDY, durable_url, "forgotten").communicate(timeout=60)[1] == ""

    async def look() -> Any:
        store = open_store(durable_url)
        try:
            return await store.work.pool("queue").counts()
        finally:
            await store.close()

    counts = asyncio.run(look())
    assert (counts.completed, counts.waiting, counts.claimed) == (19, 1, 0)


def test_nothing_of_it_is_imported_before_it_is_asked_for():
    has = "'flatfleet.runtime.broker' in sys.modules"
    script = f"import sys, flatfleet; print({has}); flatfleet.broker; print({has})"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out == "False\nTrue\n"
