"""A host: one place beside this process that runs launched machines. What any kind of it takes, does and tells."""

from __future__ import annotations

import builtins
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from flatfleet.runtime import errors
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.errors import EngineError

Kind = Literal["began", "ended", "named", "leaving", "died"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a host needs before its first order; plain data. `launcher` is the owner of the process that it works for.

    `compose` is `module:function`, made like `run.compose`.

    `grace` are the seconds that a host has to drain when it is told to go by others than its engine (SIGTERM, a node
    that is taken away). `path` are the folders that modules come from where the launcher runs.
    """

    url: str
    lease: float
    launcher: str
    capabilities: tuple[str, ...] = ()
    compose: str = "flatfleet.run:compose"
    grace: float = 30.0
    verbose: bool = False
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """One machine to run: its id, its bundle, and its input, which is data. `folder` is where its relative paths begin.

    `about` are further arguments of Machine, as data: its parent's execution id, and profiles. `served` says whether the
    launcher's fleet waits for work, which may change while a host stands.
    """

    machine_id: str
    bundle: Bundle
    input: Mapping[str, Any]
    folder: str
    about: Mapping[str, Any] = field(default_factory=dict)
    served: bool = False

    def data(self) -> dict[str, Any]:
        """The order for another process, which has the bundle by its hash."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        return data | {"bundle": self.bundle.hash}

    @classmethod
    def of(cls, data: Mapping[str, Any], bundle: Bundle) -> Order:
        """The order that `data` gave, in the other process."""
        return cls(**{each.name: data[each.name] for each in fields(cls)} | {"bundle": bundle})


@dataclass(frozen=True, slots=True)
class Event:
    """What a host tells: of the machine `id` that it began or ended (with its `error`; `cancelled`: it was cut off), or
    was run by name; that it is leaving by itself within `seconds`; that it died, the `reason`, and whether it was `killed`:
    by somebody else, not by what it did.

    Each machine that begins ends, or its host dies: `died` is the last event, and comes once, also after `stop`.
    """

    kind: Kind
    id: str = ""
    error: BaseException | None = None
    cancelled: bool = False
    seconds: float = 0.0
    reason: str = ""
    killed: bool = False


class Host(Protocol):
    """One place that runs launched machines. `id` is shown to people; `owner` is its owner in the store once it is ready.

    `on_event` is called on the event loop, in the order of what happened, from the beginning of `start` on.
    """

    id: str
    owner: str | None
    on_event: Callable[[Event], None]

    async def start(self) -> None:
        """Come up and be ready for orders; EngineError with the reason (the last lines that it wrote) where it does not, and
        HostDied where somebody has killed it meanwhile.

        Cancelled, or failed, it leaves nothing behind, and tells no event.
        """
        ...

    async def launch(self, order: Order) -> None:
        """Have a machine run; when it returns the host has it. EngineError if the host cannot run it, HostDied if it died."""
        ...

    def drain(self) -> None:
        """Let the workers finish what they hold, and end; the host stays."""
        ...

    async def stop(self, seconds: float) -> int:
        """Drain, after `seconds` cancel what still runs, hand its items back, and end; return how many items.

        A host that does not do so within STOPPING seconds more is killed, and its items are handed back from here.
        """
        ...

    def kill(self) -> None:
        """End it now, whatever it does; `died` follows."""
        ...

    async def ping(self) -> bool:
        """True if it answers; whoever asks bounds the time."""
        ...

    def about(self) -> Mapping[str, Any]:
        """What to show of it beside its state: a process id, a node, what it is waiting for."""
        ...


def order_of(caller: Any, config: Mapping[str, Any], machine_id: str, input_data: Mapping[str, Any]) -> Order:
    """The order to run the machine that `caller`, which is one itself, launches."""
    about = {
        "_parent_execution_id": caller.execution_id,
        "_profiles_dict": caller._profiles_dict,
        "_profiles_file": caller._profiles_file,
    }
    told = {key: value for key, value in about.items() if value}
    return Order(machine_id, Bundle.of(config), dict(input_data), str(caller._config_dir), told)


STOPPING = 2.0
"""Seconds that a host has to end once its machines have been cancelled."""


def told(error: BaseException) -> dict[str, str]:
    """An error as data, for another process."""
    return {"type": type(error).__name__, "message": str(error)}


def heard(about: Mapping[str, str]) -> BaseException:
    """An error that another process has told: of the same name and text, and of the same class where that is known here."""
    name, message = about["type"], about["message"]
    found = getattr(errors, name, None) or getattr(builtins, name, None)
    base: type[BaseException] = EngineError
    if isinstance(found, type) and issubclass(found, BaseException):
        base = found
    made: Any = type(name, (base,), {"__str__": lambda self: message, "__module__": base.__module__})
    error: BaseException = made.__new__(made, message)
    return error


def ended(code: int | None) -> str:
    """How a process ended, from its return code."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
