"""Hosting a fleet from a verb: its scaler is woken here, and the workers that it launches run here."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from flatfleet.commands import decided, messages, terminal, unheard
from flatfleet.commands.progress import Progress
from flatfleet.commands.session import DEADLINE, Session
from flatfleet.commands.summary import Summary, first_dead, gone
from flatfleet.runtime.dispatcher import Dispatcher, scaler_of
from flatfleet.runtime.errors import FleetError, MachineError, UsageError
from flatfleet.runtime.routing import unserved


async def host(options: argparse.Namespace, parts: Any, fleet: Any, message: Mapping[str, Any]) -> int:
    """Send the message, host the fleet until it closes or somebody interrupts, and sum up.

    Raises UsageError where the fleet has no scaler to wake, and MachineError where it cannot be woken here.
    """
    store, pool = parts.store, parts.store.work.pool(fleet.name)
    if await store.driver.load_snapshot(scaler_of(fleet.name)) is None:
        start = unheard.host_command(options, fleet.name)
        raise UsageError(
            f"fleet '{fleet.name}' has no parked scaler that could be hosted, and nothing was sent; start one: {start}"
        )
    terminal.log_to_stderr(options.verbose)
    await parts.fleet.recover()
    progress = Progress(
        pool, parts.engine, options.json, lambda: unserved(store, pool.name, parts.fleet.offers), parts.fleet
    )
    dispatcher = Dispatcher(store, parts.engine)
    sent: list[str] = []

    async def begin(_: dict[str, Any]) -> dict[str, Any]:
        await dispatcher.host(fleet.name)
        sent.append(await store.signals.send(fleet.channel, message))
        decision = await messages.answer(store, fleet, sent[0])
        if decision is not None:
            progress.say(f"{fleet.name}: {decided.told(decision)}")
        return {}

    session = Session(parts, None, DEADLINE, progress, dispatcher, begin)
    started = time.monotonic()
    _, error = await session.execute({})
    if error is not None:
        raise error if isinstance(error, FleetError) else MachineError(f"{type(error).__name__}: {error}") from error
    decision = await fleet.decision(sent[0]) if sent else None
    if decision is None and not session.interrupted:
        raise MachineError(f"the scaler of fleet '{fleet.name}' could not be woken here: the message waits")
    counts = await pool.counts()
    left_by = await gone(store, pool.name, counts, parts.engine.owners(), served=parts.fleet.served)
    summary = Summary(
        machine="scaler",
        output={},
        counts=counts,
        errors=await pool.errors(),
        dead=await first_dead(pool) if counts.dead else [],
        failures={name: f"{type(fault).__name__}: {fault}" for name, fault in parts.engine.failures().items()},
        seconds=time.monotonic() - started,
        store=options.store,
        durable=True,
        pool=pool.name,
        out="",
        interrupted=session.interrupted,
        handed_back=session.handed_back,
        drained=left_by.drained,
        ended=left_by.ended,
        unserved=await unserved(store, pool.name, parts.fleet.offers),
    )
    if options.json:
        told = messages.report(store, fleet, "".join(sent), message, [store.owner], decision)
        terminal.document(told | {"run": summary.as_dict()})
    elif text := summary.text():
        terminal.show(text)
    return await session.end(decided.code(decision) or summary.exit_code(parts.engine.failures()))
