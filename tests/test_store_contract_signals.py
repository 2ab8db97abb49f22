"""The store contract, part 4: messages handed out, inboxes, acknowledgements, locks by prefix — over every driver."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import pytest
from counting import steps_of_python
from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.memory import MemoryDriver
from flatfleet.runtime.stores.records import DELIVERED, Failure, NewItem, SnapshotRow
from flatfleet.runtime.stores.redis import RedisDriver
from flatfleet.runtime.stores.redis_url import parse
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

LEASE = 60.0
WEIRD = ["../../x", "ключ 鍵 🔑", """it's "q"; DROP TABLE inbox; --""", "{{ 7*7 }}", "%_*?[a-z]", " b\n\t", "a:b::c:"]


def row(name: str, event: str | None = "state_enter", channel: str | None = None) -> SnapshotRow:
    return SnapshotRow(name, f"{name}/step_000001", b"{}", event, channel)


async def park(driver: Any, *names: str, channel: str = "ch", acks: Iterable[str] = ()) -> None:
    await asyncio.gather(
        *(driver.save_snapshot(row(name, "waiting", channel), None, None, list(acks)) for name in names)
    )


async def go_on(driver: Any, name: str, *acks: str, event: str = "state_enter") -> None:
    """Save a checkpoint that acknowledges these messages; the machine is parked no more."""
    await driver.save_snapshot(row(name, event), None, None, acks)


async def send(driver: Any, n: int, channel: str = "ch") -> list[str]:
    return [await driver.send(channel, number) for number in range(n)]


async def got(driver: Any, name: str, channel: str = "ch", skip: Iterable[str] = ()) -> Any:
    signal = await driver.take(channel, name, list(skip))
    return signal and signal.data


async def drained(driver: Any, name: str, channel: str = "ch") -> list[Any]:
    """What a machine is given until there is nothing more for it, in order; nothing is acknowledged."""
    seen: list[Any] = []
    while (signal := await driver.take(channel, name, [each.id for each in seen])) is not None:
        seen.append(signal)
    return [signal.data for signal in seen]


async def waiting(driver: Any, channel: str = "ch") -> list[Any]:
    return [signal.data for signal in await driver.peek(channel)]


# -- take ----------------------------------------------------------------------------------------------------------


async def test_an_empty_channel_gives_nothing(driver):
    await park(driver, "x")
    await driver.send("other", 1)
    assert await driver.take("ch", "x") is None
    assert await driver.take("ch", "y", ["unknown"]) is None


async def test_a_taken_message_is_the_one_that_was_sent(driver, clock):
    sent = await driver.send("ch", {"n": 1})
    (before,) = await driver.peek("ch")
    clock.advance(5)
    assert await driver.take("ch", "x") == before
    assert before.id == sent
    assert await driver.peek("ch") == []
    assert await driver.channels() == []


async def test_the_same_message_comes_again_until_it_is_acknowledged(driver, clock):
    first, second = await send(driver, 2)
    for _ in range(3):
        assert (await driver.take("ch", "x")).id == first
        clock.advance(10_000)
    await go_on(driver, "x")
    assert (await driver.take("ch", "x")).id == first
    assert await waiting(driver) == [1]
    await go_on(driver, "x", first)
    assert (await driver.take("ch", "x")).id == second
    await go_on(driver, "x", second)
    assert await driver.take("ch", "x") is None


async def test_what_is_skipped_is_passed_over_and_kept(driver):
    ids = await send(driver, 3)
    assert [await got(driver, "x", skip=ids[:n]) for n in range(4)] == [0, 1, 2, None]
    assert await got(driver, "x", skip=ids[1:]) == 0
    assert await got(driver, "x", skip=[ids[0], ids[2], "unknown"]) == 1
    assert await waiting(driver) == []
    await go_on(driver, "x", ids[1])
    assert await drained(driver, "x") == [0, 2]


async def test_a_set_or_a_list_that_changes_meanwhile_can_be_skipped(driver):
    first, second = await send(driver, 2)
    await got(driver, "x")
    skip = [first]
    taking = asyncio.ensure_future(driver.take("ch", "x", skip))
    await asyncio.sleep(0)
    skip.clear()
    assert (await taking).id == second
    assert await driver.take("ch", "x", {first, second}) is None


async def test_one_message_goes_to_all_who_are_parked_there_and_to_who_takes_it(driver):
    await park(driver, "a", "b")
    await park(driver, "elsewhere", channel="other")
    await go_on(driver, "awake")
    await driver.save_snapshot(row("over", "machine_end", "ch"), None, None)
    await send(driver, 2)
    assert await got(driver, "c") == 0
    assert await waiting(driver) == [1]
    assert [await drained(driver, name) for name in "abc"] == [[0, 1], [0, 1], [0]]
    for name in ("elsewhere", "awake", "over"):
        assert await got(driver, name) is None
        assert await got(driver, name, "other") is None


