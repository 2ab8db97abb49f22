"""The rules of the house that a machine can check: who may import whom, sizes, headers, names, packaging."""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from flatfleet import hooks
from flatfleet.commands import check, cli
from flatfleet.runtime import bundle
from flatmachines import validation

ROOT = Path(__file__).parents[1]
MACHINES = sorted((ROOT / "machines").glob("*.yml"))
ROOMS = ("agents", "commands", "hooks", "machines", "runtime", "schemas")

LONGEST = 250
LONGER = {
    "runtime/machine.py": "one class over the SDK's",
    "runtime/documents/pdf.py": "one format",
    "runtime/engines/inline.py": "one engine",
    "runtime/stores/contract.py": "one contract, most of it docstrings",
    "runtime/stores/group.py": "one mechanism",
    "runtime/stores/sqlite.py": "one driver, an operation after the other",
    "runtime/stores/sqlite_items.py": "one driver's items",
}
"""Python files that may be longer, up to 350 lines, and why."""


@functools.cache
def tracked() -> tuple[str, ...]:
    """The files that git knows, or would add."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=60, check=True)
    return tuple(sorted({name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}))


def python_files(room: str = "") -> list[str]:
    return [name for name in tracked() if name.endswith(".py") and name.startswith(room)]


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


# -- dependencies ------------------------------------------------------------------------------------------------------


def imports(name: str) -> Iterator[str]:
    """What a file of ours imports from flatfleet, with absolute names, wherever in the file it does so."""
    package = ["flatfleet", *Path(name).parent.parts]
    for node in ast.walk(ast.parse(text(name))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("flatfleet"))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            if base.split(".")[0] == "flatfleet":
                yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong(room: str, *allowed: str) -> list[str]:
    return [
        f"{name} imports {target}"
        for name in python_files(room)
        for target in imports(name)
        if not target.startswith(tuple(f"flatfleet.{each}" for each in allowed))
    ]


def test_the_runtime_knows_nothing_above_it() -> None:
    assert wrong("runtime/", "runtime.") == []


def test_policies_know_nothing_of_ours() -> None:
    assert wrong("runtime/policies/", "runtime.policies.", "runtime.errors.") == []


def test_hooks_know_the_runtime_only_and_no_store_or_engine() -> None:
    assert wrong("hooks/", "hooks.", "runtime.") == []
    known = ("contract", "records", "store", "__init__")
    concrete = [f"runtime/{room}/{path.name}" for room in ("stores", "engines") for path in
                (ROOT / "runtime" / room).glob("*.py") if path.stem not in known]  # fmt: skip
    names = {f"flatfleet.{path.removesuffix('.py').replace('/', '.')}" for path in concrete}
    assert [target for name in python_files("hooks/") for target in imports(name)
            if any(f"{target}.".startswith(f"{each}.") for each in names)] == []  # fmt: skip


def test_commands_know_the_runtime_only() -> None:
    assert wrong("commands/", "commands", "runtime.") == []
    for name in python_files("commands/"):
        assert not [
            target for target in imports(name) if re.match(r"flatfleet\.runtime\.(stores\.\w*sql|engines)", target)
        ]


def test_the_rule_about_imports_sees_relative_and_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime/x.py").write_text("from ..hooks import work\ndef f():\n    import flatfleet.run\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert list(imports("runtime/x.py")) == ["flatfleet.hooks.work", "flatfleet.run"]


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_hooks_are_thin() -> None:
    """Some 36 actions of the machines of two topologies and of their scaling, at about 20 lines each with what they promise."""
    assert sum(len(text(name).splitlines()) for name in python_files("hooks/")) <= 750


def test_no_module_is_long() -> None:
    sizes = {name: len(text(name).splitlines()) for name in python_files() if not name.startswith("tests/")}
    assert {name: size for name, size in sizes.items() if size > (350 if name in LONGER else LONGEST)} == {}
    assert [name for name in LONGER if sizes.get(name, 0) <= LONGEST] == []  # those that need no exception any more


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_machines_are_short(path: Path) -> None:
    """120 lines at most from `spec:` to `metadata:`: the header and the declared inputs and outputs do not count."""
    lines = path.read_text("utf-8").splitlines()
    assert lines.index("metadata:") - lines.index("spec: flatmachine") <= 120


@pytest.mark.parametrize("name", [name for name in python_files() if text(name)])
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(text(name)))


# -- machines ----------------------------------------------------------------------------------------------------------


def header(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    return [line[2:] for line in lines[1 : next(n for n, line in enumerate(lines) if line[:1] != "#")]]


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield str(value)


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_the_header_of_a_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(path.read_text("utf-8"))
    assert path.read_text("utf-8").startswith("# yaml-language-server: $schema=../schemas/flatmachine.schema.json\n")
    about = header(path)
    assert about[0].startswith(f"{path.stem} — ")
    assert config["data"]["name"] == path.stem
    for word in ("Input", "Output", "Run"):
        assert any(line.startswith(f"{word} ") for line in about), word
    words = set(re.findall(r"\w+", "\n".join(about)))
    assert set(config["metadata"]["inputs"]) <= words
    used = {state["hooks"] for state in config["data"]["states"].values() if "hooks" in state}
    assert {*used, *filter(None, [config["data"].get("lifecycle_hooks")])} <= words

    (command,) = (line.removeprefix("Run").strip() for line in about if line.startswith("Run "))
    program, script, *argv = shlex.split(command)
    assert (program, script, argv[0]) == ("python", "run.py", f"machines/{path.name}")
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("FLATFLEET_AGENTS", raising=False)
    cli.parse(argv, hooks.known)  # raises for a flag that does not exist


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_inputs_and_outputs_are_declared(path: Path) -> None:
    config = yaml.safe_load(path.read_text("utf-8"))
    data, declared = config["data"], config["metadata"]
    uses = list(leaves(data["context"]))
    assert set(re.findall(r"\binput\.(\w+)", "\n".join(uses))) == set(declared["inputs"])
    assert declared["inputs"].keys() <= data["context"].keys()  # the SDK warns of each that is not
    for name, default in re.findall(r"input\.(\w+) \| default\(([^,)]*)", "\n".join(uses)):
        mine, theirs = ast.literal_eval(default), declared["inputs"][name].get("default")
        assert mine == theirs or not (mine or theirs), name
    finals = [state["output"] for state in data["states"].values() if state.get("type") == "final"]
    assert {name for output in finals for name in output} == set(declared["outputs"])


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_a_machine_passes_check_and_the_schema_of_the_sdk(path: Path) -> None:
    out = io.StringIO()
    assert check.run([str(path)], hooks.known(), False, out) == 0, out.getvalue()
    assert (
        validation.validate_flatmachine_config(yaml.safe_load(path.read_text("utf-8")), warn=False, strict=True) == []
    )
    assert validation.validate_flatmachine_config(json.loads(bundle.load(path).raw), warn=False) == []


FOR_OTHERS: set[tuple[str, str]] = set()
"""Actions that no shipped machine uses, for topologies that end or do something else after an item (docs/machines.md)."""


def test_every_action_is_used_by_a_machine() -> None:
    used = {
        (state["hooks"], state["action"])
        for path in MACHINES
        for state in yaml.safe_load(path.read_text("utf-8"))["data"]["states"].values()
        if "action" in state
    }
    known = {(name, action) for name, actions in hooks.known().items() for action in actions}
    assert used | FOR_OTHERS == known
    assert not used & FOR_OTHERS


# -- files -------------------------------------------------------------------------------------------------------------


def test_no_file_mentions_where_it_was_written() -> None:
    places = ["/" + "work/", "/" + "root/", "pypi" + ".org", "python" + "hosted.org", "npm" + "js."]
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        found += [f"{name}: {place}" for place in places if place.encode() in data]
    assert found == []


def test_nothing_that_a_run_leaves_is_tracked() -> None:
    assert [
        name for name in tracked() if re.search(r"\.(db|db-wal|db-shm|log|pyc)$|^results/|_backup|\.orig$", name)
    ] == []


def test_what_the_documents_name_exists() -> None:
    for name in [name for name in tracked() if name == "README.md" or name.startswith("docs/")]:
        page = text(name)
        machines = set(re.findall(r"(?<![\w/])machines/[\w-]+\.ya?ml", page))
        machines |= {f"machines/{file}" for file in re.findall(r"package:flatfleet/([\w-]+\.yml)", page)}
        links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page) if "://" not in link}
        targets = [ROOT / machine for machine in machines] + [(ROOT / name).parent / link for link in links if link]
        assert [str(target) for target in targets if not target.exists()] == [], name


# -- packaging ---------------------------------------------------------------------------------------------------------


@functools.cache
def project() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def test_the_packages_are_the_folders() -> None:
    folders = {str(Path(name).parent) for name in python_files() if not name.startswith(("tests/", "benchmarks/"))}
    packages = {"flatfleet" if folder == "." else f"flatfleet.{folder.replace('/', '.')}" for folder in folders}
    assert set(project()["tool"]["setuptools"]["packages"]) == packages
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []
    assert {Path(folder).parts[0] for folder in folders - {"."}} == set(ROOMS)


def test_every_data_file_of_a_package_is_shipped() -> None:
    data = project()["tool"]["setuptools"]["package-data"]
    shipped = {
        str(path.relative_to(ROOT))
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.removeprefix("flatfleet").strip(".").replace(".", "/")).glob(pattern)
    }
    inside = [name for name in tracked() if name.startswith(tuple(f"{room}/" for room in ROOMS))]
    assert [name for name in inside if not name.endswith(".py") and name not in shipped] == []


def test_the_sdk_is_pinned_to_what_was_tested() -> None:
    pins = [each for each in project()["project"]["dependencies"] if each.startswith(("flatmachines", "flatagents"))]
    assert sorted(pins) == ["flatagents~=4.2.1", "flatmachines~=4.2.1"]
    for name in ("flatmachines", "flatagents"):
        major, minor, patch = map(int, version(name).split(".")[:3])
        assert (major, minor) == (4, 2)
        assert patch >= 1
