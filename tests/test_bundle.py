"""A machine file becomes one self-contained dict, and everything wrong with it is said with its place."""

# ruff: noqa: E501  (a case of a table is one line)

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from flatfleet.runtime.bundle import Bundle, InputSpec, inputs, load, used_inputs
from flatfleet.runtime.bundle.yamlmap import read
from flatfleet.runtime.errors import BundleError, UsageError

HEAD = "spec: flatmachine\nspec_version: '4.2.1'\n"

CHILD = (
    HEAD
    + """data:
  name: child
  context: {text: input.text, note: "{{ input.who }}!"}
  states:
    done: {type: final, output: {text: context.text, note: context.note}}
"""
)

PARENT = (
    HEAD
    + """data:
  name: parent
  context: {words: input.words}
  machines: {child: child.yml}
  states:
    call:
      type: initial
      machine: child
      input: {text: context.words, who: "{{ context.words[0] }}"}
      output_to_context: {got: output}
      transitions: [{to: end}]
    end: {type: final, output: {got: context.got}}
"""
)

WORKER = (
    HEAD
    + """data:
  name: worker
  context: {item: input.item}
  machines: {task: original.yml}
  states:
    process:
      machine: task
      input: {title: "{{ context.item.title }}", gone: context.item.gone}
      transitions: [{to: end}]
    end: {type: final}
"""
)