async def test_a_waiter_with_unread_messages_gets_what_another_takes_behind_them(driver):
    await park(driver, "a", "b")
    first, *_ = await send(driver, 3)
    assert [await got(driver, "a"), await got(driver, "a", skip=[first])] == [0, 1]
    assert await waiting(driver) == [2]
    assert await drained(driver, "b") == [0, 1, 2]


async def test_each_has_its_own_inbox_for_each_channel(driver):
    for channel in ("one", "two"):
        await send(driver, 2, channel)
    one, two = await driver.take("one", "x"), await driver.take("two", "x")
    assert (one.data, two.data, one.channel, two.channel) == (0, 0, "one", "two")
    await go_on(driver, "x", two.id)
    assert (await driver.take("one", "x")).id == one.id
    assert await got(driver, "x", "two") == 1


async def test_who_comes_later_gets_only_what_is_left(driver):
    await send(driver, 2)
    assert await got(driver, "early") == 0
    assert await got(driver, "late") == 1


async def test_what_a_taker_does_to_a_message_changes_no_other(driver):
    await park(driver, "y")
    await driver.send("ch", {"list": [1]})
    for _ in range(2):
        (await driver.take("ch", "x")).data["list"].append(2)
    assert (await driver.take("ch", "x")).data == (await driver.take("ch", "y")).data == {"list": [1]}


async def test_consume_knows_nothing_of_inboxes(driver):
    await park(driver, "x")
    await send(driver, 3)
    assert await got(driver, "x") == 0
    assert (await driver.consume("ch")).data == 1
    assert await drained(driver, "x") == [0, 2]
    assert await driver.consume("ch") is None


@pytest.mark.parametrize("text", WEIRD, ids=lambda text: text[:12].strip())
async def test_weird_names_are_names(driver, text):
    await park(driver, text, f"{text}x", channel=text)
    sent = await driver.send(text, {text: text})
    assert await driver.deliver() == [text, f"{text}x"]
    assert (await driver.take(text, text)).data == {text: text}
    await go_on(driver, text, sent)
    assert await driver.take(text, text) is None
    assert (await driver.take(text, f"{text}x")).id == sent
    assert await driver.take(text + "x", f"{text}x") is None


# -- acknowledging ---------------------------------------------------------------------------------------------------


async def test_an_acknowledgement_is_the_executions_own(driver):
    await park(driver, "x", "y")
    (sent,) = await send(driver, 1)
    await driver.deliver()
    await go_on(driver, "z", sent)
    await go_on(driver, "x:child", sent)
    assert (await driver.take("ch", "x")).id == sent
    await go_on(driver, "x", sent, "unknown", sent)
    assert await driver.take("ch", "x") is None
    assert (await driver.take("ch", "y")).id == sent


async def test_many_can_be_acknowledged_at_once_over_channels(driver):
    ids = await send(driver, 3) + await send(driver, 2, "other")
    await drained(driver, "x")
    await drained(driver, "x", "other")
    await go_on(driver, "x", *ids[1:4])
    assert await drained(driver, "x") == [0]
    assert await drained(driver, "x", "other") == [1]


async def test_a_message_that_still_waits_in_the_channel_is_not_acknowledged(driver):
    (sent,) = await send(driver, 1)
    await go_on(driver, "x", sent)
    assert (await driver.take("ch", "x")).id == sent


async def test_a_refused_checkpoint_acknowledges_and_drops_nothing(driver, clock):
    await driver.push("p", [NewItem("p:a", "a", None)])
    (claim,) = await driver.claim("p", "w", "o", 1, LEASE, ())
    ids = await send(driver, 2)
    await drained(driver, "p:a")
    assert await got(driver, "p:a:child", "ch") is None
    await driver.send("c", 7)
    await driver.take("c", "p:a:child")
    for item_id, token in [("p:a", claim.token + 1), ("p:unknown", 1)]:
        with pytest.raises(LeaseLost):
            await driver.save_snapshot(row("p:a"), (item_id, token), "p:a:", ids)
    clock.advance(LEASE + 1)
    (heir,) = await driver.claim("p", "w2", "o2", 1, LEASE, ())
    with pytest.raises(LeaseLost):
        await driver.save_snapshot(row("p:a"), ("p:a", claim.token), "p:a:", ids)
    assert await drained(driver, "p:a") == [0, 1]
    assert await got(driver, "p:a:child", "c") == 7
    await driver.save_snapshot(row("p:a"), ("p:a", heir.token), "p:a:", ids[:1])
    assert await drained(driver, "p:a") == [1]
    assert await driver.take("c", "p:a:child") is None


