"""The lives of simulated workers: launched, starting, idle, busy, draining, lost, gone; what they did and what they cost.

A worker that has to go goes at once where it is starting or idle, after its item where it is busy. A lost one is noticed
when its lease is over: its item is the next to be claimed, and the worker is replaced. All have a parallelism of 1.
"""

from __future__ import annotations

import random
from collections import deque
from heapq import heappush
from typing import NamedTuple

from flatfleet.runtime.replay.contract import Conditions, Run, Terms
from flatfleet.runtime.replay.traces import Request
from flatfleet.runtime.replay.windows import Windows

DONE, READY, LOST, NOTICED, ARRIVES, DECIDE, SAMPLE = range(7)
"""Kinds of events, in the order in which those of one moment happen."""


class Held(NamedTuple):
    """An item in a worker's hands: its arrival, its service and its claim, s."""

    arrival: float
    service: float
    claimed: float


class Crew:
    """Workers over a queue. What is to happen to them goes into `heap`; what happened, into `result`."""

    def __init__(self, conditions: Conditions, windows: Windows | None, initial: int, result: Run) -> None:
        self.conditions, self.windows, self.result = conditions, windows, result
        self.target = self._initial = initial
        self.terms, self.per_item = Terms(), 0.0
        self.queue: deque[Request] = deque()
        self.heap: list[tuple[float, int, int]] = []
        self.idle: list[int] = []
        self._starting: dict[int, float] = {}
        self._held: dict[int, Held] = {}
        self._leaving: dict[int, Held] = {}
        self._gone: dict[int, Held | None] = {}
        self._written_off: set[int] = set()
        self._alive: dict[int, tuple[float, Terms]] = {}
        self._random = random.Random(f"{conditions.seed} losses")
        self._launches, self._cost, self._priced = 0, 0.0, False

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def claimed(self) -> int:
        """Items in hand; those of lost workers too, until it is noticed."""
        lost = sum(item is not None for item in self._gone.values()) if self._gone else 0
        return len(self._held) + len(self._leaving) + lost

    @property
    def workers(self) -> int:
        """Live as far as anybody knows, without the draining ones."""
        known = len(self._starting) + len(self.idle) + len(self._held)
        return known + len(self._gone) - len(self._written_off)

    @property
    def starting(self) -> int:
        return len(self._starting)

    @property
    def draining(self) -> int:
        return len(self._leaving)

    @property
    def paid(self) -> int:
        """All that are paid for at this moment."""
        return len(self._alive)

    @property
    def working(self) -> bool:
        """Whether an item waits or is in hand."""
        return bool(self.queue or self.claimed)

    @property
    def spot(self) -> int:
        """Of `workers` and `draining`, those that can be lost, or are, and nobody knows."""
        return sum(not terms.safe for _, terms in self._alive.values()) + len(self._gone) - len(self._written_off)

    def cost_per_hour(self) -> float | None:
        return sum(terms.price or 0.0 for _, terms in self._alive.values()) if self._priced else None

    def spent(self, now: float) -> float | None:
        """What has been paid by now; None where no worker has a price."""
        if not self._priced:
            return None
        running = sum((now - launched) * (terms.price or 0.0) for launched, terms in self._alive.values())
        return self._cost + running / 3600 + self.per_item * len(self.result.waits)

    def adjust(self, now: float, target: int) -> None:
        """What the scaler does: launch what is missing to the target, or drain what is too much."""
        self.target, live = target, self.workers
        for _ in range(target - live):
            self.result.starts += 1
            self.launch(now, self.conditions.startup)
        for _ in range(live - target):
            self.result.stops += 1
            self._drain(now)

    def close(self, now: float) -> None:
        """The end: who is still there is paid for until now."""
        self.result.cost = self.spent(now)
        for launched, _ in self._alive.values():
            self.result.paid += now - launched

    # -- a worker's life -----------------------------------------------------------------------------------------------

    def launch(self, now: float, startup: float) -> None:
        worker, terms = self._launches, self.terms
        self._launches += 1
        self._alive[worker] = now, terms
        self._priced = self._priced or terms.price is not None
        self.result.peak = max(self.result.peak, len(self._alive))
        if self.conditions.loss and not terms.safe:
            heappush(self.heap, (now + self._random.expovariate(self.conditions.loss / 3600), LOST, worker))
        self._starting[worker] = now
        if startup > 0:
            heappush(self.heap, (now + startup, READY, worker))
        else:
            self.ready(now, worker)

    def ready(self, now: float, worker: int) -> None:
        launched = self._starting.pop(worker, None)
        if launched is None:
            return  # drained or lost before it was ready
        if self.windows is not None and worker >= self._initial:
            self.windows.startups.append(now - launched)
        self._free(now, worker)

    def _free(self, now: float, worker: int) -> None:
        if self.queue:
            self.claim(now, worker)
        else:
            self.idle.append(worker)

    def claim(self, now: float, worker: int) -> None:
        arrival, service = self.queue.popleft()
        self._held[worker] = Held(arrival, service, now)
        heappush(self.heap, (now + service, DONE, worker))
        if self.windows is not None:
            self.windows.claims.append((now, now - arrival))

    def done(self, now: float, worker: int) -> None:
        held = self._held.pop(worker, None)
        stays = held is not None
        if held is None:
            held = self._leaving.pop(worker, None)
            if held is None:
                return  # lost
        arrival, service, claimed = held
        self.result.waits.append(claimed - arrival)
        self.result.busy += service
        if self.windows is not None:
            self.windows.completions.append((now, service, now - arrival))
        if stays:
            self._free(now, worker)
        else:
            self._leave(now, worker)

    def _drain(self, now: float) -> None:
        """One worker goes: the one with the least work lost, a starting one before an idle one, else the latest claim."""
        if self._starting:
            self._leave(now, self._starting.popitem()[0])
        elif self.idle:
            self._leave(now, self.idle.pop())
        elif self._held:
            worker, held = self._held.popitem()
            self._leaving[worker] = held
        else:
            self._written_off.add(next(each for each in self._gone if each not in self._written_off))

    def _leave(self, now: float, worker: int) -> None:
        """The worker has ended, and is paid for until now."""
        launched, terms = self._alive.pop(worker)
        self.result.paid += now - launched
        self._cost += (now - launched) / 3600 * (terms.price or 0.0)

    # -- losses --------------------------------------------------------------------------------------------------------

    def lose(self, now: float, worker: int) -> None:
        """The worker is gone, and nobody knows before its lease is over. A draining one is not missed."""
        if worker not in self._alive:
            return
        self.result.lost += 1
        self._leave(now, worker)
        self._gone[worker] = self._held.pop(worker, None)
        if self._starting.pop(worker, None) is None and self._gone[worker] is None:
            if worker in self._leaving:
                self._gone[worker] = self._leaving.pop(worker)
                self._written_off.add(worker)
            else:
                self.idle.remove(worker)
        heappush(self.heap, (now + self.conditions.lease, NOTICED, worker))

    def notice(self, now: float, worker: int) -> None:
        """Its item is the next to be claimed, and a new worker replaces it if the target still wants it."""
        held = self._gone.pop(worker)
        self._written_off.discard(worker)
        if held is not None:
            self.queue.appendleft((held.arrival, held.service))
            if self.idle:
                self.claim(now, self.idle.pop())
        if self.workers < self.target:
            self.result.starts += 1
            self.launch(now, self.conditions.startup)
