"""Promise 14: a worker that goes on for weeks needs no more memory and storage for it than for its first hour."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from flatfleet import hooks, run
from flatfleet.runtime import bundle
from flatfleet.runtime.stores import buckets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TASK = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: tiny
  context: {n: input.n}
  persistence: {enabled: true, backend: memory, checkpoint_on: [state_enter, machine_end]}
  states:
    start: {type: initial, transitions: [{to: add}]}
    add: {action: count, hooks: flow, transitions: [{to: done}]}
    done: {type: final, output: {n: context.n}}
metadata:
  description: Add one.
  inputs: {n: {type: integer, required: true, description: a number}}
  outputs: {n: {type: integer, description: one more}}
"""
WORKERS = 4


def rows(path: Path) -> dict[str, int]:
    db = sqlite3.connect(path)
    try:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in names}
    finally:
        db.close()


async def test_promise_14_memory_and_storage_are_bounded(tmp_path, size):
    """Promise 14: batch after batch through the same workers; nothing grows but the results that were asked for."""
    batch, batches = size((1_000, 5), (10_000, 20))
    (tmp_path / "task.yml").write_text(TASK)
    path = tmp_path / "fleet.db"
    parts = run.compose(f"sqlite:{path}", served=True)
    config = bundle.load(str(ROOT / "machines" / "worker.yml"), task=str(tmp_path / "task.yml"), known=hooks.known())
    workers = [
        asyncio.create_task(parts.machine(config, str(ROOT), f"w{n}").run({"worker_id": f"w{n}", "pool": "p"}))
        for n in range(WORKERS)
    ]
    pool = parts.store.work.pool("p")
    samples: list[tuple[int, dict[str, int], int]] = []
    try:
        for number in range(batches):
            await pool.push_many([pool.new({"n": n}, key=f"{number}-{n}") for n in range(batch)])
            limit = time.monotonic() + 300
            while (await pool.counts()).left:
                assert not any(worker.done() for worker in workers), "a worker ended early"
                assert time.monotonic() < limit
                await asyncio.sleep(0.02)
            gc.collect()
            samples.append((sys.getallocatedblocks(), rows(path), Path(f"{path}-wal").stat().st_size))
        parts.fleet.drain()
        ended: list[dict[str, Any]] = await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await parts.fleet.close()
    assert {output["status"] for output in ended} == {"drained"}
    assert sum(output["processed"] for output in ended) == batch * batches
    (early, first, _), (late, last, _) = samples[1], samples[-1]
    assert late - early < 0.2 * batch * (batches - 2), f"{late - early} objects more in {batch * (batches - 2)} items"
    kept = {"items", "payloads", "results"}
    an_hour = {
        "metrics",
        "owners",
    }  # a row for each second in which something happened, for so long; one for each process
    grown = {name: (n, last[name]) for name, n in first.items() if name not in kept | an_hour and last[name] > n}
    assert not grown, f"rows of {grown}"
    assert (last["snapshots"], last["attempts"], last["workers"]) == (0, 0, WORKERS)
    assert {last[name] for name in kept} == {batch * batches}
    assert last["metrics"] <= buckets.KEPT
    assert max(wal for _, _, wal in samples) < 40_000_000
