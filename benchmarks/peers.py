"""The others: the SDK's own worker classes, and huey, the embedded peer."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from flatfleet.benchmarks.harness import MACHINES, Missing, correct

SDK = "FlatMachine + DistributedWorkerHooks"
HUEY = "huey, threads"
UNLIMITED = 10**9


def sdk_loop(folder: Path, n: int, workers: int, pause: float = 0.0, task: str | None = None) -> float:
    """Do `n` items with the SDK's classes alone (its pool keeps no results); return the seconds. Raises Wrong."""
    import yaml
    from flatmachines import (
        DistributedWorkerHooks,
        FlatMachine,
        HooksRegistry,
        SQLiteCheckpointBackend,
        SQLiteRegistrationBackend,
        SQLiteWorkBackend,
    )

    database, done = str(folder / "workers.sqlite"), bytearray(n)

    class Hooks(DistributedWorkerHooks):
        async def on_action(self, state_name: str, action: str, context: dict[str, Any]) -> dict[str, Any]:
            if action == "work" and pause:
                await asyncio.sleep(pause)
            if action == "complete_job":
                result = context.get("result")
                correct(task is None or result == context["job"]["n"], f"job {context['job']} has {result!r}")
            context = await super().on_action(state_name, action, context)
            if action == "complete_job":
                done[context["job"]["n"]] += 1
            return context

    async def drive() -> float:
        work = SQLiteWorkBackend(db_path=database)
        hooks, registry = Hooks(SQLiteRegistrationBackend(db_path=database), work), HooksRegistry()
        registry.register("distributed", lambda: hooks)
        config = yaml.safe_load((MACHINES / "sdk_worker.yml").read_text("utf-8"))
        if task:
            config["data"]["machines"] = {"task": f"./{task}.yml"}
            config["data"]["states"]["process"] = {
                "machine": "task",
                "input": {"n": "context.job.n"},
                "output_to_context": {"result": "output.value"},
                "transitions": [{"to": "complete"}],
            }
        saved = {"persistence": SQLiteCheckpointBackend(db_path=database)} if task == "noop_saved" else {}
        for i in range(n):
            await work.pool("bench").push({"n": i})
        started = time.perf_counter()
        machines = [
            FlatMachine(config_dict=config, _config_dir=str(MACHINES), hooks_registry=registry, **saved)
            for _ in range(min(workers, n))
        ]
        await asyncio.gather(
            *(
                machine.execute(input={"pool_id": "bench", "worker_id": f"w{k}"}, max_steps=UNLIMITED)
                for k, machine in enumerate(machines)
            )
        )
        return time.perf_counter() - started

    seconds = asyncio.run(drive())
    once = sum(count == 1 for count in done)
    correct(once == n, f"{once} of {n} items were done once")
    return seconds


def sdk_push(folder: Path, n: int) -> float:
    """Push `n` items one by one into the SDK's pool; return the seconds."""
    from flatmachines import SQLiteWorkBackend

    async def drive() -> float:
        pool = SQLiteWorkBackend(db_path=str(folder / "workers.sqlite")).pool("bench")
        started = time.perf_counter()
        for i in range(n):
            await pool.push({"n": i})
        seconds = time.perf_counter() - started
        correct(await pool.size() == n, f"{await pool.size()} of {n} items were pushed")
        return seconds

    return asyncio.run(drive())


def huey_module() -> ModuleType:
    """Import huey, or raise Missing."""
    try:
        import huey  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise Missing("not installed: pip install 'flatfleet[bench]'") from None
    logging.getLogger("huey").setLevel(logging.ERROR)
    return huey


def huey_loop(folder: Path, n: int, workers: int, pause: float = 0.0, fsync: bool | None = False) -> float:
    """Do `n` items with huey's threads over SQLite, results kept; return the seconds. Raises Wrong.

    `fsync` False is safe against kill -9, as our `synchronous=NORMAL`; None (its default) against power loss.
    """
    app = huey_module().SqliteHuey(filename=str(folder / "huey.db"), results=True, fsync=fsync)
    finished, lock, done = threading.Event(), threading.Lock(), bytearray(n)
    left = n

    @app.task()  # type: ignore[untyped-decorator]
    def work(number: int) -> int:
        nonlocal left
        if pause:
            time.sleep(pause)
        with lock:
            done[number] += 1
            left -= 1
            if not left:
                finished.set()
        return number

    for i in range(n):
        work(i)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    consumer = app.create_consumer(workers=min(workers, n), worker_type="thread", periodic=False)
    started = time.perf_counter()
    consumer.start()
    try:
        finished.wait()
        while (kept := app.storage.result_store_size()) < n and time.perf_counter() - started < 600:
            time.sleep(0.001)
        seconds = time.perf_counter() - started
    finally:
        consumer.stop(graceful=True)
        app.storage.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    once = sum(count == 1 for count in done)
    correct(kept == once == n, f"of {n} items {once} were done once and {kept} have a result")
    return seconds


def huey_push(folder: Path, n: int) -> float:
    """Enqueue `n` tasks one by one, as huey does it; return the seconds."""
    app = huey_module().SqliteHuey(filename=str(folder / "huey.db"), results=True, fsync=False)

    @app.task()  # type: ignore[untyped-decorator]
    def work(number: int) -> int:
        return number

    started = time.perf_counter()
    for i in range(n):
        work(i)
    seconds = time.perf_counter() - started
    correct(app.pending_count() == n, f"{app.pending_count()} of {n} tasks were enqueued")
    app.storage.close()
    return seconds
