"""The outline of a text: its title, and its sections under their headings, for plain text and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

Outline = tuple[str, list[tuple[str, str]]]

KNOWN = frozenset(
    """abstract|summary|introduction|background|related work|literature review|theory|model|methods|method|methodology
    |materials and methods|methods and materials|material and methods|patients and methods|experimental methods
    |experimental procedures|experiments|experimental setup|evaluation|results|findings|results and discussion
    |discussion|general discussion|limitations|future work|conclusion|conclusions|concluding remarks
    |discussion and conclusions|conclusions and future work|statement of need|acknowledgements|acknowledgments
    |acknowledgement|acknowledgment|author contributions|funding|data availability|competing interests
    |supporting information|supplementary information|supplementary material|appendix|references|bibliography
    |literature cited|works cited""".replace("\n", "")
    .replace("    |", "|")
    .split("|")
)
_NUMBER = r"(?:\d{1,2}(?:\.\d{1,2}){0,3}\.?|[IVX]{1,5}\.|[A-H]\.)"
_NUMBERED = re.compile(rf"{_NUMBER}\s+(?=[A-Z])(?P<title>\S.*)")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t](.*))?$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_FRONT_TITLE = re.compile(r"""^title\s*[:=]\s*(["']?)(.{1,300}?)\1[ \t]*$""", re.MULTILINE)


def known_heading(line: str) -> str:
    """Return the heading that a line is, without its number, if it is one that papers use; else an empty string."""
    stripped = line.strip().rstrip(":.")
    numbered = _NUMBERED.fullmatch(stripped)
    title = (numbered["title"] if numbered else stripped).strip()
    return title if title.lower() in KNOWN else ""


def plain_text(text: str, title: str = "") -> Outline:
    """Read plain text: the first short line is the title; headings stand alone and are in capitals, numbered or known.

    With a `title` none is looked for. Conservative: whatever might be text stays text, and no word but the title's
    and the headings' leaves it.
    """
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    if first == len(lines):
        return title, []
    if not title and not known_heading(lines[first]):
        title, after = _title(lines, first)
        lines = lines[after:]
    headings = [i for i in range(len(lines)) if _alone(lines, i) and _looks_like_heading(lines[i])]
    used = set(headings)
    headings = [i for i in headings if (follow := _next_line(lines, i)) is not None and follow not in used]
    sections = _cut(lines, [(i, i + 1, known_heading(lines[i]) or lines[i].strip()) for i in headings])
    if any(body for _, body in sections):
        return title, sections
    return title, [("", text.strip())]


def markdown(text: str) -> Outline:
    """Read Markdown: the first H1 is the title, all other headings make sections.

    Front matter is passed over (its `title` counts where there is no H1), and code fences hold no headings.
    """
    lines = text.split("\n")
    title, start = _front_matter(lines)
    lines = lines[start:]
    headings: list[tuple[int, int, str]] = []
    first_h1, fence = "", ""
    for i in range(len(lines)):
        mark = _FENCE.match(lines[i])
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
            continue
        if mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
            continue
        begin, heading, level = _markdown_heading(lines, i)
        if level:
            if level == 1 and not first_h1:
                first_h1, heading = heading, ""
            headings.append((begin, i + 1, heading))
    sections = [(heading, body) for heading, body in _cut(lines, headings) if body or heading]
    if not any(body for _, body in sections):
        sections = [("", "\n".join(lines).strip())]
    return first_h1 or title, sections


def _title(lines: Sequence[str], first: int) -> tuple[str, int]:
    """Return the title that the first line gives, and where the text begins: it stays text unless it stands alone."""
    title = lines[first].strip()
    if len(title) > 160 or len(title.split()) > 25:
        return " ".join(title[:400].split()[:10])[:100] + " …", first
    underlined = first + 1 < len(lines) and bool(re.fullmatch(r"\s*(={3,}|-{3,})\s*", lines[first + 1]))
    return title, first + 1 + underlined if underlined or _alone(lines, first) else first


def _markdown_heading(lines: Sequence[str], i: int) -> tuple[int, str, int]:
    """Return (line of the heading, its text, its level; 0: line `i` ends no heading)."""
    atx = _ATX.match(lines[i])
    if atx:
        return i, re.sub(r"(?:^|[ \t])#+$", "", (atx[2] or "").strip()).strip(), len(atx[1])
    under = re.fullmatch(r" {0,3}(=+|-{2,})[ \t]*", lines[i])
    above = lines[i - 1].strip() if i else ""
    if under and above and (i < 2 or not lines[i - 2].strip()) and not re.match(r"[-*+>|#`~]|\d+[.)] ", above):
        return i - 1, above, 1 if under[1][0] == "=" else 2
    return i, "", 0


def _front_matter(lines: Sequence[str]) -> tuple[str, int]:
    """Return the title in the front matter and the first line after it; ('', 0) where there is none."""
    fence = lines[0].rstrip() if lines else ""
    if fence not in ("---", "+++"):
        return "", 0
    end = next((i for i in range(1, len(lines)) if lines[i].rstrip() in (fence, "...")), 0)
    if not end or not any(re.match(r"[\w-]+\s*[:=]", line) for line in lines[1:end]):
        return "", 0
    found = _FRONT_TITLE.search("\n".join(line[:400] for line in lines[1:end]))
    return (found[2].strip() if found else ""), end + 1


def _cut(lines: Sequence[str], headings: Sequence[tuple[int, int, str]]) -> list[tuple[str, str]]:
    """Cut lines at headings, each given as (its first line, the line after it, title)."""
    starts = [(0, 0, ""), *headings]
    ends = [begin for begin, _, _ in headings] + [len(lines)]
    cut = [
        (title, "\n".join(lines[after:end]).strip("\n")) for (_, after, title), end in zip(starts, ends, strict=True)
    ]
    return [(title, body if body.strip() else "") for title, body in cut if title or body.strip()]


def _looks_like_heading(line: str) -> bool:
    stripped = line.strip()
    if known_heading(stripped):
        return True
    if len(stripped) > 80 or len(stripped.split()) > 10 or stripped[-1:] in ".,;:!?":
        return False
    letters = [char for char in stripped if char.isalpha()]
    capitals = len(letters) >= 4 and stripped.isupper() and len(letters) * 2 >= len(stripped)
    return capitals or bool(_NUMBERED.fullmatch(stripped))


def _alone(lines: Sequence[str], i: int) -> bool:
    before, after = i == 0 or not lines[i - 1].strip(), i + 1 == len(lines) or not lines[i + 1].strip()
    return bool(lines[i].strip()) and before and after


def _next_line(lines: Sequence[str], i: int) -> int | None:
    return next((k for k in range(i + 1, len(lines)) if lines[k].strip()), None)
