"""Exit codes, and how an error ends a command: one message, no traceback."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from flatfleet.commands import terminal
from flatfleet.runtime.errors import BundleError, FleetError, StoreError, UsageError

DONE = 0
SOME_FAILED = 1
WRONG_INPUT = 2
STORE_FAILED = 3
MACHINE_FAILED = 4
INTERRUPTED = 130


def code_of(error: BaseException) -> int:
    if isinstance(error, UsageError):
        return WRONG_INPUT
    if isinstance(error, StoreError):
        return STORE_FAILED
    return MACHINE_FAILED


def leave(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """Run `main(argv)` and end the process with its code.

    With `--json` an error is one object on standard output: `{"error": {"type", "message"}}`.
    """
    terminal.prepare()
    try:
        code = main(argv)
        sys.stdout.flush()
    except FleetError as error:
        code = _report(error, str(error), argv)
    except KeyboardInterrupt as error:
        _report(error, "interrupted", argv)
        code = INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        code = DONE
    except OSError as error:  # machines and stores wrap theirs: this is about what the command itself writes
        _report(error, _about(error), argv)
        _drop_output()
        code = WRONG_INPUT
    except Exception as error:
        code = _report(error, f"internal error: {type(error).__name__}: {error} (-v shows where)", argv)
    sys.exit(code)


def _report(error: BaseException, message: str, argv: Sequence[str]) -> int:
    if not isinstance(error, UsageError | KeyboardInterrupt) and {"-v", "--verbose"} & set(argv):
        terminal.say("".join(traceback.format_exception(error)).rstrip())
    if "--json" in argv and not isinstance(error, OSError):
        about: dict[str, object] = {"type": type(error).__name__, "message": message}
        if isinstance(error, BundleError):
            about["problems"] = error.problems
        terminal.show(json.dumps({"error": about}))
    else:
        terminal.say(f"flatfleet: {message}")
    return code_of(error)


def _about(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not error.filename:
        return "the folder that you are in does not exist any more; change to another"
    return f"cannot write {error.filename or 'the output'}: {error.strerror or error}"


def _drop_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
