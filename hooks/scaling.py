"""The scaler's, the reaper's and the launcher's actions: what is there, what is wanted, whom to launch or to drain."""

from __future__ import annotations

import time
from typing import Any

from flatfleet.runtime import decisions, first_size, scaling
from flatfleet.runtime.crew import Crew
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.values import number, text, whole

WORKERS = 4
"""Workers of a fleet that has no target yet."""
LOOK_EVERY = 60.0
"""Seconds between two looks of a reaper for lost workers that nobody has told the scaler of."""


# -- the scaler --------------------------------------------------------------------------------------------------------


async def validate(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Begin the `decision` on the `message` (JSON text); `next` is observe, record (no valid one) or wait (known id)."""
    message, error = decisions.read(text(context, "message"))
    decision = decisions.begin(text(context, "pool", "papers"), context.get("signal_id"), message, error)
    named = decision["id"] != context.get("signal_id")
    known = named and await fleet.store.fleet(decision["fleet"]).decision(decision["id"])
    context.update(decision=decision, next="wait" if known else "record" if error else "observe")
    context.update(run=decisions.short(decision["id"]), n=0, want=0, budget=None, level=None, host=None, lost={})
    return context | {"error": None, "last_error": None}


async def observe(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Bring `decision` up to the registry; at the first time, note where it began, and the workers `lost` so far.

    `host` is the process that has looked: what another one saw and launched may have ended with it.
    """
    decision = context["decision"]
    crew = Crew(fleet, decision["fleet"])
    look = await crew.look() if decision["live_before"] is None else None
    context.update(error=None, last_error=None)  # of a store that was away
    if context["host"] != fleet.store.owner:
        context.update(host=fleet.store.owner, budget=None)
    decision["live"] = await crew.live() if look is None else look.live
    if look is not None:
        target = await fleet.store.fleet(decision["fleet"]).target()
        decision.update(live_before=look.live, target_before=target)
        context["lost"] = look.lost
    return context


async def plan(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Set `next`: launch (as much parallelism as `want` says, before the next look), drain (to `level`), or record.

    Where another process has looked, and died: observe.
    """
    decision, message = context["decision"], context["decision"]["message"]
    if context["host"] != fleet.store.owner:
        return context | {"next": "observe"}
    if decision["outcome"] is None and "drain" in message:
        await Crew(fleet, decision["fleet"]).drain_named(decision, number(context, "drain_within", 300.0))
        return context | {"lost": {}, "next": "observe" if decision["outcome"] == "applied" else "record"}
    if decision["outcome"] is None:
        aim = scaling.aim(message, decision["target_before"], decision["live"], sum(context["lost"].values()))
        context["level"] = aim.level
        if decisions.aimed(decision, aim):
            await Crew(fleet, decision["fleet"]).replaced(context["lost"], decision["id"])
        context["lost"] = {}
    live, level = decision["live"], context["level"]
    if context["budget"] is None:
        context["budget"] = 0 if level is None else max(0, level - live)
    parallelism = decision["parallelism"] = whole(context, "parallelism", 1, least=1)
    most = int(message.get("max_launch_per_step") or whole(context, "max_launch_per_step", 20, least=1))
    drains = "reconcile" not in message
    context["next"], context["want"] = scaling.step(live, level, context["budget"], parallelism * most, drains=drains)
    if context["next"] == "launch" and decision["outcome"] == "dry_run":
        n = scaling.launches(level - live, parallelism)
        decisions.imagine(decision, (f"{context['run']}-{k + 1}" for k in range(n)), ())
        context["next"] = "record"
    elif context["next"] == "launch" and fleet.draining:
        decision["note"] = "the process that hosts the fleet is stopping: the next one launches what is missing"
        context["next"] = "record"
    return context


async def reserve(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Register the worker that is launched next: `worker_id` from `run` and the next `n`, its `size` out of `want`.

    So the next look counts it, whatever happens.
    """
    size = min(whole(context, "parallelism", 1, least=1), whole(context, "want", 1, least=1))
    by = (context.get("decision") or {}).get("id") or context["run"]
    about = {"parallelism": size, "decision": by} if text(context, "registration", "store") == "store" else None
    crew = Crew(fleet, text(context, "pool", "papers"))
    context["worker_id"], context["n"] = await crew.reserve(context["run"], context["n"] + 1, about)
    context.update(size=size, want=context["want"] - size, budget=(context.get("budget") or 0) - size)
    return context


async def drain(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Tell workers to end, idle ones first, until no more than `level` is left, and never less (dry_run: only say whom)."""
    decision = context["decision"]
    crew = Crew(fleet, decision["fleet"])
    chosen, rest = await crew.surplus(context["level"])
    if decision["outcome"] == "dry_run":
        decisions.imagine(decision, (), (worker.id for worker in chosen))
        return context | {"next": "record"}
    seconds = decision["message"].get("drain_deadline", number(context, "drain_within", 300.0))
    await crew.drain(chosen, seconds, decision["id"])
    if rest:
        decision["note"] = f"{rest} more than the target: no worker is small enough to go"
    return context | {"next": "observe", "level": context["level"] + rest}


async def record(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Keep the decision, and its target with it, in one step; however often this is done, it is one decision.

    Where another process has carried it out, and died before this, `next` is to observe what is left of that.
    """
    error = (context.get("error") or {}).get("message") or context.get("last_error")
    begun, pool = context.get("decision"), text(context, "pool", "papers")
    decision = begun or decisions.begin(pool, context.get("signal_id"), context.get("message"), None)
    moved = context.get("level") is not None and context.get("host") != fleet.store.owner
    if moved and decision["outcome"] == "applied" and not error:
        return context | {"next": "observe"}
    crew = Crew(fleet, decision["fleet"])
    if decision["outcome"] == "applied":
        await crew.tally(decision)
    decisions.finish(decision, error)
    await crew.keep(decision)
    context.update(next="wait", message="", decision={}, signal_id=None)
    return context | {"error": None, "last_error": None}


# -- the reaper --------------------------------------------------------------------------------------------------------


async def reap(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Mark the workers of dead processes lost and hand back their items; `fleets` are those that have to replace some."""
    context.update(fleets=[], again=number(context, "interval", 0.0) > 0)
    items, lost = await fleet.recover()
    context.update(items=context.get("items", 0) + items, workers=context.get("workers", 0) + len(lost))
    if lost or time.monotonic() >= context.get("look_at", 0.0):
        context["look_at"] = time.monotonic() + LOOK_EVERY
        found = scaling.unreplaced(await fleet.store.registration.list(statuses=("lost",)))
        context["fleets"] = sorted({scaling.pool_of(record) for record in found})
    return context


async def reconcile(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Send a reconcile message to the scaler of each of the `fleets` that has a target, and no such message yet.

    From then on `fleets` are those that were told.
    """
    message, told = {"reconcile": True, "by": "reaper", "reason": "workers were lost"}, []
    for record in map(fleet.store.fleet, context["fleets"]):
        waiting = await fleet.store.signals.peek(record.channel)
        if await record.target() is not None and not any(decisions.reconciles(signal.data) for signal in waiting):
            await fleet.store.signals.send(record.channel, message)
            told.append(record.name)
    return context | {"fleets": told}


# -- the launcher ------------------------------------------------------------------------------------------------------


async def aim(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Set `want`, the parallelism to launch here, and store the target; `scaled` says whether a scaler belongs to it.

    With `workers`: so many here, beside what is live; without: what the stored target (else four workers, or the policy's
    least) lacks; both as far as the `policy` allows. They are registered, too, while nobody else counts or launches any.
    """
    name, parallelism = text(context, "pool", "papers"), whole(context, "parallelism", 1, least=1)
    asked = None if context.get("workers") in (None, "") else whole(context, "workers", WORKERS) * parallelism
    bounds = await first_size.serve(context, fleet)
    counted = text(context, "registration", "store") == "store"
    context.update(want=asked if asked is not None else WORKERS * parallelism, scaled=counted and fleet.served, n=0)
    if (asked == 0 and bounds is None) or not counted:
        return context
    crew, entry = Crew(fleet, name), fleet.store.fleet(name)
    default = WORKERS * parallelism if bounds is None else bounds.low
    async with crew.alone():
        look, stored = await crew.look(), await entry.target()
        target = scaling.first_target(asked or None, stored, look.live, default, served=fleet.served)
        target = first_size.bounded(target, look.live, bounds)
        await entry.set_target(target)
        await crew.replaced(look.lost, str(context["run"]))
        lacks = 0 if asked == 0 else target - look.live
        context["want"] = await crew.book(str(context["run"]), lacks, parallelism)
        return context | {
            "scaled": target > look.live or bounds is not None or fleet.served or await crew.unscaled(look)
        }
