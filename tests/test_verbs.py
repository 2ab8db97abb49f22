"""The verbs that look into a fleet and steer it, in this process, over a real store: what they do, say and refuse."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import re
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flatfleet.commands import asking, cli, decided, draining, durations, finding, messages, roster
from flatfleet.commands import items as items_verb
from flatfleet.run import main
from flatfleet.runtime import decisions, scaling
from flatfleet.runtime.errors import MachineError, StoreUnavailable, UsageError
from flatfleet.runtime.owner import machine, this_process
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.records import Item, SnapshotRow
from flatfleet.runtime.stores.sqlite import SQLiteDriver
from flatfleet.runtime.stores.store import Store
from flatfleet.runtime.stores.wire import HostWire
from flatmachines import WorkerRegistration

DEAD = f"{machine()}/999999999/1"
"""The identity of a process that has ended."""
ON_A_STORE = {
    "status": [], "workers": [], "items": [], "explain": ["x"], "dead": [], "results": [], "scale": ["8"], "drain": [],
    "pause": [], "resume": [], "retry": ["--yes"], "cancel": ["x", "--yes"], "gc": [],
    "pause-scaling": [], "resume-scaling": [],
}  # fmt: skip

Talk = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLATFLEET_STORE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Talk:
    """Run a verb; return its text, or with --json what it prints. `code` is what it has to end with."""

    def run(*argv: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(argv) == code
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out) if "--json" in argv else out

    return run


@pytest.fixture
def refuse() -> Talk:
    """Run a verb that is refused with a UsageError, and return its message."""

    def run(*argv: str) -> str:
        with pytest.raises(UsageError) as caught:
            main(argv)
        return str(caught.value)

    return run


def do(act: Callable[[Store], Awaitable[Any]], ago: float = 0.0, owner: str | None = None) -> Any:
    """Do this on the store, `ago` seconds ago by its clock."""

    async def run() -> Any:
        file = Path("fleet.db").absolute()
        driver = SQLiteDriver(file, "NORMAL", clock=lambda: time.time() - ago)
        store = Store(driver, "sqlite:fleet.db", owner or this_process(), wire=HostWire(file))
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(run())


def push(*keys: str, pool: str = "papers", **options: Any) -> None:
    async def act(store: Store) -> None:
        made = store.work.pool(pool)
        await made.push_many([made.new({"name": key}, key=key, **options) for key in keys])

    do(act)


def die(
    *keys: str, error: str = "ValueError", text: str = "it is wrong", pool: str = "papers", ago: float = 0.0
) -> None:
    """Have items come and die of an error."""

    async def act(store: Store) -> None:
        made = store.work.pool(pool)
        await made.push_many([made.new({}, key=key, priority=9) for key in keys])
        for claim in await made.claim_many("w", len(keys)):
            await made.fail(claim.id, f"{claim.key}: {text}", token=claim.token, error_type=error, permanent=True)

    do(act, ago)


def register(*names: str, pool: str = "papers", owner: str | None = None, **metadata: Any) -> None:
    async def act(store: Store) -> None:
        for name in names:
            worker = WorkerRegistration(worker_id=name, host="laptop", pid=7)
            await store.registration.register(worker, {"pool": pool, "parallelism": 1, **metadata})

    do(act, owner=owner)


def states(pool: str = "papers") -> dict[str, str]:
    async def act(store: Store) -> dict[str, str]:
        return {item.key: item.state async for item in store.work.pool(pool).items()}

    return do(act)


def worker(name: str) -> Any:
    return do(lambda store: store.registration.get(name))


def target(pool: str = "papers") -> int | None:
    return do(lambda store: store.fleet(pool).target())


def set_target(n: int | None, pool: str = "papers") -> None:
    do(lambda store: store.fleet(pool).set_target(n))


def last_decision(pool: str = "papers") -> dict[str, Any]:
    return do(lambda store: store.fleet(pool).decisions(1))[-1]


class Host(threading.Thread):
    """A process that hosts the fleet: it decides on each message as it is told, and notes the messages."""

    def __init__(self, **decision: Any) -> None:
        super().__init__(daemon=True)
        self.decision, self.messages = decision, list[Any]()
        self.over, self.there = threading.Event(), threading.Event()

    def __enter__(self) -> Host:
        self.start()
        assert self.there.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join(10)

    def run(self) -> None:
        do(self._host)

    async def _host(self, store: Store) -> None:
        fleet, me = store.fleet("papers"), this_process()
        assert await store.driver.lock(f"host/papers/{me}", me, 60.0)
        self.there.set()
        while not self.over.is_set():
            signal = await store.driver.consume(fleet.channel) if self.decision else None
            if signal is not None:
                self.messages.append(signal.data)
                decision = decisions.begin("papers", signal.id, signal.data, None)
                await fleet.decide({**decision, **self.decision})
            await asyncio.sleep(0.005)
        await store.driver.unlock(f"host/papers/{me}", me)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["scale"], ["needs a number of workers", "+4"]),
        (["scale", "ten"], ["'ten' is no number of workers"]),
        (["scale", ""], ["'' is no number of workers"]),
        (["scale", "1.5"], ["'1.5' is no number"]),
        (["scale", "-1.5"], ["'-1.5' is no number"]),
        (["scale", "٤"], ["is no number"]),
        (["scale", "1000000000"], ["target must be at most 100000, got 1000000000"]),
        (["scale", "-100001"], ["delta must be at least -100000"]),
        (["scale", "9" * 5000], ["is no number"]),
        (["scale", "+0"], ["delta must not be 0"]),
        (["scale", "-x"], ["unknown flag '-x'"]),
        (["scale", "8", "9"], ["unexpected argument '9'"]),
        (["scale", "8", "--if-current", "-1"], ["--if-current", "'-1' is no number of workers"]),
        (["scale", "8", "--if-current", "x"], ["--if-current", "'x' is no number of workers"]),
        (["scale", "8", "--max-launch-per-step", "0"], ["max_launch_per_step must be at least 1"]),
        (["scale", "8", "--reason", "x" * 1001], ["reason must have at most 1000 characters"]),
        (["scale", "8", "--drain-deadline", "366d"], ["drain_deadline must be at most"]),
        (["scale", "8", "--stay"], ["--stay belongs to --host"]),
        (["drain", "--drain-deadline", "soon"], ["'soon' is no number of seconds", "10m"]),
        (["drain", "--drain-deadline", "366d"], ["drain_deadline must be at most"]),
        (["pause", "--for", "-5"], ["--for"]),
        (["pause", "--for", "1y"], ["'1y' is no number of seconds, and no span such as 90s, 10m, 2h or 1d"]),
        (["pause", "papers"], ["unexpected argument 'papers'"]),
        (["items", "--state", "ded"], ["Did you mean 'dead'?"]),
        (["items", "--limit", "-1"], ["--limit"]),
        (["items", "--limit", "many"], ["'many' is no number of items"]),
        (["explain"], ["needs an item"]),
        (["cancel", "--yes"], ["needs items"]),
        (["retry", "k1", "--error", "X"], ["either items or --error"]),
        (["retry", "k1", "--since", "1d"], ["either items or --error"]),
        (["retry", "--since", "yesterday"], ["'yesterday' is no number of seconds"]),
        (["gc", "--older", "1w"], ["'1w' is no number of seconds"]),
        (["gc", "--pool", "x"], ["unknown flag '--pool'"]),
        (["explain", "-rf"], ["unknown flag '-rf'", "it comes after --, as in: flatfleet explain -- -rf"]),
        (["scale", "8", "--forget"], ["--forget drops", "it takes no number"]),
        (["drian"], ["Did you mean 'drain'?"]),
    ],
)
def test_refused_before_the_store_is_opened(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        cli.parse(argv, dict)
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_hint_at_dashes_is_for_names_alone(say: Talk) -> None:
    for argv in (["scale", "-x"], ["pause", "-rf"], ["explain", "--itme"]):
        with pytest.raises(UsageError) as caught:
            cli.parse(argv, dict)
        assert "after --" not in str(caught.value)
    push("-rf")
    assert say("explain", "--", "-rf").splitlines()[1].startswith("  key -rf ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["8"], {"target": 8}),
        (["0"], {"target": 0}),
        (["+4"], {"delta": 4}),
        (["-4"], {"delta": -4}),
        (["--json", "-4", "--dry-run"], {"delta": -4, "dry_run": True}),
        (["-4", "--if-current", "8", "--reason", "-1 is fine"], {"delta": -4, "if_current": 8, "reason": "-1 is fine"}),
        (["3", "--drain-deadline", "10m"], {"target": 3, "drain_deadline": 600.0}),
        (["30", "--max-launch-per-step=5"], {"target": 30, "max_launch_per_step": 5}),
    ],
)
def test_what_scale_sends(argv: list[str], message: dict[str, Any]) -> None:
    assert cli.parse(["scale", *argv], dict).message == message


@pytest.mark.parametrize("verb", ON_A_STORE)
def test_without_a_store_and_with_a_damaged_one(verb: str) -> None:
    argv = [verb, *ON_A_STORE[verb]]
    with pytest.raises(StoreUnavailable, match=r"there is no store .*fleet\.db.*--store"):
        main(argv)
    with pytest.raises(UsageError, match="nothing to see"):
        main([*argv, "--store", "memory:"])
    assert list(Path.cwd().iterdir()) == []
    Path("fleet.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    before = Path("fleet.db").read_bytes()
    with pytest.raises(StoreUnavailable, match=r"fleet\.db cannot be used"):
        main(argv)
    assert Path("fleet.db").read_bytes() == before


# -- which pool, which item --------------------------------------------------------------------------------------------

OF_ONE_POOL = [verb for verb in ON_A_STORE if verb not in ("status", "workers", "explain", "cancel", "results", "gc")]


@pytest.mark.parametrize("verb", OF_ONE_POOL)
def test_the_only_pool_is_meant_and_of_several_one_has_to_be_named(verb: str, say: Talk, refuse: Talk) -> None:
    push("a")
    assert "papers" in say(verb, *ON_A_STORE[verb], "--json").__repr__()
    push("b", pool="tickets")
    said = refuse(verb, *ON_A_STORE[verb])
    assert "has several pools: papers, tickets; name one with --pool" in said
    assert "tickets" in repr(say(verb, *ON_A_STORE[verb], "--json", "--pool", "tickets"))


@pytest.mark.parametrize("verb", [verb for verb in ON_A_STORE if verb != "gc"])
def test_an_unknown_pool(verb: str, refuse: Talk) -> None:
    push("a")
    said = refuse(verb, *ON_A_STORE[verb], "--pool", "papres")
    assert said == "no pool 'papres' in sqlite:fleet.db — known: papers. Did you mean 'papers'?"


@pytest.mark.parametrize("verb", OF_ONE_POOL)
def test_an_empty_store(verb: str, refuse: Talk) -> None:
    do(lambda store: store.driver.pools())
    assert "is empty: run a launcher first" in refuse(verb, *ON_A_STORE[verb])


@pytest.mark.parametrize(
    "make",
    [
        lambda: set_target(3, "p"),
        lambda: do(lambda store: store.driver.lock("host/p/me", "me", 60.0)),
        lambda: register("w", pool="p"),
    ],
)
def test_a_fleet_without_an_item_is_known(make: Callable[[], None], say: Talk) -> None:
    make()
    do(lambda store: store.driver.lock("host/no good/me", "me", 60.0))
    assert say("pause", "--json")["pool"] == "p"
    assert say("resume", "--json", "--pool", "p")["was_paused"]
    assert list(say("status", "--json")["pools"]) == ["p"]


def test_a_worker_makes_its_pool_known_beside_others(say: Talk) -> None:
    push("a")
    register("w", pool="p")
    assert say("pause", "--json", "--pool", "p")["paused"]


def test_items_are_named_by_id_or_key(say: Talk, refuse: Talk) -> None:
    push("k1", "/home/me/a paper.txt", "ünï {{ 1 }}")
    push("k1", "only", pool="tickets")
    for word, key in (
        ("papers:k1", "k1"),
        ("tickets:k1", "k1"),
        ("only", "only"),
        ("/home/me/a paper.txt", "/home/me/a paper.txt"),
        ("ünï {{ 1 }}", "ünï {{ 1 }}"),
    ):
        assert say("explain", word, "--json")["item"]["key"] == key
    assert refuse("explain", "k1") == "several pools have an item 'k1': papers, tickets; name one with --pool"
    assert say("explain", "k1", "--pool", "tickets", "--json")["item"]["id"] == "tickets:k1"
    assert "no item 'papers:k1' in pool 'tickets'" in refuse("explain", "papers:k1", "--pool", "tickets")
    assert (
        refuse("explain", "papers:k2")
        == "no item 'papers:k2' in the pools of sqlite:fleet.db. Did you mean 'papers:k1'?"
    )
    assert refuse("explain", "a paper.txt").endswith("Did you mean '/home/me/a paper.txt'?")
    assert "Did you mean" not in refuse("explain", "nothing like it")
    assert "no item '\udcff'" in refuse("explain", "\udcff")
    said = say("cancel", "papers:k1", "only", "papers:k1", "--yes")
    assert said == "2 items of pool papers, tickets cancelled\n"


def test_an_item_without_a_pool_to_be_in(refuse: Talk) -> None:
    do(lambda store: store.driver.pools())
    assert "no item 'x'" in refuse("explain", "x")


def test_of_many_names_those_that_are_like_it_are_listed() -> None:
    names = [f"w{n:04}" for n in range(5000)]
    said = finding.like("w123", names)
    assert said.count("w") < 2 * finding.LISTED
    assert re.search(r"Did you mean 'w(\d123|123\d)'\?$", said)
    assert finding.few(names) == ", ".join(names[: finding.LISTED]) + f" and {5000 - finding.LISTED} more"


async def test_the_search_for_a_name_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "SEARCHED", 3)
    store, read = open_store("memory:"), list[str]()
    pool = store.work.pool("p")
    await pool.push_many([pool.new({}, key=f"k{n}") for n in range(10)])

    async def items(*_: Any) -> Any:
        for n in range(10):
            read.append(f"k{n}")
            yield argparse.Namespace(key=f"k{n}", id=f"p:k{n}")

    monkeypatch.setattr(pool, "items", items)
    with pytest.raises(UsageError, match="Did you mean 'k2'"):
        await finding.items(["k20"], argparse.Namespace(pool=None), store)
    assert read == ["k0", "k1", "k2"]
    await store.close()


# -- status, workers ---------------------------------------------------------------------------------------------------


def test_status_of_a_fleet(say: Talk) -> None:
    push("a", "b", "c")
    register("w1", "w2", "w3", parallelism=2)
    register("gone", owner=DEAD)
    do(lambda store: store.work.pool("papers").claim_many("w1", 1))
    set_target(6)
    plain = say("status").splitlines()
    assert plain[1] == "pool papers: 3 items: 2 waiting · 1 claimed"
    assert plain[2] == "  target 6 · 6 live · no process hosts it"
    assert plain[3] == "4 workers"
    say("drain", "w1", "--reason", "too\x1b[2J warm", "--drain-deadline", "10m")
    with Host():
        say("pause", "--for", "2h")
        do(lambda store: store.signals.send("fleet/papers/scale", {"target": 1}))
        said, now = say("status").splitlines(), say("status", "--json")
    assert re.fullmatch(r"  paused until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(in (2h00m|1h59m|1h60m)\)", said[2]), said[2]
    assert said[3].startswith("  target 4 · 4 live · 2 draining · hosted by pid ")
    assert said[3].endswith(" · 1 message waiting")
    assert re.fullmatch(
        r"  last decision, [01]s ago: 6 → 4: draining 1 worker \(decision \w+\): too\\x1b\[2J warm", said[4]
    )
    assert said[6].startswith(
        "  w1  draining  works on papers:a, 10m00s to finish  (pool papers · parallelism 2 · pid 7"
    )
    assert [line.split()[:2] for line in said[7:]] == [["w2", "active"], ["w3", "active"], ["gone", "lost"]]
    papers = now["pools"]["papers"]
    assert (papers["target"], papers["live"], papers["draining"], papers["messages"]) == (4, 4, 2, 1)
    assert papers["paused"] is True
    assert papers["paused_until"] == pytest.approx(time.time() + 7200, abs=30)
    assert [host["pid"] for host in papers["hosts"]] == [int(this_process().split("/")[-2])]
    assert papers["last_decision"]["reason"] == "too\x1b[2J warm"
    by_id = {row["id"]: row for row in now["workers"]}
    assert by_id["w1"]["drained_by"] == papers["last_decision"]["id"]
    assert by_id["w1"]["drain_until"] == pytest.approx(time.time() + 600, abs=30)
    assert by_id["gone"]["status"] == "lost"


def test_status_of_a_pool_that_nobody_scales_is_short(say: Talk) -> None:
    push("a")
    assert say("status").splitlines()[1:] == ["pool papers: 1 item: 1 waiting", "0 workers"]
    say("pause")
    assert say("status").splitlines()[2] == "  paused until it is resumed"
    now = say("status", "--json")["pools"]["papers"]
    assert (now["paused"], now["paused_until"], now["target"], now["hosts"]) == (True, None, None, [])


def test_status_and_workers_of_one_pool(say: Talk) -> None:
    push("a")
    push("b", pool="tickets")
    register("w1")
    register("w2", "w3", pool="tickets", decision="d7")
    do(lambda store: store.driver.set_status("w3", "terminated", {"ended": "drained", "processed": 5}))
    assert list(say("status", "--json")["pools"]) == ["papers", "tickets"]
    one = say("status", "--json", "--pool", "tickets")
    assert (list(one["pools"]), [row["id"] for row in one["workers"]], one["ended_workers"]) == (["tickets"], ["w2"], 1)
    assert {row["id"] for row in say("workers", "--json")["workers"]} == {"w1", "w2"}
    (row, ended) = say("workers", "--json", "--all", "--pool", "tickets")["workers"]
    assert (row["id"], row["launched_by"], row["drain_until"], ended["id"]) == ("w2", "d7", None, "w3")
    said = say("workers", "--pool", "tickets").splitlines()
    assert said[0] == "pool tickets: 1 worker (1 ended; --all shows them)"
    assert said[1].startswith("  w2  active  idle  (pool tickets · ")
    assert "  w3  terminated  5 done  (" in say("workers", "--all")


def test_status_shows_the_first_workers_and_says_where_the_others_are(say: Talk) -> None:
    register("w00")
    assert "\n1 worker\n" in say("status")
    register(*(f"w{n:02}" for n in range(1, 25)))
    said = say("status", "--pool", "papers").splitlines()
    assert said[-1] == "  and 5 more: flatfleet workers --pool papers"
    assert len(said) == 1 + 1 + 1 + 20 + 1
    assert len(say("workers").splitlines()) == 26
    assert len(say("status", "--json")["workers"]) == 25


@pytest.mark.parametrize(
    ("owner", "about"),
    [
        ("vm~1~2/33/44", {"host": "vm", "pid": 33}),
        ("a/b~1~2/33/44", {"host": "a/b", "pid": 33}),
        ("other", {"host": "other", "pid": None}),
    ],
)
def test_the_process_of_an_owner(owner: str, about: dict[str, Any]) -> None:
    assert roster.process(owner) == {**about, "owner": owner}


# -- items, explain, dead ----------------------------------------------------------------------------------------------


def test_items_by_state(say: Talk) -> None:
    push("w1", "w2")
    push("later", not_before=time.time() + 3600)
    push("due", not_before=time.time() + 0.01)
    die("bad", text="\x1b[31mred\n" + "x" * 300, ago=120)
    push("held", priority=5)
    do(lambda store: store.work.pool("papers").claim_many("w\x07", 1))

    async def finish(store: Store) -> None:
        await store.work.pool("papers").push("x", {"key": "fine", "priority": 9})
        claim = await store.work.pool("papers").claim("w")
        assert claim is not None
        await store.work.pool("papers").complete(claim.id, {"n": math.nan}, token=claim.token)

    do(finish)
    push("lapsed", priority=7)
    do(lambda store: store.driver.claim("papers", "late", "other", 1, 0.001, ()))
    time.sleep(0.02)

    def keys(state: str) -> set[str]:
        return {row["key"] for row in say("items", "--state", state, "--json")["items"]}

    found = {state: keys(state) for state in items_verb.STATES}
    assert found.pop("all") == set().union(*found.values())
    assert {name: each for name, each in found.items() if name != "waiting"} == {
        "delayed": {"later"}, "claimed": {"held"}, "expired": {"lapsed"}, "completed": {"fine"}, "dead": {"bad"}
    }  # fmt: skip
    assert found["waiting"] == {"w1", "w2", "due"} == keys("ready")
    counts = say("status", "--json")["pools"]["papers"]
    assert {state: counts[state] for state in found} == {state: len(each) for state, each in found.items()}
    said = {line.split()[0]: line for line in say("items").splitlines()}
    assert said["papers:w1"] == "  papers:w1  waiting"
    assert re.fullmatch(r"  papers:later  delayed for (1h00m|59m\d\ds|60m00s)", said["papers:later"])
    assert re.fullmatch(r"  papers:held  claimed by w\\x07 for \d+s", said["papers:held"])
    assert re.match(r"  papers:bad  dead 2m\d\ds ago, ValueError: bad: \\x1b\[31mred\\n", said["papers:bad"])
    assert said["papers:bad"].endswith("x…")
    (row,) = say("items", "--state", "dead", "--json")["items"]
    assert list(row) == ["state", *items_verb.FIELDS]
    assert (row["state"], row["error_type"], row["error"][:6]) == ("dead", "ValueError", "bad: \x1b")


def test_items_are_limited_and_streamed(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatfleet.runtime.stores.pool.PAGE", 7)
    push(*(f"k{n:03}" for n in range(60)))
    said = say("items", "--state", "waiting").splitlines()
    assert (len(said), said[-1]) == (51, "and more: flatfleet items --state waiting --limit 0")
    assert [line.strip().split()[0] for line in said[:2]] == ["papers:k000", "papers:k001"]
    assert len(say("items", "--limit", "60").splitlines()) == 60
    few, everything = say("items", "--json", "--limit", "2"), say("items", "--json", "--limit", "0")
    assert (len(few["items"]), few["more"], few["pool"], few["state"]) == (2, True, "papers", "all")
    assert (len(everything["items"]), everything["more"]) == (60, False)
    assert say("items", "--state", "dead") == "pool papers has no item that is dead\n"
    assert say("items", "--state", "dead", "--json")["items"] == []


def explained() -> None:
    """An item with four attempts, and what it is worth."""

    async def act(store: Store) -> None:
        pool = store.work.pool("papers")
        await pool.push_many([pool.new({"text": "Z" * 600}, key="a b\x1b", priority=3, requires=["gpu"])])
        for n in range(4):
            claim = (await pool.claim_many(f"w{n}\x07", 1, ["gpu"]))[0]
            walked = ("prepare", "analy\x1bze")
            if n == 0:
                await pool.release(claim.id, token=claim.token, walked=walked)
            elif n == 1:
                await store.driver.hand_back(worker=f"w{n}\x07", crashed=True)
            elif n == 2:
                text = "it\x1b[2J broke\nhere"
                await pool.fail(claim.id, text, token=claim.token, cost=0.25, walked=walked, retry_after=0)
            else:
                await pool.complete(
                    claim.id, {"r": ["R" * 5000]}, token=claim.token, cost=0.5, walked=[*walked, "done"]
                )

    do(act)


def test_explain_tells_every_attempt(say: Talk) -> None:
    explained()
    said = say("explain", "a b\x1b")
    lines = said.splitlines()
    assert re.fullmatch(r"papers:a-b-\w{12}  completed [01]s ago", lines[0])
    assert re.fullmatch(r"  key a b\\x1b · pool papers · came [\d :-]{19} · priority 3 · requires gpu", lines[1])
    assert lines[2].endswith("Z… (-v shows all of it)")
    assert lines[3] == "4 attempts: 1 of 3 used, 1 of 10 crashes, $0.7500"
    when = r"[\d-]{10} [\d:]{8} · 0\.\d\ds"
    assert re.fullmatch(rf"  1  released  w0\\x07  {when}", lines[4])
    assert lines[5] == r"     prepare → analy\x1bze"
    assert re.fullmatch(rf"  2  crashed  w1\\x07  {when}", lines[6])
    failed = next(n for n, line in enumerate(lines) if line.startswith("  3  failed"))
    assert re.fullmatch(rf"  3  failed  w2\\x07  {when} · \$0\.2500", lines[failed])
    assert lines[failed + 1 : failed + 3] == [r"     prepare → analy\x1bze", r"     Error: it\x1b[2J broke\nhere"]
    assert lines[failed + 4] == r"     prepare → analy\x1bze → done"
    assert lines[failed + 5] == "result:"
    assert lines[-1].endswith("R… (-v shows all of it)")
    assert "\x1b" not in said
    assert "R" * 5000 in say("explain", "a b\x1b", "-v")

    told = say("explain", "a b\x1b", "--json")
    assert [each["outcome"] for each in told["attempts"]] == ["released", "crashed", "failed", "completed"]
    assert told["attempts"][2] | {"started": 0, "ended": 0, "seconds": 0} == {
        "token": 3, "worker": "w2\x07", "started": 0, "ended": 0, "seconds": 0, "outcome": "failed", "error_type": "Error",
        "error": "it\x1b[2J broke\nhere", "cost": 0.25, "walked": ["prepare", "analy\x1bze"],
    }  # fmt: skip
    assert all(each["seconds"] == each["ended"] - each["started"] >= 0 for each in told["attempts"])
    assert told["item"]["result"] == {"r": ["R" * 5000]}
    assert told["item"]["data"] == {"text": "Z" * 600}
    assert told["item"]["requires"] == ["gpu"]


def test_explain_what_runs_what_waits_and_what_has_a_long_history(say: Talk) -> None:
    push("k")
    assert say("explain", "k").splitlines()[-1] == "0 attempts: 0 of 3 used, 0 of 10 crashes"

    async def act(store: Store) -> None:
        pool = store.work.pool("papers")
        for _ in range(25):
            claim = await pool.claim("w")
            assert claim is not None
            await pool.release(claim.id, token=claim.token)
        await pool.claim("now")

    do(act)
    lines = say("explain", "papers:k").splitlines()
    assert lines[3:5] == ["25 attempts: 0 of 3 used, 0 of 10 crashes", "  5 earlier ones: -v shows them"]
    assert lines[5].startswith("  6  released  w  ")
    assert re.fullmatch(r"  26  running  now  [\d :-]{19} · \d\.\d\ds so far · lease for (1m00s|\d\ds) more", lines[-1])
    assert "  1  released  w  " in say("explain", "papers:k", "-v")
    assert len(say("explain", "papers:k", "--json")["attempts"]) == 25


def test_dead_items_by_error(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    push("fine")
    assert say("dead") == "pool papers has no dead item\n"
    die(*(f"v{n}" for n in range(5)), text="\x1b[2Jno")
    die("d0", error="Document\x07Error", text="T" * 900)
    lines = say("dead").splitlines()
    assert lines[0] == "pool papers: 6 dead items"
    assert lines[1:4] == ["  5 × ValueError", r"      v0: \x1b[2Jno", "      v0, v1, v2 …"]
    assert lines[4] == r"  1 × Document\x07Error"
    assert lines[5].endswith("T…")
    assert lines[6] == "      d0"
    assert lines[7] == "One of them: flatfleet explain ITEM. To try them again: flatfleet retry"
    told = say("dead", "--json")
    assert (told["dead"], [each["count"] for each in told["errors"]]) == (6, [5, 1])
    assert told["errors"][0] == {
        "error_type": "ValueError", "count": 5, "example": "v0: \x1b[2Jno",
        "example_ids": ["papers:v0", "papers:v1", "papers:v2"], "example_keys": ["v0", "v1", "v2"],
    }  # fmt: skip
    monkeypatch.setattr("flatfleet.commands.dead.SEARCHED", 4)
    told = say("dead", "--json")
    assert [each["example_keys"] for each in told["errors"]] == [["v0", "v1", "v2"], []]
    assert told["errors"][1]["example"] is None
    assert "  1 × Document" in say("dead")


# -- retry, cancel -----------------------------------------------------------------------------------------------------


@pytest.fixture
def graves() -> None:
    die("v1", "v2", "v3")
    die("d1", "d2", error="DocumentError", ago=7200)
    die("old", ago=7200)
    push("fine")


DEAD_KEYS = {"v1", "v2", "v3", "d1", "d2", "old"}


@pytest.mark.parametrize(
    ("argv", "again"),
    [
        ([], DEAD_KEYS),
        (["--error", "DocumentError"], {"d1", "d2"}),
        (["--since", "1h"], {"v1", "v2", "v3"}),
        (["--since", "1d"], DEAD_KEYS),
        (["--since", "1h", "--error", "DocumentError"], set()),
        (["--since", "3h", "--error", "ValueError"], {"v1", "v2", "v3", "old"}),
        (["v2", "papers:old"], {"v2", "old"}),
        (["v2", "fine", "v2"], {"v2"}),
        (["fine"], set()),
    ],
)
def test_which_dead_items_are_tried_again(
    argv: list[str], again: set[str], graves: None, say: Talk, refuse: Talk
) -> None:
    if again:
        said = refuse("retry", *argv)
        assert said.startswith(f"this would try {finding.count(len(again), 'dead item')} of pool papers again (")
        assert said.endswith("; to do it without a terminal to ask on, add --yes")
        assert {key for key, state in states().items() if state == "dead"} == DEAD_KEYS
    told = say("retry", *argv, "--yes", "--json")
    assert (told["matching"], told["retried"]) == (len(again), len(again))
    assert {key for key, state in states().items() if state == "dead"} == DEAD_KEYS - again
    assert {each["id"] for each in told["left_alone"]} == ({"papers:fine"} if "fine" in argv else set())


def test_retry_says_of_what_how_many_and_who_is_there(graves: None, say: Talk, refuse: Talk) -> None:
    assert "(4 × ValueError, 2 × DocumentError)" in refuse("retry")
    assert refuse("retry", "--error", "ValueErorr", "--yes").endswith(
        "known: DocumentError, ValueError. Did you mean 'ValueError'?"
    )
    assert say("retry", "fine", "v1", "--yes").splitlines() == [
        "papers:fine is ready: left alone",
        "1 item of pool papers ready again; no worker is there for papers: start a launcher",
    ]
    register("w")
    item = do(lambda store: store.driver.item("papers:v1"))
    assert (item.state, item.attempts, item.error) == ("ready", 0, None)
    assert say("retry", "--yes") == "5 items of pool papers ready again\n"
    assert say("retry", "--yes") == "pool papers has no dead item\n"
    assert say("retry") == "pool papers has no dead item\n"
    die("new", ago=60)
    assert say("retry", "--since", "5") == "pool papers has no dead item of these\n"


def test_many_dead_items_are_retried_page_by_page_and_each_once(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dies again while the others are retried stays dead: it died after the question."""
    monkeypatch.setattr("flatfleet.runtime.stores.pool.PAGE", 4)
    monkeypatch.setattr("flatfleet.commands.retry.AT_ONCE", 3)
    die(*(f"v{n:02}" for n in range(20)))
    die("other", error="X")
    retry, asked = SQLiteDriver.retry, list[list[str]]()

    async def and_dies_again(self: Any, pool: str, ids: Any) -> int:
        asked.append(ids)
        n = await retry(self, pool, ids)
        for claim in await self.claim(pool, "w", "me", 99, 60.0, ()):
            await self.fail(claim.id, items_failure(), claim.token, 0.0)
        return n

    monkeypatch.setattr(SQLiteDriver, "retry", and_dies_again)
    told = say("retry", "--error", "ValueError", "--yes", "--json")
    assert (told["matching"], told["retried"], told["errors"]) == (20, 20, {"ValueError": 20})
    assert [len(ids) for ids in asked] == [3] * 6 + [2]
    assert set(states().values()) == {"dead"}


