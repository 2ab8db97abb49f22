"""The dispatcher: wakes the machines that are parked in the store, in whichever process gets hold of them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from dataclasses import replace
from functools import partial

from flatfleet.runtime.engines.contract import Engine, Outcome
from flatfleet.runtime.engines.hold import hold
from flatfleet.runtime.errors import StoreError, StoreGone
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.records import CUT_OFF, DELIVERED, LIVE_WORKER, WAITING, WOKEN
from flatfleet.runtime.stores.store import Store

logger = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks that nobody rang for."""
ORPHANS = 30.0
"""Seconds between two looks for machines whose process has died after a message had woken them."""
AT_ONCE = 100
"""Machines that one dispatcher resumes at the same time."""
ADOPTS = 2.0
"""Seconds between two looks for autoscalers whose process has died."""
RETRY, RETRY_MOST = 60.0, 3600.0
"""Seconds until a machine that could not be resumed, or raised before its message was acknowledged, is tried again:
twice as long each time."""

SCALER = ".scaler"
"""How the ids of scalers end; what stands before it is the fleet, and only a host of that fleet resumes them."""
AUTOSCALER = ".autoscaler"
"""How the ids of autoscalers end; any host of the fleet takes one up whose process is gone."""


def scaler_of(fleet: str) -> str:
    return f"{fleet}{SCALER}"


def autoscaler_of(fleet: str) -> str:
    return f"{fleet}{AUTOSCALER}"


def host_key(fleet: str, owner: str) -> str:
    """The key of the lock that says that this process hosts a fleet."""
    return f"host/{fleet}/{owner}"


