"""Task queues over Redis as contestants: one module each, which its worker processes import too."""

from __future__ import annotations

import os
import time
from typing import Any

URL = os.environ.get("FLATFLEET_BENCH_REDIS", "")
"""The server of the run, for the worker processes and for the client."""


def work(number: int, pause: float = 0.0, burn: int = 0) -> dict[str, Any]:
    """The task of all of them: sleep, add up `burn` numbers, say when and where it ended.

    `by` has the parent process and the process.
    """
    if pause:
        time.sleep(pause)
    value = number + sum(range(burn))
    return {"value": value, "at": time.time(), "by": [os.getppid(), os.getpid()]}
