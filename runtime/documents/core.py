"""Documents: text, Markdown, PDF and rows with their text inside, read into a title and sections, and split.

Whatever is wrong with a document becomes a DocumentError that says what to do; a document's text is data and is
never interpreted.
"""

from __future__ import annotations

import codecs
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatfleet.runtime.documents import outline
from flatfleet.runtime.documents.splitting import count_words, split_sections
from flatfleet.runtime.errors import DocumentError

_BODIES = ("text", "body", "content")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_QUOTES_AND_DASHES = {0x80, 0x85, *range(0x91, 0x98)}
_LEGACY_CONTROLS = {*range(9), *range(14, 32), *range(127, 160)} - _QUOTES_AND_DASHES
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = {b"PK\x03\x04": "a ZIP or Office file", b"\x89PNG": "an image", b"\xff\xd8\xff": "an image",
          b"\x1f\x8b": "a gzip file", b"\xd0\xcf\x11\xe0": "an old Office file"}  # fmt: skip


@dataclass
class Section:
    """A heading and the text below it; the title is empty for text without one."""

    title: str
    text: str


@dataclass
class Document:
    """A readable document. `notes` say in words what was left out of it, such as pages that cannot be read."""

    title: str
    sections: list[Section]
    abstract: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def words(self) -> int:
        """The words of abstract and sections, titles not counted."""
        return count_words(self.abstract) + sum(count_words(section.text) for section in self.sections)


def read(item: Mapping[str, Any], *, max_mb: float = 20) -> Document:
    """Read the document of one work item: its inline text if there is any, else the file at its `path`.

    Inline are `sections` (a list of `{title, text}`), `text`, `body` or `content`, and `abstract`, with an optional
    `title`. A file is PDF or Markdown by its suffix (or a PDF by its first bytes), and plain text otherwise. Blocks:
    call it in a thread. Raises DocumentError, which no retry cures, for everything that is wrong.
    """
    document = _inline(item, max_mb)
    if document is None:
        path = item.get("path")
        if not isinstance(path, str) or not path.strip():
            known = ", ".join(sorted(map(str, item))[:12]) or "nothing"
            raise DocumentError(
                f"empty: the item has no text and no path (it has: {known}); "
                f"give it `path`, `sections`, or one of {', '.join(_BODIES)} — or name its text with fields"
            )
        document = _file(path, max_mb)
    return document


def split(document: Document, parts: int) -> list[dict[str, Any]]:
    """Cut a document, abstract first, into at most `parts` pieces of about equal word count (see `split_sections`)."""
    sections = [(section.title, section.text) for section in document.sections]
    return split_sections([("Abstract", document.abstract), *sections], parts)


def _inline(item: Mapping[str, Any], max_mb: float) -> Document | None:
    title, abstract = _line(item.get("title")), clean(item.get("abstract")).strip()
    rows = item.get("sections")
    pairs: list[tuple[str, str]] = []
    for row in rows if isinstance(rows, list) else []:
        is_row = isinstance(row, Mapping)
        pairs.append((_line(row.get("title")), clean(row.get("text"))) if is_row else ("", clean(row)))
    if not any(text.strip() for _, text in pairs):
        body = next((text for name in _BODIES if (text := clean(item.get(name))).strip()), "")
        title, pairs = outline.plain_text(body, title)
    sections = [Section(heading, text.strip()) for heading, text in pairs if text.strip()]
    if not sections and not abstract:
        return None
    check_size(sum(len(part.encode()) for part in (abstract, *(s.text for s in sections))), max_mb, "the text")
    return _finish(title or outline.plain_text(abstract)[0], sections, abstract)


