"""Which sentences and terms of a text matter: centrality, cues, diversity and multi-word terms, without a model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from flatfleet.runtime.adapters.text import FIGURE, LINKS, quotable, stem, stems, words
from flatfleet.runtime.adapters.vocabulary import DANGLING, NOT_IN_TERMS, STOP_WORDS

MAX_SENTENCES = 2_000
Vector = dict[str, float]

AIM = re.compile(
    r"\b(?:we|this (?:paper|work|study|article)|here,? we)\s+(?:\w+ly\s+|also\s+|then\s+|further\s+)?(?:propose|present"
    r"|introduce|develop|show|demonstrate|report|describe|provide|establish|investigate|study|find|found|identify"
    r"|reveal|prove|explore|address|design|analy[sz]e|examine|aim|test|use|devise|suggest|argue|conclude)",
    re.IGNORECASE,
)
FINDING = re.compile(
    r"\bwe (?:\w+ly |also |then |further |have |here )*(?:show|find|found|observe|demonstrate|reveal|identif|conclude"
    r"|confirm|report|detect|discover|establish|propose)"
    r"|\b(?:results?|findings?|data|analys[ei]s|experiments?|evidence|observations?|stud(?:y|ies)|simulations?)\b"
    r".{0,40}\b(?:show|suggest|indicat|reveal|demonstrat|confirm|support|impl(?:y|ies)|fail|establish|provide)"
    r"|\bsignificant(?:ly)?\b|\boutperform|\bin conclusion\b|\btaken together\b|\bodds ratio\b"
    r"|\bimprove[sd]?\b.{0,40}\bby\b"
    r"|\d\s?%|\d-fold\b|\bp\s?[<=≤]\s?[0.]|\b(?:increased|decreased|reduced) (?:by|to|from)\b",
    re.IGNORECASE,
)
PROCEDURE = re.compile(
    r"\b(?:were|was) (?:\w+ly )?(?:performed|purchased|obtained from|incubated|washed|stained|centrifuged|collected"
    r"|recorded|generated|calculated|cultured|carried out|amplified|cloned|fixed|mounted|added|approved)\b"
    r"|^For [^.]{0,60}\bwe used\b"
    r"|\(\w[\w -]{0,40}, (?:[A-Z]\w{1,30}, )?(?:USA|UK|Germany|Japan|France|Switzerland|[A-Z]{2})\)"
    r"|\baccording to the manufacturer|\bas (?:previously )?described\b|\b(?:°C|μl|µl|μM|µM|mM|μg|µg)\b",
)
LEANING = re.compile(
    r"\b(?:the (?:former|latter|above)|as (?:pointed out|mentioned|noted|described|stated) (?:previously|above|before)"
    r"|(?:find|found|show|showed|that) this (?:also|is|was|holds|would))\b",
    re.IGNORECASE,
)
_LABEL = re.compile(r"s?\d+[a-z]?|usa|inc|ltd")


def vectors(texts: Sequence[str]) -> list[Vector]:
    """Return one TF-IDF vector of length 1 for each text (tf = 1 + ln f, idf = ln(1 + N/df); Salton & Buckley 1988)."""
    counts = [Counter(stems(text)) for text in texts]
    df = Counter(word for count in counts for word in count)
    found = []
    for count in counts:
        raw = {word: (1 + math.log(n)) * math.log(1 + len(counts) / df[word]) for word, n in count.items()}
        norm = math.sqrt(sum(value * value for value in raw.values())) or 1.0
        found.append({word: value / norm for word, value in raw.items()})
    return found


def cosine(left: Vector, right: Vector) -> float:
    """Return the cosine of two vectors of length 1."""
    if len(left) > len(right):
        left, right = right, left
    return sum(value * right[word] for word, value in left.items() if word in right)


def scores(texts: Sequence[str], title: str = "") -> list[float]:
    """Score each sentence between 0 and about 2: how well it stands for all of them.

    Centrality is the cosine to the centroid (MEAD: Radev et al. 2004, IPM 40, 919-938), linear in the text; title
    words, position and cue phrases are added as in Edmundson (1969, JACM 16, 264-285); what cannot be quoted alone is
    cut down.
    """
    found = vectors(texts)
    centroid: Vector = {}
    for vector in found:
        for word, value in vector.items():
            centroid[word] = centroid.get(word, 0.0) + value
    norm = math.sqrt(sum(value * value for value in centroid.values())) or 1.0
    central = [sum(v * centroid[w] for w, v in vector.items()) / norm for vector in found]
    top = max(central, default=0.0) or 1.0
    heading = set(stems(title))
    return [
        (0.8 * central[i] / top + _title(vector, heading) + _position(i, len(texts)) + _cues(texts[i]))
        * _alone(texts[i])
        for i, vector in enumerate(found)
    ]


def pick(weights: Sequence[float], found: Sequence[Vector], count: int, *, taken: Sequence[Vector] = ()) -> list[int]:
    """Return up to `count` indexes, best first, each unlike the ones before (MMR: Carbonell & Goldstein, SIGIR 1998).

    `taken` are vectors that the choice must not repeat. What shares 60 % with one of them is never picked.
    """
    near = [max((cosine(vector, other) for other in taken), default=0.0) for vector in found]
    left = [i for i, weight in enumerate(weights) if weight > 0 and near[i] < 0.6]
    picked: list[int] = []
    while left and len(picked) < count:
        best = max(left, key=lambda i: (weights[i] * (1 - near[i]), -i))
        picked.append(best)
        for i in left:
            near[i] = max(near[i], cosine(found[i], found[best]))
        left = [i for i in left if i != best and near[i] < 0.6]
    return picked


def similarity(left: str, right: str) -> float:
    """Return which part of the shorter sentence's content words the other shares (0 to 1)."""
    a, b = set(stems(left)), set(stems(right))
    return len(a & b) / min(len(a), len(b)) if a and b else float(left == right)


