"""The orchestrator benchmarks: what they count, on simulated clocks; a few tasks on the real fleet; nothing is timed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import selectors
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flatfleet.benchmarks import orchestrator, orchestrator_sim, resources
from flatfleet.benchmarks.harness import Wrong
from flatfleet.benchmarks.orchestrator_sim import Span, ideal, simulate, summary
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.policies.queueing import Queue

ROOT = Path(__file__).parents[1]


class Leap(selectors.SelectSelector):
    """Waits by advancing the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


def simulated(*given: Any) -> list[Span]:
    """What the simulation tells on a clock that only sleeping advances."""
    leap = Leap()
    loop = asyncio.SelectorEventLoop(leap)
    loop.time = lambda: leap.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(simulate(*given))


def flat(spans: Iterable[Span]) -> list[float]:
    return [time for span in spans for time in span]


def test_latency_is_the_mean_from_dispatch_to_completion_and_throughput_counts_the_whole_time() -> None:
    told = summary([(10.0, 10.5), (10.25, 12.0), (11.0, 11.75)])
    assert told == {"total_duration_s": 2.0, "avg_latency_s": 1.0, "throughput": 1.5}
    assert summary([(1.0, 1.0)])["throughput"] == math.inf


def test_the_simulation_on_a_clock_of_its_own() -> None:
    """Two workers, five tasks of 2 s, 1 s of network: done at 3, 3, 5, 5, 7."""
    spans = simulated(5, 2, 1.0, 2.0)
    assert flat(spans) == pytest.approx(flat((0, end) for end in (3, 3, 5, 5, 7)))
    assert summary(spans) == pytest.approx({"total_duration_s": 7, "avg_latency_s": 23 / 5, "throughput": 5 / 7})


@pytest.mark.parametrize("given", [(1, 1, 0.0, 0.5), (20, 2, 0.01, 0.01), (7, 10, 0.3, 0.2), (9, 4, 0.5, 0.0)])
def test_without_costs_the_simulation_is_the_ideal(given: tuple[int, int, float, float]) -> None:
    assert flat(simulated(*given)) == pytest.approx(flat(ideal(*given)), abs=1e-9)


def test_the_monitor_tells_the_share_of_a_core_and_the_most_memory() -> None:
    seconds, spent, bytes_ = iter([10.0, 10.5, 12.0]), iter([3.0, 3.1, 3.5]), iter([5_000_000, 9_500_000, 7_000_000])
    monitor = resources.Monitor(lambda: next(seconds), lambda: next(spent), lambda: next(bytes_))
    assert (monitor.cpu_percent, monitor.memory_mb) == (0, 0)
    for _ in range(3):
        monitor.look()
    assert (monitor.cpu_percent, monitor.memory_mb, monitor.samples) == (pytest.approx(25), 9.5, 3)


def test_the_monitor_samples_by_itself() -> None:
    looked: list[float] = []
    with resources.Monitor(memory=lambda: looked.append(time.perf_counter()) or 1) as monitor:  # type: ignore[func-returns-value]
        while len(looked) < 3:
            pass
    assert resources.INTERVAL == 0.05
    assert monitor.samples == len(looked) >= 4
    assert resources.rss() > 1_000_000


FIELDS = {
    "workers", "tasks", "network_latency_s", "task_time_s", "total_duration_s", "avg_latency_s", "throughput",
    "ideal_avg_latency_s", "ideal_throughput", "cpu_percent", "memory_mb", "samples",
}  # fmt: skip


@pytest.mark.parametrize("argv", [["benchmarks/orchestrator_sim.py"], ["-m", "benchmarks.orchestrator_sim", "--json"]])
def test_the_simulation_prints_json(argv: list[str]) -> None:
    flags = ["--workers", "2", "--tasks", "6", "--network-latency", "0.01", "--task-time", "1ms"]
    told = json.loads(command(*argv, *flags).stdout)
    assert set(told) == FIELDS
    assert (told["workers"], told["tasks"], told["network_latency_s"], told["task_time_s"]) == (2, 6, 0.01, 0.001)
    assert told["avg_latency_s"] >= told["ideal_avg_latency_s"] == pytest.approx(0.012)
    assert told["throughput"] == pytest.approx(6 / told["total_duration_s"], rel=1e-3)


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


