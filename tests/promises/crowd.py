"""Many processes over one SQLite file: `crowd.py URL PROCESSES COROUTINES FOLDER` works the pool empty.

Each coroutine claims an item, gives it back or fails it now and then, and completes it else. What it held, and when, is
written to FOLDER/{pid}.jsonl: the time of the answer to its claim, and the time before it let go.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from flatfleet.runtime.stores import open_store


async def work(pool: Any, name: str, log: list[dict[str, Any]]) -> None:
    while (await pool.counts()).left:
        claim = await pool.claim(name)
        if claim is None:
            await asyncio.sleep(0.002)
            continue
        held = {"item": claim.id, "token": claim.token, "from": time.monotonic()}
        if random.random() < 0.1:
            await asyncio.sleep(random.uniform(0, 0.003))
        held["to"] = time.monotonic()
        end = random.random()
        if end < 0.1:
            await pool.release(claim.id, token=claim.token)
        elif end < 0.2:
            await pool.fail(claim.id, "no luck", token=claim.token, consume_attempt=False, retry_after=0)
        else:
            await pool.complete(claim.id, claim.token, token=claim.token)
            held["completed"] = True
        log.append(held)


async def run(url: str, coroutines: int, log: list[dict[str, Any]]) -> None:
    store = open_store(url)
    try:
        pool = store.work.pool("trial")
        await asyncio.gather(*(work(pool, f"{os.getpid()}-{n}", log) for n in range(coroutines)))
    finally:
        await store.close()


def main(url: str, processes: int, coroutines: int, folder: Path) -> int:
    children = []
    for _ in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        log: list[dict[str, Any]] = []
        asyncio.run(run(url, coroutines, log))
        (folder / f"{os.getpid()}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        return 0
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
