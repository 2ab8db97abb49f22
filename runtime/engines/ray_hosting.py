"""The inside of a Ray host: an actor that answers from Ray's threads, while its machines run in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from flatfleet.runtime import loop
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.engines.hosting import Hosting, compose
from flatfleet.runtime.engines.hosts import STOPPING, Event, Order, Setup, told
from flatfleet.runtime.engines.ray_places import kind_of_node
from flatfleet.runtime.owner import is_dead, works_for

HEAR = 20.0
"""Seconds after which a parent that listens is answered that nothing has happened."""
LOOK = 1.0
"""Seconds between two looks whether this node is to be taken away."""


class Machines:
    """The thread in which the machines of a host run, each `act` there included."""

    def __init__(self, setup: Setup, tell: Callable[[Event], None]) -> None:
        self._setup = setup
        self._tell = tell
        self._ending: asyncio.Task[int] | None = None
        self.left: Future[int] = Future()
        """How many items were handed back, once it is over."""

    def start(self) -> str:
        """Run; return the owner in the store. Raises what it cannot run by."""
        ready: Future[str] = Future()
        threading.Thread(target=self._live, args=(ready,), name="flatfleet-host", daemon=True).start()
        return ready.result()

    def launch(self, order: Order) -> None:
        self._act(lambda: self.hosting.launch(order)).result()

    def drain(self) -> None:
        self._act(self.hosting.drain)

    def stop(self, seconds: float) -> None:
        """Begin to drain, and after `seconds` cancel; `left` says when that is done. Again, with less time: hurry on."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._act(lambda: self._stop(seconds))

    def _live(self, ready: Future[str]) -> None:
        try:
            loop.run(self._serve(ready))
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            if not self.left.done():
                self.left.set_result(0)

    async def _serve(self, ready: Future[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[float] = self._loop.create_future()
        self.hosting = Hosting(compose(self._setup), self._tell)
        ready.set_result(self.hosting.owner)
        n = 0
        try:
            n = await self.hosting.stop(await self._end)
            n += await self._ending if self._ending is not None else 0
        finally:
            await self.hosting.close()
            self.left.set_result(n)

    def _act(self, act: Callable[[], None]) -> Future[None]:
        """Do something in that thread."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                act()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        return done

    def _stop(self, seconds: float) -> None:
        if not self._end.done():
            self._end.set_result(seconds)
        elif self._ending is None:
            self._ending = asyncio.ensure_future(self.hosting.stop(seconds))


class _Log(logging.Handler):
    """Has what is logged here shown where the launcher runs; Ray keeps what is printed."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say({"kind": "log", "line": self.format(record)})


class RayHosting:
    """The actor. Its methods block, and Ray runs several at once; what they say is data.

    It has no coroutines: Ray would make it in another thread than the main one, where no signal can be waited for.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[int, dict[str, Any]]] = deque()
        self._number = 0
        self._told = threading.Condition()
        self._bundles: dict[str, Bundle] = {}
        self._leaving = False
        signal.signal(signal.SIGTERM, lambda *_: self._leave(self._grace()))

    # -- what the parent calls -----------------------------------------------------------------------------------------

    def start(self, setup: Setup, folder: str, variables: Mapping[str, str], asked: bool) -> dict[str, Any]:
        """Be ready for orders; {"owner": …, "pid": …, "host": …}, or {"error": …}.

        Where a spot node was `asked` for, the workers offer what came, too: `spot`, or `on-demand`.
        """
        if asked:
            setup = replace(setup, capabilities=(*setup.capabilities, kind_of_node()))
        self._setup = setup
        works_for(setup.launcher)
        os.environ.update(variables)
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._log = _Log(self._say)
        logging.basicConfig(level=logging.INFO if setup.verbose else logging.ERROR, handlers=[self._log], force=True)
        logging.captureWarnings(True)
        self._machines = Machines(setup, self._tell)
        try:
            owner = self._machines.start()
        except Exception as error:
            return {"error": told(error)}
        threading.Thread(target=self._watch, name="flatfleet-node", daemon=True).start()
        return {"owner": owner, "pid": os.getpid(), "host": os.uname().nodename}

    def launch(self, body: str, raw: str | None) -> dict[str, str] | None:
        """Run a machine; `raw` is its bundle if this host has not had it yet. None, or the error that it cannot be run by."""
        order = json.loads(body)
        if raw is not None:
            self._bundles[order["bundle"]] = Bundle.of(json.loads(raw))
        try:
            self._machines.launch(Order.of(order, self._bundles[order["bundle"]]))
        except Exception as error:
            return told(error)
        return None

    def forget(self, digest: str) -> None:
        self._bundles.pop(digest, None)

    def events(self, seen: int) -> list[tuple[int, dict[str, Any]]]:
        """What happened after event number `seen`; waits for it, HEAR seconds at most."""
        with self._told:
            while self._events and self._events[0][0] <= seen:
                self._events.popleft()
            self._told.notify_all()
            if not self._events:
                self._told.wait(HEAR)
            return list(self._events)

    def drain(self) -> None:
        self._machines.drain()

    def stop(self, seconds: float) -> int:
        """Drain, after `seconds` cancel what still runs, hand its items back, and close; return how many items."""
        self._machines.stop(seconds)
        return self._machines.left.result()

    def ping(self) -> bool:
        return True

    def _tell(self, event: Event) -> None:
        error = None if event.error is None else told(event.error)
        about = {"kind": event.kind, "id": event.id, "error": error}
        self._say({**about, "cancelled": event.cancelled, "seconds": event.seconds})

    def _say(self, message: dict[str, Any]) -> None:
        with self._told:
            self._number += 1
            self._events.append((self._number, message))
            self._told.notify_all()

    # -- told to go by others than the parent --------------------------------------------------------------------------

    def _grace(self) -> float:
        return 0.0 if self._leaving or is_dead(self._setup.launcher) else self._setup.grace

    def _leave(self, seconds: float) -> None:
        """Go within `seconds`, in a thread of its own: told again, or orphaned, at once."""
        again, self._leaving = self._leaving, True
        threading.Thread(target=self._go, args=(seconds, again), name="flatfleet-leaves", daemon=True).start()

    def _go(self, seconds: float, again: bool) -> None:
        if not again:
            self._tell(Event("leaving", seconds=seconds))
        self._machines.stop(seconds)
        if again:
            return
        last = threading.Timer(seconds + 2 * STOPPING, os._exit, (1,))
        last.daemon = True
        last.start()
        try:
            self._machines.left.result(seconds + STOPPING)
        except TimeoutError:  # a state blocks the event loop
            self._machines.hosting.hand_back()
        with self._told:
            self._told.wait_for(lambda: not self._events, STOPPING / 2)
        os._exit(0)

    def _watch(self) -> None:
        """Go when this node is drained (spot notice, `ray drain-node`), by its deadline at the latest."""
        import ray
        from ray._private.state import state

        node = ray.get_runtime_context().get_node_id()
        with contextlib.suppress(AttributeError, ConnectionError):  # an older Ray does not tell
            while not self._leaving and not self._machines.left.done():
                time.sleep(LOOK)
                deadline = state.get_draining_nodes().get(node)
                if deadline is not None and not self._leaving:
                    rest = deadline / 1000 - time.time() - STOPPING if deadline else self._setup.grace
                    self._leave(max(0.0, min(self._setup.grace, rest)))
