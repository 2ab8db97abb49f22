"""The pipeline: three pools with limits of their own, stages side by side, one report that names what is missing."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
import yaml
from flatfleet.hooks import pipeline
from flatfleet.runtime import bundle, lists, overview, reports, stages
from flatfleet.runtime.errors import BundleError, ChildFailed, LeaseLost, SourceError, UsageError
from flatfleet.runtime.stores.store import Pool

SOON = 30.0
"""Seconds after which a test gives up; nothing takes as long where all is well."""


@pytest.fixture
def config(flow, tmp_path):
    """pipeline.yml with a task of the one action `work`, whose result is the item's key."""
    states = {
        "start": {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]},
        "done": {"type": "final", "output": {"title": "context.item.key", "summary": "context.said"}},
    }
    file = tmp_path / "task.yml"
    file.write_text(yaml.safe_dump(flow(states, {"item": "input.item", "said": "It is said."}, name="task")))
    return bundle.load("package:flatfleet/machines/pipeline.yml", task=str(file))


@pytest.fixture
def rows(tmp_path):
    """A function that writes a list of n rows and returns its path."""

    def write(name, n):
        file = tmp_path / "lists" / name
        file.parent.mkdir(exist_ok=True)
        stem = file.name.partition(".")[0]
        file.write_text("".join(json.dumps({"key": f"{stem}{k:03}"}) + "\n" for k in range(n)))
        return str(file)

    return write


def pools(kit):
    return [kit.store.work.pool(name) for name in ("p-fetch", "p", "p-aggregate")]


async def run(kit, config, source, **inputs):
    output = await asyncio.wait_for(
        kit.machine(config).run({"input": source, "pool": "p", "out": "", **inputs}), 6 * SOON
    )
    await asyncio.wait_for(kit.engine.join(), SOON)
    return output


async def attempts(kit):
    return {item.id: len(await pool.attempts(item.id)) for pool in pools(kit) async for item in pool.items()}


async def until(happened):
    async with asyncio.timeout(SOON):
        while not await happened():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def reaches(pool, **wanted):
    counts = await pool.counts()
    return all(getattr(counts, name) >= n for name, n in wanted.items())


def quick(kit):
    @kit.does
    async def work(context, fleet):
        await asyncio.sleep(0)
        return context


# -- the whole -----------------------------------------------------------------------------------------------------------


async def test_the_bundled_papers_come_to_one_report(any_kit, tmp_path):
    config = bundle.load("package:flatfleet/machines/pipeline.yml")
    output = await asyncio.wait_for(any_kit.machine(config).run({"out": str(tmp_path)}), 6 * SOON)
    report = output["report"]
    assert (report["items"], report["completed"], report["missing"], output["unsettled"]) == (12, 12, 0, 0)
    whole = json.loads((tmp_path / "papers-aggregate/report.json").read_text())
    assert len(whole["items"]) == len(list(tmp_path.glob("*.json"))) == 12
    assert all(item["summary"] and item["title"] for item in whole["items"])
    text = (tmp_path / "papers-aggregate/report.md").read_text()
    assert all(f"### {item['title']}"[:20] in text for item in whole["items"])
    assert "Missing" not in text


async def test_a_rerun_does_nothing_twice(any_kit, config, rows):
    quick(any_kit)
    source = rows("a.jsonl", 40)
    first = await run(any_kit, config, source)
    before = await attempts(any_kit)
    assert set(before.values()) == {1}
    assert len(before) == 1 + 40 + 1
    second = await run(any_kit, config, source)
    assert await attempts(any_kit) == before
    assert second["report"] == first["report"]


async def test_a_list_that_has_grown_is_read_again_and_only_what_is_new_is_done(any_kit, config, rows):
    quick(any_kit)
    await run(any_kit, config, rows("a.jsonl", 10))
    output = await run(any_kit, config, rows("a.jsonl", 15))
    fetch, items, aggregate = [await pool.counts() for pool in pools(any_kit)]
    assert (fetch.completed, items.completed, aggregate.completed) == (2, 15, 2)
    assert output["report"]["completed"] == 15
    assert set((await attempts(any_kit)).values()) == {1}


