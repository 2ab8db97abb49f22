"""Standard output is data, standard error is talk: how commands write both."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

from flatfleet.runtime.notices import NAME

_LIBRARIES = ("flatmachines", "flatagents")


def plain(text: object) -> str:
    """One printable line: control characters, line ends and direction marks become escapes (`\\x1b`, `\\n`)."""
    return "".join(
        char if unicodedata.category(char)[0] != "C" else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(text)
    )


def lines(text: object) -> str:
    """Printable text that may have several lines."""
    return "\n".join(map(plain, str(text).split("\n")))


def show(text: str) -> None:
    """Write to standard output."""
    print(text)  # noqa: T201


def document(value: Any) -> None:
    """Write one JSON document to standard output."""
    show(json.dumps(finite(value)))


def finite(value: Any) -> Any:
    """The value with null for what JSON has no number for (NaN, infinity)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def say(text: str) -> None:
    """Write to standard error; that nobody reads it is no reason to stop."""
    with contextlib.suppress(OSError):
        print(lines(text), file=sys.stderr, flush=True)  # noqa: T201


def prepare() -> None:
    """Make both streams writable, whatever the locale and whether the caller has closed them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


class _Log(logging.Handler):
    """Says each record; a progress bar that has taken standard error over prints it above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def log_to_stderr(verbose: bool) -> None:
    """Send every log to standard error, also those of the SDK, which would write them to standard output.

    Without `verbose` only errors and notices are shown; FLATAGENTS_LOG_LEVEL can ask for more.
    Warnings of libraries are logs, too.
    """
    level = logging.INFO if verbose else logging.ERROR
    handler = _Log()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
    logging.getLogger(NAME).setLevel(logging.INFO)
    asked = logging.getLevelNamesMapping().get(os.environ.get("FLATAGENTS_LOG_LEVEL", "").upper(), level)
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        files = [each for each in logger.handlers if isinstance(each, logging.FileHandler)]
        logger.handlers[:] = [*files, handler]
        logger.setLevel(min(level, asked))
        logger.propagate = False
