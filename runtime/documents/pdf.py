"""PDF files, read as a person reads them: running text under its headings, without page headers and references."""

from __future__ import annotations

import io
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatfleet.runtime.documents.core import clean
from flatfleet.runtime.documents.outline import known_heading
from flatfleet.runtime.errors import DocumentError

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader

MAX_PAGES = 2000
FRONT_WORDS = 250
"""Authors, addresses and licence before the first known heading are left out if they are no longer than this."""

_REFERENCES = frozenset({"references", "bibliography", "literature cited", "works cited"})
_OPENING = frozenset({"abstract", "summary", "introduction", "background"})
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st", "\xad": "-"})
_JUNK_TITLE = re.compile(r"(?i)^(untitled.*|microsoft .*|.*\.(docx?|pdf|tex|dvi|indd|qxd|rtf|ps)|title|paper|\W*)$")
_ABSTRACT = re.compile(r"(?i)^(abstract)\s*[—–:.-]\s*(?=\S)")
_HYPHENATED = re.compile(r"\b(\w*[a-zäöüß])-\n([a-zäöüß]\w*)")
_LINK_BREAK = re.compile(r"(https?:(?:/{1,2}\S{0,999}[/#=_-])?)\n(?=[\w/])")


@dataclass
class _Line:
    """A line of a page with the size of its letters in points (0: not known)."""

    text: str
    size: float


