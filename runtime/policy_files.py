"""Files that a policy stands in: settings of a fleet alone, or a machine's. `check` and `--policy` read them alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatfleet.runtime import fleet_settings
from flatfleet.runtime.bundle import yamlmap
from flatfleet.runtime.bundle.yamlmap import Document
from flatfleet.runtime.errors import BundleError, UsageError, did_you_mean
from flatfleet.runtime.fleet_settings import INSIDE, WHERE
from flatfleet.runtime.policies.settings import PRESETS, Cost


def read(path: Path, others: Sequence[str] = ()) -> Mapping[str, Any]:
    """The settings in a file, checked, with `pool`, `engine` and `store` if they name them.

    `others` are names that may have been meant, beside the presets. Raises UsageError with a line a fault:
    `file:line:column`, what was got, what is allowed.
    """
    try:
        doc = yamlmap.read(path)
    except BundleError as error:
        if not isinstance(error.__cause__, FileNotFoundError | IsADirectoryError):
            raise
        kinds = "no preset or baseline" if others else "no preset"
        hint = did_you_mean(str(path), [*PRESETS, *others]) if path.suffix == "" else ""
        raise UsageError(f"no policy '{path}': no such file, and {kinds}{hint}") from None
    if found := problems(doc):
        raise BundleError(found)
    settings: Mapping[str, Any] = _settings(doc.data)
    return settings


def problems(doc: Document) -> list[str]:
    """One line for each fault of the policy in a file, where it stands; none where all is well."""
    below, found = _place(doc.data), _settings(doc.data)
    if below and found is None:
        return [f"{doc.at()}: {doc.name} is a machine without settings.fleet, so there is no policy in it"]
    if not isinstance(found, Mapping):
        got = json.dumps(found, ensure_ascii=False, default=str)[:80]
        return [f"{doc.at(below)}: {WHERE} must be a mapping such as {{mode: target, max: 20}}, got {got}"]
    return [f"{doc.at((*below, *each.path), each.key)}: {each.text}" for each in fleet_settings.located(found)]


def holds(data: Any, named: bool = True) -> bool:
    """Whether a file's data is a policy: it has `data.settings.fleet`, or a key of such settings.

    Of a file that nobody `named`, half of its keys at least have to be theirs: other tools have a `mode` and a `max` too.
    """
    if _place(data):
        return _settings(data) is not None
    if not isinstance(data, Mapping):
        return False
    known = sum(name in fleet_settings.known() or name in Cost._fields for name in data)
    return known > 0 and (named or len(data) <= 2 * known)


def _place(data: Any) -> tuple[str, ...]:
    """Where in a file's data the settings stand: below those of a machine, or in none."""
    return INSIDE if isinstance(data, Mapping) and ("spec" in data or "data" in data) else ()


def _settings(data: Any) -> Any:
    return fleet_settings.inside(data) if _place(data) else data
