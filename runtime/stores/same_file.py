"""Whether a database that is in use is still the file that was opened: SQLite would go on writing into what is left of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flatfleet.runtime.errors import StoreGone, StoreUnavailable

CHECK_EVERY = 1.0
"""Seconds between two looks."""


class SameFile:
    """One file, from when it was opened until `close()`.

    Where the system has O_PATH (Linux), a file that was deleted is told from one that was moved away and may come back;
    elsewhere both count as moved. No ordinary descriptor is used: to close one would end SQLite's locks.
    """

    def __init__(self, path: Path) -> None:
        found = path.stat()
        self._path, self._inode, self._size, self._checked = path, found.st_ino, found.st_size, 0.0
        self._fd = os.open(path, os.O_PATH | os.O_CLOEXEC) if hasattr(os, "O_PATH") else None

    def check(self) -> None:
        """Refuse a file that is not there (StoreUnavailable), or never will be again, or was cut off (StoreGone)."""
        if time.monotonic() - self._checked < CHECK_EVERY:
            return
        try:
            found = os.stat(self._path)  # noqa: PTH116
        except FileNotFoundError:
            found = None
        if found is None or found.st_ino != self._inode:
            final = found is not None or (self._fd is not None and os.fstat(self._fd).st_nlink == 0)
            raise (StoreGone if final else StoreUnavailable)(
                f"the store {self._path} was deleted or replaced while in use; what is in it now is not this run's. "
                "Run the same command again to start from what is there"
            )
        if found.st_size < self._size:
            raise StoreGone(
                f"the store {self._path} was cut off while in use ({self._size} bytes before, {found.st_size} now). "
                "Restore a copy of it; a new --store starts afresh"
            )
        self._size, self._checked = found.st_size, time.monotonic()

    def there(self) -> bool:
        """False if the path holds nothing by now, or another file."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