# -- what drops an inbox ---------------------------------------------------------------------------------------------


async def hold(driver: Any, *names: str) -> None:
    """Put a message of its own into the inbox of each."""
    for name in names:
        await driver.send(f"to {name}", name)
        assert await got(driver, name, f"to {name}") == name


async def holding(driver: Any, *names: str) -> set[str]:
    return {name for name in names if await driver.take(f"to {name}", name) is not None}


FAMILY = ("x", "x:a", "x:a:b", "x;", "xy", "xy:a", "y:x:a", "X:a")


async def test_dropping_an_execution_drops_its_inbox_and_those_below_it(driver):
    await hold(driver, *FAMILY)
    await go_on(driver, "x")
    await driver.drop_snapshots("unknown")
    assert await holding(driver, *FAMILY) == set(FAMILY)
    await driver.drop_snapshots("x")
    assert await holding(driver, *FAMILY) == {"x;", "xy", "xy:a", "y:x:a", "X:a"}


async def test_saving_drops_the_inboxes_of_the_children_that_it_drops(driver):
    names = ("x", "x:s:0", "x:s:1:deep", "x:t:0", "x:s", "x:s;")
    await hold(driver, *names)
    await driver.save_snapshot(row("x:s:0"), None, "x:s:")
    assert await holding(driver, *names) == {"x", "x:s:0", "x:t:0", "x:s", "x:s;"}


async def test_one_who_is_dropped_takes_no_message_from_the_others(driver):
    await park(driver, "x", "y")
    await send(driver, 1)
    await driver.deliver()
    await driver.drop_snapshots("x")
    assert await got(driver, "x") is None
    assert await got(driver, "y") == 0


@pytest.mark.parametrize(
    ("how", "gone"), [("complete", True), ("cancel", True), ("fail", False), ("fail finished", True), ("retry", True)]
)
async def test_an_item_whose_checkpoints_go_loses_its_inbox(driver, how, gone):
    await driver.push("p", [NewItem("p:a", "a", None), NewItem("p:b", "b", None)])
    await driver.claim("p", "w", "o", 2, LEASE, ())
    names = ("p:a", "p:a:child")
    await hold(driver, *names, "p:b")
    await go_on(driver, "p:a", event="machine_end" if how in ("fail finished", "retry") else "state_enter")
    if how == "complete":
        await driver.complete("p:a", None, 1, 0.0)
    elif how == "cancel":
        await driver.cancel("p", ["p:a"])
    else:
        await driver.fail("p:a", Failure("E", "x", permanent=True), 1, 0.0)
    if how == "retry":
        await driver.retry("p", None)
    assert await holding(driver, *names) == (set() if gone else set(names))
    assert await holding(driver, "p:b") == {"p:b"}


async def test_a_machine_that_starts_afresh_keeps_its_inbox(driver):
    await hold(driver, "x")
    await go_on(driver, "x", event="machine_start")
    await park(driver, "x")
    assert await holding(driver, "x") == {"x"}


# -- deliver ---------------------------------------------------------------------------------------------------------


async def test_deliver_with_nothing_to_do(driver):
    assert await driver.deliver() == []
    await park(driver, "x")
    assert await driver.deliver() == []
    await send(driver, 2, "nobody is here")
    await driver.save_snapshot(row("over", "machine_end", "nobody is here"), None, None)
    assert await driver.deliver() == []
    assert await waiting(driver, "nobody is here") == [0, 1]


async def test_deliver_gives_one_message_of_each_channel_to_all_parked_there(driver, clock):
    for name in "cab":
        await park(driver, name)
        clock.advance(1)
    await park(driver, "o", channel="other")
    await send(driver, 2)
    await send(driver, 1, "other")
    assert await driver.deliver() == ["c", "a", "b", "o"]
    assert await waiting(driver) == [1]
    assert await driver.channels() == ["ch"]
    assert [await got(driver, name) for name in "cab"] == [0] * 3
    assert await got(driver, "o", "other") == 0


async def test_deliver_is_idempotent_while_nobody_has_read(driver):
    await park(driver, "x", "y")
    await send(driver, 3)
    for _ in range(3):
        assert sorted(await driver.deliver()) == ["x", "y"]
    assert await waiting(driver) == [1, 2]


async def test_who_has_acknowledged_and_parked_again_gets_the_next_one(driver):
    await park(driver, "x", "y")
    first, _ = await send(driver, 2)
    await driver.deliver()
    await park(driver, "x", acks=[first])
    assert sorted(await driver.deliver()) == ["x", "y"]
    assert [await got(driver, "x"), await got(driver, "y")] == [1, 0]
    assert await waiting(driver) == []


