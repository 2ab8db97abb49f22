"""status: items by state and workers with what they do, once, from any process."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from flatfleet.commands import cli, exits
from flatfleet.commands.progress import span
from flatfleet.commands.terminal import plain, show
from flatfleet.runtime.owner import is_dead
from flatfleet.runtime.stores.contract import LIVE_WORKER, SCREEN_WORKER


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
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
    shown = [_worker(worker) for worker in workers if options.all or worker.status in LIVE_WORKER]
    ended = sum(worker.status not in LIVE_WORKER for worker in workers)
    if options.json:
        states = {
            name: asdict(counts) | {"left": counts.left, "total": counts.total, "errors": errors[name]}
            for name, counts in pools.items()
        }
        show(json.dumps({"store": parts.store.url, "pools": states, "workers": shown, "ended_workers": ended}))
        return exits.DONE
    lines = [f"store {plain(parts.store.url)}"]
    for name, counts in pools.items():
        by_state = " · ".join(f"{n} {state}" for state, n in asdict(counts).items() if n)
        lines.append(f"pool {name}: {counts.total} items" + (f": {by_state}" if by_state else ""))
        lines += [f"  {n} × {plain(error)}" for error, n in errors[name].items()]
    live = len(workers) - ended
    lines.append(f"{live} workers" + (f" ({ended} ended; --all shows them)" if ended and not options.all else ""))
    lines += map(_line, shown)
    show("\n".join(lines))
    return exits.DONE


def _line(worker: dict[str, Any]) -> str:
    doing = f"works on {plain(worker['item'])}" if worker["item"] else "idle"
    if worker["status"] not in SCREEN_WORKER.values() or worker["status"] in ("terminated", "lost"):
        doing = f"held {plain(worker['item'])}" if worker["item"] else f"{worker['processed'] or 0} done"
    about = [
        f"pool {worker['pool']}",
        f"parallelism {worker['parallelism']}",
        f"pid {worker['pid']} on {worker['host']}",
    ]
    heard = f"heard of {span(max(0.0, time.time() - datetime.fromisoformat(worker['heartbeat']).timestamp()))} ago"
    return f"  {plain(worker['id'])}  {worker['status']}  {doing}  ({' · '.join(map(plain, [*about, heard]))})"


def _worker(worker: Any) -> dict[str, Any]:
    about = worker.metadata or {}
    status = SCREEN_WORKER.get(worker.status, worker.status)
    if worker.status in LIVE_WORKER and (is_dead(about.get("owner", "")) or about.get("lease_until", 0) < time.time()):
        status = "lost"  # nobody has said so yet; the next run does
    return {
        "id": worker.worker_id,
        "status": status,
        "item": worker.current_task_id,
        "pool": about.get("pool"),
        "parallelism": about.get("parallelism"),
        "capabilities": worker.capabilities or [],
        "processed": about.get("processed"),
        "pid": worker.pid,
        "host": worker.host,
        "started": worker.started_at,
        "heartbeat": worker.last_heartbeat or datetime.now(UTC).isoformat(),
    }
