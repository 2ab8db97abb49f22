"""run FILE: execute a machine, stay while what it launched is live, show progress, and sum up."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatfleet.commands import cli, durations, flags, joining, terminal
from flatfleet.commands.progress import Progress
from flatfleet.commands.session import DEADLINE, Session
from flatfleet.commands.summary import Gone, Summary, first_dead, gone
from flatfleet.runtime.errors import FleetError, MachineError, UsageError

AGENTS = ("offline", "flatagent")
LLM_LIBRARIES = ("litellm", "aisuite")


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    """Load the machine that the first word names, and parse the rest as its inputs."""
    from flatfleet.runtime import bundle, distributed, fleet_settings
    from flatfleet.runtime.stores.keys import check_capabilities

    file, rest = argv[0], argv[1:]
    early = cli.Parser(add_help=False, allow_abbrev=False)
    early.add_argument("--task")
    early.add_argument("--agents", type=cli.choice(*AGENTS), default=os.environ.get("FLATFLEET_AGENTS") or None)
    chosen, _ = early.parse_known_args(rest)
    config = bundle.load(file, task=chosen.task, agents=chosen.agents, known=known())
    specs = bundle.inputs(config)
    asked = distributed.choice(config)
    made = _parser(file, config.get("metadata", {}).get("description", ""))
    cli.prefer(made, store=asked.store, engine=asked.engine)
    joining.add(made, specs, rest, file)
    flags.add(made, specs, file)
    options = cli.finish(made, rest, file)
    options.inputs = flags.inputs(options, specs, file)
    task = _task(config)
    if "pool" in specs and asked.pool and not options.inputs.get("pool"):
        options.inputs["pool"] = asked.pool
    if options.task and "pool" in specs and not options.inputs.get("pool") and task:
        options.inputs["pool"] = task["data"].get("name", "task")
    if options.stay and options.inputs.get("until_empty"):
        raise UsageError("--until-empty ends with the pool, and --stay waits for more items: give one of them")
    if "policy" in specs and (policy := options.inputs.get("policy") or fleet_settings.policy_of(config)):
        options.inputs["policy"] = fleet_settings.load(policy)
    if any(_flatagents(config)) and not any(map(importlib.util.find_spec, LLM_LIBRARIES)):
        raise UsageError(
            f"agent '{next(_flatagents(config))}' asks a model, and no library for that is installed: "
            'pip install "flatfleet[llm]", or take the agents that need none: --agents offline'
        )
    options.capabilities = check_capabilities(options.capabilities, "--capabilities")
    options.grace = options.drain_deadline
    options.bundle, options.file, options.agents = config, file, chosen.agents
    options.writes = task is None or "out" in bundle.used_inputs(task)
    options.defaults = {spec.name: spec.default for spec in specs.values()}
    options.needs_loop, options.must_exist, options.command = True, False, command
    return options


def _parser(file: str, description: str) -> cli.Parser:
    made = cli.parser(f"run {file}", description)
    made.add_argument("--task", metavar="FILE", help="run this machine for each item instead of the shipped task")
    made.add_argument(
        "--agents",
        type=cli.choice(*AGENTS),
        metavar="|".join(AGENTS),
        help="agents that need no model, or their twins that ask one (or the variable FLATFLEET_AGENTS)",
    )
    made.add_argument("--with", dest="with_", metavar="JSON", default="{}", help="inputs as one JSON object")
    made.add_argument("--stay", action="store_true", help="keep the workers waiting for more items")
    made.add_argument(
        "--drain-deadline",
        type=durations.seconds,
        default=DEADLINE,
        metavar="S",
        help="seconds (or 10m, 2h) that the items in hand have to finish after the first Ctrl-C (default: 30)",
    )
    cli.add_engine(made)
    made.add_argument(
        "--capabilities",
        default=os.environ.get("FLATFLEET_CAPABILITIES") or "",
        metavar="A,B",
        help="what the workers here can serve, or FLATFLEET_CAPABILITIES: they get the items that require no more",
    )
    return made


def _task(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The task below a machine: items of another task belong in another pool."""
    for name, machine in (config["data"].get("machines") or {}).items():
        found: Mapping[str, Any] | None = machine if name == "task" else _task(machine)
        if found is not None:
            return found
    return None


