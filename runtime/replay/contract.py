"""What a candidate has to be, the conditions that all of them meet, and what a run comes to."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from flatfleet.runtime.replay.simulator import Fleet

PATIENCE = 86_400.0
"""Seconds after the end of a trace from which on what still waits is given up, as unfinished."""


class Terms(NamedTuple):
    """What a worker costs an hour (None: no price is known), and whether it can be lost."""

    price: float | None = None
    safe: bool = False


class Candidate(Protocol):
    """What decides over a fleet. It remembers: each run needs a new one."""

    name: str
    initial: int
    """Workers that are there, and ready, when the trace begins."""
    interval: float | None
    """Seconds between decisions; None: it never decides."""
    window: float | None
    """Seconds that `Fleet.observe` measures over; None: it does not observe."""
    per_item: float
    """What an item costs beside the worker's hour."""
    prefers_spot: bool
    """Whether its workers are spot workers, but for the safe ones."""

    def decide(self, at: float, fleet: Fleet) -> int:
        """The target from now on."""
        ...

    def terms(self) -> Terms:
        """On which terms a worker is launched now."""
        ...


@dataclass(frozen=True)
class Conditions:
    """Start-up time of a worker, s; losses per worker-hour, each noticed after `lease` s; the seed of the losses."""

    startup: float = 30.0
    loss: float = 0.0
    lease: float = 60.0
    seed: int = 0
    sample: float | None = None
    """Seconds between the samples of the timeline; None: no samples."""
    patience: float = PATIENCE
    phase: float = 0.0
    """Seconds from the start of the trace to the first decision: what a policy comes to may hang on it."""


class Sample(NamedTuple):
    """The fleet at one moment: all workers that are paid for, waiting items, and arrivals so far."""

    at: float
    workers: int
    waiting: int
    arrived: int


@dataclass
class Run:
    """What happened, from `start` to `end` (s). `waits`: from arrival to the claim that completed the request, s."""

    start: float
    end: float = 0.0
    waits: array[float] = field(default_factory=lambda: array("d"))
    unfinished: int = 0
    busy: float = 0.0
    """Seconds of service that completed."""
    paid: float = 0.0
    """Seconds of all workers, each from its launch to its end."""
    cost: float | None = None
    peak: int = 0
    starts: int = 0
    """Launches after the initial ones; those that replace a lost worker too."""
    stops: int = 0
    lost: int = 0
    decisions: int = 0
    changes: int = 0
    samples: list[Sample] = field(default_factory=list)
