"""Reports: what a task found out about one item, as JSON for programs and as Markdown for people.

The text comes from documents and models, so none of it is trusted: in the Markdown it can neither open a block, a
link, an image or HTML, nor leave its line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flatfleet.runtime.errors import OutputError

_NAME_BYTES = 120
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_LEADING = re.compile(r"(?:[#>|=~:+-]|\d{1,9}(?=[.)](?:\s|$)))")


def markdown(report: Mapping[str, Any]) -> str:
    """Render a report as Markdown: title, summary, what is missing, key points, claims, terms, notes by section, provenance.

    Fields that are missing or empty leave no trace, and fields of another type are shown as well as can be.
    """
    blocks = [f"# {_text(report.get('title')) or 'Untitled'}"]
    summary = _text(report.get("summary"))
    blocks.append(summary or "*No summary was made.*")
    for heading, name in (("Missing", "missing"), ("Key points", "key_points"), ("Claims", "claims")):
        lines = [f"- {line}" for line in _lines(report.get(name))]
        if lines:
            blocks += [f"## {heading}", "\n".join(lines)]
    terms = ", ".join(term.rstrip(".,;") for term in _lines(report.get("terms")))
    if terms:
        blocks += ["## Terms", terms]
    notes = [pair for section in _list(report.get("sections")) if any(pair := _section(section))]
    if notes:
        blocks.append("## Section by section")
        for heading, note in notes:
            blocks += [f"### {heading or 'Text'}", note or "*Nothing was noted.*"]
    footer = _provenance(report)
    if footer:
        blocks += ["---", footer]
    return "\n\n".join(blocks) + "\n"


def of_draft(task: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a task's refined `draft`: what was found out, and what it was made from."""
    item, draft = task["item"], task["draft"]
    return {
        "title": task["title"],
        "source": item.get("path") or item.get("doi") or item.get("id") or task["item_id"],
        "summary": draft.get("summary", ""),
        **{name: draft.get(name, []) for name in ("key_points", "claims", "terms", "sections")},
        "score": task.get("score"),
        "rounds": task["rounds"],
        "words": task["words"],
        "parallelism": len(task["parts"]),
        "item_id": task["item_id"],
    }


def write(folder: Path, name: str, report: Mapping[str, Any]) -> dict[str, str]:
    """Write `{name}.json` and `{name}.md`, each atomically, and return `{"json": path, "markdown": path}`.

    The folder is made if need be. A name that cannot be a file name is changed, and a hash of it keeps it unique.
    The JSON is replaced last, so where it is new the Markdown is. Raises OutputError if the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    safe = safe_name(name)
    contents = {
        "markdown": (folder / f"{safe}.md", markdown(report).encode("utf-8", "replace")),
        "json": (folder / f"{safe}.json", _json(report)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.values():
            _replace(path, content)
    except OSError as error:
        raise OutputError(
            f"cannot write the report {safe!r} to {folder}: {error.strerror or error}; "
            "name a folder that exists or can be made, with space in it and permission to write"
        ) from error
    return {kind: str(path) for kind, (path, _) in contents.items()}


def safe_name(name: str) -> str:
    """Return `name` if it is a harmless file name of at most 120 bytes; else one made of it, with its hash."""
    safe = re.sub(r"[^\w.,=+@() -]+", "_", name).lstrip(". ").rstrip(". ")
    if safe == name and len(safe.encode()) <= _NAME_BYTES and safe:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    kept = safe.encode("utf-8", "replace")[: _NAME_BYTES - 13].decode("utf-8", "ignore").strip("_. ")
    return f"{kept or 'report'}-{digest}"


def _json(report: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(report, ensure_ascii=False, indent=2, default=str, allow_nan=False)
    except ValueError:  # NaN and infinity are not JSON
        finite = json.loads(json.dumps(report, default=str), parse_constant=lambda _: None)
        text = json.dumps(finite, ensure_ascii=False, indent=2)
    return (text + "\n").encode("utf-8", "backslashreplace")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def _text(value: Any) -> str:
    """Return a value as one line of Markdown that shows it as it is."""
    if isinstance(value, Mapping):
        value = " — ".join(str(part) for part in value.values() if part not in (None, ""))
    elif isinstance(value, list | tuple):
        value = " ".join(str(part) for part in value)
    line = " ".join(_INVISIBLE.sub("", "" if value is None else str(value)).split())
    line = re.sub(r"\\(?=[!-/:-@\[-`{-~]|$)|[`*]", r"\\\g<0>", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=~)~", r"\\\g<0>", line)
    line = re.sub(r"\](?=[(\[:])|!(?=\[)|(?<= )#(?=#*$)", r"\\\g<0>", line)
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line)
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    leading = _LEADING.match(line)
    if leading:
        digits = leading[0] if leading[0].isdecimal() else ""
        line = f"{digits}\\{line[len(digits) :]}"
    return line


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _lines(value: Any) -> Iterable[str]:
    return [line for line in map(_text, _list(value)) if line]


def _section(section: Any) -> tuple[str, str]:
    if isinstance(section, Mapping):
        return _text(section.get("heading")), _text(section.get("summary"))
    return "", _text(section)


def _provenance(report: Mapping[str, Any]) -> str:
    """Say in one or two lines where the report comes from and how it was made."""
    made = []
    words, parts, rounds, score = (_number(report.get(name)) for name in ("words", "parallelism", "rounds", "score"))
    if words is not None:
        made.append(f"{words:,.0f} words" + (f" read in {_count(parts, 'part')}" if parts else ""))
    if rounds is not None:
        made.append(_count(rounds, "round") + " of review")
    if score is not None:
        made.append(f"score {score:g} of 10")
    if report.get("agents"):
        made.append(f"agents: {_text(report['agents'])}")
    where = [f"{label}: {_text(report[name])}" for label, name in (("Source", "source"), ("Item", "item_id"))
             if report.get(name)]  # fmt: skip
    notes = " ".join(_lines(report.get("notes")))
    return "  \n".join(line for line in (" · ".join(where), " · ".join(made), notes) if line)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e15 else None


def _count(number: float, noun: str) -> str:
    return f"{number:,.0f} {noun}" + "s" * (number != 1)
