"""Messages to the scaler of a fleet, and what it answers."""

from __future__ import annotations

import asyncio
import getpass
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from flatfleet.commands.roster import process
from flatfleet.runtime.dispatcher import scaler_of
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.bell import heard

PATIENCE = 2.0
"""Seconds that a command waits for a decision, or for a scaler to park."""
LOOK = 0.05


def sender() -> str:
    """Who sends a message: the user on this host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"[:200]


async def answer(store: Any, fleet: Any, decision_id: str, patience: float = PATIENCE) -> dict[str, Any] | None:
    """The decision of this id, once there is one; None if it takes longer than `patience` seconds."""
    ends = time.monotonic() + patience
    with store.bell.listen(fleet.channel) as rung:
        while True:
            found: dict[str, Any] | None = await fleet.decision(decision_id)
            left = ends - time.monotonic()
            if found is not None or left <= 0:
                return found
            await heard(rung, min(LOOK, left))


def report(
    store: Any,
    fleet: Any,
    sent: str,
    message: Mapping[str, Any],
    hosts: Sequence[str],
    decision: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What became of a message, as data; `decision` is null while it waits."""
    return {
        "store": store.shown,
        "fleet": fleet.name,
        "id": sent,
        "message": message,
        "hosts": [process(owner) for owner in hosts],
        "decision": decision,
    }


@asynccontextmanager
async def still(store: Any, fleet: Any) -> AsyncIterator[None]:
    """Keep the fleet's scaler from deciding anything meanwhile; one that is at work has PATIENCE seconds to park."""
    key, ends = scaler_of(fleet.name), time.monotonic() + PATIENCE
    while not (taken := await store.lock.acquire(key)):
        holders = [owner for name, owner, _ in await store.driver.locks(key) if name == key]
        if (holders and all(map(is_dead, holders))) or time.monotonic() >= ends:
            break
        await asyncio.sleep(LOOK)
    try:
        yield
    finally:
        if taken:
            await store.lock.release(key)
            store.bell.announce("signals")  # a message that came meanwhile found the scaler taken
