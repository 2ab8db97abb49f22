"""Read and check `settings.fleet`: what is wrong, where, and what is allowed."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from flatfleet.runtime.errors import UsageError, did_you_mean
from flatfleet.runtime.policies import schedule
from flatfleet.runtime.policies.settings import PRESETS, Cost, Settings, seconds, settings

WHERE = "settings.fleet"
INSIDE = ("data", "settings", "fleet")
"""Where the settings stand in a machine file."""
PLACES = ("pool", "engine", "store")
"""Keys that say where a fleet is, and nothing of how it scales."""
_SHOWN = 80
_TIMES = {
    "interval": "rhythm", "metrics_window": "rhythm", "burst_time": "rhythm", "stale_after": "rhythm", "sla": "period",
    "slo": "period", "idle_terminate": "duration", "max_wait": "duration", "spot_wait": "duration",
    "cooldown_period": "duration", "stabilization": "duration",
}  # fmt: skip
"""Which times a text may say, by their definition in the schema; its pattern knows no limits."""


class Fault(NamedTuple):
    """One thing that is wrong: the path below the settings where it stands, and a sentence that names the place.

    `key` points at the key there and not at its value.
    """

    path: tuple[str | int, ...]
    text: str
    key: bool = False


def validate(data: Any, where: str = WHERE) -> Settings:
    """Read the settings of a fleet; None or {} gives the defaults.

    Raises UsageError with one line a fault: where it stands, what was got, what is allowed.
    """
    found = faults(data, where)
    if found:
        raise UsageError("\n".join(found))
    return settings(_policy(data or {}))


def load(policy: Any, others: Sequence[str] = ()) -> dict[str, Any]:
    """The settings, checked, that a policy names: a preset, a YAML file (of settings, or a machine's), or they themselves.

    `others` are names that may have been meant, too. Raises UsageError for what is no policy, and for faults in it.
    """
    if isinstance(policy, str):
        from flatfleet.runtime import policy_files

        return {"preset": policy} if policy in PRESETS else _policy(policy_files.read(Path(policy), others))
    if not isinstance(policy, Mapping):
        raise UsageError(f"{WHERE} must be a mapping such as {{mode: target, max: 20}}, got {_shown(policy)}")
    validate(policy)
    return _policy(policy)


def known() -> Collection[str]:
    """What `settings.fleet` may have."""
    found: Collection[str] = _validator().schema["properties"].keys()
    return found


def inside(machine: Mapping[str, Any]) -> Any:
    """`settings.fleet` of a machine; None where it has none."""
    value: Any = machine
    for name in INSIDE:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def policy_of(machine: Mapping[str, Any]) -> Any:
    """What `settings.fleet` of a machine says of how it scales; None or {} where it says nothing."""
    found = inside(machine)
    return _policy(found) if isinstance(found, Mapping) else found


def places(machine: Mapping[str, Any]) -> dict[str, str]:
    """Which `pool`, `engine` and `store` the `settings.fleet` of a machine names."""
    found = inside(machine)
    given = found if isinstance(found, Mapping) else {}
    return {name: given[name] for name in PLACES if given.get(name) and isinstance(given[name], str)}


def _policy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in PLACES}


def faults(data: Any, where: str = WHERE) -> list[str]:
    """One line for each fault, in the order of the file; none where all is well."""
    return [fault.text for fault in located(data, where)]


def located(data: Any, where: str = WHERE) -> list[Fault]:
    """Each fault, in the order of the file; none where all is well."""
    if data is None:
        return []
    found = (
        [*_unfinite(data, where, ())]
        or [*_of_schema(data, where)]
        or [*_of_times(data, where), *_of_schedule(data, where)]
    )
    if not found:
        try:
            settings(_policy(data))
        except ValueError as error:
            name = str(error).partition(" ")[0].strip(":")
            found = [Fault((name,) if name in data else (), f"{where}.{error}")]
    return found


def _unfinite(data: Any, where: str, path: tuple[str | int, ...]) -> Iterator[Fault]:
    """The schema lets a number pass that is none."""
    if isinstance(data, float) and not math.isfinite(data):
        yield Fault(path, f"{_placed(where, path)} must be a finite number, got {data}")
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield from _unfinite(value, where, (*path, name))
    elif isinstance(data, list | tuple):
        for number, value in enumerate(data):
            yield from _unfinite(value, where, (*path, number))


def _of_schema(data: Any, where: str) -> Iterator[Fault]:
    known = list(_validator().schema["properties"])
    found = _validator().iter_errors(data)
    for error in sorted(found, key=lambda each: known.index(next(iter(each.absolute_path), known[0]))):
        yield from _said(error, where, tuple(error.absolute_path))


def _said(error: Any, where: str, path: tuple[str | int, ...]) -> Iterator[Fault]:
    place, got, rule = _placed(where, path), error.instance, error.validator
    if rule == "additionalProperties":
        known = error.schema["properties"]
        for name in got:
            if name not in known:
                inside = place == where and name in Cost._fields
                hint = f" — it stands in cost, as {place}.cost.{name}" if inside else did_you_mean(str(name), known)
                yield Fault((*path, name), f"unknown key '{name}' in {place}{hint}", key=True)
    elif rule == "required":
        name = next(each for each in error.validator_value if error.message.startswith(f"'{each}'"))
        yield Fault(path, f"{place} has no {name}; it needs {' and '.join(error.validator_value)}")
    elif rule == "uniqueItems":
        yield Fault(path, f"{place} names one twice, got {_shown(got)}")
    elif rule == "anyOf" and "cron" in error.schema.get("properties", {}):
        yield Fault(path, f"{place} sets nothing; it needs min, max or target")
    elif rule == "anyOf" and isinstance(got, Mapping) and (inner := [each for each in error.context if _inside(each)]):
        for each in inner:
            yield from _said(each, where, (*path, *each.relative_path))
    elif place == f"{where}.store":  # which may hold a password
        kinds: dict[type, str] = {list: "a list", dict: "a mapping"}
        kind = kinds.get(type(got), _shown(got))
        yield Fault(path, f"{place} must be {_allowed(error)}, got {kind}")
    else:
        yield Fault(path, f"{place} must be {_allowed(error)}, got {_shown(got)}{_meant(error)}")


def _meant(error: Any) -> str:
    """The name that was probably meant, where one of several is allowed."""
    for each in (error, *(error.context or ())):
        if each.validator == "enum" and isinstance(each.instance, str):
            hint = did_you_mean(each.instance, [name for name in each.validator_value if name])
            return ". " + hint.partition(". ")[2] if ". " in hint else ""
    return ""


def _inside(error: Any) -> bool:
    """Whether an error of one branch is about the inside of a mapping, and not that it should be none."""
    return bool(error.relative_path) or error.validator in ("additionalProperties", "required", "minProperties")


def _allowed(error: Any) -> str:
    """What is allowed there: the title of the nearest part of the schema that has one."""
    while "title" not in error.schema and error.parent is not None and not error.relative_path:
        error = error.parent
    return str(error.schema.get("title", "something else"))


def _of_times(data: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """Texts such as '1ms' that are shorter or longer than a number there may be."""
    for name, kind in _TIMES.items():
        value, rule = data.get(name), _validator().schema["definitions"][kind]
        low, high = rule["anyOf"][0]["minimum"], rule["anyOf"][0]["maximum"]
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, text in parts.items():
            if isinstance(text, str) and not low <= seconds(text.partition("@")[0].rstrip(" ")) <= high:
                path = (name, part) if part else (name,)
                yield Fault(path, f"{_placed(where, path)} must be {rule['title']}, got {_shown(text)}")


def _of_schedule(data: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """What a pattern cannot say of the texts in a schedule."""
    for number, entry in enumerate(data.get("schedule") or ()):
        at = f"{where}.schedule[{number}]"
        try:
            schedule.parse(entry["cron"])
        except ValueError as error:
            yield Fault(("schedule", number, "cron"), f"{at}.cron: {error}")
        try:
            schedule.timezone(entry.get("zone", "UTC"))
        except ValueError as error:
            yield Fault(("schedule", number, "zone"), f"{at}.zone: {error}")
        if not 60 <= seconds(entry["duration"]) <= 604800:
            text = f"{at}.duration must be 60 s to 7 d, got {_shown(entry['duration'])}"
            yield Fault(("schedule", number, "duration"), text)
    if isinstance(season := data.get("season"), str) and not 60 <= seconds(season) <= 2678400:
        yield Fault(("season",), f"{where}.season must be 60 s to 31 d, got {_shown(season)}")


def _placed(where: str, path: Sequence[Any]) -> str:
    return where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft7Validator

    text = resources.files("flatfleet.schemas").joinpath("fleet.schema.json").read_text("utf-8")
    return Draft7Validator(json.loads(text))
