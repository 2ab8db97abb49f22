"""Say everything that is wrong with one machine's data, before anything runs: schema, states, names, values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from flatfleet.runtime import distributed, fleet_settings
from flatfleet.runtime.bundle.lint_schema import Fault, schema_faults
from flatfleet.runtime.bundle.lint_values import value_faults
from flatfleet.runtime.bundle.shapes import initial_state, listing, mapping, named, targets
from flatfleet.runtime.bundle.yamlmap import Where
from flatfleet.runtime.errors import did_you_mean

Known = Mapping[str, Collection[str]] | None

_NEEDS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("action", ("hooks",)),
    ("foreach", ("machine",)),
    ("as", ("foreach",)),
    ("key", ("machine",)),
    ("mode", ("machine",)),
    ("launch_input", ("launch",)),
    ("input", ("agent", "machine")),
    ("output_to_context", ("agent", "machine", "wait_for")),
    ("execution", ("agent",)),
    ("tool_loop", ("agent",)),
    ("session_id", ("agent",)),
)
_SETTINGS = ("max_steps", "max_parallel", "tasks", "fleet", "distributed", "max_depth", "parallel_fallback")
_SIGNAL_ONLY = ("action", "launch", "machine", "foreach", "agent")


def check(config: Any, known: Known = None) -> list[Fault]:
    """Return all faults of a machine and of the machines written inside it.

    `known` maps each hook's registry name to its actions; without it, hooks and actions are not checked.
    """
    return [*schema_faults(config), *_machine(mapping(config), (), known)]


def _machine(config: Mapping[str, Any], base: Where, known: Known) -> Iterator[Fault]:
    data = mapping(config.get("data"))
    states = mapping(data.get("states"))
    where: Where = (*base, "data")
    for name, state in states.items():
        if isinstance(state, dict):
            at: Where = (*where, "states", name)
            yield from _shape(name, state, at)
            yield from _transitions(name, state, states, at)
            yield from _names(name, state, data, at)
            yield from _hooks(f"state '{name}'", state.get("hooks"), state.get("action"), (*at, "hooks"), known)
    for name in mapping(data.get("settings")):
        if name not in _SETTINGS and (close := get_close_matches(str(name), _SETTINGS, n=1, cutoff=0.75)):
            text = f"settings has '{name}', which nothing reads — did you mean '{close[0]}'?"
            yield Fault((*where, "settings", name), text, True)
    for fault in fleet_settings.located(fleet_settings.inside(config)):
        yield Fault((*base, *fleet_settings.INSIDE, *fault.path), fault.text, fault.key)
    for fault in distributed.faults(distributed.inside(config)):
        yield Fault((*base, *distributed.INSIDE, *fault.path), fault.text, fault.key)
    yield from _reachable(states, (*where, "states"))
    yield from _hooks("lifecycle_hooks", data.get("lifecycle_hooks"), None, (*where, "lifecycle_hooks"), known)
    yield from value_faults(config, base)
    for name, machine in mapping(data.get("machines")).items():
        if isinstance(machine, dict):
            yield from _machine(machine, (*where, "machines", name), known)


def _shape(name: str, state: Mapping[str, Any], at: Where) -> Iterator[Fault]:
    for key, needs in _NEEDS:
        if key in state and not any(need in state for need in needs):
            wanted = " or ".join(f"`{need}`" for need in needs)
            yield Fault((*at, key), f"state '{name}': `{key}` needs {wanted}, without it nothing is done with it", True)
    if "output" in state and state.get("type") != "final":
        yield Fault((*at, "output"), f"state '{name}': only a final state has `output` — use `output_to_context`", True)
    if "wait_for" in state:
        for key in _SIGNAL_ONLY:
            if key in state:
                text = f"state '{name}': a state with `wait_for` does nothing else — move `{key}` to the next state"
                yield Fault((*at, key), text, True)
    called = state.get("machine")
    if "foreach" in state and isinstance(called, list):
        yield Fault((*at, "machine"), f"state '{name}': `foreach` runs one machine, got a list of {len(called)}")
    names = [each for each, _ in named(called)]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        text = f"state '{name}': machine '{twice[0]}' is named twice, so one result would be lost — use `foreach`"
        yield Fault((*at, "machine"), text)


def _transitions(name: str, state: Mapping[str, Any], states: Mapping[str, Any], at: Where) -> Iterator[Fault]:
    steps = [mapping(step) for step in listing(state.get("transitions"))]
    at_steps: Where = (*at, "transitions")
    if state.get("type") == "final":
        if steps:
            yield Fault(at_steps, f"state '{name}': a final state has no transitions — remove them, or `type: final`")
    elif not steps:
        text = f"state '{name}' has no transitions and is not final — add `transitions`, or `type: final`"
        yield Fault(at, text, True)
    elif str(steps[-1].get("condition") or "").strip():
        text = f"state '{name}': the last transition has a condition; if it fails too, the run would end without a word"
        yield Fault((*at_steps, len(steps) - 1, "condition"), f"{text} — end with a plain `to:`", True)
    for index, step in enumerate(steps[:-1]):
        if not str(step.get("condition") or "").strip():
            text = f"state '{name}': transitions after this one are never taken — give it a `condition`, or put it last"
            yield Fault((*at_steps, index, "to"), text)
            break
    for where, target in targets(state):
        if target not in states:
            what = f"state '{name}': unknown state '{target}'{did_you_mean(target, states)}"
            yield Fault((*at, *where), what)


def _reachable(states: Mapping[str, Any], at: Where) -> Iterator[Fault]:
    starts = [name for name, state in states.items() if mapping(state).get("type") == "initial"]
    for name in starts[1:]:
        text = f"state '{name}': a machine has one initial state, and '{starts[0]}' is it already"
        yield Fault((*at, name, "type"), text)
    first = initial_state(states)
    seen: set[str] = set()
    todo = [*starts, *([first] if first else [])]
    while todo:
        name = todo.pop()
        if name in states and name not in seen:
            seen.add(name)
            todo += [target for _, target in targets(mapping(states[name]))]
    for name in states:
        if name not in seen:
            text = (
                f"state '{name}' is never reached: nothing leads to it from '{first}' — add a transition or remove it"
            )
            yield Fault((*at, name), text, True)


def _names(name: str, state: Mapping[str, Any], data: Mapping[str, Any], at: Where) -> Iterator[Fault]:
    wanted: list[tuple[str, str, Where]] = []
    for key in ("agent", "machine", "launch"):
        kind = "agent" if key == "agent" else "machine"
        wanted += [(kind, each, (key, *where)) for each, where in named(state.get(key))]
    for kind, each, where in wanted:
        known = mapping(data.get(f"{kind}s"))
        if each not in known:
            hint = did_you_mean(each, known) or f" — data.{kind}s names none"
            yield Fault((*at, *where), f"state '{name}': unknown {kind} '{each}'{hint}")


def _hooks(owner: str, ref: Any, action: Any, at: Where, known: Known) -> Iterator[Fault]:
    if known is None or ref is None:
        return
    refs = ref if isinstance(ref, list) else [ref]
    names = [each if isinstance(each, str) else mapping(each).get("name") for each in refs]
    for index, name in enumerate(names):
        if isinstance(name, str) and name not in known:
            where: Where = (*at, index) if isinstance(ref, list) else at
            yield Fault(where, f"{owner}: unknown hooks '{name}'{did_you_mean(name, known)}")
    found = [name for name in names if isinstance(name, str) and name in known]
    actions = {each for name in found for each in known[name]}
    if isinstance(action, str) and action not in actions and len(found) == len(names):
        hint = did_you_mean(action, actions) or " — they have no actions"
        text = f"{owner}: unknown action '{action}' of hooks {', '.join(found)}{hint}"
        yield Fault((*at[:-1], "action"), text)