TASK = (
    HEAD
    + """metadata:
  inputs: {title: {type: string}, body: {type: string, description: What to read}}
data:
  name: my_task
  context: {title: input.title, body: "{{ input.body | upper }}"}
  states: {end: {type: final, output: {body: context.body}}}
"""
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return name


def problems(name: str, **options: Any) -> list[str]:
    with pytest.raises(BundleError) as caught:
        load(name, **options)
    return caught.value.problems


def states(body: str, extra: str = "") -> str:
    """A machine whose states begin in line 5 (further data after them, so that the lines stay)."""
    return f"{HEAD}data:\n  states:\n{body}\n{extra}"


DONE = "    done: {type: final}\n"

WRONG: list[tuple[str, str, list[str]]] = [
    (states("    a: {transitons: [], transitions: [{to: a}]}"), "5:9", ["unknown key 'transitons'", "Did you mean 'tr"]),
    ("spec: flatmachne\nspec_version: '4'\ndata: {states: {a: {type: final}}}", "1:7", ['"flatmachne"', "flatmachine'?"]),
    (HEAD, "1:1", ["the file has no `data`"]),
    (states("    a: {type: final}\n    a: {type: final}"), "6:5", ["duplicate key 'a'", "line 5"]),
    (states("    a: [}"), "5:9", ["not YAML"]),
    (states("    on: {type: final}"), "5:5", ["the key 'on' is read as bool", "quotes"]),
    (states(DONE, "  context: {day: 2024-01-02}"), "7:18", ["timestamp", "quotes"]),
    (states("    a: {type: initial, transitions: [{to: b}]}\n    b: {type: initial, transitions: [{to: a}]}"), "6:15", ["one initial state", "'a'"]),
    (states("    claim: {transitions: [{to: clam}]}"), "5:32", ["unknown state 'clam'", "Did you mean 'claim'?"]),
    (states("    a: {transitions: [{to: done}], on_error: {default: dne}}\n" + DONE), "5:56", ["'dne'", "'done'?"]),
    (states("    a: {transitions: [{to: done}], on_error: dne}\n" + DONE), "5:46", ["'dne'"]),
    (states("    a:\n      transitions:\n        - {condition: context.x, to: done}\n" + DONE), "7:12", ["last transition"]),
    (states("    a: {transitions: [{to: a}, {to: done}]}\n" + DONE), "5:28", ["never taken"]),
    (states("    a: {}"), "5:5", ["no transitions and is not final"]),
    (states("    a: {type: final, transitions: [{to: a}]}"), "5:22", ["a final state has no transitions"]),
    (states("    a: {type: final}\n    lost: {transitions: [{to: a}]}"), "6:5", ["'lost' is never reached", "'a'"]),
    (states("    a: {action: go, transitions: [{to: done}]}\n" + DONE), "5:9", ["`action` needs `hooks`"]),
    (states("    a: {action: cliam, hooks: work, transitions: [{to: done}]}\n" + DONE), "5:17", ["'cliam'", "'claim'?"]),
    (states("    a: {action: claim, hooks: wrok, transitions: [{to: done}]}\n" + DONE), "5:31", ["'wrok'", "'work'?"]),
    (states(DONE, "  lifecycle_hooks: [work, wrok]"), "7:27", ["lifecycle_hooks", "'work'?"]),
    (states("    a: {agent: reder, transitions: [{to: done}]}\n" + DONE, "  agents: {reader: {type: t}}"), "5:16", ["unknown agent 'reder'", "'reader'?"]),
    (states("    a: {machine: tsk, transitions: [{to: done}]}\n" + DONE), "5:18", ["unknown machine 'tsk'", "names none"]),
    (states("    a: {machine: [tsk], transitions: [{to: done}]}\n" + DONE), "5:19", ["unknown machine 'tsk'"]),
    (states("    a: {launch: tsk, transitions: [{to: done}]}\n" + DONE), "5:17", ["unknown machine 'tsk'"]),
    (states(DONE, "  context: {machine: 1}"), "7:13", ["`context.machine` is reserved"]),
    (states("    a: {agent: r, output_to_context: {machine: output}, transitions: [{to: done}]}\n" + DONE, "  agents: {r: {type: t}}"), "5:39", ["reserved"]),
    (states(DONE, "  context: {a: input.nme}\nmetadata: {inputs: {name: {type: string}}}"), "7:16", ["input.nme is not declared", "'name'?"]),
    (states(DONE, "metadata: {inputs: {name: {type: string}}}"), "7:21", ["'name' is declared", "never uses it"]),
    (states(DONE, "metadata: {inputs: {name: {type: text}}}"), "7:34", ['"text" is not allowed', "string"]),
    (states(DONE, "  context: {n: input.n}\nmetadata: {inputs: {n: {type: integer, default: x}}}"), "8:49", ["'x' is not of its type"]),
    (states("    a: {agent: r, input: {q: input.txt}, transitions: [{to: done}]}\n" + DONE, "  agents: {r: {type: t}}\n  context: {text: input.text}"), "5:30", ["input.txt", "'text'?"]),
    (states("    a: {transitions: [{condition: context.x is 1, to: done}, {to: done}]}\n" + DONE), "5:35", ["no operator Is"]),
    (states("    a: {transitions: [{condition: len(context.x), to: done}, {to: done}]}\n" + DONE), "5:35", ["no Call"]),
    (states("    a: {transitions: [{condition: output.x == 1, to: done}, {to: done}]}\n" + DONE), "5:35", ["only `context`"]),
    (states("    a: {transitions: [{condition: context.x > -1, to: done}, {to: done}]}\n" + DONE), "5:35", ["no negative numbers"]),
    (states("    a: {transitions: [{condition: context.x ==, to: done}, {to: done}]}\n" + DONE), "5:35", ["cannot be read"]),
    (states("    a: {transitions: [{condition: '{{ context.x }}', to: done}, {to: done}]}\n" + DONE), "5:35", ["not a template"]),
    (states("    a: {type: final, output: {q: '{{ context.x'}}"), "5:34", ["does not compile"]),
    (states("    a: {type: final, output: {q: '{{ context.x | shout }}'}}"), "5:34", ["No filter named 'shout'"]),
    (states("    a: {type: final, output: {q: '{{ contxt.x }}'}}"), "5:34", ["`contxt`", "'context'"]),
    (states("    a: {type: final, output: {q: contxt.x}}"), "5:34", ["'contxt.x' is taken as text", "'context.x'"]),
    (states("    a: {type: final, output: {q: 'context.x[0]'}}"), "5:34", ["no bare path", "{{ context.x[0] }}"]),
    (states("    a: {type: final, output: {q: [{r: context.x}]}}"), "5:39", ["does not render"]),
    (states("    a: {foreach: context.x, transitions: [{to: done}]}\n" + DONE), "5:9", ["`foreach` needs `machine`"]),
    (states("    a: {foreach: context.x, machine: m, input: {q: context.y}, transitions: [{to: done}]}\n" + DONE, "  machines: {m: child.yml}"), "5:52", ["`context` cannot be seen", "item"]),
    (states("    a: {foreach: context.x, machine: m, input: {q: item.y}, transitions: [{to: done}]}\n" + DONE, "  machines: {m: child.yml}"), "5:52", ["{{ item.y }}"]),
    (states("    a: {wait_for: c, action: x, hooks: work, transitions: [{to: done}]}\n" + DONE), "5:22", ["does nothing else"]),
    (states("    a: {timeout: 0, transitions: [{to: done}]}\n" + DONE), "5:18", ["more than 0"]),
    (states(DONE, "  settings: {max_steps: -1}"), "7:25", ["at least 0, got -1"]),
    (states(DONE, "  settings: {max_parallel: 0}"), "7:28", ["at least 1"]),
    (states(DONE, "  settings: {max_steps: '{{ 1 }}'}"), "7:25", ["must be a whole number, got a text"]),
    (states(DONE, "  persistence: {enabled: true}"), "7:3", ["no `backend`"]),
    (states("    'a b': {type: final}"), "5:5", ["'a b' is not a name"]),
    (states("    a: final"), "5:8", ["data.states.a must be a mapping"]),
    (states(DONE, "  machines: {child: chid.yml}"), "7:21", ["machine 'child'", "'chid.yml'", "Did you mean 'child.yml'?"]),
    (states(DONE, "  agents: {reader: ../gone/reader.yml}"), "7:20", ["reader", "does not exist"]),
    (states(DONE, "  machines: {child: {spec: flatmachine, spec_version: '4', data: {states: {a: {}}}}}"), "7:76", ["state 'a' has no transitions"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "words"), WRONG, ids=[words[0] for _, _, words in WRONG])
def test_a_wrong_file_says_where_and_what(text: str, place: str, words: list[str]) -> None:
    write("child.yml", CHILD)
    found = problems(write("m.yml", text), known={"work": ["claim", "x"]})
    hits = [line for line in found if line.startswith(f"m.yml:{place}: ")]
    assert any(all(word in line for word in words) for line in hits), "\n".join(found)


def test_all_problems_come_together_in_the_order_of_the_file() -> None:
    text = states("    a: {transitons: 1, transitions: [{to: b}]}\n    c: {type: fnal}", "  settings: {max_steps: -1}")
    lines = [int(line.split(":")[1]) for line in problems(write("m.yml", text))]
    assert lines == sorted(lines)
    assert len(lines) >= 5


RIGHT = [
    states("    a: {action: x, hooks: [work, {name: log, args: {a: 1}}], transitions: [{to: done}]}\n" + DONE),
    states("    a:\n      transitions:\n        - {condition: \"not context.a and context['b'] + 1 >= 2 or true\", to: a}\n        - {to: done}\n" + DONE),
    states("    a: {foreach: context.x, as: output, key: output.id, machine: m, input: {q: output.id}, transitions: [{to: done}]}\n" + DONE, "  machines: {m: child.yml}"),
    states("    a: {foreach: context.x, machine: m, input: {q: '{{ item.id }}'}, mode: any, transitions: [{to: done}]}\n" + DONE, "  machines: {m: child.yml}"),
    states("    a: {machine: [{name: m, input: {text: context.t}}], transitions: [{to: done}]}\n" + DONE, "  machines: {m: child.yml}"),
    states("    a: {agent: r, session_id: context.machine.execution_id, tool_loop: {max_turns: '{{ context.n | int }}'}, transitions: [{to: done}]}\n" + DONE, "  agents: {r: {type: t, ref: an-id}}"),
    states("    a: {wait_for: 'fleet/{{ context.n }}/scale', output_to_context: {m: output}, on_error: {E: done, default: a}, transitions: [{to: a}]}\n" + DONE),
    states(DONE, "  settings: {max_steps: 0, max_parallel: 4, fleet: {min: 1}, mine: {a: 1}}\n  persistence: {enabled: true, backend: sqlite, checkpoint_on: [waiting]}"),
    states(DONE, "  context: {all: input, j: '{% for x in input.xs %}{{ x | tojson }}{{ loop.index }}{% endfor %}', t: 'text.html'}\nmetadata: {inputs: {xs: {type: array, default: []}}, mine: 1}"),
    states("    a: &a {transitions: [{to: b}]}\n    b: {<<: *a, transitions: [{to: done}]}\n" + DONE),
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_what_the_sdk_can_run_is_accepted(text: str) -> None:
    write("child.yml", CHILD)
    assert load(write("m.yml", text), known={"work": ["x"], "log": []})["spec"] == "flatmachine"


def test_machines_are_inlined_relative_to_the_file_that_names_them() -> None:
    write("lib/child.yml", CHILD)
    write("lib/parent.yml", PARENT)
    top = write("top.yml", states(DONE, "  machines: {a: lib/parent.yml, b: lib/child.yml}"))
    bundle = load(top)
    child = bundle["data"]["machines"]["a"]["data"]["machines"]["child"]
    assert isinstance(child, Bundle)
    assert child.name == "child"
    assert child.source == Path("lib/child.yml").resolve()
    assert child is bundle["data"]["machines"]["b"], "one file is one bundle, so its cache is shared"


def test_a_circle_is_named() -> None:
    write("a.yml", states(DONE, "  machines: {b: b.yml}"))
    write("b.yml", states(DONE, "  machines: {a: a.yml}"))
    (problem,) = problems("a.yml")
    assert problem.startswith("b.yml:7:17: machine 'a' closes a circle: a.yml → b.yml → a.yml")


def test_a_missing_file_lists_what_is_there() -> None:
    write("machines/worker.yml", CHILD)
    (problem,) = problems("machines/workr.yml")
    assert problem == "there is no 'workr.yml' in machines/ — known: worker.yml. Did you mean 'worker.yml'?"


def test_problems_of_a_child_name_the_child() -> None:
    write("child.yml", states("    a: {}"))
    assert problems(write("p.yml", PARENT))[0].startswith("child.yml:5:5: ")


class TestTask:
    def test_it_takes_the_slot_and_gets_exactly_what_it_uses(self) -> None:
        write("my/task.yml", TASK)
        bundle = load(write("worker.yml", WORKER), task="my/task.yml")
        assert bundle["data"]["machines"]["task"].name == "my_task"
        assert bundle["data"]["states"]["process"]["input"] == {
            "title": "{{ context.item.title }}",
            "body": "context.item.body",
        }

    def test_it_is_found_in_a_machine_below(self) -> None:
        write("task.yml", TASK)
        write("worker.yml", WORKER)
        bundle = load(write("launcher.yml", states(DONE, "  machines: {worker: worker.yml}")), task="task.yml")
        assert bundle["data"]["machines"]["worker"]["data"]["machines"]["task"].name == "my_task"

    @pytest.mark.parametrize(
        ("shape", "body"),
        [
            ("as: output, input: {title: output.item.title}", "output.item.body"),
            ("as: output, input: {}", "output.body"),
            ("as: job, input: {}", "{{ job.body }}"),
        ],
    )
    def test_in_a_foreach_the_item_is_the_source(self, shape: str, body: str) -> None:
        write("task.yml", TASK)
        text = f"    a: {{foreach: context.batch, machine: task, {shape}, transitions: [{{to: done}}]}}\n{DONE}"
        bundle = load(write("c.yml", states(text, "  machines: {task: x.yml}")), task="task.yml")
        assert bundle["data"]["states"]["a"]["input"]["body"] == body

    def test_without_a_slot_it_is_an_error(self) -> None:
        write("task.yml", TASK)
        write("child.yml", CHILD)
        (problem,) = problems(write("p.yml", PARENT), task="task.yml")
        assert "no machine is called 'task'" in problem
        assert "child" in problem

    def test_a_missing_task_is_said_once(self) -> None:
        write("original.yml", CHILD)
        (problem,) = problems(write("worker.yml", WORKER), task="tsk.yml")
        assert problem.startswith("--task: there is no 'tsk.yml'")

    def test_the_new_input_is_read_by_the_stock_machine(self) -> None:
        from flatmachines import FlatMachine

        write("task.yml", TASK)
        text = WORKER.replace("end: {type: final}", "end: {type: final, output: {r: context.r}}")
        text = text.replace("      transitions", "      output_to_context: {r: output.body}\n      transitions")
        machine = FlatMachine(config_dict=load(write("worker.yml", text), task="task.yml"))
        assert asyncio.run(machine.execute(input={"item": {"title": "t", "body": "b"}})) == {"r": "B"}


def test_inputs_and_used_inputs() -> None:
    task = load(write("task.yml", TASK))
    assert inputs(task)["body"] == InputSpec("body", "string", "What to read")
    assert used_inputs(task) == {"title", "body"}
    assert used_inputs(load(write("child.yml", CHILD))) == {"text", "who"}
    assert inputs(Bundle.of({})) == {}


class TestPackages:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write("site/parcel_of_machines/__init__.py", "")
        write("site/parcel_of_machines/machines/parent.yml", PARENT)
        write("site/parcel_of_machines/machines/child.yml", CHILD)
        write("site/parcel_of_machines/extra/task.yml", TASK)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def test_machines_folder_first_then_the_package(self) -> None:
        assert load("package:parcel_of_machines/parent.yml")["data"]["machines"]["child"].name == "child"
        assert load("package:parcel_of_machines/extra/task.yml").name == "my_task"

    def test_a_machine_may_name_one(self) -> None:
        text = states(DONE, "  machines: {p: 'package:parcel_of_machines/parent.yml'}")
        assert load(write("m.yml", text))["data"]["machines"]["p"].name == "parent"

    @pytest.mark.parametrize(
        ("ref", "words"),
        [
            ("package:parcel_of_machines/parnt.yml", ["known: child.yml, parent.yml", "Did you mean 'parent.yml'?"]),
            ("package:no_such_parcel/x.yml", ["no package 'no_such_parcel'"]),
            ("package:parcel_of_machines", ["incomplete", "package:NAME/FILE"]),
        ],
    )
    def test_errors(self, ref: str, words: list[str]) -> None:
        (problem,) = problems(ref)
        assert all(word in problem for word in words), problem


PROFILES = """spec: flatprofile
spec_version: '4.2.1'
data:
  default: cheap
  model_profiles:
    cheap: {provider: openai, name: small, temperature: 0.5}
    fast: {name: quick}
    forced: {name: forced}
"""
AGENT = "spec: flatagent\nspec_version: '4.2.1'\ndata: {prompt: prompts/p.yml, profile: fast}\n"
PROMPT = "spec: prompt\nspec_version: '4.2.1'\ndata: {name: reader, user: 'Read {{ input.text }}', output: {a: {type: str}}}\n"


class TestAgents:
    @pytest.fixture(autouse=True)
    def folder(self) -> None:
        write("agents/read.flatagent.yml", AGENT)
        write("agents/read.offline.yml", "type: offline\nconfig: {role: read}\n")
        write("agents/prompts/p.yml", PROMPT)
        write("agents/profiles.yml", PROFILES)

    def machine(self, ref: str) -> str:
        text = "    a: {agent: r, transitions: [{to: done}]}\n" + DONE
        return write("machines/m.yml", states(text, f"  agents: {{r: {ref}}}"))

    def agent(self, ref: str, kind: str | None = None) -> Any:
        return load(self.machine(ref), agents=kind)["data"]["agents"]["r"]

    def test_prompt_and_profile_become_part_of_it(self) -> None:
        data = self.agent("../agents/read.flatagent.yml")["data"]
        assert data["prompt"] == {"name": "reader", "user": "Read {{ input.text }}", "output": {"a": {"type": "str"}}}
        assert data["profile"]["spec"] == "flatprofile"
        merged = {"provider": "openai", "name": "quick", "temperature": 0.5}
        assert data["profile"]["data"] == {"model_profiles": {"fast": merged}, "default": "fast"}

    @pytest.mark.parametrize("override", ["", "  override: forced\n"])
    def test_the_sdk_resolves_it_as_it_resolves_the_file(self, override: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from flatagents import FlatAgent

        monkeypatch.setattr(FlatAgent, "_init_backend", lambda self: None)
        write("agents/profiles.yml", PROFILES + override)
        original = FlatAgent(config_file="agents/read.flatagent.yml", backend="litellm")
        ours = FlatAgent(config_dict=self.agent("../agents/read.flatagent.yml"), backend="litellm")
        for name in ("agent_name", "model", "temperature", "_user_prompt_template", "output_schema"):
            assert getattr(ours, name) == getattr(original, name), name
        assert ours.model == ("openai/forced" if override else "openai/quick")

    def test_paths_and_profiles_may_also_stand_beside_the_machine(self) -> None:
        for name, text in (("prompts/q.yml", PROMPT), ("profiles.yml", PROFILES)):
            write(f"machines/{name}", text)
        Path("agents/profiles.yml").unlink()
        write("agents/read.flatagent.yml", AGENT.replace("p.yml", "q.yml"))
        assert self.agent("../agents/read.flatagent.yml")["data"]["prompt"]["name"] == "reader"

    def test_the_sdk_form_with_a_ref_is_merged(self) -> None:
        write("agents/c.json", json.dumps({"a": 1, "b": 1e-05}))
        got = self.agent("{type: claude-code, ref: ../agents/c.json, config: {a: 2}}")
        assert got == {"type": "claude-code", "config": {"a": 2, "b": 1e-05}}
        got = self.agent("{type: flatagent, ref: ../agents/read.flatagent.yml}")
        assert got["config"]["data"]["prompt"]["name"] == "reader"

    def test_an_old_agent_gets_its_model(self) -> None:
        write(
            "agents/old.yml", "{spec: flatagent, spec_version: '1', data: {model: {profile: fast, seed: 1}, user: hi}}"
        )
        model = {"provider": "openai", "name": "quick", "temperature": 0.5, "seed": 1}
        assert self.agent("../agents/old.yml")["data"]["model"] == model

    @pytest.mark.parametrize(
        ("ref", "kind", "offline"),
        [
            ("../agents/read.offline.yml", None, True),
            ("../agents/read.offline.yml", "flatagent", False),
            ("../agents/read.flatagent.yml", None, False),
            ("../agents/read.flatagent.yml", "offline", True),
            ("../agents/alone.flatagent.yml", "offline", False),
        ],
    )
    def test_the_switch_takes_the_twin(self, ref: str, kind: str | None, offline: bool) -> None:
        write("agents/alone.flatagent.yml", AGENT)
        assert (self.agent(ref, kind).get("type") == "offline") is offline

    def test_a_twin_that_is_not_there(self) -> None:
        write("agents/alone.offline.yml", "type: offline\n")
        (problem,) = problems(self.machine("../agents/alone.offline.yml"), agents="flatagent")
        assert problem.startswith("machines/m.yml:8:15: r: no flatagent stands beside")
        assert "read.flatagent.yml" in problem

    def test_an_unknown_switch(self) -> None:
        with pytest.raises(UsageError, match="Did you mean 'offline'"):
            load(self.machine("../agents/read.offline.yml"), agents="ofline")

    @pytest.mark.parametrize(
        ("name", "text", "start", "words"),
        [
            ("agents/read.flatagent.yml", AGENT.replace("fast", "fst"), "agents/read.flatagent.yml:3:40", "'fast'?"),
            (
                "agents/read.flatagent.yml",
                AGENT.replace("p.yml", "q.yml"),
                "agents/read.flatagent.yml:3:16",
                "'p.yml'?",
            ),
            ("agents/read.flatagent.yml", "[]", "agents/read.flatagent.yml:1:1", "mapping"),
            ("agents/read.flatagent.yml", "{a: 1}", "agents/read.flatagent.yml:1:1", "spec: flatagent"),
            ("agents/prompts/p.yml", "data: {user: '{{ x'}", "agents/prompts/p.yml:1:14", "does not compile"),
            ("agents/prompts/p.yml", "data: {system: x}", "agents/prompts/p.yml:1:1", "`user`"),
            ("agents/profiles.yml", PROFILES + "  override: nope\n", "agents/profiles.yml:9:13", "'nope'"),
            ("agents/profiles.yml", "{}", "agents/profiles.yml:1:1", "model_profiles"),
        ],
    )
    def test_errors_name_the_file_they_are_in(self, name: str, text: str, start: str, words: str) -> None:
        write(name, text)
        (problem,) = problems(self.machine("../agents/read.flatagent.yml"))
        assert problem.startswith(start + ": ")
        assert words in problem

    def test_no_profiles_anywhere(self) -> None:
        Path("agents/profiles.yml").unlink()
        (problem,) = problems(self.machine("../agents/read.flatagent.yml"))
        assert "needs a profiles.yml in agents/ or machines/" in problem


class TestBundle:
    def test_of_wraps_children_and_leaves_the_dict_alone(self) -> None:
        child = yaml.safe_load(CHILD)
        config = yaml.safe_load(PARENT)
        config["data"]["machines"]["child"] = child
        before = copy.deepcopy(config)
        bundle = Bundle.of(config)
        assert isinstance(bundle["data"]["machines"]["child"], Bundle)
        assert config == before
        assert type(config["data"]["machines"]["child"]) is dict
        assert Bundle.of(bundle) is bundle

    def test_raw_is_json_and_yaml_alike(self) -> None:
        odd = "🚀 é \x7f\x85\u2028\ufeff\t\"\\ 1e-05 '"
        config: dict[str, Any] = {
            "data": {"name": odd, odd: [1e-05, 1e22, -2e-7, 1.5e300, 0.1, True, None, 3, {}, [], "1e-05"]}
        }
        raw = Bundle.of(config).raw
        assert json.loads(raw) == config
        assert yaml.safe_load(raw) == config
        assert yaml.load(raw, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) == config

    def test_the_hash_is_that_of_the_sdk_and_stable(self) -> None:
        from flatmachines import config_hash

        write("child.yml", CHILD)
        one, two = load(write("p.yml", PARENT)), load("p.yml")
        assert one.hash == two.hash == config_hash(one.raw) == Bundle.of(json.loads(one.raw)).hash
        write("child.yml", CHILD.replace("!", "?"))
        assert load("p.yml").hash != one.hash

    @pytest.mark.parametrize(
        "again", [lambda it: pickle.loads(pickle.dumps(it)), copy.copy, copy.deepcopy, lambda it: it.copy()]
    )
    def test_copies_are_equal_and_drop_the_cache(self, again: Any) -> None:
        write("child.yml", CHILD)
        bundle = load(write("p.yml", PARENT))
        bundle.cache["compiled"] = lambda: None
        other = again(bundle)
        assert isinstance(other, Bundle)
        assert isinstance(other["data"]["machines"]["child"], Bundle)
        assert (other, other.hash, other.source) == (bundle, bundle.hash, bundle.source)
        assert other.cache == {}

    def test_it_runs_under_the_stock_machine(self) -> None:
        from flatmachines import FlatMachine

        write("child.yml", CHILD)
        bundle = load(write("p.yml", PARENT))
        hash_ = bundle.hash
        machine = FlatMachine(config_dict=bundle)
        result = asyncio.run(machine.execute(input={"words": ["a", "b"]}))
        assert result == {"got": {"text": ["a", "b"], "note": "a!"}}
        assert Bundle(bundle).hash == hash_, "the run has not changed it"
        assert yaml.safe_load(machine._config_raw) == bundle, "what the SDK stores is plain YAML"

    def test_it_needs_no_files_any_more(self) -> None:
        from flatmachines import FlatMachine

        write("child.yml", CHILD)
        bundle = load(write("p.yml", PARENT))
        Path("child.yml").unlink()
        assert asyncio.run(FlatMachine(config_dict=bundle).execute(input={"words": ["a"]}))["got"]["note"] == "a!"


class TestReading:
    @pytest.mark.parametrize(
        ("text", "start", "words"),
        [
            ("", "f.yml:1:1", "empty"),
            ("a: 1\n---\nb: 2\n", "f.yml:2:1", "not YAML"),
            ("a: !!python/object:os.system {}\n", "f.yml:1:4", "not plain data"),
            ("a: .inf\n", "f.yml:1:4", "no place in JSON"),
            ("a: &x [*x]\n", "f.yml:1:4", "refers to the value that it stands in"),
            ("1: x\n", "f.yml:1:1", "the key '1' is read as int"),
            ("a: 1\nb: {c: 1, c: 2}\n", "f.yml:2:11", "duplicate key 'c'"),
            ("a: 2024-13-45\n", "f.yml:1:4", "timestamp"),
        ],
    )
    def test_what_is_no_plain_yaml(self, text: str, start: str, words: str) -> None:
        with pytest.raises(BundleError) as caught:
            read(Path(write("f.yml", text)))
        assert caught.value.problems[0].startswith(start + ": ")
        assert words in caught.value.problems[0]

    def test_aliases_that_explode(self) -> None:
        lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
        with pytest.raises(BundleError, match="unfold this to more than"):
            read(Path(write("f.yml", "\n".join(lines))))

    def test_bytes_that_are_no_text(self) -> None:
        Path("f.yml").write_bytes(b"a: \xff\xfe\x00")
        with pytest.raises(BundleError, match=r"f\.yml:1:1: not YAML"):
            read(Path("f.yml"))

    def test_json_says_its_line(self) -> None:
        with pytest.raises(BundleError, match=r"f\.json:2:"):
            read(Path(write("f.json", '{"a": 1,\n b}')))

    def test_positions(self) -> None:
        doc = read(Path(write("f.yml", "a:\n  b: [1, {c: 2}]\nm: &m {x: 1}\nn: {<<: *m, y: 2}\n")))
        assert doc.at(("a", "b", 1, "c")) == "f.yml:2:14"
        assert doc.at(("a", "b", 1, "c"), key=True) == "f.yml:2:11"
        assert doc.at(("a",)) == "f.yml:1:1"
        assert doc.at(("a", "nothing")) == "f.yml:1:1"
        assert doc.at(("n", "x")) == "f.yml:3:11"
        assert doc.data["n"] == {"x": 1, "y": 2}
