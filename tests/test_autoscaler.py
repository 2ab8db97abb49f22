"""autoscaler.yml as it is shipped, and what people may order: a fleet that decides for itself, over every store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from importlib import resources

import pytest
import yaml
from flatfleet.hooks import autoscaling as actions
from flatfleet.hooks import scaling as scaling_actions
from flatfleet.runtime import autoscaler, bundle, first_size, metrics, orders
from flatfleet.runtime.crew import Crew
from flatfleet.runtime.errors import StoreUnavailable, UsageError
from flatfleet.runtime.faults import describe
from flatfleet.runtime.policies import memory, naming
from flatfleet.runtime.policies.settings import settings
from flatfleet.runtime.replay import decisions as log
from jsonschema import Draft7Validator

SOON = 30.0
"""Seconds after which a test gives up; nothing takes as long where all is well."""
DECISION = Draft7Validator(
    json.loads(resources.files("flatfleet.schemas").joinpath("policy-decision.schema.json").read_text("utf-8"))
)
POLICY = {
    "mode": "target", "min": 0, "max": 4, "target_utilization": 1, "interval": 0.05, "stale_after": 5, "idle_terminate": 0.2,
    "cooldown_period": 0, "scale_up_rate": None, "scale_down_rate": None,
}  # fmt: skip


async def until(happened, within=SOON):
    async with asyncio.timeout(within):
        while not (found := await happened()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return found


@pytest.fixture
def task(flow, tmp_path):
    """The file of a task of the one action `work`."""
    start = {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]}
    file = tmp_path / "task.yml"
    file.write_text(
        yaml.safe_dump(flow({"start": start, "done": {"type": "final"}}, {"item": "input.item"}, name="task"))
    )
    return str(file)


@pytest.fixture
def crew(any_kit, task):
    """The fleet p with an autoscaler; its items wait for `go`."""

    class Crew:
        def __init__(self):
            self.kit, self.store, self.fleet, self.go = any_kit, any_kit.store, any_kit.fleet, asyncio.Event()
            self.record, self.pool = self.store.fleet("p"), self.store.work.pool("p")

            async def work(context, fleet):
                await self.go.wait()
                return context

            any_kit.does(work)

        def context(self, **policy):
            return {"pool": "p", "policy": {**POLICY, **policy}}

        async def round(self, context):
            """One round of the machine, without the rest; the decision that it leaves."""
            await actions.decide(await actions.observe(context, self.fleet), self.fleet)
            if context["sends"]:
                await actions.send(context, self.fleet)
            await actions.record(context, self.fleet)
            return (await self.decisions())[-1]

        async def decisions(self):
            found = await self.record.policy_decisions(1000)
            for each in found:
                DECISION.validate(each)
            return found

        async def sent(self):
            return [signal.data for signal in await self.store.signals.peek("fleet/p/scale")]

        async def push(self, n, name="i"):
            await self.pool.push_many([self.pool.new({}, key=f"{name}{k}") for k in range(n)])

        @contextlib.asynccontextmanager
        async def runs(self, **policy):
            """The whole fleet as the launcher starts it, with a dispatcher."""
            from flatfleet.runtime.dispatcher import Dispatcher

            source = {"input": str(self.empty()), "pool": "p", "out": "", "policy": {**POLICY, **policy}}
            dispatcher = Dispatcher(self.store, self.kit.engine)
            dispatcher.start()
            launcher = self.kit.machine(bundle.load("package:flatfleet/launcher.yml", task=task), "launcher")
            try:
                yield await launcher.execute(input=source)
            finally:
                self.go.set()
                await dispatcher.stop()
                await self.kit.engine.close(SOON)

        def empty(self):
            from pathlib import Path

            file = Path(task).parent / "first.jsonl"
            file.write_text('{"key": "first"}\n')
            return file

        async def live(self):
            found = await self.store.driver.metrics("p", 0.0, 0)
            return sum(numbers[0] for numbers in found.crew.values())

    return Crew()


# -- one round ---------------------------------------------------------------------------------------------------------


async def test_what_is_decided_is_sent_as_a_person_would_send_it_and_recorded(crew):
    await crew.push(3)
    decision = await crew.round(crew.context())
    assert (decision["fleet"], decision["outcome"], decision["desired"], decision["current"]) == ("p", "up", 3, 0)
    assert decision["seen"]["waiting"] == 3
    assert decision["sent"]
    (message,) = await crew.sent()
    assert message == {
        "id": decision["id"], "target": 3, "if_current": 0, "reason": decision["reason"], "by": "autoscaler"
    }  # fmt: skip
    assert await crew.store.driver.fleets() == []


async def test_nothing_is_sent_where_nothing_changes(crew):
    await crew.record.set_target(0)
    decision = await crew.round(crew.context())
    assert (decision["outcome"], decision["sent"]) == ("hold", False)
    assert await crew.sent() == []


async def test_workers_that_are_missing_are_asked_for_again(crew):
    await crew.push(3)
    await crew.record.set_target(3)
    decision = await crew.round(crew.context())
    assert (decision["outcome"], decision["sent"]) == ("hold", True)
    assert [message["target"] for message in await crew.sent()] == [3]


async def test_a_service_is_kept_at_its_least_though_nobody_wants_its_workers_and_a_batch_is_not(crew):
    crew.fleet.served = True
    await crew.record.set_target(2)
    decision = await crew.round(crew.context(min=2))
    assert (decision["outcome"], decision["desired"], decision["sent"]) == ("hold", 2, True)
    crew.fleet.served = False
    assert not (await crew.round(crew.context(min=2)))["sent"]


async def test_workers_beyond_the_target_are_drained_at_the_second_look_and_told_of_once(crew):
    await crew.record.set_target(4)
    await crew.push(4)
    for n in range(7):
        await crew.fleet.bookings.book(f"w{n}", {"pool": "p", "parallelism": 1})
    context = crew.context()
    found = [await crew.round(context) for _ in range(4)]
    assert {(each["outcome"], each["desired"], each["seen"]["workers"]) for each in found} == {("hold", 4, 7)}
    assert [each["sent"] for each in found] == [False, True, False, False]
    assert found[1]["note"] == "3 more than the target are live: the scaler drains them"
    assert "note" not in found[2]
    (message,) = await crew.sent()
    assert (message["target"], message["if_current"]) == (4, 4)


async def test_workers_beyond_the_target_stay_where_more_are_wanted_or_somebody_said_so(crew):
    await crew.record.set_target(2)
    await crew.push(9)
    for n in range(4):
        await crew.fleet.bookings.book(f"w{n}", {"pool": "p", "parallelism": 1})

    async def sent(**policy):
        context = crew.context(**policy)
        return [(await crew.round(context))["sent"] for _ in range(3)]

    assert await sent(max=2) == [False, True, False]
    await crew.record.keep_policy_state({**memory.begin({}, time.time()), "changed_at": time.time()})
    assert await sent(max=3, cooldown_period=600) == [False] * 3  # a third one is wanted, later
    assert await sent(max=2, cooldown_period=600) == [False, True, False]
    await crew.record.pause_scaling(None)
    assert await sent(max=2) == [False] * 3
    await crew.record.resume_scaling(time.time())
    await Crew(crew.fleet, "p").keep(decided("a", {"target": 2, "hold": 600}))
    assert await sent(max=2) == [False] * 3
    await crew.record.resume_scaling(time.time())
    assert await sent(max=2) == [False, True, False]


async def test_nobody_goes_for_a_surplus_while_the_demand_is_not_known(crew):
    await crew.record.set_target(2)
    for n in range(4):
        await crew.fleet.bookings.book(f"w{n}", {"pool": "p", "parallelism": 1})
    context = crew.context(max=2, min=2)
    for _ in range(3):
        await actions.observe(context, crew.fleet)
        context["seen"]["measured"] -= 60
        await actions.decide(context, crew.fleet)
        assert (context["decision"]["desired"], context["sends"]) == (2, False)


async def test_what_is_remembered_survives_a_restart(crew):
    await crew.push(3)
    await crew.round(crew.context(cooldown_period=60))
    await crew.record.set_target(3)
    await crew.push(1, "j")
    decision = await crew.round(crew.context(cooldown_period=60))  # another process
    assert (decision["bound_by"], decision["desired"]) == ("cooldown", 3)
    assert decision["state"]["changed_at"]


async def test_a_store_that_was_away_gives_no_scale_down_and_a_recorded_reason(crew, monkeypatch):
    context = crew.context(idle_terminate=0, interval=10, stale_after=30)
    await crew.record.set_target(4)
    await actions.observe(context, crew.fleet)
    assert context["seen"]["waiting"] == 0

    async def gone(*args):
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as away:
        away.setattr(metrics, "observe", gone)
        with pytest.raises(StoreUnavailable):
            await actions.observe(context, crew.fleet)
        context["seen"]["at"] -= 61
        context["error"] = {"message": "no answer"}
        await actions.away(context, crew.fleet)
        await actions.away(context, crew.fleet)
    decision = await crew.round(context)
    assert (decision["outcome"], decision["desired"], decision["sent"]) == ("hold", 4, False)
    assert decision["reason"].startswith("the demand was measured 61 s ago")
    assert decision["note"] == "the store had not answered for 61 s"
    decision = await crew.round(context)
    assert (decision["outcome"], decision["desired"]) == ("down", 0)  # it has recovered
    assert "note" not in decision


async def test_a_short_silence_changes_nothing(crew):
    context = crew.context(idle_terminate=0, interval=10, stale_after=30)
    await crew.record.set_target(4)
    await actions.away(context, crew.fleet)
    decision = await crew.round(context)
    assert decision["outcome"] == "down"
    assert decision["note"] == "the store had not answered for 0 s"


async def test_what_takes_longer_than_a_measurement_is_good_for_is_given_up(crew, monkeypatch):
    """A message that would go out a minute later is not sent, and nothing waits for the store for ever."""
    context = crew.context(interval=0.01, stale_after=0.05)
    await crew.push(3)
    await actions.decide(await actions.observe(context, crew.fleet), crew.fleet)

    async def hangs(*args):
        await asyncio.Event().wait()

    with monkeypatch.context() as away:
        away.setattr(crew.store.driver, "send", hangs)
        with pytest.raises(StoreUnavailable, match=r"has not answered for 0\.05 s"):
            await actions.send(context, crew.fleet)
    assert await crew.sent() == []


async def test_spot_workers_that_nobody_has_are_said_to_be_none(crew):
    await crew.push(3)
    decision = await crew.round(crew.context(prefer_spot=True))
    assert (decision["outcome"], decision["capacity"]) == ("up", "on-demand")
    assert decision["note"].startswith("there are no spot workers here")
    crew.fleet.capabilities = frozenset({"spot"})
    decision = await crew.round(crew.context(prefer_spot=True))
    assert (decision["capacity"], decision["seen"]["spot"]) == ("spot", 0)
    assert "note" not in decision


async def test_it_ends_where_another_process_runs_it_by_now(crew):
    context = crew.context() | {"machine_id": "p.autoscaler"}
    other = crew.kit.other("other")
    await other.store.lock.acquire("p.autoscaler2")
    await actions.observe(context, crew.fleet)
    assert not context["closed"]
    await other.store.lock.acquire("p.autoscaler")
    await actions.observe(context, crew.fleet)
    assert context["closed"]


async def test_a_batch_ends_it_when_nothing_is_left_where_its_process_hosts_the_fleet(crew):
    context = crew.context(interval=60, stale_after=200)
    await actions.observe(context, crew.fleet)
    assert not context["closed"]  # it hosts nothing
    await crew.store.lock.acquire(f"host/p/{crew.store.owner}")
    await crew.push(1)
    await actions.observe(context, crew.fleet)
    assert not context["closed"]
    resting = asyncio.create_task(actions.rest(context, crew.fleet))
    await crew.pool.claim("w")
    (item,) = [item async for item in crew.pool.items()]
    await crew.pool.complete(item.id, None, token=item.token)
    await asyncio.wait_for(resting, SOON)
    await actions.observe(context, crew.fleet)
    assert context["closed"]
    crew.fleet.served = True
    await actions.observe(context, crew.fleet)
    assert not context["closed"]


async def test_a_rerun_after_a_crash_decides_by_its_own_policy(crew):
    """What was saved at the start of the one before is for who takes that up, and for nobody who starts one."""

    async def started(kit, **policy):
        machine = kit.machine(bundle.load("package:flatfleet/autoscaler.yml"), "p.autoscaler")
        inputs = crew.context(**policy) | {"machine_id": "p.autoscaler"}
        running = asyncio.create_task(kit.engine.run_named(machine, inputs))
        before = len(await crew.decisions())

        async def decided():
            return (await crew.decisions())[before:]

        found = await until(decided)
        running.cancel()
        await asyncio.wait([running])
        return found[0]

    await crew.push(9)
    assert (await started(crew.kit, max=2))["desired"] == 2
    assert (await crew.store.driver.load_snapshot("p.autoscaler")).event == "machine_start"
    again = crew.kit.other("again")
    assert (await started(again, max=3))["desired"] == 3
    task = again.engine.resume("p.autoscaler", unparked=True)  # as a dispatcher does

    async def decided():
        return [each["desired"] for each in await crew.decisions()].count(3) > 1

    await until(decided)
    again.fleet.drain()
    assert await asyncio.wait_for(task, SOON) == "ended"


async def test_an_error_while_deciding_does_not_end_the_machine(crew, monkeypatch):
    failures = iter([StoreUnavailable("locked"), ValueError("a bug")])

    async def observe(*args, real=metrics.observe):
        error = next(failures, None)
        if error is not None:
            raise error
        return await real(*args)

    monkeypatch.setattr(metrics, "observe", observe)
    machine = crew.kit.machine(bundle.load("package:flatfleet/autoscaler.yml"))
    running = asyncio.create_task(machine.execute(input=crew.context()))

    async def decided():
        return await crew.decisions()

    assert (await until(decided))[0]["note"]
    crew.fleet.drain()
    assert await asyncio.wait_for(running, SOON) == {"pool": "p"}


async def test_whatever_fails_is_told_once_and_once_when_it_works_again(crew, monkeypatch, caplog):
    """A bug while deciding is no silence of the store: the demand is not taken for an old one."""
    caplog.set_level("INFO", "flatfleet.notices")
    context = crew.context(idle_terminate=0, interval=10, stale_after=30)
    await crew.record.set_target(4)

    def broken(*args):
        raise OverflowError("int too large")

    with monkeypatch.context() as bug:
        bug.setattr(autoscaler.deciding, "decide", broken)
        for _ in range(3):
            with pytest.raises(OverflowError) as raised:
                await actions.decide(await actions.observe(context, crew.fleet), crew.fleet)
            context["error"] = describe(raised.value)
            await actions.away(context, crew.fleet)
    fault = (await orders.in_force(crew.record, time.time()))["fault"]
    assert (fault["why"], fault["store"]) == ("OverflowError: int too large", False)
    context["fault"]["at"] -= 61
    decision = await crew.round(context)
    assert decision["note"] == "nothing could be decided (OverflowError: int too large) for 61 s"
    assert decision["outcome"] == "down"
    assert "note" not in await crew.round(context)
    assert (await orders.in_force(crew.record, time.time()))["fault"] is None
    assert [(each.levelname, each.getMessage()) for each in caplog.records if each.name == "flatfleet.notices"] == [
        ("WARNING", "the autoscaler of fleet p cannot decide: OverflowError: int too large"),
        ("INFO", "the autoscaler of fleet p can decide again"),
    ]


async def test_a_bug_that_a_silence_follows_counts_as_a_silence(crew):
    context = crew.context()
    await actions.observe(context, crew.fleet)
    context["error"] = {"type": "ValueError", "message": "a bug"}
    await actions.away(context, crew.fleet)
    context["error"] = {"type": "StoreUnavailable", "message": "locked"}
    await actions.away(context, crew.fleet)
    assert context["fault"] == {"at": context["seen"]["at"], "why": "locked", "store": True, "kept": True}


async def test_the_fault_of_a_process_that_has_ended_is_forgotten(crew):
    await crew.record.keep_fault({"at": 1.0, "why": "a bug", "store": False})
    assert "note" not in await crew.round(crew.context())
    assert await crew.record.fault() == {}


async def test_a_fault_that_cannot_be_noted_is_noted_later(crew, monkeypatch):
    context = crew.context(interval=0.01, stale_after=0.05)

    async def hangs(*args):
        await asyncio.Event().wait()

    with monkeypatch.context() as away:
        away.setattr(crew.store.driver, "put", hangs)
        await actions.away(context, crew.fleet)
    assert await crew.record.fault() == {}
    await actions.away(context, crew.fleet)
    assert await crew.record.fault()


async def test_it_ends_at_once_when_its_process_stops(crew):
    machine = crew.kit.machine(bundle.load("package:flatfleet/autoscaler.yml"))
    running = asyncio.create_task(machine.execute(input=crew.context(interval=3600, stale_after=4000)))

    async def decided():
        return await crew.decisions()

    await until(decided)
    crew.fleet.drain()
    await asyncio.wait_for(running, SOON)


# -- the policy --------------------------------------------------------------------------------------------------------


async def test_a_policy_is_a_preset_a_file_or_settings(crew, tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("{mode: target, min: 2}")
    for policy, least in (("auto", 1), ("reactive", 0), (str(file), 2), ({"min": 3}, 3)):
        context = {"policy": policy, "idle_timeout": 300}
        bounds = await first_size.serve(context, crew.fleet)
        assert (bounds.fleet, bounds.low) == ("papers", least)
        assert context["policy"] == ({"preset": policy} if policy in ("auto", "reactive") else context["policy"])
        assert context["idle_timeout"] == first_size.FOREVER
    assert crew.fleet.served


async def test_where_the_engine_finds_spot_nodes_workers_may_be_of_either_kind_as_the_policy_prefers(crew):
    crew.fleet.capabilities = frozenset({"gpu"})
    crew.fleet.places_spot = True
    await first_size.serve({"policy": {"min": 1}}, crew.fleet)
    assert (crew.fleet.spot_wait, crew.fleet.offers) == (None, {"gpu"})
    await first_size.serve({"policy": {"prefer_spot": True, "spot_wait": "30s"}}, crew.fleet)
    assert (crew.fleet.spot_wait, crew.fleet.offers) == (30, {"gpu", "spot", "on-demand"})
    crew.fleet.places_spot = False
    assert crew.fleet.offers == {"gpu"}
    crew.fleet.places_spot, crew.fleet.spot_wait = True, None  # another process, which has taken the autoscaler up
    await crew.pool.push_many([crew.pool.new({}, requires=["on-demand"])])
    decision = await crew.round(crew.context(prefer_spot=True, spot_wait=30))
    assert (crew.fleet.spot_wait, decision["seen"]["waiting"], decision["seen"]["spot"]) == (30, 1, 0)


async def test_without_a_policy_nothing_changes(crew):
    context = {"policy": None, "idle_timeout": 300}
    assert await first_size.serve(context, crew.fleet) is None
    assert (crew.fleet.served, context["idle_timeout"]) == (False, 300)


async def test_a_policy_that_is_none_is_refused(crew, tmp_path):
    with pytest.raises(UsageError, match=r"Did you mean 'auto'\?"):
        await first_size.serve({"policy": "autoo"}, crew.fleet)
    file = tmp_path / "mine.yml"
    file.write_text("{mode: slow}")
    with pytest.raises(UsageError, match=r"mine\.yml:1:8: settings\.fleet\.mode must be one of"):
        await first_size.serve({"policy": str(file)}, crew.fleet)


def notices(caplog):
    return [each.getMessage() for each in caplog.records if each.name == "flatfleet.notices"]


@pytest.mark.parametrize(
    ("given", "stored", "target", "workers", "told"),
    [
        ({"workers": 15}, None, 2, 2, "fleet p begins with 2, not 15: its policy allows 1 to 2"),
        ({}, 40, 2, 2, "fleet p begins with 2, not 40: its policy allows 1 to 2"),
        ({"workers": 2}, None, 2, 2, None),
        ({"workers": 0}, 40, 2, 0, "fleet p begins with 2, not 40: its policy allows 1 to 2"),
        ({"policy": {"min": 3, "max": 5}, "workers": 1}, None, 3, 3, "fleet p begins with 3, not 1: its policy allows 3 to 5"),
        ({"policy": {"max": 1, "schedule": [{"cron": "* * * * *", "duration": 60, "max": 7}]}}, 40, 7, 7,
         "fleet p begins with 7, not 40: its policy allows 1 to 7"),
        ({"policy": None}, 7, 7, 7, None),
    ],
)  # fmt: skip
async def test_the_first_size_is_within_what_the_policy_allows(crew, caplog, given, stored, target, workers, told):
    caplog.set_level("INFO", "flatfleet.notices")
    await crew.record.set_target(stored)
    context = {"pool": "p", "run": "r", "policy": {"max": 2}, **given}
    crew.fleet.served = True
    await scaling_actions.aim(context, crew.fleet)
    assert (await crew.record.target(), context["want"]) == (target, workers)
    assert notices(caplog) == ([told] if told else [])
    await crew.fleet.bookings.end_all()


async def test_nobody_who_is_live_goes_by_a_launch(crew):
    assert first_size.bounded(9, 5, first_size.Bounds("p", 1, 4)) == 5
    assert first_size.bounded(9, 5, None) == 9


async def test_a_second_launcher_hears_whose_policy_counts(crew, caplog):
    caplog.set_level("INFO", "flatfleet.notices")
    async with crew.runs(max=3):
        await until(crew.decisions)
        for policy, n in (({**POLICY, "max": 3}, 0), ("auto", 1)):
            context = {"pool": "p", "policy": policy}
            bounds = await first_size.serve(context, crew.fleet)
            assert (bounds.low, bounds.high) == (0, 3)
            assert len(notices(caplog)) == n
    theirs, yours = naming.label({**POLICY, "max": 3}), naming.label({"preset": "auto"})
    assert f"fleet p is scaled by the policy of pid {os.getpid()} on " in notices(caplog)[0]
    assert notices(caplog)[0].endswith(f"({theirs}); yours ({yours}) is not used while that one runs")
    assert {each["policy"] for each in await crew.decisions()} == {theirs}
    context = {"pool": "p", "policy": "auto"}
    assert (await first_size.serve(context, crew.fleet)).high == 20  # nobody runs it any more
    assert len(notices(caplog)) == 1


# -- orders by hand ----------------------------------------------------------------------------------------------------


HELD = {"at": 90.0, "until": 150.0, "by": "ann", "id": "d"}


@pytest.mark.parametrize(
    ("ordered", "hold", "expected"),
    [
        ({}, {}, {}),
        ({"paused": True, "until": None}, {}, {"paused": True}),
        ({"paused": True, "until": 101.0}, {}, {"paused": True}),
        ({"paused": True, "until": 100.0}, {}, {}),
        ({}, HELD, {"hold_until": 150.0}),
        ({"paused": True, "until": None}, HELD, {"paused": True}),
        ({}, {**HELD, "until": 100.0}, {}),
        ({"resumed_at": 91.0}, HELD, {}),
        ({"resumed_at": 89.0}, HELD, {"hold_until": 150.0}),
    ],
)
def test_what_people_have_ordered(ordered, hold, expected):
    for before in ({}, {"paused": True}, {"hold_until": 1e9}):
        found = orders.ordered({"changed_at": 5.0, **before}, ordered, hold, 100.0)
        found.pop("version", None)
        assert found == {"changed_at": 5.0, **expected}


def decided(name, message, by="ann", outcome="applied"):
    return {"id": name, "by": by, "outcome": outcome, "message": message, "target": message.get("target")}


async def test_a_hold_lasts_its_time_whatever_else_is_decided(crew):
    """Of two orders to hold the later one counts; whatever holds nothing leaves it as it is."""
    keep = Crew(crew.fleet, "p").keep
    await keep(decided("a", {"target": 1, "hold": 600}))
    first = await crew.record.hold()
    assert (first["by"], first["until"] - first["at"]) == ("ann", 600)
    others = [{"reconcile": True}, {"target": 2}, {"target": 1, "hold": 9}, {"target": 1, "hold": 9}, {"target": 1}]
    senders = [("reaper", "applied"), ("bob", "applied"), ("bob", "refused"), ("autoscaler", "applied")]
    for n, (message, (by, outcome)) in enumerate(zip(others, [*senders, ("bob", "failed")], strict=True)):
        await keep(decided(f"b{n}", message, by, outcome))
    for n in range(60):
        await keep(decided(f"c{n}", {"target": 1, "if_current": 1}, "autoscaler"))
    await keep(decided("a", {"target": 1, "hold": 600}))  # once more, after a crash
    await keep({"id": "w", "by": None, "outcome": "rejected", "message": "hold", "target": None})
    assert await crew.record.hold() == first
    await crew.push(3)
    for context in (crew.context(), crew.context()):  # the second one is another process
        for _ in range(2):
            decision = await crew.round(context)
            assert (decision["desired"], decision["bound_by"]) == (1, "hold")
    await keep(decided("e", {"target": 1, "hold": 0.001}, outcome="unchanged"))

    async def over():
        return not (await orders.in_force(crew.record, time.time()))["held_until"]

    await until(over)
    assert (await crew.round(crew.context()))["desired"] == 3


async def test_the_scaler_keeps_a_hold(crew):
    async with crew.runs(max=3):
        message = {"id": "mine", "target": 2, "hold": 600, "by": "ann"}
        await crew.store.signals.send(crew.record.channel, message)
        hold = await until(crew.record.hold)
    assert (hold["id"], hold["by"], hold["until"] - hold["at"]) == ("mine", "ann", 600)


async def test_resuming_ends_a_hold(crew):
    await Crew(crew.fleet, "p").keep(decided("a", {"target": 1, "hold": 600}))
    await crew.record.resume_scaling(time.time())
    await crew.push(3)
    assert (await crew.round(crew.context()))["desired"] == 3


async def test_a_pause_holds_the_target_until_scaling_is_resumed(crew):
    context = crew.context()
    await crew.push(3)
    await crew.record.pause_scaling(None)
    decision = await crew.round(context)
    assert (decision["desired"], decision["bound_by"], decision["sent"]) == (0, "paused", False)
    await crew.record.resume_scaling(0.0)
    assert (await crew.round(context))["desired"] == 3


# -- the fleet ---------------------------------------------------------------------------------------------------------


async def test_a_fleet_goes_up_and_to_zero_and_back_by_itself(crew):
    async with crew.runs(max=3) as launched:
        assert launched["pool"] == "p"

        async def live(n):
            return await crew.live() == n

        await crew.push(5)
        await until(lambda: live(3))
        crew.go.set()
        await until(lambda: live(0))
        assert (await crew.pool.counts()).completed == 6
        crew.go.clear()
        await crew.push(2, "later")
        await until(lambda: live(2))
        crew.go.set()
        await until(lambda: live(0))
        assert (await crew.pool.counts()).left == 0
    assert all(row.token == 1 for row in [item async for item in crew.pool.items()])
    found = await crew.decisions()
    assert {"up", "down"} <= {each["outcome"] for each in found} <= {"up", "down", "hold"}
    again = list(log.again(enumerate(found), settings({**POLICY, "max": 3})))
    assert [difference for _, difference in again if difference] == []


async def test_workers_that_join_above_max_are_drained(crew):
    async with crew.runs(max=3):
        await crew.push(9)

        async def live(n):
            return await crew.live() == n

        async def busy():
            return (await crew.pool.counts()).claimed == 3

        await until(busy)
        for n in range(2):
            await crew.fleet.bookings.book(f"joined-{n}", {"pool": "p", "parallelism": 1})
        await until(lambda: live(3))

        async def drained():
            records = await crew.store.registration.list(statuses=("terminating",), pool="p")
            return sorted(each.worker_id for each in records)

        assert await until(drained) == ["joined-0", "joined-1"]  # the others hold items

        async def told():
            return [each for each in await crew.record.decisions(100) if each["drains"]]

        (decision,) = await until(told)
        assert (decision["by"], decision["target_before"], decision["target"]) == ("autoscaler", 3, 3)
        assert sorted(decision["drained"]) == ["joined-0", "joined-1"]


async def test_a_rerun_leaves_the_autoscaler_that_there_is(crew):
    async with crew.runs():
        launcher = crew.kit.machine(bundle.load("package:flatfleet/launcher.yml"), "again")
        source = {"input": str(crew.empty()), "pool": "p", "out": "", "policy": POLICY, "workers": 0}
        await launcher.execute(input=source)
        assert [name for name in crew.kit.engine._tasks if name.endswith(".autoscaler")] == ["p.autoscaler"]


async def test_what_this_process_cannot_serve_is_no_demand_for_more_of_its_workers(crew):
    await crew.pool.push_many([crew.pool.new({}, requires=["gpu"]) for _ in range(30)])
    context = crew.context()
    await actions.observe(context, crew.fleet)
    assert (context["seen"]["waiting"], context["seen"].get("oldest_wait")) == (0, None)
    await crew.pool.push_many([crew.pool.new({}) for _ in range(2)])
    assert (await crew.round(context))["desired"] == 2
    crew.fleet.capabilities = frozenset({"gpu"})
    await actions.observe(context, crew.fleet)
    assert context["seen"]["waiting"] == 32