async def test_deliver_names_only_those_who_are_parked_for_what_they_have(driver):
    await hold(driver, "awake", "ended", "elsewhere", "gone", "right")
    await go_on(driver, "awake")
    await driver.save_snapshot(row("ended", "machine_end", "to ended"), None, None)
    await park(driver, "elsewhere")
    await park(driver, "right", channel="to right")
    assert await driver.deliver() == ["right"]
    await park(driver, "awake", channel="to awake")
    assert sorted(await driver.deliver()) == ["awake", "right"]
    await go_on(driver, "right")
    assert await driver.deliver() == ["awake"]


async def test_who_has_been_parked_longest_comes_first_whatever_came_first_into_an_inbox(driver, clock):
    await hold(driver, "b", "c", "a")
    for name in ("a", "c", "b"):
        await park(driver, name, channel=f"to {name}")
        clock.advance(1)
    assert await driver.deliver() == ["a", "c", "b"]
    await park(driver, "a", channel="to a")
    assert await driver.deliver() == ["c", "b", "a"]


async def test_a_waiter_with_many_messages_is_named_once(driver):
    await park(driver, "x")
    await send(driver, 5)
    await drained(driver, "x")
    await hold(driver, "x")
    assert await driver.deliver() == ["x"]


async def test_deliver_names_the_first_thousand_and_then_the_others(driver, clock):
    names = [f"m{n:04}" for n in range(DELIVERED + 20)]
    await park(driver, *names[20:])
    clock.advance(1)
    await park(driver, *names[:20])
    (sent,) = await send(driver, 1)
    first = await driver.deliver()
    assert sorted(first) == names[20:]
    assert await driver.channels() == []
    await asyncio.gather(*(go_on(driver, name, sent) for name in first))
    assert sorted(await driver.deliver()) == names[:20]


async def test_messages_keep_their_order_whoever_moves_them(driver):
    await park(driver, "x", "y")
    await send(driver, 6)
    await driver.deliver()
    first = await driver.take("ch", "x")
    assert (first.data, await got(driver, "x", skip=[first.id])) == (0, 1)
    await go_on(driver, "x", first.id)
    assert await driver.deliver() == ["y"]
    await park(driver, "x")
    second = await driver.take("ch", "x")
    await park(driver, "x", acks=[second.id])
    assert sorted(await driver.deliver()) == ["x", "y"]
    assert await waiting(driver) == [3, 4, 5]
    assert await drained(driver, "x") == [2, 3, 4, 5]
    assert await drained(driver, "y") == [0, 1, 2, 3, 4, 5]


async def test_who_is_slow_misses_nothing_that_another_is_given(driver):
    await park(driver, "fast", "slow")
    ids = await send(driver, 5)
    for sent in ids:
        assert sorted(await driver.deliver()) == ["fast", "slow"]
        assert (await driver.take("ch", "fast")).id == sent
        await park(driver, "fast", acks=[sent])
    assert await waiting(driver) == []
    assert await driver.deliver() == ["slow"]
    assert await drained(driver, "slow") == [0, 1, 2, 3, 4]


async def wake(driver: Any, name: str, *acks: str, channel: str = "ch") -> None:
    """Save a checkpoint of a machine that a message of the channel has woken, and that is busy with it."""
    await driver.save_snapshot(row(name, "woken", channel), None, None, acks)


@pytest.mark.parametrize("mover", ["deliver", "take"])
async def test_who_is_busy_with_a_message_misses_none_that_is_handed_out_meanwhile(driver, mover):
    await park(driver, "busy", "y")
    first, *_ = await send(driver, 3)
    assert sorted(await driver.deliver()) == ["busy", "y"]
    await wake(driver, "busy", first)
    await go_on(driver, "y", first)
    if mover == "deliver":
        await park(driver, "y")
        assert await driver.deliver() == ["y"]
    else:
        assert await got(driver, "y") == 1
    assert await waiting(driver) == [2]
    await park(driver, "busy")
    assert "busy" in await driver.deliver()
    assert await got(driver, "busy") == 1


async def test_who_is_busy_moves_nothing_by_that(driver):
    await wake(driver, "x")
    await send(driver, 1)
    assert await driver.deliver() == []
    assert await waiting(driver) == [0]


async def test_who_has_gone_elsewhere_ended_or_failed_is_no_waiter_any_more(driver):
    names = ("elsewhere", "awake elsewhere", "ended", "failed", "dropped")
    await park(driver, "x", *names)
    await park(driver, "elsewhere", channel="other")
    await wake(driver, "awake elsewhere", channel="other")
    await go_on(driver, "ended", event="machine_end")
    await driver.save_snapshot(row("failed", "state_enter"), None, None)
    await driver.drop_snapshots("dropped")
    (sent,) = await send(driver, 1)
    assert await driver.deliver() == ["x"]
    for name in names:
        assert await driver.take("ch", name) is None
    await go_on(driver, "x", sent)
    assert kept(driver) == set()


