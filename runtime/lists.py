"""The lists of a pipeline: what was typed after `--input`, split into parts that can be read side by side."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flatfleet.runtime.errors import SourceError
from flatfleet.runtime.sources import DOCUMENTS, ROWS, Skipped, Source, expand


def split(spec: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, list): each file of rows and each folder in `spec` is a list, and its loose documents are one together.

    A list is data: `input`, and `loose` if only the documents right at it are meant. The key has a digest of the names,
    sizes and times of its files, so that a list that has changed is another one. Raises what `expand` raises.
    """
    expand(spec)
    entries = _entries(spec)
    loose = [path for path in entries if _is(path, DOCUMENTS)]
    if loose:
        yield f"{spec}@{_digest(loose)}", {"input": spec, "loose": True}
    for path in entries:
        files = [path] if _is(path, ROWS) else _below(path) if path.is_dir() else []
        if files:
            yield f"{path}@{_digest(files)}", {"input": str(path)}


def entries(spec: str, loose: bool, fields: Mapping[str, str] | None, limit: int | None) -> Iterator[Source | Skipped]:
    """The items of a list, lazily, in a stable order; raises what `expand` raises."""
    if not loose:
        return expand(spec, limit=limit, fields=fields)
    found = [str(path) for path in _entries(spec) if _is(path, DOCUMENTS)]
    if not found:
        raise SourceError(f"{spec!r} holds no document any more")
    return expand(found, limit=limit, fields=fields)


def _entries(spec: str) -> list[Path]:
    """What stands right in a folder; the files of a glob; a file alone."""
    path = Path(os.path.abspath(Path(spec).expanduser()))  # noqa: PTH100 - `..` must go, links must stay
    if path.is_dir():
        inside = (each for each in path.iterdir() if each.name[0] != "." and not (each.is_dir() and each.is_symlink()))
        return sorted(inside)
    if path.exists():
        return [path]
    matches = glob.iglob(str(Path(spec).expanduser()), recursive=True)  # noqa: PTH207 - absolute patterns
    return sorted(Path(os.path.abspath(match)) for match in matches if not Path(match).is_dir())  # noqa: PTH100


def _below(folder: Path) -> list[Path]:
    return [
        Path(root) / name
        for root, folders, names in os.walk(folder)
        if not folders.sort()
        for name in sorted(names)
        if _is(Path(name), DOCUMENTS + ROWS)
    ]


def _is(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            about = path.stat()
        except OSError:
            continue
        digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]
