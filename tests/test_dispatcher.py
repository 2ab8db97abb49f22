"""The dispatcher: who is parked is woken by a message, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
from collections import Counter
from dataclasses import replace

import pytest
from flatfleet.runtime import dispatcher as module
from flatfleet.runtime.dispatcher import Dispatcher, host_key
from flatfleet.runtime.engines.hold import hold
from flatfleet.runtime.errors import ChildWaiting, LeaseLost, MachineError, StoreUnavailable
from flatfleet.runtime.inbox import Inbox
from flatfleet.runtime.journal import WOKEN
from flatmachines import ConfigStoreResumer, FlatMachine, HooksRegistry, MachineHooks, SignalDispatcher
from flatmachines.backends import make_uri

CHECKPOINTS = {"enabled": True, "backend": "memory", "checkpoint_on": ["state_enter", "waiting", "machine_end"]}


def to(state, condition=None):
    return {"to": state} | ({"condition": condition} if condition else {})


def waiter(flow, channel="go", rounds=True, **data):
    """wait → note → wait …, until a message says `end`: true."""
    states = {
        "wait": {
            "type": "initial",
            "wait_for": channel,
            "output_to_context": {"got": "output.n", "end": "output.end"},
            "transitions": [to("note")],
        },
        "note": {"action": "note", "hooks": "test", "transitions": [to("done", "context.end"), to("wait")]},
        "done": {"type": "final", "output": {"seen": "context.seen"}},
    }
    if not rounds:
        states["note"]["transitions"] = [to("done")]
    return flow(states, {"seen": [], "n": "input.n"}, persistence=CHECKPOINTS, **data)


class Notes:
    """The action `note` writes down (machine, message, signal id) and puts the message into the machine's `seen`.

    It waits for `gate` first, or for the machine's own in `gates`, and raises what stands in `raises`.
    """

    def __init__(self, kit):
        self.log, self.gate, self.raises, self.entered = [], asyncio.Event(), [], asyncio.Event()
        self.gates = {}
        self.gate.set()
        self.function = kit.does(self.note())

    def note(self):
        async def note(context, fleet):
            self.entered.set()
            await self.gates.get(context["machine"]["execution_id"], self.gate).wait()
            if self.raises:
                raise self.raises.pop()
            self.log.append((context["machine"]["execution_id"], context["got"], context["signal_id"]))
            context["seen"] = [*context["seen"], context["got"]]
            return context

        return note

    def by(self, name):
        return [got for who, got, _ in self.log if who == name]

    async def reached(self, n):
        async with asyncio.timeout(10):
            while len(self.log) < n:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
def notes(any_kit):
    return Notes(any_kit)


@pytest.fixture
def dispatcher(any_kit, monkeypatch):
    """A dispatcher that has to be rung: it does not poll within any test."""
    monkeypatch.setattr(module, "POLL", 600.0)

    class Closing(Dispatcher):
        async def close(self):
            await self.stop()
            await any_kit.store.close()  # it may have been opened anew after the kit was closed

    return Closing(any_kit.store, any_kit.engine)


async def park(kit, config, *names):
    for name in names or ("x",):
        assert (await kit.machine(config, name).run())["_waiting"]


async def event(kit, name="x"):
    row = await kit.store.driver.load_snapshot(name)
    return row and row.event


async def left(kit, name="x", channel="go"):
    """Messages that wait for this machine: in its inbox, or else in the channel."""
    return await kit.store.driver.take(channel, name)


async def ended(kit, name="x"):
    async with asyncio.timeout(10):
        return await kit.store.results.read(make_uri(name, "result"), block=True)


# -- waking ------------------------------------------------------------------------------------------------------------


async def test_a_message_wakes_a_parked_machine_and_its_end_is_its_result(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow))
    assert any_kit.engine.live() == 0
    dispatcher.start()
    sent = await any_kit.store.signals.send("go", {"n": 1})
    await notes.reached(1)
    assert notes.log == [("x", 1, sent)]
    await any_kit.store.signals.send("go", {"n": 2, "end": True})
    assert await ended(any_kit) == {"seen": [1, 2]}
    assert await event(any_kit) == "machine_end"
    assert await any_kit.store.signals.channels() == []
    assert await left(any_kit) is None


async def test_what_was_sent_before_the_dispatcher_stood_is_delivered_at_its_start(any_kit, flow, notes, dispatcher):
    await any_kit.store.signals.send("go", {"n": 1})
    await any_kit.store.signals.send("go", {"n": 2})
    row = await first_park(any_kit, flow)
    assert row.channel == "go"
    dispatcher.start()
    await notes.reached(2)
    assert notes.by("x") == [1, 2]


async def first_park(kit, flow):
    """Park without a message being taken: as if both had come in the moment after the look."""
    inbox = Inbox.consume
    try:
        Inbox.consume = lambda self, channel: asyncio.sleep(0, None)
        await park(kit, waiter(flow))
    finally:
        Inbox.consume = inbox
    return await kit.store.driver.load_snapshot("x")


async def test_messages_come_in_order_each_once_with_its_id(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow))
    dispatcher.start()
    ids = [await any_kit.store.signals.send("go", {"n": n}) for n in range(50)]
    await any_kit.store.signals.send("go", {"n": 50, "end": True})
    assert (await ended(any_kit))["seen"] == list(range(51))
    assert [signal for _, _, signal in notes.log[:50]] == ids


async def test_a_message_that_comes_between_the_look_and_the_park_is_not_left_lying(
    any_kit, flow, notes, dispatcher, monkeypatch
):
    await park(any_kit, waiter(flow))
    dispatcher.start()
    take, late = any_kit.store.driver.take, []

    async def racing(*args):
        signal = await take(*args)
        if signal is None and not late:
            late.append(await any_kit.store.signals.send("go", {"n": 2, "end": True}))
            await asyncio.sleep(0.01)  # the dispatcher looks, and finds the machine running still
        return signal

    monkeypatch.setattr(any_kit.store.driver, "take", racing)
    await any_kit.store.signals.send("go", {"n": 1})
    assert (await ended(any_kit))["seen"] == [1, 2]
    assert late


async def test_a_launched_machine_that_parks_is_looked_after_at_once(any_kit, flow, notes, dispatcher, monkeypatch):
    dispatcher.start()
    await asyncio.sleep(0)
    take, late = any_kit.store.driver.take, []

    async def racing(*args):
        signal = await take(*args)
        if signal is None and not late:
            late.append(await any_kit.store.signals.send("go", {"n": 1, "end": True}))
            await asyncio.sleep(0.01)
        return signal

    monkeypatch.setattr(any_kit.store.driver, "take", racing)
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    await any_kit.engine.launch(caller, waiter(flow), {}, "x")
    assert (await ended(any_kit))["seen"] == [1]


async def test_one_message_wakes_all_who_wait_once_each_and_nothing_is_left(any_kit, flow, notes, dispatcher):
    names = [f"w{n}" for n in range(40)]
    await park(any_kit, waiter(flow), *names)
    await park(any_kit, waiter(flow, "other"), "stranger")
    dispatcher.start()
    for n in range(3):
        await any_kit.store.signals.send("go", {"n": n, "end": n == 2})
        await notes.reached(40 * (n + 1))
        await any_kit.engine.join()
    assert {name: notes.by(name) for name in names} == {name: [0, 1, 2] for name in names}
    assert notes.by("stranger") == []
    assert await any_kit.store.signals.channels() == []
    assert await event(any_kit, "stranger") == "waiting"


async def test_who_is_slow_has_all_that_another_waiter_had_in_order(any_kit, flow, notes, dispatcher, monkeypatch):
    """Slow at its message (woken), and slow to be resumed at all (parked): both miss nothing."""
    await park(any_kit, waiter(flow), "fast", "busy", "resting")
    dispatcher._resting["resting"] = (float("inf"), 1.0)
    notes.gates["busy"] = asyncio.Event()
    dispatcher.start()
    for n in range(3):
        await any_kit.store.signals.send("go", {"n": n, "end": n == 2})
        await notes.reached(n + 1)
    assert [who for who, _, _ in notes.log] == ["fast"] * 3
    await ended(any_kit, "fast")
    notes.gates["busy"].set()
    await ended(any_kit, "busy")
    dispatcher._resting.clear()
    any_kit.store.bell.ring("signals")
    await ended(any_kit, "resting")
    assert notes.by("fast") == notes.by("busy") == notes.by("resting") == [0, 1, 2]
    assert await any_kit.store.signals.channels() == []


async def test_a_machine_that_ends_by_its_message_leaves_nothing_that_came_meanwhile(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow), "often")
    await park(any_kit, waiter(flow, rounds=False), "once")
    notes.gates["once"] = asyncio.Event()
    dispatcher.start()
    await any_kit.store.signals.send("go", {"n": 1})
    await any_kit.store.signals.send("go", {"n": 2, "end": True})
    await ended(any_kit, "often")
    assert (await left(any_kit, "once")).data["n"] == 2
    notes.gates["once"].set()
    await ended(any_kit, "once")
    assert (notes.by("often"), notes.by("once")) == ([1, 2], [1])
    assert await left(any_kit, "once") is None


async def test_thousands_that_nobody_here_can_resume_do_not_keep_the_others_from_their_turn(
    any_kit, flow, notes, dispatcher, monkeypatch
):
    monkeypatch.setattr(module, "DELIVERED", 20)
    for drivers in ("memory_signals", "sqlite_signals"):
        monkeypatch.setattr(f"flatfleet.runtime.stores.{drivers}.DELIVERED", 20)
    await park(any_kit, waiter(flow, "scale"), *(f"strange{n}.scaler" for n in range(50)))
    await any_kit.store.signals.send("scale", {"n": 0})
    await park(any_kit, waiter(flow))
    await any_kit.store.signals.send("go", {"n": 1})
    assert await dispatcher.settle()
    assert [who for who, _, _ in notes.log] == ["x"]


async def test_machines_that_another_process_runs_come_last(any_kit, flow, notes, dispatcher, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    names = [f"e{n}" for n in range(5)]
    await park(any_kit, waiter(flow, "scale"), *names)
    await park(any_kit, waiter(flow))
    for channel in ("scale", "go"):
        await any_kit.store.signals.send(channel, {"n": 1})
    for name in names:
        await any_kit.store.driver.lock(name, "another", 60)
    for _ in range(3):
        await dispatcher.settle()
    assert [who for who, _, _ in notes.log] == ["x"]


async def test_more_orphans_than_run_at_once_all_have_their_turn(any_kit, flow, notes, dispatcher, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    names = [f"w{n}" for n in range(5)]
    await park(any_kit, waiter(flow), *names, "lost")
    for name in [*names, "lost"]:
        row = await any_kit.store.driver.load_snapshot(name)
        await any_kit.store.driver.save_snapshot(replace(row, event=WOKEN), None, None)
    for name in names:
        await any_kit.store.driver.lock(name, "another", 60)
    await any_kit.store.signals.send("go", {"n": 1})
    for _ in range(2):
        await dispatcher.settle()
    assert [who for who, _, _ in notes.log] == ["lost"]


async def test_more_waiters_than_run_at_once_all_have_their_turn(any_kit, flow, notes, dispatcher, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    names = [f"w{n}" for n in range(10)]
    await park(any_kit, waiter(flow), *names)
    dispatcher.start()
    notes.gate.clear()
    await any_kit.store.signals.send("go", {"n": 1, "end": True})
    await asyncio.wait_for(notes.entered.wait(), 10)
    await asyncio.sleep(0.02)
    assert len(any_kit.engine._tasks) == 3
    notes.gate.set()
    await notes.reached(10)
    assert {who for who, _, _ in notes.log} == set(names)


async def test_a_parked_machine_costs_no_task_and_nothing_grows_with_its_wakings(
    any_kit, flow, notes, dispatcher, busy_tasks
):
    await park(any_kit, waiter(flow))
    dispatcher.start()
    await asyncio.sleep(0)
    tasks = len(busy_tasks())

    async def wake(n):
        for _ in range(n):
            notes.log.clear()
            await any_kit.store.signals.send("go", {"n": 1})
            await notes.reached(1)
        await any_kit.engine.join()
        gc.collect()
        return len(gc.get_objects())

    await wake(20)
    before = await wake(20)
    assert await wake(60) - before < 1000
    assert len(busy_tasks()) <= tasks


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def test_a_waiter_that_is_deleted_meanwhile_is_nothing(any_kit, flow, notes, dispatcher, monkeypatch):
    await park(any_kit, waiter(flow), "x", "y")
    await any_kit.store.signals.send("go", {"n": 1, "end": True})
    deliver = any_kit.store.driver.deliver

    async def and_gone(skip):
        found = await deliver(skip)
        await any_kit.store.driver.drop_snapshots("x")
        return found

    monkeypatch.setattr(any_kit.store.driver, "deliver", and_gone)
    outcomes = dict(zip(["x", "y"], await asyncio.gather(*await dispatcher.look()), strict=True))
    assert outcomes == {"x": "gone", "y": "ended"}
    assert notes.by("x") == []
    assert any_kit.engine.failures() == {}


async def test_a_machine_that_has_just_ended_is_not_run_again(any_kit, flow, notes):
    await park(any_kit, waiter(flow))
    await any_kit.store.signals.send("go", {"n": 1, "end": True})
    assert await any_kit.engine.resume("x") == "ended"
    await any_kit.store.results.delete(make_uri("x", "result"))
    assert await any_kit.engine.resume("x") == "gone"
    assert notes.by("x") == [1]
    assert not await any_kit.store.results.exists(make_uri("x", "result"))


async def test_a_machine_that_runs_here_is_not_resumed_beside_itself(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow))
    await any_kit.store.signals.send("go", {"n": 1})
    notes.gate.clear()
    running = any_kit.engine.resume("x")
    assert any_kit.engine.resume("x") is None
    await notes.entered.wait()
    assert any_kit.engine.resume("x") is None
    notes.gate.set()
    assert await running == "parked"


async def test_a_machine_that_raises_before_its_message_is_acknowledged_gets_it_again_later_and_is_not_tried_hotly(
    any_kit, flow, notes, dispatcher, monkeypatch
):
    config = waiter(flow)
    await park(any_kit, config, "x", "y")
    dispatcher.start()
    saving, refused = any_kit.store.driver.save_snapshot, []

    async def broken(row, *rest):
        if row.execution_id == "x" and len(refused) < 3:
            refused.append(row.event)
            raise OSError("power")
        await saving(row, *rest)

    monkeypatch.setattr(any_kit.store.driver, "save_snapshot", broken)
    await any_kit.store.signals.send("go", {"n": 1})
    await notes.reached(1)
    await any_kit.engine.join()
    await asyncio.sleep(0.05)
    assert len(refused) == 1
    assert notes.by("y") == [1]
    assert list(any_kit.engine.failures()) == ["x"]
    assert not await any_kit.store.results.exists(make_uri("x", "result"))
    for tried in (2, 3):
        dispatcher._resting = {name: (0.0, pause) for name, (_, pause) in dispatcher._resting.items()}
        await dispatcher.settle()
        assert len(refused) == tried
    assert dispatcher._resting["x"][1] == module.RETRY * 4
    dispatcher._resting["x"] = (0.0, 1.0)
    await dispatcher.settle()
    assert notes.by("x") == [1]
    assert dispatcher._resting == {}


async def test_a_machine_that_raises_after_that_has_failed_and_is_not_taken_up_again(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow))
    notes.raises.append(ValueError("no"))
    await any_kit.store.signals.send("go", {"n": 1})
    assert await dispatcher.settle()
    assert await ended(any_kit) == {"_error": "no", "_error_type": "ValueError"}
    assert list(any_kit.engine.failures()) == ["x"]
    assert await left(any_kit) is None
    other = any_kit.other()
    elsewhere = Dispatcher(other.store, other.engine)
    assert not await elsewhere.settle()
    assert notes.log == []


async def test_a_store_that_fails_meanwhile_is_not_the_machines_end(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow))
    notes.raises.append(StoreUnavailable("gone for now"))
    await any_kit.store.signals.send("go", {"n": 1})
    assert await dispatcher.settle()
    assert await event(any_kit) == WOKEN
    assert not await any_kit.store.results.exists(make_uri("x", "result"))
    dispatcher._resting.clear()
    dispatcher._orphans_at = 0.0
    await dispatcher.settle()
    assert notes.by("x") == [1]


@pytest.mark.parametrize("how", ["hooks", "child's hooks", "no config", "damaged"])
async def test_a_machine_that_cannot_be_made_here_loses_nothing_and_stops_nobody(
    any_kit, flow, notes, dispatcher, monkeypatch, caplog, how
):
    config = waiter(flow)
    if how == "hooks":
        config["data"]["states"]["note"]["hooks"] = "strange"
    elif how == "child's hooks":
        below = flow({"start": {"action": "a", "hooks": "strange", "transitions": [to("e")]}, "e": {"type": "final"}})
        config["data"]["machines"] = {"below": below}
    await park(any_kit, config)
    await park(any_kit, waiter(flow), "y")
    if "hooks" not in how:
        digest = json.loads((await any_kit.store.driver.load_snapshot("x")).body)["config_hash"]
        await park(any_kit, waiter(flow, name="another"), "y2")
        await any_kit.store.configs.delete(digest)
        if how == "damaged":
            await any_kit.store.driver.put(f"config:{digest}", "{oops")
        await any_kit.store.driver.drop_snapshots("y")
    dispatcher.start()
    with caplog.at_level(logging.ERROR):
        await any_kit.store.signals.send("go", {"n": 1})
        await notes.reached(1)
        await any_kit.store.signals.send("else", {})
        await asyncio.sleep(0.05)
    assert notes.by("x") == []
    assert [record.message for record in caplog.records if "x cannot be resumed here" in record.message][1:] == []
    assert caplog.text.count("x cannot be resumed here") == 1
    assert any_kit.engine.failures() == {}
    assert (await left(any_kit)).data == {"n": 1}


async def test_a_dispatcher_outlives_a_store_that_fails(any_kit, flow, notes, dispatcher, monkeypatch):
    await park(any_kit, waiter(flow))
    deliver, fails = any_kit.store.driver.deliver, [StoreUnavailable("busy"), RuntimeError("a bug")]

    async def failing(skip):
        if fails:
            raise fails.pop(0)
        return await deliver(skip)

    monkeypatch.setattr(any_kit.store.driver, "deliver", failing)
    monkeypatch.setattr(module, "POLL", 0.001)
    dispatcher.start()
    await any_kit.store.signals.send("go", {"n": 1})
    await notes.reached(1)


# -- two processes, and processes that die -------------------------------------------------------------------------------


def another(kit, notes, owner="other"):
    """Another process over the same store, that knows the same actions."""
    made = kit.other(owner)
    made.functions.update(kit.functions)
    return made


async def test_two_dispatchers_never_resume_one_machine_twice(any_kit, flow, notes, dispatcher):
    names = [f"w{n}" for n in range(50)]
    await park(any_kit, waiter(flow), *names)
    other = another(any_kit, notes)
    second = Dispatcher(other.store, other.engine)
    for n in range(2):
        await any_kit.store.signals.send("go", {"n": n})
        await asyncio.gather(dispatcher.settle(), second.settle())
        await asyncio.gather(dispatcher.settle(), second.settle())
    assert Counter((who, got) for who, got, _ in notes.log) == Counter({(w, n): 1 for w in names for n in range(2)})


async def test_a_machine_whose_lock_another_process_holds_is_left_alone(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow))
    other = another(any_kit, notes)
    await any_kit.store.signals.send("go", {"n": 1})
    async with hold(other.store, "x") as held:
        assert held is not None
        assert not await dispatcher.settle()
        assert notes.log == []
        async with hold(any_kit.store, "x") as second:
            assert second is None
    assert await dispatcher.settle()
    assert notes.by("x") == [1]


async def test_the_lock_of_a_dead_process_of_this_host_is_no_lock(any_kit, flow, notes, dispatcher):
    from flatfleet.runtime.owner import machine

    await park(any_kit, waiter(flow))
    await any_kit.store.driver.lock("x", f"{machine()}/999999999/1", 60)
    await any_kit.store.driver.lock("x.other", "somebody", 60)
    await any_kit.store.signals.send("go", {"n": 1})
    assert await dispatcher.settle()
    assert notes.by("x") == [1]


async def test_a_process_that_lost_its_lock_saves_no_checkpoint(any_kit, monkeypatch):
    other = any_kit.other()
    async with hold(any_kit.store, "x") as held:
        held._sure -= any_kit.store.lease
        await held.check()
        await any_kit.store.driver.unlock("x", any_kit.store.owner)
        await held.check()  # not asked again so soon
        held._sure -= any_kit.store.lease
        assert await other.store.lock.acquire("x")
        with pytest.raises(LeaseLost, match="no longer this process's"):
            await held.check()
        assert held.lost


async def test_a_lock_that_ran_out_and_that_nobody_took_is_renewed(any_kit):
    late = any_kit.other(lease=0.01)
    late.store.lock.on_taken = lambda: None  # no heart beats
    async with hold(late.store, "x") as held:
        await asyncio.sleep(0.02)
        assert await late.store.driver.locks("x") == []
        await held.check()
        assert not held.lost
        await asyncio.sleep(0.02)
        async with hold(any_kit.store, "x") as taken:
            assert taken is not None
        with pytest.raises(LeaseLost):  # the other one has left it by now, and may have changed anything
            await held.check()


async def test_a_machine_that_lost_its_lock_ends_and_changes_nothing(any_kit, flow, notes, dispatcher, monkeypatch):
    await park(any_kit, waiter(flow))
    await any_kit.store.signals.send("go", {"n": 1, "end": True})
    notes.gate.clear()
    running = any_kit.engine.resume("x")
    await notes.entered.wait()
    before = await any_kit.store.driver.load_snapshot("x")
    await any_kit.store.driver.unlock("x", any_kit.store.owner)
    monkeypatch.setattr("flatfleet.runtime.engines.hold.time.time", lambda: 4e9)
    notes.gate.set()
    assert await running == "elsewhere"
    assert await any_kit.store.driver.load_snapshot("x") == before
    assert any_kit.engine.failures() == {}


class Killed:
    """Lets a machine's process 'die' at one of its store operations: before or after it, nothing more is done."""

    def __init__(self, driver, monkeypatch, n, after):
        self.count, self.dead = 0, False
        for name in ("take", "save_snapshot"):
            operation = getattr(driver, name)

            async def counted(*args, operation=operation):
                number, self.count = self.count, self.count + 1
                if number == n and not after:
                    await self._die()
                answer = await operation(*args)
                if number == n:
                    await self._die()
                return answer

            monkeypatch.setattr(driver, name, counted)

    async def _die(self):
        self.dead = True
        await asyncio.Event().wait()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("n", range(7))
