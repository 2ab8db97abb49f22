"""One report over all items of a pool: what each of them came to, and which are missing, and why."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.stores.records import Item
from flatfleet.runtime.stores.store import Pool

SHOWN = 20
TERMS = 30
"""Terms that a report names: those that most items share, two at least."""
_TOLD = ("title", "summary", "score", "rounds", "words", "files")


async def fingerprint(*pools: Pool) -> str:
    """A digest of which items the pools hold and how they stand: the same until one is added or worked on again."""
    digest = hashlib.sha256()
    for pool in pools:
        async for item in pool.items():
            digest.update(f"{item.id}\0{item.state}\0{item.token}\n".encode())
    return digest.hexdigest()[:12]


async def overview(pool: Pool, lists: Pool | None) -> dict[str, Any]:
    """The report of a pool's items, and of the lists that they came from, as data for `reports.write`.

    `items` holds what each completed item came to; `missing` names every item that has no result, every list that was
    not read to its end, and what a list could not make an item of.
    """
    items: list[dict[str, Any]] = []
    sections: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    terms: Counter[str] = Counter()
    states: Counter[str] = Counter()
    async for item in pool.items():
        states[item.state] += 1
        if item.state != "completed":
            missing.append(_missing("item", item))
            continue
        result = item.result
        told = {name: result[name] for name in _TOLD if name in result} if isinstance(result, Mapping) else {}
        items.append({"key": item.key, "id": item.id, **(told if "summary" in told else {"result": result})})
        sections.append({"heading": told.get("title") or item.key, "summary": told.get("summary")})
        if isinstance(result, Mapping) and isinstance(result.get("terms"), list):
            terms.update(list(dict.fromkeys(term for term in result["terms"] if isinstance(term, str))))
    if lists is not None:
        async for each in lists.items():
            if each.state != "completed":
                missing.append(_missing("list", each))
            elif isinstance(each.result, Mapping):
                missing += [{"row": why, "why": "skipped"} for why in each.result.get("skipped_first") or ()]
    total = sum(states.values())
    return {
        "title": f"{pool.name}: {states['completed']} of {total} items",
        "summary": _summary(states, total, len(missing)),
        "counts": dict(states),
        "missing": missing,
        "terms": [term for term, n in terms.most_common(TERMS) if n > 1],
        "sections": sections,
        "items": items,
    }


def short(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report without what it says of each item; of what is missing, the first."""
    counts = {"items": sum(report["counts"].values()), "completed": len(report["items"])}
    missing = {"missing": len(report["missing"]), "missing_first": report["missing"][:SHOWN]}
    return {"title": report["title"], "summary": report["summary"], **counts, **missing}


def _summary(states: Mapping[str, int], total: int, missing: int) -> str:
    parts = [f"{states['completed']} of {total} items have a result"]
    if states["dead"]:
        parts.append(f"{states['dead']} failed")
    if left := total - states["completed"] - states["dead"]:
        parts.append(f"{left} are not settled")
    return ", ".join(parts) + (f"; {missing} are named as missing." if missing else "; none is missing.")


def _missing(kind: str, item: Item) -> dict[str, Any]:
    why = f"{item.error_type}: {item.error}" if item.state == "dead" else f"not settled ({item.state})"
    return {kind: item.key, "why": why}
