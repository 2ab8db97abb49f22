"""Dramatiq: its Redis broker and its results middleware."""

from __future__ import annotations

import sys
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import RedisBackend
from flatfleet.benchmarks import brokers

broker = RedisBroker(url=brokers.URL)  # type: ignore[no-untyped-call]
broker.add_middleware(Results(backend=RedisBackend(url=brokers.URL)))  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)
actor = dramatiq.actor(actor_name="work", store_results=True)(brokers.work)

QUEUE = "dramatiq:default"


def commands(processes: int, threads: int, kind: str) -> list[list[str]]:
    return [[sys.executable, "-m", "dramatiq", __name__, "-p", str(processes), "-t", str(threads)]]


def enqueue(jobs: list[tuple[Any, ...]]) -> list[Any]:
    return [actor.send(*job) for job in jobs]


def result(message: Any) -> Any:
    """What a task returned, None if it has not ended."""
    try:
        return message.get_result()
    except ResultMissing:
        return None