async def test_killed_at_any_operation_each_message_has_one_committed_effect(
    any_kit, flow, notes, monkeypatch, n, after
):
    """The victim dies at its n-th operation; another process ends what it began. `seen` is what its checkpoints hold."""
    config = waiter(flow)
    victim = another(any_kit, notes, "victim")
    for each in (1, 2):
        await any_kit.store.signals.send("go", {"n": each})
    with monkeypatch.context() as patch:
        killed = Killed(victim.store.driver, patch, n, after)
        running = asyncio.create_task(victim.machine(config, "x").run())
        async with asyncio.timeout(10):
            while not killed.dead and not running.done():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait([running])
    survivor = another(any_kit, notes, "survivor")
    dispatcher = Dispatcher(survivor.store, survivor.engine)
    if await event(any_kit) is None:
        assert (n, after) == (0, False)
        await park(survivor, config)
    await any_kit.store.signals.send("go", {"n": 3, "end": True})
    while await dispatcher.settle():
        dispatcher._orphans_at = 0.0
    assert (await ended(any_kit))["seen"] == [1, 2, 3]
    assert await any_kit.store.signals.channels() == []
    assert await left(any_kit) is None


async def test_a_scaler_killed_before_it_had_ever_parked_is_taken_up_by_a_host_of_its_fleet(
    any_kit, flow, notes, dispatcher
):
    await park(any_kit, waiter(flow), "f.scaler", "g.scaler")
    for name in ("f.scaler", "g.scaler"):
        row = await any_kit.store.driver.load_snapshot(name)
        await any_kit.store.driver.save_snapshot(replace(row, event="state_enter", channel=None), None, None)
    await any_kit.store.signals.send("go", {"n": 1})
    await dispatcher.host("f")
    await dispatcher.settle()
    assert [await event(any_kit, name) for name in ("f.scaler", "g.scaler")] == ["waiting", "state_enter"]
    assert notes.by("f.scaler") == [1]
    await dispatcher.stop()


