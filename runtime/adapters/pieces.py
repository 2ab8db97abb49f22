"""The sentences that a summary may be made of: gathered from abstract and analyses, weighed, and placed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flatfleet.runtime.adapters.critique import ALIKE, MAX_DRAFT_CHARS, Output, is_aside, texts_of
from flatfleet.runtime.adapters.ranking import MAX_SENTENCES, scores, similarity
from flatfleet.runtime.adapters.text import quotable, sentences, standalone


@dataclass(frozen=True)
class Piece:
    """One sentence that a summary may use: where it is from (part -1 is the abstract) and how much it weighs."""

    text: str
    part: int
    order: int
    heading: str
    weight: float
    place: float
    leans_on: str = ""  # the sentence that has to stand right before this one, if it opens with 'This' or 'They'


def gather(data: Output) -> list[Piece]:
    """Return every quotable sentence of the abstract and the analyses, weighed against all of them."""
    found: list[tuple[str, int, int, str]] = []
    abstract = sentences(data["abstract"][:MAX_DRAFT_CHARS])[:40]
    found += [(text, -1, i, "") for i, text in enumerate(abstract)]
    for part, analysis in enumerate(data["analyses"]):
        own = dict.fromkeys([*texts_of(analysis, "key_sentences"), *texts_of(analysis, "claims")])
        if not own:
            own = dict.fromkeys(sentences(str(analysis.get("summary") or "")))
        cleaned = (text for raw in own for text in sentences(raw))
        found += [(text, part, i, str(analysis.get("heading") or "")) for i, text in enumerate(cleaned)]
    found = [item for item in found if quotable(item[0])][:MAX_SENTENCES]
    weights = scores([text for text, *_ in found], data["title"])
    parts = max(1, len(data["analyses"]))
    aside = [is_aside(analysis) for analysis in data["analyses"]]
    pool = []
    for (text, part, order, heading), weight in zip(found, weights, strict=True):
        if part < 0:
            last = order == len(abstract) - 1 and len(abstract) > 2
            place, factor = (2.0 if last else -1 + order / len(abstract)), 1.5
        else:
            place, factor = part / parts + order / (100 * parts), 0.4 if aside[part] else 1.0
        pool.append(Piece(standalone(text), part, order, heading, weight * factor, place))
    return pool


def origin(text: str, pool: Sequence[Piece]) -> Piece:
    """Return the piece that says what `text` says, or a new one that counts as the abstract's."""
    best = max(pool, key=lambda piece: similarity(piece.text, text), default=None)
    return best if best and similarity(best.text, text) >= ALIKE else Piece(text, -1, 0, "", 0.5, 0.0)


def said(text: str, pieces: Iterable[Piece]) -> bool:
    """Tell whether one of `pieces` says what `text` says."""
    return any(similarity(text, piece.text) >= ALIKE for piece in pieces)
