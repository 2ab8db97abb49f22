"""What a user types after `--input`, turned into work items: folders, globs, documents and JSONL rows.

Nothing is opened before it is needed and nothing is read whole: a 10 GB JSONL streams row by row.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatfleet.runtime.errors import SourceError, UsageError, did_you_mean
from flatfleet.runtime.rows import BadRow, parse_fields, read_rows, row_key, row_requires, with_fields

__all__ = ["Skipped", "Source", "expand", "parse_fields"]

DOCUMENTS = (".txt", ".md", ".markdown", ".pdf")
ROWS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
SUPPORTED = f"supported are {' '.join(DOCUMENTS)} (one item each) and {' '.join(ROWS)} (one item a row)"
_HINTS = {
    ".json": " — turn a JSON array into rows with: jq -c '.[]' in.json > out.jsonl",
    ".csv": " — turn a CSV table into .jsonl, one object a row",
    ".docx": " — export it as PDF or plain text",
    ".doc": " — export it as PDF or plain text",
    ".html": " — save it as PDF or plain text",
}


@dataclass(frozen=True)
class Source:
    """One work item: the key that makes it unique, the data that its task gets, and the capabilities that it requires."""

    key: str
    data: dict[str, Any]
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """One file or row that did not become an item: where it stands (`file.jsonl:17`), and why not."""

    where: str
    why: str


@dataclass(frozen=True)
class _Found:
    """A file that a spec leads to, with the name under which messages mention it."""

    path: Path
    label: str


def expand(
    spec: str | Sequence[str], *, limit: int | None = None, fields: Mapping[str, str] | None = None
) -> Iterator[Source | Skipped]:
    """Return the items behind one or several specs, lazily, in a stable order.

    A spec is a folder (recursive and sorted; hidden names and linked folders are left out), a glob (`**` works) or
    a file; `~` expands. A document becomes `{"path": absolute path, "name": stem}` with the path as its key; a row
    becomes an item whose key is its `key`, `id` or `doi`, else `{file name}#{hash of the row}`, for workers that offer
    what its `requires` names. `fields` sets `target=source` in each first. At most `limit` sources come, and any skips.

    Every spec is checked before this returns: raises SourceError for one that is not there, not supported, not readable
    or without a supported file, UsageError for a negative `limit`. The iterator raises SourceError if it found nothing.
    """
    if limit is not None and limit < 0:
        raise UsageError(f"the limit of items must be 0 or more, got {limit}")
    specs = [spec] if isinstance(spec, str) else list(spec)
    if not specs:
        raise SourceError(f"no input was given; name a folder, a glob or a file — {SUPPORTED}")
    found = [_find(one) for one in specs]
    return _items(found, ", ".join(specs), limit, dict(fields or {}))


def _find(spec: str) -> Iterator[_Found | Skipped]:
    """Check one spec and return its files, lazily for a folder."""
    if not spec.strip() or "\0" in spec:
        raise SourceError(f"the input {spec!r} is no path; name a folder, a glob or a file — {SUPPORTED}")
    typed = str(Path(spec).expanduser()) if spec.startswith("~") else spec
    path = Path(os.path.abspath(typed))  # noqa: PTH100 - `..` must go, links must stay: one file, one key
    try:
        if path.is_dir():
            return _folder(spec, path)
        if path.exists():
            return iter([_file(spec, path)])
        if glob.has_magic(typed):
            return _matches(spec, typed)
    except PermissionError as error:
        raise SourceError(f"no permission to look at {spec!r}; check its folder's mode, or run as its owner") from error
    except OSError as error:
        raise SourceError(f"{spec!r} cannot be used as an input: {error.strerror}") from error
    raise SourceError(_missing(spec, path))


def _file(spec: str, path: Path) -> _Found:
    if not path.is_file():
        raise SourceError(f"{spec!r} is neither a file nor a folder; save it to a file first — {SUPPORTED}")
    if not _suffix(path.name):
        hint = _HINTS.get(path.suffix.lower(), "")
        raise SourceError(f"{spec!r} is not a supported file ({path.suffix or 'no suffix'}): {SUPPORTED}{hint}")
    if not os.access(path, os.R_OK):
        raise SourceError(f"no permission to read {spec!r}; change its mode (chmod +r) or run as its owner")
    return _Found(path, path.name)


def _folder(spec: str, root: Path) -> Iterator[_Found | Skipped]:
    if not os.access(root, os.R_OK | os.X_OK):
        raise SourceError(f"no permission to list the folder {spec!r}; change its mode or run as its owner")
    if not any(isinstance(entry, _Found) and _suffix(entry.path.name) for entry in _walk(root)):
        raise SourceError(_nothing(f"the folder {spec!r}", (e.path for e in _walk(root) if isinstance(e, _Found))))
    return (entry for entry in _walk(root) if isinstance(entry, Skipped) or _suffix(entry.path.name))


def _walk(root: Path) -> Iterator[_Found | Skipped]:
    """Yield every file below `root`, each folder in the order of its names, without recursion or open handles."""
    stack: list[tuple[str, bool]] = [(str(root), True)]
    while stack:
        path, is_folder = stack.pop()
        label = os.path.relpath(path, root)
        if not is_folder:
            yield _Found(Path(path), label)
            continue
        try:
            with os.scandir(path) as entries:
                names = sorted((e.name, e.path, e.is_dir(follow_symlinks=False), e.is_dir()) for e in entries)
        except OSError as error:
            yield Skipped(label, f"the folder cannot be listed: {error.strerror}")
            continue
        stack += [
            (full, folder)
            for name, full, folder, leads_to_folder in reversed(names)
            if not name.startswith(".") and folder == leads_to_folder
        ]


def _matches(spec: str, pattern: str) -> Iterator[_Found | Skipped]:
    found = sorted(Path(match) for match in glob.iglob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns
    files = [match for match in found if not match.is_dir()]
    if usable := [match for match in files if _suffix(match.name)]:
        return (_Found(Path(os.path.abspath(match)), str(match)) for match in usable)  # noqa: PTH100
    if files:
        raise SourceError(_nothing(f"the glob {spec!r}", files))
    if found:
        raise SourceError(
            f"the glob {spec!r} matches {len(found)} folders and no file; end it in /**/* to go into them"
        )
    fixed = Path(os.path.abspath(pattern[: min(map(pattern.find, filter(pattern.__contains__, "*?[")))] + "x")).parent  # noqa: PTH100
    parent = next(folder for folder in (fixed, *fixed.parents) if folder.is_dir())
    wrong = fixed.relative_to(parent).parts[:1] or (Path(pattern).name,)
    raise SourceError(f"nothing matches the glob {spec!r}{_near(parent, wrong[0])}")


def _nothing(what: str, files: Iterable[Path]) -> str:
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    seen = ", ".join(f"{number} {suffix}" for suffix, number in counts.most_common(8)) or "nothing"
    hint = next((_HINTS[suffix] for suffix, _ in counts.most_common() if suffix in _HINTS), "")
    return f"{what} holds no supported file (found: {seen}); {SUPPORTED}{hint}"


def _missing(spec: str, path: Path) -> str:
    if "://" in spec:
        return f"{spec!r} is an address, and nothing is downloaded; fetch it first and name the file — {SUPPORTED}"
    parent = next(folder for folder in path.parents if folder.is_dir())
    return f"there is no file or folder {spec!r}{_near(parent, path.relative_to(parent).parts[0])}"


def _near(folder: Path, name: str) -> str:
    """Say which names in `folder` are closest to `name`: a handful, for a folder may hold thousands."""
    try:
        found = sorted(e.name + "/" * e.is_dir() for e in folder.iterdir() if e.is_dir() or _suffix(e.name))
    except OSError:
        return f"; {folder} cannot be listed"
    names = [entry for entry in found if not entry.startswith(".")]
    known = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:5]
    more = f" (and {len(names) - len(known)} more)" if len(names) > len(known) else ""
    return f" (looked in {folder})" + (did_you_mean(name, known) or " — nothing there is supported") + more


def _suffix(name: str) -> str:
    """Return the supported suffix of a file name, or an empty string."""
    lower = name.lower()
    return next((suffix for suffix in ROWS + DOCUMENTS if lower.endswith(suffix)), "")


def _items(
    found: Iterable[Iterator[_Found | Skipped]], specs: str, limit: int | None, fields: dict[str, str]
) -> Iterator[Source | Skipped]:
    if limit == 0:
        return
    first: dict[bytes, int] = {}  # digest of a key -> number of its file and line: 10 million rows must fit
    labels: list[str] = []
    sources = skips = 0
    for entry in (entry for files in found for entry in files):
        labels.append("" if isinstance(entry, Skipped) else entry.label)
        for line, opened in _open(entry, fields):
            item = opened
            if isinstance(item, Source):
                digest = hashlib.blake2b(item.key.encode(), digest_size=16).digest()
                place = first.setdefault(digest, here := len(labels) << 40 | line)
                if place == here:
                    sources += 1
                    yield item
                    if sources == limit:
                        return
                    continue
                before = _where(labels[(place >> 40) - 1], place & (1 << 40) - 1)
                item = Skipped(_where(labels[-1], line), f"the key {item.key[:120]!r} was already seen in {before}")
            skips += 1
            yield item
    if not sources and not skips:
        raise SourceError(f"{specs!r} holds no row; a row is one JSON object a line")


def _where(label: str, line: int) -> str:
    return f"{label}:{line}" if line else label


def _open(entry: _Found | Skipped, fields: dict[str, str]) -> Iterator[tuple[int, Source | Skipped]]:
    """Yield the items of one file, each with its line (0: the file itself)."""
    if isinstance(entry, Skipped):
        yield 0, entry
        return
    path, label = entry.path, entry.label
    if any("\ud800" <= char <= "\udfff" for char in str(path)):
        yield 0, Skipped(ascii(label)[1:-1], "its name is not UTF-8; rename the file")
    elif not path.is_file() or not os.access(path, os.R_OK):
        yield 0, Skipped(label, "it cannot be read; check its mode, or where its link leads")
    elif _suffix(path.name) in ROWS:
        for line, row in read_rows(path):
            yield line, _source(row, fields, _where(label, line), path.name)
    else:
        item = _source({"path": str(path), "name": path.stem}, fields, label, path.name)
        yield 0, Source(str(path), item.data, item.requires) if isinstance(item, Source) else item


def _source(row: dict[str, Any] | BadRow, fields: dict[str, str], where: str, name: str) -> Source | Skipped:
    try:
        if isinstance(row, BadRow):
            raise row
        data = with_fields(row, fields)
        return Source(row_key(data) or row_key(data, name), data, row_requires(data))
    except BadRow as bad:
        return Skipped(where, str(bad))
