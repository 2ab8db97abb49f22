"""Documents: every format is read into sections, every fault is a DocumentError with advice, split loses nothing."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pypdf
import pytest
from flatfleet.runtime.documents import Document, Section, pdf, read, split
from flatfleet.runtime.documents import core as documents
from flatfleet.runtime.errors import DocumentError, UsageError
from hypothesis import given
from hypothesis import strategies as st
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

Lines = Sequence[str | tuple[int, str]]
PROSE = "The cells were grown in a medium that holds all that they need, and were counted once a day."


def make_pdf(pages: Sequence[Lines], password: str | None = None, title: str = "") -> bytes:
    """Write a PDF whose pages hold the given lines, each a text or (font size, text)."""
    writer = pypdf.PdfWriter()
    font = DictionaryObject(
        {NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
         NameObject("/BaseFont"): NameObject("/Helvetica")}
    )  # fmt: skip
    for lines in pages:
        page = writer.add_blank_page(612, 792)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        stream = DecodedStreamObject()
        sized = [line if isinstance(line, tuple) else (10, line) for line in lines]
        escaped = [(size, text.replace("(", r"\(").replace(")", r"\)")) for size, text in sized]
        shown = " ".join(
            f"/F1 {size} Tf 1 0 0 1 50 {770 - 16 * i} Tm ({text}) Tj" for i, (size, text) in enumerate(escaped)
        )
        stream.set_data(f"BT {shown} ET".encode("latin-1"))
        page[NameObject("/Contents")] = stream
    if title:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def put(path: Path, content: str | bytes) -> dict[str, str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {"path": str(path), "name": path.stem}


def outline(document: Document) -> list[tuple[str, str]]:
    return [(section.title, section.text) for section in document.sections]


def test_rows_with_sections() -> None:
    row = {
        "title": " A  paper\n", "abstract": "Short.", "text": "ignored",
        "sections": [{"title": "None", "depth": 1, "text": ""}, {"title": "One", "text": "a {{ 7*7 }} b\r\nc"}, "end"],
    }  # fmt: skip
    document = read(row)
    assert document == Document("A paper", [Section("One", "a {{ 7*7 }} b\nc"), Section("", "end")], "Short.")
    assert document.words == 7 + 1


@pytest.mark.parametrize("field", ["text", "body", "content"])
def test_rows_with_a_text(field: str) -> None:
    assert read({field: "My title\n\nAnd the text."}) == Document("My title", [Section("", "And the text.")])
    assert read({field: "One. Two.", "title": "T", "path": "/nowhere"}) == Document("T", [Section("", "One. Two.")])
    assert outline(read({field: "only one line"})) == [("", "only one line")]
    assert read({field: "word " * 100}).title == "word " * 9 + "word …"
    assert read({field: ["a", "b"], "title": 7}) == Document("7", [Section("", "a\n\nb")])
    assert read({"abstract": "All there is."}) == Document("All there is.", [], "All there is.")
    assert read({field: "half \ud800 \x00\x1b[31m red", "title": "T"}).sections[0].text == "half ? [31m red"


@pytest.mark.parametrize(
    "item", [{}, {"text": " \n"}, {"id": 3, "path": ""}, {"path": 7}, {"sections": [{"text": ""}]}]
)
def test_items_without_a_document(item: dict[str, Any]) -> None:
    with pytest.raises(DocumentError, match="empty: the item has no text and no path"):
        read(item)


def test_plain_text(tmp_path: Path) -> None:
    text = f"""

My study of cells

INTRODUCTION

{PROSE}

2.1 How it was done

{PROSE}
3. Not a heading, for there is text around it
RESULTS

Buy:

1. Milk

2. Bread

NASA

"""
    document = read(put(tmp_path / "a.txt", text))
    assert document.title == "My study of cells"
    assert [title for title, _ in outline(document)] == ["INTRODUCTION", "2.1 How it was done"]
    assert document.sections[1].text.split()[-6:] == ["Buy:", "1.", "Milk", "2.", "Bread", "NASA"]
    wrapped = read(put(tmp_path / "b.txt", "It was the best of times,\nit was the worst of times."))
    assert outline(wrapped) == [("", "It was the best of times,\nit was the worst of times.")]
    assert read(put(tmp_path / "c.txt", "Title\n=====\nAbstract\n\nIn short.\n")).title == "Title"


def test_markdown(tmp_path: Path) -> None:
    text = """---
title: "From the front"
tags: [a]
---
Opening words.

# The *real* title #

After it.

```python
# not a heading
~~~
```
## Methods ##
Text `# x`.

Results
-------
- a
---
#hashtag

