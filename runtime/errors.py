"""Every error that flatfleet raises, as one tree.

FleetError
├── UsageError              what somebody typed or wrote is wrong; nothing was started (exit code 2)
│   ├── BundleError         a machine file: one line a problem, each with file:line:column
│   ├── SourceError         an input that does not exist, cannot be read, or holds nothing
│   ├── StoreUrlError       a store URL that names no store
│   └── EngineUrlError      an engine that is not known, or cannot be had with this store
├── StoreError              the store cannot do what was asked (exit code 3)
│   ├── StoreUnavailable    it cannot be opened, read or written at all
│   │   └── StoreGone       nor ever again by this process: another one stands in its place, or none
│   └── WorkerConflict      a worker id that is alive elsewhere
├── EngineError             an engine cannot run what was launched (exit code 4)
│   ├── PoolAtCapacity      all hosts are full, and there may be no more of them
│   └── HostDied            the process that a machine ran in has ended
├── BrokerClosed            a broker was used after its shutdown
├── LeaseLost               the item, or the registration, belongs to somebody else by now
├── MachineError            a machine broke one of its own bounds or rules
│   ├── StepLimitReached    settings.max_steps
│   ├── StateTimeout        a state's `timeout`
│   │   └── ItemTimeout     the same, where the state runs a work item
│   ├── DuplicateKey        two items of one foreach have one key
│   ├── BadKey              a state's `key` gives no text to tell its child by
│   ├── ChildFailed         a child came back as `_error` data
│   ├── ChildWaiting        a child parked at wait_for where a result was needed
│   └── UnknownAction       the YAML names an action that its hooks do not have
├── OutputError             a file cannot be written: no space, no permission; no fault of the item
└── DocumentError           a document that no retry will make readable
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FleetError(Exception):
    """Base of all errors of flatfleet.

    `permanent` says that the same work will fail again in the same way, so a retry would only cost.
    """

    permanent = False


class UsageError(FleetError):
    """What was typed or written is wrong; nothing was started."""

    permanent = True


class BundleError(UsageError):
    """A machine file is wrong. `problems` holds one finished line for each fault found."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class SourceError(UsageError):
    """An input does not exist, cannot be read, or holds nothing that could be worked on."""


class StoreUrlError(UsageError):
    """A store URL names no known store."""


class EngineUrlError(UsageError):
    """An engine's name is unknown, an option of it is wrong, or it does not go with this store."""


class StoreError(FleetError):
    """The store cannot do what was asked of it."""


class StoreUnavailable(StoreError):
    """The store cannot be opened, read or written at all."""


class StoreGone(StoreUnavailable):
    """The store was deleted, replaced or cut off while in use: this process cannot go on, however long it waits."""


class WorkerConflict(StoreError):
    """A worker id is registered and alive under another owner."""


class EngineError(FleetError):
    """An engine cannot run what was launched."""


class PoolAtCapacity(EngineError):
    """All hosts of a pool are full, it has as many as it may have, and nobody is to wait."""


class HostDied(EngineError):
    """The process that a machine ran in has ended before it."""


class BrokerClosed(FleetError):
    """A broker was used after its shutdown."""

    permanent = True


class LeaseLost(FleetError):
    """The item (or the registration) is no longer this holder's: nothing was changed."""


class MachineError(FleetError):
    """A machine broke one of its own bounds or rules."""


class StepLimitReached(MachineError):
    """The machine took `settings.max_steps` steps without reaching a final state."""

    permanent = True


class StateTimeout(MachineError):
    """A state ran longer than its `timeout`; what it was running has been cancelled."""


class ItemTimeout(StateTimeout):
    """A work item ran longer than the `timeout` of the state that processes it."""


class DuplicateKey(MachineError):
    """Two items of one `foreach` have the same key, so one result would be lost."""

    permanent = True


class BadKey(MachineError):
    """A state's `key` gives no text, so its child could not be told from others."""

    permanent = True


class ChildFailed(MachineError):
    """A child machine came back as `_error` data where a result was needed."""


class ChildWaiting(MachineError):
    """A child machine parked at `wait_for` where a result was needed."""

    permanent = True


class UnknownAction(MachineError):
    """The YAML names an action that its hooks do not have."""

    permanent = True


class OutputError(FleetError):
    """A file cannot be written: no space, no permission. The environment's fault, and no item's."""


class DocumentError(FleetError):
    """A document cannot be read: empty, encrypted, damaged, too large, or not text."""

    permanent = True


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return ' — known: a, b. Did you mean 'a'?' for a message about the unknown name `got`."""
    names = sorted(known)
    if not names:
        return ""
    text = " — known: " + ", ".join(names)
    close = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    return f"{text}. Did you mean '{close[0]}'?" if close else text
