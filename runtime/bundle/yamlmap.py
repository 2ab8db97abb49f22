"""Read a YAML (or JSON) file as plain data, and remember where each value stands in it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from flatfleet.runtime.errors import BundleError

Where = tuple[str | int, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value")}
_MAX_NODES = 200_000
_MAX_DEPTH = 100


@dataclass(frozen=True)
class Document:
    """One file: its `data`, the `name` it goes by in messages, and its position index (`at`)."""

    path: Path
    name: str
    data: Any
    node: Any

    def at(self, where: Where = (), key: bool = False) -> str:
        """Return `file:line:column` of the value at `where`, counted from 1.

        A mapping or list is located by its key, since its first line may be far from what is wrong with it;
        with `key` a scalar is too. A path that the file does not have gives the deepest part of it that is there.
        """
        node, mark = self.node, self.node.start_mark if self.node is not None else None
        for part in where:
            found = _child(node, part)
            if found is None:
                break
            name, node = found
            is_last_scalar = isinstance(node, yaml.ScalarNode) and not key
            mark = node.start_mark if name is None or is_last_scalar else name.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        return f"{self.name}:{line}:{column}"


def read(path: Path) -> Document:
    """Parse one file with the safe loader; `.json` by the JSON parser.

    Raises BundleError with every duplicate key, key that is no text, and value that is not plain data; or with the
    one place where the file stops being YAML.
    """
    name = shown(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError([f"{name}: cannot be read: {error.strerror or error}"]) from error
    _shallow(raw, name)
    node, data = _parse(raw, name)
    if path.suffix == ".json":
        try:
            data = json.loads(raw)
        except json.JSONDecodeError as error:
            raise BundleError([f"{name}:{error.lineno}:{error.colno}: not JSON: {error.msg}"]) from error
    return Document(path, name, data, node)


def shown(path: Path) -> str:
    """Return `path` as a person would type it here: relative where it is below the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _shallow(raw: bytes, name: str) -> None:
    """Refuse what is nested so deeply that putting it together would break the parser; other faults are found later."""
    depth = 0
    with contextlib.suppress(yaml.YAMLError):
        for event in yaml.parse(raw, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                mark: Any = event.start_mark
                raise BundleError(
                    [f"{name}:{mark.line + 1}:{mark.column + 1}: this is nested more than {_MAX_DEPTH} deep"]
                )


def _parse(raw: bytes, name: str) -> tuple[Any, Any]:
    try:
        loader = _LOADER(raw)
        try:
            node = loader.get_single_node()
            if node is None:
                raise BundleError([f"{name}:1:1: the file is empty"])
            walk = _Walk(name)
            walk.size(node)
            if walk.problems:
                raise BundleError(walk.problems)
            return node, loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else f"{name}:1:1"
        what = " ".join(part for part in (error.problem, error.context) if part)
        raise BundleError([f"{place}: not YAML: {what}"]) from error
    except yaml.YAMLError as error:
        raise BundleError([f"{name}:1:1: not YAML: {' '.join(str(error).split())}"]) from error
    except ValueError as error:  # a date such as 2024-13-45
        raise BundleError([f"{name}:1:1: not YAML: {error}"]) from error


class _Walk:
    """Look at every node once, also where aliases share it, and count the nodes the data would unfold to."""

    def __init__(self, name: str) -> None:
        self.problems: list[str] = []
        self._name = name
        self._sizes: dict[int, int] = {}
        self._too_large = False

    def size(self, node: Any) -> int:
        if (known := self._sizes.get(id(node))) is not None:
            if known == 0:
                self._fault(node, "an alias refers to the value that it stands in")
            return known
        self._sizes[id(node)] = 0
        total = 1
        if isinstance(node, yaml.MappingNode):
            self._keys(node)
            total += sum(self.size(value) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(self.size(value) for value in node.value)
        if node.tag not in _PLAIN:
            kind = node.tag.removeprefix(_TAG)
            self._fault(node, f"this is read as a YAML {kind}, which is not plain data — put it in quotes")
        elif node.tag == _TAG + "float" and node.value.lstrip("+-").lower() in {".nan", ".inf"}:
            self._fault(node, f"{node.value} has no place in JSON — put it in quotes")
        if total > _MAX_NODES and not self._too_large:
            self._too_large = True
            self._fault(node, f"aliases unfold this to more than {_MAX_NODES:,} values")
        self._sizes[id(node)] = total
        return total

    def _keys(self, node: Any) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == _TAG + "merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in {_TAG + "str", _TAG + "value"}:
                text = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                kind = key.tag.removeprefix(_TAG)
                self._fault(key, f"the key {text} is read as {kind}, keys are text — put it in quotes")
            elif key.value in lines:
                first = lines[key.value] + 1
                self._fault(key, f"duplicate key '{key.value}' — it stands in line {first} already; remove one")
            else:
                lines[key.value] = key.start_mark.line

    def _fault(self, node: Any, text: str) -> None:
        self.problems.append(f"{self._name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {text}")


def _child(node: Any, part: str | int) -> tuple[Any, Any] | None:
    """Return (key node, value node) of one step down; a later key wins, as in the data (merged ones come first)."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in reversed(node.value) if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return None, node.value[part]
    return None
