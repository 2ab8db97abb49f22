"""Workers that join a fleet from another process, as from another machine: `worker.yml --count N` over the same store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flatfleet.commands import cli
from flatfleet.run import _known
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.stores import open_store

ROOT = Path(__file__).parents[1]
LAUNCHER, WORKER = str(ROOT / "machines/launcher.yml"), str(ROOT / "machines/worker.yml")
PATIENCE = 60.0

TASK = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: slow
  context: {interval: input.delay, name: input.name}
  states:
    wait: {type: initial, action: pace, hooks: flow, transitions: [{to: done}]}
    done: {type: final, output: {name: context.name}}
metadata:
  inputs:
    delay: {type: number, default: 0}
    name: {type: string, default: ""}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_ENGINE", "FLATFLEET_CAPABILITIES"):
        monkeypatch.delenv(name, raising=False)
    Path("slow.yml").write_text(TASK, encoding="utf-8")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*argv: str, **variables: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, str(ROOT / "run.py"), *argv]
        child = subprocess.Popen(command, text=True, env={**os.environ, **variables}, **pipes)
        started.append(child)
        return child

    yield begin
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def enqueue(*rows: dict[str, Any]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    argv = [
        sys.executable,
        str(ROOT / "run.py"),
        LAUNCHER,
        "--task",
        "slow.yml",
        "--input",
        "rows.jsonl",
        "--workers",
        "0",
    ]
    subprocess.run(argv, check=True, capture_output=True, timeout=PATIENCE)


def rows(n: int, **each: Any) -> list[dict[str, Any]]:
    return [{"key": f"k{number}", "name": f"n{number}", **each} for number in range(n)]


def ask(look: Callable[[Any], Any]) -> Any:
    async def asked() -> Any:
        store = open_store(os.environ.get("FLATFLEET_STORE", "sqlite:fleet.db"))
        try:
            return await look(store)
        finally:
            await store.close()

    return asyncio.run(asked())


def until(happened: Callable[[], Any]) -> Any:
    ends = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return found


async def attempts(store: Any) -> dict[str, list[tuple[str, str]]]:
    pool = store.work.pool("slow")
    found = [item async for item in pool.items()]
    return {item.key: [(each.outcome, each.worker) for each in await pool.attempts(item.id)] for item in found}


async def live(store: Any) -> dict[str, str | None]:
    """The live workers, with what each holds."""
    records = [record for record in await store.registration.list() if record.status in ("active", "terminating")]
    return {record.worker_id: record.current_task_id for record in records}


def busy(n: int, prefix: str = "") -> None:
    """Wait until so many workers whose names begin so are at work."""
    until(lambda: sum(item is not None and name.startswith(prefix) for name, item in ask(live).items()) >= n)


# -- the flag ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", "10001", "", "٣", "1e3"])
def test_a_wrong_count_is_refused_at_once(count):
    with pytest.raises(UsageError, match="is no number of workers; write 1 to 10000"):
        cli.parse(["run", WORKER, f"--count={count}"], _known)
    assert not Path("fleet.db").exists()


def test_a_count_is_for_workers():
    assert cli.parse(["run", WORKER, "--count", "10000"], _known).count == 10000
    with pytest.raises(UsageError, match="is none: it has no input worker_id; how many workers it launches is"):
        cli.parse(["run", LAUNCHER, "--count", "4"], _known)
    with pytest.raises(UsageError, match=r"paper.yml is none: it has no input worker_id$"):
        cli.parse(["run", str(ROOT / "machines/paper.yml"), "--count=4"], _known)


def test_a_machine_may_have_an_input_of_that_name():
    own = TASK.replace("delay: {", "count: {type: integer, default: 1}\n    delay: {")
    Path("own.yml").write_text(own.replace("context: {", "context: {count: input.count, "), "utf-8")
    assert cli.parse(["run", "./own.yml", "--count", "4"], _known).inputs["count"] == 4


# -- two processes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_the_items_of_a_pool(start, durable_url, monkeypatch):
    monkeypatch.setenv("FLATFLEET_STORE", durable_url)
    enqueue(*rows(40, delay=0.02))
    children = [start(WORKER, "--task", "slow.yml", "--count", "3", "--worker-id", name) for name in ("here", "there")]
    for child in children:
        out, _ = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0
        assert out.startswith("40 done, 0 dead, 0 left")
    found = ask(attempts)
    assert all([outcome for outcome, _ in each] == ["completed"] for each in found.values())
    records = ask(lambda store: store.registration.list())
    assert {record.worker_id for record in records} == {f"{name}-{n}" for name in ("here", "there") for n in (1, 2, 3)}
    assert {record.status for record in records} == {"terminated"}
    assert sum(record.metadata["processed"] for record in records) == 40


@pytest.mark.slow
def test_who_joins_serves_what_the_others_cannot(start):
    enqueue(*rows(4), *({"key": f"g{n}", "name": "g", "requires": "gpu"} for n in range(4)))
    joined = start(WORKER, "--task", "slow.yml", "--count", "2", "--stay", FLATFLEET_CAPABILITIES="gpu")
    until(lambda: ask(live))
    out, _ = start(WORKER, "--task", "slow.yml", "--count", "2").communicate(timeout=PATIENCE)
    assert out.startswith("8 done")
    joined.send_signal(signal.SIGTERM)
    joined.communicate(timeout=PATIENCE)
    found = ask(attempts)
    by = {record.worker_id: record.capabilities for record in ask(lambda store: store.registration.list())}
    assert all(by[found[f"g{n}"][0][1]] == ["gpu"] for n in range(4))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inline", "process"])
def test_sigterm_drains_who_has_joined_and_nobody_else(start, engine):
    enqueue(*rows(90, delay=0.2))
    fleet = start(LAUNCHER, "--task", "slow.yml", "--input", "rows.jsonl", "--workers", "2")
    until(lambda: len(ask(live)) == 2)
    joined = start(WORKER, "--task", "slow.yml", "--count", "3", "--worker-id", "j", "--engine", engine)
    busy(3, "j-")
    joined.send_signal(signal.SIGTERM)
    out, err = joined.communicate(timeout=PATIENCE)
    assert (joined.returncode, "in hand, 30 s to finish" in err) == (130, True), (out, err)
    out, _ = fleet.communicate(timeout=PATIENCE)
    assert (fleet.returncode, out.partition(",")[0]) == (0, "90 done")
    found = ask(attempts)
    assert all([outcome for outcome, _ in each] == ["completed"] for each in found.values())
    records = {record.worker_id: record for record in ask(lambda store: store.registration.list())}
    assert {records[name].metadata["ended"] for name in ("j-1", "j-2", "j-3")} == {"drained"}


@pytest.mark.slow
def test_at_the_end_of_its_grace_what_it_holds_goes_back_unburnt(start):
    enqueue(*rows(3, delay=60))
    joined = start(WORKER, "--task", "slow.yml", "--count", "3", "--drain-deadline", "0.2")
    busy(3)
    joined.send_signal(signal.SIGTERM)
    out, _ = joined.communicate(timeout=PATIENCE)
    assert (joined.returncode, "Stopped, 3 handed back. The same command goes on from here." in out) == (130, True)
    assert {key: [outcome for outcome, _ in each] for key, each in ask(attempts).items()} == {
        "k0": ["released"],
        "k1": ["released"],
        "k2": ["released"],
    }
    items = ask(lambda store: store.driver.items("slow", None, 10, None))
    assert [(item.state, item.attempts, item.crashes) for item in items] == [("ready", 0, 0)] * 3


@pytest.mark.slow
def test_they_are_drained_from_a_third_terminal(start):
    enqueue(*rows(200, delay=0.1))
    joined = start(WORKER, "--task", "slow.yml", "--count", "2", "--worker-id", "j", "--stay")
    busy(2)
    out, err = start("drain", "j-1", "j-2").communicate(timeout=PATIENCE)
    assert "j-1" in out + err
    out, _ = joined.communicate(timeout=PATIENCE)
    assert joined.returncode == 130
    assert "the workers here were drained; the same command goes on" in out
    assert not ask(live)


@pytest.mark.slow
def test_who_starts_again_after_a_kill_takes_up_what_was_held(start):
    enqueue(*rows(3, delay=0.5))
    first = start(WORKER, "--task", "slow.yml", "--count", "3")
    busy(3)
    first.kill()
    first.communicate()
    again = start(WORKER, "--task", "slow.yml", "--count", "3")
    out, _ = again.communicate(timeout=PATIENCE)
    assert (again.returncode, out.partition(",")[0]) == (0, "3 done")
    assert {tuple(outcome for outcome, _ in each) for each in ask(attempts).values()} == {("crashed", "completed")}
