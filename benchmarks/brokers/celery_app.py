"""Celery: results in Redis, no events, no remote control."""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import Celery  # type: ignore[import-untyped]
from flatfleet.benchmarks import brokers

SETTINGS = {
    "worker_prefetch_multiplier": int(os.environ.get("FLATFLEET_BENCH_PREFETCH", "4")),
    "worker_enable_remote_control": False,
    "broker_connection_retry_on_startup": True,
    "task_ignore_result": False,
}
app = Celery("bench", broker=brokers.URL, backend=brokers.URL)
app.conf.update(SETTINGS)
sender = Celery("bench", broker=brokers.URL)
"""Without a result backend: it does not subscribe to each result before it is there."""
app.task(name="work")(brokers.work)

QUEUE = "celery"


def commands(processes: int, threads: int, kind: str) -> list[list[str]]:
    """`solo`: so many worker processes of one task each; `prefork`, `threads`: one with a pool."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    start = [sys.executable, "-m", "celery", "-A", f"{__name__}:app", "worker", *quiet, "-P", kind]
    if kind == "solo":
        return [[*start, "-n", f"w{k}"] for k in range(processes)]
    return [[*start, "-c", str(processes * threads)]]


def enqueue(jobs: list[tuple[Any, ...]]) -> list[str]:
    with sender.producer_pool.acquire(block=True) as producer:
        return [sender.send_task("work", args=job, producer=producer).id for job in jobs]


def result(task: str) -> Any:
    """What a task returned, None if it has not ended."""
    found = app.AsyncResult(task)
    return found.result if found.successful() else None
