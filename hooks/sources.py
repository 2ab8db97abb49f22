"""A launcher's action: turn what was typed after --input into work items."""

from __future__ import annotations

import uuid
from typing import Any

from flatfleet.runtime.errors import SourceError
from flatfleet.runtime.feeder import Feeder
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.places import check_writable, located
from flatfleet.runtime.routing import check_capabilities
from flatfleet.runtime.sources import expand, parse_fields
from flatfleet.runtime.values import text, whole


async def enqueue(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Push one item per document or row of `input`, once per key ever; count what is new, known, skipped and left.

    `workers` becomes 0 if nothing is left and nobody keeps the fleet waiting for more; where it is not given it stays so.
    """
    pool = fleet.store.work.pool(text(context, "pool", "papers"))
    fields = parse_fields(text(context, "fields")) if context.get("fields") else None
    limit = whole(context, "limit", 0, least=1) or None
    given, _ = context.get("workers") not in (None, ""), whole(context, "parallelism", 1, least=1)
    workers = whole(context, "workers", 0) if given else None
    requires = check_capabilities(text(context, "requires"), "--requires")
    check_writable(text(context, "out"))
    found = iter(expand(located(text(context, "input")), limit=limit, fields=fields))
    if context.get("retry_dead") in (True, "true", "True"):
        await pool.retry()
    feeder = Feeder(fleet, pool, 0, requires)
    await feeder.feed(found, lambda: False)
    if not feeder.added + feeder.known:
        raise SourceError("nothing in the input can be worked on: " + "; ".join(feeder.reasons[:3]))
    counts = await pool.counts()
    context.update(run=f"w{uuid.uuid4().hex[:6]}", workers=workers if counts.left or fleet.served else 0)
    context.update(feeder.told(), done=counts.completed, dead=counts.dead, left=counts.left)
    return context
