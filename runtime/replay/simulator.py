"""The simulator: requests arrive at one pool, first come first served, and a candidate decides over the fleet."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from flatfleet.runtime.errors import SourceError
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.replay.contract import Candidate, Conditions, Run, Sample
from flatfleet.runtime.replay.crew import ARRIVES, DECIDE, DONE, LOST, NOTICED, READY, SAMPLE, Crew
from flatfleet.runtime.replay.traces import Request
from flatfleet.runtime.replay.windows import Windows

MOST_DECISIONS = 5_000_000
"""Of one run: a year and a half at 10 s."""


def simulate(
    requests: Iterable[Request], candidate: Candidate, conditions: Conditions, start: float, end: float
) -> Run:
    """Run a candidate over requests that arrive from `start` on, until `end` and until all of them have ended.

    Raises SourceError where that would take more than `MOST_DECISIONS`.
    """
    if candidate.interval is not None and (count := (end - start) / candidate.interval) > MOST_DECISIONS:
        raise SourceError(
            f"{candidate.name}: from {start:.12g} to {end:.12g} s there would be {count:,.0f} decisions, one each "
            f"{candidate.interval:g} s, and {MOST_DECISIONS:,} at most are simulated"
        )
    return Fleet(candidate, conditions, start).run(requests, end)


class Fleet(Crew):
    """The simulated fleet, as a candidate sees it. It runs once."""

    def __init__(self, candidate: Candidate, conditions: Conditions, start: float) -> None:
        windows = None if candidate.window is None else Windows(candidate.window, start)
        super().__init__(conditions, windows, candidate.initial, Run(start))
        self.candidate, self.per_item = candidate, candidate.per_item
        self._demand_at, self._arrived = start, 0

    def observe(self, at: float) -> Observation:
        """What the metrics of production would say now. Only for a candidate with a window."""
        assert self.windows is not None
        waiting, claimed, workers = self.waiting, self.claimed, self.workers
        if waiting or claimed:
            self._demand_at = at
        return Observation(
            at=at,
            measured=at,
            workers=workers,
            starting=self.starting,
            draining=self.draining,
            target=self.target,
            waiting=waiting,
            claimed=claimed,
            expired=0,
            delayed=0,
            oldest_wait=at - self.queue[0][0] if waiting else None,
            utilisation=min(1.0, (claimed - self.draining) / workers) if workers else None,
            idle=at - self._demand_at,
            spot=self.spot if self.candidate.prefers_spot else None,
            cost_per_hour=self.cost_per_hour(),
            spent=self.spent(at),
            **self.windows.measure(at),
        )

    def run(self, requests: Iterable[Request], end: float) -> Run:
        """Let it all happen, and tell what did."""
        heap, queue, idle, windows = self.heap, self.queue, self.idle, self.windows
        now = self._begin()
        for request in requests:
            now = request[0]
            first = (now, ARRIVES)
            while heap and heap[0] < first:
                self._happens(*heappop(heap))
            self._arrived += 1
            queue.append(request)
            if windows is not None:
                windows.arrivals.append(now)
            if idle:
                self.claim(now, idle.pop())
        end = max(end, now)
        while heap and heap[0][0] <= (end + self.conditions.patience if self.working else end):
            now = heap[0][0]
            self._happens(*heappop(heap))
        return self._finish(max(now, end))

    def _begin(self) -> float:
        start, self.terms = self.result.start, self.candidate.terms()
        for _ in range(self.target):
            self.launch(start, 0.0)
        if self.candidate.interval is not None:
            heappush(self.heap, (start + self.conditions.phase, DECIDE, 0))
        if self.conditions.sample is not None:
            heappush(self.heap, (start, SAMPLE, 0))
        return start

    def _finish(self, now: float) -> Run:
        if self.conditions.sample is not None:
            self._sample(now)
        self.close(now)
        self.result.end, self.result.unfinished = now, self._arrived - len(self.result.waits)
        return self.result

    def _happens(self, now: float, kind: int, worker: int) -> None:
        if kind == DONE:
            self.done(now, worker)
        elif kind == READY:
            self.ready(now, worker)
        elif kind == DECIDE:
            self._decide(now)
            heappush(self.heap, (now + (self.candidate.interval or 0.0), DECIDE, 0))
        elif kind == SAMPLE:
            self._sample(now)
            heappush(self.heap, (now + (self.conditions.sample or 0.0), SAMPLE, 0))
        elif kind == LOST:
            self.lose(now, worker)
        elif kind == NOTICED:
            self.notice(now, worker)

    def _decide(self, now: float) -> None:
        target = self.candidate.decide(now, self)
        self.terms = self.candidate.terms()
        self.result.decisions += 1
        if target != self.target:
            self.result.changes += 1
            self.adjust(now, target)

    def _sample(self, now: float) -> None:
        self.result.samples.append(Sample(now, self.paid, self.waiting, self._arrived))
