"""The Ray driver: the SQLite store inside a detached actor on the head node of a Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flatfleet.runtime.errors import FleetError, StoreGone, StoreUnavailable
from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.ray_cluster import in_caller, joined, lost
from flatfleet.runtime.stores.ray_keeper import PROTOCOL, keeper
from flatfleet.runtime.stores.ray_pickling import pickled
from flatfleet.runtime.stores.ray_url import RayUrl

OPERATIONS = frozenset(name for name in vars(Driver) if not name.startswith("_")) - {"close", "durable"}
ALONE = frozenset({"cancel", "gc", "items", "metrics", "push", "retry", "snapshots", "vacuum", "workers"})
"""Operations that may take long: no other waits for their answers."""
MOST, WAYS = 512, 2
"""Operations in one message, and messages on their way."""
PATIENCE = 60.0
"""Seconds in which an actor that has died, or cannot be reached, has to be back."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The actor, and the database there; the actor's boot, and the number of its last ring, when that was opened."""

    actor: Any
    file: str
    id: str
    boot: str
    rung: int


@dataclass(slots=True)
class _Call:
    op: str
    number: int
    body: bytes
    future: asyncio.Future[Any]


class RayDriver:
    """contract.Driver whose operations are all carried out by the actor `{url.name}` (ray_keeper.Keeper).

    What is pending goes in one message, and shares a commit there. An operation whose answer was lost, since the actor
    died or could not be reached, is sent again, and has its effect once. `clock` is for tests; None: the head node's.
    """

    durable = True

    def __init__(self, url: RayUrl, must_exist: bool = False, clock: Callable[[], float] | None = None) -> None:
        self.url = url
        self.client = uuid.uuid4().hex
        self._must_exist = must_exist
        self._clock = clock
        self._opened: Opened | None = None
        self._opening = asyncio.Lock()
        self._id: str | None = None
        self._queue: list[_Call] = []
        self._number = 0
        self._waiting: dict[int, _Call] = {}
        self._flusher: asyncio.Task[None] | None = None
        self._away: tuple[type[BaseException], ...] = ()
        self._sent: set[asyncio.Task[None]] = set()

    def __getattr__(self, op: str) -> Any:
        if op not in OPERATIONS:
            raise AttributeError(f"a Ray store has no '{op}'")
        return functools.partial(self._call, op)

    async def ready(self) -> Opened:
        """The actor with the database open, in which this process is known; raises StoreUnavailable."""
        if self._opened is None:
            async with self._opening:
                self._opened = self._opened or await self._patiently(self._open)
        return self._opened

    @property
    def opened(self) -> Opened | None:
        return self._opened

    def forget(self, opened: Opened) -> None:
        """Open the database again before the next operation: the actor does not know this process any more."""
        if self._opened is opened:
            self._opened = None

    async def close(self) -> None:
        """Wait for what is pending, and leave the actor. Another operation opens the store again."""
        while tasks := {*self._sent, *([self._flusher] if self._flusher and not self._flusher.done() else [])}:
            await asyncio.wait(tasks)
        opened, self._opened = self._opened, None
        if opened is not None:
            with contextlib.suppress(*self._away):
                await asyncio.wait_for(_answer(opened.actor.leave.remote(opened.file, self.client)), PATIENCE)

    # -- operations ----------------------------------------------------------------------------------------------------

    async def _call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        body = pickled(op, args, kwargs)
        self._number += 1
        call = _Call(op, self._number, body, asyncio.get_running_loop().create_future())
        self._waiting[call.number] = call
        if op in ALONE:
            self._start([call])
        else:
            self._queue.append(call)
            if self._flusher is None or self._flusher.done():
                self._flusher = asyncio.create_task(self._flush(), name="flatfleet-ray-store")
        try:
            return await call.future
        except asyncio.CancelledError:
            if call.future.done() and not call.future.cancelled() and call.future.exception() is None:
                self._undo(call, call.future.result())
            raise

    async def _flush(self) -> None:
        await asyncio.sleep(0)
        while self._queue:
            while len(self._sent) >= WAYS:
                await asyncio.wait(self._sent, return_when=asyncio.FIRST_COMPLETED)
            batch, self._queue = self._queue[:MOST], self._queue[MOST:]
            for call in batch:
                if call.future.cancelled():
                    self._waiting.pop(call.number, None)
            if batch := [call for call in batch if not call.future.cancelled()]:
                self._start(batch)

    def _start(self, batch: list[_Call]) -> None:
        task = asyncio.create_task(self._send(batch), name="flatfleet-ray-call")
        self._sent.add(task)
        task.add_done_callback(self._sent.discard)

    async def _send(self, batch: list[_Call]) -> None:
        again = False

        async def send() -> list[bytes] | None:
            nonlocal again
            opened = await self.ready()
            told = [(call.number, again, call.body) for call in batch]
            now = None if self._clock is None else self._clock()
            done = min(self._waiting, default=self._number)
            again = True
            answers: list[bytes] | None = await _answer(
                opened.actor.calls.remote(opened.file, opened.id, self.client, done, now, told)
            )
            if answers is None:
                self.forget(opened)
            return answers

        try:
            answers = await self._patiently(send)
            told = [pickle.loads(answer) for answer in answers]
        except BaseException as error:
            told = [(False, error)] * len(batch)
            if not isinstance(error, Exception):
                raise
        finally:
            for call in batch:
                self._waiting.pop(call.number, None)
        for call, (worked, value) in zip(batch, told, strict=True):
            if call.future.cancelled():
                if worked:
                    self._undo(call, value)
            elif worked:
                call.future.set_result(value)
            else:
                call.future.set_exception(value)

    def _undo(self, call: _Call, result: Any) -> None:
        """Give back what somebody has claimed who does not wait for it any more."""

        async def release() -> None:
            for claim in result:
                with contextlib.suppress(FleetError):
                    await self._call("release", claim.id, claim.token)

        if call.op == "claim" and result:
            task = asyncio.create_task(release(), name="flatfleet-undo")
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)

    # -- the actor -----------------------------------------------------------------------------------------------------

    async def _patiently(self, act: Callable[[], Any]) -> Any:
        """Return what `act` returns that is not None; try again while the actor is away."""
        started, self._away = time.monotonic(), self._away or await in_caller(lost)
        while True:
            error: BaseException | None = None
            opened = self._opened
            try:
                if (answer := await act()) is not None:
                    return answer
            except self._away as raised:
                error = raised
                if opened is not None:
                    self.forget(opened)
            if time.monotonic() - started > PATIENCE or (error and "ModuleNotFoundError" in str(error)):
                raise StoreUnavailable(self._told(error)) from error
            await asyncio.sleep(random.uniform(0.02, 0.1))

    def _told(self, error: BaseException | None) -> str:
        text = " ".join(str(error or "it does not know this process").split())
        advice = "flatfleet must be installed on it, in the Python that runs Ray" if "ModuleNotFound" in text else (
            "see `ray list actors` and the logs in /tmp/ray/session_latest/logs there"
        )  # fmt: skip
        return f"the Ray store '{self.url.name}' on the head node does not answer: {text[-300:]}. {advice.capitalize()}"

    async def _open(self) -> Opened:
        first = self._id is None
        await joined(self.url.address, record=not self._must_exist)
        actor = await in_caller(functools.partial(keeper, self.url.name))
        told = (self.url.path, self.url.synchronous, self._must_exist or not first, self.client)
        worked, found = pickle.loads(await _answer(actor.open.remote(*told)))
        if not worked:
            raise found
        if found["protocol"] != PROTOCOL:
            raise StoreUnavailable(
                f"the Ray store '{self.url.name}' was started by another version of flatfleet (protocol "
                f"{found['protocol']}, this one speaks {PROTOCOL}): use that one, or end its actor when nobody uses it"
            )
        if not first and found["id"] != self._id:
            raise StoreGone(
                f"the store {found['file']} on the head node was deleted or replaced while in use; what is in it now is not "
                "this run's. Run the same command again to start from what is there"
            )
        self._id = found["id"]
        return Opened(actor, found["file"], found["id"], found["boot"], found["rung"])


async def _answer(ref: Any) -> Any:
    return await ref
