"""Follow a machine file's references until nothing is left to look up; collect every problem on the way."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flatfleet.runtime.bundle import agent_files, lint
from flatfleet.runtime.bundle.agent_files import AgentFiles
from flatfleet.runtime.bundle.core import Bundle, used_inputs
from flatfleet.runtime.bundle.expressions import is_bare
from flatfleet.runtime.bundle.refs import locate
from flatfleet.runtime.bundle.shapes import mapping
from flatfleet.runtime.bundle.yamlmap import Document, Where, read, shown
from flatfleet.runtime.errors import BundleError, UsageError, did_you_mean

TASK = "task"


class Loader:
    """One load: reads every file once, so that two uses of one machine are one bundle with one cache."""

    def __init__(self, agents: str | None, known: Mapping[str, Collection[str]] | None) -> None:
        if agents is not None and agents not in agent_files.KINDS:
            raise UsageError(f"unknown kind of agents '{agents}'{did_you_mean(agents, agent_files.KINDS)}")
        self._agents = AgentFiles(agents)
        self._known = known
        self._problems: dict[str, None] = {}
        self._done: dict[Path, Bundle] = {}
        self._open: list[Path] = []
        self._task: Bundle | None = None
        self._slots: list[str] = []
        self._replaced = False

    def load(self, ref: str, task: str | None) -> Bundle:
        """Return the bundle of `ref` with `task` in its task slot, or raise BundleError with all problems."""
        if task is not None:
            self._task = self._top(task, "--task: ")
            self._done, self._slots = {}, []
        bundle = self._top(ref, "")
        if self._task is not None and not self._replaced and bundle is not None:
            has = f"its machines: {', '.join(sorted(set(self._slots)))}" if self._slots else "it has no machines"
            self._add(f"{ref}: no machine is called '{TASK}' here or below, so {task} has no place — {has}")
        if self._problems or bundle is None:
            raise BundleError(_sorted(self._problems))
        return bundle

    def _top(self, ref: str, what: str) -> Bundle | None:
        try:
            path = locate(ref, Path.cwd())
        except UsageError as error:
            self._add(f"{what}{error}")
            return None
        return self._machine(path)

    def _add(self, *problems: str) -> None:
        self._problems.update(dict.fromkeys(problems))

    def _machine(self, path: Path) -> Bundle | None:
        if path in self._done:
            return self._done[path]
        try:
            doc = read(path)
        except BundleError as error:
            self._add(*error.problems)
            return None
        if not isinstance(doc.data, dict):
            self._add(f"{doc.at()}: a machine file is a mapping with `spec`, `spec_version` and `data`")
            return None
        self._add(*(f"{doc.at(fault.where, fault.key)}: {fault.text}" for fault in lint.check(doc.data, self._known)))
        self._open.append(path)
        bundle = self._inlined(doc.data, doc, ())
        self._open.pop()
        self._done[path] = bundle
        return bundle

    def _inlined(self, config: dict[str, Any], doc: Document, base: Where) -> Bundle:
        data = dict(mapping(config.get("data")))
        at: Where = (*base, "data")
        tasks = mapping(mapping(data.get("settings")).get("tasks"))
        for name in tasks:
            if name not in (machines := mapping(data.get("machines"))):
                place = doc.at((*at, "settings", "tasks", name), True)
                self._add(f"{place}: settings.tasks: unknown machine '{name}'{did_you_mean(name, machines)}")

        def machine(name: str, ref: Any, doc: Document, where: Where) -> Any:
            return (
                self._with_task(name, ref, tasks[name], doc, where)
                if name in tasks
                else self._child(name, ref, doc, where)
            )

        for kind, embed in (("agents", self._agent), ("machines", machine)):
            if isinstance(data.get(kind), dict):
                data[kind] = {name: embed(name, ref, doc, (*at, kind, name)) for name, ref in data[kind].items()}
        self._check_inputs(data, doc, at)
        if self._task is not None and TASK in mapping(data.get("machines")):
            states = mapping(data.get("states"))
            data["states"] = {name: _fed(state, used_inputs(self._task)) for name, state in states.items()}
        return Bundle({**config, "data": data} if "data" in config else config, doc.path)

    def _check_inputs(self, data: dict[str, Any], doc: Document, at: Where) -> None:
        """A child that declares its inputs must not be given others: they would be dropped without a word."""
        for state_name, state in mapping(data.get("states")).items():
            for kind, given in (("machine", "input"), ("launch", "launch_input")):
                called = mapping(state).get(kind)
                if not isinstance(called, str) or (self._task is not None and called == TASK):
                    continue
                child = mapping(mapping(data.get("machines")).get(called))
                declared = mapping(mapping(child.get("metadata")).get("inputs"))
                if not declared:
                    continue
                for name in mapping(mapping(state).get(given)):
                    if name not in declared:
                        where = doc.at((*at, "states", state_name, given, name), True)
                        text = f"state '{state_name}': machine '{called}' has no input '{name}'"
                        self._add(f"{where}: {text}{did_you_mean(name, declared)}")

    def _agent(self, _name: str, ref: Any, doc: Document, where: Where) -> Any:
        try:
            return self._agents.embed(ref, doc, where)
        except BundleError as error:
            self._add(*error.problems)
            return ref

    def _with_task(self, name: str, ref: Any, task: Any, doc: Document, where: Where) -> Any:
        """Return the machine of `ref` with the task that settings.tasks names for it, whatever `--task` is."""
        at: Where = (*where[:-2], "settings", "tasks", name)
        before = self._task, self._done, self._slots, self._replaced
        self._task, self._done, self._slots = None, {}, []
        self._task = self._child(f"{name}'s task", task, doc, at)
        self._done, self._replaced = {}, False
        child = self._child(name, ref, doc, where)
        if not self._replaced:
            self._add(f"{doc.at(at)}: settings.tasks: no machine is called '{TASK}' in '{name}' or below")
        self._task, self._done, self._slots, self._replaced = before
        return child

    def _child(self, name: str, ref: Any, doc: Document, where: Where) -> Any:
        self._slots.append(name)
        if name == TASK and self._task is not None:
            self._replaced = True
            return self._task
        if isinstance(ref, dict):
            return self._inlined(ref, doc, where)
        if not isinstance(ref, str):
            return ref
        try:
            path = locate(ref, doc.path.parent)
        except UsageError as error:
            self._add(f"{doc.at(where)}: machine '{name}': {error}")
            return ref
        if path in self._open:
            circle = " → ".join(shown(each) for each in [*self._open[self._open.index(path) :], path])
            self._add(f"{doc.at(where)}: machine '{name}' closes a circle: {circle} — a machine cannot contain itself")
            return ref
        return self._machine(path) or ref


def _sorted(problems: Iterable[str]) -> list[str]:
    """Order the problems of each file by line and column; the files stay in the order of their first problem."""
    order: dict[str, int] = {}
    keys: dict[str, tuple[int, int, int]] = {}
    for problem in problems:
        found = re.match(r"(.*?):(\d+):(\d+): ", problem)
        name, line, column = found.groups() if found else ("", 0, 0)
        keys[problem] = order.setdefault(name, len(order)), int(line), int(column)
    return sorted(keys, key=lambda problem: keys[problem])


def _fed(state: Any, used: set[str]) -> Any:
    """Return a state that calls the task, with an `input` of exactly what the new task uses.

    What the state maps already stays as written; the rest comes from the work item. In a `foreach` there is no
    context: there the item is what `as` names, or its field `item` if that is where the state takes its input from.
    """
    if not isinstance(state, dict) or state.get("machine") != TASK:
        return state
    written = mapping(state.get("input"))
    source = "context.item"
    if "foreach" in state:
        source = state.get("as") or "item"
        if any(re.search(rf"\b{source}\.item\b", str(value)) for value in written.values()):
            source += ".item"
    bare = is_bare(source)
    rest = {name: f"{source}.{name}" if bare else f"{{{{ {source}.{name} }}}}" for name in sorted(used - set(written))}
    return {**state, "input": {**{name: value for name, value in written.items() if name in used}, **rest}}
