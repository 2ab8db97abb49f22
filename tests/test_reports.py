"""Reports: pleasant Markdown that no text can break out of, and files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from flatfleet.runtime import reports
from flatfleet.runtime.errors import OutputError
from flatfleet.runtime.reports import markdown, safe_name, write
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

REPORT: dict[str, Any] = {
    "title": "How cells grow", "source": "/papers/cells.pdf", "item_id": "papers-1", "summary": "They do (p < 0.05).",
    "key_points": ["Fast at first.", "Slower later [12]."], "claims": ["Food helps."], "terms": ["cell", "medium"],
    "sections": [{"heading": "Methods", "summary": "Counting."}, {"heading": "Results", "summary": "More each day."}],
    "score": 8.5, "rounds": 2, "words": 7123, "parallelism": 4, "agents": "offline",
}  # fmt: skip

PLEASANT = """\
# How cells grow

They do (p < 0.05).

## Key points

- Fast at first.
- Slower later [12].

## Claims

- Food helps.

## Terms

cell, medium

## Section by section

### Methods

Counting.

### Results

More each day.

---

Source: /papers/cells.pdf · Item: papers-1\x20\x20
7,123 words read in 4 parts · 2 rounds of review · score 8.5 of 10 · agents: offline
"""

ATTACKS = [
    "# heading", "line\n\n# heading", "Title\n===", "text\n---\n", "> quote", "- item", "+ item", "* item", "1. item",
    "1) item", "```\ncode\n```", "~~~\ncode", "    indented", "\tindented", "| a | b |\n|---|---|\n| 1 | 2 |", "***",
    "<script>alert(1)</script>", "<!-- ", "<img src=x onerror=alert(1)>", "a <b>c</b>", "<https://evil.example>",
    "[x](javascript:alert(1))", "![x](http://evil.example/t.png)", "[x][y]", "[y]: http://evil.example", "[x\\](y)",
    "`code`", "``", "*em* **strong** _em_ __strong__ ~~gone~~", "\\# x", "\\\\`a`", "&lt;b&gt; &#35; &amp;",
    "a\u2028# b", "a\x85# b", "a\x0b# b", "\u202etxt.exe", "title #", "title ##", "!\\[x](y)", "<\\script>",
    "{{ 7*7 }}", "ends in \\",
]  # fmt: skip


def shape(text: str) -> list[tuple[str, list[str]]]:
    """Return the blocks and the inline elements of a Markdown text, as a parser sees them."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [(token.type, [c.type for c in token.children or () if c.type != "text"]) for token in parser.parse(text)]


def filled(text: str) -> dict[str, Any]:
    return {
        **REPORT, "title": text, "source": text, "item_id": text, "summary": text, "key_points": [text],
        "claims": [text], "terms": [text], "sections": [{"heading": text, "summary": text}], "agents": text,
    }  # fmt: skip


def seen(text: str) -> str:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    summary = next(token for i, token in enumerate(parser.parse(text)) if token.type == "inline" and i > 2)
    return "".join(child.content for child in summary.children or ())


def test_a_report_reads_well() -> None:
    assert markdown(REPORT) == PLEASANT


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_cannot_leave_its_place(attack: str) -> None:
    result = markdown(filled(attack))
    assert shape(result) == shape(markdown(filled("harmless")))
    expected = " ".join(attack.replace("\u202e", "").split())
    assert seen(result) == expected


@given(st.text(alphabet="ab1 \n\t#|`~<>[]()!*_-+=&;:\\.'\"/\u2028{}$@^", min_size=1, max_size=40))
@example("a\n\n\n===")
def test_no_text_at_all_can_leave_its_place(text: str) -> None:
    result = markdown(filled(f"x{text}y"))
    assert shape(result) == shape(markdown(filled("harmless")))
    assert seen(result) == " ".join(f"x{text}y".split())
    if text.strip():
        assert shape(markdown(filled(text)))[:6] == shape(markdown(filled("harmless")))[:6]


def test_what_is_missing_or_odd_is_survived() -> None:
    assert markdown({}) == "# Untitled\n\n*No summary was made.*\n"
    odd = {"title": None, "summary": ["a", "b"], "key_points": "one", "claims": [{"claim": "x", "page": 3}, "", None],
           "sections": ["loose", {}, {"heading": "H"}], "score": "high", "rounds": float("nan"), "words": True,
           "notes": ["1 of 6 pages could not be read (2)"]}  # fmt: skip
    text = markdown(odd)
    for expected in ("\n\na b\n", "- one\n", "- x — 3\n", "### Text\n\nloose\n", "### H\n", "could not be read"):
        assert expected in text
    assert "nan" not in text
    assert "score" not in text


def test_write_and_write_again(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "reports"
    paths = write(folder, "cells", REPORT)
    assert paths == {"json": str(folder / "cells.json"), "markdown": str(folder / "cells.md")}
    assert json.loads(Path(paths["json"]).read_text()) == REPORT
    assert Path(paths["markdown"]).read_text() == PLEASANT
    write(folder, "cells", {**REPORT, "title": "half \ud800", "score": float("nan")})
    again = json.loads(Path(paths["json"]).read_text())
    assert (again["title"], again["score"]) == ("half \ud800", None)
    assert Path(paths["markdown"]).read_text().startswith("# half ?")
    assert sorted(path.name for path in folder.iterdir()) == ["cells.json", "cells.md"]


@pytest.mark.parametrize("name", ["cells", "10.7554 eLife.00005", "Größe-1", "a" * 120])
def test_harmless_names_stay(name: str) -> None:
    assert safe_name(name) == name


@given(
    st.text(max_size=200)
    | st.sampled_from(["", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "a\0b", ".a", "ä" * 80])
)
def test_any_name_is_made_safe(name: str) -> None:
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= 120
    assert not safe.startswith(".")
    assert not set(safe) & set('/\\\0:*?"<>|\n')
    assert Path("folder", safe).name == safe


def test_changed_names_stay_apart(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a\\b", "a:b", "x" * 130, "x" * 131, "../x", ""]
    assert len({safe_name(name) for name in names}) == len(names)
    paths = write(tmp_path / "in", "../../x", REPORT)
    assert all(Path(path).parent == tmp_path / "in" for path in paths.values())


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(OutputError, match=r"cannot write the report 'a' to .*name a folder"):
            write(folder, "a", REPORT)


def test_a_broken_write_leaves_the_old_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a", REPORT)

    def refuse(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports.os, "replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write(tmp_path, "a", {**REPORT, "title": "new"})
    monkeypatch.setattr(reports.os, "replace", os.replace)
    assert json.loads((tmp_path / "a.json").read_text()) == REPORT
    assert len(list(tmp_path.iterdir())) == 2