def _file(typed: str, max_mb: float) -> Document:
    try:
        path = Path(typed).expanduser()
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise DocumentError(f"{typed} is a folder; name a file, or give the folder to --input")
        if not stat.S_ISREG(state.st_mode):
            raise DocumentError(f"{typed} is no regular file; save its content to a file")
        check_size(state.st_size, max_mb, typed)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DocumentError(f"{typed} is missing; it was moved or deleted since it was enqueued: restore it") from error
    except PermissionError as error:
        raise DocumentError(f"no permission to read {typed}; change its mode (chmod +r), then retry it") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise DocumentError(f"{typed} cannot be opened: {error}") from error
    if not data.strip():
        raise DocumentError(f"{typed} is empty ({len(data)} bytes); replace it with the real file")
    return _file_content(data, typed, max_mb)


def _file_content(data: bytes, name: str, max_mb: float) -> Document:
    """Read a file's bytes as what its name and its first bytes say it is."""
    path = Path(name)
    suffix = path.suffix.lower()
    notes: list[str] = []
    if suffix == ".pdf" or data.startswith(b"%PDF-"):
        from flatfleet.runtime.documents.pdf import read_pdf

        title, pairs, notes = read_pdf(data, name, max_mb)
    else:
        text = decode(data, name)
        if not text.strip():
            raise DocumentError(f"{name} is empty (only white space); replace it with the real file")
        title, pairs = (outline.markdown if suffix in (".md", ".markdown") else outline.plain_text)(text)
    sections = [Section(heading, body.strip()) for heading, body in pairs if body.strip()]
    return _finish(title or path.stem, sections, "", notes)


def _finish(title: str, sections: list[Section], abstract: str, notes: list[str] | None = None) -> Document:
    """Take the abstract out of the sections if it stands first there."""
    first = next((i for i, section in enumerate(sections) if section.title), None)
    if not abstract and first == 0 and sections[0].title.lower() == "abstract":
        abstract = sections.pop(0).text
    return Document(_line(title)[:300] or "Untitled", sections, abstract, notes or [])


def check_size(size: int, max_mb: float, what: str) -> None:
    """Raise DocumentError if `size` bytes are more than `max_mb` megabytes (2^20 bytes)."""
    if size > max_mb * 2**20:
        raise DocumentError(
            f"{what} is too large: {size / 2**20:.1f} MB, the limit is {max_mb:g} MB; raise max_mb, or cut it up"
        )


def decode(data: bytes, name: str) -> str:
    """Decode text: by its byte order mark, else UTF-8, else Windows Latin-1 if it looks like text.

    Raises DocumentError for what is not text: with NUL bytes, or with more than a tenth of control characters.
    """
    kind = next((what for magic, what in _MAGIC.items() if data.startswith(magic)), "")
    advice = f"{name} is not text" + (f" but {kind}" if kind else "") + ": {}; export it as UTF-8 text or PDF"
    try:
        mark, encoding = next(((mark, name) for mark, name in _BOMS if data.startswith(mark)), (b"", "utf-8"))
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if mark:
            raise DocumentError(advice.format(f"it is marked as {encoding}, and is not that")) from error
        if b"\0" in data:
            raise DocumentError(advice.format("it has NUL bytes")) from error
        if sum(data.count(byte) for byte in _LEGACY_CONTROLS) > len(data) / 10:
            raise DocumentError(advice.format("it is full of control characters")) from error
        text = data.decode("cp1252", "replace") if b"\x81" not in data else data.decode("latin-1")
    if "\0" in text:
        raise DocumentError(advice.format("it has NUL bytes"))
    if len(_CONTROLS.findall(text)) > len(text) / 10:
        raise DocumentError(advice.format("it is full of control characters"))
    return clean(text)


def clean(value: Any) -> str:
    """Return a value as text without control characters and halves of surrogates, and with \\n line ends."""
    text = value if isinstance(value, str) else "" if value is None or value is False else _joined(value)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", text).encode("utf-8", "replace").decode()


def _joined(value: Any) -> str:
    """A list of paragraphs is text too; a number is its digits; anything else is no text."""
    if isinstance(value, list):
        return "\n\n".join(clean(part) for part in value if isinstance(part, str))
    return str(value) if isinstance(value, int | float) else ""


def _line(value: Any) -> str:
    return " ".join(clean(value).split())