async def test_a_woken_machine_whose_process_died_is_taken_up_by_another(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow))
    victim = another(any_kit, notes, "victim")
    await any_kit.store.signals.send("go", {"n": 1})
    notes.gate.clear()
    running = victim.engine.resume("x")
    await notes.entered.wait()
    running.cancel()
    await asyncio.wait([running])
    notes.gate.set()
    assert await event(any_kit) == WOKEN
    assert await any_kit.store.checkpoints.list_execution_ids(waiting_channel="go") == []
    assert await dispatcher.settle()
    assert notes.by("x") == [1]
    assert await event(any_kit) == "waiting"


async def test_a_machine_that_nobody_has_woken_is_not_taken_up(any_kit, flow, notes, dispatcher):
    """Who runs a machine resumes it; a dispatcher only ends what a message began."""
    config = flow(
        {"start": {"action": "note", "hooks": "test", "transitions": [to("end")]}, "end": {"type": "final"}},
        {"seen": [], "got": 1, "signal_id": ""},
        persistence=CHECKPOINTS,
    )
    notes.raises.append(OSError())
    with pytest.raises(OSError):
        await any_kit.machine(config, "x").run()
    assert await event(any_kit) == "state_enter"
    assert not await dispatcher.settle()


# -- machines that wait --------------------------------------------------------------------------------------------------


