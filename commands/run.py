"""run FILE: execute a machine, stay while what it launched is live, show progress, and sum up."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatfleet.commands import cli, exits
from flatfleet.commands.progress import Progress
from flatfleet.commands.summary import Summary
from flatfleet.runtime.errors import FleetError, UsageError, did_you_mean

RESERVED = frozenset({"store", "json", "verbose", "task", "agents", "with", "stay", "drain-deadline", "capabilities"})


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Load the machine that the first word names, and parse the rest as its inputs."""
    from flatfleet import hooks
    from flatfleet.runtime import bundle

    file, rest = argv[0], argv[1:]
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--task")
    early.add_argument("--agents", default=os.environ.get("FLATFLEET_AGENTS"), choices=["offline", "flatagent"])
    chosen, _ = early.parse_known_args(rest)
    config = bundle.load(file, task=chosen.task, agents=chosen.agents, known=hooks.known())
    specs = bundle.inputs(config)

    made = cli.parser(f"run {file}", config.get("metadata", {}).get("description", ""))
    made.add_argument("--task", metavar="FILE", help="run this machine for each item instead of the shipped task")
    made.add_argument(
        "--agents",
        choices=["offline", "flatagent"],
        default=chosen.agents,
        help="offline agents, or their FlatAgent twins (or the variable FLATFLEET_AGENTS)",
    )
    made.add_argument("--with", dest="with_", metavar="JSON", default="{}", help="inputs as one JSON object")
    made.add_argument("--stay", action="store_true", help="keep the workers waiting for more items")
    made.add_argument(
        "--drain-deadline",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that the items in hand have to finish after the first Ctrl-C",
    )
    made.add_argument("--capabilities", default="", metavar="A,B", help="what the workers here can serve")
    group = made.add_argument_group("inputs of this machine")
    for spec in specs.values():
        flag = spec.name.replace("_", "-")
        if flag in RESERVED:
            raise UsageError(f"{file}: the input '{spec.name}' has the name of a flag of run; rename it")
        group.add_argument(f"--{flag}", dest=f"input_{spec.name}", metavar=spec.type.upper(), help=_help(spec))
    options = cli.finish(made, rest, file)

    inputs = cli.json_value(options.with_, "--with")
    if not isinstance(inputs, dict):
        raise UsageError(f"--with needs a JSON object such as '{{\"workers\": 8}}', not {options.with_[:60]}")
    for name in inputs:
        if name not in specs:
            raise UsageError(f"--with: machine {file} has no input '{name}'{did_you_mean(name, specs)}")
    for spec in specs.values():
        value = getattr(options, f"input_{spec.name}")
        if value is not None:
            inputs[spec.name] = cli.input_value(spec, value)
    if options.task and "pool" in specs and "pool" not in inputs:
        inputs["pool"] = _task_name(config)
    missing = [spec.name for spec in specs.values() if spec.required and spec.name not in inputs]
    if missing:
        raise UsageError(f"machine {file} needs --{missing[0].replace('_', '-')}: {specs[missing[0]].description}")
    options.capabilities = tuple(filter(None, options.capabilities.split(",")))
    options.inputs, options.bundle, options.file = inputs, config, file
    options.defaults = {spec.name: spec.default for spec in specs.values()}
    options.needs_loop, options.must_exist, options.command = True, False, command
    return options


def _task_name(config: dict[str, Any]) -> str:
    """The name of the task below a machine: items of another task belong in another pool."""
    for name, machine in config["data"].get("machines", {}).items():
        found = machine["data"].get("name", "task") if name == "task" else _task_name(machine)
        if found:
            return str(found)
    return ""


def _help(spec: Any) -> str:
    text = str(spec.description or spec.name).replace("%", "%%")
    return text + (f" (default: {spec.default})" if spec.default not in (None, "") else "")


async def command(options: argparse.Namespace, parts: Any) -> int:
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.ERROR, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    source = options.bundle.source
    machine = parts.machine(options.bundle, str(source.parent if source else Path.cwd()))
    settings = options.defaults | options.inputs
    pool = parts.store.work.pool(settings["pool"]) if settings.get("pool") else None
    progress = Progress(pool, parts.engine, quiet=options.json)
    run = _Run(parts, machine, options.drain_deadline, progress)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, run.interrupt)
    started = time.monotonic()
    try:
        output, error = await run.execute(options.inputs)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if error is not None and not isinstance(error, FleetError):
        print(f"flatfleet: machine {machine.machine_name} failed: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return exits.MACHINE_FAILED
    if error is not None:
        raise error
    summary = Summary(
        machine=machine.machine_name,
        output=output if isinstance(output, dict) else {"output": output},
        counts=await pool.counts() if pool else None,
        errors=await pool.errors() if pool else {},
        failures={name: f"{type(fault).__name__}: {fault}" for name, fault in parts.engine.failures().items()},
        seconds=time.monotonic() - started,
        store=parts.store.url,
        durable=parts.store.durable,
        pool=pool.name if pool else None,
        out=str(settings.get("out") or ""),
        interrupted=run.interrupted,
        handed_back=run.handed_back,
    )
    print(json.dumps(summary.as_dict()) if options.json else summary.text())  # noqa: T201
    code = summary.exit_code(parts.engine.failures())
    if run.hard:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class _Run:
    """One execution with its interrupts: the first drains, the second stops now."""

    def __init__(self, parts: Any, machine: Any, deadline: float, progress: Progress) -> None:
        self._parts = parts
        self._machine = machine
        self._deadline = deadline
        self._progress = progress
        self._main: asyncio.Task[Any] | None = None
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self.interrupted = self.hard = False
        self.handed_back = 0

    async def execute(self, inputs: dict[str, Any]) -> tuple[Any, BaseException | None]:
        """Run the machine, and then whatever it launched, to the end or to an interrupt: (output, error)."""
        self._main = asyncio.create_task(self._machine.run(inputs))
        closer = asyncio.create_task(self._close_on_interrupt())
        async with self._progress:
            try:
                await asyncio.wait([self._main])
                output, error = _outcome(self._main)
                if error is None and not self.interrupted:
                    self._progress.launched(output)
                if error is not None:
                    await self._parts.engine.close(0)
                await self._parts.engine.join()
            finally:
                if self.interrupted:
                    await closer
                closer.cancel()
        return output, error

    def interrupt(self) -> None:
        if self.interrupted:
            self._now.set()
        self.interrupted = True
        self._stop.set()

    async def _close_on_interrupt(self) -> None:
        await self._stop.wait()
        self._parts.engine.drain()
        main, leases = self._main, self._parts.fleet.leases
        if main is not None and not self._is_worker():
            main.cancel()
        self._progress.say(
            f"stopping: {len(leases)} in hand, {self._deadline:g} s to finish (Ctrl-C again: stop now)"
            if leases
            else "stopping"
        )
        ended = asyncio.create_task(self._all_ended())
        again = asyncio.create_task(self._now.wait())
        await asyncio.wait([ended, again], timeout=self._deadline, return_when=asyncio.FIRST_COMPLETED)
        self.hard = not ended.done()
        again.cancel()
        ended.cancel()
        if main is not None:
            main.cancel()
        self.handed_back = await self._parts.engine.close(0)

    def _is_worker(self) -> bool:
        return bool(self._machine._context.get("worker_id"))

    async def _all_ended(self) -> None:
        if self._main is not None:
            await asyncio.wait([self._main])
        await self._parts.engine.join()


def _outcome(task: asyncio.Task[Any]) -> tuple[Any, BaseException | None]:
    if task.cancelled():
        return {}, None
    error = task.exception()
    return (None, error) if error is not None else (task.result(), None)
