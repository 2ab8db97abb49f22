"""`check` says for each file whether it is right, and each problem once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from flatfleet.commands.check import run
from flatfleet.runtime import fleet_settings
from flatfleet.runtime.errors import UsageError

GOOD = """spec: flatmachine
spec_version: '4.2.1'
data:
  states:
    a: {action: go, hooks: work, transitions: [{to: b}]}
    b: {type: final}
"""
BAD = GOOD.replace("to: b", "to: c")
PARENT = """spec: flatmachine
spec_version: '4.2.1'
data:
  machines: {child: bad.yml}
  states: {a: {machine: child, transitions: [{to: b}]}, b: {type: final}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def check(*paths: str, known: dict[str, list[str]] | None = None) -> tuple[int, list[str]]:
    out = io.StringIO()
    code = run(paths, known, False, out)
    return code, out.getvalue().splitlines()


def test_a_right_file() -> None:
    write("machines/good.yml", GOOD)
    assert check("machines/good.yml") == (0, ["ok   machines/good.yml (2 states)"])


def test_hooks_are_checked_where_they_are_known() -> None:
    write("good.yml", GOOD)
    code, lines = check("good.yml", known={"work": ["goo"]})
    assert code == 2
    assert "good.yml:5:17: state 'a': unknown action 'go' of hooks work — known: goo. Did you mean 'goo'?" in lines


def test_a_folder_lists_each_problem_once_under_its_file() -> None:
    write("machines/bad.yml", BAD)
    write("machines/good.yml", GOOD)
    write("machines/parent.yml", PARENT)
    write("machines/.hidden/bad.yml", BAD)
    code, lines = check("machines", "machines/good.yml")
    assert code == 2
    assert [line.split(" ")[0] for line in lines] == [
        "machines/bad.yml:5:53:",
        "machines/bad.yml:6:5:",
        "ok",
        "ok",
        "2",
    ]
    assert lines[3] == "ok   machines/parent.yml (faults only in what it names)"
    assert lines[4] == "2 problems in 1 of 3 files"


def test_a_parent_alone_shows_what_is_wrong_below() -> None:
    write("bad.yml", BAD)
    write("parent.yml", PARENT)
    code, lines = check("parent.yml")
    assert code == 2
    assert lines[0].startswith("bad.yml:5:")


def test_other_files_are_only_parsed() -> None:
    write("agents/a.flatagent.yml", "spec: flatagent\ndata: {prompt: nowhere.yml}\n")
    write("agents/a.offline.yml", "type: offline\n")
    write("agents/list.yml", "[1, 2]\n")
    write("agents/wrong.yml", "a: [\n")
    code, lines = check("agents")
    assert code == 2
    assert lines[:3] == [
        "ok   agents/a.flatagent.yml (flatagent, syntax only)",
        "ok   agents/a.offline.yml (agent, syntax only)",
        "ok   agents/list.yml (syntax only)",
    ]
    assert lines[3].startswith("agents/wrong.yml:2:1: not YAML")


@pytest.mark.parametrize(("path", "words"), [("god.yml", "Did you mean 'good.yml'?"), ("empty", "no YAML file")])
def test_paths_that_hold_nothing(path: str, words: str) -> None:
    write("good.yml", GOOD)
    Path("empty").mkdir()
    code, lines = check(path)
    assert code == 2
    assert words in lines[0]


def test_json() -> None:
    write("bad.yml", BAD)
    write("good.yml", GOOD)
    out = io.StringIO()
    assert run(["good.yml", "bad.yml"], None, True, out) == 2
    good, bad = json.loads(out.getvalue())["files"]
    assert good == {"path": "good.yml", "ok": True, "problems": []}
    assert (bad["path"], bad["ok"]) == ("bad.yml", False)
    assert bad["problems"][0].startswith("bad.yml:5:53: ")


POLICY = """mode: target
max: 5
schedule:
  - {cron: "0 8 * * *", duration: 1h, min: 2}
"""


OTHER = "services: {db: {image: x}}\nmode: 5\nversion: 3\n"


def test_a_file_of_settings_is_a_policy() -> None:
    write("mine.yml", POLICY)
    write("below/other.yml", OTHER)
    assert check("mine.yml", "below") == (0, ["ok   mine.yml (policy)", "ok   below/other.yml (syntax only)"])


DEEP = "[" * 3000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {settings: {fleet: {min: -1}}}", "x.yml:1:32: settings.fleet.min must be a whole number"),
        ("data: {settings: {fleet: 5}}", "x.yml:1:26: settings.fleet must be a mapping"),
        ("budget: 5", "x.yml:1:1: unknown key 'budget' in settings.fleet — it stands in cost"),
        ("min: 2\nmin: 7", "x.yml:2:1: duplicate key 'min' — it stands in line 1 already"),
        (OTHER, "x.yml:1:1: unknown key 'services' in settings.fleet"),
        ("", "x.yml:1:1: the file is empty"),
        ("mode: [", "x.yml:2:1: not YAML"),
        ("mode: !!python/none 3", "x.yml:1:7: this is read as a YAML"),
        ("a: &a [*a]", "x.yml:1:4: an alias refers to the value that it stands in"),
        (f"mode: {DEEP}", "x.yml:1:106: this is nested more than 100 deep"),
        (DEEP * 100, "x.yml:1:101: this is nested more than 100 deep"),
    ],
)
def test_a_wrong_policy_is_refused_by_check_as_by_the_flag(text: str, said: str) -> None:
    write("x.yml", text)
    code, lines = check("x.yml")
    assert code == 2
    assert lines[0].startswith(said)
    with pytest.raises(UsageError) as caught:
        fleet_settings.load("x.yml")
    assert str(caught.value).splitlines() == lines[:-1]


