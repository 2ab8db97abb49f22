"""Signals, heard in a thread of their own: a state that blocks the event loop does not keep the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from flatfleet.commands import exits

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5.0
"""Seconds that handing back and summing up may take after the deadline; then the process ends all the same."""
SILENCE = 0.5
"""Seconds after the deadline at which an event loop that has not heard the signal yet is given up."""

Handler = Callable[[int, FrameType | None], object] | int | None


class Signals:
    """Calls `interrupt()` on the event loop for each signal, and ends the process where that does not.

    The first signal leaves `deadline` seconds, the second none, the third ends the process at once. A process that is
    still there after them calls `leave()`, in the thread, and ends.
    """

    def __init__(self, interrupt: Callable[[], None], leave: Callable[[], object], deadline: float) -> None:
        self._interrupt = interrupt
        self._leave = leave
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._signals = self._heard = 0
        self._ears, self._mouth = socket.socketpair()
        self._before: dict[int, Handler] = {}
        self._fd = -1

    def __enter__(self) -> Signals:
        self._mouth.setblocking(False)
        wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, `cmd &`
        self._before = {number: signal.signal(number, lambda *_: None) for number in wanted}
        self._fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="flatfleet-signals", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._fd)
        for number, before in self._before.items():
            signal.signal(number, before)
        self._mouth.close()  # ends the thread

    def _listen(self) -> None:
        ends, last_call = None, False
        with self._ears:
            while True:
                left = None if ends is None else max(0.0, ends - time.monotonic())
                if not select.select((self._ears,), (), (), left)[0]:
                    if self._heard == self._signals and not last_call:
                        ends, last_call = time.monotonic() + GRACE, True
                        continue
                    self._end()
                numbers = self._ears.recv(64)
                if not numbers:
                    return
                for _ in filter(self._before.__contains__, numbers):
                    self._signals += 1
                    if self._signals > 2:
                        _exit()
                    ends = time.monotonic() + SILENCE + (self._deadline if self._signals == 1 else 0.0)
                    self._loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self._heard += 1
        self._interrupt()

    def _end(self) -> None:
        """End the process, after `leave` or when that has had its time, too."""
        last = threading.Timer(GRACE, _exit)
        last.daemon = True
        last.start()
        try:
            self._leave()
        finally:
            _exit()


def _exit() -> None:
    """Leave at once, with the terminal as it was found: a progress bar hides the cursor."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")
    os._exit(exits.INTERRUPTED)
