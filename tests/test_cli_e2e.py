"""Whole runs of `python run.py …` as real processes: results, wrong inputs, interrupts, kills, and a second terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flatfleet.runtime.stores import open_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LAUNCHER = str(ROOT / "machines/launcher.yml")
PAPERS = ROOT / "examples/papers"
PATIENCE = 60.0

TASK = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: slow
  context: {launch_interval: input.delay, name: input.name, delay: input.delay}
  states:
    wait:
      type: initial
      action: pace
      hooks: flow
      transitions: [{to: done}]
    done: {type: final, output: {name: context.name}}
metadata:
  inputs:
    delay: {type: number, default: 0}
    name: {type: string, default: ""}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_AGENTS", "FLATAGENTS_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


def start(*argv: str, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, str(ROOT / "run.py"), *argv], text=True, encoding="utf-8", **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {PATIENCE:g} s: {out} {err}") from None
    assert "Traceback" not in (err or ""), err
    return process.returncode, out, err


def run(*argv: str, **options: Any) -> tuple[int, str, str]:
    return finish(start(*argv, **options))


def launch(*argv: str) -> tuple[int, str, str]:
    return run(LAUNCHER, *argv)


def write_items(count: int, delay: float) -> list[str]:
    """Make `slow.yml` and `items.jsonl`, and return the flags that work through them."""
    Path("slow.yml").write_text(TASK, "utf-8")
    rows = [{"key": f"k{n}", "name": f"n{n}", "delay": delay} for n in range(count)]
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return [LAUNCHER, "--task", "slow.yml", "--input", "items.jsonl"]


def status() -> dict[str, Any]:
    code, out, err = run("status", "--json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def until(holds: Callable[[dict[str, int]], bool], process: subprocess.Popen[str], pool: str = "slow") -> None:
    """Wait until the counters of a running process's pool are as wanted."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            with sqlite3.connect("file:fleet.db?mode=ro", uri=True) as db:
                counts = dict(db.execute("SELECT state, n FROM counters WHERE pool = ?", (pool,)))
            if holds(counts):
                return
        except sqlite3.OperationalError:
            pass  # not made yet
        time.sleep(0.02)
    raise AssertionError("it never came to that")


async def outcomes(pool: str = "slow") -> dict[str, list[str]]:
    """How the attempts at each item ended, by key."""
    store = open_store("sqlite:fleet.db", must_exist=True)
    try:
        found = store.work.pool(pool)
        return {item.key: [each.outcome for each in await found.attempts(item.id)] async for item in found.items()}
    finally:
        await store.close()


# -- a run -------------------------------------------------------------------------------------------------------------


def test_the_demo_writes_one_report_per_paper() -> None:
    code, out, err = run(LAUNCHER)  # no --input: the bundled papers
    papers = {path.name for path in PAPERS.iterdir()}
    assert (code, err) == (0, f"pool papers: {len(papers)} items; 4 workers\n")
    assert out.splitlines()[0].startswith(f"{len(papers)} done, 0 dead, 0 left in ")
    assert out.splitlines()[1:] == ["Reports are in results/", "Results: flatfleet results"]
    for suffix in (".md", ".json"):
        assert len(list(Path("results").glob(f"*{suffix}"))) == len(papers)
    reports = [json.loads(path.read_text("utf-8")) for path in Path("results").glob("*.json")]
    assert {Path(report["source"]).name for report in reports} == papers
    assert all(report["summary"] and report["key_points"] and report["rounds"] >= 1 for report in reports)

    code, out, err = run(LAUNCHER)
    assert (code, err) == (0, "")
    assert out.startswith(f"Nothing is left to do: {len(papers)} done")
    workers = json.loads(run("status", "--all", "--json")[1])
    assert [worker["status"] for worker in workers["workers"]] == ["terminated"] * 4
    assert sum(worker["processed"] for worker in workers["workers"]) == len(papers)


