"""Hosts that are actors in a Ray cluster: Ray places and starts them, and tells when one has died."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatfleet.runtime.engines.hosts import STOPPING, Event, Host, Order, Setup, heard
from flatfleet.runtime.engines.making import KEPT
from flatfleet.runtime.engines.ray_hosting import RayHosting
from flatfleet.runtime.engines.ray_places import Placement
from flatfleet.runtime.engines.spec import EngineSpec
from flatfleet.runtime.errors import EngineError, EngineUrlError, HostDied, StoreError, StoreUnavailable, StoreUrlError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.policies.costs import SPOT
from flatfleet.runtime.stores.ray_address import knock
from flatfleet.runtime.stores.ray_cluster import check_installed, in_caller, joined, ray_module
from flatfleet.runtime.stores.ray_url import RayUrl

STARTING = 60.0
"""Seconds that an actor has to be ready once its process runs."""
LOOK = 1.0
"""Seconds between two looks whether an actor that has no process yet can have one."""
AWAY = 0.02
"""Seconds after which an actor that could not be reached is called again."""
THREADS = 32
"""Calls that one actor answers at once: launches, a ping, and one that waits for events."""
SHARED = ("FLATAGENTS_", "FLATFLEET_")
"""How the variables begin that a host has from its launcher; keys of providers have to be set on the nodes."""


def hosts(spec: EngineSpec, setup: Setup, fleet: Fleet) -> Callable[[str], Host]:
    """How to make a host: `make(id)`; on a spot node, where the fleet's policy prefers those.

    Raises EngineUrlError if Ray is not installed, or the address is none, and EngineError if nobody listens at that address:
    before any item is put into a pool.
    """
    try:
        check_installed(f"engine '{spec.text}'")
        address = RayUrl.address_of(f"ray://{spec.address}") if spec.address else None
        if address:
            knock(address)
    except StoreUrlError as error:
        raise EngineUrlError(str(error)) from error
    except StoreUnavailable as error:
        raise EngineError(str(error)) from error
    here = replace(setup, path=tuple(folder for folder in sys.path if folder))
    placement = Placement.of(spec, setup)
    fleet.places_spot = True
    return lambda name: RayHost(name, address, here, placement, fleet)


class RayHost:
    """An actor that is this process's own: Ray ends it when this process ends, however that does."""

    def __init__(self, name: str, address: str | None, setup: Setup, placement: Placement, fleet: Fleet) -> None:
        self.id = name
        self.owner: str | None = None
        self.on_event: Callable[[Event], None] = lambda event: None
        self._address = address
        self._setup = setup
        self._placement = placement
        self._fleet = fleet
        self._actor: Any = None
        self._about: dict[str, Any] = {}
        self._life: asyncio.Task[None] | None = None
        self._bundles: OrderedDict[str, None] = OrderedDict()
        self._over = False

    # -- its life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        folder = str(Path.cwd())
        try:
            await joined(self._address, alone=not self._setup.url.startswith("ray:"))
            errors = (await in_caller(ray_module)).exceptions
            self._died, self._away = errors.RayActorError, errors.ActorUnavailableError
            try:
                asked = await self._place()
                told = (self._setup, folder, _variables(), asked)
                async with asyncio.timeout(STARTING):
                    about = await _answer(self._actor.start.remote(*told))
            except TimeoutError:
                raise EngineError(f"{self.id} did not come up within {STARTING:g} s") from None
            except errors.RayError as error:
                raise EngineError(f"{self.id} did not start: {_reason(error)}") from error
            if "error" in about:
                raise EngineError(f"{self.id} did not start: {heard(about['error'])}")
        except BaseException as error:
            self.kill()
            self._over = True
            if isinstance(error, StoreError):
                raise EngineError(str(error)) from error
            raise
        self.owner = about.pop("owner")
        self._about = about
        self._life = asyncio.create_task(self._live(), name=f"flatfleet-{self.id}")

    async def _place(self) -> bool:
        """Have an actor that has a process: on a spot node, where the policy prefers those and one comes in time.

        True if a spot node was asked for; else any node will do that offers what the workers promise, whenever it comes.
        """
        wait = None if SPOT in self._setup.capabilities else self._fleet.spot_wait
        if wait is None or not await self._placed(self._placement.on_spot(), wait):
            await self._placed(self._placement)
        return wait is not None

    async def _placed(self, placement: Placement, patience: float = math.inf) -> bool:
        """Wait until an actor has a process, so many seconds at most; what it waits for is to be seen meanwhile.

        Bound to this machine's node it does not wait for what that does not offer: EngineError, if it has no other choice.
        """
        if placement.here and (lacking := await in_caller(placement.lacking)):
            if patience < math.inf:
                return False
            raise EngineError(f"{self.id} did not start: {lacking}")
        self._actor = await in_caller(functools.partial(_actor, placement))
        pinged = asyncio.ensure_future(_answer(self._actor.ping.remote()))
        ends = time.monotonic() + patience
        try:
            while not (await asyncio.wait([pinged], timeout=max(0.0, min(LOOK, ends - time.monotonic()))))[0]:
                if time.monotonic() >= ends:
                    self.kill()
                    return False
                waits = functools.partial(placement.pending, ends - time.monotonic())
                self._about = {"pending": await in_caller(waits)}
            await pinged
            return True
        finally:
            pinged.cancel()

    async def _live(self) -> None:
        """Hear the actor until it has died."""
        seen, reason = 0, "it has ended"
        while True:
            try:
                for number, told in await _answer(self._actor.events.remote(seen)):
                    seen = number
                    self._heard(told)
            except self._away:
                await asyncio.sleep(AWAY)
            except Exception as error:
                reason = _reason(error)
                break
        self._over = True
        self.on_event(Event("died", reason=reason))

    def _heard(self, told: Mapping[str, Any]) -> None:
        if told["kind"] == "log":
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{self.id}: {told['line']}\n")
                sys.stderr.flush()
            return
        error = heard(told["error"]) if told["error"] else None
        self.on_event(Event(told["kind"], told["id"], error, told["cancelled"], told["seconds"]))

    # -- what it is told -----------------------------------------------------------------------------------------------

    async def launch(self, order: Order) -> None:
        if self._over:
            raise HostDied(f"{self.id} has ended")
        digest = order.bundle.hash
        try:
            body = json.dumps(order.data())
        except (TypeError, ValueError) as error:
            raise EngineError(f"{order.machine_id} cannot be sent to another process: {error}") from error
        raw = None if digest in self._bundles else order.bundle.raw
        try:
            refused = await _answer(self._actor.launch.remote(body, raw))
        except self._died as died:
            raise HostDied(f"{self.id} has ended ({_reason(died)})") from died
        if refused is not None:
            raise heard(refused)
        self._bundles[digest] = None
        self._bundles.move_to_end(digest)
        if len(self._bundles) > KEPT:
            self._actor.forget.remote(self._bundles.popitem(last=False)[0])

    def drain(self) -> None:
        if not self._over:
            self._actor.drain.remote()

    async def stop(self, seconds: float) -> int:
        n = 0
        if not self._over:
            try:
                async with asyncio.timeout(seconds + STOPPING):
                    n = await _answer(self._actor.stop.remote(seconds))
            except (TimeoutError, self._died):
                pass
        self.kill()
        if self._life is not None:
            await asyncio.wait([self._life])
        return n

    def kill(self) -> None:
        if self._actor is not None and not self._over:
            in_caller(functools.partial(_kill, self._actor))

    async def ping(self) -> bool:
        try:
            return bool(await _answer(self._actor.ping.remote()))
        except self._died:
            return False

    def about(self) -> Mapping[str, Any]:
        return self._about


def _actor(placement: Placement) -> Any:
    ray = ray_module()
    return ray.remote(RayHosting).options(max_concurrency=THREADS, max_restarts=0, **placement.options()).remote()


def _kill(actor: Any) -> None:
    ray_module().kill(actor)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(SHARED)}


async def _answer(ref: Any) -> Any:
    return await ref


def _reason(error: BaseException) -> str:
    """Ray's own words, on one line, without its advice; of what was raised over there, the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in str(error):
        return lines[-1][:300]
    told = [line for line in lines if line.startswith(("The actor is dead because", "ModuleNotFoundError", "The node"))]
    return " ".join(told or lines[:1]).partition(" Some common causes")[0][:300] or type(error).__name__
