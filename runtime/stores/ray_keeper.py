"""The actor of the Ray store: SQLite databases on the head node, for all processes of the cluster."""

from __future__ import annotations

import asyncio
import os
import pickle
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatfleet.runtime.errors import StoreUnavailable
from flatfleet.runtime.stores.datagrams import Topics
from flatfleet.runtime.stores.ray_address import state_dir
from flatfleet.runtime.stores.ray_cluster import NAMESPACE, ray_module
from flatfleet.runtime.stores.ray_once import CALL, Call, Once

PROTOCOL = 1
"""Raised by every change after which a client of before would misunderstand the actor."""
HEAR = 20.0
"""Seconds after which somebody who listens is answered that nothing was rung."""
RINGS = 1000
"""Announcements that are kept for those who are between two calls; who missed more looks at everything."""
SWEEP = 64
"""Calls of a client after which the answers are dropped that it has had."""


def _expanded(path: str) -> Path:
    return Path(path).expanduser()


@dataclass
class _Open:
    """A database that is open here, who uses it, and what was rung in it."""

    driver: Once
    id: str
    clients: set[str] = field(default_factory=set)
    swept: dict[str, int] = field(default_factory=dict)
    rings: deque[tuple[int, str, Topics]] = field(default_factory=lambda: deque(maxlen=RINGS))
    rung: int = 0
    listeners: set[asyncio.Event] = field(default_factory=set)


class Keeper:
    """The actor. One for each name; a file of the head node's is open once, whoever uses it.

    A file that was deleted or replaced is another store: who used the one before is refused.
    """

    def __init__(self, name: str) -> None:
        self._default = state_dir() / f"{name}.db"
        self._open: dict[str, _Open] = {}
        self._opening = asyncio.Lock()
        self._boot = uuid.uuid4().hex

    async def open(self, path: str | None, synchronous: str, must_exist: bool, client: str) -> bytes:
        """Open a database (None: the name's own) for a client; answers like `calls`, with a dict about it."""
        try:
            return pickle.dumps((True, await self._opened(path, synchronous, must_exist, client)))
        except Exception as error:
            return pickle.dumps((False, error))

    async def _opened(self, path: str | None, synchronous: str, must_exist: bool, client: str) -> dict[str, Any]:
        file = _expanded(path) if path else self._default
        async with self._opening:
            found = self._open.get(str(file))
            if found is None:
                if must_exist and not file.exists():
                    raise StoreUnavailable(
                        f"there is no store {file} on the head node of the Ray cluster: run a launcher first, or name "
                        "the right one with --store"
                    )
                driver = Once(file, synchronous)
                try:
                    found = _Open(driver, await driver.prepare())
                except BaseException:
                    await driver.close()
                    raise
                self._open[str(file)] = found
        found.clients.add(client)
        about = {"protocol": PROTOCOL, "boot": self._boot, "pid": os.getpid()}
        return {**about, "file": str(file), "id": found.id, "rung": found.rung}

    async def calls(
        self, file: str, store: str, client: str, done: int, now: float | None, calls: Sequence[tuple[int, bool, bytes]]
    ) -> list[bytes] | None:
        """Carry out operations at once, each by itself; their answers are pickled (worked?, value or error).

        `done`: the client waits for no call below that number. None: the database has to be opened again.
        """
        found = self._open.get(file)
        if found is None or found.id != store or client not in found.clients:
            return None
        found.driver.clock.told = now
        swept = found.swept.setdefault(client, 0)
        if done - swept >= SWEEP:
            found.swept[client] = done
            await found.driver.had(client, done)
        return await asyncio.gather(*(self._call(file, found, client, *call) for call in calls))

    async def _call(self, file: str, found: _Open, client: str, number: int, again: bool, body: bytes) -> bytes:
        CALL.set(Call(client, number, again))
        try:
            op, args, kwargs = pickle.loads(body)
            answer = True, await getattr(found.driver, op)(*args, **kwargs)
        except StoreUnavailable as error:
            answer = False, error
            if self._open.get(file) is found and not found.driver.same_file():
                del self._open[file]  # nobody will be served by this one again
        except Exception as error:
            answer = False, error
        try:
            return pickle.dumps(answer)
        except Exception:
            return pickle.dumps((False, StoreUnavailable(f"the store's answer cannot be sent: {answer[1]!r}")))

    async def leave(self, file: str, client: str) -> None:
        """Forget a client; with the last one the database is closed."""
        found = self._open.get(file)
        if found is None or client not in found.clients:
            return
        found.clients.discard(client)
        found.swept.pop(client, None)
        await found.driver.had(client, None)
        if not found.clients:
            async with self._opening:
                if not found.clients and self._open.get(file) is found:
                    del self._open[file]
                    await found.driver.close()

    # -- waking --------------------------------------------------------------------------------------------------------

    async def tell(self, file: str, client: str, topics: Topics) -> None:
        """Wake the others who listen to one of the topics (None: whatever they listen to)."""
        found = self._open.get(file)
        if found is not None:
            found.rung += 1
            found.rings.append((found.rung, client, topics))
            for event in found.listeners:
                event.set()

    async def hear(self, file: str, client: str, boot: str | None, seen: int) -> tuple[str, int, Topics] | None:
        """Wait until others ring: (this actor's boot, number of the last ring, what was rung since `seen`; None: anything).

        Answers after HEAR seconds at the latest; at once where rings were missed. Like `calls`,
        None if the database has to be opened again.
        """
        found = self._open.get(file)
        if found is None or client not in found.clients:
            return None
        if boot != self._boot:
            return self._boot, found.rung, None
        event = asyncio.Event()
        found.listeners.add(event)
        try:
            async with asyncio.timeout(HEAR):
                while True:
                    event.clear()
                    if found.rung - seen > RINGS:
                        return boot, found.rung, None
                    new = [topics for n, who, topics in found.rings if n > seen and who != client]
                    if new:
                        return boot, found.rung, None if None in new else set().union(*filter(None, new))
                    seen = found.rung
                    await event.wait()
        except TimeoutError:
            return boot, seen, set()
        finally:
            found.listeners.discard(event)


def keeper(name: str) -> Any:
    """The actor of that name; it is begun if there is none. Blocks."""
    ray = ray_module()

    return (
        ray.remote(Keeper)
        .options(
            name=f"store:{name}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=10_000,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
        )
        .remote(name)
    )
