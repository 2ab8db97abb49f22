"""What housekeeping may delete: the rules that all drivers share, as pure functions."""

from __future__ import annotations

from collections.abc import Callable

from flatfleet.runtime.stores.keys import item_of
from flatfleet.runtime.stores.records import WAITING, WAITING_STOCK, WOKEN, State

DECISIONS_KEPT = 100
"""Decisions of a fleet that are always kept."""
ATTEMPTS_KEPT = 10
"""Attempts of a completed item that are kept."""
CONFIG_GRACE = 86_400.0
"""Seconds for which a config is kept after it was last put: the snapshot that refers to it may be yet to come."""

ENDED_WORKER = frozenset({"terminated", "lost"})
_PARKED = (WAITING, WAITING_STOCK, WOKEN)


def needless(
    execution_id: str, event: str | None, state_of: Callable[[str], State | None], saved: Callable[[str], bool]
) -> bool:
    """True if nobody can need what is kept of an execution any more.

    `event` is that of its snapshot, None if only its inbox is left; `saved` tells whether an execution has a snapshot.
    An item's executions are its own ({pool}:{key}) and its children's; any other id with two colons is a child's, too
    ({parent}:{state}:{key}). A child is needed as long as one of those that it descends from can be resumed.
    """
    item_id, parts = item_of(execution_id), execution_id.split(":")
    state = state_of(item_id) if item_id is not None else None
    if event in _PARKED or state in ("ready", "delayed", "claimed"):
        return False
    if any(saved(":".join(parts[:n])) for n in range(1 if state is None else 2, len(parts))):
        return False
    if state is not None:
        return state == "completed" or (execution_id == item_id and event == "machine_end")
    return event == "machine_end" or len(parts) > 2
