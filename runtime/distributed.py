"""Which store, engine and pool a machine file asks for: `settings.distributed`, and three keys of `settings.fleet`.

Flags come before variables, variables before the file, the file before the defaults.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from string import Template
from typing import Any, NamedTuple

from flatfleet.runtime import fleet_settings
from flatfleet.runtime.errors import UsageError, did_you_mean
from flatfleet.runtime.fleet_settings import Fault
from flatfleet.runtime.redact import shown

WHERE = "settings.distributed"
INSIDE = ("data", "settings", "distributed")
SCHEMES = {"memory": ("memory",), "sqlite": ("sqlite",), "redis": ("redis", "rediss", "unix"), "ray": ("ray",)}
"""Each kind of broker with the schemes of its URLs."""
DEFAULTS = {"memory": "memory:", "sqlite": "sqlite:fleet.db", "redis": "redis://127.0.0.1:6379/0", "ray": "ray:"}
_SHOWN = 80


class Choice(NamedTuple):
    """What a file asks for; None where it does not say."""

    store: str | None = None
    engine: str | None = None
    pool: str | None = None


def choice(machine: Mapping[str, Any], variables: Mapping[str, str] = os.environ) -> Choice:
    """What a machine asks for. Raises UsageError with one line a fault, and where two of its settings disagree."""
    data = inside(machine)
    if found := faults(data):
        raise UsageError("\n".join(fault.text for fault in found))
    fleet = fleet_settings.places(machine)
    told = Choice() if data is None or not data.get("enabled", True) else _of(data, variables)
    store = _expanded(fleet["store"], "settings.fleet.store", variables) if fleet.get("store") else None
    return Choice(
        _one("store", store, told.store),
        _one("engine", fleet.get("engine"), told.engine),
        fleet.get("pool"),
    )


def inside(machine: Mapping[str, Any]) -> Any:
    """`settings.distributed` of a machine; None where it has none."""
    value: Any = machine
    for name in INSIDE:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def faults(data: Any) -> list[Fault]:
    """Each fault of `settings.distributed`; none where all is well, or it is switched off as a whole."""
    if data is None:
        return []
    found = [fault for error in _validator().iter_errors(data) for fault in _said(error)]
    return found or list(_at_odds(data))


def _of(data: Mapping[str, Any], variables: Mapping[str, str]) -> Choice:
    executor, broker, address = data.get("executor"), data.get("message_broker"), data.get("address")
    engine = f"ray://{address}" if executor == "ray" and address else executor
    if data.get("broker_url"):
        return Choice(_expanded(data["broker_url"], f"{WHERE}.broker_url", variables), engine)
    return Choice(f"ray://{address}" if broker == "ray" and address else DEFAULTS[broker] if broker else None, engine)


def _at_odds(data: Mapping[str, Any]) -> Iterator[Fault]:
    """What stands beside each other and does not go together."""
    executor, broker, url = data.get("executor"), data.get("message_broker"), data.get("broker_url")
    if data.get("enabled") is False:
        return
    scheme = url.partition(":")[0] if url and not url.startswith("$") else None
    if broker and scheme is not None and scheme not in SCHEMES[broker]:
        known = " or ".join(f"{each}:" for each in SCHEMES[broker])
        got = shown(url or "").partition(":")[0]
        text = f"{WHERE}.broker_url must begin with {known} for message_broker {broker}, got {got}:"
        yield Fault(("broker_url",), text)
    if executor in ("process", "ray") and "memory" in (broker, scheme):
        text = f"{WHERE}: executor {executor} runs workers in other processes, and message_broker memory lives in one"
        yield Fault(("executor",), f"{text}; take sqlite or redis")
    if data.get("address") and "ray" not in (executor, broker, scheme):
        yield Fault(
            ("address",), f"{WHERE}.address is that of a Ray cluster, and neither executor nor message_broker is ray"
        )


def _said(error: Any) -> Iterator[Fault]:
    path = tuple(map(str, error.absolute_path))
    place = ".".join((WHERE, *path))
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for name in error.instance:
            if name not in known:
                yield Fault(
                    (*path, str(name)), f"unknown key '{name}' in {place}{did_you_mean(str(name), known)}", key=True
                )
        return
    got = _got(error.instance)
    hint = did_you_mean(str(error.instance), error.validator_value) if error.validator == "enum" else ""
    meant = f". {hint.partition('. ')[2]}" if ". " in hint else ""
    yield Fault(path, f"{place} must be {error.schema['title']}, got {got[:_SHOWN]}{meant}")


def _got(value: Any) -> str:
    """What stands there, for people: a URL without its password, and nothing of what a list or a mapping holds."""
    if isinstance(value, (list, Mapping)):
        kind = "a list" if isinstance(value, list) else "a mapping"
        return kind if value else json.dumps(value)
    return json.dumps(shown(value) if isinstance(value, str) else value, ensure_ascii=False, default=str)


def _expanded(text: str, place: str, variables: Mapping[str, str]) -> str:
    """The text with its $NAMEs replaced; a password need not stand in a file."""
    try:
        return Template(text).substitute(variables)
    except KeyError as error:
        raise UsageError(f"{place} names the variable {error.args[0]}, which is not set") from None
    except ValueError:
        raise UsageError(f"{place} has a $ that begins no name; write $$ for a $ itself") from None


def _one(what: str, fleet: str | None, distributed: str | None) -> str | None:
    if fleet and distributed and fleet != distributed:
        raise UsageError(f"settings.fleet.{what} and {WHERE} ask for different {what}s; leave one of them out")
    return fleet or distributed


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft7Validator

    text = resources.files("flatfleet.schemas").joinpath("distributed.schema.json").read_text("utf-8")
    return Draft7Validator(json.loads(text))
