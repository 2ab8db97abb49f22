"""A fleet on several raylets, whose nodes come and go: prints what it saw as JSON. For test_ray_engine.py."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", FLATFLEET_COMPOSE="engine_hooks:compose")

from flatfleet.runtime.stores.ray_cluster import QUIET, SETTINGS

os.environ.update(QUIET)

import engine_hooks
import ray
import yaml
from flatfleet.runtime import bundle, engine_notes
from ray._private.state import actors
from ray.cluster_utils import Cluster

LOOK = 0.05
COMMON = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20, "include_dashboard": False}
SOON = {
    "prestart_worker_first_driver": False,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
}
OFFER = {"num_cpus": 1, "resources": {"spot": 1, "region:eu": 1}, **COMMON}


async def until(holds: Any) -> Any:
    async with asyncio.timeout(90):
        while not (value := await holds()):  # noqa: ASYNC110
            await asyncio.sleep(LOOK)
        return value


def node_of_the_host() -> str:
    (found,) = (a for a in actors().values() if a["ActorClassName"] == "RayHosting" and a["State"] == "ALIVE")
    node: str = found["Address"]["NodeID"]
    return node


async def run(cluster: Any, folder: Path, told: dict[str, Any]) -> None:
    parts = engine_hooks.compose(
        f"ray://{cluster.address}/nodes?path={folder}/fleet.db",
        engine=f"ray://{cluster.address}?min_size=1&max_size=1",
        capabilities=["region:eu", "spot"],
        hosts={"grace": 2.0},
    )
    store, places, pool = parts.store, parts.engine.pool.places, parts.store.work.pool("p")

    async def pending() -> Any:
        return places and places[0].host.about().get("pending")

    async def noted() -> Any:
        found = await engine_notes.engines(store)
        return found and found[0]["hosts"] and found[0]["hosts"][0].get("pending")

    async def attempts() -> list[Any]:
        return [each for i in range(6) for each in await store.driver.attempts(f"p:i{i}")]

    async def left() -> bool:
        """The drained host has handed back what it held, and gone."""
        released = [each.outcome for each in await attempts()].count("released")
        return released == 2 and bool(places) and places[0].host.about()["pid"] != leaves

    async def came(n: int) -> None:
        async def here() -> bool:
            return len(await store.signals.peek("came")) >= n

        await until(here)

    await launch(parts, folder)
    told.update(pending=await until(pending), state=places[0].as_dict()["state"], noted=await until(noted))
    first = cluster.add_node(**OFFER)
    await came(2)
    told.update(
        pending_then=await pending(), first=first.node_id == node_of_the_host(), pid=places[0].host.about()["pid"]
    )
    cluster.add_node(**OFFER)
    dead = places[0].host.owner
    cluster.remove_node(first, allow_graceful=False)
    await came(4)
    cluster.add_node(**OFFER)
    second, leaves = places[0].host.owner, places[0].host.about()["pid"]
    drain(cluster.address, node_of_the_host())
    await came(6)
    await until(left)
    told.update(moved=places[0].host.about()["pid"] != leaves, second=second)
    await engine_hooks.Gate(store).open()
    await parts.engine.join()
    lost = [each for each in await store.registration.list() if each.status == "lost"]
    handed_back = {each.worker for each in await attempts() if each.outcome == "released"}
    owners = {each.worker_id: each.metadata["owner"] for each in await store.registration.list()}
    told.update(of_the_drained={owners[worker] for worker in handed_back} == {second})
    outcomes = sorted(each.outcome for each in await attempts())
    told.update(completed=(await pool.counts()).completed, attempts=outcomes, lost=len(lost))
    told.update(of_the_dead={each.metadata["owner"] for each in lost} == {dead})
    told.update(failures=[str(each) for each in parts.engine.failures().values()])
    await parts.engine.close(0)
    await parts.fleet.close()


async def prefer_spot(cluster: Any, folder: Path, told: dict[str, Any]) -> None:
    """Where no spot node comes in time, a host goes to another one; where there is one, it goes there."""
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    told["without"] = await kind(cluster, folder / "without.db", 2.0, told)
    cluster.add_node(**OFFER)
    told["with"] = await kind(cluster, folder / "with.db", 90.0, {})


async def kind(cluster: Any, file: Path, wait: float, told: dict[str, Any]) -> list[str]:
    """What a machine finds that its host offers, which waits so many seconds for a spot node."""
    parts = engine_hooks.compose(
        f"ray://{cluster.address}/nodes?path={file}",
        engine=f"ray://{cluster.address}?min_size=1&max_size=1",
    )
    parts.fleet.spot_wait = wait
    states = {"start": {"action": "about", "hooks": "test", "transitions": [{"to": "done"}]}}
    states["done"] = {"type": "final", "output": {"out": "context.out"}}
    config = bundle.Bundle.of({"spec": "flatmachine", "spec_version": "4.2.1", "data": {"name": "x", "states": states}})
    places = parts.engine.pool.places

    async def pending() -> Any:
        return places and places[0].host.about().get("pending")

    await parts.engine.launch(parts.machine(config, str(file.parent)), config, {}, "m1")
    if wait < 90:
        told["preferred"] = await until(pending)
    await parts.engine.join()
    out = (await parts.store.results.read("flatagents://m1/result", block=False))["out"]
    await parts.engine.close(0)
    await parts.fleet.close()
    found: list[str] = out["capabilities"]
    return found


def drain(address: str, node: str) -> None:
    """Tell a node that it will be taken away in a minute, as a cluster does at a spot notice."""
    argv = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node]
    about = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "60",
    ]
    subprocess.run([*argv, *about], check=True, capture_output=True, timeout=60)


async def launch(parts: Any, folder: Path) -> None:
    """Push six items, and launch two workers for them."""
    states = {
        "start": {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"out": "context.out"}},
    }
    data = {"name": "task", "context": {"item": "input.item", "out": None, "pid": None}, "states": states}
    task = {"spec": "flatmachine", "spec_version": "4.2.1", "metadata": {}, "data": data}
    (folder / "task.yml").write_text(yaml.safe_dump(task))
    worker = bundle.load("package:flatfleet/machines/worker.yml", task=str(folder / "task.yml"))
    pool = parts.store.work.pool("p")
    await pool.push_many([pool.new({"item": i}, key=f"i{i}") for i in range(6)])
    caller = parts.machine({**task, "data": {"name": "caller", "states": {"start": {"type": "final"}}}}, str(folder))
    for name in ("w0", "w1"):
        await parts.engine.launch(caller, worker, {"pool": "p", "worker_id": name}, name)


def main(folder: Path) -> None:
    sockets = tempfile.mkdtemp(prefix="flatfleet-ray-")  # their paths have to be short
    head = {"num_cpus": 1, "temp_dir": sockets, "_system_config": {**SETTINGS, **SOON}, **COMMON}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    told: dict[str, Any] = {}
    try:
        asyncio.run(run(cluster, folder, told))
        asyncio.run(prefer_spot(cluster, folder, told))
    finally:
        sys.stdout.write(json.dumps(told) + "\n")
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(sockets, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
