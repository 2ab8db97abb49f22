"""host FD: what the processes of `--engine process` run; nobody types it. Orders come from the parent, over that descriptor."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from typing import Any

from flatfleet.commands import cli, terminal
from flatfleet.commands.signals import Signals


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.Parser(prog="flatfleet host", add_help=False)
    made.add_argument("orders", type=int)
    options = cli.finish(made, argv, "host")
    options.needs_loop, options.must_exist, options.command = True, False, command
    return options


async def command(options: argparse.Namespace, server: Any) -> int:
    """Serve until the parent says stop, or is gone; SIGTERM drains, a terminal's signals are the parent's to hear."""
    terminal.log_to_stderr(server.setup.verbose)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with Signals(server.leave, server.hand_back, server.setup.grace):
        code: int = await server.run()
    return code