async def test_a_machine_that_enters_a_wait_is_found_from_that_moment_on(any_kit, flow, notes, monkeypatch):
    seen = []
    save = any_kit.store.driver.save_snapshot

    async def watched(row, *rest):
        seen.append((row.event, row.channel))
        await save(row, *rest)

    monkeypatch.setattr(any_kit.store.driver, "save_snapshot", watched)
    await park(any_kit, waiter(flow, "go/{{ context.n }}"))
    assert set(seen) == {("waiting", "go/None")}


async def test_a_machine_that_can_park_is_saved_there_whatever_it_declares(kit, flow):
    notes = Notes(kit)
    config = waiter(flow)
    config["data"]["persistence"] = {"enabled": True, "backend": "memory", "checkpoint_on": ["machine_end"]}
    await park(kit, config)
    assert await kit.store.checkpoints.list_execution_ids(waiting_channel="go") == ["x"]
    dispatcher = Dispatcher(kit.store, kit.engine)
    for n in (1, 2):
        await kit.store.signals.send("go", {"n": n})
    while await dispatcher.settle():
        pass
    assert notes.by("x") == [1, 2]
    assert await left(kit) is None


async def test_a_machine_without_checkpoints_takes_its_messages_for_good(kit, flow):
    notes = Notes(kit)
    config = waiter(flow, rounds=False)
    config["data"]["persistence"] = {"enabled": False, "backend": "memory", "checkpoint_on": []}
    await kit.store.signals.send("go", {"n": 1})
    notes.raises.append(OSError())

    @kit.does
    async def note(context, fleet):
        assert "signal_id" not in context
        return context

    assert await kit.machine(config, "x").run() == {"seen": []}
    assert await kit.store.signals.channels() == []
    assert (await kit.machine(config, "x").run())["_waiting"]
    assert await kit.store.driver.load_snapshot("x") is None