@pytest.mark.parametrize("text", ["data: {settings: {fleet: {min: 3}}}", "min: 3", '{"min": 3}'])
def test_a_right_policy_is_taken_by_check_as_by_the_flag(text: str) -> None:
    write("x.yml", text)
    assert check("x.yml") == (0, ["ok   x.yml (policy)"])
    assert fleet_settings.load("x.yml") == {"min": 3}


@pytest.mark.parametrize(
    ("right", "wrong", "line", "column", "text", "hint"),
    [
        ("mode: target", "mode: targte", 1, 7, "settings.fleet.mode must be one of", "Did you mean 'target'?"),
        ("max: 5", "maxx: 5", 2, 1, "unknown key 'maxx' in settings.fleet", "Did you mean 'max'?"),
        ("max: 5", "max: 0.5", 2, 6, "settings.fleet.max must be", "got 0.5"),
        ("max: 5", "min: 9\nmax: 5", 2, 6, "settings.fleet.min", "max"),
        ('"0 8 * * *"', '"0 8 * *"', 4, 12, "settings.fleet.schedule[0].cron", "fields"),
    ],
)
def test_the_settings_of_a_fleet_are_checked_where_they_stand(
    right: str, wrong: str, line: int, column: int, text: str, hint: str
) -> None:
    faulty = POLICY.replace(right, wrong)
    write("mine.yml", faulty)
    indented = "".join(f"      {each}\n" for each in faulty.splitlines())
    write("machine.yml", GOOD.replace("data:\n", f"data:\n  settings:\n    fleet:\n{indented}"))
    for name, down, right_of in (("mine.yml", 0, 0), ("machine.yml", 5, 6)):
        code, lines = check(name)
        assert (code, len(lines)) == (2, 2)
        assert lines[0].startswith(f"{name}:{line + down}:{column + right_of}: {text}")
        assert hint in lines[0]


def test_the_policies_that_are_shipped() -> None:
    code, lines = check(str(Path(__file__).parents[1] / "examples/policies"))
    assert code == 0
    assert {line.rpartition(" ")[2] for line in lines} == {"(policy)"}
