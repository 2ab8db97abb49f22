"""A launcher's action: turn what was typed after --input into work items."""

from __future__ import annotations

import asyncio
import uuid
from itertools import islice
from typing import Any

from flatfleet.hooks.values import text, whole
from flatfleet.runtime.errors import SourceError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.sources import Source, expand, parse_fields

CHUNK = 500
SHOWN = 20


async def enqueue(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Push one item per document or row of `input`, once per key ever; count what is new, known, skipped and left."""
    pool = fleet.store.work.pool(text(context, "pool", "papers"))
    fields = parse_fields(text(context, "fields")) if context.get("fields") else None
    limit = whole(context, "limit", 0, least=1) or None
    found = iter(expand(text(context, "input"), limit=limit, fields=fields))
    added, known, skipped = 0, 0, []
    while chunk := await asyncio.to_thread(lambda: list(islice(found, CHUNK))):
        sources = [source for source in chunk if isinstance(source, Source)]
        skipped += [f"{other.where}: {other.why}" for other in chunk if not isinstance(other, Source)]
        news = await pool.push_many([pool.new(source.data, key=source.key) for source in sources])
        added += sum(news)
        known += len(news) - sum(news)
    if not added + known:
        raise SourceError("nothing in the input can be worked on: " + "; ".join(skipped[:3]))
    counts = await pool.counts()
    context.update(
        run=f"w{uuid.uuid4().hex[:6]}",
        workers=whole(context, "workers", 4),
        added=added,
        known=known,
        skipped=len(skipped),
        skipped_first=skipped[:SHOWN],
        done=counts.completed,
        dead=counts.dead,
        left=counts.left,
    )
    return context