async def test_a_child_does_not_park_so_nobody_resumes_it_without_its_parent(any_kit, flow, notes):
    config = flow(
        {"start": {"machine": "below", "transitions": [to("end")]}, "end": {"type": "final"}},
        machines={"below": waiter(flow)},
        persistence=CHECKPOINTS,
    )
    with pytest.raises(ChildWaiting):
        await any_kit.machine(config, "x").run()
    assert await any_kit.store.checkpoints.list_execution_ids(waiting_channel="go") == []
    await any_kit.store.signals.send("go", {"n": 1, "end": True})
    await any_kit.machine(config, "y").run()
    assert notes.by("y:start:below") == [1]
    assert await any_kit.store.driver.snapshots(WOKEN, None) == []


async def test_a_time_out_of_a_wait_is_a_time_out(any_kit, flow, notes, monkeypatch):
    config = waiter(flow)
    config["data"]["states"]["wait"] |= {"timeout": 0.01, "on_error": {"StateTimeout": "done"}}
    monkeypatch.setattr(any_kit.store.driver, "take", lambda *_: asyncio.Event().wait())
    assert await any_kit.machine(config, "x").run() == {"seen": []}


# -- fleets and their hosts --------------------------------------------------------------------------------------------


async def test_only_a_host_of_its_fleet_resumes_a_scaler(any_kit, flow, notes, dispatcher):
    await park(any_kit, waiter(flow), "papers.scaler", "x")
    await any_kit.store.signals.send("go", {"n": 1})
    await dispatcher.settle()
    assert {who for who, _, _ in notes.log} == {"x"}
    await dispatcher.host("papers")
    held = await any_kit.store.driver.locks("host/papers/")
    assert [(key, owner) for key, owner, _ in held] == [(host_key("papers", any_kit.store.owner), any_kit.store.owner)]
    await dispatcher.settle()
    assert notes.by("papers.scaler") == [1]
    await dispatcher.stop()
    assert await any_kit.store.driver.locks("host/") == []
    assert dispatcher.fleets == []