async def test_the_report_names_what_failed_and_what_could_not_be_read(any_kit, config, rows, tmp_path):
    @any_kit.does
    async def work(context, fleet):
        if context["item"]["key"] in ("good007", "good011"):
            raise UsageError(f"{context['item']['key']} is no good")
        return context

    rows("good.jsonl", 20)
    (tmp_path / "lists/bad.jsonl").write_text('{"key": "fine"}\n[1, 2]\n')
    (tmp_path / "lists/broken.jsonl").write_bytes(b"\x1f\x8b no gzip")
    (tmp_path / "lists/gone").mkdir()
    (tmp_path / "lists/gone/a.jsonl").write_text("")
    output = await run(any_kit, config, str(tmp_path / "lists"), out=str(tmp_path / "out"))
    report = json.loads((tmp_path / "out/p-aggregate/report.json").read_text())
    assert (output["lists"], output["report"]["items"], output["report"]["completed"]) == (4, 21, 19)
    missing = report["missing"]
    assert [each["item"] for each in missing if "item" in each] == ["good007", "good011"]
    assert {each["why"] for each in missing if "item" in each} == {
        "UsageError: good007 is no good", "UsageError: good011 is no good"
    }  # fmt: skip
    assert [each["row"].partition(":")[0] for each in missing if "row" in each] == ["bad.jsonl", "broken.jsonl"]
    (dead,) = [each for each in missing if "list" in each]
    assert dead["list"].startswith(str(tmp_path / "lists/gone"))
    assert "holds no row" in dead["why"]
    assert output["report"]["missing"] == len(missing) == 5
    text = (tmp_path / "out/p-aggregate/report.md").read_text()
    assert "19 of 21 items have a result, 2 failed" in text
    for name in ("good007", "good011", "bad.jsonl", "broken.jsonl", "lists/gone"):
        assert name in text


async def test_after_a_retry_a_rerun_reports_anew(any_kit, config, rows):
    broken = True

    @any_kit.does
    async def work(context, fleet):
        if broken and context["item"]["key"] == "a003":
            raise UsageError("not yet")
        return context

    source = rows("a.jsonl", 8)
    first = await run(any_kit, config, source)
    broken = False
    assert await any_kit.store.work.pool("p").retry() == 1
    second = await run(any_kit, config, source)
    assert [output["report"]["missing"] for output in (first, second)] == [1, 0]


# -- limits, and stages side by side -------------------------------------------------------------------------------------


async def test_stages_overlap_each_within_its_own_limit(any_kit, config, rows, monkeypatch):
    """5 lists of 60 items: at most 3 are read at once, 20 items in flight, 4 worked on; the report waits for all."""
    most = {"fetch": 0, "flight": 0, "work": 0}
    now, order = 0, []
    push_many, feed = Pool.push_many, pipeline.Feeder.feed
    reading = 0

    async def pushed(self, items):
        news = await push_many(self, items)
        if self.name == "p":
            most["flight"] = max(most["flight"], (await self.counts()).left)
        return news

    async def counted(self, *args):
        nonlocal reading
        reading += 1
        most["fetch"] = max(most["fetch"], reading)
        try:
            return await feed(self, *args)
        finally:
            reading -= 1
            order.append("list")

    monkeypatch.setattr(Pool, "push_many", pushed)
    monkeypatch.setattr(pipeline.Feeder, "feed", counted)

    @any_kit.does
    async def work(context, fleet):
        nonlocal now
        now += 1
        most["work"] = max(most["work"], now)
        await asyncio.sleep(0.01)
        now -= 1
        order.append("item")
        return context

    for name in "abcde":
        source = os.path.dirname(rows(f"{name}.jsonl", 60))  # noqa: PTH120
    output = await run(any_kit, config, source, fetchers=3, workers=4, in_flight=20)
    assert (output["lists"], output["report"]["completed"]) == (5, 300)
    assert most == {"fetch": 3, "flight": 20, "work": 4}
    assert order.index("item") < order.index("list")
    fetch, items, aggregate = pools(any_kit)
    ends = [
        attempt.ended
        for pool in (fetch, items)
        async for item in pool.items()
        for attempt in await pool.attempts(item.id)
    ]
    (report,) = [item async for item in aggregate.items()]
    (begun,) = await aggregate.attempts(report.id)
    assert begun.started >= max(ends)


