"""What one `machine: task` child costs: a loop that calls one, less the same loop without the call."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from pathlib import Path
from typing import Any

from flatfleet.benchmarks.harness import MACHINES, Case, Contestant, Goal, Values, correct
from flatfleet.benchmarks.ours import UNLIMITED
from flatfleet.run import compose
from flatfleet.runtime.bundle import Bundle, load
from flatmachines import FlatMachine

COST = "ms a child"


def _child(n: int, stock: bool) -> Values:
    called: dict[str, Any] = json.loads(load(MACHINES / "caller.yml").raw)
    bare = copy.deepcopy(called)
    bare["data"]["states"]["call"] = {"transitions": [{"to": "count"}]}
    del bare["data"]["machines"]

    async def seconds(config: dict[str, Any], expected: int | None) -> float:
        parts = compose("memory:")
        config, started = Bundle.of(config), time.perf_counter()
        if stock:
            machine = FlatMachine(config_dict=config, hooks_registry=parts.hooks, _config_dir=str(MACHINES))
            output = await machine.execute(input={"times": n}, max_steps=UNLIMITED)
        else:
            output = await parts.machine(config, str(MACHINES)).run({"times": n})
        took = time.perf_counter() - started
        await parts.fleet.close()
        correct(output["result"] == expected, f"the last of {n} children gave {output['result']!r}")
        return took

    return {COST: (asyncio.run(seconds(called, n)) - asyncio.run(seconds(bare, None))) / n * 1000}


def _stock(folder: Path, n: int) -> Values:
    return _child(n, stock=True)


def _ours(folder: Path, n: int) -> Values:
    return _child(n, stock=False)


CASES = (
    Case(
        "child",
        "children",
        "one `machine: task` child of two states",
        {COST: "less"},
        (Contestant("FlatMachine", _stock, 500), Contestant("flatfleet", _ours, 10_000)),
        (Goal("flatfleet", COST, 0.15),),
    ),
)