async def test_who_launches_a_scaler_hosts_its_fleet(any_kit, flow, notes, dispatcher):
    caller = any_kit.machine(flow({"start": {"type": "final"}}))
    await any_kit.engine.launch(caller, waiter(flow), {"machine_id": "papers.scaler"}, "e")
    await any_kit.engine.join()
    await dispatcher.settle()
    assert dispatcher.fleets == ["papers"]
    assert len(await any_kit.store.driver.locks("host/papers/")) == 1


async def closing(kit, flow, dispatcher):
    await park(kit, waiter(flow), "papers.scaler")
    await kit.store.fleet("papers").set_target(3)
    await dispatcher.host("papers")
    return kit.store.fleet("papers")


async def test_a_fleet_that_is_done_leaves_no_parked_scaler_and_no_target(any_kit, flow, notes, dispatcher):
    record = await closing(any_kit, flow, dispatcher)
    await dispatcher.retire()
    assert await event(any_kit, "papers.scaler") is None
    assert await record.target() is None
    assert await any_kit.store.driver.locks("host/") == []


@pytest.mark.parametrize("why", ["items", "message", "host", "worker"])
async def test_a_fleet_that_is_not_done_keeps_them(any_kit, flow, notes, dispatcher, why):
    record = await closing(any_kit, flow, dispatcher)
    other = any_kit.other()
    if why == "items":
        await any_kit.store.work.pool("papers").push({"a": 1})
    elif why == "message":
        await any_kit.store.signals.send("go", {"n": 1})
    elif why == "host":
        await Dispatcher(other.store, other.engine).host("papers")
    else:
        from flatmachines import WorkerRegistration

        worker = WorkerRegistration("w", "host", 1, [], "2026-01-01T00:00:00+00:00")
        await other.store.registration.register(worker, {"pool": "papers"})
    await dispatcher.retire()
    assert await event(any_kit, "papers.scaler") == "waiting"
    assert await record.target() == 3
    if why == "message":
        await dispatcher.host("papers")
        await dispatcher.settle()
        assert notes.by("papers.scaler") == [1]


