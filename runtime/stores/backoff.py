"""How long a failed item waits, and what is said of one whose workers died: pure functions that all drivers share."""

from __future__ import annotations

import zlib

LONGEST = 300.0
"""Seconds at which the doubling stops."""
JITTER = 0.1
"""Largest relative deviation, so that items that failed together do not all come back together."""
PROVIDER_WAIT = 30.0
"""Seconds that an item waits after its provider's fault, where the provider named no time."""


def backoff(attempts: int, salt: str) -> float:
    """Return the seconds to wait after the `attempts`-th failure: 1, 2, 4 … 300, each ±10 % by `salt` (the item's id).

    Pure: the same attempt at the same item always waits equally long.
    """
    base = min(LONGEST, 2.0 ** min(max(attempts, 1) - 1, 60))
    spread = zlib.crc32(f"{salt}#{attempts}".encode(errors="backslashreplace")) / 0xFFFFFFFF
    return base * (1 + JITTER * (2 * spread - 1))


def crash_text(crashes: int, why: str) -> str:
    """Return the error text of an item that has lost its worker `crashes` times, the last time because `why`."""
    times = "once" if crashes == 1 else f"{crashes} times"
    return f"this item has lost its worker {times}; the last time {why}"
