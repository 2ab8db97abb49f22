"""A lease: one claimed item while this process holds it."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.records import Claim

WALKED = 50
"""Names of states that a lease keeps: the last ones that its item's machine has entered."""


class Lease:
    """One claimed item while this process holds it. `lost` says why it no longer does.

    `walked` are the states that the item's machine has entered under this lease.
    """

    __slots__ = ("cost", "expires", "item_id", "lost", "pool", "task", "token", "walked", "worker")

    def __init__(self, claim: Claim, worker: str, seconds: float) -> None:
        self.item_id = claim.id
        self.pool = claim.pool
        self.token = claim.token
        self.worker = worker
        self.expires = time.monotonic() + seconds
        self.cost = 0.0
        self.walked: deque[str] = deque(maxlen=WALKED)
        self.task: asyncio.Task[object] | None = None
        self.lost: str | None = None

    def check(self) -> None:
        """Raise LeaseLost if the lease is lost."""
        if self.lost is not None:
            raise LeaseLost(self.lost)

    def lose(self, why: str) -> None:
        """Mark the lease lost and cancel the work that runs under it."""
        self.lost = why
        if self.task is not None:
            self.task.cancel(why)
