"""The worker loop: no-op items at 1, 4, 16, 64 workers; the same with a machine of two states as task."""

from __future__ import annotations

from pathlib import Path

from flatfleet.benchmarks import ours, peers
from flatfleet.benchmarks.harness import Case, Contestant, Goal, Values

WORKERS = (1, 4, 16, 64)
RATE = "items/s"
GOALS = (
    Goal("flatfleet, sqlite", RATE, 10_000),
    Goal("flatfleet, memory", RATE, 15_000),
    Goal("flatfleet, redis", RATE, 5_000),
)


def _ours(name: str, kind: str, workers: int, size: int, task: str = "", stock: bool = False) -> Contestant:
    def run(folder: Path, n: int) -> Values:
        bundle = ours.task_worker(task) if task else ours.action_worker()
        return {RATE: n / ours.loop(bundle, kind, folder, n, workers, stock=stock)}

    return Contestant(name, run, size)


def _sdk(workers: int, size: int, task: str | None = None) -> Contestant:
    return Contestant(peers.SDK, lambda folder, n: {RATE: n / peers.sdk_loop(folder, n, workers, task=task)}, size)


def _huey(workers: int, size: int, fsync: bool | None = False) -> Contestant:
    return Contestant(peers.HUEY, lambda folder, n: {RATE: n / peers.huey_loop(folder, n, workers, fsync=fsync)}, size)


def _actions(workers: int) -> Case:
    size = min(20_000, 5_000 * workers)
    return Case(
        f"loop-{workers}",
        "loops",
        f"no-op items, `process` an action, {workers} worker{'s' if workers > 1 else ''}",
        {RATE: "more"},
        (
            _ours("flatfleet, sqlite", "sqlite", workers, size),
            _ours("flatfleet, memory", "memory", workers, size),
            _ours("flatfleet, redis", "redis", workers, size),
            _ours("FlatMachine on flatfleet's sqlite", "sqlite", workers, size // 4, stock=True),
            _sdk(workers, 1_000),
            _huey(workers, 5_000),
        ),
        GOALS if workers == 64 else (),
    )


def _tasks(task: str, what: str, goal: float) -> Case:
    return Case(
        f"task-{task.removeprefix('noop').strip('_') or 'plain'}",
        "loops",
        f"no-op items, `machine: task` of two states{what}, 64 workers",
        {RATE: "more"},
        (
            _ours("flatfleet, sqlite", "sqlite", 64, 10_000, task),
            _ours("flatfleet, memory", "memory", 64, 10_000, task),
            _ours("flatfleet, redis", "redis", 64, 10_000, task),
            _ours("FlatMachine on flatfleet's sqlite", "sqlite", 64, 1_000, task, stock=True),
            _sdk(64, 500, task),
        ),
        (Goal("flatfleet, sqlite", RATE, goal),),
    )


CASES = (
    *map(_actions, WORKERS),
    Case(
        "loop-power",
        "loops",
        "no-op items, safe against power loss too (an fsync at each commit), 64 workers",
        {RATE: "more"},
        (_ours("flatfleet, sqlite", "sqlite-full", 64, 10_000), _sdk(64, 1_000), _huey(64, 2_000, fsync=None)),
    ),
    _tasks("noop", "", 5_000),
    _tasks("noop_saved", " that saves each state", 2_000),
)
