"""A machine's declared inputs as flags: `--launch-interval 2` sets `metadata.inputs.launch_interval`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.errors import UsageError, did_you_mean

RESERVED = frozenset(
    {"help", "store", "json", "verbose", "task", "agents", "with", "stay", "drain-deadline", "capabilities", "engine"}
)
WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a JSON object",
    "array": "a JSON array",
}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Specs = Mapping[str, Any]


def add(parser: argparse.ArgumentParser, specs: Specs, file: str) -> None:
    """Add a flag for each input; raises UsageError for one that has the name of a flag of run."""
    group = parser.add_argument_group("inputs of this machine")
    for spec in specs.values():
        if _dashed(spec.name) in RESERVED:
            raise UsageError(f"{file}: the input '{spec.name}' has the name of a flag of run; rename it")
        group.add_argument(_flag(spec), dest=f"input_{spec.name}", metavar=spec.type.upper(), help=_help(spec))


def inputs(options: argparse.Namespace, specs: Specs, file: str) -> dict[str, Any]:
    """The inputs that were given, in their declared types: those of `--with`, and over them the flags.

    Raises UsageError for an undeclared one, a value of another type, and a required one that is missing.
    """
    given = json_value(options.with_, "--with")
    if not isinstance(given, dict):
        raise UsageError(f"--with needs a JSON object such as '{{\"workers\": 8}}', not {options.with_[:60]}")
    for name in given:
        if name not in specs:
            raise UsageError(f"--with: machine {file} has no input '{name}'{did_you_mean(name, specs)}")
        given[name] = checked(specs[name], given[name], f"--with: {name}")
    for spec in specs.values():
        text = getattr(options, f"input_{spec.name}")
        if text is not None:
            given[spec.name] = value(spec, text)
    missing = [spec for spec in specs.values() if spec.required and given.get(spec.name) is None]
    if missing:
        raise UsageError(f"machine {file} needs {_flag(missing[0])}: {missing[0].description}")
    return given


def value(spec: Any, text: str) -> Any:
    """The value of a flag, in the input's declared type."""
    flag = _flag(spec)
    if spec.name == "input" and not text.strip():
        raise UsageError(f"{flag} is empty; name a folder, a glob or a file")
    made: Any = text
    try:
        if spec.type in ("integer", "number") and (not text.isascii() or "_" in text):
            raise ValueError("digits are 0 to 9")
        if spec.type == "integer":
            made = int(text)
        elif spec.type == "number":
            made = float(text)
        elif spec.type == "boolean":
            made = _BOOLEANS[text.lower()]
    except (ValueError, KeyError):
        raise UsageError(_wrong(spec, flag, text)) from None
    if spec.type in ("object", "array"):
        made = json_value(text, flag)
    return checked(spec, made, flag)


def checked(spec: Any, made: Any, what: str) -> Any:
    """`made`, if it is of the input's type and one of its values; None stands for the default."""
    if made is None:
        return None
    if isinstance(made, float) and made.is_integer() and spec.type == "integer":
        made = int(made)
    types: tuple[type, ...] = {
        "string": (str,), "integer": (int,), "number": (int, float),
        "boolean": (bool,), "object": (dict,), "array": (list,),
    }.get(spec.type, (object,))  # fmt: skip
    wrong = not isinstance(made, types) or (isinstance(made, bool) and not {bool, object} & set(types))
    if wrong or (isinstance(made, float) and not math.isfinite(made)):
        raise UsageError(_wrong(spec, what, made))
    if spec.enum and made not in spec.enum:
        raise UsageError(f"{what} is {made!r}{did_you_mean(str(made), [str(known) for known in spec.enum])}")
    return made


def json_value(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise UsageError(f"{what} is not JSON: {why} of {text[:60]!r}") from None


def _wrong(spec: Any, what: str, got: Any) -> str:
    return f"{what} is {got!r}: it takes {WORDS.get(spec.type, spec.type)} ({spec.description or spec.name})"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _flag(spec: Any) -> str:
    return f"--{_dashed(spec.name)}"


def _help(spec: Any) -> str:
    text = str(spec.description or spec.name).replace("%", "%%")
    if spec.enum:
        text += f": {' or '.join(map(str, spec.enum))}"
    if spec.required:
        text += " (required)"
    return text + (f" (default: {spec.default})".replace("%", "%%") if spec.default not in (None, "") else "")