def items_failure() -> Any:
    from flatfleet.runtime.stores.records import Failure

    return Failure("ValueError", "again", permanent=True)


def test_cancel(say: Talk, refuse: Talk) -> None:
    push("a", "b", "c")
    push("later", not_before=time.time() + 3600)
    die("dead")
    register("w")
    claim = do(lambda store: store.work.pool("papers").claim("w"))
    assert claim.key == "a"
    said = refuse("cancel", "a", "b", "later", "dead")
    assert said.startswith("this would cancel 3 items of pool papers (1 claimed, 1 ready, 1 delayed); ")
    assert states()["a"] == "claimed"
    assert say("cancel", "a", "b", "later", "dead", "--yes").splitlines() == [
        "papers:dead is dead: left alone",
        "3 items of pool papers cancelled",
    ]
    assert states() == {"a": "dead", "b": "dead", "c": "ready", "later": "dead", "dead": "dead"}
    assert do(lambda store: store.work.pool("papers").errors()) == {"Cancelled": 3, "ValueError": 1}
    assert say("explain", "a", "--json")["attempts"][0]["outcome"] == "cancelled"
    assert say("cancel", "a") == "papers:a is dead: left alone\n"
    told = say("cancel", "a", "c", "--yes", "--json")
    assert (told["matching"], told["cancelled"], told["pools"]) == (1, 1, ["papers"])
    assert told["left_alone"] == [{"id": "papers:a", "state": "dead"}]
    assert "4 × Cancelled, 1 × ValueError" in refuse("retry")


