"""The command line in this process: flags, what is refused and how, summaries, exit codes, and what is printed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flatfleet.commands import cli, exits, flags, progress, terminal
from flatfleet.commands.progress import Progress, span
from flatfleet.commands.results import _cell
from flatfleet.commands.session import Session
from flatfleet.commands.summary import Gone, Summary, gone
from flatfleet.run import main
from flatfleet.runtime.bundle import InputSpec
from flatfleet.runtime.errors import (
    BundleError,
    ChildFailed,
    FleetError,
    LeaseLost,
    SourceError,
    StoreUnavailable,
    UsageError,
)
from flatfleet.runtime.routing import Unserved
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.records import Counts, Item
from flatmachines import WorkerRegistration

ROOT = Path(__file__).parents[1]
LAUNCHER = str(ROOT / "machines/launcher.yml")
PAPERS = str(ROOT / "examples/papers")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_AGENTS"):
        monkeypatch.delenv(name, raising=False)


def known() -> Mapping[str, Collection[str]]:
    from flatfleet import hooks

    return hooks.known()


def parse(*argv: str) -> Any:
    return cli.parse(argv, known)


# -- what is refused, with one message ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["a machine file or a command is missing", "usage: flatfleet FILE"]),
        (["run"], ["run needs a machine file first"]),
        (["run", "--json"], ["run needs a machine file first"]),
        (["statsu"], ["neither a command nor a machine file", "Did you mean 'status'?"]),
        ([""], ["neither a command nor a machine file"]),
        (["launcher"], ["package:flatfleet/launcher.yml"]),
        (["folder"], ["is a folder", "one.yml"]),
        (["nope.yml"], ["there is no 'nope.yml'"]),
        (["package:flatfleet/lancher.yml"], ["Did you mean 'launcher.yml'?"]),
        ([LAUNCHER, "--worker", "3"], ["unknown flag '--worker'", "Did you mean '--workers'?"]),
        ([LAUNCHER, "--inpt=x"], ["unknown flag '--inpt'", "Did you mean '--input'?"]),
        ([LAUNCHER, "papers"], ["unexpected argument 'papers'", "--input"]),
        ([LAUNCHER, "--input", "a.txt", "b.txt"], ["unexpected argument 'b.txt'", "quote a glob"]),
        ([LAUNCHER, "--input", ""], ["--input is empty"]),
        ([LAUNCHER, "--input"], ["--input", "expected one argument"]),
        ([LAUNCHER, "--workers", "x"], ["--workers is 'x'", "a whole number"]),
        ([LAUNCHER, "--workers", "٣"], ["--workers is '٣'", "a whole number"]),
        ([LAUNCHER, "--workers", "1_0"], ["--workers is '1_0'", "a whole number"]),
        ([LAUNCHER, "--workers", "1.5"], ["--workers is '1.5'", "a whole number"]),
        ([LAUNCHER, "--launch-interval", "inf"], ["--launch-interval is inf", "a number"]),
        ([LAUNCHER, "--registration", "maybe"], ["--registration is 'maybe'", "none, store"]),
        ([LAUNCHER, "--agents", "offlin"], ["--agents", "Did you mean 'offline'?"]),
        ([LAUNCHER, "--task", "nope.yml"], ["there is no 'nope.yml'"]),
        ([LAUNCHER, "--drain-deadline", "x"], ["--drain-deadline", "no number of seconds"]),
        ([LAUNCHER, "--drain-deadline", "nan"], ["--drain-deadline", "no number of seconds"]),
        ([LAUNCHER, "--with", "{"], ["--with is not JSON"]),
        ([LAUNCHER, "--with", "[1]"], ["--with needs a JSON object"]),
        ([LAUNCHER, "--with", '{"worker": 1}'], ["no input 'worker'", "Did you mean 'workers'?"]),
        ([LAUNCHER, "--with", '{"workers": "x"}'], ["--with: workers is 'x'", "a whole number"]),
        ([LAUNCHER, "--with", '{"workers": true}'], ["--with: workers is True"]),
        ([LAUNCHER, "--with", '{"workers": 1e999}'], ["--with: workers is inf"]),
        ([LAUNCHER, "--with", "[" * 100_000], ["--with is not JSON"]),
        ([str(ROOT / "machines/paper.yml")], ["needs --item", "the document"]),
        ([str(ROOT / "machines/paper.yml"), "--item", "[1]"], ["--item is [1]", "a JSON object"]),
        (["status", "--pol", "x"], ["unknown flag '--pol'", "--all", "Did you mean '--pool'?"]),
        (["results", "--state", "ded"], ["--state", "Did you mean 'dead'?"]),
    ],
)
def test_refused(argv: list[str], words: list[str]) -> None:
    Path("folder").mkdir()
    Path("folder/one.yml").touch()
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert [word for word in words if word not in str(caught.value)] == []


def test_agents_without_a_library_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"asks a model.*flatfleet\[llm\].*--agents offline"):
        parse(LAUNCHER, "--agents", "flatagent")
    monkeypatch.setenv("FLATFLEET_AGENTS", "flatagent")
    with pytest.raises(UsageError, match="asks a model"):
        parse(LAUNCHER)
    assert parse(LAUNCHER, "--agents", "offline").agents == "offline"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "aisuite")
    assert parse(LAUNCHER).agents == "flatagent"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--workers", "-1"], "workers is -1: it must be at least 0"),
        (["--limit", "-1"], "limit is -1: it must be at least 1"),
        (["--limit", "0"], "limit is 0: it must be at least 1"),
        (["--parallelism", "0"], "parallelism is 0: it must be at least 1"),
        (["--pool", "../x"], "pool name '../x'"),
        (["--input", "missing"], "there is no file or folder 'missing'"),
        (["--input", "empty"], "holds no supported file"),
        (["--input", "package:flatfleet"], "is incomplete; write package:NAME/PATH"),
        (["--input", "package:nope/papers"], "no package 'nope' is installed"),
        (["--input", "package:flatfleet/examples/paper"], "Did you mean 'papers/'?"),
        (["--fields", "text"], "has no '='"),
        (["--out", "file"], "is a file; name a folder"),
        (["--out", "file/below"], "is a file; name a folder"),
        (["--store", "etcd://x"], "unknown kind 'etcd'"),
        (["--store", "sqlite:"], "names no file"),
        (["--store", "sqlite:x?sync=1"], "the only option is synchronous"),
    ],
)
def test_refused_by_the_machine_or_the_store(argv: list[str], words: str) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    given = [] if "--input" in argv else ["--input", PAPERS]
    store = [] if "--store" in argv else ["--store", "memory:"]
    with pytest.raises(UsageError) as caught:
        main([LAUNCHER, *argv, *given, *store])
    assert words in str(caught.value)
    assert exits.code_of(caught.value) == 2
    assert {path.name for path in Path.cwd().iterdir()} == {"empty", "file"}


@pytest.mark.parametrize("verb", ["status", "results"])
def test_a_store_that_is_not_there_is_not_made(verb: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"there is no store .*fleet\.db.*--store"):
        main([verb])
    with pytest.raises(UsageError, match="nothing to see"):
        main([verb, "--store", "memory:"])
    assert list(Path.cwd().iterdir()) == []


# -- what is understood ------------------------------------------------------------------------------------------------


def test_flags_over_with_over_defaults() -> None:
    options = parse(LAUNCHER, "--with", '{"workers": 2.0, "limit": 5, "out": null}', "--workers", "8", "--stay")
    assert options.inputs == {"workers": 8, "limit": 5, "out": None}
    assert options.defaults["pool"] == "papers"
    assert options.stay
    assert options.drain_deadline == 30.0


def test_run_is_the_verb_without_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATFLEET_STORE", "memory:")
    options = parse("run", LAUNCHER, "--capabilities", " gpu, ,eu ", "--store=sqlite:x%d.db")
    assert (options.capabilities, options.store) == (("eu", "gpu"), "sqlite:x%d.db")
    assert parse(LAUNCHER).store == "memory:"


def test_another_task_goes_into_a_pool_of_its_own() -> None:
    task = str(ROOT / "machines/analyze_part.yml")
    assert parse(LAUNCHER, "--task", task).inputs["pool"] == "analyze_part"
    assert parse(LAUNCHER, "--task", task, "--pool", "mine").inputs["pool"] == "mine"
    assert not parse(LAUNCHER, "--task", task).writes
    assert "pool" not in parse(LAUNCHER).inputs


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], ["run", "--help"], ["--version"]])
def test_help_and_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(*argv)
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    assert out.startswith("flatfleet 0." if argv == ["--version"] else "usage: flatfleet FILE")


def test_the_help_of_a_machine_lists_its_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    from flatfleet.runtime import bundle

    with pytest.raises(SystemExit):
        parse(LAUNCHER, "--help")
    out = capsys.readouterr().out
    for spec in bundle.inputs(bundle.load(LAUNCHER)).values():
        assert f"--{spec.name.replace('_', '-')} " in out
    assert "Turn sources into work items" in out


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in set(cli.VERBS) - {"run"}:
        with pytest.raises(SystemExit):
            parse(verb, "--help")
        assert capsys.readouterr().out.startswith(f"usage: flatfleet {verb} ")
        assert f"flatfleet {verb} " in cli.USAGE


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "8", "8"),
        ("integer", "8", 8),
        ("number", "8", 8.0),
        ("boolean", "Yes", True),
        ("object", '{"a": 1}', {"a": 1}),
        ("array", "[1]", [1]),
    ],
)
def test_values_in_their_declared_type(kind: str, text: str, value: Any) -> None:
    spec = InputSpec(name="some_thing", type=kind)
    made = flags.value(spec, text)
    assert (made, type(made)) == (value, type(value))
    if kind != "string":
        with pytest.raises(UsageError, match="--some-thing is"):
            flags.value(spec, "wrong")


def test_an_input_may_not_have_the_name_of_a_flag() -> None:
    specs = {"store": InputSpec(name="store")}
    with pytest.raises(UsageError, match=r"x\.yml: the input 'store' has the name of a flag"):
        flags.add(cli.parser("x", ""), specs, "x.yml")


# -- how a command ends ------------------------------------------------------------------------------------------------


def leave(capsys: pytest.CaptureFixture[str], result: BaseException | int, *argv: str) -> tuple[int, str, str]:
    def main(argv: Any) -> int:
        if isinstance(result, BaseException):
            raise result
        return result

    with pytest.raises(SystemExit) as left:
        exits.leave(main, argv)
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 2),
        (SourceError("wrong"), 2),
        (BundleError(["a.yml:1:1: wrong", "b"]), 2),
        (StoreUnavailable("wrong"), 3),
        (ChildFailed("wrong"), 4),
        (LeaseLost("wrong"), 4),
        (ValueError("wrong"), 4),
    ],
)
def test_an_error_is_one_message_and_a_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    got, out, err = leave(capsys, error)
    assert (got, out) == (code, "")
    assert err.startswith("flatfleet: ")
    assert str(error) in err
    assert "Traceback" not in err
    got, out, err = leave(capsys, error, "x.yml", "--json")
    assert (got, err) == (code, "")
    about = json.loads(out)["error"]
    assert about["type"] == type(error).__name__
    assert str(error) in about["message"]
    assert about.get("problems") == getattr(error, "problems", None)


def test_a_result_and_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(capsys, 1) == (1, "", "")
    assert leave(capsys, KeyboardInterrupt()) == (130, "", "flatfleet: interrupted\n")
    code, out, _ = leave(capsys, KeyboardInterrupt(), "--json")
    assert (code, json.loads(out)["error"]["message"]) == (130, "interrupted")


def test_verbose_shows_where_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" in leave(capsys, ValueError("x"), "-v")[2]
    assert "Traceback" not in leave(capsys, UsageError("x"), "-v")[2]


def test_what_is_printed_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.plain("a\x1b[2J\n\u202e\udcff ü →") == "a\\x1b[2J\\n\\u202e\\udcff ü →"
    terminal.say("one\ntwo\x07")
    assert capsys.readouterr().err == "one\ntwo\\x07\n"
    assert leave(capsys, UsageError("\x1b]0;x\x07"))[2] == "flatfleet: \\x1b]0;x\\x07\n"


def test_streams_that_are_closed_or_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    terminal.prepare()
    try:
        terminal.show("ü \udcff")
        terminal.say("to nobody")
        sys.stdout.flush()
        assert raw.getvalue() == "ü \\udcff\n".encode()
    finally:
        sys.stderr.close()


def test_talk_that_nobody_hears_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    terminal.say("x")


@pytest.mark.parametrize(("verbose", "level"), [(False, logging.ERROR), (True, logging.INFO)])
def test_the_logs_of_the_sdk_go_to_standard_error(
    verbose: bool, level: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATAGENTS_LOG_LEVEL", "ERROR")
    loggers = [logging.getLogger(name) for name in ("flatmachines", "flatagents")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        terminal.log_to_stderr(verbose)
        logging.getLogger("flatmachines.flatmachine").error("seen")
        logging.getLogger("flatmachines.flatmachine").info("detail")
        out, err = capsys.readouterr()
        assert out == ""
        assert err == "ERROR seen\n" + ("INFO detail\n" if verbose else "")
        assert loggers[0].level == level
    finally:
        logging.captureWarnings(False)
        for logger, (handlers, old, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(old)


# -- summaries ---------------------------------------------------------------------------------------------------------


def counts(**states: int) -> Counts:
    return Counts(**{**dict.fromkeys(("waiting", "delayed", "claimed", "expired", "completed", "dead"), 0), **states})


def item(key: str, error: str) -> Item:
    values: dict[str, Any] = dict.fromkeys(Item.__dataclass_fields__)
    return Item(**{**values, "id": f"papers:{key}", "key": key, "error_type": "DocumentError", "error": error})


def summary(**given: Any) -> Summary:
    values: dict[str, Any] = {
        "machine": "launcher",
        "output": {"workers": 4, "left": 12, "done": 0, "dead": 0},
        "counts": counts(completed=12),
        "errors": {},
        "failures": {},
        "seconds": 1.84,
        "store": "sqlite:fleet.db",
        "durable": True,
        "pool": "papers",
        "out": "",
        "interrupted": False,
        "handed_back": 0,
    }
    return Summary(**{**values, **given})


def test_the_summary_of_a_run() -> None:
    Path("results").mkdir()
    said = summary(out="results").text().splitlines()
    assert said == ["12 done, 0 dead, 0 left in 1.8 s", "Reports are in results/", "Results: flatfleet results"]
    assert summary().exit_code({}) == 0


def test_what_was_done_before_is_not_done_now() -> None:
    said = summary(output={"workers": 4, "left": 5, "done": 7}).text()
    assert said.startswith("12 done (5 now), 0 dead, 0 left")


def test_nothing_left_and_nobody_to_do_it() -> None:
    output = {"workers": 0, "left": 0, "done": 12, "dead": 0}
    said = summary(output=output).text()
    assert said.splitlines() == ["Nothing is left to do: 12 done, 0 dead before", "Results: flatfleet results"]
    said = summary(output=output | {"left": 12, "done": 0}, counts=counts(waiting=12)).text()
    assert said == "12 items are waiting in pool papers; no worker was launched"


def test_dead_items_are_named_with_their_reason() -> None:
    dead = [item(f"k{n}", f"k{n} is\x1b[1m empty" if n else "Z" * 500) for n in range(5)]
    made = summary(counts=counts(completed=1, dead=8), dead=dead, errors={"DocumentError": 8}, store="sqlite:x y.db")
    said = made.text().splitlines()
    assert said[0].startswith("1 done, 8 dead, 0 left")
    assert said[1].startswith("  k0: DocumentError: ZZZ")
    assert said[1].endswith("Z…")
    assert said[2] == "  k1 is\\x1b[1m empty"
    assert said[6] == "  and 3 more: flatfleet results --state dead --store 'sqlite:x y.db'"
    assert made.exit_code({}) == 1
    assert made.as_dict()["dead_first"][1] == {
        "id": "papers:k1", "key": "k1", "error_type": "DocumentError", "error": "k1 is\x1b[1m empty"
    }  # fmt: skip


def test_the_command_that_shows_the_results_can_be_used_and_tells_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "redis://:s3cr3t@h:6379/0"
    monkeypatch.delenv("FLATFLEET_STORE", raising=False)
    made = summary(store=url, pool="slow")
    assert made.text().splitlines()[-1] == 'Results: flatfleet results --pool slow --store "$FLATFLEET_STORE"'
    assert made.as_dict()["store"] == "redis://:***@h:6379/0"
    assert "s3cr3t" not in repr(made)
    monkeypatch.setenv("FLATFLEET_STORE", url)
    assert made.text().splitlines()[-1] == "Results: flatfleet results --pool slow"
    assert summary().text().splitlines()[-1] == "Results: flatfleet results --store sqlite:fleet.db"
    parked = summary(store=url, output={"_waiting": True, "_channel": "c"}).text()
    assert "any run over redis://:***@h:6379/0" in parked


def test_the_summary_of_an_interrupt() -> None:
    made = summary(counts=counts(completed=3, waiting=9), interrupted=True, handed_back=2, pool="p", durable=False)
    assert made.text().splitlines() == [
        "3 done, 0 dead, 9 left in 1.8 s",
        "Stopped, 2 handed back. The same command goes on from here.",
    ]
    assert made.exit_code({"w": ValueError()}) == 130
    assert summary(interrupted=True).text().splitlines()[-1] == "Stopped."
    assert summary(counts=None, interrupted=True).text() == "stopped"


def test_a_machine_without_a_pool_shows_its_output() -> None:
    made = summary(counts=None, pool=None, output={"title": "ü\n\x1b", "parts": [1, "ü"]})
    assert made.text() == 'title: ü\n\\x1b\nparts: [1, "ü"]'
    assert made.as_dict()["counts"] is None


def test_the_summary_of_workers_that_were_drained() -> None:
    made = summary(counts=counts(completed=10, waiting=50), drained=4, durable=False)
    assert made.text().splitlines() == [
        "10 done, 0 dead, 50 left in 1.8 s",
        "50 left: the workers here were drained; the same command goes on",
    ]
    assert (made.exit_code({}), made.exit_code({"w": LeaseLost("x")})) == (130, 4)
    assert made.as_dict()["drained"] == 4
    dead = summary(counts=counts(completed=10, waiting=50, dead=1), drained=4)
    assert dead.exit_code({}) == 130
    assert "drained" not in summary(counts=counts(waiting=1), drained=1, interrupted=True).text()
    assert summary(counts=counts(waiting=1)).exit_code({}) == 0  # a machine that only pushes


def test_the_summary_of_workers_that_are_gone_for_whatever_reason() -> None:
    made = summary(counts=counts(completed=10, waiting=50), ended=4, durable=False)
    assert made.text().splitlines() == [
        "10 done, 0 dead, 50 left in 1.8 s",
        "50 left: the workers here have ended, and no other is live; the same command goes on",
    ]
    assert (made.exit_code({}), made.exit_code({"w": LeaseLost("x")})) == (130, 4)
    assert made.as_dict()["ended"] == 4
    assert "were drained" in summary(counts=counts(waiting=1), drained=1, ended=1).text()
    for more in ({"interrupted": True}, {"failures": {"w": "LeaseLost: x"}}):
        assert "no other is live" not in summary(counts=counts(waiting=1), ended=1, **more).text()
    by_scaler = summary(counts=counts(waiting=3), ended=2, output={"workers": 0, "left": 3, "done": 0, "dead": 0})
    assert by_scaler.text().startswith("0 done, 0 dead, 3 left in 1.8 s\n3 left: the workers here have ended")
    foreign = summary(counts=counts(waiting=3), ended=2, unserved=Unserved({("gpu",): 3}))
    assert (foreign.exit_code({}), "no other is live" in foreign.text()) == (1, False)


@pytest.mark.parametrize(
    ("status", "about", "owner", "expected"),
    [
        ("terminated", {"ended": "drained"}, "me", (1, 1)),
        ("lost", {"drained_by": "d"}, "me", (1, 1)),
        ("terminated", {"ended": "retired", "drained_by": "d"}, "me", (0, 1)),
        ("terminated", {"ended": "drained", "replaced_by": "w.2"}, "me", (0, 1)),
        ("lost", {"replaced_by": "w.2"}, "me", (0, 1)),
        ("lost", {}, "another", (0, 0)),
        ("terminated", {"ended": "drained"}, "another", (0, 0)),
        ("active", {}, "me", (0, 0)),
    ],
)
async def test_who_is_gone_though_items_are_left(
    status: str, about: dict[str, Any], owner: str, expected: tuple[int, int]
) -> None:
    store = open_store("memory:", owner=owner)
    await store.registration.register(WorkerRegistration(worker_id="w"), {"pool": "p"})
    await store.driver.set_status("w", status, about)
    assert await gone(store, "p", counts(waiting=1), ("me",), served=False) == expected
    assert await gone(store, "p", counts(waiting=1), ("me",), served=True) == (expected[0], 0)
    assert await gone(store, "p", counts(completed=1), ("me",), served=False) == Gone()
    assert await gone(store, "q", counts(waiting=1), ("me",), served=False) == Gone()
    await store.close()


def test_exit_codes_of_a_run() -> None:
    assert summary(output={"skipped": 1}).exit_code({}) == 1
    assert summary().exit_code({"w": LeaseLost("x"), "v": StoreUnavailable("y")}) == 4
    assert summary().exit_code({"v": StoreUnavailable("y")}) == 3
    said = summary(failures=dict.fromkeys("uvwxy", "LeaseLost: x") | {"z": "LeaseLost: z"}).text()
    assert "  u, v, w and 2 more ended: LeaseLost: x\n  z ended: LeaseLost: z\n" in said


# -- progress, cells ---------------------------------------------------------------------------------------------------

LAUNCHED = {"pool": "p", "added": 3, "known": 0, "recovered": 0, "done": 0, "dead": 0, "left": 3, "workers": 2}


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({}, "pool p: 3 items; 2 workers\n"),
        (
            {"known": 40, "done": 17, "recovered": 3, "left": 20, "dead": 3},
            "pool p: 17 done, 3 recovered, 20 left, 3 dead; 2 workers\n",
        ),
        ({"skipped": 1, "skipped_first": ["a\nb: x"]}, "skipped a\\nb: x\npool p: 3 items, 1 skipped; 2 workers\n"),
        ({"workers": 0}, ""),
        ({"workers": 1, "added": 1}, "pool p: 1 item; 1 worker\n"),
    ],
)
async def test_what_a_launcher_found(output: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    await Progress(None, None).launched(LAUNCHED | output)
    assert capsys.readouterr() == ("", said)
    await Progress(None, None, quiet=True).launched(LAUNCHED | output)
    assert capsys.readouterr() == ("", "")


async def test_many_skips_are_not_all_told(capsys: pytest.CaptureFixture[str]) -> None:
    await Progress(None, None).launched(LAUNCHED | {"skipped": 30, "skipped_first": [f"s{n}" for n in range(20)]})
    assert capsys.readouterr().err.splitlines()[4:6] == ["skipped s4", "skipped 25 more"]


class PausedPool:
    """A pool that is paused while `at` says so, and counts how often it is asked."""

    name = "p"

    def __init__(self, at: float | None) -> None:
        self.at, self.asked, self.counted = at, 0, 0

    async def counts(self) -> Counts:
        self.counted += 1
        return counts(waiting=3)

    async def paused(self) -> float | None:
        self.asked += 1
        return self.at


async def test_a_launcher_on_a_paused_pool_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PausedPool(math.inf)
    await Progress(pool, None).launched(LAUNCHED)
    assert capsys.readouterr().err == "pool p: 3 items; 2 workers; paused until it is resumed\n"
    await Progress(pool, None, quiet=True).launched(LAUNCHED)
    assert pool.asked == 1

    async def gone() -> float | None:
        raise StoreUnavailable("it is gone")

    monkeypatch.setattr(pool, "paused", gone)
    await Progress(pool, None).launched(LAUNCHED)
    assert capsys.readouterr().err == "pool p: 3 items; 2 workers\n"


@pytest.mark.parametrize("tty", [False, True])
async def test_progress_says_that_the_pool_is_paused_and_asks_seldom(
    tty: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TICK", 0.002)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setattr(progress, "PAUSE_EVERY", 0.1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: tty, raising=False)
    pool, shown = PausedPool(time.time() + 3600), list[str]()
    show = (lambda self, now: shown.append(self._info(now))) if tty else (lambda self, text: shown.append(text))
    monkeypatch.setattr(Progress, "_draw" if tty else "say", show)
    async with asyncio.timeout(10), Progress(pool, SimpleNamespace(live=lambda: 1)):
        while len(shown) < 30:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        pool.at = None
        while "paused" in shown[-1]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    paused = r"paused until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(in (1h00m|59m\d\ds)\) · 0\.0/s · 1 worker"
    assert re.fullmatch(("" if tty else "0/3 · ") + paused, shown[0]), shown[0]
    assert shown[-1].endswith("0.0/s · 1 worker")
    assert 2 <= pool.asked <= pool.counted / 5


async def test_items_that_are_tried_again_give_no_negative_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three are dead, then all of them are ready again, then one is done."""
    states = iter([counts(dead=3)] * 3 + [counts(waiting=3)] * 3 + [counts(waiting=2, completed=1)] * 30)
    pool, shown = PausedPool(None), list[str]()

    async def now() -> Counts:
        return next(states)

    async def errors() -> dict[str, int]:
        return {}

    monkeypatch.setattr(pool, "counts", now)
    monkeypatch.setattr(pool, "errors", errors, raising=False)
    monkeypatch.setattr(progress, "TICK", 0.002)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(Progress, "_draw", lambda self, now: shown.append(f"{now.left} {self._info(now)}"))
    async with asyncio.timeout(10), Progress(pool, SimpleNamespace(live=lambda: 1)):
        while len(shown) < 12:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert [each for each in shown if "-" in each] == []
    assert shown[3:6] == ["3 0.0/s · 1 worker"] * 3
    assert re.fullmatch(r"2 [1-9]\d*\.\d/s · ETA \d+s · 1 worker", shown[6])


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0s"), (59.6, "1m00s"), (61, "1m01s"), (3_660, "1h01m"), (200_000, "2d07h")]
)
def test_spans(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\n=1", " =1", "＝1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert _cell(text) == "'" + text


@pytest.mark.parametrize(("value", "cell"), [(-1, -1), ("a=1", "a=1"), (None, ""), ([1, "ü"], '[1, "ü"]'), ("", "")])
def test_cells(value: Any, cell: Any) -> None:
    assert _cell(value) == cell


def test_the_whole_tree_of_errors_has_codes() -> None:
    def below(kind: type[FleetError]) -> set[type[FleetError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    make: Callable[[type[FleetError]], FleetError] = lambda kind: kind(["x"]) if kind is BundleError else kind("x")  # type: ignore[call-arg,arg-type]  # noqa: E731
    assert {exits.code_of(make(kind)) for kind in below(FleetError)} == {2, 3, 4}


# -- interrupts --------------------------------------------------------------------------------------------------------


class Deaf:
    """A machine, its engine and its fleet in one, of which nothing ends when it is cancelled."""

    def __init__(self) -> None:
        self.engine = self.fleet = self.guard = self
        self.leases = {"papers:a": None}
        self._context: dict[str, Any] = {}
        self.free = asyncio.Event()

    async def run(self, inputs: Any) -> None:
        while not self.free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.free.wait()

    def drain(self) -> None: ...

    async def join(self) -> None:
        await self.free.wait()

    async def close(self, deadline: float) -> int:
        return 1

    def hand_back(self) -> int:
        return 0

    async def in_hand(self) -> int:
        return 0


async def test_what_ignores_its_cancellation_does_not_keep_the_process() -> None:
    deaf = Deaf()
    session = Session(deaf, deaf, 0.01, Progress(None, None, quiet=True))
    running = asyncio.create_task(session.execute({}))
    await asyncio.sleep(0)
    session.interrupt()
    assert await asyncio.wait_for(running, 5) == ({}, None)
    assert (session.hard, session.handed_back) == (True, 1)
    deaf.free.set()


async def test_a_cancelled_session_leaves_no_machine_behind() -> None:
    deaf = Deaf()
    ended: list[bool] = []

    async def run(inputs: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    deaf.run = run  # type: ignore[method-assign]
    running = asyncio.create_task(Session(deaf, deaf, 30, Progress(None, None)).execute({}))
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running], timeout=5)
    assert running.cancelled()
    assert ended == [True]
