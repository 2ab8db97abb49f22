"""Routing by capabilities: items require some, workers offer some, and what nobody offers is found and said.

A capability is a name: `gpu`, `spot`, `region:eu`. An item goes only to workers that offer all that it requires.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flatfleet.runtime import scaling
from flatfleet.runtime.errors import did_you_mean
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.keys import check_capabilities
from flatfleet.runtime.stores.records import LIVE_WORKER

__all__ = ["Unserved", "among", "check_capabilities", "missing", "offers", "told", "unserved"]

SHOWN = 5
"""Sets of capabilities that are named at most."""

Needs = Mapping[tuple[str, ...], int]
"""How many items there are, by what they require."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """The items of a pool that wait for what no live worker offers. False if there are none.

    `offered` are all capabilities that live workers offer, `own` those of the process that has looked.
    """

    needs: Needs = field(default_factory=dict)
    offered: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.needs)

    @property
    def items(self) -> int:
        return sum(self.needs.values())

    def rows(self) -> list[dict[str, Any]]:
        return [{"requires": list(need), "items": n} for need, n in self.needs.items()]

    def lines(self) -> list[str]:
        """A line for each set of capabilities, of the first five."""
        said = [told(need, n, self.offered) for need, n in list(self.needs.items())[:SHOWN]]
        rest = sum(list(self.needs.values())[SHOWN:])
        return said + ([f"and {rest:,} more that need something else"] if rest else [])

    def flag(self) -> str:
        """The flag that lets a worker serve the first of them, beside what is served here already."""
        return f"--capabilities {','.join(sorted({*next(iter(self.needs)), *self.own}))}"


def offers(records: Iterable[Any], pool: str) -> list[frozenset[str]]:
    """What the live workers of a pool offer: each different set once."""
    live = scaling.active(records, pool, time.time(), is_dead)
    return list(dict.fromkeys(frozenset(record.capabilities or ()) for record in live))


def missing(needs: Needs, offered: Collection[frozenset[str]]) -> dict[tuple[str, ...], int]:
    """Those of the needs that none of the sets offered covers."""
    return {need: n for need, n in sorted(needs.items()) if not any(able.issuperset(need) for able in offered)}


async def unserved(store: Any, pool: str, own: Collection[str] = ()) -> Unserved:
    """Find the items of a pool that nobody serves; `own` is what this process offers, registered or not.

    Costs by the sets that are required, and by the workers only where this process cannot serve one of them.
    """
    able = frozenset(own)
    lacking = missing(await store.work.pool(pool).requirements(), [able])
    if not lacking:
        return Unserved(own=able)
    return among(lacking, await store.registration.list(statuses=LIVE_WORKER, pool=pool), pool, able)


def among(needs: Needs, records: Iterable[Any], pool: str, own: frozenset[str] = frozenset()) -> Unserved:
    """Those of the needs that neither the live ones among the workers' `records` nor `own` cover."""
    offered = [own, *offers(records, pool)] if own else offers(records, pool)
    return Unserved(missing(needs, offered), tuple(sorted(own.union(*offered))), own)


def told(need: Sequence[str], items: int, offered: Collection[str]) -> str:
    """One line about items that nobody serves: what they require, and what is offered instead."""
    lacks = [name for name in need if name not in offered]
    who = "which no worker offers" if lacks else "which no worker offers together"
    hint = did_you_mean(lacks[0], offered).replace(" — known:", " — offered:") if lacks else ""
    return f"{items:,} {'item needs' if items == 1 else 'items need'} {' and '.join(need)}, {who}{hint}"