async def test_two_pipelines_over_the_same_lists_share_the_limits_and_the_report(any_kit, config, rows, monkeypatch):
    """As many as one alone: the limits are the pools', and the report is one item."""
    other = any_kit.other()
    most, now = {"fetch": 0, "work": 0, "aggregate": 0}, dict.fromkeys(("fetch", "work", "aggregate"), 0)

    async def counted(name, run):
        now[name] += 1
        most[name] = max(most[name], now[name])
        try:
            return await run
        finally:
            now[name] -= 1

    feed, overviewed = pipeline.Feeder.feed, overview.overview
    monkeypatch.setattr(pipeline.Feeder, "feed", lambda self, *args: counted("fetch", feed(self, *args)))
    monkeypatch.setattr(overview, "overview", lambda *args: counted("aggregate", overviewed(*args)))

    async def work(context, fleet):
        await counted("work", asyncio.sleep(0.005))
        return context

    any_kit.does(work)
    other.does(work)
    for name in "abcd":
        source = os.path.dirname(rows(f"{name}.jsonl", 30))  # noqa: PTH120
    one, two = await asyncio.gather(
        *(run(kit, config, source, fetchers=2, workers=3, in_flight=9) for kit in (any_kit, other))
    )
    assert most == {"fetch": 2, "work": 3, "aggregate": 1}
    assert one["report"] == two["report"]
    assert one["report"]["completed"] == 120
    fetch, items, aggregate = [await pool.counts() for pool in pools(any_kit)]
    assert (fetch.completed, items.completed, aggregate.completed) == (4, 120, 1)
    assert set((await attempts(any_kit)).values()) == {1}


def test_the_limits_are_five_ten_a_hundred_and_one(config):
    data = config["data"]
    inputs = {name: spec.get("default") for name, spec in config["metadata"]["inputs"].items()}
    assert (inputs["fetchers"], inputs["workers"], inputs["in_flight"]) == (5, 10, 100)
    states = data["states"]
    limits = {name: states[f"launch_{name}"]["launch_input"]["pool_size"] for name in ("fetcher", "worker")}
    assert limits == {"fetcher": "context.fetchers", "worker": "context.workers"}
    assert states["aggregate"]["input"]["pool_size"] == 1


async def test_a_list_that_waits_too_long_for_room_becomes_an_item_of_its_own(any_kit, config, rows, monkeypatch):
    quick(any_kit)
    fed = pipeline.feed
    monkeypatch.setattr(pipeline, "number", lambda context, name, default: 0.0)
    output = await run(any_kit, config, rows("a.jsonl", 30), in_flight=4, workers=2)
    assert fed is pipeline.feed
    fetch, items, _ = [await pool.counts() for pool in pools(any_kit)]
    assert fetch.completed > 1
    assert (fetch.left, items.completed, output["report"]["missing"]) == (0, 30, 0)
    assert set((await attempts(any_kit)).values()) == {1}


async def test_who_is_told_to_stop_hands_the_rest_of_its_list_on(any_kit, config, rows):
    stuck = asyncio.Event()

    @any_kit.does
    async def work(context, fleet):
        stuck.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(
        any_kit.machine(config).run({"input": rows("a.jsonl", 30), "pool": "p", "in_flight": 5, "out": ""})
    )
    await asyncio.wait_for(stuck.wait(), SOON)
    fetch, items, _ = pools(any_kit)
    await until(lambda: reaches(items, claimed=5))
    any_kit.engine.drain()
    await until(lambda: reaches(fetch, completed=1))
    (rest,) = [item async for item in fetch.items("ready")]
    assert (rest.data["offset"], rest.key.endswith(" part 2")) == (5, True)
    running.cancel()
    await any_kit.engine.close(0)
    any_kit.fleet.draining = False
    quick(any_kit)
    assert (await items.counts()).waiting == 5
    output = await run(any_kit, config, rows("a.jsonl", 30))
    assert output["report"]["completed"] == 30


