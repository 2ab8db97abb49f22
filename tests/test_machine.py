"""Machine: bounds, time-outs, children, inputs, templates; and the SDK's signatures that it stands on."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from dataclasses import replace

import pytest
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.children import Children
from flatfleet.runtime.errors import (
    ChildFailed,
    ChildWaiting,
    DuplicateKey,
    ItemTimeout,
    LeaseLost,
    MachineError,
    PoolAtCapacity,
    StateTimeout,
    StepLimitReached,
    StoreUnavailable,
    UsageError,
)
from flatfleet.runtime.launches import Launches
from flatfleet.runtime.machine import _PASSED, Machine
from flatmachines import FlatMachine, MachineHooks

DONE = {"type": "final", "output": {"n": "context.n"}}


def act(name, *transitions, **more):
    return {"action": name, "hooks": "test", "transitions": list(transitions), **more}


def to(state, condition=None):
    return {"to": state} | ({"condition": condition} if condition else {})


@pytest.fixture
def counted(kit):
    @kit.does
    async def step(context, fleet):
        context["n"] += 1
        return context

    return kit


def child(flow, name="child", action="work", **data):
    """A machine with one action on its `item`, which returns what the action put under `out`."""
    states = {
        "start": act(action, to("done"), type="initial"),
        "done": {"type": "final", "output": {"out": "context.out"}},
    }
    return flow(states, {"item": "input.item", "out": None}, **{"name": name, **data})


def fan(flow, machine, **state):
    """A machine with one `foreach` state over `items`."""
    on_error = state.pop("on_error", None)
    each = {"type": "initial", "foreach": "context.items", "as": "output", "machine": "each", **state}
    each |= {"input": {"item": "output"}, "output_to_context": {"found": "output"}, "transitions": [to("done")]}
    if on_error:
        each["on_error"] = on_error
    states = {
        "start": each,
        "done": {"type": "final", "output": {"found": "context.found"}},
        "bad": {"type": "final", "output": {"type": "context.last_error_type", "text": "context.last_error"}},
    }
    return flow(states, {"items": "input.items", "found": None}, machines={"each": machine}, name="fan")


# -- steps -----------------------------------------------------------------------------------------------------------


def loop(flow, rounds, **data):
    states = {
        "start": act("step", to("start", f"context.n < {rounds}"), to("done"), type="initial", on_error="done"),
        "done": DONE,
    }
    return flow(states, {"n": 0}, **data)


async def test_zero_max_steps_is_unlimited(counted, flow):
    assert await counted.machine(loop(flow, 3000, settings={"max_steps": 0})).run() == {"n": 3000}


async def test_reaching_max_steps_raises_and_no_on_error_routes_it(counted, flow):
    with pytest.raises(StepLimitReached, match=r"took 50 steps .* at 'start'.*settings\.max_steps"):
        await counted.machine(loop(flow, 60, settings={"max_steps": 50})).run()


async def test_without_a_setting_the_sdks_thousand_steps_are_the_limit(counted, flow):
    with pytest.raises(StepLimitReached, match="1000"):
        await counted.machine(loop(flow, 1000)).run()
    assert await counted.machine(loop(flow, 999)).run() == {"n": 999}


async def test_a_machine_that_ends_in_its_last_step_has_ended(counted, flow):
    assert await counted.machine(loop(flow, 4, settings={"max_steps": 5})).run() == {"n": 4}
    assert await counted.machine(loop(flow, 9, settings={"max_steps": 5})).execute(max_steps=10) == {"n": 9}


async def test_children_are_bounded_by_their_own_setting(counted, flow):
    inner = loop(flow, 30, settings={"max_steps": 10}, name="inner")
    states = {
        "start": {"machine": "inner", "transitions": [to("done")], "on_error": {"StepLimitReached": "bad"}},
        "done": {"type": "final"},
        "bad": {"type": "final", "output": {"why": "context.last_error_type"}},
    }
    assert await counted.machine(flow(states, machines={"inner": inner})).run() == {"why": "StepLimitReached"}


async def test_a_machine_object_runs_twice_with_the_full_count_each_time(counted, flow):
    machine = counted.machine(loop(flow, 8, settings={"max_steps": 10}))
    assert [await machine.run(), await machine.run()] == [{"n": 8}, {"n": 8}]


# -- transitions -----------------------------------------------------------------------------------------------------


async def test_an_unknown_target_raises_past_on_error(counted, flow):
    states = {"start": act("step", to("nowhere"), on_error="done"), "done": DONE}
    with pytest.raises(MachineError, match="no state 'nowhere'"):
        await counted.machine(flow(states, {"n": 0})).run()


async def test_no_matching_transition_raises(counted, flow):
    states = {"start": act("step", to("done", "context.n > 5"), on_error="done"), "done": DONE}
    with pytest.raises(MachineError, match="no transition of state 'start'"):
        await counted.machine(flow(states, {"n": 0})).run()


# -- time-outs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stuck(kit):
    """Actions of which `work` never ends; kit.cancelled counts those that were cancelled."""
    kit.cancelled, kit.started = 0, asyncio.Event()

    @kit.does
    async def work(context, fleet):
        kit.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            kit.cancelled += 1

    return kit


@pytest.mark.parametrize("state", ["action", "machine", "foreach", "item"])
async def test_a_timeout_cancels_what_runs_and_can_be_routed(stuck, flow, state):
    kinds = {
        "action": act("work"),
        "machine": {"machine": "c"},
        "foreach": {"foreach": "context.items", "as": "output", "key": "output.k", "machine": "c"},
        "item": {"machine": "c", "key": "context.name"},
    }
    routes = {"StateTimeout": "state", "ItemTimeout": "item"}
    states = {
        "start": {**kinds[state], "timeout": 0.02, "transitions": [to("state")], "on_error": routes},
        "state": {"type": "final", "output": {"what": "state", "text": "context.last_error"}},
        "item": {"type": "final", "output": {"what": "item", "text": "context.last_error"}},
    }
    context = {"items": "input.items", "name": "p:a"}
    config = flow(states, context, machines={"c": child(flow)})
    output = await stuck.machine(config).run({"items": [{"k": "1"}, {"k": "2"}]})
    assert output["what"] == ("item" if state == "item" else "state")
    assert "'start'" in output["text"]
    assert "0.02 s" in output["text"]
    assert stuck.cancelled == (2 if state == "foreach" else 1)


async def test_an_unrouted_timeout_is_raised(stuck, flow):
    states = {"start": act("work", to("done"), timeout=0.01), "done": DONE}
    with pytest.raises(StateTimeout) as caught:
        await stuck.machine(flow(states, {"n": 0})).run()
    assert not isinstance(caught.value, ItemTimeout)


async def test_a_timeout_error_of_the_work_itself_is_not_a_state_timeout(kit, flow):
    @kit.does
    async def work(context, fleet):
        raise TimeoutError("the far end hung up")

    states = {"start": act("work", to("done"), timeout=60), "done": DONE}
    with pytest.raises(TimeoutError, match="hung up"):
        await kit.machine(flow(states, {"n": 0})).run()


# -- children ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "n", "expected"), [(3, 10, 3), (None, 100, 64), (20, 5, 5)])
async def test_a_foreach_reaches_max_parallel_and_never_exceeds_it(kit, flow, limit, n, expected):
    running, most, gate = 0, 0, asyncio.Event()

    @kit.does
    async def work(context, fleet):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == expected:
            gate.set()
        await gate.wait()
        await asyncio.sleep(0)
        running -= 1
        context["out"] = context["item"] * 10
        return context

    config = fan(flow, child(flow))
    config["data"]["settings"] = {"max_parallel": limit} if limit else {}
    output = await kit.machine(config).run({"items": list(range(n))})
    assert most == expected
    assert output == {"found": [{"out": i * 10} for i in range(n)]}


async def test_results_stand_in_the_order_of_the_items_whoever_ends_first(kit, flow):
    ended, last = [], asyncio.Event()

    @kit.does
    async def work(context, fleet):
        if context["item"] == "last":
            last.set()
        else:
            await last.wait()
        ended.append(context["item"])
        context["out"] = context["item"]
        return context

    config = fan(flow, child(flow), key="output")
    output = await kit.machine(config).run({"items": ["c", "a", "last"]})
    assert ended[0] == "last"
    assert list(output["found"]) == ["c", "a", "last"]
    assert not (await kit.machine(fan(flow, child(flow))).run({"items": []}))["found"]


async def test_duplicate_keys_raise_before_anything_runs(stuck, flow):
    config = fan(flow, child(flow), key="output", on_error={"DuplicateKey": "bad"})
    output = await stuck.machine(config).run({"items": ["a", "b", "a"]})
    assert output["type"] == "DuplicateKey"
    assert "'a'" in output["text"]
    assert not stuck.started.is_set()
    states = {"start": {"machine": ["c", "c"], "transitions": [to("done")]}, "done": {"type": "final"}}
    with pytest.raises(DuplicateKey):
        await stuck.machine(flow(states, machines={"c": child(flow)})).run()


class Broken(Exception):
    pass


@pytest.fixture
def mixed(kit):
    """`work` raises for "bad", waits for ever for "slow" (and counts its cancellation), and returns the rest."""
    kit.cancelled, slow_runs = 0, asyncio.Event()

    @kit.does
    async def work(context, fleet):
        if context["item"] == "slow":
            slow_runs.set()
            try:
                await asyncio.Event().wait()
            finally:
                kit.cancelled += 1
        if context["item"] == "bad":
            await asyncio.wait_for(slow_runs.wait(), 0.05) if context.get("wait") else None
            raise Broken("no good")
        if context["item"] == "late":
            await slow_runs.wait()
        context["out"] = context["item"]
        return context

    return kit


async def test_without_a_mode_the_first_failure_is_raised_as_itself_and_the_rest_cancelled(mixed, flow):
    items = {"items": ["slow", "late-bad", "bad", "x"]}
    config = fan(flow, child(flow))
    config["data"]["settings"] = {"max_parallel": 3}
    with pytest.raises(Broken, match="no good"):
        await mixed.machine(config).run(items)
    assert mixed.cancelled == 1
    config["data"]["states"]["start"]["on_error"] = {"Broken": "bad"}
    output = await mixed.machine(copy.deepcopy(config)).run(items)
    assert output == {"type": "Broken", "text": "no good"}
    assert mixed.cancelled == 2


async def test_settled_returns_failures_as_data(mixed, flow):
    output = await mixed.machine(fan(flow, child(flow), mode="settled")).run({"items": ["a", "bad", "b"]})
    error = {"_error": "no good", "_error_type": "Broken"}
    assert output == {"found": [{"out": "a"}, error, {"out": "b"}]}


@pytest.mark.parametrize("mode", ["settled", "any"])
async def test_a_lost_lease_is_never_data(kit, flow, mode):
    @kit.does
    async def work(context, fleet):
        raise LeaseLost("somebody else has it")

    with pytest.raises(LeaseLost):
        await kit.machine(fan(flow, child(flow), mode=mode)).run({"items": ["a", "b"]})


async def test_any_returns_the_first_success_alone_and_cancels_the_rest(mixed, flow):
    output = await mixed.machine(fan(flow, child(flow), mode="any")).run({"items": ["bad", "slow", "late"]})
    assert output == {"found": [{"out": "late"}]}
    assert mixed.cancelled == 1


async def test_any_without_a_success_raises_the_first_failure(mixed, flow):
    with pytest.raises(Broken):
        await mixed.machine(fan(flow, child(flow), mode="any")).run({"items": ["bad", "bad"]})


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, {"type": "Broken"}),
        ("settled", {"a": {"out": "A"}, "b": {"_error": "no good", "_error_type": "Broken"}}),
        ("any", {"a": {"out": "A"}}),
    ],
)
async def test_a_list_of_machines_follows_the_same_modes(kit, flow, mode, expected):
    @kit.does
    async def good(context, fleet):
        context["out"] = context["item"].upper()
        return context

    @kit.does
    async def bad(context, fleet):
        raise Broken("no good")

    state = {
        "machine": ["a", "b"],
        "input": {"item": "context.item"},
        "output_to_context": {"found": "output"},
        "transitions": [to("done")],
        "on_error": "bad",
    } | ({"mode": mode} if mode else {})
    states = {
        "start": state,
        "done": {"type": "final", "output": {"found": "context.found"}},
        "bad": {"type": "final", "output": {"type": "context.last_error_type"}},
    }
    machines = {"a": child(flow, action="good"), "b": child(flow, action="bad")}
    output = await kit.machine(flow(states, {"item": "a", "found": None}, machines=machines)).run()
    assert output == (expected if mode is None else {"found": expected})


async def test_each_machine_of_a_list_gets_its_own_input_on_top_of_the_shared_one(kit, flow):
    @kit.does
    async def work(context, fleet):
        context["out"] = context["item"]
        return context

    both = [{"name": "a", "input": {"item": "context.x"}}, {"name": "b"}]
    states = {
        "start": {
            "machine": both,
            "input": {"item": 0},
            "output_to_context": {"x": "output"},
            "transitions": [to("done")],
        },
        "done": {"type": "final", "output": {"found": "context.x"}},
    }
    config = flow(states, {"x": 7}, machines={"a": child(flow), "b": child(flow)})
    assert await kit.machine(config).run() == {"found": {"a": {"out": 7}, "b": {"out": 0}}}


@pytest.mark.parametrize("shape", ["single", "foreach", "list"])
@pytest.mark.parametrize(("kind", "error"), [("error", ChildFailed), ("waits", ChildWaiting)])
async def test_a_child_that_has_no_result_is_refused(kit, flow, shape, kind, error):
    kinds = {
        "error": flow({"start": {"type": "final", "output": {"_error": "quota", "_error_type": "X"}}}),
        "waits": flow(
            {"start": {"wait_for": "go/{{ context.n }}", "transitions": [to("end")]}, "end": {"type": "final"}},
            {"n": 1},
        ),
    }
    shapes = {
        "single": {"machine": "c"},
        "foreach": {"foreach": "context.items", "as": "output", "machine": "c"},
        "list": {"machine": ["c"]},
    }
    states = {"start": {**shapes[shape], "transitions": [to("done")]}, "done": {"type": "final"}}
    config = flow(states, {"items": "input.items"}, machines={"c": kinds[kind]})
    with pytest.raises(error, match="quota" if kind == "error" else "go/1"):
        await kit.machine(config).run({"items": [1]})


async def test_children_inherit_class_engine_backends_and_leases(kit, flow):
    seen = []

    class Spy(Machine):
        def __init__(self, *args, **parts):
            super().__init__(*args, **parts)
            seen.append(self)

    @kit.does
    async def work(context, fleet):
        return context

    config = fan(flow, child(flow, machines={"grand": child(flow)}))
    inner = config["data"]["machines"]["each"]["data"]["states"]
    inner["start"]["transitions"] = [to("deeper")]
    inner["deeper"] = {"machine": "grand", "transitions": [to("done")]}
    triggers, tools = object(), object()
    top = Spy(
        config_dict=config,
        leases=kit.fleet.leases,
        trigger_backend=triggers,
        tool_provider=tools,
        _profiles_dict={"p": 1},
        **kit.parts.backends(),
    )
    await top.run({"items": [1]})
    assert [type(machine) for machine in seen] == [Spy, Spy, Spy]
    for machine in seen:
        assert machine.invoker is kit.engine
        assert machine.result_backend is kit.store.results
        assert machine.signal_backend is kit.store.signals
        assert machine.trigger_backend is triggers
        assert machine.agent_registry is kit.parts.adapters
        assert machine.hooks_registry is kit.parts.hooks
        assert machine._config_store is kit.store.configs
        assert machine._checkpoints is kit.store.checkpoints
        assert machine._tool_provider is tools
        assert machine._leases is kit.fleet.leases
        assert machine._profiles_dict == {"p": 1}
    assert [machine.parent_execution_id for machine in seen[1:]] == [top.execution_id, seen[1].execution_id]


async def test_child_ids_are_deterministic(kit, flow):
    ids = []

    @kit.does
    async def work(context, fleet):
        ids.append(context["machine"]["execution_id"])
        return context

    await kit.machine(fan(flow, child(flow)), "t").run({"items": ["a", "b"]})
    await kit.machine(fan(flow, child(flow), key="output"), "t").run({"items": ["a", "b"]})
    states = {"start": {"machine": ["x", "y"], "transitions": [to("next")]}, "done": {"type": "final"}}
    states |= {
        "next": {"machine": "x", "transitions": [to("keyed")]},
        "keyed": {"machine": "x", "key": "pool:{{ context.n }}", "transitions": [to("done")]},
    }
    await kit.machine(flow(states, {"n": 5}, machines={"x": child(flow), "y": child(flow)}), "t").run()
    assert ids == ["t:start:0", "t:start:1", "t:start:a", "t:start:b", "t:start:x", "t:start:y", "t:next:x", "pool:5"]


async def test_the_cost_of_children_counts_for_the_parent_even_if_they_fail(kit, flow):
    class Costly(Machine):
        async def _execute_state(self, name, context):
            if self.machine_name == "child":
                self.total_cost += 0.25
                self.total_api_calls += 1
            return await super()._execute_state(name, context)

    @kit.does
    async def work(context, fleet):
        if context["item"] == "bad":
            raise Broken
        return context

    config = fan(flow, child(flow), mode="settled")
    machine = Costly(config_dict=config, leases={}, **kit.parts.backends())
    await machine.run({"items": ["a", "bad"]})
    assert (machine.total_cost, machine.total_api_calls) == (0.75, 3)


# -- inputs ------------------------------------------------------------------------------------------------------------


def echo(flow, inputs, **context):
    return flow(
        {"start": {"type": "final", "output": {name: f"context.{name}" for name in context}}}, context, inputs=inputs
    )


async def test_declared_defaults_are_filled_in_and_given_values_win(kit, flow):
    inputs = {"a": {"type": "integer", "default": 3}, "b": {"default": "x"}, "c": {"type": "boolean"}}
    config = echo(flow, inputs, a="input.a", b="input.b", c="input.c")
    assert await kit.machine(config).run({"b": "y"}) == {"a": 3, "b": "y", "c": None}
    assert await kit.machine(config).run({"a": 0, "b": "", "c": False}) == {"a": 0, "b": "", "c": False}
    assert await kit.machine(config).execute({"a": None}) == {"a": 3, "b": "x", "c": None}


async def test_a_missing_required_input_is_an_error_before_the_first_state(kit, flow):
    config = echo(flow, {"who": {"required": True, "description": "whom to greet"}}, who="input.who")
    with pytest.raises(UsageError, match="needs the input 'who': whom to greet"):
        await kit.machine(config).run()
    assert await kit.machine(config).run({"who": 0}) == {"who": 0}


async def test_what_a_run_does_to_its_defaults_and_context_does_not_reach_the_next(kit, flow):
    @kit.does
    async def grow(context, fleet):
        context["tags"].append("x")
        context["rows"][0]["n"] += 1
        return context

    states = {
        "start": act("grow", to("done")),
        "done": {"type": "final", "output": {"tags": "context.tags", "rows": "context.rows"}},
    }
    context = {"tags": "input.tags", "rows": [{"n": 0}]}
    config = Bundle.of(flow(states, context, inputs={"tags": {"type": "array", "default": ["a"]}}))
    for _ in range(3):
        assert await kit.machine(config).run() == {"tags": ["a", "x"], "rows": [{"n": 1}]}


# -- templates ---------------------------------------------------------------------------------------------------------


async def test_bare_paths_keep_types_templates_give_strings_and_data_stays_data(kit, flow):
    inner = flow(
        {"start": {"type": "final", "output": {"got": "context.got", "text": "{{ context.got }}"}}},
        {"got": "input.got"},
        name="inner",
    )
    states = {
        "start": {
            "machine": "inner",
            "input": {"got": "context.value"},
            "output_to_context": {"inner": "output"},
            "transitions": [to("done")],
        },
        "done": {
            "type": "final",
            "output": {
                "inner": "context.inner",
                "same": "context.value",
                "deep": "context.value.x.y",
                "missing": "context.value.nope.deeper",
                "string": "{{ context.value.n }}",
                "json": "{{ context.value }}",
                "plain": "context matters",
                "list": ["context.value.n", "{{ 6 * 7 }}", 3],
            },
        },
    }
    value = {"n": 1, "x": {"y": [1.5, None]}, "evil": "{{ 7*7 }}", "path": "context.value"}
    config = flow(states, {"value": "input.value", "inner": None}, machines={"inner": inner})
    output = await kit.machine(config).run({"value": value})
    assert output["same"] == value
    assert output["deep"] == [1.5, None]
    assert output["missing"] is None
    assert output["string"] == "1"
    assert output["plain"] == "context matters"
    assert output["list"] == [1, "42", 3]
    assert '"{{ 7*7 }}"' in output["json"]
    assert output["inner"]["got"] == value
    assert "49" not in str(output)


@pytest.mark.parametrize(
    "template",
    ["context.a", "context", "input.b.c", " output.x ", "{{ context.a }}", "{% if context.a %}y{% endif %}", "text", ""]
    + ["item.x", "{{ context.list }}", "{{ context.list | length }}", "context.a b", "{{ context.none }}", "context.1"],
)
def test_a_template_means_what_it_means_to_the_sdk(kit, flow, template):
    machine = kit.machine(flow({"start": {"type": "final"}}))
    variables = {"context": {"a": 1, "list": [1, {"b": 2}], "none": None}, "input": {"b": {"c": [3]}}, "output": "text"}
    ours, stock = (
        machine._render_template(template, variables),
        FlatMachine._render_template(machine, template, variables),
    )
    assert ours == stock
    assert type(ours) is type(stock)


@pytest.mark.parametrize(
    "condition",
    [
        "context.a == 1",
        "context.a > 0 and not context.none",
        "context.missing.x == 1",
        "context.list",
        "",
        "True",
        "context.a + 1 == 2",
    ],
)
def test_a_condition_means_what_it_means_to_the_sdk(kit, flow, condition):
    machine = kit.machine(flow({"start": {"type": "final"}}))
    stock = FlatMachine(config_dict=flow({"start": {"type": "final"}}))
    context = {"a": 1, "list": [1], "none": None}
    for _ in range(2):  # the second time from the cache
        assert machine._evaluate_condition(condition, context) == stock._evaluate_condition(condition, context)


def test_a_condition_that_is_no_expression_says_so(kit, flow):
    machine = kit.machine(flow({"start": {"type": "final"}}))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"context\.a >"):
            machine._evaluate_condition("context.a >", {})


# -- caches ------------------------------------------------------------------------------------------------------------


async def test_two_machines_of_one_bundle_compile_each_template_once(kit, flow, monkeypatch):
    config = Bundle.of(echo(flow, {}, a="{{ 6 * 7 }}"))
    first, second = kit.machine(config), kit.machine(config)
    assert await first.run() == {"a": "42"}

    def compiled_again(text):
        raise AssertionError(f"{text!r} was compiled again")

    monkeypatch.setattr(second._jinja_env, "from_string", compiled_again)
    assert await second.run() == {"a": "42"}
    assert first.states is second.states
    assert first._expression_engine is second._expression_engine


def test_a_second_machine_of_a_bundle_neither_validates_nor_dumps_it_again(kit, flow, monkeypatch):
    config = Bundle.of(echo(flow, {}, a="x"))
    kit.machine(config)

    def again(*_):
        raise AssertionError("paid again")

    for name in ("_validate_spec", "_parse_machine_config", "_resolve_agent_file_refs", "_capture_config_raw"):
        monkeypatch.setattr(FlatMachine, name, again)
    machine = kit.machine(config)
    assert machine.spec_version == "4.2.1"
    assert machine._config_raw is config.raw


# -- lifecycle ---------------------------------------------------------------------------------------------------------


class Witness(MachineHooks):
    def __init__(self):
        self.ended = []

    async def on_machine_end(self, context, final_output):
        self.ended.append(("end", context.get("n")))
        return final_output

    async def on_machine_abort(self, context, error):
        self.ended.append((type(error).__name__, context.get("n")))


@pytest.fixture
def witness(kit):
    hooks = Witness()
    kit.parts.hooks.register("witness", lambda: hooks)
    return hooks


async def test_the_lifecycle_hooks_hear_of_the_end_once(counted, flow, witness):
    await counted.machine(loop(flow, 3, lifecycle_hooks="witness")).run()
    assert witness.ended == [("end", 3)]


async def test_the_lifecycle_hooks_hear_of_an_error(counted, flow, witness):
    with pytest.raises(StepLimitReached):
        await counted.machine(loop(flow, 3, lifecycle_hooks="witness", settings={"max_steps": 2})).run()
    assert witness.ended == [("StepLimitReached", 2)]


async def test_the_lifecycle_hooks_hear_of_a_cancellation(stuck, flow, witness):
    states = {"start": act("work", to("done")), "done": DONE}
    task = asyncio.create_task(stuck.machine(flow(states, {"n": 4}, lifecycle_hooks="witness")).run())
    await stuck.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert witness.ended == [("CancelledError", 4)]


async def test_an_error_before_the_first_state_still_hands_over_the_context(kit, flow, witness):
    class Failing(MachineHooks):
        def on_state_enter(self, state_name, context):
            raise Broken

    kit.parts.hooks.register("failing", Failing)
    states = {"start": {"hooks": "failing", "transitions": [to("done")]}, "done": DONE}
    with pytest.raises(Broken):
        await kit.machine(flow(states, {"n": 4}, lifecycle_hooks="witness")).run()
    assert witness.ended == [("Broken", 4)]


async def test_an_error_reaches_the_next_state_as_data(kit, flow):
    @kit.does
    async def work(context, fleet):
        raise Broken("no good")

    states = {
        "start": act("work", to("done"), on_error={"default": "done"}),
        "done": {"type": "final", "output": {"error": "context.error"}},
    }
    error = {"type": "Broken", "message": "no good", "permanent": False, "provider": False, "retry_after": None}
    assert await kit.machine(flow(states)).run() == {"error": error}


# -- launch ------------------------------------------------------------------------------------------------------------


async def test_launched_machines_leave_no_intents_behind(counted, flow):
    states = {
        "start": act("step", to("launch")),
        "launch": {
            "launch": "c",
            "launch_input": {"worker_id": "w{{ context.n }}"},
            "transitions": [to("start", "context.n < 5"), to("done")],
        },
        "done": DONE,
    }
    machine = counted.machine(flow(states, {"n": 0}, machines={"c": flow({"start": {"type": "final"}})}))
    await machine.run()
    assert machine._pending_launches == []
    await counted.engine.join()


class Invoker:
    """Refuses to launch while it has `fault`, and notes what it launched."""

    def __init__(self, fault=None):
        self.fault, self.launched = fault, []

    async def launch(self, caller_machine, target_config, input_data, execution_id):
        if self.fault is not None and input_data.get("worker_id") != "w1":
            raise self.fault
        self.launched.append((target_config["data"]["name"], input_data, execution_id))


def launcher(flow):
    """Launches two machines, takes a refusal for an answer, and waits to be told to go on."""
    states = {
        "start": {
            "launch": "c",
            "launch_input": {"worker_id": "w1"},
            "transitions": [to("second")],
        },
        "second": {
            "launch": "c",
            "launch_input": {"worker_id": "w2"},
            "on_error": {"default": "wait"},
            "transitions": [to("wait")],
        },
        "wait": {"wait_for": "go", "transitions": [to("done")]},
        "done": {"type": "final", "output": {"error": "context.last_error"}},
    }
    saved = {"persistence": {"enabled": True, "backend": "memory", "checkpoint_on": ["state_enter", "waiting"]}}
    return flow(states, {}, machines={"c": flow({"start": {"type": "final"}}, name="c")}, **saved)


async def test_a_launch_that_was_refused_leaves_no_intent_which_a_resume_would_carry_out(kit, flow):
    config = Bundle.of(launcher(flow))
    machine = kit.machine(config, "m")
    machine.invoker = Invoker(PoolAtCapacity("full"))
    assert (await machine.run())["_waiting"]
    assert [about["worker_id"] for _, about, _ in machine.invoker.launched] == ["w1"]
    snapshot = json.loads((await kit.store.driver.load_snapshot("m")).body)
    assert not snapshot.get("pending_launches")
    await kit.store.signals.send("go", {})
    again = kit.machine(config, "m")
    again.invoker = Invoker()
    assert await again.execute(resume_from="m") == {"error": "full"}
    assert again.invoker.launched == []


@pytest.mark.parametrize("fault", [None, PoolAtCapacity("full"), StoreUnavailable("away")])
async def test_an_intent_that_a_snapshot_holds_is_carried_out_by_the_engine(kit, flow, fault, caplog):
    config = Bundle.of(launcher(flow))
    machine = kit.machine(config, "m")
    machine.invoker = Invoker()
    assert (await machine.run())["_waiting"]
    row = await kit.store.driver.load_snapshot("m")
    about = {"machine": "c", "launched": False}
    intents = [about | {"execution_id": f"e{n}", "input": {"worker_id": f"w{n}"}} for n in (1, 2, 3)]
    intents.append(about | {"execution_id": "e4", "input": {}, "launched": True})
    body = json.dumps(json.loads(row.body) | {"pending_launches": intents}).encode()
    await kit.store.driver.save_snapshot(replace(row, body=body), None, None)
    await kit.store.results.write("flatagents://e3/result", {})
    again = kit.machine(config, "m")
    again.invoker = Invoker(fault)
    if isinstance(fault, StoreUnavailable):
        with pytest.raises(StoreUnavailable):
            await again.execute(resume_from="m")
        assert len(json.loads((await kit.store.driver.load_snapshot("m")).body)["pending_launches"]) == 4
        return
    assert (await again.execute(resume_from="m"))["_waiting"]
    first = ("c", {"worker_id": "w1"}, "e1")
    assert again.invoker.launched == ([first] if fault else [first, ("c", {"worker_id": "w2"}, "e2")])
    assert ("m cannot launch c any more: full" in caplog.text) is (fault is not None)
    assert again._pending_launches == []


# -- the SDK under it --------------------------------------------------------------------------------------------------

PINNED = {
    "_load_config": "self, config_file, config_dict",
    "_resolve_agent_file_refs": "self",
    "_capture_config_raw": "self",
    "_validate_spec": "self",
    "_parse_machine_config": "self",
    "_initialize_persistence": "self, persistence, lock",
    "execute": "self, input=None, max_steps=1000, max_agent_calls=None, resume_from=None",
    "_execute_state": "self, state_name, context",
    "_run_hook": "self, hooks, method_name, *args",
    "_get_error_recovery_state": "self, state_config, error",
    "_find_next_state": "self, state_name, context",
    "_render_template": "self, template_str, variables",
    "_render_dict": "self, data, variables",
    "_save_checkpoint": "self, event, state_name, step, context, output=None, waiting_channel=None, tool_loop_state=None",
    "_launch_fire_and_forget": "self, machines, input_data",
    "_resume_pending_launches": "self",
    "_invoke_machine_single": "self, machine_name, input_data, timeout=None",
    "_invoke_machines_parallel": ("self, machines, input_data, mode='settled', timeout=None, per_machine_inputs=None"),
    "_invoke_foreach": "self, items, as_var, key_expr, machine_name, input_template, mode='settled', timeout=None",
}
"""The SDK's methods that Machine, Children and Launches override, as they were read."""

