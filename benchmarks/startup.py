"""From nothing to the first item done, and to the help text: whole processes, as a user starts them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flatfleet.benchmarks.harness import MACHINES, ROOT, Case, Contestant, Goal, Values, correct
from flatfleet.benchmarks.peers import huey_module

FIRST, WHOLE, TOOK = "s to the first item", "s for the whole command", "s"

HUEY = """
import time
from huey import SqliteHuey
app = SqliteHuey(filename="huey.db", results=True, fsync=False)
@app.task()
def work(n):
    return time.time()
results = [work(n) for n in range({n})]
app.create_consumer(workers=1, worker_type="thread").start()
print(min(result.get(blocking=True, backoff=1, max_delay=0.005) for result in results))
"""


def _command(folder: Path, *argv: str) -> tuple[float, float, str]:
    """Run a command to its end: (when it was started, seconds that it took, what it printed)."""
    at, started = time.time(), time.perf_counter()
    pipes: dict[str, Any] = {"capture_output": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(argv, cwd=folder, text=True, timeout=120, check=False, **pipes)
    seconds = time.perf_counter() - started
    correct(done.returncode == 0, f"{' '.join(argv[1:3])} ended with {done.returncode}: {done.stderr[-300:]}")
    return at, seconds, done.stdout


def _launch(folder: Path, items: int, *flags: str) -> Values:
    store = ("--store", f"sqlite:{folder}/fleet.db")
    at, seconds, _ = _command(
        folder, sys.executable, str(ROOT / "run.py"), str(ROOT / "machines/launcher.yml"), *store, *flags
    )
    with sqlite3.connect(folder / "fleet.db") as db:
        done, first = db.execute("SELECT COUNT(*), MIN(finished) FROM items WHERE state = 'completed'").fetchone()
    db.close()
    correct(done == items, f"{done} of {items} items were done")
    return {FIRST: first - at, WHOLE: seconds}


def _noop(folder: Path, n: int) -> Values:
    rows = folder / "items.jsonl"
    rows.write_text("".join(json.dumps({"n": i}) + "\n" for i in range(n)), encoding="utf-8")
    return _launch(folder, n, "--task", str(MACHINES / "noop.yml"), "--input", str(rows), "--workers", "1")


def _papers(folder: Path, n: int) -> Values:
    return _launch(folder, n, "--limit", str(n), "--out", str(folder / "results"))


def _huey(folder: Path, n: int) -> Values:
    huey_module()
    at, seconds, printed = _command(folder, sys.executable, "-c", HUEY.format(n=n))
    return {FIRST: float(printed) - at, WHOLE: seconds}


def _python(*argv: str) -> Contestant:
    names = {"-c": "python -c " + repr(argv[-1]), "-m": f"python -m {argv[1]} --help"}
    name = names.get(argv[0], "python run.py --help")

    def run(folder: Path, n: int) -> Values:
        if "huey" in argv[1]:
            huey_module()
        return {TOOK: _command(folder, sys.executable, *argv)[1]}

    return Contestant(name, run, 1)


CASES = (
    Case(
        "first-item",
        "startup",
        "cold start, one worker",
        {FIRST: "less", WHOLE: "less"},
        (
            Contestant("python run.py machines/launcher.yml --task noop.yml", _noop, 1),
            Contestant("python run.py machines/launcher.yml (12 papers)", _papers, 12),
            Contestant("huey: enqueue, consumer", _huey, 1),
        ),
        (Goal("python run.py machines/launcher.yml --task noop.yml", FIRST, 0.8),),
    ),
    Case(
        "help",
        "startup",
        "the help text, and what no command can be faster than",
        {TOOK: "less"},
        (
            _python(str(ROOT / "run.py"), "--help"),
            _python("-c", "pass"),
            _python("-c", "import flatmachines"),
            _python("-m", "huey.bin.huey_consumer", "--help"),
        ),
        (Goal("python run.py --help", TOOK, 0.3),),
    ),
)
