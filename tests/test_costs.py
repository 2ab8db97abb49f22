"""What a fleet costs: accounts, prices and caps on tables with a simulated clock; then over stores, verbs and whole runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from flatfleet.hooks import autoscaling as actions
from flatfleet.runtime import first_size, spending
from flatfleet.runtime.errors import FleetError
from flatfleet.runtime.policies import costs, memory
from flatfleet.runtime.policies.costs import Mix, Ran
from flatfleet.runtime.policies.deciding import decide
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import settings
from flatfleet.runtime.replay import decisions as log
from flatfleet.runtime.replay.candidates import Production
from flatfleet.runtime.replay.contract import Conditions, Terms
from flatfleet.runtime.replay.simulator import simulate
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.buckets import Activity
from flatfleet.runtime.stores.records import Counts
from flatmachines import WorkerRegistration
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

T0 = 1_700_000_000.0
HOURLY = 3600.0
"""A price at which a worker costs 1 a second."""


def look(at, workers=0, **seen):
    return Observation(at=T0 + at, measured=T0 + at, workers=workers, target=workers, **seen)


def spent(cost, *looks):
    """What each look has found to be spent, with the account handed on as JSON."""
    s, account, found = settings({"cost": cost, "stale_after": 30}), {}, []
    for seen, *ran in looks:
        o, account = costs.charged(seen, s, json.loads(json.dumps(account)), *ran)
        found.append(o.spent)
    return found


# -- what is spent -----------------------------------------------------------------------------------------------------


ACCOUNTS = {
    "the first look costs nothing": ({"per_worker_hour": HOURLY}, [(look(0, 9),)], [0]),
    "the mean of two looks": ({"per_worker_hour": HOURLY}, [(look(0, 4),), (look(10, 6),), (look(20, 0),)], [0, 50, 80]),
    "the draining ones too": ({"per_worker_hour": HOURLY}, [(look(0, 4),), (look(10, 1, draining=3),)], [0, 40]),
    "each at its own price": (
        {"per_worker_hour": HOURLY, "per_spot_hour": HOURLY / 4},
        [(look(0, 4, spot=4),), (look(10, 4, spot=4),), (look(20, 4, spot=0),), (look(30, 4),)],
        [0, 10, 35, 75],
    ),
    "spot at the price of all": ({"per_worker_hour": HOURLY}, [(look(0, 4, spot=4),), (look(10, 4, spot=4),)], [0, 40]),
    "only spot has a price": ({"per_spot_hour": HOURLY}, [(look(0, 4, spot=1),), (look(10, 4, spot=1),)], [0, 10]),
    "each item that completed": (
        {"per_item": 0.5},
        [(look(0, completed=100),), (look(9, completed=103),), (look(9000, completed=103),), (look(9001, completed=99),)],
        [0, 1.5, 1.5, 1.5],
    ),
    "items not counted before": ({"per_item": 1}, [(look(0),), (look(9, completed=40),), (look(18, completed=41),)], [0, 0, 1]),
    "nothing without a price": ({"budget": 5}, [(look(0, 9),), (look(10, 9),)], [None, None]),
    "a long gap in which all went": ({"per_worker_hour": HOURLY}, [(look(0, 4),), (look(36_000, 4),)], [0, 120]),
    "a gap as long as is allowed": ({"per_worker_hour": HOURLY}, [(look(0, 4),), (look(30, 4),)], [0, 120]),
    "a gap in which one stayed and three came": (
        {"per_worker_hour": HOURLY},
        [(look(0, 4),), (look(36_000, 4), Ran(Mix(36_000 + 3 * 7, 0), Mix(1, 0)))],
        [0, 36_000 + 21 + 3 * 30],
    ),
    "a gap of both kinds": (
        {"per_worker_hour": HOURLY, "per_spot_hour": HOURLY / 2},
        [(look(0, 4, spot=3),), (look(1000, 2, spot=1), Ran(Mix(1000, 400), Mix(1, 0)))],
        [0, 1000 + 200 + 3 * 30 / 2],
    ),
    "a clock that goes back": ({"per_worker_hour": HOURLY}, [(look(0, 4),), (look(-500, 4),), (look(-490, 4),)], [0, 0, 40]),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCOUNTS)
def test_what_is_spent(name):
    cost, looks, expected = ACCOUNTS[name]
    assert spent(cost, *looks) == pytest.approx(expected)


def test_under_a_policy_without_prices_time_costs_nothing_and_what_is_spent_stays():
    priced, free = settings({"cost": {"per_worker_hour": HOURLY}}), settings({})
    _, account = costs.charged(look(0, 2), priced, {})
    _, account = costs.charged(look(10, 2), priced, account)
    o, account = costs.charged(look(20, 9), free, account)
    assert (o.spent, account["spent"], account["per_hour"]) == (None, 20, 0)
    o, account = costs.charged(look(25, 2), priced, account)
    assert o.spent == 20 + 5 * 5.5
    assert costs.charged(look(0, 2), free, {})[1] == {}


def test_the_cost_an_hour_is_that_of_the_workers_and_of_the_items_at_this_throughput():
    s = settings({"cost": {"per_worker_hour": 4, "per_spot_hour": 1, "per_item": 0.01}})
    o, account = costs.charged(look(0, 3, draining=2, spot=4, throughput=0.5), s, {})
    assert o.cost_per_hour == account["per_hour"] == 4 + 4 + 18
    o, _ = costs.charged(look(0, 0, throughput=0.5), s, {})
    assert o.cost_per_hour == 0  # that was before they went


def test_what_is_spent_survives_a_state_that_is_begun_anew():
    state = {"version": memory.VERSION, "at": T0 + 9e6, "cost": {"spent": 3.0}, "up": [[T0, 3]]}
    _, kept = decide(look(0, 2), settings({}), state)
    assert (kept["cost"], kept["at"]) == ({"spent": 3.0}, T0)


# -- the caps ----------------------------------------------------------------------------------------------------------


def test_to_go_for_a_spent_budget_costs_no_flap_budget():
    s = settings({"mode": "target", "max": 40, "cost": {"per_worker_hour": 1, "budget": 10}})
    seen = {"waiting": 90, "claimed": 30, "expired": 0, "spent": 10.0}
    decision, state = decide(look(0, 30, **seen), s, {})
    assert (decision.desired, decision.reason) == (
        0,
        "target: 120 items at 0.7 a worker; budget = 10, and 10 are spent",
    )
    assert memory.flaps(state) == 0


CAPS = {"per_worker_hour": 4, "per_spot_hour": 1, "cost_threshold": 20}


@pytest.mark.parametrize(
    ("seen", "cost", "capacity", "most", "why"),
    [
        ({"workers": 4}, {}, None, 5, "cost_threshold = 20/h at 4 a worker"),
        ({"workers": 0}, {}, None, 5, "cost_threshold = 20/h at 4 a worker"),
        ({"workers": 9}, {}, None, 5, "cost_threshold = 20/h at 4 a worker"),
        ({"workers": 4, "spot": 4}, {}, "spot", 20, "cost_threshold = 20/h at 1 a worker"),
        ({"workers": 4, "spot": 2}, {}, "spot", 14,
         "cost_threshold = 20/h: 2 on-demand and 2 spot cost 10/h, a further spot 1"),
        ({"workers": 4, "spot": 2}, {}, "on-demand", 6,
         "cost_threshold = 20/h: 2 on-demand and 2 spot cost 10/h, a further on-demand 4"),
        ({"workers": 8, "spot": 2}, {}, "spot", 6, "cost_threshold = 20/h: 6 on-demand and 2 spot cost 26/h, 3.25 each"),
        ({"workers": 5, "spot": 0}, {}, "spot", 5, "cost_threshold = 20/h: 5 on-demand cost 20/h, a further spot 1"),
        ({"workers": 4, "draining": 1}, {}, None, 4, "cost_threshold = 20/h at 4 a worker"),
        ({"workers": 3, "draining": 4}, {}, None, 3, "cost_threshold = 20/h at 4 a worker"),
        ({"workers": 2, "spot": 1, "service_mean": 36.0}, {"per_item": 0.01}, "spot", 2 + 6,
         "cost_threshold = 20/h: 1 on-demand and 1 spot cost 7/h, a further spot 2"),
        ({"workers": 3}, {"per_worker_hour": 0.1, "cost_threshold": 0.3}, None, 3, "cost_threshold = 0.3/h at 0.1 a worker"),
        ({"workers": 3, "spent": 10.02}, {"budget": 10}, None, 0, "budget = 10, and 10.02 are spent"),
        ({"workers": 3, "spent": 123456.0}, {"budget": 10}, None, 0, "budget = 10, and 123456 are spent"),
    ],
)  # fmt: skip
def test_how_many_workers_the_caps_allow(seen, cost, capacity, most, why):
    s = settings({"cost": {**CAPS, **cost}})
    assert costs.affordable(look(0, **seen), s, capacity) == (most, why)


@runs(max_examples=300, deadline=None)
@given(
    st.integers(0, 40), st.integers(0, 9), st.integers(0, 49), st.sampled_from([None, "spot", "on-demand"]),
    st.floats(0.1, 9), st.floats(0, 9), st.floats(0, 60),
)  # fmt: skip
def test_what_is_launched_is_within_the_threshold(workers, draining, spot, capacity, usual, cheap, threshold):
    """And nobody has to go who is within it, and somebody where they are not."""
    s = settings({"cost": {"per_worker_hour": usual, "per_spot_hour": cheap, "cost_threshold": threshold}})
    o = look(0, workers, draining=draining, spot=spot if capacity else None)
    allowed, price = costs.affordable(o, s, capacity), cheap if capacity == "spot" else usual
    now = costs.running(o).times(costs.prices(s.cost))
    if allowed is None:
        assert not price or price * 1e9 < threshold
    elif now <= threshold * (1 + 1e-8):
        assert allowed[0] >= workers
        assert now + (allowed[0] - workers) * price <= threshold + 1e-6
        assert now + (allowed[0] + 1 - workers) * price > threshold - 1e-6
    else:
        assert allowed[0] < workers + draining


@pytest.mark.parametrize("cost", [{}, {"per_worker_hour": 4}, {"cost_threshold": 20}, {"budget": 10, "per_item": 1}])
def test_without_a_cap_or_a_price_any_number_is_allowed(cost):
    assert costs.affordable(look(0, 4), settings({"cost": cost}), None) is None


@pytest.mark.parametrize(("spent", "said"), [(7.9, ""), (8.0, "8 of budget = 10 are spent"), (10.0, "")])
def test_that_most_of_a_budget_is_spent_is_said(spent, said):
    assert costs.nearly(settings({"cost": {"budget": 10}}).cost, spent) == said


# -- over a store ------------------------------------------------------------------------------------------------------

POLICY = {"mode": "target", "max": 9, "target_utilization": 1, "cooldown_period": 0, "scale_up_rate": None,
          "scale_down_rate": None, "interval": 0.2, "stale_after": 60, "idle_terminate": 0}  # fmt: skip


async def register(store, name, size=1, capabilities=(), owner=None, begun=None, pool="p"):
    when = {} if begun is None else {"started_at": datetime.fromtimestamp(begun, UTC).isoformat()}
    worker = WorkerRegistration(worker_id=name, capabilities=list(capabilities), **when)
    await store.driver.register(worker, owner or store.owner, 60.0, {"pool": pool, "parallelism": size})


async def once(kit, context):
    """A round of the autoscaler without its rest: the decision that it leaves."""
    await actions.decide(await actions.observe(context, kit.fleet), kit.fleet)
    await actions.record(context, kit.fleet)
    return (await kit.store.fleet("p").policy_decisions(1))[-1]


async def test_spot_workers_are_counted_by_the_processes_that_they_are_in(any_kit):
    store, fleet = any_kit.store, any_kit.fleet
    fleet.capabilities = frozenset({"spot"})
    await register(store, "a", 2)
    await register(store, "b", 3, ["gpu", "spot"], owner="elsewhere/1/1")
    await register(store, "c", 5, ["gpu"], owner="elsewhere/2/2")
    await register(store, "d", 7, ["spot"], owner="elsewhere/3/3", pool="another")
    context = {"pool": "p", "policy": {**POLICY, "prefer_spot": True}}
    assert (await once(any_kit, context))["seen"]["spot"] == 2 + 3
    assert context["spot_hosts"] == {store.owner: True, "elsewhere/1/1": True, "elsewhere/2/2": False}
    await store.driver.set_status("b", "terminating")
    assert (await once(any_kit, context))["seen"]["spot"] == 2 + 3
    await store.driver.set_status("b", "terminated")
    assert (await once(any_kit, context))["seen"]["spot"] == 2
    assert "elsewhere/1/1" not in context["spot_hosts"]


async def test_workers_are_read_only_where_a_process_is_new(kit):
    asked = []
    kit.fleet.store.registration.list = lambda **what: asked.append(what) or asyncio.sleep(0, [])
    crew = {"elsewhere/1/1": (4, 0, 2), kit.store.owner: (1, 0, 0)}
    known = {"elsewhere/1/1": True}
    assert await spending.spot(kit.fleet, "p", Activity(T0, Counts(), (), crew=crew), known) == 6
    assert asked == []
    crew = {**crew, "elsewhere/2/2": (3, 0, 0)}
    assert await spending.spot(kit.fleet, "p", Activity(T0, Counts(), (), crew=crew), known) == 6
    assert len(asked) == 1


@pytest.mark.parametrize(("prefer", "able"), [(True, False), (False, True)])
async def test_spot_workers_are_not_counted_where_there_are_none_or_nobody_prefers_them(kit, prefer, able):
    kit.fleet.capabilities = frozenset({"spot"} if able else ())
    await register(kit.store, "a")
    kit.store.registration.list = None  # nobody reads them
    context = {"pool": "p", "policy": {**POLICY, "prefer_spot": prefer}}
    assert "spot" not in (await once(kit, context))["seen"]
    assert context["spot_hosts"] == {}


async def test_who_ran_while_nobody_looked(any_kit):
    store, now = any_kit.store, time.time() + 1
    about = {"pool": "p", "parallelism": 9}
    await store.driver.register(WorkerRegistration(worker_id="silent"), "elsewhere/1/1", 0.01, about)
    await register(store, "before", 2, begun=now - 5000)
    await register(store, "since", 3, ["spot"], begun=now - 100)
    await register(store, "ended", 5, begun=now - 5000)
    await store.driver.set_status("ended", "terminated")
    await register(store, "of a dead process", 7, begun=now - 5000, owner=f"{store.owner}0")
    found = await spending.ran(any_kit.fleet, "p", now - 1000, now)
    assert found.still == (2, 0)
    assert found.seconds == pytest.approx((2 * 1000, 3 * 100))


async def test_after_a_night_only_what_ran_is_charged(any_kit):
    record = any_kit.store.fleet("p")
    policy = {**POLICY, "cost": {"per_worker_hour": HOURLY, "budget": 1e6}}
    await register(any_kit.store, "w", 2, begun=time.time() - 99_000)
    decision = await once(any_kit, {"pool": "p", "policy": policy})
    assert (decision["seen"]["spent"], decision["seen"]["cost_per_hour"]) == (0, 2 * HOURLY)
    assert decision["cost"] == {"per_worker_hour": HOURLY, "budget": 1e6}
    state = await record.policy_state()
    await record.keep_policy_state({**state, "cost": {**state["cost"], "at": time.time() - 36_000, "on_demand": 9}})
    decision = await once(any_kit, {"pool": "p", "policy": policy})  # another process
    assert decision["seen"]["spent"] == pytest.approx(2 * 36_000 + 7 * 60, abs=2 * 30)
    account = await spending.account(record)
    assert (account["spent"], account["budget"], account["workers"]) == (decision["seen"]["spent"], 1e6, 2)
    assert await spending.broke(record, 0.0) is None


async def test_the_last_moments_are_charged_when_it_ends(kit):
    context = {"pool": "p", "policy": {**POLICY, "cost": {"per_worker_hour": HOURLY}}}
    await register(kit.store, "w", 2)
    await once(kit, context)
    record = kit.store.fleet("p")
    state = await record.policy_state()
    await record.keep_policy_state({**state, "cost": {**state["cost"], "at": state["cost"]["at"] - 10}})
    kit.fleet.drain()
    await actions.observe(context, kit.fleet)
    assert context["closed"]
    assert (await spending.account(record))["spent"] == pytest.approx(20, abs=5)


async def test_the_log_of_a_fleet_that_pays_decides_the_same_again(kit):
    policy = {**POLICY, "cost": {"per_worker_hour": HOURLY, "budget": 100, "cost_threshold": 5 * HOURLY}}
    record, context = kit.store.fleet("p"), {"pool": "p", "policy": policy}
    pool = kit.store.work.pool("p")
    await pool.push_many([pool.new({}, key=str(k)) for k in range(8)])
    await register(kit.store, "w", 4)
    for _ in range(4):
        decision = await once(kit, context)
        state = await record.policy_state()
        await record.keep_policy_state({**state, "cost": {**state["cost"], "at": state["cost"]["at"] - 10}})
    assert (decision["desired"], decision["bound_by"]) == (0, "cost")
    found = await record.policy_decisions(9)
    assert [each["desired"] for each in found] == [5, 5, 5, 0]
    assert "of budget = 100 are spent" in found[2]["note"]
    assert [difference for _, difference in log.again(enumerate(found), settings(policy)) if difference] == []


async def test_a_launcher_begins_with_nobody_where_the_budget_is_spent(kit, caplog):
    caplog.set_level("INFO", "flatfleet.notices")
    await kit.store.fleet("p").keep_policy_state({"version": 1, "cost": {"spent": 10.02}})
    for budget, low, high in ((10, 0, 0), (11, 1, 9)):
        context = {"pool": "p", "policy": {**POLICY, "cost": {"per_worker_hour": 1, "budget": budget}}}
        bounds = await first_size.serve(context, kit.fleet)
        assert (bounds.low, bounds.high) == (low, high)
        first_size.bounded(4, 0, bounds)
    assert [each.getMessage() for each in caplog.records if each.name == "flatfleet.notices"] == [
        "fleet p begins with 0, not 4: budget = 10, and 10.02 are spent"
    ]


async def test_a_served_fleet_says_once_that_it_has_nothing_left_and_stays(kit, caplog):
    kit.fleet.served = True
    await kit.store.fleet("p").keep_policy_state({"version": 1, "cost": _account(10.02)})
    context = {"pool": "p", "policy": {**POLICY, "cost": {"per_worker_hour": 1, "budget": 10}}}
    for _ in range(3):
        assert (await once(kit, context))["desired"] == 0
        assert not context["closed"]
    assert [each.getMessage() for each in caplog.records if each.name == "flatfleet.notices"] == [
        "fleet p stays without workers: budget = 10, and 10.02 are spent; raise cost.budget in its policy, and start it again"
    ]


async def test_an_autoscaler_without_a_fleet_to_host_says_so_too(kit, caplog):
    await kit.store.fleet("p").keep_policy_state({"version": 1, "cost": _account(10.02)})
    context = {"pool": "p", "policy": {**POLICY, "cost": {"per_worker_hour": 1, "budget": 10}}}
    await once(kit, context)
    assert "stays without workers: budget = 10" in caplog.text
    caplog.clear()
    await kit.store.lock.acquire(f"host/p/{kit.store.owner}")
    del context["ended"]
    await once(kit, context)
    assert caplog.text == ""  # a batch ends with that line


async def test_a_budget_without_a_price_is_said_to_do_nothing(kit, caplog):
    context = {"pool": "p", "policy": {**POLICY, "cost": {"budget": 10}}}
    assert "spent" not in (await once(kit, context))["seen"]
    await once(kit, context)
    assert [each.getMessage() for each in caplog.records if each.name == "flatfleet.notices"] == [
        "fleet p: cost.budget = 10 does nothing without a price, such as cost.per_worker_hour"
    ]


async def test_a_batch_whose_budget_is_spent_ends_once_its_workers_are_gone(kit):
    store, pool = kit.store, kit.store.work.pool("p")
    await store.lock.acquire(f"host/p/{store.owner}")
    await pool.push_many([pool.new({}, key="k")])
    await register(store, "w")
    await store.fleet("p").keep_policy_state({"version": 1, "cost": _account(10.02)})
    context = {"pool": "p", "policy": {**POLICY, "cost": {"per_worker_hour": 1, "budget": 10}}}
    for status in ("active", "terminating", "terminated"):
        await store.driver.set_status("w", status)
        await once(kit, context)
        await actions.observe(context, kit.fleet)
        assert context["closed"] == (status == "terminated")


def _account(spent):
    return {"at": time.time(), "spent": spent, "on_demand": 0, "spot": 0, "per_hour": 0.0}


# -- replayed ----------------------------------------------------------------------------------------------------------


def test_a_replay_counts_its_spot_workers_where_they_are_preferred():
    """Eight at once: the threshold pays for 4 spot workers, or for one other."""
    cost = {"per_worker_hour": 4, "per_spot_hour": 1, "cost_threshold": 4}
    requests = [(float(k // 8), 5.0) for k in range(80)]
    seen = {}
    for prefer in (True, False):
        made = settings({**POLICY, "interval": 1, "stale_after": 60, "prefer_spot": prefer, "cost": cost})
        candidate = Production("c", made)
        seen[prefer] = simulate(requests, candidate, Conditions(startup=1), 0, 10), candidate.last
    (spot, last), (plain, other) = seen[True], seen[False]
    assert (spot.peak, plain.peak, last.capacity, other.seen.spot) == (4, 1, "spot", None)
    assert last.seen.spot == last.seen.workers + last.seen.draining


def test_a_replay_counts_as_spot_what_was_launched_as_such():
    class Alternates:
        name, initial, interval, window, per_item, prefers_spot = "a", 2, 10.0, 60.0, 0.0, True
        safe, seen = False, []

        def decide(self, at, fleet):
            self.seen.append(fleet.observe(at))
            self.safe = not self.safe
            return fleet.target + 3

        def terms(self):
            return Terms(1.0, safe=self.safe)

    simulate([(0, 1.0), (25, 1.0)], Alternates(), Conditions(startup=1), 0, 25)
    assert [(each.workers, each.spot) for each in Alternates.seen] == [(2, 2), (5, 2), (8, 5)]


def test_a_replay_whose_budget_is_spent_leaves_the_rest():
    made = settings({**POLICY, "interval": 1, "stale_after": 60, "cost": {"per_worker_hour": HOURLY, "budget": 20}})
    run = simulate([(0.0, 5.0)] * 40, Production("c", made), Conditions(startup=0, patience=1000), 0, 1)
    assert 0 < len(run.waits) < 40
    assert 20 <= run.cost <= 20 + 9 * 6


# -- whole runs --------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
LAUNCHER = str(ROOT / "machines/launcher.yml")
PATIENCE = 60.0


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """Starts `run.py` over a store of its own, with a task of 0.3 s, items, and a policy file of each budget."""
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_AGENTS"):
        monkeypatch.delenv(name, raising=False)
    wait = {"type": "initial", "action": "pace", "hooks": "flow", "transitions": [{"to": "done"}]}
    data = {"name": "slow", "context": {"launch_interval": 0.3}, "states": {"wait": wait, "done": {"type": "final"}}}
    Path("slow.yml").write_text(yaml.safe_dump({"spec": "flatmachine", "spec_version": "4.2.1", "data": data}))
    Path("items.jsonl").write_text("".join(f'{{"key": "k{n}"}}\n' for n in range(40)))
    for budget in (1, 1000):
        cost = {"per_worker_hour": 2 * HOURLY, "budget": budget}
        policy = {**POLICY, "max": 2, "stale_after": 5, "cost": cost}
        Path(f"{budget}.yml").write_text(yaml.safe_dump(policy))

    def start(*words):
        argv = [sys.executable, str(ROOT / "run.py"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        return subprocess.Popen(argv, **pipes)

    return start


def finish(process):
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running: {process.communicate()}") from None
    assert "Traceback" not in err, err
    return process.returncode, out, err


def launch(budget, *more):
    items = ("--input", "items.jsonl", "--pool", "p", "--out", "", "--workers", "2")
    return LAUNCHER, "--task", "slow.yml", *items, "--policy", f"{budget}.yml", *more


async def seen():
    store = open_store("sqlite:fleet.db", must_exist=True)
    try:
        found = await store.fleet("p").policy_decisions(1)
        return (found[-1] if found else None), await store.work.pool("p").counts()
    finally:
        await store.close()


@pytest.mark.slow
def test_a_batch_ends_where_its_budget_does_and_goes_on_with_a_larger_one(fleet):
    code, out, err = finish(fleet(*launch(1, "--until-empty", "true")))
    assert code == 1, err
    told = re.search(r"^(\d+) left, and ([\d.]+) of a budget of 1 spent: raise cost\.budget in the policy", out, re.M)
    assert told, out
    assert float(told[2]) >= 1
    decision, counts = asyncio.run(seen())
    assert (decision["desired"], decision["bound_by"]) == (0, "cost")
    assert (counts.claimed, counts.left) == (0, int(told[1]))
    assert 0 < counts.completed < 40
    code, out, err = finish(fleet("status", "--pool", "p"))
    assert re.search(r"costs 0 an hour for 0 workers, [\d.]+ of a budget of 1 spent", out), out
    code, out, _ = finish(fleet("explain-scaling", "--pool", "p"))
    assert "budget = 1, and " in out
    code, out, err = finish(fleet(*launch(1, "--until-empty", "true", "--json")))
    assert code == 1
    assert json.loads(out)["broke"]["budget"] == 1
    assert asyncio.run(seen())[1].completed == counts.completed
    code, out, err = finish(fleet(*launch(1000, "--until-empty", "true")))
    assert (code, asyncio.run(seen())[1].completed) == (0, 40), out + err


@pytest.mark.slow
def test_a_served_fleet_stays_without_workers_and_goes_on_once_there_is_more_to_spend(fleet):
    process = fleet(*launch(1))
    try:
        first = asyncio.run(_until(lambda decision, counts: decision["desired"] == 0 and _none(decision["seen"])))
        later = asyncio.run(_until(lambda decision, counts: decision["at"] > first[0]["at"] + 1))
        assert process.poll() is None
        assert (later[0]["desired"], later[1].completed) == (0, first[1].completed)
    finally:
        process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert len(re.findall("stays without workers: budget = 1, and ", err)) == 1, err
    process = fleet(*launch(1000))
    try:
        asyncio.run(_until(lambda decision, counts: counts.completed > first[1].completed))
    finally:
        process.send_signal(signal.SIGINT)
        finish(process)


def _none(o):
    return o["workers"] + o["draining"] == 0


async def _until(happened):
    ends, found = time.monotonic() + PATIENCE, None
    while time.monotonic() < ends:
        with contextlib.suppress(FleetError):  # it is just being made
            found = await seen()
            if found[0] and happened(*found):
                return found
        await asyncio.sleep(0.1)
    raise AssertionError(found)
