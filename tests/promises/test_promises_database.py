"""Promise 1 when the database itself is taken away: a clear end, and what was acknowledged is there once it is mended."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STORE_FAILED = 3
NOBODY = 65534


def check_clear_end(process, *words: str) -> None:
    """Exit code 3, one object that names the store and says what to do, and no traceback."""
    said = process.end(30)
    assert process.returncode == STORE_FAILED, said
    end = json.loads(process.out.read_text())
    errors = end.get("failures") or {"error": f"{end['error']['type']}: {end['error']['message']}"}
    for error in errors.values():
        assert error.startswith(("StoreUnavailable", "StoreGone")), errors
        assert all(word in error for word in ("fleet.db", *words)), errors
    assert "Traceback" not in said and "never retrieved" not in said, said


def running(trial, n: int = 400):
    source = trial.items([{"key": f"i{k:03}", "seconds": 0.01, "pad": "x" * 2000} for k in range(n)], max_crashes=10)
    process = trial.launch(source, 8)
    trial.until(lambda: trial.lines() >= 90)
    return source, process


def completed(trial) -> set[str]:
    return {key for key, item in trial.all_items().items() if item.state == "completed"}


@pytest.mark.parametrize("what", ["all", "db"])
def test_promise_01_the_database_is_deleted_during_a_run(trial, what):
    """Promise 1: noticed within a second or so; the same command starts afresh from what is there."""
    source, process = running(trial)
    for suffix in ("", "-wal", "-shm") if what == "all" else ("",):
        Path(f"{trial.db}{suffix}").unlink()
    check_clear_end(process, "deleted or replaced")
    for suffix in ("-wal", "-shm"):
        Path(f"{trial.db}{suffix}").unlink(missing_ok=True)
    assert trial.launch(source, 8).wait(60) == 0
    assert trial.counts().completed == 400


@pytest.mark.parametrize("part", [0, 0.5])
def test_promise_01_the_database_is_cut_off_during_a_run(trial, part):
    """Promise 1: nobody goes on in a damaged file, neither now nor later."""
    _, process = running(trial)
    trial.until(lambda: trial.db.stat().st_size > 200_000)
    os.truncate(trial.db, int(trial.db.stat().st_size * part))
    check_clear_end(process)


def test_promise_01_the_database_is_no_database(trial):
    """Promise 1: a file of another kind is left alone."""
    source = trial.items([{"key": "a"}])
    trial.db.write_bytes(b"these are no pages " * 1000)
    before = trial.db.read_bytes()
    check_clear_end(trial.launch(source, 2), "not a database", "--store")
    assert trial.db.read_bytes() == before


def test_promise_01_the_database_is_read_only(tmp_path_factory, trial):
    """Promise 1: who may only read it gets a clear end, and nothing is lost."""
    folder = Path(tempfile.mkdtemp())
    try:
        trial.path = folder
        source = trial.items([{"key": f"i{n}"} for n in range(20)], max_crashes=10)
        trial.db.chmod(0o444)
        folder.chmod(0o555)
        as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        process = trial.launch(
            source, 2, outputs=tmp_path_factory.mktemp("said"), prefix=as_nobody if not os.getuid() else ()
        )
        check_clear_end(process, "--store")
        trial.db.chmod(0o644)
        folder.chmod(0o755)
        assert trial.launch(source, 2).wait(30) == 0
        assert trial.counts().completed == 20
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@dataclass
class Disk:
    """A place for the store whose space can run out (`fill`, given the process that writes) and come back (`free`)."""

    path: Path
    fill: Callable[[int], None]
    free: Callable[[], None]


@pytest.fixture(params=["a small disk", "a quota"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 8 MB; where none can be mounted, and for the second, a limit on the size of the process's files."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if request.param == "a quota" or os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        limit = resource.RLIMIT_FSIZE

        def fill(pid: int) -> None:
            size = (place / "fleet.db-wal").stat().st_size
            resource.prlimit(pid, limit, (size, resource.RLIM_INFINITY))

        yield Disk(place, fill, lambda: None)
        return
    ballast = place / "ballast"

    def burden(_: int) -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    try:
        yield Disk(place, burden, lambda: ballast.unlink(missing_ok=True))
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_promise_01_the_disk_is_full_during_a_run(trial, disk):
    """Promise 1: nothing half-written counts; all that was acknowledged is there when there is space again."""
    out, trial.path = trial.path, disk.path
    items = [{"key": f"i{k:03}", "seconds": 0.01} for k in range(200)]
    source = trial.items(items, max_crashes=10)
    process = trial.launch(source, 8, outputs=out, log=out / "log.jsonl")
    log = out / "log.jsonl"
    trial.until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 90)
    disk.fill(process.pid)
    check_clear_end(process)
    disk.free()
    before = completed(trial)
    assert 10 <= len(before) < 200
    again = trial.launch(source, 8, outputs=out, log=log)
    assert again.wait(60) == 0, again.end()
    assert trial.counts().completed == 200
    history = trial.attempts()
    assert all([a.outcome for a in history[key]].count("completed") == 1 for key in history)
    assert {item.attempts for item in trial.all_items().values()} == {0}, "the disk's fault burnt attempts of items"