async def test_who_ends_leaves_nothing_in_its_inbox(driver):
    await park(driver, "x", "y")
    ids = await send(driver, 2)
    await driver.deliver()
    assert await drained(driver, "x") == [0, 1]
    await hold(driver, "x:child")
    await go_on(driver, "x", ids[0], event="machine_end")
    assert await driver.take("ch", "x") is None
    assert await drained(driver, "y") == [0, 1]
    assert await holding(driver, "x:child") == {"x:child"}
    await go_on(driver, "y", *ids, event="machine_end")
    await driver.drop_snapshots("x")
    assert kept(driver) == set()


async def test_deliver_passes_over_whom_it_is_told_to_but_they_have_their_messages(driver, clock):
    for name in "abc":
        await park(driver, name)
        clock.advance(1)
    await send(driver, 1)
    assert await driver.deliver(["a", "unknown"]) == ["b", "c"]
    assert await waiting(driver) == []
    assert await driver.deliver({"b", "c"}) == ["a"]
    assert await driver.deliver(list("abc")) == []
    assert await got(driver, "a") == 0


async def test_deliver_names_those_behind_the_first_thousand_if_these_are_passed_over(driver, clock):
    await park(driver, *(f"m{n:04}" for n in range(DELIVERED)))
    clock.advance(1)
    await park(driver, "last")
    await send(driver, 1)
    first = await driver.deliver()
    assert "last" not in first
    assert await driver.deliver(first) == ["last"]


# -- concurrency -----------------------------------------------------------------------------------------------------


async def test_many_takers_share_a_channel_without_loss_or_repetition(driver):
    await send(driver, 60)
    taken = await asyncio.gather(*(driver.take("ch", f"m{n}") for n in range(80)))
    assert sorted(signal.data for signal in taken if signal) == list(range(60))
    again = await asyncio.gather(*(driver.take("ch", f"m{n}") for n in range(80)))
    assert again == taken


async def test_many_takes_of_one_waiter_are_one_message(driver):
    await send(driver, 3)
    assert {signal.data for signal in await asyncio.gather(*(driver.take("ch", "x") for _ in range(20)))} == {0}
    assert await waiting(driver) == [1, 2]


async def test_concurrent_deliveries_hand_out_one_message(driver):
    await park(driver, *(f"m{n}" for n in range(20)))
    await send(driver, 3)
    answers = await asyncio.gather(*(driver.deliver() for _ in range(10)))
    assert {len(answer) for answer in answers} == {20}
    assert await waiting(driver) == [1, 2]
    assert {await got(driver, f"m{n}") for n in range(20)} == {0}


async def live(driver: Any, name: str, seen: list[int], until: int) -> None:
    """Read, acknowledge and park, as a machine does, until a message `until` has come."""
    while not seen or seen[-1] != until:
        signal = await driver.take("ch", name)
        if signal is None:
            await park(driver, name)
            await driver.deliver()
            continue
        seen.append(signal.data)
        await go_on(driver, name, signal.id)


async def test_a_machine_reads_all_in_order_while_others_send_and_deliver(driver):
    seen: list[int] = []
    async with asyncio.timeout(30):
        reading = asyncio.create_task(live(driver, "x", seen, 99))
        for n in range(100):
            await driver.send("ch", n)
            await asyncio.gather(*(driver.deliver() for _ in range(n % 3)))
        await reading
    assert seen == list(range(100))
    assert await driver.channels() == []


async def test_two_processes_on_one_file_hand_out_each_message_once(tmp_path, clock):
    here, there = (SQLiteDriver(tmp_path / "fleet.db", clock=clock) for _ in range(2))
    try:
        ids = await send(here, 100)
        both = itertools.cycle([here, there])
        taken = await asyncio.gather(*(next(both).take("ch", f"m{n}") for n in range(120)))
        assert sorted(signal.id for signal in taken if signal) == sorted(ids)
        await park(there, *(f"p{n}" for n in range(10)))
        await here.send("ch", "all")
        named = await asyncio.gather(*(next(both).deliver() for _ in range(10)))
        assert [sorted(answer) for answer in named] == [[f"p{n}" for n in range(10)]] * 10
        assert {await got(next(both), f"p{n}") for n in range(10)} == {"all"}
        assert await here.channels() == []
    finally:
        await here.close()
        await there.close()


async def test_an_inbox_survives_its_process(tmp_path, clock):
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    await park(driver, "x")
    ids = await send(driver, 2)
    assert await got(driver, "x") == 0
    await driver.close()
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    try:
        assert await driver.deliver() == ["x"]
        assert (await driver.take("ch", "x")).id == ids[0]
        await go_on(driver, "x", ids[0])
        assert (await driver.take("ch", "x")).id == ids[1]
    finally:
        await driver.close()


