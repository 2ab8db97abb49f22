"""Cutting a text into parts of about equal length, at the border that a reader would choose."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from flatfleet.runtime.errors import UsageError

MIN_PART = 20
"""Words below which a part is not worth an own call: a shorter document gives fewer parts."""

# A Chinese or Japanese text has no spaces, so each of its characters counts as a word (as word processors count).
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_PARAGRAPH = re.compile(r"\n[ \t\r\f\v]*\n\s*")
_SENTENCE = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\sa-z])|(?<=[。！？])|\n(?=[ \t]*(?:[-*•]|\d+[.)])\s)"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:et al|e\.g|i\.e|cf|vs|Figs?|Eqs?|Refs?|Dr|Prof|Mrs?|Ms|St|No|approx|resp|[A-Z]))\.$"
)
_PENALTY = {"section": 0.0, "paragraph": 0.12, "sentence": 0.25, "word": 0.6}


def count_words(text: str) -> int:
    """Count words: runs of non-blank characters, and each Chinese or Japanese character."""
    return sum(1 for _ in _WORD.finditer(text))


def split_sections(sections: Sequence[tuple[str, str]], parts: int) -> list[dict[str, Any]]:
    """Cut (title, text) sections into at most `parts` contiguous pieces of about equal word count, in order.

    Each is `{"index": from 0, "of": number of pieces, "heading": str, "text": str}`; none is empty, and every word is
    in exactly one. A cut falls on a section border, else a paragraph's, else a sentence's, and between words only
    inside a sentence that is longer than a part. Raises UsageError if `parts` is below 1.
    """
    if parts < 1:
        raise UsageError(f"a text is cut into at least 1 part, got {parts}; set parallelism to 1 or more")
    sections = [(title, text) for title, text in sections if text.strip()]
    words = [count_words(text) for _, text in sections]
    total = sum(words)
    if not total:
        return []
    wanted = max(1, min(parts, total // MIN_PART))
    cuts = _choose(sorted(_borders(sections, words, total / wanted)), total, wanted) if wanted > 1 else []
    ends = [*cuts, (len(sections) - 1, len(sections[-1][1]))]
    pieces = [_piece(sections, start, end) for start, end in pairwise([(0, 0), *ends])]
    names = [
        heading or f"Part {i} of {len(pieces)}" if len(pieces) > 1 else heading
        for i, (heading, _) in enumerate(pieces, 1)
    ]
    return [
        {"index": i, "of": len(pieces), "heading": name, "text": text}
        for i, (name, (_, text)) in enumerate(zip(names, pieces, strict=True))
    ]


_Place = tuple[int, int]
"""A place in the document: (number of the section, offset in its text)."""


def _borders(
    sections: Sequence[tuple[str, str]], words: Sequence[int], size: float
) -> Iterator[tuple[int, float, _Place]]:
    """Yield (words before it, penalty of cutting there, place) for every border inside the document."""
    before = 0
    for number, (_, text) in enumerate(sections):
        if number:
            yield before, _PENALTY["section"], (number, 0)
        if words[number] > size / 4:
            for offset, count, kind in _inner(text, size):
                if 0 < count < words[number]:
                    yield before + count, _PENALTY[kind], (number, offset)
        before += words[number]


def _inner(text: str, size: float) -> Iterator[tuple[int, int, str]]:
    """Yield (offset, words before it, kind) for the borders within one text."""
    paragraphs = {found.end() for found in _PARAGRAPH.finditer(text)}
    sentences = {
        found.end()
        for found in _SENTENCE.finditer(text)
        if not _ABBREVIATION.search(text, max(0, found.start() - 12), found.start())
    }
    count = last = 0
    offsets = sorted(paragraphs | sentences | {len(text)})
    for begin, end in pairwise([0, *offsets]):
        found = [match.start() for match in _WORD.finditer(text, begin, end)]
        if len(found) > size:
            yield from ((offset, count + i, "word") for i, offset in enumerate(found) if i)
        count += len(found)
        if end != last:
            yield end, count, "paragraph" if end in paragraphs else "sentence"
        last = end


def _choose(borders: Sequence[tuple[int, float, _Place]], total: int, parts: int) -> list[_Place]:
    """Choose the cheapest border around each even cut; the windows do not overlap, so the cuts are in order."""
    size = total / parts
    chosen = []
    for k in range(1, parts):
        low = bisect_left(borders, ((k - 0.5) * size,))
        high = bisect_left(borders, ((k + 0.5) * size,))
        near = borders[low:high]
        if near:
            chosen.append(min(near, key=lambda border: abs(border[0] - k * size) / size + border[1])[2])
    return chosen


def _piece(sections: Sequence[tuple[str, str]], start: _Place, end: _Place) -> tuple[str, str]:
    """Return the heading and the text between two places."""
    texts, titles = [], []
    for number in range(start[0], end[0] + 1):
        title, text = sections[number]
        begin = start[1] if number == start[0] else 0
        stop = end[1] if number == end[0] else len(text)
        piece = text[begin:stop].strip()
        if piece:
            texts.append(piece)
            titles.append(title[:120] + " (continued)" * bool(begin and title))
    names = list(dict.fromkeys(title for title in titles if title))
    heading = " · ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
    return heading, "\n\n".join(texts)
