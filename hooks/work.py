"""A worker's actions: claim one item, wait for one, complete or fail it. No store is named here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.stores.records import Claim
from flatfleet.runtime.stores.store import Pool
from flatfleet.runtime.values import names, number, text, whole, worker_id

logger = logging.getLogger(__name__)

_EMPTY = {"item_id": None, "item": None, "result": None, "error": None, "last_error": None, "last_error_type": None}


async def claim(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Claim the next item into `item_id` and `item` (None if there is none), or set `stop` if told to stop."""
    worker = worker_id(context)
    context.update(_EMPTY, stop=fleet.must_stop(worker))
    if context["stop"]:
        return context
    await fleet.catch_up()
    return await _hold(context, fleet, await _claim(context, fleet))


async def idle(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Wait for work. `idle` tells why it ended: woken, dismissed, empty (a batch is done), timeout (there was none) or
    paused (there was some, but nobody may claim it yet).
    """
    if fleet.must_stop(worker_id(context)):  # told so while it was claiming: nobody would dismiss it now
        context["idle"] = "dismissed"
        return context
    now = time.monotonic()
    since = context["idle_since"] = context.get("idle_since") or now
    left = max(0.0, number(context, "idle_timeout", 300.0) - (now - since))
    in_vain = context.get("idle") == "woken"
    pool = text(context, "pool", "papers")
    context["idle"] = await fleet.lounge.wait(
        pool,
        left if fleet.served else None,
        again=in_vain,
        worker=worker_id(context),
        limit=_limit(context),
        upstream=names(context, "upstream"),
    )
    if context["idle"] == "paused":
        context["idle_since"] = None
    return context


async def complete(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Commit `result` as the item's result, under its token."""
    lease = _lease(context, fleet)
    await _pool(context, fleet).complete(
        lease.item_id, context.get("result"), token=lease.token, cost=lease.cost, walked=tuple(lease.walked)
    )
    fleet.let_go(lease.item_id, lease.worker)
    context["processed"] = context.get("processed", 0) + 1
    return context


async def complete_and_claim(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Commit `result` and, in the same commit, claim the next item: what `complete` and then `claim` do, in one wait.

    If the result is refused the error is raised as `complete` raises it, and an item claimed meanwhile is handed back.
    """
    if fleet.must_stop(worker_id(context)):
        return await claim(await complete(context, fleet), fleet)
    await fleet.catch_up()
    claiming = asyncio.create_task(_claim(context, fleet))
    try:
        context = await complete(context, fleet)
        claims = await claiming
    except BaseException:
        claiming.cancel()
        await asyncio.wait([claiming])
        if not claiming.cancelled() and claiming.exception() is None:
            for unwanted in claiming.result():
                await _pool(context, fleet).release(unwanted.id, token=unwanted.token)
        raise
    context.update(_EMPTY, stop=False)
    return await _hold(context, fleet, claims)


async def fail(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """End the attempt with the error that routed here: the item's own fault costs an attempt, a provider's does not."""
    lease = _lease(context, fleet)
    error = context.get("error") or {}
    await _pool(context, fleet).fail(
        lease.item_id,
        error.get("message") or text(context, "last_error", "unknown error"),
        token=lease.token,
        error_type=error.get("type") or text(context, "last_error_type", "Error"),
        consume_attempt=not error.get("provider", False),
        permanent=error.get("permanent", False),
        retry_after=error.get("retry_after"),
        cost=lease.cost,
        walked=tuple(lease.walked),
    )
    fleet.let_go(lease.item_id, lease.worker)
    if error.get("provider"):
        logger.error("item %s will be tried again, and lost no attempt: %s", lease.item_id, error.get("message"))
    return context


async def forget(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Drop an item whose lease was lost: it is somebody else's now."""
    fleet.let_go(context["item_id"], worker_id(context))
    return context


async def recover(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Hand back what dead processes of this machine held; `recovered` counts the items."""
    context["recovered"], _ = await fleet.recover()
    return context


def _claim(context: dict[str, Any], fleet: Fleet) -> Coroutine[Any, Any, list[Claim]]:
    return _pool(context, fleet).claim_many(worker_id(context), 1, fleet.capabilities, _limit(context))


async def _hold(context: dict[str, Any], fleet: Fleet, claims: list[Claim]) -> dict[str, Any]:
    """Begin with what was claimed; a worker that was told to stop meanwhile gives it back."""
    worker = worker_id(context)
    for claim in claims:
        fleet.hold(claim, worker)
        if fleet.must_stop(worker):
            context["stop"] = True
            await fleet.hand_back(worker)
        else:
            context.update(item_id=claim.id, item=claim.data, idle=None, idle_since=None)
    return context


def _limit(context: dict[str, Any]) -> int | None:
    return (whole(context, "pool_size", 0) or None) if context.get("pool_size") else None


def _pool(context: dict[str, Any], fleet: Fleet) -> Pool:
    return fleet.store.work.pool(text(context, "pool", "papers"))


def _lease(context: dict[str, Any], fleet: Fleet) -> Any:
    item_id = context.get("item_id")
    if item_id is None:
        raise LeaseLost("there is no claimed item in the context")
    return fleet.held(item_id, worker_id(context))