async def test_it_says_so_if_nobody_is_left_to_do_the_rest(any_kit, config, rows, monkeypatch):
    """Its workers were drained by name: there is no report yet, and the same command goes on from there."""
    monkeypatch.setattr(stages, "GONE", 0.2)

    @any_kit.does
    async def work(context, fleet):
        for worker in await fleet.store.registration.list():
            await fleet.store.registration.update_status(worker.worker_id, "terminating")
        await fleet.beat()
        return context

    source = rows("a.jsonl", 30)
    output = await run(any_kit, config, source, workers=2, in_flight=0)
    assert output["report"] is None
    assert output["unsettled"] > 0
    assert (await pools(any_kit)[2].counts()).total == 0
    quick(any_kit)
    assert (await run(any_kit, config, source))["report"]["completed"] == 30


async def test_a_report_that_cannot_be_made_is_an_error_and_a_rerun_makes_it(any_kit, config, rows, monkeypatch):
    quick(any_kit)
    source = rows("a.jsonl", 5)

    async def broken(*args):
        raise UsageError("no report today")

    monkeypatch.setattr(overview, "overview", broken)
    with pytest.raises(ChildFailed, match="could not be made: UsageError: no report today"):
        await run(any_kit, config, source)
    monkeypatch.undo()
    assert (await run(any_kit, config, source))["report"]["completed"] == 5
    assert (await pools(any_kit)[2].counts()).total == 1


async def test_a_list_alone_is_fed_by_hand(kit, rows):
    machine = kit.machine(bundle.load("package:flatfleet/machines/fetch_list.yml"))
    output = await machine.run({"input": rows("a.jsonl", 7), "pool": "p", "offset": 2})
    assert (output["added"], output["offset"], output["finished"]) == (5, 7, True)
    assert (await kit.store.work.pool("p").counts()).waiting == 5


async def test_the_rest_of_a_list_is_handed_on_by_its_holder_alone(kit):
    with pytest.raises(LeaseLost):
        await pipeline.hand_on({"item_id": "p-fetch:x", "item": {"list": "x"}, "offset": 3}, kit.fleet)


# -- the report ----------------------------------------------------------------------------------------------------------


async def test_the_report_of_a_pool_names_whatever_has_no_result(any_kit):
    pool = any_kit.store.work.pool("p")
    await pool.push_many(
        [pool.new({}, key=key, max_retries=1) for key in ("done", "plain", "dead", "claimed", "ready")]
    )
    for key, end in (("done", {"title": "T", "summary": "S", "terms": ["x", "x", 3], "long": "y"}), ("plain", 7)):
        claim = await pool.claim("w")
        assert claim.key == key
        await pool.complete(claim.id, end, token=claim.token)
    claim = await pool.claim("w")
    await pool.fail(claim.id, "it broke", token=claim.token, error_type="Boom")
    await pool.claim("w")
    made = await overview.overview(pool, None)
    assert made["items"] == [
        {"key": "done", "id": "p:done", "title": "T", "summary": "S"}, {"key": "plain", "id": "p:plain", "result": 7}
    ]  # fmt: skip
    assert made["missing"] == [
        {"item": "dead", "why": "Boom: it broke"},
        {"item": "claimed", "why": "not settled (claimed)"},
        {"item": "ready", "why": "not settled (ready)"},
    ]
    assert made["summary"] == "2 of 5 items have a result, 1 failed, 2 are not settled; 3 are named as missing."
    assert made["terms"] == []
    assert "## Missing\n\n- dead — Boom: it broke\n" in reports.markdown(made)


async def test_the_fingerprint_changes_with_each_attempt_and_with_nothing_else(any_kit):
    pool = any_kit.store.work.pool("p")
    await pool.push_many([pool.new({}, key=key) for key in "ab"])
    seen = [await overview.fingerprint(pool), await overview.fingerprint(pool)]
    claim = await pool.claim("w")
    seen.append(await overview.fingerprint(pool))
    await pool.release(claim.id, token=claim.token)
    seen.append(await overview.fingerprint(pool))
    await pool.push({}, {"key": "c"})
    seen.append(await overview.fingerprint(pool))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


# -- lists ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree [1]"
    for name in (
        "b.jsonl",
        "a.md",
        "C.PDF",
        "sub/x.txt",
        "sub/deep/y.jsonl",
        "empty/z.csv",
        ".hidden/q.md",
        "other.csv",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"key": "k"}\n')
    return root


