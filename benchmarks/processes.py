"""Processes of a contestant: started together, held and let go together, and none is left, whatever ends us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

GRACE = 10.0
"""Seconds that a process has to end in its own order."""
_DEATH_SIGNAL, _SUBREAPER = 1, 36
"""prctl(2): the signal that a process gets when its parent dies; to inherit the orphans of one's children."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _prctl(option: int, value: int) -> None:
    if _LIBC is not None:
        _LIBC.prctl(option, value, 0, 0, 0)


def dies_with_us() -> None:
    """Called in a new process: it is killed when its parent ends (on Linux)."""
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)


def ends_with_us() -> None:
    """Called in a new process: it is told to end when its parent does (on Linux)."""
    _prctl(_DEATH_SIGNAL, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of the processes below this one whose own has ended, so that their CPU time is ours (on Linux)."""
    _prctl(_SUBREAPER, 1)


def reap(seconds: float = 2.0) -> None:
    """Wait for all children that end within so long."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def leave_in_order() -> None:
    """Let Ctrl-C and SIGTERM raise SystemExit, once: what is done on the way out is not interrupted."""

    def leave(number: int, _: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def output(argv: Sequence[str], cwd: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; whatever ends the wait for it ends the command, in its own order if it is quick."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(argv, cwd=cwd, preexec_fn=ends_with_us, **pipes)  # noqa: PLW1509
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE)
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


class Crew:
    """Some commands with their children. At the end of `with` all are killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(signal.SIGKILL)
        for process in self._running:
            process.wait()
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-process.pid, 0)

    def start(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command in the folder; what it prints goes into a file there."""
        with (self._folder / f"crew-{len(self._running)}.log").open("wb") as log:
            process = subprocess.Popen(
                argv,
                cwd=self._folder,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_us,  # noqa: PLW1509
            )
        self._running.append(process)
        return process

    def pids(self) -> list[int]:
        return [process.pid for process in self._running]

    def hold(self) -> None:
        """Stop all of them where they are."""
        self._tell(signal.SIGSTOP)

    def go(self) -> None:
        """Let all go on that were held."""
        self._tell(signal.SIGCONT)

    def end(self, seconds: float = GRACE) -> None:
        """Interrupt all, as Ctrl-C does, and wait for their own end, so long."""
        for process in self._running:
            process.send_signal(signal.SIGINT)
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)

    def failed(self) -> str | None:
        """The last words of one that has ended, if one has."""
        for index, process in enumerate(self._running):
            if process.poll() is not None:
                lines = (self._folder / f"crew-{index}.log").read_text(errors="replace").strip().splitlines()
                return f"exit code {process.returncode}: {lines[-1] if lines else 'no output'}"
        return None

    def _tell(self, number: int) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def children(pid: int) -> list[int]:
    """The processes that this one has started and that have not ended (none without /proc)."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
