"""What is wrong with a draft summary: each fault with its cost, from the draft and the analyses alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from flatfleet.runtime.adapters.ranking import AIM, FINDING, PROCEDURE, similarity
from flatfleet.runtime.adapters.text import FIGURE, dangling, quotable, sentences, stems
from flatfleet.runtime.adapters.vocabulary import DANGLING

Output = dict[str, Any]

SUMMARY = (4, 7)  # sentences of a finished summary
WORDS = (60, 230)
MAX_DRAFT = 60  # of a draft's summary that are looked at one by one
MAX_DRAFT_CHARS = 20_000  # of a draft's summary, or of an abstract, that are read at all
ALIKE = 0.7  # two sentences that share so much of their content words say the same
NUMBER = re.compile(r"\d")
ASIDE = re.compile(
    r"\b(?:materials?|methods?|methodology|procedures?|statistical analysis|supporting|supplement\w*|acknowledg\w*"
    r"|references|bibliography|data availability|ethics|funding|competing interests|author contributions|accession"
    r"|appendix|abbreviations)\b",
    re.IGNORECASE,
)


def faults(draft: Output, analyses: Sequence[Output]) -> list[tuple[float, str]]:
    """Return (cost, description) of each fault of `draft`; the costs are what the judge takes off 10."""
    text = str(draft.get("summary") or "").strip()
    if not text:
        return [(10.0, "the summary is empty")]
    found: list[tuple[float, str]] = []
    size = len(text.split())
    text = text[:MAX_DRAFT_CHARS]
    raw = sentences(text)[:MAX_DRAFT]
    if size > WORDS[1]:
        found.append(
            (min(3.0, 1.0 + (size - WORDS[1]) / 100), f"too long: {size} words, at most {WORDS[1]} are wanted")
        )
    elif size < WORDS[0]:
        found.append((min(3.0, (WORDS[0] - size) / 15), f"too short: {size} words, at least {WORDS[0]} are wanted"))
    pairs = [(i, j) for j in range(len(raw)) for i in range(j) if similarity(raw[i], raw[j]) >= ALIKE]
    if pairs:
        some = ", ".join(f"sentences {i + 1} and {j + 1}" for i, j in pairs[:3])
        found.append((min(3.0, 1.0 * len(pairs)), f"the summary repeats itself: {some}"))
    # A leading pronoun may lean on the sentence before it; the first sentence has none, a linking word never helps.
    for i, sentence in enumerate(raw):
        word = dangling(sentence)
        if word and (i == 0 or word.lower() not in DANGLING):
            found.append((0.7, f"sentence {i + 1} starts with '{word}', which points to something that is not there"))
    if any(FIGURE.search(sentence) for sentence in raw):
        found.append((0.7, "the summary points at a figure or table that its reader does not see"))
    if len(raw) < MAX_DRAFT and _squeezed(" ".join(raw)) != _squeezed(text):
        found.append((1.0, "citations or pointers such as '(Smith et al., 2010)' or '[12]' are left in the summary"))
    broken = [i + 1 for i, sentence in enumerate(raw) if not quotable(sentence)]
    if broken:
        found.append((min(2.0, 0.7 * len(broken)), f"not a whole sentence: {', '.join(map(str, broken[:5]))}"))
    plain = [sentence for sentence in raw if not FIGURE.search(sentence)]
    claims = [claim for analysis in analyses for claim in texts_of(analysis, "claims")]
    if any(map(NUMBER.search, claims)) and not any(map(NUMBER.search, [*plain, *texts_of(draft, "claims")])):
        found.append((0.7, "no claim with a number, though the text has some"))
    if not AIM.search(text) and not FINDING.search(text):
        found.append((0.7, "the summary states neither an aim nor a finding"))
    if len(texts_of(draft, "key_points")) < min(5, len(claims)):
        found.append((0.5, f"only {len(texts_of(draft, 'key_points'))} key points"))
    lacking = lacking_terms(text, analyses)
    if lacking:
        found.append((min(2.0, 0.25 * len(lacking)), f"terms of the paper are missing: {', '.join(lacking[:6])}"))
    missing = uncovered(text_of(draft), analyses)
    cost = min(1.0, 3.0 / max(1, len(analyses)))
    found += [(cost, f"section {_name(analyses[part], part)} is not covered") for part in missing]
    return found


def uncovered(text: str, analyses: Sequence[Output]) -> list[int]:
    """Return the indexes of the parts whose leading terms the text does not use, asides left out."""
    said = set(stems(text))
    missing = []
    for part, analysis in enumerate(analyses):
        if is_aside(analysis) or not texts_of(analysis, "key_sentences"):
            continue
        wanted = set(stems(" ".join(texts_of(analysis, "terms")[:8])))
        if wanted and len(wanted & said) < 0.35 * len(wanted):
            missing.append(part)
    return missing


def lacking_terms(text: str, analyses: Sequence[Output]) -> list[str]:
    """Return which of the terms that most parts share the text does not use, if these are more than 40 % of them."""
    count: dict[str, int] = {}
    for analysis in analyses:
        for rank, term in enumerate([] if is_aside(analysis) else texts_of(analysis, "terms")):
            count[term] = count.get(term, 0) + (2 if rank < 5 else 1)
    shared = sorted((term for term, n in count.items() if n > 1), key=lambda term: (-count[term], term))[:12]
    said = set(stems(text))
    lacking = [term for term in shared if not said.intersection(stems(term))]
    return lacking if len(lacking) > 0.4 * len(shared) else []


def is_aside(analysis: Output) -> bool:
    """Tell whether a part says how the work was done, or is no prose, so that a summary may pass it over."""
    found = texts_of(analysis, "key_sentences")
    return bool(ASIDE.search(str(analysis.get("heading") or ""))) or (
        sum(bool(PROCEDURE.search(text)) for text in found) > 0.4 * len(found)
    )


def merit(draft: Output, analyses: Sequence[Output]) -> float:
    """Return what drafts of the same analyses are compared by: the higher, the fewer faults."""
    return -sum(cost for cost, _ in faults(draft, analyses))


def _name(analysis: Output, part: int) -> str:
    return f"'{analysis['heading']}'" if analysis.get("heading") else str(part + 1)


def _squeezed(text: str) -> str:
    return re.sub(r"\W+", "", text)


def text_of(draft: Output) -> str:
    """Return all that a draft says: its summary, key points and claims."""
    return " ".join([str(draft.get("summary") or ""), *texts_of(draft, "key_points"), *texts_of(draft, "claims")])[
        :50_000
    ]


def texts_of(data: Output, key: str) -> list[str]:
    """Return the strings of the list `data[key]`; nothing if it is no list."""
    value = data.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
