"""Which adapter runs which type of agent: the offline one, the SDK's, and those that a user registers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flatfleet.runtime.adapters.offline import OfflineAdapter
from flatfleet.runtime.errors import UsageError, did_you_mean
from flatmachines.agents import (
    DEFAULT_AGENT_TYPE,
    AgentAdapter,
    AgentAdapterContext,
    AgentAdapterRegistry,
    AgentExecutor,
    AgentRef,
)

PROFILES = Path(__file__).parents[2] / "agents" / "profiles.yml"


class Adapters(AgentAdapterRegistry):
    """An AgentAdapterRegistry that reaches an adapter by the type of the agent's reference.

    The SDK's own registry turns every type but `flatagent` into a flatagent with an invalid profile. Its adapters are
    imported here when the first agent needs one (they import flatagents, and that litellm, if it is installed).
    `profiles_file` is the catalogue for flatagents whose machine names none and has none in its folder.
    """

    def __init__(
        self, adapters: list[AgentAdapter] | None = None, *, profiles_file: str | Path | None = PROFILES
    ) -> None:
        super().__init__(adapters)
        self._profiles_file = Path(profiles_file) if profiles_file else None
        self._profiles: dict[str, Any] | None = None
        self._builtins: dict[str, AgentAdapter] | None = None

    def get(self, type_name: str) -> AgentAdapter:
        """Return the adapter for `type_name`; a registered one goes before the SDK's. Raises UsageError."""
        if type_name not in self._adapters and type_name not in self._load_builtins():
            known = did_you_mean(str(type_name), {*self._adapters, *self._load_builtins()})
            raise UsageError(f"unknown agent type {type_name!r}{known}")
        return self._adapters.get(type_name) or self._load_builtins()[type_name]

    def create_executor(self, *, agent_name: str, agent_ref: AgentRef, context: AgentAdapterContext) -> AgentExecutor:
        """Return an executor from the adapter of the reference's type. Raises UsageError for an unknown type."""
        try:
            adapter = self.get(agent_ref.type)
        except UsageError as exc:
            raise UsageError(f"agent '{agent_name}': {exc}") from None
        if agent_ref.type == DEFAULT_AGENT_TYPE:
            context = self._with_profiles(context)
        return adapter.create_executor(agent_name=agent_name, agent_ref=agent_ref, context=context)

    def _with_profiles(self, context: AgentAdapterContext) -> AgentAdapterContext:
        if self._profiles_file is None or context.profiles_file or context.profiles_dict:
            return context
        if self._profiles is None:
            from flatagents.profiles import load_profiles_from_file

            self._profiles = load_profiles_from_file(str(self._profiles_file))
        return dataclasses.replace(context, profiles_dict=self._profiles)

    def _load_builtins(self) -> dict[str, AgentAdapter]:
        if self._builtins is None:
            from flatmachines.adapters import create_registry

            self._builtins = dict(create_registry()._adapters)
        return self._builtins


def adapters() -> Adapters:
    """Return a registry with the offline adapter; the SDK's adapters follow when one of them is first needed."""
    return Adapters([OfflineAdapter()])