def read_pdf(data: bytes, name: str, max_mb: float) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Return (title, [(heading, text)], notes on what was left out) of a PDF file's bytes.

    At most `MAX_PAGES` pages and `max_mb` megabytes of text are read. Headings are the lines that papers use, and
    lines in larger letters. The references are left out. Raises DocumentError whatever pypdf raises.
    """
    if b"%PDF-" not in data[:1024]:
        raise DocumentError(f"{name} is not a PDF: it begins with {data[:24]!r}; fetch the real file again")
    logger = logging.getLogger("pypdf")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        reader = _open(data, name)
        pages, notes = _pages(reader, max_mb)
        title = _metadata_title(reader)
    except DocumentError:
        raise
    except Exception as error:  # pypdf raises whatever its parsers run into: KeyError, RecursionError, struct.error …
        why = str(error).strip() or type(error).__name__
        raise DocumentError(
            f"{name} is a damaged PDF ({why[:200]}); fetch it again, or repair it with: qpdf {name} repaired.pdf"
        ) from error
    if not any(line.text for page in pages for line in page):
        raise DocumentError(
            f"{name} is a PDF without a text layer ({len(pages)} pages, probably scanned); "
            f"add one by OCR: ocrmypdf {name} with-text.pdf"
        )
    lines = [line for page in _without_repeated(pages) for line in page]
    body = _body_size(lines)
    title = title or _largest(pages[0], body)
    return title, _sections(lines, body, title), notes


def _open(data: bytes, name: str) -> PdfReader:
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    advice = f"{name} is an encrypted PDF; remove its password first: qpdf --decrypt --password=… {name} open.pdf"
    if reader.is_encrypted:
        try:
            opened = bool(reader.decrypt(""))
        except (pypdf.errors.DependencyError, NotImplementedError) as error:
            raise DocumentError(advice) from error
        if not opened:
            raise DocumentError(advice)
    return reader


def _pages(reader: PdfReader, max_mb: float) -> tuple[list[list[_Line]], list[str]]:
    total = len(reader.pages)
    pages: list[list[_Line]] = []
    notes: list[str] = []
    failed: list[int] = []
    left = max_mb * 2**20
    first_error: Exception | None = None
    for number in range(min(total, MAX_PAGES)):
        try:
            page = _page(reader.pages[number])
        except Exception as error:  # one damaged page does not cost the others
            failed.append(number + 1)
            first_error = first_error or error
            continue
        left -= sum(len(line.text.encode()) + 1 for line in page)
        if left < 0 and pages:
            notes.append(f"only the first {number} of {total} pages were read: their text fills max_mb ({max_mb:g} MB)")
            break
        pages.append(page)
    else:
        if total > MAX_PAGES:
            notes.append(f"only the first {MAX_PAGES} of {total} pages were read")
    if first_error and not any(pages):
        raise first_error
    if failed:
        shown = ", ".join(map(str, failed[:10])) + " …" * (len(failed) > 10)
        notes.append(f"{len(failed)} of {total} pages could not be read ({shown})")
    return pages, notes


def _page(page: PageObject) -> list[_Line]:
    """Return the lines of one page in reading order, each with the size of its smallest run of letters."""
    rows: dict[tuple[float, float], list[tuple[str, float]]] = defaultdict(list)

    def visit(text: str, cm: Sequence[float], tm: Sequence[float], _font: Any, size: float) -> None:
        if text.strip():
            scale = math.hypot(tm[2], tm[3]) * math.hypot(cm[2], cm[3])
            height = round(tm[5] * cm[3] + cm[5], 1)
            for k, line in enumerate(text.split("\n")):
                rows[height, k].append((line, abs(size * scale)))

    raw = page.extract_text(visitor_text=visit)
    sizes: dict[str, float] = {}
    for runs in rows.values():
        letters = [size for text, size in runs if any(char.isalpha() for char in text)]
        if letters:
            sizes[_squeezed("".join(text for text, _ in runs))] = min(letters)
    lines = [" ".join(line.split()) for line in clean(raw).translate(_LIGATURES).split("\n")]
    return [_Line(line, sizes.get(_squeezed(line), 0.0)) for line in lines if line]


def _squeezed(text: str) -> str:
    return "".join(clean(text).translate(_LIGATURES).split())


def _without_repeated(pages: Sequence[list[_Line]]) -> list[list[_Line]]:
    """Drop the lines at the edges of the pages that repeat on most of them, and their numbers."""
    exact: Counter[str] = Counter()
    numbered: Counter[str] = Counter()
    edges = []
    for page in pages:
        reach = min(4, len(page) // 3)
        edge = {*range(reach), *range(len(page) - reach, len(page))}
        edges.append(edge)
        exact.update({page[i].text for i in edge})
        numbered.update({_digitless(page[i].text) for i in edge})
    often = max(2, math.ceil(len(pages) * 0.5))
    kept = [
        [
            line
            for i, line in enumerate(page)
            if i not in edge
            or not (exact[line.text] >= often or numbered[_digitless(line.text)] >= max(3, len(pages) * 0.6))
        ]
        for page, edge in zip(pages, edges, strict=True)
    ]
    return kept if any(kept) else list(pages)


def _digitless(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _body_size(lines: Sequence[_Line]) -> float:
    """Return the size in which most of the text is set."""
    sizes: Counter[float] = Counter()
    for line in lines:
        if line.size:
            sizes[round(line.size, 1)] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0.0


def _metadata_title(reader: PdfReader) -> str:
    try:
        title = " ".join(clean(reader.metadata.title if reader.metadata else "").split())
    except Exception:  # a broken information dictionary is no reason to refuse the text
        return ""
    return "" if len(title) < 4 or _JUNK_TITLE.match(title) else title


def _largest(page: Sequence[_Line], body: float) -> str:
    """Return the first lines of the first page in its largest letters, or its first line."""
    largest = max((line.size for line in page if len(line.text) > 3), default=0.0)
    if largest <= body * 1.05:
        return page[0].text if page else ""
    start = next(i for i, line in enumerate(page) if line.size == largest and len(line.text) > 3)
    taken = []
    for line in page[start : start + 4]:
        if abs(line.size - largest) > 0.2:
            break
        taken.append(line.text)
    return " ".join(taken)


def _sections(lines: Sequence[_Line], body: float, title: str) -> list[tuple[str, str]]:
    blocks: list[tuple[str, list[str]]] = [("", [])]
    squeezed_title = _squeezed(title).lower()
    for line in lines:
        found = _ABSTRACT.match(line.text)
        heading = found[1].capitalize() if found else _heading(line, body)
        if heading and _squeezed(heading).lower() in squeezed_title and len(blocks) == 1:
            continue
        if heading:
            blocks.append((heading, [line.text[found.end() :]] if found else []))
        else:
            blocks[-1][1].append(line.text)
    first = next((heading.lower() for heading, _ in blocks if heading), "")
    if first in _OPENING and len(" ".join(blocks[0][1]).split()) <= FRONT_WORDS:
        blocks = blocks[1:]
    kept = [block for i, block in enumerate(blocks) if block[0].lower() not in _REFERENCES or i == 0]
    if not any(text for _, text in kept):
        kept = [("", [line.text for line in lines])]
    words = Counter(re.findall(r"\w+(?:-\w+)*", " ".join(line.text for line in lines).lower()))
    return [(heading, _flow(text, words)) for heading, text in kept]


def _heading(line: _Line, body: float) -> str:
    """Return the heading that a line is, or an empty string."""
    known = known_heading(line.text)
    if known and (line.text[0].isupper() or line.text[0].isdigit()):
        return known if not known.isupper() else known.capitalize()
    words = line.text.split()
    larger = body and line.size > body * 1.08 and len(words) <= 14 and line.text[-1] not in ".,;"
    return line.text if larger and sum(char.isalpha() for char in line.text) > 3 else ""


def _flow(lines: Sequence[str], words: Counter[str]) -> str:
    """Join lines into paragraphs; a hyphen at a line's end goes unless the document writes the word with it."""
    if not lines:
        return ""
    width = sorted(map(len, lines))[int(len(lines) * 0.8)]
    text = ""
    for i, line in enumerate(lines):
        starts_item = bool(re.match(r"[•▪‣◦–-] |\(?\d{1,2}[.)] ", line))
        ended = i and lines[i - 1][-1] in '.!?:”"' and len(lines[i - 1]) < width * 0.85
        text += ("\n\n" if ended or starts_item else "\n") * bool(i) + line
    text = _LINK_BREAK.sub(r"\1", text)
    text = re.sub(r"(\w-)\n(?=[A-Z\d])", r"\1", text)
    text = _HYPHENATED.sub(lambda found: _joined(found[1], found[2], words), text)
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def _joined(left: str, right: str, words: Counter[str]) -> str:
    whole, hyphenated = f"{left}{right}".lower(), f"{left}-{right}".lower()
    return f"{left}-{right}" if words[hyphenated] > words[whole] else f"{left}{right}"
