"""The contract of an engine: where launched machines run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Protocol

Outcome = Literal["ended", "failed", "parked", "idle", "elsewhere", "refused", "gone"]
"""How a run of a machine came out: it parked after a message (`parked`) or found none (`idle`); another process runs it
(`elsewhere`); it cannot be made here (`refused`); there is nothing to resume (`gone`)."""


class Engine(Protocol):
    """The SDK's MachineInvoker, plus what a host needs. A launched machine belongs to the engine, not to its launcher.

    `on_named(machine_id)` is called for each machine that is run by name.
    """

    on_named: Callable[[str], None]

    def start(self) -> None:
        """Get ready to launch: hosts are warmed. It is done by the first launch, too; nothing depends on it."""
        ...

    async def launch(
        self, caller_machine: Any, target_config: dict[str, Any], input_data: dict[str, Any], execution_id: str
    ) -> None:
        """Start a machine and return at once; idempotent by `machine_id` in its input, `worker_id`, or the execution id.

        One with a `machine_id` that is parked, or has ended, starts afresh with the new input, and keeps its inbox; one
        that was interrupted goes on to its next park first. One that another process runs is left alone. A machine that
        parks has no result: nothing is written, nothing is held. With `settings.background` it keeps no process.

        Where there are hosts, those with a `machine_id` or `settings.background` stay in this process, and the others go to
        a host; EngineError where none can be had, PoolAtCapacity where this one would have to queue and may not. A worker
        whose host dies, or is told to go by others, is launched once more at once, under another id, in its place.
        """
        ...

    async def invoke(
        self,
        caller_machine: Any,
        target_config: dict[str, Any],
        input_data: dict[str, Any],
        execution_id: str | None = None,
    ) -> Any:
        """Run a machine and return its output."""
        ...

    def resume(self, execution_id: str, *, unparked: bool = False) -> asyncio.Task[Outcome] | None:
        """Take up a parked or interrupted machine, out of the store alone; None if it runs here already.

        `unparked`: also one that was cut off before it had parked for the first time, or has failed.
        """
        ...

    def live(self) -> int:
        """Launched machines that have not ended: workers, as a rule.

        Those with a `machine_id` (scalers, autoscalers) do not count, nor those in the background, nor those resumed.
        """
        ...

    def owners(self) -> Collection[str]:
        """The owners, in the store, of what was launched here: this process's, and its hosts', the past ones included."""
        ...

    async def in_hand(self) -> int:
        """How many items the machines hold that were launched here."""
        ...

    def failures(self) -> Mapping[str, BaseException]:
        """Launched machines that ended with an exception."""
        ...

    async def join(self) -> None:
        """Wait until no launched and no resumed machine runs, but for those in the background."""
        ...

    def drain(self) -> None:
        """Tell the workers to finish what they hold, and end; those that wait for a host are not launched any more."""
        ...

    async def close(self, deadline: float) -> int:
        """Drain, and after `deadline` seconds cancel what still runs and hand its items back; return how many items.

        Its hosts end with it.
        """
        ...