async def test_a_machine_that_runs_by_its_name_elsewhere_is_said_to(any_kit, flow, notes):
    other = any_kit.other()
    async with hold(other.store, "x"):
        with pytest.raises(MachineError, match="x is running in another process"):
            await any_kit.engine.run_named(any_kit.machine(waiter(flow), "x"), {})


# -- the SDK's own class -------------------------------------------------------------------------------------------------


async def test_a_stock_machine_waits_on_our_store_and_a_dispatcher_of_ours_takes_nothing_from_it(
    any_kit, flow, notes, dispatcher
):
    """Whoever runs machines of the SDK's class wakes them with the SDK's dispatcher, beside a fleet that is running."""
    store, hooks, heard = any_kit.store, HooksRegistry(), []
    hooks.register("test", lambda: Heard(heard))
    parts = any_kit.parts.backends() | {"hooks_registry": hooks}
    config = waiter(flow, rounds=False)
    for name in ("a", "b"):
        machine = FlatMachine(config_dict=copy.deepcopy(config), _execution_id=name, **parts)
        assert (await machine.execute())["_waiting"]
    await park(any_kit, waiter(flow, "ours"), "x")
    await store.signals.send("go", {"n": 1})
    await store.signals.send("ours", {"n": 2})
    assert await dispatcher.settle()
    assert [who for who, _, _ in notes.log] == ["x"]
    assert len(await store.signals.peek("go")) == 1
    assert sorted(await store.checkpoints.list_execution_ids(event="waiting")) == ["a", "b", "x"]
    resumer = ConfigStoreResumer(store.signals, store.checkpoints, store.configs, hooks_registry=hooks)
    woken = await SignalDispatcher(store.signals, store.checkpoints, resumer=resumer).dispatch_all()
    assert sorted(woken["go"]) == ["a", "b"]
    assert await store.signals.channels() == []
    assert sorted(await store.checkpoints.list_execution_ids(event="machine_end")) == ["a", "b"]
    assert heard == [1, 1]


class Heard(MachineHooks):
    def __init__(self, log):
        self.log = log

    def on_action(self, state_name, action_name, context):
        self.log.append(context["got"])
        return context
