"""The contract of an engine: where launched machines run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Engine(Protocol):
    """The SDK's MachineInvoker, plus what a host needs. A launched machine belongs to the engine, not to its launcher."""

    async def launch(
        self, caller_machine: Any, target_config: dict[str, Any], input_data: dict[str, Any], execution_id: str
    ) -> None:
        """Start a machine and return at once; idempotent by `worker_id` in its input, else by the execution id."""
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

    def live(self) -> int:
        """Launched machines that have not ended."""
        ...

    def failures(self) -> Mapping[str, BaseException]:
        """Launched machines that ended with an exception."""
        ...

    async def join(self) -> None:
        """Wait until no launched machine is live."""
        ...

    def drain(self) -> None:
        """Tell the workers to finish what they hold, and end."""
        ...

    async def close(self, deadline: float) -> int:
        """Drain, and after `deadline` seconds cancel what still runs and hand its items back; return how many items."""
        ...
