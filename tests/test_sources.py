"""Sources: folders, globs, documents and JSONL rows become items; what cannot is skipped or refused in words."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flatfleet.runtime import rows
from flatfleet.runtime.errors import SourceError, UsageError
from flatfleet.runtime.sources import Skipped, Source, expand, parse_fields


def put(path: Path, content: str | bytes = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path: Path, items: Iterable[Any]) -> Path:
    return put(path, "".join(json.dumps(item) + "\n" for item in items))


def keys(*args: Any, **kwargs: Any) -> list[str]:
    return [item.key if isinstance(item, Source) else f"!{item.where}" for item in expand(*args, **kwargs)]


def skipped(*args: Any, **kwargs: Any) -> dict[str, str]:
    return {item.where: item.why for item in expand(*args, **kwargs) if isinstance(item, Skipped)}


def test_a_folder_gives_its_documents_and_rows_in_order(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.PDF", "sub/d.markdown", ".hidden.txt", ".git/x.txt", "z.png"):
        put(tmp_path / name)
    jsonl(tmp_path / "rows.jsonl", [{"id": 7}])
    found = list(expand(str(tmp_path)))
    assert [item.key for item in found if isinstance(item, Source)] == [
        str(tmp_path / "a.txt"),
        str(tmp_path / "b.md"),
        "7",
        str(tmp_path / "sub/c.PDF"),
        str(tmp_path / "sub/d.markdown"),
    ]
    assert found[0] == Source(str(tmp_path / "a.txt"), {"path": str(tmp_path / "a.txt"), "name": "a"})


def test_files_globs_home_and_several_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = put(tmp_path / "a.txt"), put(tmp_path / "x/y/b.txt")
    odd = put(tmp_path / "odd [1].txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert keys("~/a.txt") == keys("a.txt") == keys("x/../a.txt") == [str(a)]
    assert keys("**/*.txt") == [str(a), str(odd), str(b)]
    assert keys(str(odd)) == [str(odd)]
    assert keys(["x", "a.txt"]) == [str(b), str(a)]
    assert skipped(["x", "x/**/*.txt"]) == {"x/y/b.txt": f"the key '{b}' was already seen in y/b.txt"}


def test_row_keys(tmp_path: Path) -> None:
    given = [
        {"key": "k", "id": 1},
        {"id": 1, "doi": "d"},
        {"id": " ", "doi": "d"},
        {"id": True, "b": 1, "a": 2},
        "bare",
    ]
    path = jsonl(tmp_path / "r.jsonl", given)
    hashed = hashlib.sha256(b'{"a":2,"b":1,"id":true}').hexdigest()[:12]
    bare = hashlib.sha256(b'{"text":"bare"}').hexdigest()[:12]
    assert keys(str(path)) == ["k", "1", "d", f"r.jsonl#{hashed}", f"r.jsonl#{bare}"]


@pytest.mark.parametrize("name", ["r.jsonl", "r.ndjson", "r.jsonl.gz", "plain-inside.jsonl.gz"])
def test_bad_rows_are_skipped_and_the_rest_goes_on(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW", 100_000)
    lines = [
        b'\xef\xbb\xbf{"id": 1}', b"", b"{not json", b"[1, 2]", b'"\xff"', b'{"id": "' + b"x" * 300_000 + b'"}', b"3",
        b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 50_000, b'{"id": 1}', b'{"id": "last {{ 7*7 }}"}',
    ]  # fmt: skip
    content = b"\r\n".join(lines)
    put(tmp_path / name, gzip.compress(content) if name == "r.jsonl.gz" else content)
    assert [key for key in keys(str(tmp_path / name)) if key[0] != "!"] == ["1", "last {{ 7*7 }}"]
    why = skipped(str(tmp_path / name))
    said = {3: "not JSON", 4: "an array", 5: "not UTF-8", 6: "longer than", 7: "a number", 8: "NaN", 9: "surrogate"}
    said |= {10: "", 11: f"already seen in {name}:1"}
    assert set(why) == {f"{name}:{line}" for line in said}
    assert all(text in why[f"{name}:{line}"] for line, text in said.items()), why


def test_a_gzip_that_breaks_off_keeps_the_rows_before(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps({"id": i, "x": os.urandom(9).hex()}) + "\n" for i in range(5000)).encode())
    cut = put(tmp_path / "cut.jsonl.gz", whole[: len(whole) // 2])
    found = list(expand(str(cut)))
    assert len(found) > 1500
    assert all(isinstance(item, Source) for item in found[:-1])
    assert isinstance(found[-1], Skipped)
    assert found[-1].where == f"cut.jsonl.gz:{len(found)}"
    assert "breaks off" in found[-1].why
    middle = len(whole) // 2
    corrupt = put(tmp_path / "bad.jsonl.gz", whole[:middle] + bytes(200) + whole[middle + 200 :])
    assert any("corrupt" in why for why in skipped(str(corrupt)).values())
    utf16 = put(tmp_path / "wide.jsonl", '{"id": 1}\n{"id": 2}'.encode("utf-16"))
    assert [*skipped(str(utf16))] == ["wide.jsonl:1"]


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = itertools.count()

    def endless(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
        return ((line, {"id": next(seen)}) for line in itertools.count(1))

    monkeypatch.setattr("flatfleet.runtime.sources.read_rows", endless)
    path = str(put(tmp_path / "endless.jsonl"))
    assert keys(path, limit=0) == []
    assert len(keys(path, limit=3)) == 3
    assert next(seen) == 3
    with pytest.raises(UsageError, match="-1"):
        expand(path, limit=-1)


def test_limit_does_not_count_what_is_skipped(tmp_path: Path) -> None:
    path = put(tmp_path / "r.jsonl", '{"id": 1}\noops\n{"id": 2}\n{"id": 3}\n')
    assert keys(str(path), limit=2) == ["1", "!r.jsonl:2", "2"]


def test_fields(tmp_path: Path) -> None:
    row = {"id": 1, "body": "B", "meta": {"title": "T", "who": ["x", "y"]}, "a.b": "flat"}
    path = jsonl(tmp_path / "r.jsonl", [row, {"id": 2, "body": "only"}])
    fields = parse_fields("text=body, title = meta.title,who=meta.who.1,flat=a.b,key=meta.title")
    first, second = expand(str(path), fields=fields)
    assert first == Source("T", {**row, "text": "B", "title": "T", "who": "y", "flat": "flat", "key": "T"})
    assert second == Skipped("r.jsonl:2", "it has no field 'meta.title' (there: body, id)")
    document = put(tmp_path / "d.txt")
    assert list(expand(str(document), fields={"title": "name"})) == [
        Source(str(document), {"path": str(document), "name": "d", "title": "d"})
    ]
    assert skipped(str(document), fields={"text": "body"}) == {"d.txt": "it has no field 'body' (there: name, path)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no '='"), ("text", "no '='"), ("=body", "target=source"), ("text=", "names no field"), ("a.b=c", "plain"),
     ("text=a..b", "names no field"), ("text=a,text=b", "set twice"), ("text=a,", "no '='")],
)  # fmt: skip
def test_wrong_fields_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_fields(text)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("papers/", r"no file or folder .*Did you mean 'paper/'\?"),
        ("paper/one.tx", r"known: one.txt. Did you mean 'one.txt'\?"),
        ("nowhere/deep/x.pdf", "looked in"),
        ("paper/*.pdf", r"nothing matches the glob 'paper/\*.pdf' .*one.txt"),
        ("papr/**/*.txt", r"Did you mean 'paper/'\?"),
        ("*", r"matches 3 folders and no file; end it in /\*\*/\*"),
        ("odd", "found: 2 .json, 1 no suffix.* supported are .txt .*jq"),
        ("odd/*.json", "found: 2 .json"),
        ("odd/a.json", "not a supported file .*jq"),
        ("empty", "found: nothing"),
        ("https://example.org/a.pdf", "nothing is downloaded"),
        ("", "is no path"),
        ("\0", "is no path"),
        ("x" * 5000 + ".txt", "too long"),
        ("/dev/null", "neither a file nor a folder"),
        ([], "no input"),
    ],
)
def test_wrong_specs_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str | list[str], message: str
) -> None:
    put(tmp_path / "paper/one.txt")
    for name in ("odd/a.json", "odd/b.json", "odd/README", "empty/.hidden"):
        put(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        expand(spec)
    if isinstance(spec, str):
        with pytest.raises(SourceError, match=message):
            expand(["paper", spec])


def test_a_large_folder_does_not_flood_the_message(tmp_path: Path) -> None:
    for i in range(300):
        put(tmp_path / f"paper{i:03}.pdf")
    with pytest.raises(SourceError, match=r"and 29\d more") as caught:
        expand(str(tmp_path / "paper01.pdf"))
    assert len(str(caught.value)) < 500


def test_files_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = put(tmp_path / "a.txt"), put(tmp_path / "b.txt")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != a)
    assert keys(str(tmp_path)) == ["!a.txt", str(b)]
    with pytest.raises(SourceError, match="no permission to read"):
        expand(str(a))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SourceError, match="no permission to list"):
        expand(str(tmp_path))


def test_broken_links_loops_and_names_that_are_no_text(tmp_path: Path) -> None:
    good = put(tmp_path / "good.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
    assert keys(str(tmp_path)) == ["!gone.txt", str(good), "!\\udcff.txt"]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_rows_that_are_not_there_are_an_error_at_the_end(tmp_path: Path, content: str) -> None:
    with pytest.raises(SourceError, match="holds no row"):
        list(expand(str(put(tmp_path / "r.jsonl", content))))
