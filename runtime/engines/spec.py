"""What somebody asks of an engine in one word: `inline`, `process?max_size=4&slots=8`, `ray://host:port?min_size=1`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qsl

from flatfleet.runtime.errors import EngineUrlError, did_you_mean

KINDS = ("inline", "process", "ray")
ADDRESSED = ("ray",)
"""Kinds that are somewhere: what stands behind `//` is where."""
OPTIONS = {"ray": {"cpus"}}
"""Options of one kind alone, which it reads itself."""
ASSIGNMENTS = ("least_loaded", "round_robin")

Assignment = Literal["least_loaded", "round_robin"]


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How large a pool of hosts is, and who gets a worker.

    `slots` is how many machines a host runs at once; 0 spreads them: each new one has a host of its own until there are
    `max_size`, and shares after that, so that nobody ever queues. `idle_timeout` is in seconds. Without `queue` a
    launch raises PoolAtCapacity where it would have to wait for a slot.
    """

    min_size: int = 2
    max_size: int = 10
    idle_timeout: float = 300.0
    slots: int = 0
    assignment: Assignment = "least_loaded"
    queue: bool = True


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine as it was asked for. `address` is of a cluster ("" for none); `text` is what was written."""

    kind: str = "inline"
    address: str = ""
    pool: PoolSettings = field(default_factory=PoolSettings)
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    text: str = "inline"

    @property
    def hosted(self) -> bool:
        """True if launched machines leave the launcher's process."""
        return self.kind != "inline"


def parse(text: str | EngineSpec) -> EngineSpec:
    """Read a spec; raises EngineUrlError, which says what is known, for a kind, an option or a value that is not."""
    if isinstance(text, EngineSpec):
        return text
    head, _, query = text.strip().partition("?")
    kind, _, rest = head.partition(":")
    address = rest.removeprefix("//").rstrip("/")
    if kind not in KINDS:
        raise EngineUrlError(f"engine '{text}': unknown kind '{kind}'{did_you_mean(kind, KINDS)}")
    if rest and kind not in ADDRESSED:
        raise EngineUrlError(f"engine '{text}': '{kind}' is on this machine and has no address; write {kind}")
    if rest and (not rest.startswith("//") or not address or "/" in address):
        raise EngineUrlError(f"engine '{text}': write the address as in {kind}://host:6379")
    given = dict(parse_qsl(query, keep_blank_values=True))
    known = {each.name for each in fields(PoolSettings)} if kind != "inline" else set()
    known |= OPTIONS.get(kind, set())
    return EngineSpec(kind, address, _pool(text, kind, given, known), MappingProxyType(given), text)


def _pool(text: str, kind: str, given: Mapping[str, str], known: set[str]) -> PoolSettings:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or "; it takes none"
            raise EngineUrlError(f"engine '{text}': unknown option '{name}' of {kind}{hint}")
    least = {"min_size": 0, "max_size": 1, "slots": 0}
    values: dict[str, Any] = {name: _whole(text, name, given[name], n) for name, n in least.items() if name in given}
    if "idle_timeout" in given:
        values["idle_timeout"] = _seconds(text, given["idle_timeout"])
    if "queue" in given:
        values["queue"] = _choice(text, "queue", given["queue"].lower(), ("true", "false")) == "true"
    if "assignment" in given:
        values["assignment"] = _choice(text, "assignment", given["assignment"], ASSIGNMENTS)
    made = replace(PoolSettings(), **values)
    if "min_size" not in given:
        made = replace(made, min_size=min(made.min_size, made.max_size))
    if made.min_size > made.max_size:
        raise EngineUrlError(f"engine '{text}': min_size {made.min_size} is more than max_size {made.max_size}")
    return made


def _whole(text: str, name: str, value: str, least: int) -> int:
    if not value.isascii() or not value.isdigit() or not least <= int(value) <= 100_000:
        raise EngineUrlError(f"engine '{text}': {name} is '{value}'; it is a whole number, {least} at least")
    return int(value)


def _seconds(text: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise EngineUrlError(f"engine '{text}': idle_timeout is '{value}'; it is a number of seconds, such as 300")
    return seconds


def _choice(text: str, name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise EngineUrlError(f"engine '{text}': {name} is '{value}'{did_you_mean(value, known)}")
    return value
