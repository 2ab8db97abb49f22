"""A fleet's workers as the registry has them: who is live and who was lost, room for a new one, and telling some to end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from flatfleet.runtime import decisions, metrics, orders, scaling
from flatfleet.runtime.dispatcher import scaler_of
from flatfleet.runtime.engines.hold import hold
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.records import LIVE_WORKER
from flatmachines import WorkerRecord

PATIENCE = 10.0
"""Seconds that a launcher waits for a scaler that is at work; then it counts what is live by then."""
LOOK = 0.02


@dataclass(frozen=True, slots=True)
class Look:
    """A fleet as it is: its parallelism that is live, and that of each lost worker that no decision has taken account of."""

    live: int
    lost: dict[str, int]


class Crew:
    """The workers of the fleet `name`, in whichever process they run."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self._store = fleet.store
        self._fleet = fleet
        self.name = name

    async def live(self) -> int:
        """The parallelism that is live. The workers are counted where they are stored, and not read."""
        return metrics.crew(await self._store.driver.metrics(self.name, time.time(), 0))[0]

    async def look(self) -> Look:
        """Who was lost is read first: who is lost in between counts as neither, and is replaced by the next reconcile."""
        lost = scaling.unreplaced(await self._records("lost"), self.name)
        return Look(await self.live(), {record.worker_id: scaling.size(record) for record in lost})

    async def tally(self, decision: dict[str, Any]) -> None:
        """Enter the workers that were launched and drained by a decision, whatever has become of them."""
        decisions.tally(decision, await self._records())

    async def _records(self, *statuses: str) -> list[WorkerRecord]:
        return await self._store.registration.list(statuses=statuses or None, pool=self.name)

    def _alive(self, records: Iterable[WorkerRecord]) -> list[scaling.Worker]:
        return scaling.alive(records, self.name, time.time(), is_dead)

    async def reserve(self, run: str, n: int, about: dict[str, Any] | None) -> tuple[str, int]:
        """Find the first free id `{run}-{n}` from `n` on, and register it `about` a worker of this process (None: do not).

        Returns the id and its `n`. From then on it counts as live; an id that a process took with it to the grave is not
        used again, and one that this process has reserved for the same decision is given once more, wherever it runs by now.
        """
        while True:
            name = f"{run}-{n}"
            record = await self._store.registration.get(name)
            if record is None or (record.status in LIVE_WORKER and self._same(record, about or {})):
                break
            n += 1
        begun = record is not None and not (record.metadata or {}).get("booked")
        if about is not None and not begun:
            await self._fleet.bookings.book(name, {"pool": self.name, **about})
        return name, n

    def _same(self, record: WorkerRecord, about: dict[str, Any]) -> bool:
        told = record.metadata or {}
        by = told.get("booked_by") or told.get("owner")
        return by == self._store.owner and told.get("decision") == about.get("decision")

    async def replaced(self, lost: Iterable[str], by: str) -> None:
        """Note with each lost worker which decision has taken account of it, so that it is replaced once at most."""
        noted = {"replaced_by": by}
        await asyncio.gather(*(self._store.driver.set_status(name, "lost", noted) for name in lost))

    async def surplus(self, level: int) -> tuple[list[scaling.Worker], int]:
        """Whom to drain so that no more than `level` is left and never less, and how much more than it stays then."""
        workers = self._alive(await self._records("active"))
        over = scaling.parallelism(workers) - level
        chosen = scaling.drains((each for each in workers if not each.item), over)
        over -= scaling.parallelism(chosen)
        if over > 0:  # only now it matters since when the others have held their items
            busy = [each for each in workers if each.item]
            items = await asyncio.gather(*(self._store.driver.item(str(each.item)) for each in busy))
            chosen += (more := scaling.drains(scaling.holding(busy, items), over))
            over -= scaling.parallelism(more)
        return chosen, max(0, over)

    async def drain(self, workers: Iterable[scaling.Worker], seconds: float, by: str) -> None:
        """Tell workers to end: each finishes its item, or hands it back after so many seconds."""
        told = {"drain_until": time.time() + seconds, "drained_by": by}
        await asyncio.gather(*(self._store.driver.set_status(each.id, "terminating", told) for each in workers))
        self._store.bell.announce("workers")

    async def drain_named(self, decision: dict[str, Any], seconds: float) -> None:
        """Carry out a message that names whom to drain, and enter what it comes to; whoever has ended is left alone.

        Who sent it may have told them already, in the decision's name: these count, too, whatever became of them.
        """
        records, message = await self._records(), decision["message"]
        workers = self._alive(records)
        chosen = [worker for worker in workers if worker.id in message["drain"]]
        told = (each for each in records if (each.metadata or {}).get("drained_by") == decision["id"])
        drained = scaling.parallelism(chosen) + sum(map(scaling.size, told))
        live = scaling.parallelism(workers) - scaling.parallelism(chosen)
        if decisions.aimed(decision, scaling.aim(message, decision["target_before"], live, 0, drained)):
            decision["live_before"] = live + drained
            await self.drain(chosen, message.get("drain_deadline", seconds), decision["id"])
        elif decision["outcome"] == "dry_run":
            decisions.imagine(decision, (), (worker.id for worker in chosen))

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Let nobody else launch for this fleet: no other launcher, and not its scaler.

        A scaler that is at work has PATIENCE seconds to park. The locks of processes that have died are taken over.
        """
        scaler = scaler_of(self.name)
        async with self._turn(f"aim/{self.name}", math.inf), self._turn(scaler, PATIENCE):
            yield
        self._store.bell.announce("signals")  # a message that came meanwhile found the scaler taken

    @asynccontextmanager
    async def _turn(self, key: str, patience: float) -> AsyncIterator[None]:
        ends = time.monotonic() + patience
        while True:
            async with hold(self._store, key) as held:
                if held is not None or time.monotonic() >= ends:
                    yield
                    return
            await asyncio.sleep(LOOK)

    async def book(self, run: str, want: int, parallelism: int) -> int:
        """Register all that a launcher is going to launch, `{run}-1` and on: so everybody counts them from now on.

        Returns the parallelism of them all: `want`, or 0 where that is less.
        """
        sizes = [min(parallelism, want - n * parallelism) for n in range(scaling.launches(want, parallelism))]
        about = {
            f"{run}-{n}": {"pool": self.name, "parallelism": size, "decision": run} for n, size in enumerate(sizes, 1)
        }
        await asyncio.gather(*(self._fleet.bookings.book(name, told) for name, told in about.items()))
        return max(0, want)

    async def keep(self, decision: dict[str, Any]) -> None:
        """Record a decision; a reconcile leaves the target as it is by now: a launcher may have raised it meanwhile."""
        entry = self._store.fleet(self.name)
        if decisions.reconciles(decision["message"]) and decision["outcome"] == "applied":
            decision["target"] = await entry.target()
        await orders.keep_hold(entry, decision)
        await entry.decide(decision)

    async def unscaled(self, look: Look) -> bool:
        """True if the fleet lives and has no scaler, parked or at work."""
        return bool(look.live) and await self._store.driver.load_snapshot(scaler_of(self.name)) is None
