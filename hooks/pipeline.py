"""A pipeline's actions: lists become items as far as there is room, a stage waits for another, one report ends it."""

from __future__ import annotations

import time
import uuid
from itertools import islice
from pathlib import Path
from typing import Any

from flatfleet.runtime import lists, overview, reports, stages
from flatfleet.runtime.errors import ChildFailed
from flatfleet.runtime.feeder import Feeder
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.places import located
from flatfleet.runtime.rows import parse_fields
from flatfleet.runtime.values import number, text, whole


async def enqueue_lists(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Push each list that `input` holds into the pool `fetch`, once for as long as it does not change; count what is left.

    `fetchers` becomes the number of lists to read, if that is less; `left` counts lists and items.
    """
    fetch, pool = fleet.store.work.pool(text(context, "fetch")), fleet.store.work.pool(text(context, "pool"))
    fetchers, workers = whole(context, "fetchers", 5, least=1), whole(context, "workers", 10, least=1)
    read: dict[str, Any] = {"fields": text(context, "fields"), "limit": whole(context, "limit", 0)}
    parse_fields(read["fields"] or "text=text")
    data = {**read, "pool": pool.name, "in_flight": whole(context, "in_flight", 100)}
    spec = located(text(context, "input"))
    found = await fleet.in_thread(lambda: dict(lists.split(spec)))
    keys = {key: " ".join([key, *(f"{name}={value}" for name, value in read.items() if value)]) for key in found}
    await fetch.push_many([fetch.new({**found[each], **data, "list": key}, key=key) for each, key in keys.items()])
    unread, items = await fetch.counts(), await pool.counts()
    context.update(run=f"p{uuid.uuid4().hex[:6]}", lists=len(found), workers=workers, n=0)
    context.update(fetchers=min(fetchers, unread.left), left=unread.left + items.left)
    return context


async def feed(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Push the list's items, from `offset` on, into `pool`, of which at most `in_flight` may be left at any time (0: any).

    Where there is no room it waits `patience` seconds at most, and not if told to stop: `finished` is false then, and
    `offset` says from where to go on.
    """
    feeder = Feeder(fleet, fleet.store.work.pool(text(context, "pool", "papers")), whole(context, "in_flight", 0))
    fields = parse_fields(text(context, "fields")) if context.get("fields") else None
    spec, limit = located(text(context, "input")), whole(context, "limit", 0) or None
    entries = await fleet.in_thread(lambda: lists.entries(spec, bool(context.get("loose")), fields, limit))
    offset, until = whole(context, "offset", 0), time.monotonic() + number(context, "patience", 600.0)
    lease = fleet.leases.get(str(context.get("item_id")))
    worker = lease.worker if lease is not None else ""
    context["finished"] = await feeder.feed(
        islice(entries, offset, None), lambda: fleet.must_stop(worker) or time.monotonic() > until
    )
    context.update(feeder.told(), offset=offset + feeder.taken)
    return context


async def hand_on(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Push what is left of a list as an item of its own, the list's next part: whoever comes next goes on from there."""
    lease, data = fleet.held(str(context["item_id"])), context["item"]
    part = data.get("part", 1) + 1
    rest = {**data, "offset": context["offset"], "part": part}
    await fleet.store.work.pool(lease.pool).push(rest, {"key": f"{data['list']} part {part}"})
    return context


async def wait_until_settled(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Wait until nothing is left in `fetch` and then in `pool`; `settled` is false if nobody here works on what is left."""
    left = await stages.settle(fleet, [fleet.store.work.pool(text(context, name)) for name in ("fetch", "pool")])
    return context | {"settled": not left, "left": left}


async def enqueue_report(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Push the one item of the pool `aggregate`: the same one for as long as the lists and the items stand as they do."""
    inputs = {name: text(context, name) for name in ("fetch", "pool")}
    digest = await overview.fingerprint(*map(fleet.store.work.pool, inputs.values()))
    pool = fleet.store.work.pool(text(context, "aggregate"))
    context["report_id"] = await pool.push(inputs, {"key": " ".join(filter(None, [digest, text(context, "out")]))})
    await pool.retry([context["report_id"]])
    return context


async def read_report(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Set `report` to what the aggregate came to, None if it has not come to its end; ChildFailed if it is dead."""
    item = await fleet.store.driver.item(context["report_id"])
    if item is not None and item.state == "dead":
        raise ChildFailed(f"the report could not be made: {item.error_type}: {item.error}")
    context["report"] = item.result if item is not None else None
    return context


async def aggregate(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Make one `report` over all items of `pool` and the lists of `fetch`; write it into the folder `out`, if one is named."""
    pool, fetch = fleet.store.work.pool(text(context, "pool", "papers")), text(context, "fetch")
    made = await overview.overview(pool, fleet.store.work.pool(fetch) if fetch else None)
    folder = Path(text(context, "out")) / f"{pool.name}-aggregate"
    files = await fleet.in_thread(lambda: reports.write(folder, "report", made)) if context.get("out") else {}
    context["report"] = {**overview.short(made), "files": files}
    return context
