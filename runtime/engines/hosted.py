"""The engine with hosts: launched machines run in a pool of places beside this process; what has a name stays here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from flatfleet.runtime.engines.chores import Chores
from flatfleet.runtime.engines.contract import Outcome
from flatfleet.runtime.engines.hosts import Event, Host, Setup, order_of
from flatfleet.runtime.engines.inline import InlineEngine
from flatfleet.runtime.engines.making import id_of, stays
from flatfleet.runtime.engines.places import Place
from flatfleet.runtime.engines.pool import HostPool
from flatfleet.runtime.engines.replacing import How, Launched, Undertaker
from flatfleet.runtime.engines.showing import Showing
from flatfleet.runtime.engines.spec import EngineSpec
from flatfleet.runtime.errors import HostDied, StoreError
from flatfleet.runtime.fleet import Fleet

logger = logging.getLogger(__name__)

TRIES = 3
"""Hosts that one machine is given to, where each dies before it has it."""


class HostedEngine(InlineEngine):
    """Sends launched machines to hosts. Those with a name or in the background, those resumed, and `invoke` stay inline."""

    def __init__(self, fleet: Fleet, spec: EngineSpec, setup: Setup, make: Callable[[str], Host]) -> None:
        super().__init__(fleet)
        self.pool = HostPool(spec.pool, make, self._heard, fleet.store.lease)
        self._launched_there: dict[str, Launched] = {}
        self._chores = Chores()
        self._owners = {fleet.store.owner}
        self._said = ""
        self._undertaker = Undertaker(fleet)
        self._showing = Showing(fleet.store, spec, self.pool)
        fleet.bookings.on_order = self._told_to_end

    # -- launching -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.pool.start()
        self._showing.start()

    async def launch(
        self, caller_machine: Any, target_config: dict[str, Any], input_data: dict[str, Any], execution_id: str
    ) -> None:
        self.start()
        machine_id = id_of(input_data, execution_id)
        if machine_id in self._launched_there:
            return
        if stays(target_config, input_data) or self._fleet.draining:
            await super().launch(caller_machine, target_config, input_data, execution_id)
            return
        launched = Launched(order_of(caller_machine, target_config, machine_id, input_data))
        self._launched_there[machine_id] = launched
        if self.pool.settings.queue or self._fleet.bookings.told_to_end(machine_id):
            self._dispatch(launched)
            return
        try:
            launched.place = await self.pool.acquire()
        except BaseException as error:
            await self._give_up(launched, error, told=False)
            raise
        self._dispatch(launched)

    def _dispatch(self, launched: Launched) -> None:
        launched.task = self._chores.start(self._send(launched))

    async def _send(self, launched: Launched) -> None:
        """Get a place for a machine and send it there, again where that host dies before it has it."""
        order, tries = launched.order, 0
        assert order is not None
        try:
            while True:
                ends = self._fleet.draining or self._fleet.bookings.told_to_end(launched.name)
                if launched.place is None and ends:
                    await self._retire(launched)
                    return
                place = launched.place = launched.place or await self.pool.acquire()
                self._fleet.bookings.hand_over(order.machine_id)
                try:
                    await place.host.launch(replace(order, served=self._fleet.served))
                except HostDied:
                    launched.place, tries = None, tries + 1
                    self._fleet.bookings.take_back(order.machine_id)
                    if tries == TRIES:
                        raise
                else:
                    launched.sent = True
                    if place.state == "gone":  # it died just after it had taken the order
                        self._chores.start(self._bury(place, [launched], "it died"))
                    elif place.state == "leaving":
                        self._follow(launched)
                    return
        except (Exception, asyncio.CancelledError) as error:
            if launched.place is not None:
                self.pool.release(launched.place)
            if isinstance(error, asyncio.CancelledError):
                self._forget(launched)
                raise
            await self._give_up(launched, error)

    async def _give_up(self, launched: Launched, error: BaseException, *, told: bool = True) -> None:
        """A machine was not launched, or is lost: its booking and its wait for a result end."""
        self._forget(launched)
        name = launched.name
        if told and str(error) == self._said:  # of each of many, once is enough
            self._failures.append((name, error))
        elif told:
            self._said = str(error)
            self._failed(name, error)
        kind = type(error).__name__
        await self._undertaker.report(name, kind, {"_error": str(error), "_error_type": kind} if told else None)

    def _told_to_end(self, name: str) -> None:
        """A worker that waits for a host has nothing to finish: it ends at once, and its wait with it."""
        launched = self._launched_there.get(name)
        if launched is not None and launched.unqueue():
            self._forget(launched)
            self._chores.start(self._retire(launched))

    async def _retire(self, launched: Launched) -> None:
        """A worker has ended before it began, as it was told to, or all are."""
        self._forget(launched)
        about = {"status": "drained", "worker_id": launched.name, "processed": 0}
        await self._undertaker.report(launched.name, "drained", about if launched.worker else None)

    def _forget(self, launched: Launched) -> None:
        if self._launched_there.get(launched.name) is launched:
            del self._launched_there[launched.name]
        self._wrong.pop(launched.name, None)
        self._chores.moved.set()

    # -- what hosts tell -----------------------------------------------------------------------------------------------

    def _heard(self, place: Place, event: Event) -> None:
        if event.kind == "began" and event.id not in self._launched_there:
            place.enter()
            self._launched_there[event.id] = Launched(None, event.id, place, sent=True)
        elif event.kind == "named":
            self.on_named(event.id)
        elif event.kind == "ended" and event.id in self._launched_there:
            self._chores.start(self._over_there(self._launched_there[event.id], place, event))
        elif event.kind == "leaving":
            for launched in [each for each in self._launched_there.values() if each.place is place and each.sent]:
                self._follow(launched)
        elif event.kind == "died" and not self.pool.closed:
            mine = [each for each in self._launched_there.values() if each.place is place and each.sent]
            if mine:
                logger.error("%s died (%s) with %d machines on it", place.host.id, event.reason, len(mine))
            self._chores.start(self._bury(place, mine, event.reason))
        if place.host.owner is not None:
            self._owners.add(place.host.owner)

    def _follow(self, launched: Launched) -> None:
        """Launch a worker in the place of one whose host leaves, once, while that finishes what it holds."""
        if launched.heir is None:
            launched.heir = self._chores.start(self._replace(launched, "its host was told to go", "leaving"))

    async def _over_there(self, launched: Launched, place: Place, event: Event) -> None:
        """A machine has ended; if only because its host was told to go, another takes its place, or has it by now."""
        self.pool.release(place, time.monotonic() - launched.since)
        self._fleet.bookings.begun(launched.name)
        launched.place = None
        left = place.state == "leaving"
        if event.error is not None:
            self._failures.append((event.id, event.error))
        elif left and not await launched.followed():
            await self._replace(launched, f"{place.host.id} was told to go", "cut off" if event.cancelled else "ended")
        self._forget(launched)

    async def _bury(self, place: Place, mine: list[Launched], reason: str) -> None:
        """Hand back at once what a dead host held, and launch other workers in the place of its own."""
        await self._undertaker.hand_back(place.host.owner)
        for launched in mine:
            if self._launched_there.get(launched.name) is launched:
                if not await launched.followed():
                    await self._replace(launched, f"{place.host.id} died: {reason}", "cut off")
                self._forget(launched)
        await self._undertaker.mark_lost(place.host.owner)

    async def _replace(self, launched: Launched, why: str, how: How) -> bool:
        """Launch a worker in the place of one that loses its host; a machine that is no worker has failed by it.

        True if one was launched. What fails while the host only leaves is tried once more when it has ended.
        """
        if self._fleet.draining or self.pool.closed:
            return False
        try:
            order = await self._undertaker.successor(launched, how)
        except (HostDied, StoreError) as error:
            if how != "leaving":
                await self._give_up(launched, HostDied(f"{why}; it could not be replaced: {error}"))
            return False
        if order is not None:
            later = self._launched_there[order.machine_id] = launched.next(order)
            self._dispatch(later)
        return order is not None

    # -- the whole of it -----------------------------------------------------------------------------------------------

    def live(self) -> int:
        return super().live() + len(self._launched_there)

    def owners(self) -> Collection[str]:
        return frozenset(self._owners)

    async def in_hand(self) -> int:
        held = [self._store.driver.claims(place.host.owner) for place in self.pool.places if place.host.owner]
        return await super().in_hand() + sum(map(len, await asyncio.gather(*held)))

    def resume(self, execution_id: str, *, unparked: bool = False) -> asyncio.Task[Outcome] | None:
        self.start()  # it may launch something
        return super().resume(execution_id, unparked=unparked)

    async def join(self) -> None:
        while True:
            await super().join()
            if not self._launched_there and not self._chores:
                return
            self._chores.moved.clear()
            await self._chores.moved.wait()

    def drain(self) -> None:
        super().drain()
        self.pool.drain()
        for launched in list(self._launched_there.values()):
            if launched.unqueue():
                self._forget(launched)

    async def close(self, deadline: float) -> int:
        self.drain()
        if deadline > 0:
            try:
                async with asyncio.timeout(deadline):
                    await self.join()
            except TimeoutError:
                pass
        n, _ = await asyncio.gather(self.pool.close(0), self._showing.stop())
        await self._chores.settle()
        n += await self._undertaker.settle(self._owners - {self._store.owner})
        self._launched_there.clear()
        return n + await super().close(0)
