"""The paper task's actions: read and split the document, count the rounds, write the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatfleet.runtime import reports
from flatfleet.runtime.documents import read, split
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.values import number, text, whole


async def prepare(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Read the document of `item` into `title` and `abstract`, and split it into `parts` (at most `parallelism`)."""
    max_mb, parallelism = number(context, "max_mb", 20.0), whole(context, "parallelism", 1, least=1)
    document = await fleet.in_thread(lambda: read(context["item"], max_mb=max_mb))
    parts = await fleet.in_thread(lambda: split(document, parallelism))
    for part in parts:
        part["title"] = document.title
    context.update(
        title=document.title,
        abstract=document.abstract,
        words=document.words,
        parts=parts,
        rounds=0,
        max_rounds=whole(context, "max_rounds", 3, least=1),
    )
    return context


async def count_round(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Begin another round of refinement."""
    context["rounds"] = whole(context, "rounds", 0) + 1
    return context


async def report(context: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """Make the `report` of the refined draft, and write it as JSON and Markdown into the folder `out`, if one is named."""
    made = reports.of_draft(context)
    context["report"] = made
    folder = text(context, "out")
    if folder:
        pool, _, name = str(context["item_id"]).rpartition(":")
        where = Path(folder) / pool if pool not in ("", "papers") else Path(folder)
        context["files"] = await fleet.in_thread(lambda: reports.write(where, name or "report", made))
    return context
