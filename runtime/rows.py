"""Rows of a JSONL file, plain or gzipped: streamed, checked one by one, and given a key."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.stores.keys import check_capabilities

MAX_ROW = 64 * 2**20
_CHUNK = 2**20
_TYPES = {list: "an array", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


class BadRow(ValueError):
    """A row that cannot become an item. The message says why; the rows after it are not touched by that."""


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Yield (line number from 1, the row as a dict, or the BadRow that says what is wrong with it).

    Whether the file is gzipped is seen from its first bytes, not from its name. Blank lines are passed over; a
    bare string becomes `{"text": string}`. Memory is bounded by one row of at most `MAX_ROW` bytes; a longer one
    is passed over. A file that breaks off or turns out corrupt ends with one BadRow. Raises nothing.
    """
    line = 0
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if zipped else raw
            while content := stream.readline(MAX_ROW + 1):
                line += 1
                if line == 1 and content.startswith((b"\xff\xfe", b"\xfe\xff")):
                    yield line, BadRow("the file is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8")
                    return
                if len(content) > MAX_ROW and not content.endswith(b"\n"):
                    _pass_over(stream)
                    yield line, BadRow(f"the row is longer than {MAX_ROW / 2**20:.0f} MB")
                elif stripped := content.removeprefix(b"\xef\xbb\xbf" if line == 1 else b"").strip():
                    yield line, _parse(stripped)
    except EOFError:
        yield line + 1, BadRow("the gzip file breaks off here, so the rest is lost; fetch it again")
    except (gzip.BadGzipFile, zlib.error) as error:
        yield line + 1, BadRow(f"the gzip file is corrupt from here on ({error}), so the rest is lost; fetch it again")
    except OSError as error:
        yield line + 1, BadRow(f"reading stopped here: {error.strerror or error}")


def row_key(row: Mapping[str, Any], file_name: str = "") -> str:
    """Return the row's own `key`, `id` or `doi`; else, with a file name, `{name}#{hash of the row}`; else ''."""
    for name in ("key", "id", "doi"):
        value = row.get(name)
        if isinstance(value, int | float | str) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    if not file_name:
        return ""
    canonical = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return f"{file_name}#{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def row_requires(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row's `requires` says, if it has one: a list of capabilities, or one text with commas; raises BadRow."""
    given = row.get("requires")
    if given is None:
        return ()
    if not isinstance(given, str | list):
        raise BadRow(f"its field 'requires' is {_TYPES.get(type(given), 'an object')}: it takes a list of capabilities")
    try:
        return check_capabilities(given, "its field 'requires'")
    except UsageError as error:
        raise BadRow(str(error)) from None


def parse_fields(text: str) -> dict[str, str]:
    """Parse `text=body,title=meta.title` into `{"text": "body", "title": "meta.title"}`.

    Raises UsageError for a part without `=`, an empty or dotted target, an empty step of a source, or a repetition.
    """
    example = "expected target=source pairs such as text=body,title=meta.title"
    fields: dict[str, str] = {}
    for part in text.split(","):
        target, equals, source = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"fields: {part.strip()!r} has no '=' — {example}")
        if not target or "." in target:
            raise UsageError(f"fields: {target!r} in {part.strip()!r} is no plain field name — {example}")
        if not all(source.split(".")):
            raise UsageError(f"fields: {source!r} in {part.strip()!r} names no field — {example}")
        if target in fields:
            raise UsageError(f"fields: {target!r} is set twice, from {fields[target]!r} and from {source!r}")
        fields[target] = source
    return fields


def with_fields(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of the row in which each target holds what its source names; raises BadRow if one is missing."""
    return {**row, **{target: _walk(row, source) for target, source in fields.items()}}


def _walk(row: Mapping[str, Any], source: str) -> Any:
    if source in row:
        return row[source]
    value: Any = row
    for step in source.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            known = ", ".join(sorted(map(str, value))[:12]) if isinstance(value, Mapping) else ""
            raise BadRow(f"it has no field {source!r}" + (f" (there: {known})" if known else ""))
    return value


def _parse(content: bytes) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(content.decode(), parse_constant=_no_constant)
        if b"\\u" in content:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 (byte {error.start + 1} of the row)")
    except UnicodeEncodeError:
        return BadRow("it holds half of a surrogate pair (\\ud800 … \\udfff), which is no text")
    except RecursionError:
        return BadRow("it is nested too deeply")
    except BadRow as bad:
        return bad
    except ValueError as error:
        return BadRow(f"not JSON: {error}" if content[:1] != b"[" else "not JSON on one line; use: jq -c '.[]'")
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, dict):
        return row
    return BadRow(f"a row must be an object or a string, got {_TYPES[type(row)]}")


def _no_constant(name: str) -> NoReturn:
    raise BadRow(f"not JSON: {name} is no JSON value, write null")


def _pass_over(stream: io.BufferedIOBase) -> None:
    """Read on to the end of the line, in bounded pieces."""
    while (piece := stream.readline(_CHUNK)) and not piece.endswith(b"\n"):
        pass
