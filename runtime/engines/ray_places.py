"""Where a Ray host may run: the nodes that offer what its workers promise, and what to say where none does."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flatfleet.runtime.engines.hosts import Setup
from flatfleet.runtime.engines.spec import EngineSpec
from flatfleet.runtime.errors import EngineUrlError
from flatfleet.runtime.policies.costs import ON_DEMAND, SPOT

logger = logging.getLogger(__name__)

SHARE = 0.001
"""How much of a custom resource a host takes: it has to be there, and is not used up."""
RESOURCES: Mapping[str, str] = {"gpu": "GPU"}
"""Capabilities whose resource Ray knows under another name; all others have their own."""
LOCAL = ("sqlite:",)
"""Stores that are a file of this machine."""


@dataclass(slots=True)
class Placement:
    """What each host of an engine asks of Ray: `resources` by name, `cpus`, and whether it has to be `here`."""

    resources: Mapping[str, float]
    cpus: float
    here: bool
    warned: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, spec: EngineSpec, setup: Setup) -> Placement:
        """A worker's capabilities are resources of its node. Raises EngineUrlError for `cpus` that is no number."""
        cpus = spec.options.get("cpus", "0")
        try:
            number = float(cpus)
        except ValueError:
            number = -1.0
        if not 0 <= number < 10_000:
            raise EngineUrlError(
                f"engine '{spec.text}': cpus is '{cpus}'; it is how many a host takes, such as 1 or 0.5"
            )
        wanted = {RESOURCES.get(name, name): SHARE for name in setup.capabilities}
        return cls(wanted, number, setup.url.startswith(LOCAL))

    def on_spot(self) -> Placement:
        """The same on a node that offers `spot`."""
        return replace(self, resources={**self.resources, SPOT: SHARE})

    def options(self) -> dict[str, Any]:
        """The options of the actor; in the cluster only."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        own = {name: share for name, share in self.resources.items() if name != "GPU"}
        node = ray.get_runtime_context().get_node_id()
        where = NodeAffinitySchedulingStrategy(node_id=node, soft=False) if self.here else "SPREAD"
        told = {"num_cpus": self.cpus, "resources": own, "scheduling_strategy": where}
        return told | ({"num_gpus": SHARE} if "GPU" in self.resources else {})

    def lacking(self) -> str | None:
        """Why no node can run a host as things are; None if one can, now or when it has less to do. Blocks."""
        import ray

        listed: Any = ray.nodes
        nodes = [node for node in listed() if node["Alive"]]
        if self.here:
            own = ray.get_runtime_context().get_node_id()
            nodes = [node for node in nodes if node["NodeID"] == own]
        wanted = {**self.resources, **({"CPU": self.cpus} if self.cpus else {})}
        if any(all(node["Resources"].get(name, 0) >= n for name, n in wanted.items()) for node in nodes):
            return None
        names = ", ".join(f"{n:g} {name}" if name == "CPU" else name for name, n in sorted(wanted.items()))
        if self.here:
            return f"this machine's node does not offer {names}, and the store is a file of this machine: take redis:// or ray:"
        return f"no node of the Ray cluster offers {names}: it waits until one does (ray start --resources='{{…}}')"

    def pending(self, left: float) -> str:
        """What a host waits for, that will wait for it so many seconds more; said once if that is for ever. Blocks."""
        lacking = self.lacking()
        if lacking and left == math.inf:
            self.warn(lacking)
        why = lacking or "Ray has not placed it yet: the nodes that could run it are busy"
        return why if left == math.inf else f"{why}; in {max(0.0, left):.0f} s it takes any other"

    def warn(self, reason: str) -> None:
        """Say it once, however many hosts wait."""
        if reason not in self.warned:
            self.warned.add(reason)
            logger.error("a host of the engine cannot be placed: %s", reason)


def kind_of_node() -> str:
    """What the node is that this runs on: `spot` or `on-demand`. In an actor only."""
    import ray

    listed: Any = ray.nodes
    here = ray.get_runtime_context().get_node_id()
    (node,) = (each for each in listed() if each["NodeID"] == here)
    return SPOT if node["Resources"].get(SPOT) else ON_DEMAND
