"""The actions of the engine contract's machines, and `compose` with them: importable, so that every host has them.

A test and its actions may be in different processes: what they tell each other goes through the store. `came` is the
channel on which each run of `work` says that it is there, and `gate` the entry that it waits for.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from flatfleet import run
from flatfleet.runtime.actions import Actions
from flatfleet.runtime.errors import StoreUnavailable
from flatfleet.runtime.stores.bell import heard


async def work(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    """Say so, wait for the gate, and do what the item says; `out` is this machine's id, `pid` its process."""
    item = context.get("item")
    item = item["item"] if isinstance(item, dict) else item
    await fleet.store.signals.send("came", context["machine"]["execution_id"])
    if item == "results are gone":
        fleet.store.results.write = _gone
    elif item == "full":
        fleet.store.driver.complete = fleet.store.driver.fail = _full
    await opened(fleet.store)
    if item == "results are gone":
        await _gone()
    if item == "bad":
        raise OSError("power")
    context.update(out={1, 2} if item == "a set" else context["machine"]["execution_id"], pid=os.getpid())
    return context


async def about(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    """Tell of the process that this runs in."""
    context["out"] = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "served": fleet.served,
        "capabilities": sorted(fleet.capabilities),
        "lease": fleet.store.lease,
        "owner": fleet.store.owner,
        "agents": os.environ.get("FLATFLEET_AGENTS"),
        "folder": os.getcwd(),  # noqa: PTH109
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }
    return context


async def shout(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    sys.stderr.write(context["item"] + "\n")
    return context


async def block(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    """Block the event loop for `item` seconds, and say before that it does."""
    await fleet.store.signals.send("came", context["machine"]["execution_id"])
    time.sleep(context["item"]["item"])  # noqa: ASYNC251
    return context


async def spin(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    """Use a core for `item` rounds."""
    n = 0
    for k in range(context["item"]):
        n += k * k
    context["out"] = n
    return context


class Gate:
    """The action `work` waits until the gate is open; who has come to it says so."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def open(self) -> None:
        await self._store.driver.put("gate", True)
        self._store.bell.announce("gate")

    async def runs(self) -> int:
        return len(await self._store.signals.peek("came"))

    async def reached(self, n: int, within: float = 30.0) -> None:
        with self._store.bell.listen("came") as rung:
            async with asyncio.timeout(within):
                while await self.runs() < n:
                    await heard(rung, 0.5)


async def opened(store: Any) -> None:
    with store.bell.listen("gate") as rung:
        while not (await store.driver.get("gate"))[0]:
            await heard(rung, 1.0)


def compose(url: str, **options: Any) -> run.Parts:
    parts = run.compose(url, **options)
    shared = Actions("test", ACTIONS, parts.fleet)
    parts.hooks.register("test", lambda: shared)
    return parts


def broken(url: str, **options: Any) -> run.Parts:
    raise RuntimeError("this module cannot be used")


async def _gone(*_: Any, **__: Any) -> None:
    raise StoreUnavailable("it was deleted")


async def _full(*_: Any, **__: Any) -> None:
    raise OSError("disk full")


ACTIONS = {each.__name__: each for each in (work, about, shout, block, spin)}
