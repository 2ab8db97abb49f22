"""A launcher's action: turn what was typed after --input into work items."""

from __future__ import annotations

import os
import uuid
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from flatfleet.hooks.values import text, whole
from flatfleet.runtime.errors import SourceError, UsageError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.sources import Source, expand, parse_fields

CHUNK = 500
SHOWN = 20
PACKAGE = "package:"


async def enqueue(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Push one item per document or row of `input`, once per key ever; count what is new, known, skipped and left.

    `workers` becomes 0 if nothing is left and nobody keeps the fleet waiting for more.
    """
    pool = fleet.store.work.pool(text(context, "pool", "papers"))
    fields = parse_fields(text(context, "fields")) if context.get("fields") else None
    limit = whole(context, "limit", 0, least=1) or None
    workers, _ = whole(context, "workers", 4), whole(context, "parallelism", 1, least=1)
    _check_folder(text(context, "out"))
    found = iter(expand(_located(text(context, "input")), limit=limit, fields=fields))
    if context.get("retry_dead") in (True, "true", "True"):
        await pool.retry()
    added = known = skipped = 0
    reasons: list[str] = []
    while chunk := await fleet.in_thread(lambda: list(islice(found, CHUNK))):
        sources = [source for source in chunk if isinstance(source, Source)]
        skipped += len(chunk) - len(sources)
        reasons += [f"{other.where}: {other.why}" for other in chunk if not isinstance(other, Source)]
        del reasons[SHOWN:]
        news = await pool.push_many([pool.new(source.data, key=source.key) for source in sources])
        added += sum(news)
        known += len(news) - sum(news)
    if not added + known:
        raise SourceError("nothing in the input can be worked on: " + "; ".join(reasons[:3]))
    counts = await pool.counts()
    context.update(
        run=f"w{uuid.uuid4().hex[:6]}",
        workers=workers if counts.left or fleet.served else 0,
        added=added,
        known=known,
        skipped=skipped,
        skipped_first=reasons,
        done=counts.completed,
        dead=counts.dead,
        left=counts.left,
    )
    return context


def _located(spec: str) -> str:
    """The path behind `package:NAME/PATH`; anything else as it is."""
    if not spec.startswith(PACKAGE):
        return spec
    package, _, rest = spec.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not rest:
        raise SourceError(f"'{spec}' is incomplete; write package:NAME/PATH, as in package:flatfleet/examples/papers")
    try:
        root = resources.files(package)
    except (ImportError, TypeError) as error:
        raise SourceError(f"'{spec}': no package '{package}' is installed here") from error
    if not isinstance(root, Path):
        raise SourceError(f"'{spec}': package '{package}' is inside an archive; install it unpacked")
    return str(root / rest)


def _check_folder(out: str) -> None:
    """Raise UsageError if the reports could not be written: better before the work than after it."""
    path = Path(out).absolute() if out else None
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), None) if path else None
    if there is not None and not there.is_dir():
        raise UsageError(f"out is '{out}', and {there} is a file; name a folder that exists or can be made")
    if there is not None and not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"out is '{out}', and {there} cannot be written; change its mode or name another folder")