# -- the real fleet ----------------------------------------------------------------------------------------------------


def test_the_fleet_does_each_task_once_and_tells_when(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--max-workers", "2", "--tasks", "3,5", "--task-times", "1ms,2ms", "--network-latency", "2ms", "--json"]
    assert orchestrator.main(argv) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["load"] == 0.7
    assert [(row["task_time_s"], row["tasks"], row["workers"]) for row in told["rows"]] == [
        (time, number, workers) for time in (0.001, 0.002) for number in (3, 5) for workers in (1, 2)
    ]
    assert len(printed.err.splitlines()) == len(told["rows"])
    for row in told["rows"]:
        assert row["tasks_per_s"] <= row["ideal_tasks_per_s"]
        assert row["mean_latency_ms"] >= row["ideal_latency_ms"] == pytest.approx(2 + row["task_time_s"] * 1000)
        assert row["at_once_latency_ms"] >= row["ideal_at_once_latency_ms"]
        assert row["memory_mb"] > 1 and row["cpu_percent"] > 0


def test_a_span_begins_when_a_task_is_due_and_ends_when_its_result_is_recorded() -> None:
    spans = orchestrator.on_fleet(2, 0.02, 0.03, [0.0, 0.0, 0.1])
    starts = [start - spans[0][0] for start, _ in spans]
    assert starts == pytest.approx([0.0, 0.0, 0.1], abs=1e-6)
    assert all(end - start >= 0.05 for start, end in spans)


def rows_of(spans: Sequence[float], *argv: str) -> list[dict[str, Any]]:
    """The rows where each run's tasks take so long, one run after the other."""
    runs, asked = iter(spans), []

    def fleet(workers: int, task_time: float, latency: float, due: Sequence[float]) -> list[Span]:
        took = next(runs)
        asked.append((workers, task_time, latency, len(due)))
        return [(at, at + took) for at in due]

    options = orchestrator._parse(argv)
    rows = list(orchestrator.rows(options, fleet))
    assert [each[0] for each in asked] == [row["workers"] for row in rows for _ in range(2)]
    return rows


def test_the_model_projects_from_one_worker() -> None:
    """100 tasks at once, 5 ms of network; one worker needs 1.005 s, so μ = 100/s; two need 0.630."""
    argv = ("--max-workers", "2", "--tasks", "100", "--load", "0.5")
    one, two = rows_of((1.005, 0.020, 0.630, 0.018), *argv)
    assert one["tasks_per_s"] == one["model_tasks_per_s"] == pytest.approx(100 / 1.005)
    assert two["tasks_per_s"] == pytest.approx(100 / 0.63)
    assert two["model_tasks_per_s"] == pytest.approx(100 / 0.505)
    assert two["ideal_tasks_per_s"] == pytest.approx(100 / (0.005 + 50 * 0.005))
    assert (one["mean_latency_ms"], two["mean_latency_ms"]) == (pytest.approx(20), pytest.approx(18))
    assert (one["arrival_per_s"], two["arrival_per_s"]) == (pytest.approx(50), pytest.approx(100))
    # M/D/1, ρ = 1/2: the wait is ρ/(2(1 − ρ)) = half a service time
    assert one["model_latency_ms"] == pytest.approx(5 + 0.5 * 10 + 10)
    assert two["model_latency_ms"] == pytest.approx(Queue(100, 100, 2, 0.005, 1, 0).response * 1000)
    assert two["at_once_latency_ms"] == pytest.approx(630)


def test_the_seed_stands_beside_the_row_that_it_told_of() -> None:
    rows = rows_of([1.0] * 40, "--tasks", "500,600", "--task-times", "5ms,1ms")
    told = [(row["workers"], row["tasks"], row["task_time_s"]) for row in rows if row["seed_tasks_per_s"]]
    assert told == [(4, 500, 0.005)]
    assert [("209–220" in orchestrator.line(row)) for row in rows] == [bool(row["seed_tasks_per_s"]) for row in rows]
    assert {len(orchestrator.line(row)) for row in rows} == {len(orchestrator._line(orchestrator.HEADS))}


def test_arrivals_are_poisson_and_always_the_same() -> None:
    due = orchestrator.poisson(50, 1000)
    gaps = [b - a for a, b in zip([0.0, *due], due, strict=False)]
    assert due == orchestrator.poisson(50, 1000) and min(gaps) > 0
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.01)
    assert statistics.pvariance(gaps) * 50**2 == pytest.approx(1, rel=0.05)
    assert abs(statistics.correlation(gaps[1:], gaps[:-1])) < 0.1


