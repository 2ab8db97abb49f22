"""Asking before something is changed that took work to get there."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from flatfleet.commands import cli, terminal
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.threads import in_daemon


def add_yes(made: cli.Parser) -> None:
    made.add_argument("--yes", "-y", action="store_true", help="do not ask (needed where there is no terminal)")


async def agreed(options: Any, what: str) -> bool:
    """Ask whether to do `what` ("try 12 dead items again"), unless --yes was given; Enter means no.

    Raises UsageError where there is nobody to ask.
    """
    if options.yes:
        return True
    if not _on_terminal():
        raise UsageError(f"this would {what}; to do it without a terminal to ask on, add --yes")
    sys.stderr.write(terminal.lines(f"{what[:1].upper()}{what[1:]}? [y/N] "))
    sys.stderr.flush()
    answer = await in_daemon(lambda: os.read(0, 4096))  # not sys.stdin: a thread that holds its lock stops the exit
    return answer.strip().lower() in (b"y", b"yes")


def _on_terminal() -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.isatty(0) and sys.stderr.isatty()
    return False
