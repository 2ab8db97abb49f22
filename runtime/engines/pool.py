"""The pool of hosts: who gets which, how many there are, which are still well, and what all of it comes to in numbers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from flatfleet.runtime.engines.hosts import Event, Host
from flatfleet.runtime.engines.places import Place, Tally, full_of, measured, room, turn
from flatfleet.runtime.engines.spec import PoolSettings
from flatfleet.runtime.engines.wellness import watch
from flatfleet.runtime.errors import EngineError, PoolAtCapacity

logger = logging.getLogger(__name__)

PATIENCE = 0.1
"""Seconds that a request waits for an idle host before another one is started."""
STARTS = 3
"""Starts that may fail in a row; then nobody waits for another."""
GIVEN_UP = 60.0
"""Seconds after which it is tried again."""
YOUNG, SLOWEST = 2.0, 30.0
"""A host that died before it was YOUNG seconds old delays the next start, twice as long each time, up to SLOWEST."""


class HostPool:
    """A warm pool: `acquire` gives a place on a host, `release` gives it back.

    A request gets an idle host at once; else it waits PATIENCE for one, then one more is started below `max_size`, else it
    queues, first come first served, or raises PoolAtCapacity. `make(id)` makes a host; `hear(place, event)` hears what a
    host tells; a host that has not answered for `hung` seconds is killed, which is an event, too.
    """

    def __init__(
        self, settings: PoolSettings, make: Callable[[str], Host], hear: Callable[[Place, Event], None], hung: float
    ) -> None:
        self.settings = settings
        self._make = make
        self._hear = hear
        self.hung = hung
        self.places: list[Place] = []
        self._waiting: deque[asyncio.Future[Place]] = deque()
        self._made = self._turn = self._failed = self._young = 0
        self._fault: EngineError | None = None
        self._fault_at = 0.0
        self._starts: set[asyncio.Task[None]] = set()
        self._stops: set[asyncio.Task[int]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self.closed = False
        self.requests = 0
        self.waits, self.runs = Tally(), Tally()

    # -- who gets which ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Warm `min_size` hosts, and keep that many from now on; again: nothing."""
        if self._watcher is None and not self.closed:
            self._watcher = asyncio.create_task(watch(self), name="flatfleet-hosts")
            self._keep_up()

    async def acquire(self) -> Place:
        """A place on a host, reserved; PoolAtCapacity without `queue`, EngineError where no host comes up."""
        self.start()
        if self._fault is not None and time.monotonic() - self._fault_at < GIVEN_UP:
            raise EngineError(str(self._fault))
        if self.closed:
            raise EngineError("the engine is closing: nothing more is launched")
        self._fault = None
        self.requests += 1
        asked, loop = time.monotonic(), asyncio.get_running_loop()
        waiter: asyncio.Future[Place] = loop.create_future()
        self._waiting.append(waiter)
        self._serve()
        alarm = loop.call_later(PATIENCE, self._overdue, waiter)
        try:
            place = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise
        finally:
            alarm.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        self.waits.add(time.monotonic() - asked)
        return place

    def release(self, place: Place, seconds: float | None = None) -> None:
        """Give a place back, after so many seconds of work; a host that is one too many, and idle, goes."""
        place.leave()
        if seconds is not None:
            self.runs.add(seconds)
        if place.ready and not place.reserved and len(self.counted()) > self.settings.max_size:
            self.retire(place)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and not self.closed and (place := self._free()) is not None:
            waiter = self._waiting.popleft()
            if not waiter.done():
                place.enter()
                waiter.set_result(place)

    def _free(self) -> Place | None:
        """The ready host whose turn it is, of those with room."""
        chosen = turn(self.places, self._room(), self.settings.assignment, self._turn)
        self._turn = chosen.number if chosen is not None else self._turn
        return chosen

    def _room(self) -> float:
        return room(self.counted(), len(self._waiting), self.settings)

    def counted(self) -> list[Place]:
        """The hosts that count as the pool's: those that leave do not."""
        return [place for place in self.places if place.state in ("starting", "ready")]

    # -- how many there are --------------------------------------------------------------------------------------------

    def _overdue(self, waiter: asyncio.Future[Place]) -> None:
        """A request has waited long enough: start what it needs, or refuse it if it may not queue."""
        if not waiter.done():
            self._grow()
            full = len(self.counted()) >= self.settings.max_size
            if full and not self.settings.queue and self._waiting.index(waiter) >= self._coming():
                self._waiting.remove(waiter)
                waiter.set_exception(PoolAtCapacity(full_of(self.settings)))

    def _coming(self) -> float:
        """Requests that the hosts which are starting will serve."""
        return sum(self._room() for place in self.places if place.state == "starting")

    def _grow(self) -> None:
        """Start hosts for those who wait, as far as none that starts already will serve them."""
        while self._coming() < len(self._waiting) and len(self.counted()) < self.settings.max_size:
            self._start()

    def _keep_up(self) -> None:
        while not self.closed and self._fault is None and len(self.counted()) < self.settings.min_size:
            self._start()

    def _start(self) -> None:
        self._made += 1
        place = Place(self._make(f"host-{self._made}"), self._made)
        place.host.on_event = lambda event: self._heard(place, event)
        self.places.append(place)
        delay = min(SLOWEST, 0.1 * 2**self._young) if self._young else 0.0
        task = asyncio.create_task(self._come_up(place, delay))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    async def _come_up(self, place: Place, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            await place.host.start()
        except EngineError as error:
            self._without(place)
            self._failed += 1
            if self._failed >= STARTS:
                self._give_up(error)
            else:
                self._keep_up()
                self._grow()
        except BaseException:
            self._without(place)
            raise
        else:
            self._failed = 0
            if place.state == "starting":
                place.up()
                self._serve()
            else:  # it died at once
                self._replace(place)

    def _without(self, place: Place) -> None:
        if place in self.places:
            self.places.remove(place)

    def _give_up(self, error: EngineError) -> None:
        self._fault, self._fault_at, self._failed = error, time.monotonic(), 0
        logger.info("no host comes up: %s", error)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(EngineError(str(error)))

    # -- which are well ------------------------------------------------------------------------------------------------

    def _heard(self, place: Place, event: Event) -> None:
        if event.kind == "leaving" and place.state == "ready":
            place.state = "leaving"
            self._replace(place)
        elif event.kind == "died":
            self._without(place)
            if place.state in ("ready", "leaving"):
                self._young = self._young + 1 if place.age < YOUNG else 0
            if place.state == "ready":
                self._replace(place)
            place.state = "gone"
        self._hear(place, event)

    def _replace(self, place: Place) -> None:
        """Start another host for one that has gone, if that had work or there are too few."""
        if not self.closed:
            if place.reserved and self._fault is None and len(self.counted()) < self.settings.max_size:
                self._start()
            self._keep_up()
            self._grow()

    def retire(self, place: Place) -> None:
        """Let an idle host go."""
        place.state = "stopping"
        task = asyncio.create_task(place.host.stop(0))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    # -- the end -------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let the workers of all hosts finish what they hold, and end."""
        for place in self.places:
            if place.ready:
                place.host.drain()

    async def close(self, seconds: float) -> int:
        """Stop every host, all at once, and refuse who waits; return how many items they have handed back."""
        self.closed = True
        self._give_up(EngineError("the engine is closing: nothing more is launched"))
        asking = [place.asked for place in self.places if place.asked is not None]
        ended = [task for task in (self._watcher, *asking, *self._starts) if task is not None]
        for task in ended:
            task.cancel()
        stops = [place.host.stop(seconds) for place in self.places if place.state in ("ready", "leaving")]
        counts = await asyncio.gather(*stops, *self._stops)
        await asyncio.gather(*ended, return_exceptions=True)
        self.places.clear()
        return sum(counts)

    # -- in numbers ----------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        """What the pool does, as data: see places.measured."""
        fault = None if self._fault is None or self.closed else str(self._fault)
        counts = {"requests": self.requests, "queued": len(self._waiting), "fault": fault}
        times = {"wait": self.waits.as_dict(), "execution": self.runs.as_dict()}
        return {**counts, **times, **measured(self.places, self.settings.slots)}
