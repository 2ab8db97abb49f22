"""Check the values of a machine: its declared inputs, and every path, template and condition in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flatfleet.runtime.bundle.expressions import (
    ROOTS,
    Templates,
    Text,
    condition_problems,
    is_bare,
    is_template,
    literal_problem,
    texts,
    unknown_roots,
)
from flatfleet.runtime.bundle.lint_schema import Fault
from flatfleet.runtime.bundle.shapes import listing, mapping
from flatfleet.runtime.bundle.yamlmap import Where
from flatfleet.runtime.errors import did_you_mean

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def value_faults(config: Mapping[str, Any], base: Where) -> Iterator[Fault]:
    """Yield the faults in the values of one machine; machines written inside it are not looked at."""
    templates = Templates()
    data = mapping(config.get("data"))
    at: Where = (*base, "data")
    context = mapping(data.get("context"))
    if "machine" in context:
        yield _reserved((*at, "context", "machine"))
    yield from _inputs(config, context, base, templates)
    for text in texts(context, (*at, "context")):
        yield from _text(text, ("input",), None, templates)
    for name, state in mapping(data.get("states")).items():
        if isinstance(state, dict):
            where: Where = (*at, "states", name)
            yield from _state(state, where, context, templates)
            if data.get("expression_engine", "simple") == "simple":
                yield from _conditions(state, where)


def _inputs(
    config: Mapping[str, Any], context: Mapping[str, Any], base: Where, templates: Templates
) -> Iterator[Fault]:
    metadata = mapping(config.get("metadata"))
    if not isinstance(metadata.get("inputs"), dict):
        return
    declared = metadata["inputs"]
    used: set[str] = set()
    whole = False
    for text in texts(context, (*base, "data", "context")):
        for use in sorted(templates.uses(text.value), key=str) if text.rendered else ():
            if use.root != "input":
                continue
            if use.field is None:
                whole = True
            elif use.field not in declared and use.field not in used:
                hint = did_you_mean(use.field, declared) or " — metadata.inputs declares none"
                yield Fault(text.where, f"input.{use.field} is not declared in metadata.inputs{hint}")
            if use.field is not None:
                used.add(use.field)
    for name, spec in declared.items():
        at: Where = (*base, "metadata", "inputs", name)
        if name not in used and not whole:
            text_ = f"input '{name}' is declared, but data.context never uses it — add `{name}: input.{name}` there"
            yield Fault(at, text_, True)
        yield from _default(name, mapping(spec), at)


def _default(name: str, spec: Mapping[str, Any], at: Where) -> Iterator[Fault]:
    default, kind = spec.get("default"), spec.get("type")
    if default is None:
        return
    types = _TYPES.get(kind, (object,)) if isinstance(kind, str) else (object,)
    if not isinstance(default, types) or (isinstance(default, bool) and bool not in types and object not in types):
        yield Fault((*at, "default"), f"input '{name}': the default {default!r} is not of its type, {kind}")
    elif (choices := listing(spec.get("enum"))) and default not in choices:
        yield Fault((*at, "default"), f"input '{name}': the default {default!r} is not in its enum, {choices}")


def _state(state: Mapping[str, Any], at: Where, context: Mapping[str, Any], templates: Templates) -> Iterator[Fault]:
    roots: tuple[str, ...] = ("context", "input")
    item = None
    if "foreach" in state:
        item = state.get("as") if isinstance(state.get("as"), str) else "item"
    inner: tuple[str, ...] = (str(item),) if item else roots
    found: list[tuple[Text, tuple[str, ...]]] = []
    for key, seen in (("foreach", roots), ("wait_for", roots), ("session_id", roots), ("key", inner)):
        found += [(text, seen) for text in texts(state.get(key), (*at, key)) if isinstance(state.get(key), str)]
    for key, seen in (("input", inner), ("launch_input", roots), ("output", ("context",)), ("tool_loop", ROOTS)):
        found += [(text, seen) for text in texts(mapping(state.get(key)), (*at, key))]
    for index, each in enumerate(listing(state.get("machine"))):
        where: Where = (*at, "machine", index, "input")
        found += [(text, roots) for text in texts(mapping(mapping(each).get("input")), where)]
    for key, value in mapping(state.get("output_to_context")).items():
        where = (*at, "output_to_context", key)
        if key == "machine":
            yield _reserved(where)
        found += [(text, ROOTS) for text in texts(value, where, rendered=isinstance(value, str))]
    for text, seen in found:
        yield from _text(text, seen, item if seen is inner else None, templates)
        if text.rendered and "input" in seen:
            fields = {use.field for use in templates.uses(text.value) if use.root == "input" and use.field}
            for field in sorted(fields - set(context)):
                hint = did_you_mean(field, context) or " — data.context has none"
                yield Fault(text.where, f"input.{field}: in a state `input` is the context, without that key{hint}")


def _text(text: Text, roots: tuple[str, ...], item: str | None, templates: Templates) -> Iterator[Fault]:
    value = text.value
    if not text.rendered:
        if is_template(value) or (is_bare(value) and "." in value):
            yield Fault(
                text.where, f"'{_short(value)}' stays as it is: the SDK does not render values nested like this"
            )
        return
    if is_template(value) and (problem := templates.problem(value)):
        yield Fault(text.where, problem)
    for name in unknown_roots(templates.uses(value), roots):
        hint = did_you_mean(name, roots)
        yield Fault(text.where, f"'{_short(value)}' stays empty: `{name}` cannot be seen here{hint}")
    if not is_template(value) and (problem := literal_problem(value, item)):
        yield Fault(text.where, problem)


def _conditions(state: Mapping[str, Any], at: Where) -> Iterator[Fault]:
    for index, step in enumerate(listing(state.get("transitions"))):
        condition = mapping(step).get("condition")
        for problem in condition_problems(condition) if isinstance(condition, str) else ():
            yield Fault((*at, "transitions", index, "condition"), problem)


def _reserved(where: Where) -> Fault:
    return Fault(where, "`context.machine` is reserved, the SDK overwrites it at every step — take another name", True)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