def _flatagents(config: Mapping[str, Any]) -> Iterator[str]:
    """The agents, here and in the machines below, that need an LLM library of the SDK."""
    for name, agent in (config["data"].get("agents") or {}).items():
        if isinstance(agent, dict) and agent.get("spec") == "flatagent":
            yield name
    for machine in (config["data"].get("machines") or {}).values():
        if isinstance(machine, dict) and isinstance(machine.get("data"), dict):
            yield from _flatagents(machine)


async def command(options: argparse.Namespace, parts: Any) -> int:
    from flatfleet.runtime import spending
    from flatfleet.runtime.dispatcher import Dispatcher
    from flatfleet.runtime.routing import Unserved, unserved

    terminal.log_to_stderr(options.verbose)
    source = options.bundle.source
    name = _name(options)
    if name:
        options.inputs["machine_id"] = name
    machine = parts.machine(options.bundle, str(source.parent if source else Path.cwd()), name)
    settings = options.defaults | {name: value for name, value in options.inputs.items() if value is not None}
    pool = parts.store.work.pool(settings["pool"]) if settings.get("pool") else None
    left = (lambda: unserved(parts.store, pool.name, parts.fleet.offers)) if pool else None
    progress = Progress(pool, parts.engine, options.json, left, parts.fleet)
    dispatcher = Dispatcher(parts.store, parts.engine)
    named = functools.partial(parts.engine.run_named, machine) if name else None
    if getattr(options, "count", None) is not None:
        named = functools.partial(_join, options, parts, machine)
    session = Session(parts, machine, options.drain_deadline, progress, dispatcher, named)
    started, began = time.monotonic(), time.time()
    output, error = await session.execute(options.inputs)
    if isinstance(error, FleetError):
        raise error
    if error is not None:
        raise MachineError(f"machine {machine.machine_name} failed: {type(error).__name__}: {error}") from error
    counts, owners, served = await pool.counts() if pool else None, parts.engine.owners(), parts.fleet.served
    left_by = await gone(parts.store, pool.name, counts, owners, served=served) if pool else Gone()
    summary = Summary(
        machine=machine.machine_name,
        output=output if isinstance(output, dict) else {"output": output},
        counts=counts,
        errors=await pool.errors() if pool else {},
        dead=await first_dead(pool) if pool and counts and counts.dead else [],
        failures={name: f"{type(fault).__name__}: {fault}" for name, fault in parts.engine.failures().items()},
        seconds=time.monotonic() - started,
        store=options.store,
        durable=parts.store.durable,
        pool=pool.name if pool else None,
        out=str(settings.get("out") or "") if options.writes else "",
        interrupted=session.interrupted,
        handed_back=session.handed_back,
        drained=left_by.drained,
        ended=left_by.ended,
        unserved=await left() if left else Unserved(),
        broke=await spending.broke(parts.store.fleet(pool.name), began) if pool and counts and counts.left else None,
    )
    terminal.show(json.dumps(summary.as_dict()) if options.json else summary.text())
    return await session.end(summary.exit_code(parts.engine.failures()))


async def _join(options: argparse.Namespace, parts: Any, machine: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    return await joining.launch(options, parts, machine)


def _name(options: argparse.Namespace) -> str | None:
    """The name under which others run this machine, too: its `machine_id`, or {pool}.{machine} if it declares that."""
    if "machine_id" not in options.defaults:
        return None
    given = options.inputs | {key: value for key, value in options.defaults.items() if options.inputs.get(key) is None}
    return str(given["machine_id"] or f"{given.get('pool') or 'fleet'}.{options.bundle.name}")
