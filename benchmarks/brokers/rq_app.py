"""RQ: worker processes; `Worker` forks for each job, `SimpleWorker` does not."""

from __future__ import annotations

import sys
from typing import Any

from flatfleet.benchmarks import brokers
from redis import Redis
from rq import Queue
from rq.job import Job

redis = Redis.from_url(brokers.URL)
queue = Queue("bench", connection=redis)

QUEUE = queue.key


def commands(processes: int, threads: int, kind: str) -> list[list[str]]:
    flags = ["-q", "--disable-job-desc-logging", "-u", brokers.URL, "-w", f"rq.worker.{kind}"]
    return [[sys.executable, "-m", "rq.cli", "worker", *flags, queue.name]] * processes


def enqueue(jobs: list[tuple[Any, ...]]) -> list[str]:
    return [job.id for job in queue.enqueue_many([Queue.prepare_data(brokers.work, args=job) for job in jobs])]


def result(job: str) -> Any:
    """What a task returned, None if it has not ended."""
    return Job.fetch(job, connection=redis).return_value()
