"""Exit codes, and how an error ends a command: one message, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from flatfleet.runtime.errors import FleetError, StoreError, UsageError

DONE = 0
SOME_FAILED = 1
WRONG_INPUT = 2
STORE_FAILED = 3
MACHINE_FAILED = 4
INTERRUPTED = 130


class HardExit(BaseException):
    """Leave now, without waiting for threads that may be reading a document for minutes."""

    def __init__(self, code: int) -> None:
        self.code = code


def code_of(error: BaseException) -> int:
    if isinstance(error, UsageError):
        return WRONG_INPUT
    if isinstance(error, StoreError):
        return STORE_FAILED
    return MACHINE_FAILED


def leave(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """Run `main(argv)` and end the process with its code."""
    try:
        code = main(argv)
    except FleetError as error:
        print(f"flatfleet: {error}", file=sys.stderr)  # noqa: T201
        code = code_of(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)
