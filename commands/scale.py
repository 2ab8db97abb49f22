"""scale: send the scaler of a fleet a message, and say what it decided; or host the fleet here until it is done."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, decided, finding
from flatfleet.commands.durations import seconds
from flatfleet.commands.terminal import document, show
from flatfleet.runtime.errors import UsageError


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    about = "Tell a fleet how many workers to have. Targets count parallelism: the sum over the workers."
    made = cli.parser("scale", about, "N|+N|-N")
    made.add_argument(
        "amount", nargs="?", type=_amount, metavar="N", help="so many (8), so many more (+4) or fewer (-4)"
    )
    finding.add_pool(made)
    made.add_argument("--if-current", type=_whole, metavar="K", help="only if the target is K now; refused otherwise")
    made.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    made.add_argument("--reason", metavar="TEXT", help="why; it is kept with the decision")
    made.add_argument(
        "--drain-deadline",
        type=seconds,
        metavar="S",
        help="how long drained workers have to finish their items: seconds, or 90s, 10m, 2h (default: the scaler's)",
    )
    made.add_argument(
        "--hold", type=seconds, metavar="SPAN", help="the autoscaler leaves the target alone for so long: 90s, 10m, 2h"
    )
    made.add_argument("--max-launch-per-step", type=_whole, metavar="N", help="workers launched between two looks")
    made.add_argument(
        "--host", action="store_true", help="where no process hosts the fleet: host it here until it is done"
    )
    cli.add_engine(made)
    made.add_argument("--stay", action="store_true", help="with --host: stay when the pool is empty, and wait for more")
    made.add_argument("--forget", action="store_true", help="send nothing, and drop the messages that nobody has heard")
    options = cli.on_store(made, argv, "scale", command)
    if not options.host and "--engine" in " ".join(argv).replace("=", " ").split():
        raise UsageError("--engine belongs to --host: it is the process that hosts the fleet that has one")
    options.engine = options.engine if options.host else cli.ENGINE
    options.message = {} if options.forget else _message(options)
    if options.forget and options.amount is not None:
        raise UsageError("--forget drops the messages that wait; it takes no number of workers")
    return options


async def command(options: argparse.Namespace, parts: Any) -> int:
    from flatfleet.commands import hosting, messages, unheard

    store = parts.store
    fleet = store.fleet((await finding.pool(options, store)).name)
    if options.forget:
        return await unheard.forget(options, store, fleet)
    hosts = await fleet.hosts()
    message = {**options.message, "by": messages.sender()}
    if options.host and not hosts:
        return await hosting.host(options, parts, fleet, message)
    sent = await store.signals.send(fleet.channel, message)
    decision = await messages.answer(store, fleet, sent) if hosts else None
    advice = [] if hosts else await unheard.advice(options, store, fleet)
    if options.json:
        document(messages.report(store, fleet, sent, message, hosts, decision) | {"advice": advice})
    elif decision is not None:
        show(f"{fleet.name}: {decided.told(decision)}")
    elif advice:
        show("\n  ".join([f"no process hosts fleet '{fleet.name}': the message waits", *advice]))
    else:
        show(await _unanswered(options, store, fleet, sent))
    return decided.code(decision)


async def _unanswered(options: argparse.Namespace, store: Any, fleet: Any, sent: str) -> str:
    waiting = [signal.id for signal in await store.signals.peek(fleet.channel)]
    told = "the scaler is at work on it"
    if sent in waiting:
        before = waiting.index(sent)
        told = f"it waits behind {finding.count(before, 'other')}" if before else "it waits for the scaler to be free"
    return f"{fleet.name}: sent, and {told} (decision {sent}); what comes of it: {cli.again(options, 'status')}"


def _message(options: argparse.Namespace) -> dict[str, Any]:
    """The message, checked as the scaler checks it; raises UsageError."""
    from flatfleet.runtime import decisions

    if options.amount is None:
        raise UsageError("scale needs a number of workers, as in: flatfleet scale 8 (or +4, or -4)")
    if options.stay and not options.host:
        raise UsageError("--stay belongs to --host: it is the process that hosts the fleet that stays")
    name, number = options.amount
    given = {
        name: number,
        "if_current": options.if_current,
        "reason": options.reason,
        "hold": options.hold,
        "max_launch_per_step": options.max_launch_per_step,
        "dry_run": options.dry_run or None,
        "drain_deadline": options.drain_deadline,
    }
    message = {key: value for key, value in given.items() if value is not None}
    wrong = decisions.problem(message)
    if wrong is not None:
        raise UsageError(wrong)
    return message


def _amount(text: str) -> tuple[str, int]:
    if not re.fullmatch(r"[+-]?[0-9]{1,1000}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of workers; write 8, or +4 (more), or -4 (fewer)")
    return ("delta" if text[0] in "+-" else "target"), int(text)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,1000}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of workers")
    return int(text)
