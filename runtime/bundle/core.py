"""A machine file becomes one self-contained, validated dict: `load` makes it, `Bundle` is it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from flatfleet.runtime.bundle.shapes import mapping


class Bundle(dict[str, Any]):
    """A machine config that needs no other file. Treat it as read-only: `raw` and `hash` are computed once.

    `source` is the file it came from; `cache` belongs to whoever runs the machine and is not part of the data:
    it is dropped when a bundle is copied or pickled.
    """

    __slots__ = ("_hash", "_raw", "cache", "source")

    def __init__(self, config: Mapping[str, Any], source: Path | None = None) -> None:
        super().__init__(config)
        self.source = source
        self.cache: dict[str, Any] = {}
        self._raw: str | None = None
        self._hash: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Bundle:
        """Return `config` as a bundle, and every machine written under its data.machines too.

        A bundle is returned as it is; a plain dict is neither changed nor validated.
        """
        if isinstance(config, Bundle):
            return config
        bundle = cls(config)
        machines = mapping(mapping(config.get("data")).get("machines"))
        if any(isinstance(each, dict) for each in machines.values()):
            wrapped = {name: cls.of(each) if isinstance(each, dict) else each for name, each in machines.items()}
            bundle["data"] = {**config["data"], "machines": wrapped}
        return bundle

    @property
    def raw(self) -> str:
        """The config as stable JSON text (keys in the file's order) that yaml.safe_load reads back unchanged."""
        if self._raw is None:
            self._raw = _json_that_is_yaml(self)
        return self._raw

    @property
    def hash(self) -> str:
        """The SHA-256 of `raw` in hex: the key under which the SDK's config stores keep it."""
        if self._hash is None:
            self._hash = hashlib.sha256(self.raw.encode()).hexdigest()
        return self._hash

    @property
    def name(self) -> str:
        """The machine's data.name, or the SDK's word for a machine without one."""
        return str(mapping(self.get("data")).get("name") or "unnamed-machine")

    def copy(self) -> Bundle:
        """Return a shallow copy with an empty cache."""
        return Bundle(self, self.source)

    __copy__ = copy

    def __reduce__(self) -> tuple[Any, ...]:
        return Bundle, (dict(self), self.source)


@dataclass(frozen=True)
class InputSpec:
    """One declared input of a machine, as metadata.inputs has it."""

    name: str
    type: str = "string"
    description: str = ""
    default: Any = None
    required: bool = False
    enum: tuple[Any, ...] = ()


def load(
    ref: str | Path,
    *,
    task: str | None = None,
    agents: str | None = None,
    known: Mapping[str, Collection[str]] | None = None,
) -> Bundle:
    """Read a machine file with every machine, agent, prompt and profile that it names, and check all of them.

    `ref` and `task` are paths, or `package:NAME/FILE`. `task` takes the place of the machine called `task`, here or
    in a machine below. `agents` is 'offline' or 'flatagent': which of two twin agent files to take.
    `known` maps hook names to their actions; without it, hooks are not checked.
    Raises BundleError with all problems found, one line each.
    """
    from flatfleet.runtime.bundle.loading import Loader

    return Loader(agents, known).load(str(ref), task)


def inputs(bundle: Mapping[str, Any]) -> dict[str, InputSpec]:
    """Return the inputs that a machine declares in metadata.inputs, in the order of the file."""
    declared = mapping(mapping(bundle.get("metadata")).get("inputs"))
    return {name: _input(name, mapping(spec)) for name, spec in declared.items()}


def used_inputs(bundle: Mapping[str, Any]) -> set[str]:
    """Return the names of the inputs that a machine declares, or reads as `input.X` in its data.context."""
    from flatfleet.runtime.bundle.expressions import Templates, texts

    templates = Templates()
    context = mapping(bundle.get("data")).get("context")
    used = (use for text in texts(context, ()) if text.rendered for use in templates.uses(text.value))
    return set(inputs(bundle)) | {use.field for use in used if use.root == "input" and use.field}


def _input(name: str, spec: dict[str, Any]) -> InputSpec:
    return InputSpec(name=name, **{**spec, "enum": tuple(spec.get("enum") or ())})


_STRING_OR_FLOAT = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e[+-]\d+')
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def _json_that_is_yaml(config: Mapping[str, Any]) -> str:
    """JSON that PyYAML reads the same: 1e-05 needs a point there, and some characters an escape."""
    text = json.dumps(config, ensure_ascii=False, allow_nan=False)
    text = _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return _STRING_OR_FLOAT.sub(_with_point, text)


def _with_point(found: re.Match[str]) -> str:
    text = found[0]
    return text if text[0] == '"' or "." in text else text.replace("e", ".0e")


def _represent(dumper: Any, bundle: Bundle) -> Any:
    return dumper.represent_dict(dict(bundle))


# The SDK's own FlatMachine dumps its config with yaml.dump; without this a bundle would come out as a Python object.
yaml.Dumper.add_representer(Bundle, _represent)
yaml.SafeDumper.add_representer(Bundle, _represent)
