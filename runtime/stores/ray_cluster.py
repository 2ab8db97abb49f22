"""Joining a Ray cluster: once a process, quietly, within seconds; a local one is started where there is none."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from flatfleet.runtime.errors import StoreUnavailable, StoreUrlError
from flatfleet.runtime.stores.ray_address import greet, knock, recorded, same, started_by_ray

T = TypeVar("T")

NAMESPACE = "flatfleet"
"""Where the names of our actors stand, apart from those of other programs."""
JOIN, START = 10.0, 60.0
"""Seconds within which a cluster has to let this process in; one that may have to be started here, too."""
OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory of a cluster that we start: what we send is small, and does not pass through it."""
SETTINGS: Mapping[str, Any] = {"worker_niceness": 0}
"""Of a cluster that we start: its actors are the store and the hosts, and no less urgent than the launcher."""
QUIET: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # else Ray prints "A worker died …" into the standard output of its drivers
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # else Ray aborts a process 3 s after SIGTERM, however well it drains
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a cluster that is started here listens on 127.0.0.1 alone
}
"""Ray reads these when it is imported; what somebody has set stays."""


def check_installed(what: str) -> None:
    """Raise StoreUrlError if Ray is not installed; `what` is what was asked for. Imports nothing."""
    if importlib.util.find_spec("ray") is None:
        raise StoreUrlError(f"{what} needs Ray, which is not installed here: pip install 'flatfleet[ray]'")


def join(address: str | None, *, record: bool = True, alone: bool = False) -> Future[str]:
    """Join the cluster at `host:port`, or the one to be found from here; the future has its address.

    None: RAY_ADDRESS; else what `ray start` has started here; else the cluster that another of our processes has; else a
    new one, which ends with this process. `record` lets others find that one; `alone` does without the one of another
    process, which would end with that. It fails with StoreUnavailable.
    """
    return _caller().submit(lambda: _join(address, record, alone))


def begin(**options: Any) -> Future[str]:
    """Start a cluster of this process's own, with options of ray.init, whatever else is to be found."""
    return _caller().submit(lambda: _begin(options))


async def joined(address: str | None, *, record: bool = True, alone: bool = False) -> str:
    """Wait until this process is in the cluster (`join`); StoreUnavailable if that takes longer than JOIN, or START."""
    _check_free()
    named = address or os.environ.get("RAY_ADDRESS")
    patience = JOIN if named else START
    asked = join(address, record=record, alone=alone)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(asked), patience)
    except TimeoutError:
        text = (
            f"the Ray cluster {named or 'of this machine'} has not let this process in within {patience:.0f} s. Is it Ray "
            "that listens there, and its head node's port (6379 by default)? See `ray status`, and the logs in "
            "/tmp/ray/session_latest/logs"
        )
        if not asked.cancelled():
            _waited_for[os.getpid()] = (asked, text)
        raise StoreUnavailable(text) from None


_waited_for: dict[int, tuple[Future[str], str]] = {}
"""By process: the join that took too long, and holds up the thread that speaks to Ray; what was said of it."""


def _check_free() -> None:
    """Raise StoreUnavailable, in the same words, while a join that took too long still goes on, and if it has failed."""
    asked, text = _waited_for.get(os.getpid(), (None, ""))
    if asked is not None and not (asked.done() and asked.exception() is None):
        raise StoreUnavailable(text)


class _Caller:
    """The thread that speaks to Ray where that may block. It stays: the kernel ends a cluster with the thread that began it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="flatfleet-ray", daemon=True).start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((call, future))
        return future

    def _run(self) -> None:
        while True:
            call, future = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del call, future


@functools.cache
def _caller_of(pid: int) -> _Caller:
    return _Caller()


def _caller() -> _Caller:
    return _caller_of(os.getpid())  # a forked child has no threads


def in_caller(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run what may block within Ray in the thread for that; StoreUnavailable if a join holds that up."""
    _check_free()
    return asyncio.wrap_future(_caller().submit(call))


def _begin(options: Mapping[str, Any]) -> str:
    ray_module()
    return _start(**options)


def ray_module() -> Any:
    """Import Ray, which takes a second, and not before its chatter is off. Blocks."""
    check_installed("a Ray cluster")
    for name, value in {**QUIET, **_token()}.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def lost() -> tuple[type[BaseException], ...]:
    """What Ray raises when an actor has died or cannot be reached."""
    errors = ray_module().exceptions
    return errors.RayActorError, errors.RaySystemError, errors.GetTimeoutError, errors.ObjectLostError


def _join(address: str | None, record: bool, alone: bool) -> str:
    ray = ray_module()
    if ray.is_initialized():
        here = str(ray.get_runtime_context().gcs_address)
        if address is not None and not same(address, here):
            raise StoreUnavailable(f"this process is in the Ray cluster {here}: it cannot join {address}, too")
        return here
    found = address or os.environ.get("RAY_ADDRESS") or started_by_ray()
    if found and found not in ("auto", "local"):
        return _enter(found)
    if alone:
        return _start()
    with recorded(record) as ours:
        return _enter(ours) if ours else _start()


def _token() -> dict[str, str]:
    """Show our token if there is one: Ray itself does so only where it has found the cluster by itself."""
    kept = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return {"RAY_AUTH_MODE": "token"} if "RAY_AUTH_TOKEN" in os.environ or kept.is_file() else {}


def _enter(address: str) -> str:
    import ray

    if "://" not in address:
        knock(address)
        greet(address)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise StoreUnavailable(_explained(address, error)) from error
    return str(ray.get_runtime_context().gcs_address)


def _start(**options: Any) -> str:
    """Start a cluster that ends with this process, and return its address. It has no dashboard, and hears 127.0.0.1 only."""
    import ray

    told: dict[str, Any] = {"object_store_memory": OBJECT_STORE, "include_dashboard": False, **options}
    told["_system_config"] = {**SETTINGS, **options.get("_system_config", {})}
    try:
        ray.init(address="local", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **told)
    except Exception as error:
        raise StoreUnavailable(f"no local Ray cluster could be started: {error}") from error
    return str(ray.get_runtime_context().gcs_address)


def _explained(address: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    told = f"the Ray cluster {address} cannot be joined: {text[:300]}"
    if "://" in address:
        return f"{told}. A URL in RAY_ADDRESS is Ray Client's, which needs pip install 'ray[client]'"
    return (
        f"{told}. This machine must be a node of it (`ray start --address={address}`), with the same versions of Ray and "
        "Python; the port is the head node's (6379 by default), not Ray Client's 10001"
    )
