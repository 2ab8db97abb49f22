"""Waiting for an SQLite database that is busy: fairer than SQLite's own waiting, and never seen by a caller."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which a busy database is taken for one that will stay so."""


def patiently(work: Callable[[], T]) -> T:
    """Return `work()`; while the database is busy, try again after 1 to 5 ms, for a minute at most.

    Busy is not only who waits for the write lock: a plain SELECT is, too, while another process puts the log in order
    that a killed one has left.
    """
    started = time.monotonic()
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() - started > PATIENCE:
                raise
        time.sleep(random.uniform(0.001, 0.005))


def is_busy(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