def test_what_is_wrong_does_not_count(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(options: Any) -> Any:
        raise Wrong("3 items were claimed twice")
        yield

    monkeypatch.setattr(orchestrator, "rows", rows)
    assert orchestrator.main(["--tasks", "3"]) == 1
    assert "3 items were claimed twice" in capsys.readouterr().err


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--workers", "0"], "--workers: '0' is no whole number from 1 to 10,000"),
        (["--workers", "10001"], "from 1 to 10,000"),
        (["--tasks", "2.5"], "--tasks: '2.5' is no whole number from 1 to 1,000,000"),
        (["--task-time", "-1"], "--task-time: '-1' is no number of seconds"),
        (["--network-latency", "nan"], "'nan' is no number of seconds"),
        (["--worker", "2"], "unknown flag '--worker' for orchestrator_sim"),
        (["20"], "unexpected argument '20'"),
    ],
)
def test_the_simulation_refuses(argv: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        orchestrator_sim.main(argv)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-workers", "many"], "--max-workers: 'many' is no whole number"),
        (["--tasks", "500,"], "--tasks: '' is no whole number"),
        (["--task-times", "5ms,0"], "--task-times: '0': a task has to take some time"),
        (["--task-times", "5 miles"], "'5 miles' is no number of seconds"),
        (["--load", "1"], "--load: '1' is no number between 0 and 1"),
        (["--load", "x"], "'x' is no number between 0 and 1"),
        (["--workers", "2"], "Did you mean '--max-workers'?"),
    ],
)
def test_the_orchestrator_refuses(argv: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        orchestrator.main(argv)
    assert said in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["orchestrator", "orchestrator_sim"])
def test_a_wrong_flag_and_an_interrupt_end_a_process_without_a_traceback(name: str, tmp_path: Path) -> None:
    script, pipes = str(ROOT / f"benchmarks/{name}.py"), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script, "--tasks", "0"], text=True, timeout=60, check=False, **pipes)  # type: ignore[call-overload]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flatfleet: --tasks: '0' is no whole number from 1 to 1,000,000\n"

    started = "def up(*_):\n    print('up', flush=True)\n    return real(*_)\n"
    module, target = f"flatfleet.benchmarks.{name}", "_drive" if name == "orchestrator" else "simulate"
    code = (
        f"import sys, {module} as m\nfrom flatfleet.commands import exits\nreal = m.{target}\n{started}m.{target} = up\n"
        "exits.leave(m.main, sys.argv[1:])"
    )
    slow = ["--task-times", "60s"] if name == "orchestrator" else ["--task-time", "60s"]
    process = subprocess.Popen([sys.executable, "-c", code, *slow], text=True, env=env, **pipes)  # type: ignore[call-overload]
    assert any(line == "up\n" for line in process.stdout)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "flatfleet: interrupted\n")
    assert list(tmp_path.iterdir()) == []
