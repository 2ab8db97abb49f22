"""Engines with hosts, as `status` shows them: one line of numbers, and one for each host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flatfleet.commands import roster
from flatfleet.commands.durations import span
from flatfleet.commands.finding import count
from flatfleet.commands.terminal import plain


def row(engine: Mapping[str, Any]) -> dict[str, Any]:
    """An engine as data: what was noted of it, and the process that it belongs to."""
    return {**engine, **roster.process(engine["owner"])}


def lines(engine: Mapping[str, Any]) -> list[str]:
    hosts = engine["hosts"]
    said = [
        f"{count(len(hosts), 'host')} of {engine['max_size']} at most",
        f"{count(engine['active'], 'machine')} on them",
        f"{engine['utilisation']:.0%} used",
    ]
    if engine["queued"]:
        said.insert(2, f"{engine['queued']} queued")
    if engine["wait"]["count"]:
        said.append(f"a place is had in {_times(engine['wait'])}")
    where = f" at {engine['address']}" if engine["address"] else ""
    lines = [f"engine {engine['engine']}{where} of pid {engine['pid']} on {plain(engine['host'])}: {' · '.join(said)}"]
    if engine["fault"]:
        lines += [f"  no host comes up: {plain(engine['fault'])}"]
    return lines + [f"  {_host(each)}" for each in hosts]


def _host(host: Mapping[str, Any]) -> str:
    used = f"{host['reserved']} on it, {host['usage_count']} so far"
    known = ("id", "state", "reserved", "usage_count", "last_used", "since", "owner")
    about = [f"{name} {plain(value)}" for name, value in host.items() if name not in known and value is not None]
    last = f"last used {span(max(0.0, time.time() - host['last_used']))} ago" if host["usage_count"] else "never used"
    return " · ".join([f"{plain(host['id'])}  {host['state']}", used, last, *about])


def _times(tally: Mapping[str, Any]) -> str:
    return f"{tally['mean']:.2f} s on average, {tally['max']:.2f} s at most"
