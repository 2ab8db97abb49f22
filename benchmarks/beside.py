"""Tasks of two kinds over each store and engine, beside other task queues on one Redis server; CPU-bound ones over cores."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from flatfleet.benchmarks import crews, fleets
from flatfleet.benchmarks.crews import BUSY, LOADS, Broker, Load
from flatfleet.benchmarks.fleets import Fleet
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Values, correct

WORKERS = (1, 2, 4)
MANY = 64
RATE = "no-op items/s"
FLEETS = (
    ("redis", "inline"),
    ("redis", "process"),
    ("redis", "ray"),
    ("sqlite", "inline"),
    ("sqlite", "process"),
    ("sqlite", "ray"),
    ("ray", "inline"),
    ("ray", "process"),
    ("ray", "ray"),
    ("memory", "inline"),
)
FAST, USUAL, SLOW, FORKING = 4_000, 2_000, 1_000, 200
"""No-op items: so many that they take a second or some."""


def _mine(fleet: Fleet, loads: tuple[Load, ...], size: int) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        return fleets.measured(fleet, folder, n, loads)

    return Contestant(fleet.name, run, size)


def _other(broker: Broker, loads: tuple[Load, ...] = LOADS, size: int = USUAL) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        return crews.measured(broker, folder, n, loads)

    return Contestant(broker.name, run, size)


def _bare(w: int) -> Contestant:
    """What the cores give without any queue."""

    def run(folder: Path, n: int) -> Values:
        from flatfleet.benchmarks.brokers import work  # reads the server's URL when it is imported

        (load,) = BUSY
        count = load.size(n, w)
        with multiprocessing.get_context("spawn").Pool(w) as pool:
            pool.map(work, range(w))
            started = time.perf_counter()
            done = pool.starmap(work, [(number, 0.0, load.burn) for number in range(count)], chunksize=1)
            seconds = time.perf_counter() - started
        wrong = sum(each["value"] != number + load.sum for number, each in enumerate(done))
        correct(not wrong, f"{wrong} of {count} results are wrong")
        return {load.unit: count / seconds}

    return Contestant("multiprocessing.Pool, no queue", run, 4_000)


def _brokers(w: int) -> tuple[Contestant, ...]:
    return (
        _other(Broker("Celery, solo", "celery_app", "solo", processes=w)),
        _other(Broker("Celery, prefork", "celery_app", "prefork", processes=w)),
        _other(Broker("Celery, threads", "celery_app", "threads", threads=w)),
        _other(Broker("Dramatiq, processes", "dramatiq_app", "", processes=w), size=FAST),
        _other(Broker("Dramatiq, threads", "dramatiq_app", "", threads=w), size=FAST),
        _other(Broker("huey, processes", "huey_app", "process", processes=w), size=FAST),
        _other(Broker("huey, threads", "huey_app", "thread", threads=w), size=FAST),
        _other(Broker("RQ, SimpleWorker", "rq_app", "SimpleWorker", processes=w), size=SLOW),
        _other(Broker("RQ, Worker (forks for each job)", "rq_app", "Worker", processes=w, forks=True), size=FORKING),
    )


def _few(w: int) -> Case:
    mine = tuple(
        _mine(Fleet(store, engine, w, 1 if engine == "inline" else w), LOADS, SLOW if store == "ray" else FAST)
        for store, engine in FLEETS
    )
    return Case(
        f"tasks-{w}",
        "tasks",
        f"tasks, {w} worker{'s' if w > 1 else ''}",
        {load.unit: "more" for load in LOADS},
        mine + _brokers(w),
    )


def _busy(w: int) -> Case:
    mine = (("redis", "process"), ("redis", "ray"), ("redis", "inline"), ("sqlite", "process"), ("sqlite", "ray"))
    return Case(
        f"busy-{w}",
        "busy",
        f"tasks that add up a million numbers, {w} worker{'s' if w > 1 else ''}",
        {load.unit: "more" for load in BUSY},
        (
            *(_mine(Fleet(store, engine, w, 1 if engine == "inline" else w), BUSY, 4_000) for store, engine in mine),
            _bare(w),
            _other(Broker("Celery, solo", "celery_app", "solo", processes=w, prefetch=1), BUSY),
            _other(Broker("Celery, prefork", "celery_app", "prefork", processes=w, prefetch=1), BUSY),
            _other(Broker("Dramatiq, processes", "dramatiq_app", "", processes=w, prefetch=1), BUSY),
            _other(Broker("huey, processes", "huey_app", "process", processes=w), BUSY),
            _other(Broker("RQ, SimpleWorker", "rq_app", "SimpleWorker", processes=w), BUSY),
        ),
    )


def _many() -> Case:
    mine = (Fleet("redis", "inline", MANY), Fleet("redis", "process", MANY, 2), Fleet("redis", "ray", MANY, 2))
    return Case(
        f"tasks-{MANY}",
        "tasks",
        f"tasks, {MANY} at once",
        {load.unit: "more" for load in LOADS},
        (
            *(_mine(fleet, LOADS, 10_000) for fleet in mine),
            _mine(Fleet("sqlite", "inline", MANY), LOADS, 10_000),
            _mine(Fleet("sqlite", "process", MANY, 2), LOADS, 10_000),
            _other(Broker("Celery, threads", "celery_app", "threads", threads=MANY)),
            _other(Broker("Dramatiq, 4 processes of 16 threads", "dramatiq_app", "", 4, 16), size=FAST),
            _other(Broker("huey, threads", "huey_app", "thread", threads=MANY), size=FAST),
        ),
        (Goal("flatfleet, redis, inline", RATE, 5_000),),
    )


CASES = (*map(_few, WORKERS), _many(), *map(_busy, WORKERS))
