"""A fleet in one terminal, steered from another: every verb as a real process, while the fleet runs and after it ended."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
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
PATIENCE = 60.0
SOON = 30.0
"""Seconds after a verb has ended within which `status` shows what it did: one, and what a busy machine takes to say so."""

TASK = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: slow
  context: {launch_interval: input.delay, interval: input.interval, name: input.name}
  states:
    look: {type: initial, transitions: [{to: wait}]}
    wait: {action: pace, hooks: flow, transitions: [{to: done}]}
    done: {type: final, output: {name: context.name}}
metadata:
  inputs:
    delay: {type: number, default: 0}
    interval: {type: string, default: "", description: a text here is the end of the item}
    name: {type: string, default: ""}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_AGENTS", "FLATAGENTS_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    Path("slow.yml").write_text(TASK, "utf-8")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `flatfleet …` as a process; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "run.py"), *argv]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, encoding="utf-8", **pipes)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def verb(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Any]:
    """Run a verb; return what it says, or with --json what it prints."""

    def run(*argv: str, code: int = 0, err: str = "") -> Any:
        got = finish(start(*argv))
        assert (got[0], got[2]) == (code, err), got
        return json.loads(got[1]) if "--json" in argv else got[1]

    return run


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def write_items(count: int, delay: float, *bad: int) -> list[str]:
    """Make `items.jsonl`, and return the flags that work through it; the `bad` ones die."""
    rows = [
        {"key": f"k{n}", "name": f"n{n}", "delay": delay} | ({"interval": "x"} if n in bad else {})
        for n in range(count)
    ]
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return [LAUNCHER, "--task", "slow.yml", "--input", "items.jsonl"]


def outcomes() -> dict[str, list[str]]:
    """How the attempts at each item ended, by key."""

    async def read() -> dict[str, list[str]]:
        store = open_store("sqlite:fleet.db", must_exist=True)
        try:
            found = store.work.pool("slow")
            return {item.key: [each.outcome for each in await found.attempts(item.id)] async for item in found.items()}
        finally:
            await store.close()

    return asyncio.run(read())


def counts() -> dict[str, int]:
    async def read() -> dict[str, int]:
        store = open_store("sqlite:fleet.db", must_exist=True)
        try:
            found = await store.work.pool("slow").counts()
            return {"completed": found.completed, "claimed": found.claimed, "dead": found.dead}
        finally:
            await store.close()

    return asyncio.run(read()) if Path("fleet.db").exists() else dict.fromkeys(("completed", "claimed", "dead"), 0)


def until(holds: Callable[[dict[str, int]], bool], *running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds(counts()):
        assert time.monotonic() < deadline, counts()
        assert all(process.poll() is None for process in running), [process.communicate() for process in running]
        time.sleep(0.02)


def test_a_fleet_is_steered_from_another_terminal(start: Any, verb: Any) -> None:
    """Every verb while it runs; each is visible in status; drained workers stay away; every item completes exactly once."""
    command = write_items(500, 0.5, 3)
    fleet = start(*command, "--workers", "2")
    until(lambda now: now["claimed"] == 2 and now["dead"] == 1, fleet)

    def seen(holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        begun = time.monotonic()
        while True:
            now: dict[str, Any] = verb("status", "--json")
            pool = {**now["pools"]["slow"], "workers": now["workers"]}
            if holds(pool):
                return pool
            assert time.monotonic() - begun < SOON, pool
            time.sleep(0.05)

    def active(pool: dict[str, Any]) -> int:
        return sum(row["status"] == "active" for row in pool["workers"])

    first = seen(lambda pool: True)
    assert (first["target"], first["live"], [host["pid"] for host in first["hosts"]]) == (2, 2, [fleet.pid])

    said = verb("scale", "12", "--if-current", "2", "--reason", "the night is cheap")
    assert re.fullmatch(r"slow: 2 → 12: launching 10 workers \(decision \w{32}\): the night is cheap\n", said)
    assert seen(lambda pool: active(pool) == pool["live"] == pool["target"] == 12)["last_decision"]["launches"] == 10
    refused = verb("scale", "+3", "--if-current", "2", "--json", code=1)["decision"]
    assert (refused["outcome"], refused["target"]) == ("refused", 12)
    assert "dry run: 12 → 11: would drain 1 worker" in verb("scale", "-1", "--dry-run")
    said = verb("scale", "3", "--reason", "the day is not")
    assert re.fullmatch(r"slow: 12 → 3: draining 9 workers \(decision \w{32}\): the day is not\n", said)
    three = seen(lambda pool: active(pool) == pool["live"] == pool["target"] == 3)
    assert three["last_decision"]["reason"] == "the day is not"

    names = sorted(row["id"] for row in verb("workers", "--json")["workers"] if row["status"] == "active")
    assert len(names) == 3
    assert "slow: 3 → 2: draining 1 worker" in verb("drain", names[0], "--reason", "one less")
    two = seen(lambda pool: active(pool) == pool["live"] == pool["target"] == 2)
    assert two["last_decision"]["drained"] == [names[0]]
    assert "slow: 2 → 4: launching 2 workers" in verb("scale", "+2")  # of the two that are left: nobody was replaced

    assert verb("pause", "--json")["paused"]
    paused = seen(lambda pool: pool["paused"] and not pool["claimed"])
    assert active(paused) == 4
    left = paused["left"]
    assert 100 < left < 495
    assert seen(lambda pool: True)["left"] == left
    assert len(verb("items", "--json", "--state", "waiting", "--limit", "0")["items"]) == left

    dead = verb("dead", "--json")
    assert [(each["error_type"], each["example_keys"]) for each in dead["errors"]] == [("UsageError", ["k3"])]
    told = verb("explain", "k3")
    assert re.search(r"^  1  failed  \w+-\d  .*\n     look → wait\n     UsageError: interval is ", told, re.MULTILINE)
    assert verb("retry", "k3", "--yes") == "1 item of pool slow ready again\n"
    assert verb("cancel", "k499", "slow:k498", "--yes") == "2 items of pool slow cancelled\n"
    assert "deleted of what ended" in verb("gc")
    assert len(verb("results", "--state", "completed").splitlines()) == 500 - left - 1

    assert verb("resume") == "pool slow is resumed\n"
    seen(lambda pool: not pool["paused"] and pool["claimed"] == 4)
    said = verb("drain", "--drain-deadline", "10m", "--reason", "good night")
    assert "slow: 4 → 0: draining 4 workers" in said
    code, out, err = finish(fleet)
    assert code == 130
    assert " left: the workers here were drained; the same command goes on\n" in out
    after = seen(lambda pool: active(pool) == 0 and pool["target"] == 0)
    assert (after["claimed"], after["hosts"]) == (0, [])
    reasons = [each["reason"] for each in decisions()]
    assert reasons == ["the night is cheap", None, None, "the day is not", "one less", None, "good night"]

    verb("retry", "--error", "Cancelled", "--yes")
    Path("slow.yml").write_text(TASK.replace("interval: input.interval", "text: input.interval"), "utf-8")
    code, out, err = finish(start(*command, "--workers", "40", "--retry-dead", "true"))
    assert code == 0, (out, err)
    ended = outcomes()
    assert len(ended) == 500
    assert {key: each for key, each in ended.items() if each != ["completed"]} == {
        "k3": ["failed", "failed", "completed"]
    }


def decisions() -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        store = open_store("sqlite:fleet.db", must_exist=True)
        try:
            return await store.fleet("slow").decisions(100)
        finally:
            await store.close()

    return asyncio.run(read())


def test_every_verb_after_the_fleet_has_ended(start: Any, verb: Any) -> None:
    finish(start(*write_items(6, 0, 1)))
    now = verb("status", "--json")["pools"]["slow"]
    assert (now["completed"], now["dead"], now["live"], now["hosts"]) == (5, 1, 0, [])
    assert verb("workers").startswith("store sqlite:fleet.db: 0 workers (4 ended; --all shows them)")
    assert len(verb("workers", "--all", "--json")["workers"]) == 4
    assert len(verb("items").splitlines()) == 6
    assert "result:" in verb("explain", "slow:k0")
    assert "1 × UsageError" in verb("dead")
    assert "\n  no item is left, so the launcher's command hosts it only with --stay\n" in verb("scale", "4")
    assert verb("scale", "--forget") == "slow: 1 message dropped: target 4\n"
    assert verb("drain") == "pool slow has no worker to drain\n"
    name = verb("workers", "--all", "--json")["workers"][0]["id"]
    assert verb("drain", name) == f"{name} is terminated: left alone\n"
    assert "is paused until it is resumed" in verb("pause")
    assert verb("resume") == "pool slow is resumed\n"
    assert "; no worker is there for slow: start a launcher\n" in verb("retry", "--since", "1d", "--yes")
    assert verb("cancel", "k1", "k2", "--yes").splitlines() == [
        "slow:k2 is completed: left alone",
        "1 item of pool slow cancelled",
    ]
    assert "4 workers" in verb("gc", "--older", "0", "--vacuum")
    assert verb("workers", "--all", "--json")["workers"] == []
    assert len(verb("results").splitlines()) == 6
    for argv, words in (
        (["drain", "w1"], "no worker 'w1' in this store: it has none"),
        (["explain", "slow:k9"], "no item 'slow:k9' in pool 'slow'. Did you mean 'slow:k"),
        (["scale", "8", "--pool", "slwo"], "no pool 'slwo' in sqlite:fleet.db — known: slow. Did you mean 'slow'?"),
        (["retry"], "add --yes"),
    ):
        code, out, err = finish(start(*argv))
        assert (code, out, err.startswith("flatfleet: "), len(err.splitlines())) == (2, "", True, 1)
        assert words in err
        assert words in json.loads(finish(start(*argv, "--json"))[1])["error"]["message"]


def test_the_command_that_is_named_hosts_a_fleet_that_was_only_enqueued(start: Any, verb: Any) -> None:
    finish(start(*write_items(12, 0.1), "--workers", "0"))
    said = verb("scale", "3").splitlines()
    (line,) = [line for line in said if "any time: flatfleet " in line]
    words = line.partition("flatfleet ")[2].replace("FILE", "slow.yml").split()
    host = start(*words)
    until(lambda now: now["completed"] == 12, host)
    status = verb("status", "--json")["pools"]["slow"]
    assert (status["target"], status["live"], status["messages"]) == (3, 3, 0)
    assert {row["launched_by"] for row in verb("workers", "--json")["workers"]} == {status["last_decision"]["id"]}
    host.send_signal(signal.SIGINT)
    assert finish(host)[0] == 130


def test_a_slow_step_is_seen_while_it_lasts_and_after_a_kill(start: Any, verb: Any) -> None:
    fleet = start(*write_items(200, 0.5), "--workers", "1", "--launch-interval", "1")
    until(lambda now: now["claimed"] == 1, fleet)
    slow = start("scale", "8", "--max-launch-per-step", "1", "--reason", "slowly")
    until(lambda now: now["claimed"] >= 2, fleet)
    said = verb("status")
    assert re.search(r"^  target 1 · \d live · hosted by pid ", said, re.MULTILINE), said
    assert re.search(r"^  at work on: 1 → 8, [1-7] live: slowly$", said, re.MULTILINE), said
    fleet.kill()
    fleet.communicate()
    finish(slow)
    begun = verb("status", "--json")["pools"]["slow"]["at_work"]
    assert (begun["target"], begun["reason"], begun["message"]["target"]) == (8, "slowly", 8)
    assert "  was at work on, and whoever hosts the fleet next goes on with: 1 → 8, " in verb("status")


def test_a_batch_whose_workers_were_drained_says_so(start: Any, verb: Any) -> None:
    command = write_items(200, 0.2)
    fleet = start(*command, "--workers", "2")
    until(lambda now: now["completed"] >= 2, fleet)
    assert "draining 2 workers" in verb("scale", "0")
    code, out, _ = finish(fleet)
    left = 200 - counts()["completed"]
    assert code == 130
    assert f"{left} left: the workers here were drained; the same command goes on\n" in out
    fleet = start(*command, "--workers", "2", "--json")
    until(lambda now: now["claimed"] == 2, fleet)
    verb("drain")
    code, out, _ = finish(fleet)
    assert (code, json.loads(out)["drained"]) == (130, 2)
    code, out, _ = finish(start(*command, "--workers", "100"))
    assert (code, "200 done" in out, "drained" in out) == (0, True, False)


def test_a_batch_says_that_it_was_drained_though_its_hosts_have_died_over_it(start: Any, verb: Any) -> None:
    fleet = start(*write_items(6, 60), "--workers", "2", "--engine", "process?max_size=1&slots=2")
    until(lambda now: now["claimed"] == 2, fleet)
    verb("scale", "0")
    (host,) = {worker["pid"] for worker in verb("workers", "--json")["workers"]}
    os.kill(host, signal.SIGKILL)
    code, out, _ = finish(fleet)
    assert (code, "6 left: the workers here were drained; the same command goes on\n" in out) == (130, True)


def test_a_launcher_that_stays_hosts_a_fleet_of_none(start: Any, verb: Any) -> None:
    fleet = start(*write_items(3, 0), "--workers", "0", "--stay")
    line = fleet.stderr.readline()
    assert line == "fleet slow is served here: it waits for items; Ctrl-C ends it\n"
    assert "launching 2 workers" in verb("scale", "2")
    until(lambda now: now["completed"] == 3, fleet)
    fleet.send_signal(signal.SIGINT)
    code, out, _ = finish(fleet)
    assert (code, "3 done, 0 dead, 0 left" in out) == (130, True)


def test_a_paused_fleet_says_so_at_once(start: Any, verb: Any) -> None:
    command = write_items(3, 0)
    finish(start(*command, "--workers", "0"))
    verb("pause")
    fleet = start(*command, "--workers", "1")
    assert fleet.stderr.readline() == "pool slow: 0 done, 0 recovered, 3 left; 1 worker; paused until it is resumed\n"
    assert "paused until it is resumed · 0.0/s · 1 worker" in fleet.stderr.readline()
    verb("resume")
    assert finish(fleet)[0] == 0


def test_a_killed_fleet_is_hosted_by_whoever_scales_it(start: Any, verb: Any) -> None:
    command = write_items(200, 0.1)
    fleet = start(*command, "--workers", "2")
    until(lambda now: now["completed"] >= 4 and now["claimed"] == 2, fleet)
    assert verb("scale", "3", "--json")["decision"]["outcome"] == "applied"
    fleet.kill()
    fleet.communicate()
    assert "the message waits" in verb("scale", "2", "--reason", "first")
    told = verb("scale", "+4", "--host", "--json", "--reason", "second")
    assert (told["decision"]["target_before"], told["decision"]["target"], told["decision"]["live"]) == (2, 6, 6)
    assert told["run"]["counts"]["completed"] == 200
    assert [each["reason"] for each in decisions()[-2:]] == ["first", "second"]
    ended = Counter(map(tuple, outcomes().values()))
    assert set(ended) == {("completed",), ("crashed", "completed")}
    assert ended["crashed", "completed"] <= 3
    now = verb("status", "--json")["pools"]["slow"]
    assert (now["target"], now["hosts"], now["messages"]) == (None, [], 0)  # the fleet has closed


def test_a_host_is_interrupted_and_says_so(start: Any, verb: Any) -> None:
    fleet = start(*write_items(300, 0.2), "--workers", "1")
    until(lambda now: now["completed"] >= 1, fleet)
    fleet.send_signal(signal.SIGINT)
    assert finish(fleet)[0] == 130
    host = start("scale", "2", "--host", "--stay")
    until(lambda now: now["claimed"] == 2, host)
    assert [each["pid"] for each in verb("status", "--json")["pools"]["slow"]["hosts"]] == [host.pid]
    assert verb("scale", "3", "--host").startswith("slow: 2 → 3: launching 1 worker (")  # who hosts it already does it
    until(lambda now: now["claimed"] == 3, host)
    host.send_signal(signal.SIGINT)
    code, out, err = finish(host)
    assert (code, out.splitlines()[-1]) == (130, "Stopped. The same command goes on from here.")
    assert re.search(r"^slow: 1 → 2: launching 2 workers \(decision \w{32}\)$", err, re.MULTILINE)
    assert verb("status", "--json")["pools"]["slow"]["target"] == 3
    assert set(map(tuple, outcomes().values())) == {("completed",), ()}


# -- asking ------------------------------------------------------------------------------------------------------------


class Terminal:
    """`flatfleet …` on a terminal of its own; what it writes to standard output goes elsewhere."""

    def __init__(self, *argv: str) -> None:
        self.master, tty = pty.openpty()
        command = [sys.executable, str(ROOT / "run.py"), *argv]
        pipes = {"stdin": tty, "stderr": tty, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
        os.close(tty)
        self.shown = ""

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            assert self.process.poll() is None, (self.shown, self.process.communicate())
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 1000).decode()

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.master)


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def begin(*argv: str) -> Terminal:
        made.append(Terminal(*argv))
        return made[-1]

    yield begin
    for terminal in made:
        terminal.close()


@pytest.mark.parametrize(
    ("answer", "code", "out"),
    [
        ("y\n", 0, "2 items of pool slow ready again"),
        ("\n", 0, "nothing was changed"),
        ("\x04", 0, "nothing was changed"),
    ],
)
def test_a_question_on_a_terminal(answer: str, code: int, out: str, start: Any, on_terminal: Any) -> None:
    finish(start(*write_items(3, 0, 0, 1)))
    asked = on_terminal("retry")
    asked.wait_for("Try 2 dead items of pool slow again (2 × UsageError)? [y/N] ")
    os.write(asked.master, answer.encode())
    ended, said = asked.end()
    assert (ended, said.splitlines()[0].partition(";")[0]) == (code, out)


def test_a_question_that_is_interrupted(start: Any, on_terminal: Any) -> None:
    finish(start(*write_items(3, 0, 0, 1)))
    asked = on_terminal("cancel", "k2", "--json")
    code, out = asked.end()
    assert (code, json.loads(out)["cancelled"]) == (0, 0)  # it is completed: there is nothing to ask
    asked = on_terminal("retry", "--json")
    asked.wait_for("[y/N] ")
    asked.process.send_signal(signal.SIGINT)
    code, out = asked.end()
    assert (code, json.loads(out)["error"]["message"]) == (130, "interrupted")
    assert counts()["dead"] == 2
