"""flatfleet as a contestant: the shipped machines/worker.yml over a store, driven in this process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import server
from flatfleet.benchmarks.harness import MACHINES, ROOT, Missing, correct
from flatfleet.run import Parts, compose
from flatfleet.runtime.bundle import Bundle, load
from flatfleet.runtime.loop import run
from flatmachines import FlatMachine

POOL = "bench"
WORKER = ROOT / "machines/worker.yml"
UNLIMITED = 10**9


def action_worker(pause: float = 0.0) -> Bundle:
    """worker.yml whose `process` is an action instead of `machine: task`: `flow.count`, or `flow.pace` for a pause."""
    config: dict[str, Any] = json.loads(load(WORKER).raw)
    data = config["data"]
    process = data["states"]["process"]
    for key in ("machine", "key", "timeout", "input", "output_to_context"):
        process.pop(key, None)
    process.update(action="pace" if pause else "count", hooks="flow")
    data["context"]["launch_interval"] = pause
    del data["machines"]
    return Bundle.of(config)


def task_worker(task: str) -> Bundle:
    """worker.yml with a machine of this folder as its task."""
    return load(WORKER, task=str(MACHINES / f"{task}.yml"))


def present(*modules: str) -> None:
    """Raise Missing unless this flatfleet has these modules of its runtime."""
    for module in modules:
        if not find_spec(f"flatfleet.runtime.{module}"):
            raise Missing(f"not installed: flatfleet.runtime.{module}")


def url(kind: str, folder: Path) -> str:
    """The URL of a new store: `memory`, `sqlite`, `sqlite-full` (fsync at each commit) in the folder, or `redis`.

    Raises Missing where there is none of this kind.
    """
    name, _, full = kind.partition("-")
    present(f"stores.{name}")
    if name == "redis":
        return server.fresh()
    return "memory:" if name == "memory" else f"sqlite:{folder}/fleet.db" + ("?synchronous=FULL" if full else "")


def loop(
    bundle: Bundle,
    kind: str,
    folder: Path,
    n: int,
    workers: int,
    *,
    stock: bool = False,
    ended: Callable[[], None] = lambda: None,
) -> float:
    """Let `workers` workers (`stock`: of the SDK's class) do `n` items; return the seconds. Raises Wrong.

    `ended` is called when the last worker has ended, before the results are checked.
    """

    async def drive() -> float:
        parts = compose(url(kind, folder))
        try:
            await fill(parts, n)
            started = time.perf_counter()
            names = [f"w{k}" for k in range(min(workers, n))]
            outputs = await asyncio.gather(*(_work(parts, bundle, name, stock) for name in names))
            seconds = time.perf_counter() - started
            ended()
            await check(parts, n, sum(output["processed"] for output in outputs), "machines" in bundle["data"])
            return seconds
        finally:
            await parts.fleet.close()

    return asyncio.run(drive()) if stock else run(drive())


async def fill(parts: Parts, n: int, start: int = 0) -> None:
    pool = parts.store.work.pool(POOL)
    added = await pool.push_many(pool.new({"n": i}, key=str(i)) for i in range(start, start + n))
    correct(all(added) and len(added) == n, f"{sum(added)} of {n} items were added")


async def check(parts: Parts, n: int, processed: int, tasks: bool) -> None:
    """Raise Wrong unless each of the `n` items was completed by its first and only claim, with the right result."""
    pool = parts.store.work.pool(POOL)
    counts = await pool.counts()
    correct(counts.completed == counts.total == n, f"{counts} after {n} items")
    correct(processed == n, f"{n} items were completed {processed} times")
    async for item in pool.items():
        correct(item.token == 1, f"{item.id} was claimed {item.token} times")
        correct(item.result == ({"value": item.data["n"]} if tasks else None), f"{item.id} has {item.result!r}")


async def _work(parts: Parts, bundle: Bundle, name: str, stock: bool) -> dict[str, Any]:
    given = {"pool": POOL, "worker_id": name}
    if not stock:
        return dict(await parts.machine(bundle, str(MACHINES), name).run(given))
    machine = FlatMachine(config_dict=bundle, _config_dir=str(MACHINES), _execution_id=name, **parts.backends())
    return dict(await machine.execute(input=given, max_steps=UNLIMITED))
