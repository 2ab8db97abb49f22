"""status: items by state and workers with what they do, once, from any process."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flatfleet.commands import cli, exits
from flatfleet.runtime.stores.contract import LIVE_WORKER, SCREEN_WORKER


def parse(argv: Sequence[str]) -> argparse.Namespace:
    made = cli.parser("status", "Show the items of every pool by state, and the workers with what they do.")
    made.add_argument("--all", action="store_true", help="workers that have ended, too")
    options = cli.finish(made, argv, "status")
    options.needs_loop, options.must_exist, options.command = True, True, command
    return options


async def command(options: argparse.Namespace, parts: Any) -> int:
    driver = parts.store.driver
    pools = {name: await driver.counts(name) for name in await driver.pools()}
    errors = {name: await driver.errors(name) for name in pools}
    workers = await driver.workers()
    shown = [worker for worker in workers if options.all or worker.status in LIVE_WORKER]
    if options.json:
        print(
            json.dumps(
                {  # noqa: T201
                    "store": parts.store.url,
                    "pools": {
                        n: asdict(c) | {"left": c.left, "total": c.total, "errors": errors[n]} for n, c in pools.items()
                    },
                    "workers": [_worker(worker) for worker in shown],
                    "ended_workers": sum(worker.status not in LIVE_WORKER for worker in workers),
                }
            )
        )
        return exits.DONE
    lines = [f"store {parts.store.url}"]
    for name, counts in pools.items():
        states = " · ".join(f"{n} {state}" for state, n in asdict(counts).items() if n)
        lines.append(f"pool {name}: {counts.total} items: {states or 'none'}")
        lines += [f"  {n} × {error}" for error, n in errors[name].items()]
    ended = len(workers) - len(shown)
    lines.append(f"{len(shown)} workers" + (f" ({ended} ended; --all shows them)" if ended else ""))
    for worker in map(_worker, shown):
        doing = f"works on {worker['item']}" if worker["item"] else "idle"
        lines.append(
            f"  {worker['id']}  {worker['status']}  {doing}  pool {worker['pool']} · parallelism "
            f"{worker['parallelism']} · pid {worker['pid']} on {worker['host']} · heartbeat {worker['heartbeat']}"
        )
    print("\n".join(lines))  # noqa: T201
    return exits.DONE


def _worker(worker: Any) -> dict[str, Any]:
    about = worker.metadata or {}
    return {
        "id": worker.worker_id,
        "status": SCREEN_WORKER.get(worker.status, worker.status),
        "item": worker.current_task_id,
        "pool": about.get("pool"),
        "parallelism": about.get("parallelism"),
        "capabilities": worker.capabilities or [],
        "processed": about.get("processed"),
        "pid": worker.pid,
        "host": worker.host,
        "started": worker.started_at,
        "heartbeat": worker.last_heartbeat,
    }