def test_what_ends_while_one_is_asked_is_not_cancelled(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    push("a", "b")

    async def meanwhile(options: Any, what: str) -> bool:
        store = open_store("sqlite:fleet.db")
        claim = await store.work.pool("papers").claim("w")
        assert claim is not None
        await store.work.pool("papers").complete(claim.id, 1, token=claim.token)
        await store.close()
        return True

    monkeypatch.setattr("flatfleet.commands.cancel.agreed", meanwhile)
    assert say("cancel", "a", "b") == "1 item of pool papers cancelled; 1 ended before\n"
    assert states() == {"a": "completed", "b": "dead"}


@pytest.mark.parametrize(
    ("answer", "go"), [(b"y\n", True), (b"YES\n", True), (b"\n", False), (b"no\n", False), (b"", False)]
)
def test_the_question(
    answer: bytes, go: bool, graves: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(asking, "_on_terminal", lambda: True)
    monkeypatch.setattr("os.read", lambda fd, n: answer)
    capsys.readouterr()
    assert main(["retry", "--error", "DocumentError"]) == 0
    out, err = capsys.readouterr()
    assert err == "Try 2 dead items of pool papers again (2 × DocumentError)? [y/N] "
    assert out.startswith("2 items of pool papers ready again" if go else "nothing was changed\n")
    assert sum(state == "dead" for state in states().values()) == (4 if go else 6)


# -- pause, resume, gc -------------------------------------------------------------------------------------------------


def test_pause_and_resume(say: Talk) -> None:
    push("a", "b")
    do(lambda store: store.work.pool("papers").claim("w"))
    assert say("pause") == "pool papers is paused until it is resumed; 1 item in hand. To go on: flatfleet resume\n"
    assert do(lambda store: store.work.pool("papers").claim("w")) is None
    told = say("pause", "--for", "90s", "--json")
    assert told["paused_until"] == pytest.approx(time.time() + 90, abs=20)
    assert (told["paused"], told["claimed"]) == (True, 1)
    assert " (in 1m30s); 1 item in hand. To go on: flatfleet resume --pool papers\n" in say(
        "pause", "--for", "90s", "--pool", "papers"
    )
    assert say("pause", "--for", "0") == "pool papers is not paused: that time is over already\n"
    assert say("resume") == "pool papers was not paused\n"
    say("pause")
    assert say("resume") == "pool papers is resumed\n"
    assert do(lambda store: store.work.pool("papers").claim("w")).key == "b"
    assert say("resume", "--json") == {
        "store": "sqlite:fleet.db", "pool": "papers", "paused": False, "was_paused": False
    }  # fmt: skip


def test_gc(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(store: Store) -> None:
        await store.registration.register(WorkerRegistration(worker_id="w"), {"pool": "papers"})
        await store.driver.set_status("w", "terminated")

    do(act, ago=8 * 86400)
    push("a")
    assert say("gc", "--older", "9d") == "deleted of what ended more than 9d00h ago: nothing\n"
    assert worker("w") is not None
    told = say("gc", "--json")
    assert (told["deleted"]["workers"], told["older"], told["bytes"]) == (1, 7 * 86400.0, None)
    assert worker("w") is None
    do(act, ago=60)
    lines = say("gc", "--older", "0", "--vacuum").splitlines()
    assert lines[0] == "deleted of what ended more than 0s ago: 1 workers"
    assert re.fullmatch(r"\d+\.\d MB given back to the disk", lines[1])
    assert states() == {"a": "ready"}

    async def held(self: Any) -> int:
        raise StoreUnavailable("another process holds it")

    monkeypatch.setattr(SQLiteDriver, "vacuum", held)
    told = say("gc", "--vacuum", "--json", code=3)
    assert told["error"] == {"type": "StoreUnavailable", "message": "another process holds it"}
    assert told["deleted"].keys() >= {"workers", "executions"}
    with pytest.raises(StoreUnavailable):
        main(["gc", "--vacuum"])


def test_gc_while_another_process_has_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    register("w")
    do(lambda store: store.driver.set_status("w", "terminated"))
    other = sqlite3.connect("fleet.db")
    try:
        other.execute("SELECT count(*) FROM items").fetchone()
        with pytest.raises(StoreUnavailable, match=r"as large as it was: what was deleted stays deleted"):
            main(["gc", "--older", "0", "--vacuum"])
    finally:
        other.close()
    assert "1 worker" in capsys.readouterr().out
    assert worker("w") is None


# -- scale -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "said", "code"),
    [
        (
            {"outcome": "applied", "target_before": 4, "target": 8, "launches": 4, "live": 8},
            "papers: 4 → 8: launching 4 workers (decision ID): why \\x07 not\n",
            0,
        ),
        (
            {"outcome": "unchanged", "target_before": 8, "target": 8},
            "papers: 8: nothing to do (decision ID): why \\x07 not\n",
            0,
        ),
        (
            {"outcome": "dry_run", "target_before": 8, "target": 3, "drains": 1, "note": "4 more than that"},
            "papers: dry run: 8 → 3: would drain 1 worker; 4 more than that (decision ID): why \\x07 not\n",
            0,
        ),
        (
            {"outcome": "refused", "error": "if_current is 4"},
            "papers: refused: if_current is 4 (decision ID): why \\x07 not\n",
            1,
        ),
        ({"outcome": "rejected", "error": "newer"}, "papers: rejected: newer (decision ID): why \\x07 not\n", 2),
        (
            {"outcome": "failed", "error": "broken", "launches": 2},
            "papers: failed: broken; launching 2 workers (decision ID): why \\x07 not\n",
            4,
        ),
    ],
)
def test_scale_says_what_was_decided(decision: dict[str, Any], said: str, code: int, say: Talk) -> None:
    push("a")
    with Host(**decision) as host:
        text = say("scale", "8", "--reason", "why \x07 not", code=code)
        told = say("scale", "+4", "--json", "--reason", "why \x07 not", "--if-current", "4", code=code)
    assert re.sub(r"\(decision \w{32}\)", "(decision ID)", text) == said
    assert host.messages[0] == {"target": 8, "reason": "why \x07 not", "by": messages.sender()}
    assert host.messages[1] == {"delta": 4, "if_current": 4, "reason": "why \x07 not", "by": messages.sender()}
    assert told["message"] == host.messages[1]
    assert told["decision"]["id"] == told["id"]
    assert told["decision"]["outcome"] == decision["outcome"]
    assert [each["owner"] for each in told["hosts"]] == [this_process()]
    assert all(decisions.problem(message) is None for message in host.messages)


def test_scale_where_no_process_hosts_the_fleet(say: Talk, refuse: Talk) -> None:
    push("a")
    do(lambda store: store.driver.lock(f"host/papers/{DEAD}", DEAD, 60.0))
    begun = time.monotonic()
    assert say("scale", "8").splitlines() == [
        "no process hosts fleet 'papers': the message waits",
        "  the launcher's command hosts it, with --workers 1 or more",
        "  any time: flatfleet package:flatfleet/scaler.yml --stay",
        NEXT,
    ]
    assert time.monotonic() - begun < messages.PATIENCE
    told = say("scale", "-4", "--json", "--pool", "papers")
    assert (told["hosts"], told["decision"], told["fleet"]) == ([], None, "papers")
    waiting = do(lambda store: store.signals.peek("fleet/papers/scale"))
    assert [each.data.get("target", each.data.get("delta")) for each in waiting] == [8, -4]
    assert waiting[1].id == told["id"]
    assert refuse("scale", "8", "--host") == (
        "fleet 'papers' has no parked scaler that could be hosted, and nothing was sent; start one: "
        "flatfleet package:flatfleet/scaler.yml --stay"
    )
    assert len(do(lambda store: store.signals.peek("fleet/papers/scale"))) == 2


NEXT = "  whoever hosts it next hears all that waits, whatever that run is for; to drop it: flatfleet scale --forget"


def park(event: str = "waiting", pool: str = "papers", **context: Any) -> None:
    """Leave a scaler in the store, in this event and with this context."""
    body = json.dumps({"context": context, "current_state": "launch"}).encode()
    name = f"{pool}.scaler"
    row = SnapshotRow(name, f"{name}/1", body, event, f"fleet/{pool}/scale")
    do(lambda store: store.driver.save_snapshot(row, None, None))


def test_who_would_hear_a_message(say: Talk) -> None:
    """A scaler that is parked or not, items that are left or not: each command that is named is one that hosts the fleet."""

    def ways(*argv: str) -> list[str]:
        said: list[str] = say("scale", *argv).splitlines()
        assert said[0].endswith(": the message waits")
        return said[1:-1]

    push("a", pool="tickets")
    anyhow = "  any time: flatfleet package:flatfleet/scaler.yml --stay --task FILE --pool tickets"
    park(pool="tickets")
    host = "  here and now: flatfleet scale 8 --host --pool tickets"
    on = "  the command that launched it goes on, and hosts it"
    assert ways("8") == [host, on, anyhow]
    assert ways("+8") == [on, anyhow]  # the message that waits already asks for as many
    do(lambda store: store.work.pool("tickets").cancel(["tickets:a"]))
    stay = "  no item is left, so the launcher's command hosts it only with --stay"
    assert ways("8") == [host.replace("--host", "--host --stay"), stay, anyhow]
    do(lambda store: store.driver.drop_snapshots("tickets.scaler"))
    assert ways("8") == [stay, anyhow]
    register("launched", pool="tickets", decision="wabc")
    assert ways("8") == [stay, anyhow]
    register("c1", "c2", pool="tickets")
    assert ways("8") == [
        "  it does not scale its 2 live workers (c1, c2): coordinator.yml, pipeline.yml and worker.yml keep their number",
        anyhow.replace("any time", "more workers beside them"),
    ]
    assert say("scale", "8", "--json")["advice"][-1] == NEXT.strip() + " --pool tickets"
    with Host(outcome="unchanged"):
        push("a")
        assert say("scale", "8", "--json", "--pool", "papers")["advice"] == []


def test_what_waits_is_forgotten(say: Talk) -> None:
    push("a")
    assert say("scale", "--forget") == "papers: no message waits\n"
    park()
    for message in ({"target": 8}, {"delta": -4}, {"reconcile": True}, {"drain": ["w1"]}, "\x07"):
        do(lambda store, message=message: store.signals.send("fleet/papers/scale", message))
    do(lambda store: store.driver.deliver())  # the first one is the scaler's already
    said = say("scale", "--forget")
    assert said.startswith("papers: 5 messages dropped: ")
    assert sorted(said.strip().removeprefix("papers: 5 messages dropped: ").split("; ")) == [
        '"\\u0007"', "-4", "drain w1", "replace lost workers", "target 8",
    ]  # fmt: skip
    assert do(lambda store: store.driver.take("fleet/papers/scale", "papers.scaler")) is None
    assert do(lambda store: store.driver.load_snapshot("papers.scaler")).event == "waiting"
    say("scale", "3")
    told = say("scale", "--forget", "--json")
    assert [each["message"]["target"] for each in told["forgotten"]] == [3]
    assert (told["fleet"], told["at_work"]) == ("papers", None)
    park("woken", message="{}", decision={"message": {"target": 9}, "target": None})
    assert (
        say("scale", "--forget").splitlines()[1] == "  its scaler has begun with one, which it goes on with: target 9"
    )


def test_where_a_process_hosts_the_fleet_what_it_was_handed_is_not_forgotten(say: Talk) -> None:
    push("a")
    park()
    with Host():
        for target in (1, 2):
            do(lambda store, target=target: store.signals.send("fleet/papers/scale", {"target": target}))
        do(lambda store: store.driver.deliver())
        assert say("scale", "--forget") == "papers: 1 message dropped: target 2\n"
    assert do(lambda store: store.driver.take("fleet/papers/scale", "papers.scaler")).data == {"target": 1}


def test_status_says_what_the_scaler_is_at(say: Talk) -> None:
    push("a")
    register("w1", "w2")
    set_target(2)
    decision = {"id": "d1", "message": {"target": 12}, "target_before": 2, "target": None, "reason": "night\x07"}
    with Host():
        park("woken", message='{"delta": 10}', decision={})
        assert "  at work on: +10, 2 live" in say("status").splitlines()
        park("woken", message="{}", decision=decision)
        assert "  at work on: target 12, 2 live: night\\x07" in say("status").splitlines()
        park("woken", message="{}", decision=decision | {"target": 12})
        assert "  at work on: 2 → 12, 2 live: night\\x07" in say("status").splitlines()
        work = say("status", "--json")["pools"]["papers"]["at_work"]
        assert (work["id"], work["target_before"], work["target"], work["message"]) == ("d1", 2, 12, {"target": 12})
    killed = "  was at work on, and whoever hosts the fleet next goes on with: 2 → 12, 2 live: night\\x07"
    assert killed in say("status").splitlines()
    for event, message in (("woken", ""), ("waiting", "{}")):
        park(event, message=message, decision={} if event == "woken" else decision)
        assert "at work" not in say("status")
        assert say("status", "--json")["pools"]["papers"]["at_work"] is None


def test_a_scaler_that_cannot_be_woken_here(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("flatfleet.commands.terminal.log_to_stderr", lambda verbose: None)
    monkeypatch.setattr(messages.answer, "__defaults__", (0.1,))
    push("a")
    row = SnapshotRow("papers.scaler", "papers.scaler/1", b"{}", "waiting", "fleet/papers/scale")
    do(lambda store: store.driver.save_snapshot(row, None, None))
    begun = time.monotonic()
    with pytest.raises(MachineError, match="the scaler of fleet 'papers' could not be woken here: the message waits"):
        main(["scale", "2", "--host"])
    assert time.monotonic() - begun < 10
    assert "papers.scaler cannot be resumed here" in caplog.text
    assert do(lambda store: store.driver.load_snapshot("papers.scaler")).event == "waiting"
    assert do(lambda store: store.fleet("papers").hosts()) == []


def test_scale_where_the_scaler_is_at_work(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    push("a")
    monkeypatch.setattr(messages.answer, "__defaults__", (0.05,))
    with Host():
        said = say("scale", "8", "--store", "sqlite:./fleet.db")
        assert re.fullmatch(
            r"papers: sent, and it waits for the scaler to be free \(decision \w{32}\); "
            r"what comes of it: flatfleet status --store sqlite:./fleet\.db\n",
            said,
        )
        assert "it waits behind 1 other (" in say("scale", "8")
        consume = SQLiteDriver.send

        async def taken(self: Any, channel: str, data: Any) -> str:
            sent = await consume(self, channel, data)
            while (signal := await self.consume(channel)) and signal.id != sent:
                pass
            return sent

        monkeypatch.setattr(SQLiteDriver, "send", taken)
        assert "the scaler is at work on it (" in say("scale", "8")


def test_who_sends() -> None:
    assert 3 <= len(messages.sender()) <= 200
    assert "@" in messages.sender()


def test_a_sender_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("uid")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert messages.sender().startswith("somebody@")


# -- drain -------------------------------------------------------------------------------------------------------------


def test_drain_of_workers_by_name(say: Talk) -> None:
    push("a")
    register("w1", "w2", "w3", "w4")
    set_target(4)
    said = say("drain", "w1", "w3", "--reason", "hot").splitlines()
    assert re.fullmatch(r"papers: 4 → 2: draining 2 workers \(decision \w+\): hot", said[0])
    assert said[1:] == ["  w1, w3: 5m00s for what they hold"]
    assert target() == 2
    decision = last_decision()
    assert decision | {"id": 0, "at": 0, "message": 0} == {
        "id": 0, "fleet": "papers", "at": 0, "message": 0, "by": messages.sender(), "reason": "hot", "outcome": "applied",
        "target_before": 4, "target": 2, "live_before": 4, "live": 2, "parallelism": None, "launches": 0, "launched": [],
        "drains": 2, "drained": ["w1", "w3"],
    }  # fmt: skip
    for name, status in {"w1": "terminating", "w2": "active", "w3": "terminating", "w4": "active"}.items():
        record = worker(name)
        assert record.status == status
        if status == "terminating":
            assert record.metadata["drained_by"] == decision["id"]
            assert record.metadata["drain_until"] == pytest.approx(time.time() + 300, abs=20)
    told = say("drain", "w4", "w4", "--json", "--drain-deadline", "2h")
    assert [(each["pool"], each["drained"], each["hurried"]) for each in told["pools"]] == [("papers", ["w4"], [])]
    assert told["pools"][0]["drain_until"] == pytest.approx(time.time() + 7200, abs=20)
    assert (target(), told["left_alone"]) == (1, {})


def test_a_decision_on_a_drain_keeps_its_schema(say: Talk) -> None:
    from importlib import resources

    from jsonschema import Draft7Validator

    text = resources.files("flatfleet.schemas").joinpath("decision.schema.json").read_text("utf-8")
    register("w1", "w2")
    set_target(2)
    say("drain", "w1")
    Draft7Validator(json.loads(text)).validate(last_decision())
    say("drain")
    Draft7Validator(json.loads(text)).validate(last_decision())


@pytest.mark.parametrize(
    ("stored", "live", "named", "after"),
    [
        (8, 8, 2, 6),
        (8, 5, 1, 7),  # three are lost, and still to be replaced
        (8, 5, 5, 3),
        (3, 5, 1, 3),  # more are there than the target says
        (3, 5, 4, 1),
        (0, 2, 1, 0),
        (None, 3, 1, None),
        (8, 5, None, 0),
        (None, 3, None, None),
        (8, 0, None, 0),
    ],
)
def test_what_becomes_of_the_target(
    stored: int | None, live: int, named: int | None, after: int | None, say: Talk
) -> None:
    """Nobody is launched for it: neither by a reconcile, nor by a launcher that finds the target."""
    push("a")
    register(*(f"w{n}" for n in range(live)))
    set_target(stored)
    say("drain", *(f"w{n}" for n in range(named or 0)))
    assert target() == after
    left = live - (live if named is None else named)
    if after is not None and stored == live:
        assert scaling.aim({"reconcile": True}, after, left, 0).level == left


def test_a_drained_worker_that_is_lost_is_not_replaced(say: Talk) -> None:
    register("w1", "w2", owner="elsewhere")
    say("drain", "w1")
    do(lambda store: store.driver.mark_lost("elsewhere"))
    records = do(lambda store: store.registration.list())
    assert {each.status for each in records} == {"lost"}
    assert [each.worker_id for each in scaling.unreplaced(records, "papers")] == ["w2"]


def test_targets_count_parallelism(say: Talk) -> None:
    register("w1", parallelism=3)
    register("w2", parallelism=2)
    set_target(5)
    say("drain", "w1")
    assert (target(), last_decision()["live"]) == (2, 2)


def test_drain_of_all_where_nobody_hosts_the_fleet(say: Talk) -> None:
    push("a")
    register("w1", "w2")
    register("dead", owner=DEAD)
    register("other", pool="tickets")
    set_target(2)
    said = say("drain", "--pool", "papers", "--drain-deadline", "90s").splitlines()
    assert re.fullmatch(r"papers: 2 → 0: draining 2 workers \(decision \w+\)", said[0])
    assert said[1] == "  w1, w2: 1m30s for what they hold"
    assert [worker(name).status for name in ("w1", "w2", "dead", "other")] == ["terminating"] * 2 + ["active"] * 2
    assert target() == 0
    assert say("drain", "--pool", "papers") == "pool papers has no worker to drain\n"
    assert do(lambda store: store.signals.peek("fleet/papers/scale")) == []


def test_drain_of_all_goes_to_the_scaler_where_there_is_one(say: Talk) -> None:
    """The order is given at once; the target comes after what others have asked for before."""
    push("a")
    register("w1", "w2")
    with Host(outcome="applied", target_before=2, target=0, drains=2) as host:
        said = say("drain", "--reason", "night", "--drain-deadline", "0").splitlines()
    (message,) = host.messages
    assert message == {
        "target": 0, "id": message["id"], "by": messages.sender(), "reason": "night", "drain_deadline": 0
    }  # fmt: skip
    assert decisions.problem(message) is None
    assert said[0] == f"papers: 2 → 0: draining 2 workers (decision {message['id']}): night"
    assert {worker(name).metadata["drained_by"] for name in ("w1", "w2")} == {message["id"]}
    assert target() == 0
    with Host(outcome="failed", error="broken"):
        assert "failed: broken" in say("drain", code=4)


def test_drain_of_all_while_the_scaler_is_at_work(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    push("a")
    register("w1")
    monkeypatch.setattr(messages.answer, "__defaults__", (0.05,))
    with Host():
        said = say("drain").splitlines()
    assert said[0] == "papers: draining 1 worker"
    assert "the scaler is at work on another message" in said[1]
    assert worker("w1").status == "terminating"
    assert len(do(lambda store: store.signals.peek("fleet/papers/scale"))) == 1


def test_drain_by_name_goes_to_the_scaler_where_there_is_one(say: Talk) -> None:
    """The order is given at once; the scaler lowers the target when it has decided on what came before."""
    push("a")
    register("w1", "w2")
    with Host(outcome="applied", target_before=2, target=1, drains=1) as host:
        said = say("drain", "w1", "--reason", "hot", "--drain-deadline", "0").splitlines()
    (message,) = host.messages
    assert message == {
        "drain": ["w1"], "id": message["id"], "by": messages.sender(), "reason": "hot", "drain_deadline": 0
    }  # fmt: skip
    assert decisions.problem(message) is None
    assert said[0] == f"papers: 2 → 1: draining 1 worker (decision {message['id']}): hot"
    assert (worker("w1").metadata["drained_by"], worker("w2").status) == (message["id"], "active")


def test_drain_by_name_while_the_scaler_is_at_work(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last word on the target comes later: what is stored until then is left alone."""
    push("a")
    register("w1", "w2")
    set_target(2)
    monkeypatch.setattr(messages.answer, "__defaults__", (0.05,))
    with Host():
        said = say("drain", "w1").splitlines()
    assert said[0] == "papers: draining 1 worker"
    assert said[1] == "papers: the scaler is at work on another message; the target is lowered after it"
    assert (worker("w1").status, target()) == ("terminating", 2)
    (sent,) = do(lambda store: store.signals.peek("fleet/papers/scale"))
    assert sent.data["drain"] == ["w1"]


@pytest.mark.parametrize("letter", ["w", "ü", '"'])
def test_a_message_lists_as_many_of_the_drained_as_it_has_room_for(letter: str) -> None:
    names = [*("x" * n for n in (201, 5000)), *(letter * 150 + str(n) for n in range(500))]
    message = {"drain": draining._listed(names), "by": "ü" * 200, "reason": "ü" * 1000, "id": "i" * 32}
    assert message["drain"]
    assert len(json.dumps(message)) < decisions.LONGEST
    assert decisions.problem(message) is None


def test_a_scaler_that_decides_is_waited_for(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that the scaler records meanwhile is not overwritten with one that was made of the older."""
    register("w1", "w2")
    set_target(2)
    me = "another machine/1/1"
    do(lambda store: store.driver.lock("papers.scaler", me, 60.0))

    async def later(store: Store) -> None:
        await asyncio.sleep(0.3)
        await store.fleet("papers").set_target(9)
        await store.driver.unlock("papers.scaler", me)

    thread = threading.Thread(target=do, args=(later,))
    thread.start()
    say("drain", "w1")
    thread.join(10)
    assert (last_decision()["target_before"], target()) == (9, 8)
    assert do(lambda store: store.driver.locks("papers.scaler")) == []


@pytest.mark.parametrize("owner", ["another machine/1/1", DEAD])
def test_a_scaler_that_does_not_park_is_not_waited_for_for_ever(
    owner: str, say: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "PATIENCE", 0.1)
    register("w1", "w2")
    set_target(2)
    do(lambda store: store.driver.lock("papers.scaler", owner, 60.0))
    say("drain", "w1")
    assert target() == 1
    assert [held[1] for held in do(lambda store: store.driver.locks("papers.scaler"))] == [owner]


def test_who_drains_already_is_hurried_and_who_has_ended_is_left_alone(say: Talk) -> None:
    push("a")
    register("w1", "w2", "gone")
    register("dead", owner=DEAD)
    do(lambda store: store.driver.set_status("gone", "terminated", {"ended": "retired"}))
    say("drain", "w1")
    before = worker("w1").metadata
    assert say("drain", "w1", "gone", "dead").splitlines() == [
        "w1 is draining: left alone",
        "gone is terminated: left alone",
        "dead is lost: left alone",
    ]
    assert worker("w1").metadata["drain_until"] == before["drain_until"]
    told = say("drain", "w1", "--drain-deadline", "0", "--json")
    assert (told["pools"][0]["drained"], told["pools"][0]["hurried"], told["left_alone"]) == ([], ["w1"], {})
    assert worker("w1").metadata["drain_until"] <= time.time()
    assert worker("w1").metadata["drained_by"] == before["drained_by"]
    assert worker("gone").status == "terminated"
    say("drain", "--drain-deadline", "1h")
    assert worker("w1").metadata["drain_until"] > time.time() + 3000


def test_a_worker_that_ends_as_it_is_drained_has_ended(say: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    register("w1", "w2")
    listed = draining.scaling.alive

    def and_ends(*args: Any) -> Any:
        found = listed(*args)
        if worker_status("w1") == "active":
            change("w1")
        return found

    def worker_status(name: str) -> str:
        with sqlite3.connect("fleet.db") as db:
            (status,) = db.execute("SELECT status FROM workers WHERE id = ?", (name,)).fetchone()
        db.close()
        return str(status)

    def change(name: str) -> None:
        thread = threading.Thread(
            target=do, args=(lambda store: store.driver.set_status(name, "terminated", {"ended": "retired"}),)
        )
        thread.start()
        thread.join(10)

    monkeypatch.setattr(draining.scaling, "alive", and_ends)
    say("drain")
    assert [worker(name).status for name in ("w1", "w2")] == ["terminated", "terminating"]


def test_unknown_workers(refuse: Talk) -> None:
    push("a")
    register("w1", "w2")
    register("x9", pool="tickets")
    assert refuse("drain", "w1", "zz") == "no worker 'zz' in this store — known: w1, w2, x9"
    assert refuse("drain", "w22").endswith("known: w1, w2, x9. Did you mean 'w2'?")
    assert refuse("drain", "x9", "--pool", "papers") == "no worker 'x9' in pool 'papers' — known: w1, w2"
    assert worker("w1").status == "active"


def test_a_store_without_workers(refuse: Talk) -> None:
    push("a")
    assert refuse("drain", "w1") == "no worker 'w1' in this store: it has none"


def test_a_worker_of_no_pool_can_be_drained(say: Talk) -> None:
    register("w1", pool="")
    assert say("drain", "w1") == "draining 1 worker\n  w1: 5m00s for what they hold\n"
    assert worker("w1").status == "terminating"


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90.0),
        ("1.5", 1.5),
        ("90s", 90.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("0", 0.0),
        (".5h", 1800.0),
        ("250ms", 0.25),
        (" 10 m", 600.0),
    ],
)
def test_spans_as_they_are_typed(text: str, value: float) -> None:
    assert durations.seconds(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "1w",
        "10\nm",
        "90s\n",
        "90\n",
        "٣s",
        "١٠٠",
        "1_0",
        "-5",
        "-5m",
        "nan",
        "inf",
        "1e999",
        "1.2.3s",
        "10mm",
        "99999d",
    ],
)
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        durations.seconds(text)


def test_a_decision_that_knows_nothing_yet() -> None:
    decision = decisions.begin("papers", "s1", {"reconcile": True}, None) | {"outcome": "applied", "live": 3}
    assert decided.told(decision) == "3: nothing to do (decision s1)"
    assert decided.code(None) == 0


@pytest.mark.parametrize(
    ("state", "due", "shown"),
    [
        ("ready", 0, "waiting"),
        ("delayed", 99, "waiting"),
        ("delayed", 101, "delayed"),
        ("claimed", 101, "claimed"),
        ("claimed", 99, "expired"),
        ("completed", 0, "completed"),
        ("dead", 0, "dead"),
    ],
)
def test_the_words_for_states_are_those_of_status(state: str, due: float, shown: str) -> None:
    values: dict[str, Any] = dict.fromkeys(Item.__dataclass_fields__)
    assert items_verb.state_of(Item(**{**values, "state": state, "due": due}), 100.0) == shown


def test_what_to_type_next(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(pool="it's", store="sqlite:fleet.db")
    assert cli.again(options, "retry") == """flatfleet retry --pool 'it'"'"'s'"""
    monkeypatch.setenv("FLATFLEET_STORE", "sqlite:x.db")
    assert cli.again(argparse.Namespace(store="sqlite:x.db"), "status") == "flatfleet status"
    secret = argparse.Namespace(store="redis://:s3cr3t@h/0", pool="p")
    assert cli.again(secret, "retry") == 'flatfleet retry --pool p --store "$FLATFLEET_STORE"'


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if not thread.daemon]
    assert left == []