# Second H1
End.
"""
    document = read(put(tmp_path / "a.md", text))
    assert document.title == "The *real* title"
    assert [title for title, _ in outline(document)] == ["", "", "Methods", "Results", "Second H1"]
    assert "# not a heading" in document.sections[1].text
    assert document.sections[3].text == "- a\n---\n#hashtag"
    assert read(put(tmp_path / "b.md", "---\ntitle: Front\n---\nText")).title == "Front"
    assert outline(read(put(tmp_path / "c.md", "---\nA rule, no front matter.\n---\n")))[0][1].startswith("---")
    assert outline(read(put(tmp_path / "d.md", "# Only a title"))) == [("", "# Only a title")]
    abstract = read(put(tmp_path / "e.md", "# T\n## Abstract\nShort.\n## Rest\nLong."))
    assert (abstract.abstract, outline(abstract)) == ("Short.", [("Rest", "Long.")])


@pytest.mark.parametrize(
    "data",
    ["\ufeffGrüße, “Welt”".encode(), "Grüße, “Welt”".encode("utf-16"), "\ufeffGrüße, “Welt”".encode("utf-16-be"),
     "Grüße, “Welt”".encode("utf-32"), "Grüße, “Welt”".encode("cp1252")],
)  # fmt: skip
def test_encodings(tmp_path: Path, data: bytes) -> None:
    assert read(put(tmp_path / "a.txt", data)).title == "Grüße, “Welt”"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", r"is empty \(0 bytes\)"),
        ("a.pdf", b"", r"is empty \(0 bytes\)"),
        ("a.md", b" \n\t", "is empty"),
        ("a.txt", "\ufeff \u2003".encode(), "only white space"),
        ("a.txt", b"text\0text", "not text: it has NUL bytes"),
        ("a.md", b"PK\x03\x04\x14\0\xff", "a ZIP or Office file"),
        ("a.txt", bytes(range(1, 32)) * 9, "full of control characters"),
        ("a.txt", bytes(range(128, 160)) * 9, "full of control characters"),
        ("a.txt", b"\xff\xfeabc", "it is marked as utf-16-le"),
        ("a.txt", b"x" * 3_000_000, r"too large: 2.9 MB, the limit is 2 MB; raise max_mb"),
        ("a.pdf", b"<!DOCTYPE html><p>Sign in", "not a PDF: it begins with .*DOCTYPE"),
        ("a.pdf", b"%PDF-1.7\nnothing", "damaged PDF .*fetch it again"),
        ("a.pdf", make_pdf([[PROSE]])[:300], "damaged PDF"),
        ("a.pdf", make_pdf([[], []]), r"without a text layer \(2 pages.*ocrmypdf"),
        ("a.pdf", make_pdf([[PROSE]], password="secret"), "an encrypted PDF; remove its password"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, data: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DocumentError, match=message) as caught:
        read(put(tmp_path / name, data), max_mb=2)
    assert caught.value.permanent
    assert capfd.readouterr() == ("", "")


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in [(tmp_path / "gone.txt", "missing; it was moved"), (tmp_path, "is a folder"),
                          (tmp_path / "pipe", "no regular file"), ("a\0b", "cannot be opened"),
                          ("x" * 5000, "cannot be opened")]:  # fmt: skip
        with pytest.raises(DocumentError, match=message):
            read({"path": str(path)})

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    item = put(tmp_path / "a.txt", "text")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DocumentError, match=r"no permission to read .*chmod"):
        read(item)


def test_too_large_a_row() -> None:
    with pytest.raises(DocumentError, match="the text is too large"):
        read({"text": "word " * 300_000}, max_mb=1)


def paper_pages() -> list[Lines]:
    filler = [f"{PROSE} {word}" for word in ("North", "South", "East", "West", "Up", "Down", "Left", "Right")]
    footer = "Someone et al. (2024). A paper. J. Sci., 6(66)."
    return [
        ["J. Sci. 6 (2024)", (18, "How Cells Grow"), "A. Author and B. Author", (14, "Abstract"), "In short, they do.",
         "1 Introduction", "A self-guided or self-", "guided tour of documenta-", "tion.", *filler, footer, "1"],
        ["J. Sci. 6 (2024)", *filler, (13, "What we did"), *filler, footer, "2"],
        ["J. Sci. 6 (2024)", "CONCLUSIONS", "They grow (fast).", *filler, "References", "[1] Nobody (1999).",
         *[f"[{i}] Some body of work." for i in range(2, 12)], footer, "3"],
    ]  # fmt: skip


def test_a_pdf_paper_reads_as_text(tmp_path: Path) -> None:
    document = read(put(tmp_path / "a.pdf", make_pdf(paper_pages())))
    assert document.title == "How Cells Grow"
    assert document.abstract == "In short, they do."
    assert [title for title, _ in outline(document)] == ["Introduction", "What we did", "Conclusions"]
    text = " ".join(text for _, text in outline(document))
    assert "self-guided tour of documentation." in text
    assert not any(word in text for word in ("Nobody", "J. Sci.", "Author"))
    assert read(put(tmp_path / "b.pdf", make_pdf(paper_pages(), title="In the metadata"))).title == "In the metadata"
    junk = make_pdf(paper_pages(), title="Microsoft Word - final.docx")
    assert read(put(tmp_path / "c.pdf", junk)).title == "How Cells Grow"
    locked = make_pdf(paper_pages(), password="")
    assert read(put(tmp_path / "owner-password-only.pdf", locked)).title == "How Cells Grow"
    assert outline(read(put(tmp_path / "d.pdf", make_pdf([["Hello world"]])))) == [("", "Hello world")]
    assert read(put(tmp_path / "no-suffix", make_pdf([["Hello world"]]))).title == "Hello world"


def test_absurd_pdfs_are_cut_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = put(tmp_path / "a.pdf", make_pdf([[f"{PROSE} {i}" for i in range(30)]] * 6))
    monkeypatch.setattr(pdf, "MAX_PAGES", 3)
    document = read(item)
    assert document.notes == ["only the first 3 of 6 pages were read"]
    monkeypatch.setattr(pdf, "MAX_PAGES", 2000)
    _, _, notes = pdf.read_pdf(Path(item["path"]).read_bytes(), "a.pdf", max_mb=0.007)
    assert notes == ["only the first 2 of 6 pages were read: their text fills max_mb (0.007 MB)"]

    whole = pdf._page
    broken = iter([False, True, False, False, False, False])

    def page(page: pypdf.PageObject) -> Any:
        if next(broken):
            raise KeyError("/Oops")
        return whole(page)

    monkeypatch.setattr(pdf, "_page", page)
    assert read(item).notes == ["1 of 6 pages could not be read (2)"]


@given(st.data())
def test_damaged_pdfs_never_raise_anything_else(data: st.DataObject) -> None:
    content = bytearray(make_pdf(paper_pages()[:1]))
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        document = documents._file_content(bytes(content), "a.pdf", 1)
    except DocumentError as error:
        assert "a.pdf" in str(error)
    else:
        assert document.words >= 0


def test_pypdf_stays_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = make_pdf(paper_pages()).replace(b"startxref\n", b"startxref\n9")
    with caplog.at_level(logging.DEBUG):
        read(put(tmp_path / "a.pdf", damaged))
        assert not caplog.records
        logging.getLogger("pypdf").setLevel(logging.WARNING)
        read(put(tmp_path / "b.pdf", damaged))
        assert caplog.records, "pypdf has something to say about this file"
    logging.getLogger("pypdf").setLevel(logging.NOTSET)


words = st.text(alphabet="abcXYZ.,!?;äß中。 {}-*\n\t", min_size=0, max_size=400)


@given(st.lists(st.tuples(st.sampled_from(["", "Methods", "Results"]), words), max_size=6), st.integers(1, 9), words)
def test_split_keeps_every_word_in_order(sections: list[tuple[str, str]], parts: int, abstract: str) -> None:
    document = Document("T", [Section(*section) for section in sections], abstract)
    pieces = split(document, parts)
    assert len(pieces) <= parts
    assert all(piece["text"].strip() for piece in pieces)
    assert [(piece["index"], piece["of"]) for piece in pieces] == [(i, len(pieces)) for i in range(len(pieces))]
    everything = "".join(abstract.split()) + "".join("".join(text.split()) for _, text in sections)
    assert "".join("".join(piece["text"].split()) for piece in pieces) == everything


def test_split_cuts_where_a_reader_would() -> None:
    sentence = "Smith et al. Found in Fig. 3 that it grows by e.g. A lot of 3.5 units. "
    by_section = Document("T", [Section("One", sentence * 10), Section("Two", sentence * 11)])
    assert [(p["heading"], p["text"].count("units")) for p in split(by_section, 2)] == [("One", 10), ("Two", 11)]
    by_paragraph = Document("T", [Section("One", "\n\n".join([sentence * 4] * 6))])
    assert [p["heading"] for p in split(by_paragraph, 3)] == ["One", "One (continued)", "One (continued)"]
    assert [p["text"].count("units") for p in split(by_paragraph, 3)] == [8, 8, 8]
    by_sentence = split(Document("T", [Section("", sentence * 30)]), 4)
    assert all(p["text"].endswith("units.") and p["text"].startswith("Smith") for p in by_sentence)
    assert [p["heading"] for p in by_sentence] == ["Part 1 of 4", "Part 2 of 4", "Part 3 of 4", "Part 4 of 4"]
    endless = split(Document("T", [Section("", "word " * 4000)]), 4)
    assert [len(p["text"].split()) for p in endless] == [1000] * 4
    chinese = split(Document("T", [Section("", "细胞在培养基中生长得很快。" * 100)]), 4)
    assert len(chinese) == 4
    assert all(p["text"].endswith("。") for p in chinese)


def test_split_of_little_and_of_nothing() -> None:
    assert split(Document("T", []), 4) == []
    assert split(Document("T", [], "A few words."), 4) == [
        {"index": 0, "of": 1, "heading": "Abstract", "text": "A few words."}
    ]
    assert [p["of"] for p in split(Document("T", [Section("", "word. " * 50)]), 9)] == [2, 2]
    with pytest.raises(UsageError, match="parallelism"):
        split(Document("T", []), 0)
