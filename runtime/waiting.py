"""How a Machine waits for a message: out of its own inbox, and saved where a dispatcher finds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.journal import Journal
from flatmachines import FlatMachine

COMMITTED = ("state_enter", "waiting", "machine_end", "tool_call")
_SAVED = {*COMMITTED, "machine_start"}


class Waiting:
    """The part of Machine that runs `wait_for` states."""

    parks = True
    """Whether this machine may park; where it may not, as in a child, nothing is saved for a dispatcher to resume."""

    async def _wait(self: Any, state_name: str, context: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Run a `wait_for` state on this machine's inbox; without checkpoints a message is taken for good at once."""
        journal, signals = self.persistence, self.signal_backend
        inbox = journal.inbox(signals) if self.checkpoint_events and isinstance(journal, Journal) else None
        if inbox is None:
            return await FlatMachine._execute_state(self, state_name, context)
        self.signal_backend = inbox
        try:
            context, output = await FlatMachine._execute_state(self, state_name, context)
        finally:
            self.signal_backend = signals
        context["signal_id"] = inbox.last
        return context, output

    def _channel(self: Any, state_name: str, context: dict[str, Any]) -> str | None:
        """The channel that a state waits on; None if there is none (whatever is wrong with it, the state will raise)."""
        template = self.states.get(state_name, {}).get("wait_for")
        try:
            channel = template and self._render_template(template, {"context": context, "input": context})
        except Exception:
            return None
        return channel if isinstance(channel, str) and channel else None


def events(data: Mapping[str, Any]) -> frozenset[str]:
    """The events to save at: those of ours that stand for what `persistence` declares.

    A machine that can park is saved where it does, or it would never be found again. One that declares `machine_start` and
    no state is saved once, before its first state: what takes it up begins it anew, with the same input.
    """
    declared = data.get("persistence", {})
    wanted = set(declared.get("checkpoint_on", COMMITTED)) if declared.get("enabled", True) else set()
    if wanted & {"execute", "state_exit"}:
        wanted.add("state_enter")
    if "state_enter" in wanted:
        wanted.discard("machine_start")
    if wanted and any("wait_for" in state for state in data["states"].values()):
        wanted.add("waiting")
    return frozenset(wanted & _SAVED)
