"""Messages that no process hears: who would, and how to drop them."""

from __future__ import annotations

import argparse
import time
from typing import Any

from flatfleet.commands import cli, decided, exits, finding, messages
from flatfleet.commands.terminal import document, plain, show
from flatfleet.runtime import scaling
from flatfleet.runtime.dispatcher import scaler_of
from flatfleet.runtime.owner import is_dead


def host_command(options: argparse.Namespace, fleet: str) -> str:
    """The command that hosts a fleet whatever has become of it."""
    task = ["--task", "FILE"] if fleet != "papers" else []
    return cli.again(_about(options, fleet), "package:flatfleet/scaler.yml", "--stay", *task)


async def advice(options: argparse.Namespace, store: Any, fleet: Any) -> list[str]:
    """What to do so that a fleet which no process hosts hears its messages, one line for each way.

    It depends on whether a scaler is parked, whether items are left, and whether workers run that no scaler launched.
    """
    name, about = fleet.name, _about(options, fleet.name)
    parked = await store.driver.load_snapshot(scaler_of(name)) is not None
    left = (await store.work.pool(name).counts()).left
    others = await _others(store, name)
    ways = [f"{'more workers beside them' if others else 'any time'}: {host_command(options, name)}"]
    if others:
        live = finding.count(len(others), "live worker")
        told = f"it does not scale its {live} ({plain(finding.few(others, 3))})"
        return [f"{told}: coordinator.yml, pipeline.yml and worker.yml keep their number", *ways, _next(about)]
    amount = options.amount
    if left and not parked:
        ways.insert(0, "the launcher's command hosts it, with --workers 1 or more")
    elif left:
        ways.insert(0, "the command that launched it goes on, and hosts it")
    else:
        ways.insert(0, "no item is left, so the launcher's command hosts it only with --stay")
    if parked and amount is not None and amount[0] == "target":
        stay = [] if left else ["--stay"]
        ways.insert(0, f"here and now: {cli.again(about, 'scale', str(amount[1]), '--host', *stay)}")
    return [*ways, _next(about)]


async def forget(options: argparse.Namespace, store: Any, fleet: Any) -> int:
    """Drop what waits on the fleet's channel, and, where no process hosts it, what its scaler was handed already."""
    dropped: dict[str, Any] = {}
    while (signal := await store.driver.consume(fleet.channel)) is not None:
        dropped[signal.id] = signal.data
    if not await fleet.hosts():
        dropped |= await _handed(store, fleet)
    work = await decided.at_work(store, fleet.name)
    if options.json:
        rows = [{"id": name, "message": message} for name, message in dropped.items()]
        document({"store": store.shown, "fleet": fleet.name, "forgotten": rows, "at_work": work})
        return exits.DONE
    told = "; ".join(decided.asked(message) for message in dropped.values())
    text = f"{finding.count(len(dropped), 'message')} dropped: {plain(told)}" if dropped else "no message waits"
    if work is not None:
        text += f"\n  its scaler has begun with one, which it goes on with: {plain(decided.asked(work['message']))}"
    show(f"{fleet.name}: {text}")
    return exits.DONE


async def _handed(store: Any, fleet: Any) -> dict[str, Any]:
    """Take what lies in the inbox of the fleet's scaler."""
    taken: dict[str, Any] = {}
    scaler = scaler_of(fleet.name)
    async with messages.still(store, fleet):
        row = await store.driver.load_snapshot(scaler)
        if row is not None:
            while (signal := await store.driver.take(fleet.channel, scaler, list(taken))) is not None:
                taken[signal.id] = signal.data
            await store.driver.save_snapshot(row, None, None, list(taken))
    return taken


async def _others(store: Any, name: str) -> list[str]:
    """The live workers of a pool that neither a launcher nor a scaler has launched."""
    active = await store.registration.list(statuses=("active",), pool=name)
    records = [each for each in active if not (each.metadata or {}).get("decision")]
    return [worker.id for worker in scaling.alive(records, name, time.time(), is_dead)]


def _next(about: argparse.Namespace) -> str:
    drop = cli.again(about, "scale", "--forget")
    return f"whoever hosts it next hears all that waits, whatever that run is for; to drop it: {drop}"


def _about(options: argparse.Namespace, fleet: str) -> argparse.Namespace:
    pool = options.pool or (fleet if fleet != "papers" else None)
    return argparse.Namespace(**{**vars(options), "pool": pool})
