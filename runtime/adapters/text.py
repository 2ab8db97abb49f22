"""Text to sentences and words: what is cleaned away, where a sentence ends, which ones can be quoted alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flatfleet.runtime.adapters.vocabulary import ABBREVIATIONS, DANGLING, STARTERS, STOP_WORDS, TITLES

MAX_CHARS = 400_000  # of one text; what lies beyond is neither split nor ranked
MAX_BLOCK = 20_000  # characters that one regular expression sees at a time: it holds the interpreter's lock

LINKS = re.compile(
    r"^(?:however|moreover|furthermore|therefore|thus|hence|nevertheless|nonetheless|consequently|accordingly|also"
    r"|additionally|conversely|similarly|likewise|instead|meanwhile|interestingly|importantly|notably|surprisingly"
    r"|strikingly|remarkably|finally|indeed|in addition|in contrast|by contrast|on the other hand|as a result"
    r"|for example|for instance|in particular|specifically|in turn|first|second|third|next|again|and|but|so|yet)"
    r"(?:,\s+|\s+(?=we\b))",
    re.IGNORECASE,
)
FIGURE = re.compile(
    r"\b(?:(?:Fig|Figs|Tab)\.\s?S?\d|(?:Figures?|Tables?|Movies?|Videos?|Text)\s+S?\d|S\d+\s(?:Text|Table|Fig|File))",
    re.IGNORECASE,
)
BIBLIOGRAPHY = re.compile(
    r"^[ \t#*]{0,6}(?:\d{1,2}\.?[ \t])?(?:references|bibliography|works cited|literature cited)[ \t:*]{0,4}$",
    re.IGNORECASE | re.MULTILINE,
)
REFERENCE = re.compile(
    r"\b[A-Z][\w'’-]{1,40},\s(?:[A-Z]\.[\s-]?){1,4}(?:[,;&(.]|$)|\bet al\.\.|\barXiv\b|\bIS[BS]N\b|\b\d+\(\d+\),\s\d"
    r"|\(Version\s"
)
NUMERIC_CITATION = re.compile(r"\s?\[[1-9]\d{0,2}(?:\s?[,;–—-]\s?\d{1,3}){0,20}\](?:\s?[,;–—-]\s?(?=\[\d))?")
AUTHOR_YEAR = re.compile(r"et al\b|\b[^\W\d_][\w'’-]+,\s+(?:19|20)\d\d|(?:\band\b|&)\s[A-Z][\w'’-]+,?\s(?:19|20)\d\d")
BARE_YEARS = re.compile(r"(?:(?:19|20)\d\d[a-z]?[,\s]*)+")
POINTER = re.compile(
    r"(?:(?:see|see also|e\.g\.|cf\.|as in|data in|shown in)[,\s]+)*(?:data not shown|materials and methods|methods"
    r"|(?:supplementary|supporting|extended data|additional|source)\s"
    r"|(?:fig|figs|figures?|tables?|tabs?|movies?|videos?|text|dataset|eqs?|equations?|box|section|appendix|file)\b\.?\s?[A-Z]?\d)",
    re.IGNORECASE,
)
_PARENTHESIS = re.compile(r"\s?\(([^()]{1,400})\)")
_ADDRESS = re.compile(r"\bdoi:?\s?(?:https?:\S+|10\.\S+)|https?://\S+", re.IGNORECASE)
_GLUED = re.compile(r"(?<=[a-z)\]][a-z)\]]\.)(?=[A-Z][a-z]*\s)")
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_END = re.compile(r"[.!?…]{1,3}[\"'”’)\]]{0,3}\s+|[。！？]+")
_DOTTED = re.compile(r"(?:[^\W\d_]\.){1,4}[^\W\d_]")
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s.*|[-*_=]{3,}|\|.*\|)\s*$")
_BULLET = re.compile(r"^\s*(?:[-*•▪]|\d{1,2}[.)])\s+")
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LIGATURES = str.maketrans({"ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "ﬃ": "ffi", "ﬄ": "ffl", "\u00ad": "", "\u00a0": " "})


def sentences(text: str) -> list[str]:
    """Split `text` into cleaned sentences, without headings, citations, pointers to figures and the bibliography.

    Takes time linear in the length; only the first `MAX_CHARS` characters are read.
    """
    found: list[str] = []
    text = text[:MAX_CHARS].translate(_LIGATURES)
    end = BIBLIOGRAPHY.search(text)
    for block in _blocks(text[: end.start()] if end else text):
        found += split(clean(block))
    return found


def clean(text: str) -> str:
    """Return `text` on one line, without citations, addresses and parentheses that only point elsewhere."""
    text = _ADDRESS.sub("", _HYPHENATED.sub("", text))
    text = NUMERIC_CITATION.sub("", _PARENTHESIS.sub(_kept, text))
    text = re.sub(r"\s+", " ", _GLUED.sub(" ", text))
    return re.sub(r"\s+([,.;:])(?=\s|$)", r"\1", text).strip()


def split(text: str) -> list[str]:
    """Split one paragraph at its sentence ends; abbreviations, initials and decimals end none."""
    found, start = [], 0
    for match in _END.finditer(text):
        if match.group()[0] in ".…" and not _ends(text, start, match.start(), match.end()):
            continue
        if match.end() < len(text) and text[match.end()].islower():
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case; of scripts without spaces, pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        if _CJK.search(word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        else:
            found.append(word[:40])
    return found


def stems(text: str) -> list[str]:
    """Return the content words of `text`, without the plural (the S stemmer: Harman 1991, JASIS 42(1), 7-15)."""
    return [stem(word) for word in words(text) if len(word) > 1 and word not in STOP_WORDS]


def stem(word: str) -> str:
    """Return `word` without the ending of an English plural."""
    if len(word) > 4 and word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and word[-2] not in "us'’i":
        return word[:-1]
    return word


def quotable(sentence: str) -> bool:
    """Tell whether `sentence` is a whole sentence of prose: no heading, table row, formula or fragment."""
    first, last = sentence[0], sentence.rstrip("\"'”’)]")[-1:]
    if "_" in sentence.split(" ", 1)[0] or (sentence.endswith("..") and not sentence.endswith("...")):
        return False
    if first.islower() or last not in ".!?。！？":
        return False
    if _CJK.search(sentence):
        return 12 <= len(sentence) <= 300
    size = len(sentence.split())
    if not 6 <= size <= 70 or sentence.count("(") != sentence.count(")") or REFERENCE.search(sentence):
        return False
    if sum(word[0].isupper() for word in sentence.split()) > 0.6 * size:
        return False
    letters = sum(map(str.isalpha, sentence))
    return letters > 0.68 * (len(sentence) - size) and sentence.count("=") < 4 and sentence.count("“") < 3


def shorten(sentence: str, limit: int = 500) -> str:
    """Return `sentence`, cut at a word after at most `limit` characters."""
    if len(sentence) <= limit:
        return sentence
    return sentence[:limit].rsplit(" ", 1)[0].rstrip(",;: ") + " …"


def standalone(sentence: str) -> str:
    """Return `sentence` without the linking word ('However, …') that pointed to the sentence before it."""
    bare = LINKS.sub("", sentence, count=1)
    return bare[:1].upper() + bare[1:] if bare != sentence else sentence


def dangling(sentence: str) -> str:
    """Return the word by which `sentence` leans on the one before it ('However', 'This'), or nothing."""
    link = LINKS.match(sentence)
    first = sentence.split(" ", 1)[0].strip(",.\"'“‘")
    if link or first.lower() in DANGLING:
        return link.group().strip(" ,") if link else first
    return ""


def _blocks(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines: list[str] = []
        rows = paragraph.split("\n")
        for row, after in zip(rows, [*rows[1:], ""], strict=True):
            if _MARKUP.match(row) or _is_heading(row, lines[-1] if lines else "", after):
                yield from _cut("\n".join(lines))
                lines = []
                continue
            if _BULLET.match(row):
                yield from _cut("\n".join(lines))
                lines = [_BULLET.sub("", row)]
            else:
                lines.append(row)
        yield from _cut("\n".join(lines))


def _cut(block: str) -> Iterator[str]:
    while len(block) > MAX_BLOCK:
        at = max(block.rfind(mark, 0, MAX_BLOCK) for mark in (". ", "\n", "。"))
        at = at + 1 if at > MAX_BLOCK // 2 else MAX_BLOCK
        yield block[:at]
        block = block[at:]
    if block.strip():
        yield block


def _is_heading(row: str, before: str, after: str) -> bool:
    bare = row.strip()
    if not bare or len(bare) > 90 or bare[-1] in ".,;:!?-–。！？" or bare[0].islower():
        return False
    if before.strip() and before.rstrip()[-1] not in ".!?":
        return False
    following = after.strip()
    return bool(following) and not following[0].islower() and len(bare) < 0.8 * len(following)


def _kept(match: re.Match[str]) -> str:
    parts = [part.strip() for part in match.group(1).split(";")]
    kept = [part for part in parts if not _is_reference(part)]
    if len(kept) == len(parts):
        return match.group()
    return f" ({'; '.join(kept)})" if kept else ""


def _is_reference(part: str) -> bool:
    return bool(POINTER.match(part) or AUTHOR_YEAR.search(part) or BARE_YEARS.fullmatch(part))


def _ends(text: str, start: int, stop: int, after: int) -> bool:
    word = text[max(start, text.rfind(" ", start, stop) + 1) : stop].lstrip("([\"'“‘")
    if word.lower() in TITLES:
        return False
    if word.lower() in ABBREVIATIONS or _DOTTED.fullmatch(word) or (len(word) == 1 and word.isupper()):
        following = _WORD.match(text, after)
        return following is not None and following.group()[0].isupper() and following.group().lower() in STARTERS
    return True