# -- a model ---------------------------------------------------------------------------------------------------------

NAMES = ("x", "x:s:0", "x:s:1", "y")
NAME, CHANNEL = st.sampled_from(NAMES), st.sampled_from(["a", "b"])
EVENT = st.sampled_from(["waiting", "waiting", "woken", "state_enter", "machine_end"])


def exchanges(open_driver: Callable[[Any], Any], clock_type: type) -> type[RuleBasedStateMachine]:
    class Exchanges(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.clock = clock_type()
            self.runner = asyncio.Runner()
            self.driver = open_driver(self.clock)
            self.channels: dict[str, list[str]] = {"a": [], "b": []}
            self.inbox: dict[str, list[tuple[str, str]]] = {name: [] for name in NAMES}
            self.parked: dict[str, str] = {}
            self.woken: dict[str, str] = {}

        def teardown(self) -> None:
            self.run(self.driver.close())
            self.runner.close()

        def run(self, call: Any) -> Any:
            self.clock.advance(1)
            return self.runner.run(call)

        def has(self, name: str, channel: str) -> list[str]:
            return [signal for where, signal in self.inbox[name] if where == channel]

        def hand_out(self, channel: str, *more: str) -> None:
            signal = self.channels[channel].pop(0)
            waiters = [n for n, where in (self.parked | self.woken).items() if where == channel]
            for name in {*waiters, *more}:
                self.inbox[name].append((channel, signal))

        @rule(channel=CHANNEL, n=st.integers(1, 3))
        def send(self, channel: str, n: int) -> None:
            self.channels[channel] += [self.run(self.driver.send(channel, None)) for _ in range(n)]

        @rule(name=NAME, channel=CHANNEL, skipped=st.integers(0, 2))
        def take(self, name: str, channel: str, skipped: int) -> None:
            skip = self.has(name, channel)[:skipped]
            if self.has(name, channel) == skip and self.channels[channel]:
                self.hand_out(channel, name)
            left = self.has(name, channel)[len(skip) :]
            signal = self.run(self.driver.take(channel, name, skip))
            assert (signal and signal.id) == (left[0] if left else None)

        @rule(skip=st.sets(NAME, max_size=2))
        def deliver(self, skip: set[str]) -> None:
            for channel in self.channels:
                idle = [n for n, where in self.parked.items() if where == channel and not self.has(n, channel)]
                if idle and self.channels[channel]:
                    self.hand_out(channel)
            due = [name for name, channel in self.parked.items() if self.has(name, channel) and name not in skip]
            assert self.run(self.driver.deliver(skip)) == due

        @rule(name=NAME, event=EVENT, channel=CHANNEL, acks=st.integers(0, 2), drop=st.booleans())
        def save(self, name: str, event: str, channel: str, acks: int, drop: bool) -> None:
            ids = [signal for _, signal in self.inbox[name][:acks]]
            self.inbox[name] = [] if event == "machine_end" else self.inbox[name][acks:]
            self.parked.pop(name, None)
            self.woken.pop(name, None)
            if event == "waiting":
                self.parked[name] = channel
            elif event == "woken":
                self.woken[name] = channel
            if drop:
                self.forget(*(each for each in NAMES if each.startswith("x:s:") and each != name))
            saved = row(name, event, channel)
            self.run(self.driver.save_snapshot(saved, None, "x:s:" if drop else None, ids))

        @rule(name=NAME)
        def drop(self, name: str) -> None:
            self.forget(*(each for each in NAMES if each == name or each.startswith(f"{name}:")))
            self.run(self.driver.drop_snapshots(name))

        @precondition(lambda self: any(self.channels.values()))
        @rule(channel=CHANNEL)
        def consume(self, channel: str) -> None:
            signal = self.run(self.driver.consume(channel))
            assert (signal and signal.id) == (self.channels[channel].pop(0) if self.channels[channel] else None)

        def forget(self, *names: str) -> None:
            for name in names:
                self.inbox[name] = []
                self.parked.pop(name, None)
                self.woken.pop(name, None)

        @invariant()
        def channels_hold_what_nobody_was_given_and_nothing_is_kept_that_is_in_no_inbox(self) -> None:
            found = {c: [signal.id for signal in self.run(self.driver.peek(c))] for c in self.channels}
            assert found == self.channels
            assert self.run(self.driver.channels()) == [channel for channel, ids in self.channels.items() if ids]
            assert kept(self.driver) == {signal for inbox in self.inbox.values() for _, signal in inbox}
            assert inboxes(self.driver) == {(name, *each) for name, inbox in self.inbox.items() for each in inbox}

    return Exchanges


def kept(driver: Any) -> set[str]:
    """The ids of the messages that a driver of ours keeps for inboxes."""
    if isinstance(driver, MemoryDriver):
        return {found[-1] for found in inboxes(driver)}
    if hasattr(driver, "server"):
        return {name.rpartition(":")[2] for name in redis_keys(driver, "message:*")} - waiting_ids(driver)
    if not isinstance(driver, SQLiteDriver):
        return set()
    with closing(sqlite3.connect(driver._group.path)) as db:
        return {found[0] for found in db.execute("SELECT id FROM messages")}


def inboxes(driver: Any) -> set[tuple[str, str, str]]:
    """(execution, channel, id of a message) of all that is in the inboxes of a driver of ours."""
    if isinstance(driver, MemoryDriver):
        boxes = driver._snapshots.inboxes
        assert sorted(boxes.rows) == boxes._ids
        return {(who, where, each) for who, box in boxes.rows.items() for where, ids in box.items() for each in ids}
    if hasattr(driver, "server"):
        client, found = redis_client(driver), set()
        for name in redis_keys(driver, "inbox:*"):
            size, rest = name.partition(":inbox:")[2].split(":", 1)
            who, where = rest[: int(size)], rest[int(size) + 1 :]
            found |= {(who, where, each) for each in client.lrange(name, 0, -1)}
        client.close()
        assert {who for who, _, _ in found} == {
            name.partition(":inboxes:")[2] for name in redis_keys(driver, "inboxes:*")
        }
        return found
    with closing(sqlite3.connect(driver._group.path)) as db:
        return set(db.execute("SELECT execution_id, inbox.channel, id FROM inbox JOIN messages USING (seq)"))


def redis_client(driver: Any) -> Any:
    import redis

    return redis.Redis(host=driver.server.host, port=driver.server.port, db=driver.server.db, decode_responses=True)


def redis_keys(driver: Any, pattern: str) -> list[str]:
    with redis_client(driver) as client:
        return list(client.scan_iter(f"{driver.server.tag}:{pattern}", count=1000))


def waiting_ids(driver: Any) -> set[str]:
    """The ids of the messages that wait in a channel of a Redis store."""
    with redis_client(driver) as client:
        return {each for name in redis_keys(driver, "channel:*") for each in client.lrange(name, 0, -1)}


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_any_exchange_of_messages_goes_as_the_model_says(kind, tmp_path, clock, own_redis):
    numbers = itertools.count()
    server = parse(own_redis().url) if kind == "redis" else None

    def open_one(clock: Any) -> Any:
        if server is not None:
            driver = RedisDriver(server, clock=clock)
            with redis_client(driver) as client:
                client.flushall()  # so that no scan sees the keys of others
            return driver
        if kind == "memory":
            return MemoryDriver(clock=clock)
        return SQLiteDriver(tmp_path / f"{next(numbers)}.db", clock=clock)

    run_state_machine_as_test(
        exchanges(open_one, type(clock)),
        settings=settings(
            max_examples={"memory": 100, "sqlite": 40, "redis": 15}[kind],
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# -- what it costs ---------------------------------------------------------------------------------------------------


async def test_a_message_is_kept_once_however_many_wait_for_it_and_goes_with_the_last(tmp_path, clock):
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    try:
        await park(driver, *(f"m{n}" for n in range(50)))
        sent = await driver.send("ch", "x" * 100_000)
        await driver.deliver()
        assert (tmp_path / "fleet.db-wal").stat().st_size < 1_000_000
        for n in range(50):
            assert kept(driver) == {sent}
            await park(driver, f"m{n}", acks=[sent])
        assert kept(driver) == set()
    finally:
        await driver.close()


async def steps_of_sqlite(driver: SQLiteDriver, call: Callable[[], Any]) -> tuple[int, list[str]]:
    """The steps of SQLite's machine in a call, and its statements."""
    assert driver._group._connection is not None
    db, steps, said = driver._group._connection._conn, itertools.count(), []
    db.set_progress_handler(lambda: next(steps) < 0, 1)
    db.set_trace_callback(said.append)
    try:
        await call()
    finally:
        db.set_progress_handler(None, 0)
        db.set_trace_callback(None)
    return next(steps), said


async def busy(driver: Any, parked: int) -> None:
    """So many parked machines, and messages that none of them waits for: some in channels, some in inboxes."""
    await park(driver, *(f"m{n:05}" for n in range(parked)))
    await send(driver, 3, "nobody is here")
    await hold(driver, "awake", "m00000")


@pytest.mark.parametrize("pending", [False, True])
async def test_deliver_costs_by_what_is_pending_on_sqlite(tmp_path, clock, pending):
    costs = []
    for parked in (10, 10_000):
        driver = SQLiteDriver(tmp_path / f"{parked}.db", clock=clock)
        try:
            await (busy(driver, parked) if pending else park(driver, *(f"m{n:05}" for n in range(parked))))
            costs.append(await steps_of_sqlite(driver, driver.deliver))
        finally:
            await driver.close()
    assert costs[1] == costs[0]
    steps, said = costs[0]
    assert steps < (800 if pending else 200)
    assert [text.split()[0] for text in said] == ["BEGIN", "WITH", "SELECT", "COMMIT"]
    assert "IMMEDIATE" not in said[0]


async def test_a_channel_full_of_messages_that_nobody_waits_for_costs_one_look_on_sqlite(tmp_path, clock):
    costs = []
    for n in (10, 2_000):
        driver = SQLiteDriver(tmp_path / f"{n}.db", clock=clock)
        try:
            await asyncio.gather(*(driver.send("nobody is here", number) for number in range(n)))
            costs.append(await steps_of_sqlite(driver, driver.deliver))
        finally:
            await driver.close()
    assert costs[1] == costs[0]


@pytest.mark.parametrize("event", ["woken", "waiting"])
async def test_who_waits_is_found_without_a_look_at_the_others_on_sqlite(tmp_path, clock, event):
    costs = []
    for others in (10, 2_000):
        driver = SQLiteDriver(tmp_path / f"{others}.db", clock=clock)
        try:
            await park(driver, *(f"m{n:05}" for n in range(others if event == "woken" else 0)))
            await asyncio.gather(*(go_on(driver, f"e{n:05}", event="machine_end") for n in range(others)))
            await driver.save_snapshot(row("x", event, "here"), None, None)
            costs.append((await steps_of_sqlite(driver, functools.partial(driver.snapshots, event, None)))[0])
            assert [found.execution_id for found in await driver.snapshots(event, "here")] == ["x"]
            assert await driver.snapshots(event, "there") == []
        finally:
            await driver.close()
    assert costs[1] == costs[0]


@pytest.mark.parametrize("pending", [False, True])
async def test_deliver_costs_by_what_is_pending_in_memory(clock, pending):
    costs = []
    for parked in (10, 10_000):
        driver = MemoryDriver(clock=clock)
        await (busy(driver, parked) if pending else park(driver, *(f"m{n:05}" for n in range(parked))))
        costs.append(await steps_of_python(driver.deliver))
    assert costs[1] == costs[0] < 2_000


async def test_an_empty_take_writes_nothing(tmp_path, clock):
    driver = SQLiteDriver(tmp_path / "fleet.db", clock=clock)
    try:
        await park(driver, *(f"m{n:05}" for n in range(100)))
        for said in (await steps_of_sqlite(driver, lambda: driver.take("ch", "m00000")))[1]:
            assert said.split()[0] in ("BEGIN", "SELECT", "COMMIT")
            assert "IMMEDIATE" not in said
    finally:
        await driver.close()


# -- locks by prefix -------------------------------------------------------------------------------------------------


async def test_locks_are_those_that_are_held_and_begin_so(driver, clock):
    assert await driver.locks("") == []
    for key, owner, lease in [("host/b/2", "o2", 20), ("host/b/1", "o1", 10), ("host/bc/1", "o1", 30), ("x", "o3", 5)]:
        assert await driver.lock(key, owner, lease)
    start = clock.now
    assert await driver.locks("host/b/") == [("host/b/1", "o1", start + 10), ("host/b/2", "o2", start + 20)]
    assert [key for key, _, _ in await driver.locks("host/b")] == ["host/b/1", "host/b/2", "host/bc/1"]
    assert [key for key, _, _ in await driver.locks("")] == ["host/b/1", "host/b/2", "host/bc/1", "x"]
    assert await driver.locks("Host") == await driver.locks("host/_/") == await driver.locks("%") == []
    clock.advance(10)
    assert [key for key, _, _ in await driver.locks("host/b/")] == ["host/b/2"]
    await driver.beat("o2", [], {}, 60)
    assert await driver.locks("host/b/") == [("host/b/2", "o2", clock.now + 60)]
    await driver.unlock("host/b/2", "o2")
    assert await driver.locks("host/b/") == []


@pytest.mark.parametrize("text", WEIRD, ids=lambda text: text[:12].strip())
async def test_weird_keys_of_locks(driver, clock, text):
    for key in (text, f"{text}🔑", f"x{text}", text[:-1]):
        await driver.lock(key, text, LEASE)
    assert {key for key, _, _ in await driver.locks(text)} == {text, f"{text}🔑"}
    assert {owner for _, owner, _ in await driver.locks(text)} == {text}
