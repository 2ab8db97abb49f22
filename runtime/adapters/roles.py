"""The four offline agents as pure functions from input to output: analyze, synthesize, judge and improve."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from flatfleet.runtime.adapters.critique import (
    MAX_DRAFT,
    MAX_DRAFT_CHARS,
    NUMBER,
    SUMMARY,
    WORDS,
    Output,
    faults,
    lacking_terms,
    merit,
    text_of,
    texts_of,
    uncovered,
)
from flatfleet.runtime.adapters.pieces import Piece, gather, origin, said
from flatfleet.runtime.adapters.ranking import FINDING, MAX_SENTENCES, PROCEDURE, pick, scores, terms, vectors
from flatfleet.runtime.adapters.text import FIGURE, dangling, quotable, sentences, shorten, standalone, stems


def analyze(data: Output) -> Output:
    """Return heading, summary, key_sentences (in text order), terms and claims of one part of a document."""
    heading = shorten(data["heading"] or data["title"] or "", 200)
    found = sentences(data["text"])[:MAX_SENTENCES]
    if not found:
        return {"heading": heading, "summary": "", "key_sentences": [], "terms": [], "claims": []}
    weights = scores(found, f"{data['title']} {data['heading']}")
    space = vectors(found)
    best = pick(weights, space, min(6, max(3, len(found) // 5)))
    good = [i for i in best if quotable(found[i])] or best
    claims = [
        i for i, text in enumerate(found) if FINDING.search(text) and quotable(text) and not PROCEDURE.search(text)
    ]
    claims = [claims[i] for i in pick([weights[i] for i in claims], [space[i] for i in claims], 6)]
    lead = _readable([found[i] for i in sorted(good[: 2 if len(found) > 4 else 1])])
    return {
        "heading": heading,
        "summary": " ".join(lead),
        "key_sentences": [shorten(found[i]) for i in sorted(good)],
        "terms": terms(found, 12),
        "claims": [shorten(found[i]) for i in sorted(claims)],
    }


def synthesize(data: Output) -> Output:
    """Return summary, key_points, terms, claims and sections for a whole document, from the analyses of its parts."""
    pool = gather(data)
    chosen = _first_choice(pool)
    return _report(data, pool, [pool[i] for i in _in_order(pool, chosen)])


def judge(data: Output) -> Output:
    """Return score (0 to 10), feedback (one concrete fault each) and passed for a draft."""
    draft, analyses = data["draft"], data["analyses"]
    found = faults(draft, analyses)
    score = round(max(0.0, 10.0 - sum(cost for cost, _ in found)), 1)
    return {"score": score, "feedback": [text for _, text in found], "passed": score >= data["pass_score"]}


def improve(data: Output) -> Output:
    """Return the draft with its faults mended: the same shape as `synthesize`.

    Sentences are cleaned, made to stand alone, and dropped where they repeat one another or point at a figure; what the
    parts say and the draft leaves out is added, first from the sections that the feedback names; then it is cut to
    length. It returns the draft as it was if that scores higher.
    """
    pool = gather(data)
    old = data["draft"]
    feedback = " ".join(data["feedback"]).lower()
    kept = _sound(str(old.get("summary") or "")[:MAX_DRAFT_CHARS], pool) or [
        pool[i] for i in _in_order(pool, _first_choice(pool))
    ]
    room = WORDS[1] - 50 if "too long" in feedback or "shorter" in feedback else WORDS[1] - 30
    named = {piece.part for piece in pool if piece.heading and piece.heading.lower() in feedback}
    numbers = any(NUMBER.search(piece.text) for piece in kept)
    open_parts = uncovered(text_of({**old, "summary": " ".join(piece.text for piece in kept)}), data["analyses"])
    lacking = {
        word for term in lacking_terms(" ".join(piece.text for piece in kept), data["analyses"]) for word in stems(term)
    }
    floor = max(0.4, 0.6 * sum(piece.weight for piece in kept) / max(1, len(kept)))
    wanted = sorted(
        (piece for piece in pool if piece.weight > floor and not PROCEDURE.search(piece.text)),
        key=lambda piece: (
            piece.part not in named and piece.part not in open_parts,
            not lacking.intersection(stems(piece.text)),
            not numbers and not NUMBER.search(piece.text),
            -piece.weight,
            piece.part,
            piece.order,
        ),
    )
    while len(kept) > SUMMARY[1] or (_size(kept) > room and len(kept) > SUMMARY[0]):
        kept.remove(min(kept, key=lambda piece: (piece.weight, -piece.part)))
    for piece in wanted:
        if len(kept) >= SUMMARY[1]:
            break
        if _size([*kept, piece]) <= room and not dangling(piece.text) and not said(piece.text, kept):
            kept.append(piece)
    new = _report(data, pool, _connected(kept), named.union(open_parts))
    first, second = (new, old) if merit(new, data["analyses"]) >= merit(old, data["analyses"]) else (old, new)
    return {key: first.get(key) or second.get(key) or new[key] for key in new}


def _first_choice(pool: Sequence[Piece]) -> list[int]:
    weights, space = [piece.weight for piece in pool], vectors([piece.text for piece in pool])
    inside = [weight if piece.part < 0 else 0.0 for piece, weight in zip(pool, weights, strict=True)]
    chosen = pick(inside, space, 4)
    body = [
        0.0 if piece.part < 0 or dangling(piece.text) else weight * (1.3 if FINDING.search(piece.text) else 1.0)
        for piece, weight in zip(pool, weights, strict=True)
    ]
    size = sum(len(pool[i].text.split()) for i in chosen)
    wanted = 6 - len(chosen) if len(chosen) > 2 else 5
    for i in pick(body, space, wanted + 4, taken=[space[i] for i in chosen]):
        length = len(pool[i].text.split())
        if wanted and size + length <= WORDS[1] - 20 and not said(pool[i].text, [pool[j] for j in chosen]):
            chosen.append(i)
            size += length
            wanted -= 1
    return chosen


def _in_order(pool: Sequence[Piece], chosen: Iterable[int]) -> list[int]:
    order = sorted(chosen, key=lambda i: pool[i].place)
    return [
        i
        for at, i in enumerate(order)
        if not dangling(pool[i].text) or (at and order[at - 1] == i - 1 and pool[i - 1].part == pool[i].part)
    ] or order


def _report(
    data: Output, pool: Sequence[Piece], summary: Sequence[Piece], first: Collection[int] = frozenset()
) -> Output:
    space = vectors([piece.text for piece in pool])
    where = {piece.text: i for i, piece in enumerate(pool)}
    taken = [space[where[piece.text]] for piece in summary if piece.text in where]
    body = [0.0 if dangling(piece.text) else piece.weight * (1.0 if piece.part >= 0 else 0.5) for piece in pool]
    points = _spread(pool, pick(body, space, 40, taken=taken), 9 if first else 7, first)
    if len(points) < 5:
        points = _spread(pool, pick([piece.weight for piece in pool], space, 40), 7, first)
    claim = [
        piece.weight * (1.2 if NUMBER.search(piece.text) else 1.0) * bool(FINDING.search(piece.text)) for piece in pool
    ]
    claims = pick([0.0 if dangling(pool[i].text) else weight for i, weight in enumerate(claim)], space, 8)
    names = [term for analysis in data["analyses"] for term in texts_of(analysis, "terms")]
    return {
        "summary": " ".join(piece.text for piece in summary),
        "key_points": [shorten(pool[i].text) for i in sorted(points, key=lambda i: pool[i].place)],
        "terms": _common_terms(data, pool, names),
        "claims": [shorten(pool[i].text) for i in claims],
        "sections": [
            {"heading": str(analysis.get("heading") or ""), "summary": str(analysis.get("summary") or "")}
            for analysis in data["analyses"]
            if analysis.get("summary")
        ],
    }


def _spread(pool: Sequence[Piece], ranked: Sequence[int], count: int, parts: Collection[int]) -> list[int]:
    best: dict[int, int] = {}
    for i in ranked:
        best.setdefault(pool[i].part, i)
    leading = sorted(best.values(), key=lambda i: (pool[i].part not in parts, ranked.index(i)))[:count]
    return [*leading, *(i for i in ranked if i not in leading)][:count]


def _common_terms(data: Output, pool: Sequence[Piece], names: Sequence[str]) -> list[str]:
    own = terms([data["title"], data["abstract"][:MAX_DRAFT_CHARS], *(piece.text for piece in pool)], 15)
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    shared = sorted((name for name, n in counts.items() if n > 1), key=lambda name: (-counts[name], name))
    found: list[str] = []
    for name in [*own[:10], *shared, *own[10:], *names]:
        key = set(stems(name))
        if key and not any(key <= set(stems(other)) or set(stems(other)) <= key for other in found):
            found.append(name)
    return found[:15]


def _sound(summary: str, pool: Sequence[Piece]) -> list[Piece]:
    """Return the sentences of a draft that can stay, cleaned and each traced to where it came from."""
    kept: list[Piece] = []
    before = ""
    for text in _readable(sentences(summary)[:MAX_DRAFT]):
        stays = quotable(text) and not FIGURE.search(text) and not said(text, kept)
        if stays and (not dangling(text) or (kept and kept[-1].text == before)):
            kept.append(dataclasses.replace(origin(text, pool), text=text, leans_on=before if dangling(text) else ""))
        before = text
    return kept


def _connected(kept: Iterable[Piece]) -> list[Piece]:
    """Return the pieces in the order of the document, each one that leans on another right after it, or not at all."""
    ordered = sorted(kept, key=lambda piece: piece.place)
    found = [piece for piece in ordered if not piece.leans_on]
    for piece in ordered:
        at = next((i for i, other in enumerate(found) if other.text == piece.leans_on), None)
        if at is not None:
            found.insert(at + 1, piece)
    return found


def _readable(found: Iterable[str]) -> list[str]:
    return [shorten(standalone(text)) for text in found]


def _size(pieces: Iterable[Piece]) -> int:
    return sum(len(piece.text.split()) for piece in pieces)
