"""The Lua scripts of the Redis store: named blocks of lua/*.lua, each made whole with what it needs."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from importlib import resources
from typing import NamedTuple

from flatfleet.runtime.stores.buckets import _LEAST, _SMOOTH, _STEPS, KEPT
from flatfleet.runtime.stores.leftovers import ATTEMPTS_KEPT
from flatfleet.runtime.stores.memory_metrics import OLDEST
from flatfleet.runtime.stores.records import DECISIONS, SUSPECT

FILES = ("items", "workers", "executions", "fleets", "gc")
ATTEMPT = 9
"""Fields of an attempt in its item's list."""
CONSTANTS = {
    "ATTEMPT": ATTEMPT,
    "ATTEMPTS_KEPT": ATTEMPTS_KEPT,
    "DECISIONS_MOST": DECISIONS,
    "EXPIRED": 500,
    "KEPT": KEPT,
    "LEAST": _LEAST,
    "LOOK": OLDEST,
    "RIPE": 5000,
    "SMOOTH": _SMOOTH,
    "STEPS": _STEPS,
    "SUSPECT": SUSPECT,
}
_BLOCK = re.compile(r"^-- (name|shared): (\w+)(?: needs (.*))?$", re.MULTILINE)
_HERE = re.compile(r"^ *-- here: (\w+)$", re.MULTILINE)


class Script(NamedTuple):
    """A script: its name, its text, and the digest by which a server knows it."""

    name: str
    text: bytes
    digest: bytes


def read(name: str) -> str:
    return resources.files("flatfleet.runtime.stores").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


@functools.cache
def blocks() -> dict[tuple[str, str], tuple[tuple[str, ...], str]]:
    """{(kind, name): (what it needs, its text)} of all blocks."""
    found = {}
    for file in ("shared", *FILES):
        parts = _BLOCK.split(read(file))[1:]
        for kind, name, needs, text in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
            found[kind, name] = (tuple((needs or "").split()), text.strip())
    return found


@functools.cache
def script(name: str) -> Script:
    """The script of this name, with what it needs: at its head, or where it says `here`; KeyError if there is none."""
    constants = "\n".join(f"local {key} = {value}" for key, value in CONSTANTS.items())
    parts = [constants, read("keys"), *_needed([("name", name)])]
    text = _HERE.sub(lambda found: "\n".join(_needed([("shared", found[1])])), "\n".join(parts)).encode()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def _needed(names: Iterable[tuple[str, str]]) -> list[str]:
    """The texts of these blocks, each behind those that it needs."""
    order: dict[tuple[str, str], None] = {}

    def need(block: tuple[str, str]) -> None:
        for other in blocks()[block][0]:
            need(("shared", other))
        order.setdefault(block)

    for name in names:
        need(name)
    return [blocks()[block][1] for block in order]


def key(name: str) -> str:
    """The part of a key's name behind the hash tag; KeyError for one that lua/keys.lua does not have."""
    found = re.search(rf'^local {name} = "(.+?)"', read("keys"), re.MULTILINE)
    if found is None:
        raise KeyError(name)
    return found[1]