CALLED = {
    "_resolve_machine_config": "self, name",
    "_get_state_hooks": "self, state_name",
    "_evaluate_condition": "self, condition, context",
}
"""The SDK's private methods that they call."""


def shape(function):
    """The parameters without their annotations."""
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters)


def test_every_override_of_the_sdk_is_pinned():
    ours = {
        name
        for part in (Machine, Children, Launches)
        for name in vars(part)
        if callable(getattr(FlatMachine, name, None))
    }
    ours -= {"__init__", "__class__", "__doc__"}
    assert ours == set(PINNED), "Machine overrides other methods of the SDK than PINNED lists: pin them, too"


@pytest.mark.parametrize("name", [*PINNED, *CALLED])
def test_the_installed_sdk_has_the_signatures_that_machine_stands_on(name):
    expected, got = (PINNED | CALLED)[name], shape(getattr(FlatMachine, name))
    assert got == expected, (
        f"the installed flatmachines changed FlatMachine.{name}({expected}) into ({got}): read its new body, adapt "
        "runtime/machine.py, children.py or launches.py, and pin the new signature"
    )
    if name in PINNED:
        parameters = list(inspect.signature(getattr(Machine, name)).parameters.values())
        takes_all = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
        names = [each.partition("=")[0].lstrip("*") for each in expected.split(", ")]
        assert takes_all or [each.name for each in parameters] == names, (
            f"Machine.{name} takes other parameters than the SDK's"
        )


