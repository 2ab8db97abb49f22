"""What processes with hosts note of their engines in the store, for whoever looks."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.store import Store

ENGINE = "engine/"
"""How the keys begin of the lock that says that a process has hosts, and of the entry that tells of them."""

PAST = "engines"
"""The entry with the owners that have noted something since it was swept last."""


async def swept(store: Store) -> None:
    """Drop what processes of this machine have noted that were killed; from now on this process is among those looked at."""
    _, known = await store.driver.get(PAST)
    dead = {owner for owner in known or () if is_dead(owner)}
    for owner in dead:
        await store.driver.drop(f"{ENGINE}{owner}")
    await store.driver.put(PAST, sorted({*(known or ()), store.owner} - dead))


async def engines(store: Store) -> list[dict[str, Any]]:
    """What the living processes with hosts have noted last, each with its `owner`."""
    found = []
    for key, owner, _ in await store.driver.locks(ENGINE):
        known, value = await store.driver.get(key)
        if known and not is_dead(owner):
            found.append({"owner": owner, **value})
    return found
