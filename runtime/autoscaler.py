"""The autoscaler of one fleet: it looks, decides, and sends the scaler the message that a person would send."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from flatfleet.runtime import fleet_settings, metrics, routing, scaling, spending
from flatfleet.runtime.errors import StoreError, StoreUnavailable
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.notices import notices
from flatfleet.runtime.orders import BY, ordered
from flatfleet.runtime.policies import costs, deciding, naming
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.settings import Settings, settings
from flatfleet.runtime.values import text

Step = Callable[["Autoscaler"], Coroutine[Any, Any, dict[str, Any]]]

logger = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks whether a batch is done."""
_OF_THE_STORE = ("StoreError", "StoreUnavailable", "StoreGone")


def _answered(step: Step) -> Step:
    """The step, ended by StoreUnavailable where it takes longer than `stale_after`: what was decided is out of date then."""

    @functools.wraps(step)
    async def limited(self: Autoscaler) -> dict[str, Any]:
        patience = self._settings().stale_after
        try:
            async with asyncio.timeout(patience):
                return await step(self)
        except TimeoutError as error:
            raise StoreUnavailable(f"the store has not answered for {patience:g} s") from error

    return limited


class Autoscaler:
    """One step of the machine autoscaler.yml; all that it knows stands in the machine's context and in the store."""

    def __init__(self, context: dict[str, Any], fleet: Fleet) -> None:
        self._context, self._fleet = context, fleet
        self._record = fleet.store.fleet(text(context, "pool", "papers"))

    @_answered
    async def observe(self) -> dict[str, Any]:
        """Look. Where the store had not answered for longer than `stale_after`, what is seen counts as of before that."""
        context, began = self._context, time.time()
        context.update(closed=await self._closed(), error=None, last_error=None)
        if context["closed"]:
            await self._settle()
            return context
        o = await self._servable(await self._look())
        fault = context.get("fault") or {}
        silent = min(fault["at"], began) if fault.get("store") else began
        context["seen"] = replace(o, measured=min(o.at, silent)).data()
        return context

    async def _look(self) -> Observation:
        fleet, context, s = self._fleet, self._context, self._settings()
        fleet.spot_wait = s.spot_wait if s.prefer_spot else None
        known: dict[str, bool] = context.setdefault("spot_hosts", {})
        counts = functools.partial(spending.spot, fleet, self._record.name, known=known)
        return await metrics.observe(
            fleet.store, self._record.name, s, counts if s.prefer_spot and costs.SPOT in fleet.offers else None
        )

    async def _settle(self) -> None:
        """Charge what ran since the last decision, unless another process goes on with that, or the store does not answer."""
        if not self._context.get("begun") or not costs.priced(self._settings().cost):
            return
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(POLL):
                if (state := await self._record.policy_state()).get("cost") and not await self._elsewhere():
                    _, account = await self._charged(await self._look(), state["cost"])
                    await self._record.keep_policy_state({**state, "cost": account})

    async def _charged(self, o: Observation, account: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        s, ran = self._settings(), None
        if costs.unseen(o, s, account):
            ran = await spending.ran(self._fleet, self._record.name, account["at"], o.at)
        return costs.charged(o, s, account, ran)

    async def _servable(self, o: Observation) -> Observation:
        """Without the items that require what this process does not offer: more workers of its would not serve them."""
        needs = await self._fleet.store.driver.requirements(self._record.name)
        foreign = sum(routing.missing(needs, [self._fleet.offers]).values())
        if not foreign or o.waiting is None:
            return o
        waiting = max(0, min(o.waiting, o.waiting + (o.delayed or 0) - foreign))
        return replace(o, waiting=waiting, oldest_wait=o.oldest_wait if waiting else None)

    @_answered
    async def decide(self) -> dict[str, Any]:
        context, s = self._context, self._settings()
        state, orders, hold = await asyncio.gather(
            self._record.policy_state(), self._record.orders(), self._record.hold()
        )
        o, account = await self._charged(Observation.of(context["seen"]), state.get("cost") or {})
        before = ordered(state, orders, hold, o.at)
        decision, kept = deciding.decide(o, s, before)
        if account:
            kept["cost"] = account
        data = {"id": f"auto-{uuid.uuid4().hex[:16]}", "fleet": self._record.name, **decision.data()}
        data["policy"] = naming.label(context["policy"])
        if before != state or not context.get("begun"):
            data["state"] = before  # a replay cannot know of a restart, or of what people have ordered
        notes = []
        if fault := context.get("fault"):
            what = "the store had not answered" if fault["store"] else f"nothing could be decided ({fault['why']})"
            notes.append(f"{what} for {max(0.0, o.at - fault['at']):.0f} s")
        if s.prefer_spot and o.spot is None and decision.outcome == "up":
            notes.append(
                "there are no spot workers here, so these are on-demand (a spot host says --capabilities spot)"
            )
        if said := costs.nearly(s.cost, o.spent):
            notes.append(said)
        over = o.workers - decision.desired if decision.enough else 0
        context["over"] = scaling.told_of(context.get("over"), over, o.at)
        if drains := (context["over"] or {}).get("at") == o.at and decision.outcome == "hold":
            notes.append(f"{over} more than the target are live: the scaler drains them")
        if notes:
            data["note"] = "; ".join(notes)
        due = decision.desired if self._fleet.served else min(decision.desired, o.demand or 0)
        lacks = not o.missing(s.stale_after) and o.workers < due
        data["sent"] = decision.outcome != "hold" or lacks or drains
        context.update(decision=data, state=kept, sends=data["sent"], broke=decision.broke)
        return context

    @_answered
    async def send(self) -> dict[str, Any]:
        decision = self._context["decision"]
        message = {
            "id": decision["id"],
            "target": decision["desired"],
            "if_current": decision["current"],
            "reason": decision["reason"][:1000],
            "by": BY,
        }
        await self._fleet.store.signals.send(self._record.channel, message)
        return self._context

    @_answered
    async def record(self) -> dict[str, Any]:
        context, record = self._context, self._record
        fault = context.get("fault")
        await asyncio.gather(record.decide_policy(context["decision"]), record.keep_policy_state(context["state"]))
        if fault or not context.get("begun"):
            await record.keep_fault({})
        if fault:
            notices.info("the autoscaler of fleet %s can decide again", record.name)
        await self._tell()
        context.update(begun=True, fault=None, decision=None, state=None, ended=bool(context["broke"]))
        return context

    async def _tell(self) -> None:
        """Say at first what is no cap, and once that nothing is left to pay workers with, unless a batch here ends by that."""
        context, name, cost = self._context, self._record.name, self._settings().cost
        if not context.get("begun") and cost.budget is not None and not costs.priced(cost):
            notices.warning(
                "fleet %s: cost.budget = %g does nothing without a price, such as cost.per_worker_hour",
                name,
                cost.budget,
            )
        if not context["broke"] or context.get("ended"):
            return
        if self._fleet.served or self._fleet.store.owner not in await self._record.hosts():
            notices.warning(
                "fleet %s stays without workers: %s; raise cost.budget in its policy, and start it again",
                *(name, context["broke"]),
            )

    async def away(self) -> dict[str, Any]:
        """Say that nothing can be decided, once until something can be, and note it in the store as soon as that answers."""
        context, name = self._context, self._record.name
        error = context.get("error") or {"message": context.get("last_error"), "type": context.get("last_error_type")}
        kind = error.get("type") or "StoreUnavailable"
        store = kind in _OF_THE_STORE
        why = str(error["message"] if store else f"{kind}: {error['message']}")
        fault = context.get("fault")
        if not fault:
            notices.warning("the autoscaler of fleet %s cannot decide: %s", name, why)
        if not fault or (store and not fault["store"]):
            seen = (context.get("seen") or {}).get("at") if store else None
            fault = context["fault"] = {"at": seen or time.time(), "why": why[:1000], "store": store}
        if not fault.get("kept"):
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(min(POLL, self._settings().interval)):
                    await self._record.keep_fault(fault)
                    fault["kept"] = True
        return context

    async def rest(self) -> dict[str, Any]:
        """Wait for an interval, or until nothing is left to do."""
        fleet, ends = self._fleet, time.monotonic() + self._settings().interval
        try:
            while not fleet.served and time.monotonic() < ends:
                if await self._closed():
                    return self._context
                await fleet.rest(min(POLL, ends - time.monotonic()))
        except StoreError as error:
            logger.debug("whether the batch is done cannot be seen: %s", error)
        await fleet.rest(ends - time.monotonic())
        return self._context

    async def _elsewhere(self) -> bool:
        """True if another process runs the autoscaler: this one stood still, or was cut off, for longer than its lease."""
        store, machine_id = self._fleet.store, self._context.get("machine_id")
        held = await store.driver.locks(machine_id) if machine_id else ()
        return any(key == machine_id and owner != store.owner for key, owner, _ in held)

    async def _closed(self) -> bool:
        """True if this process stops, or another one runs the autoscaler, or a batch that this process hosts is done.

        It is done if nothing is left, or if its budget is spent and no worker is there any more.
        """
        store, name = self._fleet.store, self._record.name
        if self._fleet.draining or await self._elsewhere():
            return True
        if self._fleet.served:
            return False
        if (await store.work.pool(name).counts()).left and not (self._context.get("ended") and not await self._crew()):
            return False
        return store.owner in await self._record.hosts()

    async def _crew(self) -> int:
        """The parallelism that is live or draining."""
        live, _, draining = metrics.crew(await self._fleet.store.driver.metrics(self._record.name, time.time(), 0))
        return live + draining

    def _settings(self) -> Settings:
        """Those of the context's `policy`; the defaults without one. Raises UsageError for what is none."""
        context = self._context
        if not context.get("checked"):
            context.update(policy=fleet_settings.load(context.get("policy") or {}), checked=True)
        return settings(context["policy"])
