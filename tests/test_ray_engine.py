"""The Ray engine with real actors: what dies and is told to go, placement, lost nodes, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from engine_hooks import Gate
from flatfleet.runtime import bundle
from flatfleet.runtime.bundle import Bundle
from flatfleet.runtime.engines.hosts import Setup
from flatfleet.runtime.engines.ray_places import Placement
from flatfleet.runtime.engines.spec import parse
from flatfleet.runtime.errors import EngineError, EngineUrlError

HERE = str(Path(__file__).parent)


@pytest.fixture
def there(make_kit, flow, tmp_path, monkeypatch, ray_address):
    """A kit over a Ray store, with Ray hosts that have the actions of engine_hooks.py."""
    monkeypatch.syspath_prepend(HERE)
    import engine_hooks

    url, engine = (
        f"ray://{ray_address}/engines?path={tmp_path}/fleet.db",
        f"ray://{ray_address}?min_size=1&max_size=2&slots=4",
    )
    kit = make_kit(url, engine, compose="engine_hooks:compose", grace=20.0)
    for action in engine_hooks.ACTIONS.values():
        kit.does(action)
    kit.caller = kit.machine(flow({"start": {"type": "final"}}))
    return kit


@pytest.fixture
def workers(there, flow, tmp_path):
    """A function that pushes items and launches workers of the shipped worker.yml for them."""

    async def launch(n, items, action="work"):
        states = {
            "start": {"action": action, "hooks": "test", "transitions": [{"to": "done"}]},
            "done": {"type": "final", "output": {"out": "context.out", "pid": "context.pid"}},
        }
        config = flow(states, {"item": "input.item", "out": None, "pid": None}, name="task")
        (tmp_path / "task.yml").write_text(yaml.safe_dump(dict(Bundle.of(config))))
        worker = bundle.load("package:flatfleet/machines/worker.yml", task=str(tmp_path / "task.yml"))
        pool = there.store.work.pool("p")
        await pool.push_many([pool.new({"item": item}, key=f"i{item}") for item in range(items)])
        for i in range(n):
            await there.engine.launch(there.caller, worker, {"pool": "p", "worker_id": f"w{i}"}, f"w{i}")
        return pool

    return launch


async def came(kit, n):
    await Gate(kit.store).reached(n, within=60)


def up(kit):
    return [place.host for place in kit.engine.pool.places if place.ready]


# -- what dies, and what is told to go ---------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_host_that_is_killed_takes_only_its_own_workers_and_all_is_done_once(there, workers):
    pool = await workers(6, 20)
    await came(there, 6)
    hosts = up(there)
    assert len(hosts) == 2
    os.kill(hosts[0].about()["pid"], signal.SIGKILL)
    await came(there, 8)
    await Gate(there.store).open()
    await there.engine.join()
    assert (await pool.counts()).completed == 20
    outcomes = [[each.outcome for each in await there.store.driver.attempts(f"p:i{i}")] for i in range(20)]
    assert all(each.count("completed") == 1 and each[-1] == "completed" for each in outcomes)
    assert 1 <= sum(each.count("crashed") for each in outcomes) <= 4
    records = await there.store.registration.list()
    assert sorted({each.status for each in records}) == ["lost", "terminated"]
    assert {each.metadata["owner"] for each in records if each.status == "lost"} == {hosts[0].owner}
    assert there.engine.failures() == {}


@pytest.mark.slow
async def test_a_host_that_is_terminated_drains_within_its_grace_and_is_replaced(there, workers):
    """What a spot instance, systemd and `ray stop` send."""
    pool = await workers(2, 8)
    await came(there, 2)
    (first,) = {host for host in up(there) if host.owner}
    os.kill(first.about()["pid"], signal.SIGTERM)
    async with asyncio.timeout(60):
        while first in up(there):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await Gate(there.store).open()
    await there.engine.join()
    assert (await pool.counts()).completed == 8
    outcomes = [each.outcome for i in range(8) for each in await there.store.driver.attempts(f"p:i{i}")]
    assert sorted(outcomes) == ["completed"] * 8
    owners = {each.metadata["owner"] for each in await there.store.registration.list()}
    assert first.owner in owners
    assert len(owners) == 2


@pytest.mark.slow
async def test_what_a_host_logs_is_shown_here_and_it_knows_what_its_launcher_knows(there, flow, capfd, monkeypatch):
    monkeypatch.setenv("FLATFLEET_TRIAL", "x")
    states = {"start": {"action": "about", "hooks": "test", "transitions": [{"to": "done"}]}}
    states["done"] = {"type": "final", "output": {"out": "context.out"}}
    await there.engine.launch(there.caller, Bundle.of(flow(states, {"out": None})), {}, "m1")
    bad = {"start": {"action": "work", "hooks": "test", "transitions": [{"to": "done"}]}, "done": {"type": "final"}}
    await there.engine.launch(there.caller, Bundle.of(flow(bad, {"item": "bad"})), {}, "m2")
    await Gate(there.store).open()
    await there.engine.join()
    told = (await there.store.results.read("flatagents://m1/result", block=False))["out"]
    assert told["folder"] == str(Path.cwd())
    assert told["pid"] != os.getpid()
    assert list(there.engine.failures()) == ["m2"]
    await there.engine.close(0)
    assert "host-1: ERROR m2 ended: OSError: power" in capfd.readouterr().err


DRIVER = """
import asyncio, sys
from flatfleet import run
async def main():
    parts = run.compose(sys.argv[1], engine=sys.argv[2])
    parts.engine.start()
    while not any(place.ready for place in parts.engine.pool.places):
        await asyncio.sleep(0.05)
    print(*(place.host.about()["pid"] for place in parts.engine.pool.places), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.slow
def test_hosts_end_with_the_process_that_they_belong_to_however_that_ends(ray_address, tmp_path):
    argv = [sys.executable, "-c", DRIVER, f"ray://{ray_address}/engines?path={tmp_path}/x.db"]
    driver = subprocess.Popen([*argv, f"ray://{ray_address}?min_size=1&max_size=1"], stdout=subprocess.PIPE, text=True)
    with driver:
        pid = int(driver.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        driver.kill()
    until = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# -- placement ---------------------------------------------------------------------------------------------------------


def test_what_a_placement_asks_for():
    setup = Setup("redis://h/0", 60.0, "", capabilities=("gpu", "region:eu", "spot"))
    made = Placement.of(parse("ray?cpus=0.5"), setup)
    assert (made.resources, made.cpus, made.here) == ({"GPU": 0.001, "region:eu": 0.001, "spot": 0.001}, 0.5, False)
    assert Placement.of(parse("ray"), Setup("sqlite:x.db", 60.0, "")) == Placement({}, 0.0, True)
    for wrong in ("-1", "x", "nan", "1e9"):
        with pytest.raises(EngineUrlError, match=f"cpus is '{wrong}'"):
            Placement.of(parse(f"ray?cpus={wrong}"), setup)


def test_a_reason_is_logged_once(caplog):
    placement = Placement({"spot": 0.001}, 0.0, False)
    for _ in range(3):
        placement.warn("no node")
    placement.warn("another")
    assert [record.getMessage() for record in caplog.records] == [
        "a host of the engine cannot be placed: no node",
        "a host of the engine cannot be placed: another",
    ]


@pytest.mark.slow
def test_a_host_waits_for_a_node_that_offers_what_it_needs_and_a_lost_node_is_replaced(tmp_path):
    """Raylets of this machine: at first none has `spot`; one that has is killed, the next one drained; others take over."""
    done = subprocess.run(
        [sys.executable, f"{HERE}/ray_nodes.py", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    pending = "no node of the Ray cluster offers region:eu, spot: it waits until one does"
    assert told["pending"].startswith(pending), done
    assert told["noted"] == told["pending"]
    assert told["state"] == "starting"
    assert done.stderr.count("cannot be placed") == 1
    assert (told["pending_then"], told["first"]) == (None, True), done
    assert told["completed"] == 6, done
    assert (told["lost"], told["of_the_dead"], told["failures"]) == (2, True, [])
    assert (told["moved"], told["of_the_drained"]) == (True, True)
    assert told["attempts"] == ["completed"] * 6 + ["crashed"] * 2 + ["released"] * 2
    assert told["preferred"].startswith("no node of the Ray cluster offers spot: it waits until one does (")
    assert told["preferred"].endswith((" in 2 s it takes any other", " in 1 s it takes any other"))
    assert (told["without"], told["with"]) == (["on-demand"], ["spot"])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_without_ray_the_message_says_what_to_install(make_kit, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineUrlError, match=r"engine 'ray' needs Ray, .* pip install 'flatfleet\[ray\]'"):
        make_kit(f"sqlite:{tmp_path / 'x.db'}", "ray")


@pytest.mark.parametrize("engine", ["ray://head", "ray://head:x", "ray://a@head:1"])
def test_an_address_that_is_none_is_refused_at_once(make_kit, tmp_path, engine):
    with pytest.raises(EngineUrlError, match=r"is not HOST:PORT of a Ray cluster"):
        make_kit(f"sqlite:{tmp_path / 'x.db'}", engine)


def test_an_address_where_nobody_listens_is_refused_before_anything_is_launched(make_kit, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"no Ray cluster answers at {address}: "):
            make_kit(f"sqlite:{tmp_path / 'x.db'}", f"ray://{address}")


def test_a_store_in_memory_is_refused(make_kit):
    with pytest.raises(EngineUrlError, match="lives in this one"):
        make_kit("memory:", "ray")


async def launch(kit, flow):
    config = flow({"start": {"type": "final"}})
    await kit.engine.launch(kit.machine(config), Bundle.of(config), {}, "m")


@pytest.mark.slow
async def test_hosts_that_cannot_be_composed_say_why(make_kit, flow, tmp_path, monkeypatch, ray_address):
    monkeypatch.syspath_prepend(HERE)
    kit = make_kit(
        f"sqlite:{tmp_path}/x.db", f"ray://{ray_address}?min_size=1&max_size=1", compose="engine_hooks:broken"
    )
    await kit.engine.launch(
        kit.machine(flow({"start": {"type": "final"}})), Bundle.of(flow({"start": {"type": "final"}})), {}, "m"
    )
    await kit.engine.join()
    assert "did not start: this module cannot be used" in str(kit.engine.failures()["m"])
    await kit.close()


async def test_another_cluster_than_the_one_that_this_process_is_in_is_refused(make_kit, flow, tmp_path, ray_address):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        kit = make_kit(f"sqlite:{tmp_path}/x.db", f"ray://{address}?min_size=1&max_size=1")
    await kit.engine.launch(
        kit.machine(flow({"start": {"type": "final"}})), Bundle.of(flow({"start": {"type": "final"}})), {}, "m"
    )
    await kit.engine.join()
    told = str(kit.engine.failures()["m"])
    assert told.startswith(f"this process is in the Ray cluster {ray_address}: it cannot join {address}"), told
    await kit.close()
