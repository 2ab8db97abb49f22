"""Check a machine file against schemas/flatmachine.schema.json, in sentences that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, NamedTuple

from flatfleet.runtime.bundle.yamlmap import Where
from flatfleet.runtime.errors import did_you_mean


class Fault(NamedTuple):
    """One thing that is wrong: where it stands in the data, and what it is.

    `key` points at the key and not at its value.
    """

    where: Where
    text: str
    key: bool = False


def schema_faults(config: Any) -> Iterator[Fault]:
    """Yield every deviation from the schema, in the order of the file's tree."""
    from jsonschema import Draft7Validator

    text = resources.files("flatfleet.schemas").joinpath("flatmachine.schema.json").read_text("utf-8")
    for error in Draft7Validator(json.loads(text)).iter_errors(config):
        yield from _describe(error)


def path(where: Where) -> str:
    """Return `where` as it would be written: data.states.claim.transitions[0]."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "the file"


def _describe(error: Any) -> Iterator[Fault]:
    where: Where = tuple(error.absolute_path)
    place, got, rule, wanted = path(where), error.instance, error.validator, error.validator_value
    if rule == "additionalProperties":
        known = error.schema.get("properties", {})
        for name in got:
            if name not in known:
                yield Fault((*where, name), f"unknown key '{name}' in {place}{did_you_mean(name, known)}", key=True)
    elif rule == "required":
        # iter_errors gives one error for each missing name; the name stands only in its message
        name = next(name for name in wanted if error.message.startswith(f"'{name}'"))
        yield Fault(where, f"{place} has no `{name}` — it needs {', '.join(f'`{each}`' for each in wanted)}")
    elif error.parent is None and "propertyNames" in error.schema_path:
        yield Fault((*where, got), f"{place}: '{got}' is not a name — use letters, digits and _, no digit first", True)
    elif rule in {"const", "enum"}:
        known = [wanted] if rule == "const" else wanted
        names = {each for each in known if isinstance(each, str)}
        yield Fault(where, f"{place}: {_value(got)} is not allowed{did_you_mean(str(got), names)}")
    elif rule == "type":
        kinds = wanted if isinstance(wanted, list) else [wanted]
        yield Fault(where, f"{place} must be {_kinds(kinds)}, got {_kind(got)}: {_value(got)}")
    elif rule in {"minimum", "exclusiveMinimum"}:
        limit = "at least" if rule == "minimum" else "more than"
        yield Fault(where, f"{place} must be {limit} {wanted}, got {_value(got)}")
    elif rule in {"minLength", "minItems", "minProperties"}:
        yield Fault(where, f"{place} must not be empty")
    elif rule == "pattern":
        yield Fault(where, f"{place}: {_value(got)} is not a name — use letters, digits and _, no digit first")
    else:
        yield Fault(where, f"{place}: {error.message}")


_KINDS: Mapping[str, str] = {
    "string": "a text",
    "object": "a mapping",
    "array": "a list",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


def _kinds(names: list[str]) -> str:
    return " or ".join(_KINDS[name] for name in names)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a truth value"
    names = {str: "a text", dict: "a mapping", list: "a list", int: "a number", float: "a number"}
    return names[type(value)]


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
