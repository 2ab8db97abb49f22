"""Items that require capabilities: how they are named, who gets them, and that what nobody serves is said and ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from flatfleet.commands.progress import Progress
from flatfleet.run import main
from flatfleet.runtime import routing
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.fleet import Fleet
from flatfleet.runtime.owner import machine
from flatfleet.runtime.routing import Unserved, among, unserved
from flatfleet.runtime.sources import Skipped, Source, expand
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.keys import check_capabilities
from flatmachines import WorkerRegistration

ROOT = Path(__file__).parents[1]
LAUNCHER = str(ROOT / "machines/launcher.yml")
SOON = 30.0
DEAD = f"{machine()}/999999999/1"

TASK = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: echo
  context: {name: input.name}
  states:
    say: {type: initial, transitions: [{to: done}]}
    done: {type: final, output: {name: context.name}}
metadata:
  inputs:
    name: {type: string, default: ""}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_CAPABILITIES"):
        monkeypatch.delenv(name, raising=False)
    Path("task.yml").write_text(TASK, encoding="utf-8")
    rows = [{"key": "plain"}, {"key": "one", "requires": "gpu"}, {"key": "two", "requires": ["region:eu", "gpu"]}]
    Path("rows.jsonl").write_text("".join(json.dumps(row | {"name": row["key"]}) + "\n" for row in rows), "utf-8")
    return tmp_path


async def offer(kit: Any, name: str, *capabilities: str, owner: str = "another process", pool: str = "p") -> None:
    worker = WorkerRegistration(worker_id=name, capabilities=list(capabilities))
    await kit.store.driver.register(worker, owner, 60.0, {"pool": pool})


async def require(kit: Any, *requires: str, key: str = "a", pool: str = "p") -> None:
    await kit.store.work.pool(pool).push({}, {"key": key, "requires": requires})


# -- names -------------------------------------------------------------------------------------------------------------


def test_capabilities_are_named_in_a_list_or_in_one_text():
    assert check_capabilities(["spot", "gpu", "spot"], "x") == ("gpu", "spot")
    assert check_capabilities(" gpu, ,region:eu,", "x") == ("gpu", "region:eu")
    assert check_capabilities("", "x") == check_capabilities([], "x") == ()
    assert check_capabilities(["Größe/2.0+x=y@z_-"], "x") == ("Größe/2.0+x=y@z_-",)
    assert check_capabilities(["g" * 64], "x") == ("g" * 64,)


@pytest.mark.parametrize("name", ["", " ", "a b", "a,b", "a\n", "\x00", "\x7f", "\ud800", "g" * 65, 5, None, ["gpu"]])
def test_what_cannot_name_a_capability_is_refused(name):
    with pytest.raises(UsageError, match=r"^--x: .* names no capability; use 1 to 64 characters"):
        check_capabilities(["gpu", name], "--x")


def test_an_item_may_require_so_many_capabilities_and_no_more():
    names = [f"c{n:02}" for n in range(33)]
    assert check_capabilities(names[:32] * 2, "x") == tuple(names[:32])
    with pytest.raises(UsageError, match="x: 33 capabilities are too many; at most 32 can be named"):
        check_capabilities(names, "x")


async def test_a_pool_takes_good_names_only(kit):
    pool = kit.store.work.pool("p")
    assert pool.new({}, requires="spot,gpu").requires == ("gpu", "spot")
    assert pool.new({}, requires=["spot"]).requires == ("spot",)
    with pytest.raises(UsageError, match="requires: 'a b' names no capability"):
        await pool.push({}, {"requires": ["a b"]})
    with pytest.raises(UsageError, match="capabilities: 'a b' names no capability"):
        Fleet(kit.store, capabilities=["a b"])
    assert await pool.size() == 0


# -- rows --------------------------------------------------------------------------------------------------------------


def of_rows(path: Path, *rows: dict[str, Any], **options: Any) -> list[Source | Skipped]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(expand(str(path), **options))


def test_a_row_says_what_it_requires(tmp_path):
    rows = [{"key": "a"}, {"key": "b", "requires": "gpu, spot"}, {"key": "c", "requires": ["eu"]}, {"requires": None}]
    found = of_rows(tmp_path / "r.jsonl", *rows)
    assert [each.requires for each in found if isinstance(each, Source)] == [(), ("gpu", "spot"), ("eu",), ()]
    assert found[1].data == rows[1]


def test_a_field_may_name_what_a_row_requires(tmp_path):
    (one,) = of_rows(
        tmp_path / "r.jsonl", {"key": "a", "where": {"region": "region:eu"}}, fields={"requires": "where.region"}
    )
    assert one.requires == ("region:eu",)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (5, "its field 'requires' is a number: it takes a list of capabilities"),
        ({"gpu": 1}, "its field 'requires' is an object: it takes a list of capabilities"),
        ("a b", "its field 'requires': 'a b' names no capability"),
        (["gpu", None], "its field 'requires': 'None' names no capability"),
    ],
)
def test_a_row_that_requires_nonsense_is_skipped_and_its_neighbour_is_not(tmp_path, given, why):
    wrong, right = of_rows(tmp_path / "r.jsonl", {"key": "a", "requires": given}, {"key": "b"})
    assert (wrong.where, right.key) == ("r.jsonl:1", "b")
    assert wrong.why.startswith(why)


# -- what nobody serves ------------------------------------------------------------------------------------------------


async def test_what_no_live_worker_offers_is_unserved(any_kit):
    await require(any_kit, "gpu", key="a")
    await require(any_kit, "gpu", key="b")
    await require(any_kit, "gpu", "spot", key="c")
    assert (await unserved(any_kit.store, "p")).needs == {("gpu",): 2, ("gpu", "spot"): 1}
    assert not await unserved(any_kit.store, "p", ["gpu", "spot"])
    await offer(any_kit, "w1", "gpu")
    await offer(any_kit, "w2", "spot", "eu")
    left = await unserved(any_kit.store, "p")
    assert (left.needs, left.offered, left.items) == ({("gpu", "spot"): 1}, ("eu", "gpu", "spot"), 1)
    assert left.lines() == ["1 item needs gpu and spot, which no worker offers together"]
    await offer(any_kit, "w3", "spot", "gpu", "eu")
    assert not await unserved(any_kit.store, "p")


async def test_who_has_ended_is_dead_or_works_elsewhere_offers_nothing(any_kit):
    await require(any_kit, "gpu")
    await offer(any_kit, "dead", "gpu", owner=DEAD)
    await offer(any_kit, "elsewhere", "gpu", pool="q")
    for status in ("terminating", "terminated", "lost"):
        await offer(any_kit, status, "gpu")
        await any_kit.store.driver.set_status(status, status)
    assert (await unserved(any_kit.store, "p")).needs == {("gpu",): 1}
    await offer(any_kit, "alive", "gpu")
    assert not await unserved(any_kit.store, "p")


def test_a_capability_that_is_offered_under_a_like_name_is_named():
    left = Unserved({("gpu",): 1200}, ("cpu", "gpus"), frozenset({"cpu"}))
    assert left.lines() == ["1,200 items need gpu, which no worker offers — offered: cpu, gpus. Did you mean 'gpus'?"]
    assert left.flag() == "--capabilities cpu,gpu"


def test_of_many_sets_the_first_are_named():
    left = among({(f"c{n}",): n for n in range(1, 9)}, [], "p")
    assert left.lines()[-2:] == ["5 items need c5, which no worker offers", "and 21 more that need something else"]
    assert left.rows()[0] == {"requires": ["c1"], "items": 1}


# -- who waits for it --------------------------------------------------------------------------------------------------


async def test_a_worker_of_a_batch_does_not_wait_for_what_nobody_serves(any_kit):
    await require(any_kit, "gpu")
    assert await asyncio.wait_for(any_kit.fleet.lounge.wait("p"), SOON) == "empty"


async def test_it_waits_while_somebody_else_serves_it(any_kit):
    await require(any_kit, "gpu")
    await offer(any_kit, "g", "gpu")
    waiting = asyncio.create_task(any_kit.fleet.lounge.wait("p"))
    for _ in range(20):
        await any_kit.store.work.pool("p").counts()
    assert not waiting.done()
    (claim,) = await any_kit.store.driver.claim("p", "g", "another process", 1, 60.0, ["gpu"])
    await any_kit.store.driver.set_status("g", "terminated")
    any_kit.store.bell.ring("p")
    for _ in range(20):
        await any_kit.store.work.pool("p").counts()
    assert not waiting.done()
    await any_kit.store.work.pool("p").release(claim.id, token=claim.token)
    assert await asyncio.wait_for(waiting, SOON) == "empty"


async def test_it_waits_for_what_is_delayed_if_it_can_serve_that(any_kit):
    await require(any_kit, "gpu")
    pool = any_kit.store.work.pool("p")
    await pool.push({}, {"key": "plain"})
    (claim,) = await pool.claim_many("w", 1)
    await pool.fail(claim.id, "x", token=claim.token, retry_after=0.2)
    claims: list[Any] = []
    while not claims:
        assert await asyncio.wait_for(any_kit.fleet.lounge.wait("p", again=True), SOON) == "woken"
        claims = await pool.claim_many("w", 5)
    assert [each.key for each in claims] == ["plain"]


async def test_who_offers_it_is_woken(any_kit):
    any_kit.fleet.capabilities = frozenset({"gpu"})
    waiting = asyncio.create_task(any_kit.fleet.lounge.wait("p", 60))
    await asyncio.sleep(0)
    await require(any_kit, "gpu")
    assert await asyncio.wait_for(waiting, SOON) == "woken"


async def test_what_nobody_serves_in_the_pool_before_keeps_nobody_in_the_next(any_kit):
    await require(any_kit, "gpu", pool="lists")
    wait = any_kit.fleet.lounge.wait("p", upstream=("lists",))
    assert await asyncio.wait_for(wait, SOON) == "empty"


async def test_a_served_worker_is_not_told_that_there_is_nothing(any_kit):
    await require(any_kit, "gpu")
    assert await any_kit.fleet.lounge.wait("p", 0.05) == "timeout"


# -- what people see ---------------------------------------------------------------------------------------------------


async def test_a_run_says_once_what_waits_for_nobody(capsys):
    left = [Unserved({("gpu",): 2}), Unserved({("gpu",): 1, ("tpu",): 1}), Unserved()]

    async def look() -> Unserved:
        return left.pop(0) if len(left) > 1 else left[0]

    progress = Progress(None, None, False, look)
    for _ in range(4):
        await progress._warn()
    assert capsys.readouterr().err.splitlines() == [
        "waiting: 2 items need gpu, which no worker offers",
        "waiting: 1 item needs tpu, which no worker offers",
    ]


def test_a_batch_ends_and_says_what_it_left(here, capsys):
    argv = ["run", LAUNCHER, "--task", "task.yml", "--input", "rows.jsonl", "--capabilities", "gpus"]
    assert main(argv) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 done, 0 dead, 2 left")
    assert said[1:4] == [
        "  1 item needs gpu, which no worker offers — offered: gpus. Did you mean 'gpus'?",
        "  1 item needs gpu and region:eu, which no worker offers — offered: gpus. Did you mean 'gpus'?",
        "  A worker that can serve them: the same command with --capabilities gpu,gpus",
    ]
    assert main([*argv[:-1], "gpu", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["counts"]["completed"], told["unserved"]) == (2, [{"requires": ["gpu", "region:eu"], "items": 1}])
    assert main([*argv[:-1], "region:eu,gpu"]) == 0
    assert "3 done (1 now), 0 dead, 0 left" in capsys.readouterr().out


def test_the_machine_may_say_what_it_serves(here, capsys, monkeypatch):
    monkeypatch.setenv("FLATFLEET_CAPABILITIES", "gpu, region:eu")
    assert main(["run", LAUNCHER, "--task", "task.yml", "--input", "rows.jsonl"]) == 0
    assert capsys.readouterr().out.startswith("3 done")


def test_who_only_enqueues_is_not_told_that_nobody_works(here, capsys):
    assert main(["run", LAUNCHER, "--task", "task.yml", "--input", "rows.jsonl", "--workers", "0"]) == 0
    assert capsys.readouterr().out.strip() == "3 items are waiting in pool echo; no worker was launched"


def test_a_launcher_may_require_more_of_all_its_items(here, capsys):
    argv = ["run", LAUNCHER, "--task", "task.yml", "--input", "rows.jsonl", "--requires", "spot,gpu"]
    assert main([*argv, "--workers", "0"]) == 0

    async def look() -> dict[tuple[str, ...], int]:
        store = open_store()
        try:
            return await store.work.pool("echo").requirements()
        finally:
            await store.close()

    assert asyncio.run(look()) == {("gpu", "spot"): 2, ("gpu", "region:eu", "spot"): 1}
    with pytest.raises(UsageError, match="--requires: 'a b' names no capability"):
        main([*argv[:-1], "a b"])


def test_wrong_capabilities_are_refused_before_anything_is_opened(here):
    with pytest.raises(UsageError, match="--capabilities: 'a b' names no capability"):
        main(["run", LAUNCHER, "--capabilities", "gpu,a b"])
    assert not Path("fleet.db").exists()


def test_status_and_explain_say_what_waits_for_nobody(here, capsys):
    main(["run", LAUNCHER, "--task", "task.yml", "--input", "rows.jsonl"])
    capsys.readouterr()
    assert main(["status"]) == 0
    said = capsys.readouterr().out.splitlines()
    lines = ["1 item needs gpu, which no worker offers", "1 item needs gpu and region:eu, which no worker offers"]
    assert [line.strip() for line in said[2:4]] == lines
    assert main(["status", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)["pools"]["echo"]
    assert about["requires"] == [
        {"requires": ["gpu"], "items": 1, "served": False},
        {"requires": ["gpu", "region:eu"], "items": 1, "served": False},
    ]
    assert about["unserved"] == lines
    assert main(["explain", "two"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  1 item needs gpu and region:eu, which no worker offers"
    for key, served in (("two", False), ("plain", True)):
        assert main(["explain", key, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["item"]["served"] is served


def test_workers_are_shown_with_what_they_offer(here, capsys):
    async def offer_some() -> None:
        store = open_store()
        worker = WorkerRegistration(worker_id="g", capabilities=["gpu", "region:eu"])
        await store.driver.register(worker, "another process", 60.0, {"pool": "p", "parallelism": 1})
        await store.close()

    asyncio.run(offer_some())
    assert main(["workers"]) == 0
    assert "  g  active  idle  (pool p · parallelism 1 · offers gpu, region:eu · pid" in capsys.readouterr().out


def test_a_message_names_what_is_offered():
    assert routing.told(("gpu",), 3, ()) == "3 items need gpu, which no worker offers"
