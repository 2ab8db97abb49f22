"""How long a scale message takes: from its sending to the first claim of the worker that it brought."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flatfleet.benchmarks import ours
from flatfleet.benchmarks.harness import MACHINES, ROOT, Case, Contestant, Goal, Values, correct
from flatfleet.run import Parts, compose
from flatfleet.runtime import loop
from flatfleet.runtime.bundle import load
from flatfleet.runtime.dispatcher import Dispatcher, scaler_of
from flatfleet.runtime.stores import open_store

MEDIAN, WORST = "ms", "ms at worst"
CHANNEL = f"fleet/{ours.POOL}/scale"
UP = {"target": 1}
TASK = str(MACHINES / "noop.yml")

Send = Callable[[], Awaitable[float]]
"""Sends UP and returns when (seconds since the epoch)."""


def _fleet(kind: str, *, apart: bool) -> Callable[[Path, int], Values]:
    def run(folder: Path, n: int) -> Values:
        async def drive() -> Values:
            url = ours.url(kind, folder)
            parts = compose(url, served=True)
            dispatcher, scaler = (
                Dispatcher(parts.store, parts.engine),
                load(ROOT / "machines/scaler.yml", task=TASK),
            )
            name = scaler_of(ours.POOL)
            output = await parts.engine.run_named(parts.machine(scaler, str(MACHINES), name), {"pool": ours.POOL})
            correct(output.get("_waiting") is True, f"the scaler has not parked: {output}")
            dispatcher.start()
            sender = await _sender(url) if apart else None
            try:
                send = (lambda: _sent_by(sender)) if sender else (lambda: _sent(parts.store))
                await _once(parts, n, send)  # caches of the bundles
                taken = [await _once(parts, k, send) for k in range(n)]
            finally:
                if sender:
                    sender.kill()
                    await sender.wait()
                await dispatcher.stop()
                await parts.engine.close(0)
                await parts.fleet.close()
            return {MEDIAN: statistics.median(taken) * 1000, WORST: max(taken) * 1000}

        return loop.run(drive())

    return run


async def _once(parts: Parts, k: int, send: Send) -> float:
    """An item waits and nobody is there; send for a worker, and send it away again. Returns the seconds to the claim."""
    pool, record = parts.store.work.pool(ours.POOL), parts.store.fleet(ours.POOL)
    item = await pool.push({"n": k}, {"key": str(k)})
    sent = await send()
    async with asyncio.timeout(30):
        while not (attempts := await pool.attempts(item)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        correct(attempts[0].outcome == "completed", f"the item ended {attempts[0].outcome}")
        await parts.store.signals.send(CHANNEL, {"target": 0, "id": f"down{k}"})
        while parts.engine.live() or not await record.decision(f"down{k}"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    last = (await record.decisions(2))[0]
    correct((last["outcome"], last["launches"]) == ("applied", 1), f"{last['launches']} workers were {last['outcome']}")
    return attempts[0].started - sent


async def _sent(store: Any) -> float:
    sent = time.time()
    await store.signals.send(CHANNEL, UP)
    return sent


async def _sender(url: str) -> asyncio.subprocess.Process:
    """A process that sends UP at each line that it gets, and answers when it did."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "flatfleet.benchmarks.scaling", url)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def _sent_by(process: asyncio.subprocess.Process) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"\n")
    return float(await process.stdout.readline())


async def _send_on_demand(url: str) -> None:
    store = open_store(url)
    await store.signals.channels()  # the connection is there before the first message
    print("ready", flush=True)  # noqa: T201
    while await asyncio.to_thread(sys.stdin.readline):
        print(await _sent(store), flush=True)  # noqa: T201
    await store.close()


CASES = (
    Case(
        "scale",
        "scaling",
        "scale message → first claim of the new worker (served fleet, scaler parked, an item waits)",
        {MEDIAN: "less", WORST: "less"},
        (
            Contestant("flatfleet, sqlite, sent in the same process", _fleet("sqlite", apart=False), 50),
            Contestant("flatfleet, sqlite, sent by another process", _fleet("sqlite", apart=True), 50),
            Contestant("flatfleet, memory", _fleet("memory", apart=False), 50),
            Contestant("flatfleet, redis, sent by another process", _fleet("redis", apart=True), 50),
        ),
        (
            Goal("flatfleet, sqlite, sent in the same process", MEDIAN, 20),
            Goal("flatfleet, sqlite, sent by another process", MEDIAN, 20),
        ),
    ),
)


if __name__ == "__main__":
    asyncio.run(_send_on_demand(sys.argv[1]))