def test_the_results_as_jsonl_and_csv() -> None:
    rows = [
        {"key": "../../x", "title": "{{ 7*7 }}", "text": "We show that {{ 7*7 }} is data, in every place. " * 9},
        {"key": "=cmd|' /C calc'!A0", "title": "=HYPERLINK(1)", "text": "+1 is a number. We find that it is. " * 9},
        {"key": "empty", "text": ""},
    ]
    lines = [*map(json.dumps, rows), "no json", "[1]"]
    Path("rows.jsonl").write_text("\n".join(lines), "utf-8")
    code, out, err = launch("--input", "rows.jsonl")
    assert code == 1
    assert out.splitlines()[0].startswith("2 done, 1 dead, 0 left")
    assert "empty: DocumentError: empty: the item has no text" in out
    assert "skipped rows.jsonl:4: not JSON" in err
    assert "skipped rows.jsonl:5: a row must be an object" in err
    assert "pool papers: 3 items, 2 skipped; 4 workers" in err
    assert {path.name for path in Path("results").iterdir()} | {"rows.jsonl"} >= {"rows.jsonl"}
    assert [path for path in Path.cwd().parent.iterdir() if path.name.startswith("x")] == []

    code, out, err = run("results")
    assert (code, err) == (0, "")
    found = {row["key"]: row for row in map(json.loads, out.splitlines())}
    assert {key: row["state"] for key, row in found.items()} == {
        rows[0]["key"]: "completed", rows[1]["key"]: "completed", "empty": "dead"
    }  # fmt: skip
    assert found["../../x"]["result"]["title"] == "{{ 7*7 }}"
    assert found["empty"]["error_type"] == "DocumentError"
    assert [json.loads(line)["key"] for line in run("results", "--state", "dead")[1].splitlines()] == ["empty"]

    assert run("results", "--csv", "-o", "out.csv") == (0, "", "")
    table = list(csv.DictReader(io.StringIO(Path("out.csv").read_text("utf-8"))))
    assert [row["key"] for row in table] == ["../../x", "'=cmd|' /C calc'!A0", "empty"]
    assert table[1]["title"] == "'=HYPERLINK(1)"
    assert not [cell for row in table for cell in row.values() if cell[:1] in "=+-@" and cell]
    assert run("results", "--csv")[1].splitlines() == Path("out.csv").read_text("utf-8").splitlines()


def test_bad_files_do_not_harm_the_good_ones() -> None:
    folder = Path("mixed")
    folder.mkdir()
    good = ["it's.txt", 'quo"te.txt', "new\nline.txt", "ünï→.txt", "[red]x.txt", "{{7*7}}.txt", "-dash.txt", "%s.txt"]
    for name in good:
        (folder / name).write_text("We show that the cat sat on the mat. It helps in 7 of 9 cases. " * 9, "utf-8")
    (folder / "junk.txt").write_bytes(bytes(range(256)) * 20)
    (folder / "zero.pdf").touch()
    with (folder / "big.txt").open("wb") as big:
        big.truncate(200 * 2**20)
    Path(os.fsdecode(b"mixed/\xff.txt")).write_text("text")
    code, out, err = launch("--input", "mixed", "--json")
    assert (code, err) == (1, "")
    said = json.loads(out)
    assert (said["counts"]["completed"], said["counts"]["dead"], said["output"]["skipped"]) == (len(good), 3, 1)
    assert {Path(item["key"]).name for item in said["dead_first"]} == {"junk.txt", "zero.pdf", "big.txt"}
    assert len(list(Path("results").glob("*.md"))) == len(good)