def test_each_file_of_rows_and_each_folder_is_a_list_and_loose_documents_are_one(tree):
    found = {key.rpartition("@")[0].removeprefix(str(tree)): each for key, each in lists.split(str(tree))}
    assert found == {
        "": {"input": str(tree), "loose": True},
        "/b.jsonl": {"input": str(tree / "b.jsonl")},
        "/sub": {"input": str(tree / "sub")},
    }
    keys = sorted(
        entry.key
        for each in found.values()
        for entry in lists.entries(each["input"], each.get("loose", False), None, None)
    )
    assert keys == sorted([str(tree / "C.PDF"), str(tree / "a.md"), "k", str(tree / "sub/x.txt"), "k"])


def test_the_files_of_a_glob_and_a_file_alone(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert [each for _, each in lists.split("**/*.jsonl")] == [
        {"input": str(tree / "b.jsonl")}, {"input": str(tree / "sub/deep/y.jsonl")}
    ]  # fmt: skip
    assert [each for _, each in lists.split("*.md")] == [{"input": "*.md", "loose": True}]
    assert [each for _, each in lists.split("a.md")] == [{"input": "a.md", "loose": True}]
    assert [entry.key for entry in lists.entries("*.md", True, None, None)] == [str(tree / "a.md")]


def test_a_lists_key_changes_with_its_files(tree):
    def key():
        return {each["input"]: key for key, each in lists.split(str(tree))}[str(tree / "sub")]

    before = key()
    assert key() == before
    (tree / "sub/new.md").write_text("new")
    assert key() != before


def test_lists_that_are_not_there_say_so(tmp_path, tree):
    with pytest.raises(SourceError, match="no file or folder"):
        list(lists.split(str(tmp_path / "nothing")))
    for name in ("a.md", "C.PDF"):
        (tree / name).unlink()
    with pytest.raises(SourceError, match="holds no document any more"):
        lists.entries(str(tree), True, None, None)


async def test_wrong_inputs_are_refused_before_anything_is_pushed(kit, config, rows, tmp_path):
    for wrong in ({"fields": "oops"}, {"fetchers": -1}, {"in_flight": -1}, {"workers": 0.5}):
        with pytest.raises(UsageError):
            await run(kit, config, rows("a.jsonl", 3), **wrong)
    with pytest.raises(SourceError):
        await run(kit, config, str(tmp_path / "nothing"))
    assert [(await pool.counts()).total for pool in pools(kit)] == [0, 0, 0]


# -- settings.tasks ------------------------------------------------------------------------------------------------------


def test_each_stage_has_its_own_task_and_task_replaces_that_of_the_items_alone(config):
    tasks = {
        name: machine["data"]["machines"]["task"]["data"]["name"]
        for name, machine in config["data"]["machines"].items()
    }
    assert tasks == {"worker": "task", "fetcher": "fetch_list", "aggregator": "aggregate"}
    shipped = bundle.load("package:flatfleet/machines/pipeline.yml")["data"]["machines"]
    assert shipped["worker"]["data"]["machines"]["task"]["data"]["name"] == "paper"
    assert shipped["fetcher"]["data"]["states"]["process"]["input"]["in_flight"] == "context.item.in_flight"


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"wroker": "./t.yml"}, "settings.tasks: unknown machine 'wroker' — known: worker. Did you mean 'worker'?"),
        ({"worker": "./nothing.yml"}, "there is no 'nothing.yml'"),
        ({"worker": "./t.yml"}, "no machine is called 'task' in 'worker' or below"),
    ],
)
def test_a_wrong_task_is_said_with_its_place(flow, tmp_path, tasks, said):
    leaf = {"start": {"type": "final"}}
    (tmp_path / "t.yml").write_text(yaml.safe_dump(flow(leaf, name="t")))
    states = {"start": {"machine": "worker", "transitions": [{"to": "done"}]}, "done": {"type": "final"}}
    made = flow(states, name="m", machines={"worker": "./t.yml"}, settings={"tasks": tasks})
    (tmp_path / "m.yml").write_text(yaml.safe_dump(made))
    with pytest.raises(BundleError) as caught:
        bundle.load(tmp_path / "m.yml")
    assert said in str(caught.value)
    assert "m.yml:" in str(caught.value)