def terms(texts: Sequence[str], count: int) -> list[str]:
    """Return the technical terms of `texts`, best first, in the spelling they have most often.

    Candidates are the runs of words between stop words (RAKE: Rose et al. 2010), weighed by the C-value (Frantzi,
    Ananiadou & Mima 2000, IJDL 3, 115-130): log2(words + 1) · (frequency - mean frequency in longer candidates).
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    spelling: dict[tuple[str, ...], Counter[str]] = {}
    for text in texts:
        for run in _runs(text):
            for size in range(1, min(4, len(run)) + 1):
                for at in range(len(run) - size + 1):
                    part = run[at : at + size]
                    key = tuple(stem(word.lower()) for word in part)
                    if size == 1 and (len(key[0]) < 4 or key[0].endswith(("ed", "ing"))) and not part[0].isupper():
                        continue
                    frequency[key] += 1
                    spelling.setdefault(key, Counter())[" ".join(part)] += 1
    for key in [key for key, n in frequency.items() if n < 4 and len(key) == 1 and len(key[0]) < 3]:
        del frequency[key]
    common = [key for key, n in frequency.items() if n > 1]
    if len(common) < count:
        common = list(frequency)
    longer: dict[tuple[str, ...], list[int]] = {}
    for key in common:
        for size in range(1, len(key)):
            for at in range(len(key) - size + 1):
                longer.setdefault(key[at : at + size], []).append(frequency[key])
    value = {
        key: _weight(key, next(iter(spelling[key])))
        * (frequency[key] - (sum(rest) / len(rest) if (rest := longer.get(key)) else 0))
        for key in common
    }
    found: list[tuple[str, ...]] = []
    for key in sorted(common, key=lambda key: (frequency[key] == 1, -value[key], key)):
        inside = next((i for i, other in enumerate(found) if len(other) == 1 and other[0] in key), None)
        if any(set(key) <= set(other) for other in found):
            continue
        if inside is not None:
            found[inside] = key
        elif len(found) < count and not any(set(other) <= set(key) for other in found):
            found.append(key)
    return [max(spelling[key].items(), key=lambda item: (item[1], item[0]))[0] for key in dict.fromkeys(found)]


def _weight(key: tuple[str, ...], spelled: str) -> float:
    """Weigh a term by its length; a single everyday word says less than a name, a symbol or a phrase."""
    if len(key) > 1:
        return math.log2(len(key) + 1)
    return 1.0 if any(map(str.isupper, spelled)) or any(map(str.isdigit, spelled)) or "-" in spelled else 0.4


def _runs(text: str) -> list[list[str]]:
    runs: list[list[str]] = []
    for phrase in re.split(r"[^\w\s'’-]+|\s[-–—]\s", text):
        run: list[str] = []
        for word in phrase.split():
            bare = word.strip("-'’_")
            lower = bare.lower()
            if (
                len(bare) < 2
                or len(bare) > (40 if bare < "\u3040" else 8)
                or not any(map(str.isalpha, bare))
                or lower in STOP_WORDS
                or lower in NOT_IN_TERMS
                or stem(lower) in NOT_IN_TERMS
                or lower.endswith("ly")
                or _LABEL.fullmatch(lower)
            ):
                runs.append(run)
                run = []
            else:
                run.append(bare if any(map(str.isupper, bare[1:])) else lower)
        runs.append(run)
    return [run for run in runs if run]


def _title(vector: Vector, heading: set[str]) -> float:
    return 0.5 * len(heading.intersection(vector)) / max(3, len(heading)) if heading else 0.0


def _position(index: int, total: int) -> float:
    return max(0.15 * (1 - index / 4), 0.1 if index == total - 1 and total > 3 else 0.0)


def _cues(sentence: str) -> float:
    return 0.35 * bool(AIM.search(sentence)) + 0.1 * bool(FINDING.search(sentence))


def _alone(sentence: str) -> float:
    if not quotable(sentence):
        return 0.05
    factor = 1.0
    size = len(sentence.split())
    if size < 10 or size > 45:
        factor *= 0.75
    if FIGURE.search(sentence):
        factor *= 0.4
    if LINKS.match(sentence):
        factor *= 0.9
    if (words(sentence[:40]) or [""])[0] in DANGLING:
        factor *= 0.6
    if LEANING.search(sentence):
        factor *= 0.6
    if PROCEDURE.search(sentence):
        factor *= 0.55
    if sentence.endswith("?"):
        factor *= 0.5
    return factor