def test_the_parts_of_a_paper_are_analysed_at_once() -> None:
    for name in ("machines", "agents"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    agent = Path("agents/analyst.offline.yml")
    agent.write_text(agent.read_text("utf-8") + "  delay: 0.2\n", "utf-8")
    code, out, err = run("machines/launcher.yml", "--limit", "1", "--parallelism", "3", "--workers", "1", "-v")
    assert code == 0, err
    steps = re.findall(r"loop at: (analyze)|final state: (\w+)", err)
    order = [begun or ended for begun, ended in steps]
    assert order == ["launched", "analyze", "analyze", "analyze", "done", "done", "done", "done", "retired"]
    assert re.findall(r"analyze_part \(ID: papers:[\w-]+:analyze:(\d)\)", err) == ["0", "1", "2"]
    (report,) = (json.loads(path.read_text("utf-8")) for path in Path("results").glob("*.json"))
    assert (report["parallelism"], len(report["sections"])) == (3, 3)  # one synthesis of all three
    assert report["rounds"] >= 1
    assert out.startswith("1 done")


def test_without_registration_the_results_are_the_same() -> None:
    found = []
    for registration in ("store", "none"):
        argv = ["--input", str(PAPERS), "--limit", "4", "--registration", registration, "--out", ""]
        store = f"sqlite:{registration}.db"
        assert launch(*argv, "--store", store)[0] == 0
        found.append(sorted(run("results", "--store", store)[1].splitlines()))
        workers = json.loads(run("status", "--all", "--json", "--store", store)[1])["workers"]
        assert len(workers) == (4 if registration == "store" else 0)
    assert found[0] == found[1]
    assert len(found[0]) == 4


# -- from a second terminal, and interrupts ----------------------------------------------------------------------------


async def test_a_second_terminal_and_the_first_interrupt() -> None:
    command = write_items(90, 0.5)
    process = start(*command, "--workers", "3")
    until(lambda counts: counts.get("completed", 0) >= 3 and counts.get("claimed") == 3, process)
    now = status()
    assert [worker["status"] for worker in now["workers"]] == ["active"] * 3
    assert all(worker["pid"] == process.pid for worker in now["workers"])
    assert now["pools"]["slow"]["total"] == 90
    code, out, _ = run("status")
    assert code == 0
    assert re.search(r"^  w\w+-1  active  works on slow:k\d+  \(pool slow · ", out, re.MULTILINE)
    code, out, err = run("results")
    assert (code, err) == (0, "")
    assert {json.loads(line)["result"]["name"] for line in out.splitlines()} >= {"n0", "n1", "n2"}

    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert "3 in hand, 30 s to finish (Ctrl-C again: stop now)" in err
    assert out.splitlines()[-1] == "Stopped. The same command goes on from here."
    after = status()
    assert (after["workers"], after["ended_workers"], after["pools"]["slow"]["claimed"]) == ([], 3, 0)

    code, out, err = run(*command, "--workers", "60")
    done = after["pools"]["slow"]["completed"]
    assert (code, err) == (0, f"pool slow: {done} done, 0 recovered, {90 - done} left; 60 workers\n")
    assert out.startswith(f"90 done ({90 - done} now), 0 dead, 0 left")
    assert set(map(tuple, (await outcomes()).values())) == {("completed",)}
    assert {worker["status"] for worker in json.loads(run("status", "--all", "--json")[1])["workers"]} == {"terminated"}


async def test_the_second_interrupt_stops_now_and_burns_nothing() -> None:
    command = write_items(6, 600)
    process = start(*command, "--json")
    until(lambda counts: counts.get("claimed") == 4, process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    said = json.loads(out)
    assert (code, err) == (130, "")
    assert (said["interrupted"], said["handed_back"], said["counts"]["waiting"]) == (True, 4, 6)
    assert Counter(outcome for ended in (await outcomes()).values() for outcome in ended) == {"released": 4}
    store = open_store("sqlite:fleet.db", must_exist=True)
    assert {(item.attempts, item.crashes) async for item in store.work.pool("slow").items()} == {(0, 0)}
    await store.close()
    assert status()["workers"] == []


async def test_the_deadline_of_a_drain_and_sigterm() -> None:
    command = write_items(5, 600)
    process = start(*command, "--drain-deadline", "0.2")
    until(lambda counts: counts.get("claimed") == 4, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, out.splitlines()[-1]) == (130, "Stopped, 4 handed back. The same command goes on from here.")
    assert "4 in hand, 0.2 s to finish" in err
    assert Counter(outcome for ended in (await outcomes()).values() for outcome in ended) == {"released": 4}


async def test_a_kill_and_the_same_command_again() -> None:
    command = write_items(40, 0.3)
    process = start(*command, "--workers", "3")
    until(lambda counts: counts.get("completed", 0) >= 9 and counts.get("claimed") == 3, process)
    process.kill()
    process.communicate()
    now = status()
    done = now["pools"]["slow"]["completed"]
    held = now["pools"]["slow"]["claimed"]
    assert held == 3
    assert [worker["status"] for worker in now["workers"]] == ["lost"] * 3
    code, out, err = run(*command, "--workers", "40")
    assert (code, err) == (0, f"pool slow: {done} done, {held} recovered, {40 - done} left; 40 workers\n")
    assert out.startswith(f"40 done ({40 - done} now), 0 dead, 0 left")
    ended = Counter(map(tuple, (await outcomes()).values()))
    assert ended == {("completed",): 40 - held, ("crashed", "completed"): held}
    states = Counter(w["status"] for w in json.loads(run("status", "--all", "--json")[1])["workers"])
    assert states == {"terminated": 40, "lost": 3}


async def test_a_fleet_that_stays_waits_for_more() -> None:
    command = [*write_items(2, 0), "--stay", "--workers", "2"]
    assert run(*command[:-3])[0] == 0
    process = start(*command)  # nothing is left, and it waits all the same
    deadline = time.monotonic() + PATIENCE
    while len(status()["workers"]) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
    Path("items.jsonl").write_text('{"key": "late", "name": "late"}\n')
    assert run(*command[:-3], "--workers", "0")[0] == 0
    until(lambda counts: counts.get("completed") == 3, process)
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    assert (code, out.splitlines()[-1]) == (130, "Stopped.")
    assert set(map(tuple, (await outcomes()).values())) == {("completed",)}


# -- wrong inputs ------------------------------------------------------------------------------------------------------


def wrong() -> Iterator[tuple[list[str], int, str]]:
    """What is typed, the exit code, and words of the one message."""
    yield [LAUNCHER, "--input", "missing"], 2, "there is no file or folder 'missing'"
    yield [LAUNCHER, "--worker", "3"], 2, "Did you mean '--workers'?"
    yield ["bad.yml"], 2, "bad.yml:2:1: not YAML"
    yield ["lost.yml"], 2, "there is no 'nowhere.yml'"
    yield [LAUNCHER, "--out", "file/below"], 2, "is a file; name a folder"
    yield [LAUNCHER, "--store", "sqlite:file/below.db"], 3, "cannot be used"
    yield [LAUNCHER, "--store", "sqlite:text.db"], 3, "not an SQLite database"
    yield [LAUNCHER, "--store", "sqlite:other.db"], 3, "a database of another program"
    yield ["status", "--store", "sqlite:none.db"], 3, "there is no store"
    yield ["results", "-o", "folder", "--store", "sqlite:empty.db"], 2, "it is empty"
    yield [str(ROOT / "machines/paper.yml"), "--with", '{"item": {"path": "gone.txt"}}'], 4, "gone.txt is missing"
    yield ["stuck.yml"], 4, "took 3 steps without an end"


@pytest.mark.parametrize(("argv", "code", "words"), list(wrong()), ids=lambda value: str(value)[-40:])
def test_wrong_input(argv: list[str], code: int, words: str) -> None:
    Path("bad.yml").write_text("a: [\n")
    Path("lost.yml").write_text(TASK.replace("  states:", "  machines: {other: nowhere.yml}\n  states:"))
    Path("stuck.yml").write_text(TASK.replace("  states:", "  settings: {max_steps: 3}\n  states:").replace(
        "transitions: [{to: done}]", "transitions: [{condition: context.never, to: done}, {to: wait}]"
    ))  # fmt: skip
    Path("file").write_text("x")
    Path("text.db").write_text("some text, which is no database\n" * 20)
    Path("folder").mkdir()
    with sqlite3.connect("other.db") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    if "sqlite:empty.db" in argv:
        assert launch("--input", "missing", "--store", "sqlite:empty.db")[0] == 2  # leaves a store without a pool
    before = {path.name for path in Path.cwd().iterdir()}
    got, out, err = run(*argv)
    assert (got, out) == (code, "")
    assert err.startswith("flatfleet: ")
    assert words in err
    assert len(err.splitlines()) == 1, err
    assert {path.name for path in Path.cwd().iterdir()} - before <= {"fleet.db", "fleet.db-wal", "fleet.db-shm"}
    got, out, err = run(*argv, "--json")
    assert (got, err) == (code, "")
    about = json.loads(out)["error"]
    assert about["type"].isidentifier()
    assert words in about["message"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_output_that_cannot_be_written() -> None:
    argv = [LAUNCHER, "--input", str(PAPERS), "--limit", "1"]
    with Path("/dev/full").open("w") as full:
        assert run(*argv, stderr=full)[0] == 0  # progress is no reason to stop
        code, _, err = run("results", stdout=full)
    assert (code, err) == (2, "flatfleet: cannot write the output: No space left on device\n")
    assert run("results", "-o", "folder/none.csv")[0] == 2


def test_output_to_what_is_no_regular_file() -> None:
    assert launch("--input", str(PAPERS), "--limit", "2", "--out", "")[0] == 0
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert run("results", "-o", "pipe") == (0, "", "")
    assert len(reader.communicate(timeout=PATIENCE)[0].splitlines()) == 2
    assert Path("pipe").is_fifo()  # written to, and not replaced


def test_a_reader_that_goes_away() -> None:
    assert launch("--input", str(PAPERS), "--limit", "2", "--out", "")[0] == 0
    for argv in (["results"], ["status"], [LAUNCHER, "--limit", "2"]):
        process = start(*argv)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        code, _, err = finish(process)
        assert (code, "Exception" in err) == (0, False)


def test_no_home_and_no_folder(tmp_path: Path) -> None:
    assert run(LAUNCHER, "--store", "memory:", "--limit", "1", env={})[0] == 0
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir '{gone}' && exec '{sys.executable}' '{ROOT / 'run.py'}' '{LAUNCHER}'"
    done = subprocess.run(["sh", "-c", script], cwd=gone, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flatfleet: the folder that you are in does not exist any more; change to another\n"