def test_the_sdk_constructor_still_takes_what_children_are_made_with():
    names = set(inspect.signature(FlatMachine.__init__).parameters)
    wanted = "hooks_registry persistence lock invoker result_backend signal_backend trigger_backend agent_registry"
    assert {*wanted.split(), "config_store", "tool_provider", "config_dict", "kwargs"} <= names


@pytest.mark.parametrize("name", _PASSED)
def test_a_callback_that_is_passed_through_returns_what_the_sdks_own_does(name):
    arguments = [object() for _ in inspect.signature(getattr(MachineHooks, name)).parameters][1:]
    passed = _PASSED[name]
    assert getattr(MachineHooks(), name)(*arguments) is (None if passed is None else arguments[passed])


async def test_hooks_of_the_sdks_older_signature_work(kit, flow):
    class Old(MachineHooks):
        def on_action(self, action_name, context):
            return {**context, "n": action_name}

    kit.parts.hooks.register("test", Old)
    assert await kit.machine(flow({"start": act("step", to("done")), "done": DONE}, {"n": 0})).run() == {"n": "step"}


async def test_hooks_of_a_state_that_do_not_pass_through_are_called(kit, flow):
    seen = []

    class Loud(MachineHooks):
        def on_state_enter(self, state_name, context):
            seen.append("enter")
            return context

        async def on_state_exit(self, state_name, context, output):
            seen.append("exit")
            return output

        def on_transition(self, from_state, to_state, context):
            return "other"

        def on_action(self, state_name, action_name, context):
            raise Broken

        def on_error(self, state_name, error, context):
            return "start"

    kit.parts.hooks.register("test", Loud)
    states = {
        "first": act("x", to("done"), type="initial"),
        "start": {"hooks": "test", "transitions": [to("done")]},
        "done": DONE,
        "other": {"type": "final", "output": {"n": 9}},
    }
    assert await kit.machine(flow(states, {"n": 0})).run() == {"n": 9}
    assert seen == ["enter", "enter", "exit"]
