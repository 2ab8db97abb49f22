"""The wheel holds all that a user needs: installed alone, it runs the shipped machines in an empty folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "examples/papers"


def sh(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, argv)), cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the files that git knows or would add."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = sh("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    if listed.returncode:
        pytest.fail(f"this is no git checkout: {listed.stderr}")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            target = folder / "copy" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation")
    built = sh(*pip, "-w", folder / "out", folder / "copy", cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = (folder / "out").glob("flatfleet-*.whl")
    return found


@pytest.fixture(scope="module")
def flatfleet(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of a new environment: the wheel, and this environment's packages but not its flatfleet."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a .pth inside it is not followed
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin/python", "install")
    done = sh(*pip, "--no-deps", "--no-index", "--force-reinstall", "--ignore-installed", wheel, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin/flatfleet"


def test_the_wheel_holds_the_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for pattern in ("machines/*.yml", "agents/*.yml", "agents/prompts/*.yml", "schemas/*.json", "examples/papers/*",
                    "runtime/**/*.sql", "py.typed", "run.py", "runtime/**/*.py", "hooks/*.py", "commands/*.py"):  # fmt: skip
        files = [path.relative_to(ROOT) for path in ROOT.glob(pattern) if path.is_file()]
        assert files, pattern
        assert [file for file in files if f"flatfleet/{file}" not in names] == [], pattern
    assert not [
        name for name in names if name.startswith(("tests", "flatfleet/tests", "flatfleet/docs", "flatfleet/."))
    ]


def test_it_is_the_installed_package_that_runs(flatfleet: Path, tmp_path: Path) -> None:
    python = flatfleet.parent / "python"
    found = sh(python, "-c", "import flatfleet, flatfleet.run; print(flatfleet.__file__)", cwd=tmp_path)
    assert found.stdout.startswith(str(flatfleet.parents[1])), found
    assert sh(flatfleet, "--version", cwd=tmp_path).stdout.startswith("flatfleet ")


def test_it_works_through_a_folder(flatfleet: Path, tmp_path: Path) -> None:
    done = sh(flatfleet, "run", "package:flatfleet/launcher.yml", "--input", PAPERS, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["counts"]["completed"] == len(list(PAPERS.iterdir()))
    assert len(list((tmp_path / "results").glob("*.md"))) == len(list(PAPERS.iterdir()))


def test_it_works_through_the_bundled_papers(flatfleet: Path, tmp_path: Path) -> None:
    done = sh(flatfleet, "run", "package:flatfleet/launcher.yml", cwd=tmp_path)
    assert done.returncode == 0, done
    assert done.stdout.startswith(f"{len(list(PAPERS.iterdir()))} done, 0 dead, 0 left")
    sources = [json.loads(path.read_text("utf-8"))["source"] for path in (tmp_path / "results").glob("*.json")]
    assert all(source.startswith(str(flatfleet.parents[1])) for source in sources)
    assert sh(flatfleet, "status", cwd=tmp_path).returncode == 0


def test_it_checks_its_own_machines(flatfleet: Path, tmp_path: Path) -> None:
    for path in (ROOT / "machines").glob("*.yml"):
        done = sh(flatfleet, "check", f"package:flatfleet/{path.name}", cwd=tmp_path)
        assert (done.returncode, done.stdout[:5], done.stderr) == (0, "ok   ", ""), done
