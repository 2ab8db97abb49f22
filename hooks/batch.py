"""A coordinator's actions: claim a batch, and see that each item of it is settled."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.values import text, whole, worker_id


async def get_pending(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Claim up to `parallelism` items into `batch`, never more than `pool_size` of the pool with all who give that limit.

    Sets `stop` instead if told to stop. Each entry of the batch carries what its machine needs: a `foreach` sees nothing else.
    """
    worker, parallelism = worker_id(context), whole(context, "parallelism", 20, least=1)
    context.update(batch=[], outcomes=[], stop=fleet.must_stop(worker))
    if context["stop"]:
        return context
    await fleet.catch_up()
    pool = fleet.store.work.pool(text(context, "pool", "papers"))
    claims = await pool.claim_many(
        worker, parallelism, fleet.capabilities, limit=whole(context, "pool_size", 0) or None
    )
    passed = {"worker_id": worker, "pool": pool.name, "parallelism": context.get("parts"), "out": context.get("out")}
    for claim in claims:
        fleet.hold(claim, worker)
    if fleet.must_stop(worker):  # told so meanwhile; what is cut off in giving them back, the end of the process does
        context["stop"] = True
        await fleet.hand_back(worker)
        return context
    context["batch"] = [{"item_id": claim.id, "item": claim.data, **passed} for claim in claims]
    if claims:
        context.update(idle=None, idle_since=None)
    return context


async def settle(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Count the batch's outcomes; an item whose machine broke (`_error`) before it could settle it has failed."""
    for entry, outcome in zip(context["batch"], context["outcomes"], strict=True):
        counter = {"completed": "processed", "lost": "lost"}.get(outcome.get("status"), "failed")
        if "_error" in outcome and not await _fail(entry, outcome, fleet):
            counter = "lost"
        context[counter] += 1
    context.update(batch=[], outcomes=[])
    return context


async def _fail(entry: dict[str, Any], outcome: dict[str, Any], fleet: Fleet) -> bool:
    item_id, worker, pool = entry["item_id"], entry["worker_id"], fleet.store.work.pool(entry["pool"])
    try:
        lease = fleet.held(item_id, worker)
        told = {"error_type": outcome["_error_type"], "cost": lease.cost, "walked": tuple(lease.walked)}
        await pool.fail(item_id, outcome["_error"], token=lease.token, **told)
    except LeaseLost:
        return False
    finally:
        fleet.let_go(item_id, worker)
    return True
