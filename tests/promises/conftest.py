"""What the promise tests share: host processes that are surely stopped, the log of what ran, and CI or soak sizes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from flatfleet.runtime.sources import expand
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.records import Attempt, Counts, Item
from flatfleet.runtime.stores.store import Store

T = TypeVar("T")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ORDER = {"first": 0, "second": 1, "third": 2, "done": 3}


@pytest.fixture
def size() -> Callable[[Any, Any], Any]:
    """`size(ci, soak)`: the second where FLATFLEET_SOAK=1 (`make soak`), else the first."""
    soak = os.environ.get("FLATFLEET_SOAK") == "1"
    return lambda ci, long: long if soak else ci


@pytest.fixture(autouse=True, scope="session")
def _hears() -> Iterator[None]:
    """Let processes hear the signals that this one may have been started to ignore, by nohup or a shell's `&`."""
    numbers = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


class Process(subprocess.Popen[str]):
    """A process with a group of its own, whose output goes into files, so that no pipe can fill."""

    def __init__(self, command: list[str], out: Path, **options: Any) -> None:
        self.out, self.err = out.with_suffix(".out"), out.with_suffix(".err")
        with self.out.open("w") as stdout, self.err.open("w") as stderr:
            super().__init__(
                command, stdout=stdout, stderr=stderr, text=True, start_new_session=True, cwd=ROOT, **options
            )

    def stop(self) -> None:
        """SIGKILL the whole group, stopped or not."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(10)

    def end(self, within: float = 60.0) -> str:
        """Wait for the process and return all that it printed."""
        self.wait(within)
        return self.out.read_text() + self.err.read_text()


@dataclass
class Trial:
    """One store, one log, and processes over them."""

    path: Path
    processes: list[Process]
    lease: float = 60.0
    root: Path = ROOT
    at: str = ""
    """The URL of its store, if that is not a file of its own."""

    @property
    def db(self) -> Path:
        return self.path / "fleet.db"

    @property
    def url(self) -> str:
        return self.at or f"sqlite:{self.db}"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    # -- items -----------------------------------------------------------------------------------------------------

    def items(self, items: list[dict[str, Any]], name: str = "items", **limits: int) -> Path:
        """Write the items as a source; with limits, push them, too (a launcher will find them known)."""
        source = self.path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(item) + "\n" for item in items))

        async def push(store: Store) -> None:
            pool = store.work.pool("trial")
            await pool.push_many([pool.new(found.data, key=found.key, **limits) for found in expand(str(source))])

        if limits:
            self.ask(push)
        return source

    def ask(self, question: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Run `question(store)` over the store of this trial."""

        async def run() -> T:
            store = open_store(self.url)
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def counts(self) -> Counts:
        return self.ask(lambda store: store.work.pool("trial").counts())

    def all_items(self) -> dict[str, Item]:
        async def read(store: Store) -> dict[str, Item]:
            return {item.key: item async for item in store.work.pool("trial").items()}

        return self.ask(read)

    def attempts(self) -> dict[str, list[Attempt]]:
        """Every item's ended attempts, by key."""

        async def read(store: Store) -> dict[str, list[Attempt]]:
            pool = store.work.pool("trial")
            return {item.key: await pool.attempts(item.id) async for item in pool.items()}

        return self.ask(read)

    def checkpoints(self) -> dict[str, str]:
        """{execution id: state} of all committed checkpoints."""

        async def read(store: Store) -> dict[str, str]:
            found = {}
            for row in await store.driver.snapshots(None, None):
                whole = await store.driver.load_snapshot(row.execution_id)
                if whole is not None:
                    found[row.execution_id] = json.loads(whole.body)["current_state"]
            return found

        return self.ask(read)

    def lines(self) -> int:
        """How many states have begun."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def ran(self) -> list[dict[str, Any]]:
        """What the states have noted, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def ran_by_item(self) -> dict[str, list[str]]:
        ran: defaultdict[str, list[str]] = defaultdict(list)
        for line in self.ran():
            ran[line["item"]].append(line["state"])
        return ran

    # -- processes -------------------------------------------------------------------------------------------------

    def start(self, *args: str, **options: Any) -> Process:
        return self.python(HERE / "host.py", *args, **options)

    def launch(self, source: Path, workers: int = 8, *more: str, **options: Any) -> Process:
        """Start `launcher.yml` over a source, with trial.yml as its task."""
        return self.start(
            "machines/launcher.yml",
            *("--task", str(HERE / "trial.yml"), "--input", str(source), "--workers", str(workers)),
            *("--out", "", "--store", self.url, "--json", *more),
            **options,
        )

    def work(self, *more: str, machine: str = "machines/worker.yml", **options: Any) -> Process:
        """Start one worker alone, as a process of its own."""
        args = (machine, "--task", str(HERE / "trial.yml"), "--pool", "trial")
        return self.start(*args, "--store", self.url, "--json", *more, **options)

    def python(
        self, script: Path, *args: str, prefix: Sequence[str] = (), outputs: Path | None = None, log: Path | None = None
    ) -> Process:
        """Start a script of this folder; it may have a command before it, and say and note things elsewhere."""
        env = os.environ | {"TRIAL_LOG": str(log or self.log), "TRIAL_LEASE": str(self.lease)}
        command = [*prefix, sys.executable, str(script), *args]
        process = Process(command, (outputs or self.path) / f"process{len(self.processes)}", env=env)
        self.processes.append(process)
        return process

    def until(self, happened: Callable[[], Any], within: float = 30.0) -> Any:
        """Wait until `happened()` is true and return it; fail, with what the processes said, after `within` seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            if value := happened():
                return value
            time.sleep(0.005)
        said = [process.err.read_text()[-2000:] for process in self.processes]
        raise AssertionError(f"it has not happened within {within} s; the processes said {said}")

    def until_ran(self, item: str, state: str, within: float = 30.0) -> None:
        self.until(lambda: any(line["item"] == item and line["state"] == state for line in self.ran()), within)


@pytest.fixture
def trial(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """A trial on SQLite; `both_stores` makes it one on a Redis server of its own, with an append-only file, too."""
    made = Trial(tmp_path, [])
    if getattr(request, "param", "sqlite") == "redis":
        made.at = request.getfixturevalue("own_redis")("--appendonly", "yes").url
    yield made
    for process in made.processes:
        process.stop()