class Dispatcher:
    """Delivers messages and resumes the machines that they are for; a process with one is a host.

    It looks when a message is sent anywhere, when a machine parks here, and every `POLL` seconds. Nothing depends on its
    memory: what is to be done stands in the store, and two dispatchers do not get hold of one machine.
    """

    def __init__(self, store: Store, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._resting: dict[str, tuple[float, float]] = {}
        self._idle: set[str] = set()
        self._elsewhere: set[str] = set()
        self._orphans: deque[str] = deque()
        self._orphans_at = 0.0
        self._adopts_at = math.inf
        self._hosted: dict[str, bool] = {}
        self._lost, self._fault = asyncio.Event(), StoreGone()
        engine.on_named = self._named

    @property
    def fleets(self) -> list[str]:
        """The fleets that this process hosts."""
        return sorted(self._hosted)

    async def host(self, fleet: str) -> None:
        """Host a fleet from now on: resume its scaler, and let everybody know."""
        self._meet(fleet)
        if not self._hosted[fleet]:
            self._hosted[fleet] = await self._store.lock.acquire(host_key(fleet, self._store.owner))
        self._store.bell.ring("signals")

    def start(self) -> None:
        """Look now, and from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="flatfleet-dispatcher")

    async def gone(self) -> StoreGone:
        """Wait until the store cannot be used any more, and return why."""
        await self._lost.wait()
        return self._fault

    async def stop(self) -> None:
        """Resume nothing more, and be no host any more; machines that run go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        for fleet in self.fleets:
            await self._leave(fleet)

    async def retire(self) -> None:
        """Close the fleets hosted here that are done: no other host, no live worker, nothing left in the pool.

        Their scalers and their targets go. A message that comes at the last moment keeps the scaler of its fleet.
        """
        for fleet in self.fleets:
            await self._leave(fleet)
            record, pool = self._store.fleet(fleet), self._store.work.pool(fleet)
            if await self._store.registration.list(statuses=LIVE_WORKER, pool=fleet):
                continue
            if not await record.hosts() and (await pool.counts()).left == 0 and await self._bury(scaler_of(fleet)):
                await record.set_target(None)

    async def settle(self) -> bool:
        """Look once more, wait for all machines that were resumed and run still, and tell whether there were any."""
        await self.look()
        outcomes = await asyncio.gather(*self._running.values(), return_exceptions=True)
        return any(outcome in ("parked", "ended", "failed") for outcome in outcomes)

    async def look(self) -> list[asyncio.Task[Outcome]]:
        """Deliver what was sent and resume whom it is for, as far as they may run here; return the machines resumed."""
        async with self._looking:
            for fleet, known in list(self._hosted.items()):
                if not known:
                    await self.host(fleet)
            now, driver = time.monotonic(), self._store.driver
            if now >= self._orphans_at:
                self._orphans_at = now + ORPHANS
                self._resting = {key: rest for key, rest in self._resting.items() if now < rest[0] + RETRY_MOST}
                self._orphans = deque(row.execution_id for row in await driver.snapshots(WOKEN, None))
                self._orphans += [scaler_of(fleet) for fleet in self._hosted if await self._cut_off(scaler_of(fleet))]
            if now >= self._adopts_at:
                self._adopts_at = now + ADOPTS
                for autoscaler in map(autoscaler_of, self._hosted):
                    if await self._abandoned(autoscaler):
                        self._orphans.append(autoscaler)
            skip = {*self._running, *(key for key, rest in self._resting.items() if now < rest[0])}
            started: list[asyncio.Task[Outcome]] = []
            full = True
            while full and len(self._running) < AT_ONCE:
                found = await driver.deliver(skip)
                full = len(found) == DELIVERED
                skip.update(found)
                started += self._resume(deque(sorted(found, key=self._elsewhere.__contains__)), now)
            return started + self._resume(self._orphans, now)

    async def _cut_off(self, machine_id: str) -> bool:
        """True if the machine was killed before it had parked for the first time; nothing wakes that one."""
        row = await self._store.driver.load_snapshot(machine_id)
        return row is not None and row.event in CUT_OFF

    async def _abandoned(self, machine_id: str) -> bool:
        """True if an autoscaler was begun, and no living process runs it."""
        if not await self._cut_off(machine_id):
            return False
        held = await self._store.driver.locks(machine_id)
        return not any(key == machine_id and not is_dead(owner) for key, owner, _ in held)

    def _resume(self, machine_ids: deque[str], now: float) -> list[asyncio.Task[Outcome]]:
        """Resume the first of these that may run here, as many as can run at once; those looked at are taken out."""
        started = []
        while machine_ids and len(self._running) < AT_ONCE:
            machine_id = machine_ids.popleft()
            unparked = machine_id.endswith((SCALER, AUTOSCALER))
            task = self._engine.resume(machine_id, unparked=unparked) if self._may(machine_id, now) else None
            if task is not None:
                self._running[machine_id] = task
                task.add_done_callback(partial(self._over, machine_id))
                started.append(task)
        return started

    async def _bury(self, machine_id: str) -> bool:
        """Delete a parked machine that has no message; False if it has one, or is not parked."""
        driver = self._store.driver
        async with hold(self._store, machine_id) as held:
            row = await driver.load_snapshot(machine_id) if held is not None else None
            if row is None or row.event != WAITING or row.channel is None:
                return False
            await driver.save_snapshot(replace(row, event="state_enter", channel=None), None, None)
            if await driver.take(row.channel, machine_id) is not None:
                await driver.save_snapshot(row, None, None)
                return False
            await driver.drop_snapshots(machine_id)
            return True

    async def _leave(self, fleet: str) -> None:
        del self._hosted[fleet]
        try:
            await self._store.lock.release(host_key(fleet, self._store.owner))
            if not await self._store.fleet(fleet).hosts() and await self._cut_off(autoscaler_of(fleet)):
                await self._store.driver.drop_snapshots(autoscaler_of(fleet))
        except StoreError as error:
            logger.warning("the store could not be told that fleet %s has one host less: %s", fleet, error)

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        with self._store.bell.listen("signals") as rung:
            while True:
                try:
                    await self.look()
                except StoreGone as error:
                    self._fault = error
                    return self._lost.set()
                except StoreError as error:
                    logger.warning("no messages can be delivered: %s", error)
                except Exception:
                    logger.exception("the dispatcher could not look")
                await heard(rung, POLL)

    def _may(self, machine_id: str, now: float) -> bool:
        for kind in (SCALER, AUTOSCALER):
            if machine_id.endswith(kind) and machine_id.removesuffix(kind) not in self._hosted:
                return False
        return now >= self._resting.get(machine_id, (0.0, 0.0))[0]

    def _over(self, machine_id: str, task: asyncio.Task[Outcome]) -> None:
        del self._running[machine_id]
        outcome: Outcome = "failed" if task.cancelled() or task.exception() else task.result()
        if outcome in ("failed", "refused"):
            pause = min(RETRY_MOST, 2 * self._resting.get(machine_id, (0.0, RETRY / 2))[1])
            self._resting[machine_id] = (time.monotonic() + pause, pause)
        elif outcome in ("parked", "ended"):
            self._resting.pop(machine_id, None)
        (self._elsewhere.add if outcome == "elsewhere" else self._elsewhere.discard)(machine_id)
        again = outcome == "idle" and machine_id not in self._idle
        self._idle.discard(machine_id)
        if again:
            self._idle.add(machine_id)
        if again or outcome in ("ended", "failed"):
            self._store.bell.ring("signals")  # this one may have a message by now, or another's turn has come

    def _meet(self, fleet: str) -> None:
        """Note a fleet to host. Its autoscaler is taken up only later: who is about to launch one comes first."""
        if fleet not in self._hosted:
            self._hosted[fleet] = False
            self._adopts_at = time.monotonic() + ADOPTS

    def _named(self, machine_id: str) -> None:
        """Host the fleet of a scaler that is run here."""
        if machine_id.endswith(SCALER):
            self._meet(machine_id.removesuffix(SCALER))
            self._store.bell.ring("signals")
