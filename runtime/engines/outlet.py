"""What a host writes to its standard error: kept until it is up, then shown here, each line behind the host's id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque

KEPT = 20
"""Last lines that are kept for an error."""
READ = 1 << 16
LONGEST = 1 << 20
"""Bytes of a line; a longer one is cut in two."""


class Outlet:
    """A pipe: `open` gives the end for the child, `opened` closes that here; `flow` begins to show what comes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._read = self._write = -1
        self._rest = b""
        self._kept: deque[str] = deque(maxlen=KEPT)
        self._flows = False

    def open(self) -> int:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        asyncio.get_running_loop().add_reader(self._read, self._take)
        return self._write

    def opened(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def flow(self) -> None:
        """Show what was kept, and from now on all that comes."""
        self._flows = True
        for line in self._kept:
            self._show(line)

    def last(self) -> str:
        """The last lines, as the end of an error's text."""
        told = [line for line in self._kept if line.strip()]
        return ":\n" + "\n".join(f"  {line}" for line in told) if told else "; it said nothing"

    def close(self) -> None:
        """Take what is there, and close the pipe, whoever has its other end."""
        if self._read < 0:
            return
        while self._read >= 0 and self._take():
            pass
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        self._shut()

    def _take(self) -> bool:
        """Read once; False if there is nothing more for now."""
        try:
            data = os.read(self._read, READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._shut()
            return False
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._line(line)
        if len(self._rest) > LONGEST:
            self._line(self._rest)
            self._rest = b""
        return True

    def _shut(self) -> None:
        if self._read >= 0:
            asyncio.get_running_loop().remove_reader(self._read)
            os.close(self._read)
            self._read = -1

    def _line(self, data: bytes) -> None:
        line = data.decode("utf-8", "backslashreplace").rstrip("\r")
        self._kept.append(line)
        if self._flows:
            self._show(line)

    def _show(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{self._name}: {line}\n")
            sys.stderr.flush()
