"""`settings.distributed`, and where a machine's `settings.fleet` says that it is: the store and the engine of a run."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from flatfleet.commands import cli
from flatfleet.run import _known, main
from flatfleet.runtime import distributed, fleet_settings
from flatfleet.runtime.distributed import DEFAULTS, SCHEMES, Choice, choice, faults
from flatfleet.runtime.engines.spec import KINDS, parse
from flatfleet.runtime.errors import BundleError, EngineUrlError, UsageError
from jsonschema import Draft7Validator

SCHEMA = json.loads(resources.files("flatfleet.schemas").joinpath("distributed.schema.json").read_text("utf-8"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_ENGINE"):
        monkeypatch.delenv(name, raising=False)


def machine(**settings: Any) -> dict[str, Any]:
    states = {"say": {"type": "initial", "transitions": [{"to": "done"}]}, "done": {"type": "final", "output": {}}}
    data = {
        "name": "m",
        "settings": settings,
        "context": {"pool": "{{ input.pool | default('p', true) }}"},
        "states": states,
    }
    inputs = {"pool": {"type": "string", "default": "p"}, "policy": {"type": "string", "default": ""}}
    data["context"]["policy"] = "input.policy"
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": data, "metadata": {"inputs": inputs}}


def options(*argv: str, **settings: Any) -> Any:
    """What `run` makes of a machine with these settings, and these flags."""
    Path("m.yml").write_text(yaml.safe_dump(machine(**settings)), encoding="utf-8")
    return cli.parse(["run", "./m.yml", *argv], _known)


# -- what it means -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "store", "engine"),
    [
        ({}, None, None),
        ({"enabled": False, "executor": "ray", "message_broker": "redis"}, None, None),
        ({"executor": "inline", "message_broker": "memory"}, "memory:", "inline"),
        ({"enabled": True, "executor": "process", "message_broker": "sqlite"}, "sqlite:fleet.db", "process"),
        ({"executor": "process"}, None, "process"),
        ({"message_broker": "redis"}, "redis://127.0.0.1:6379/0", None),
        ({"message_broker": "redis", "broker_url": "rediss://h:1/2"}, "rediss://h:1/2", None),
        ({"broker_url": "sqlite:other.db"}, "sqlite:other.db", None),
        ({"executor": "ray", "message_broker": "ray"}, "ray:", "ray"),
        ({"executor": "ray", "message_broker": "ray", "address": "head:6379"}, "ray://head:6379", "ray://head:6379"),
        ({"executor": "ray", "broker_url": "redis://h", "address": "head:1"}, "redis://h", "ray://head:1"),
    ],
)
def test_it_chooses_the_store_and_the_engine(told, store, engine):
    assert choice(machine(distributed=told)) == Choice(store, engine)
    if engine:
        assert parse(engine).kind == told["executor"]


def test_a_machine_that_says_nothing_chooses_nothing():
    assert choice(machine()) == choice({}) == choice({"data": {"settings": None}}) == Choice()


def test_the_schema_knows_the_engines_and_the_stores():
    Draft7Validator.check_schema(SCHEMA)
    assert tuple(SCHEMA["properties"]["executor"]["enum"]) == KINDS
    assert tuple(SCHEMA["properties"]["message_broker"]["enum"]) == tuple(SCHEMES) == tuple(DEFAULTS)
    assert all(part["description"] and part["title"] for part in SCHEMA["properties"].values())


def test_a_password_may_stand_in_a_variable():
    told = {"broker_url": "rediss://:${REDIS_PASSWORD}@h:1/0$$"}
    assert choice(machine(distributed=told), {"REDIS_PASSWORD": "s3cret"}).store == "rediss://:s3cret@h:1/0$"
    with pytest.raises(
        UsageError, match=r"settings\.distributed\.broker_url names the variable REDIS_PASSWORD, which is not"
    ):
        choice(machine(distributed=told), {})
    with pytest.raises(UsageError, match=r"settings\.fleet\.store has a \$ that begins no name; write \$\$"):
        choice(machine(fleet={"store": "redis://:a$@h"}), {})
    assert (
        choice(machine(distributed={"message_broker": "redis", "broker_url": "$URL"}), {"URL": "redis://h"}).store
        == "redis://h"
    )


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"executer": "ray"}, "unknown key 'executer' in settings.distributed — known: address, broker_url, enabled, executor, "
         "message_broker. Did you mean 'executor'?"),
        ({"executor": "proces"}, "settings.distributed.executor must be one of inline, process, ray, got \"proces\". "
         "Did you mean 'process'?"),
        ({"message_broker": "kafka"}, 'settings.distributed.message_broker must be one of memory, sqlite, redis, ray, got '),
        ({"enabled": "yes"}, 'settings.distributed.enabled must be true or false, got "yes"'),
        ({"broker_url": 5}, "settings.distributed.broker_url must be the URL of a store, such as"),
        ({"address": "head"}, "settings.distributed.address must be the host and port of a Ray cluster, such as head:6379"),
        ([], "settings.distributed must be a mapping such as {executor: process, message_broker: sqlite}, got []"),
        ({"message_broker": "redis", "broker_url": "sqlite:x"}, "settings.distributed.broker_url must begin with redis: or "
         "rediss: or unix: for message_broker redis, got sqlite:"),
        ({"executor": "process", "message_broker": "memory"}, "settings.distributed: executor process runs workers in other "
         "processes, and message_broker memory lives in one; take sqlite or redis"),
        ({"executor": "ray", "broker_url": "memory:"}, "settings.distributed: executor ray runs workers in other processes"),
        ({"address": "head:1", "executor": "process"}, "settings.distributed.address is that of a Ray cluster, and neither"),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_what_is_allowed(told, text):
    (fault,) = faults(told)
    assert fault.text.startswith(text)
    with pytest.raises(UsageError) as caught:
        choice(machine(distributed=told))
    assert str(caught.value) == fault.text


@pytest.mark.parametrize(
    "told",
    [
        {"broker_url": ["redis://:Secret@h"]},
        {"broker_url": {"redis": "//:Secret@h"}},
        {"broker_url": ""},
        {"broker_url": "redis://:Secret@[::1/0", "message_broker": "sqlite"},
        {"message_broker": "redis://:Secret@h"},
        {"address": "redis://:Secret@h"},
        ["redis://:Secret@h"],
        "redis://:Secret@h",
    ],
)
def test_no_fault_shows_a_password(told):
    (fault,) = faults(told)
    assert "settings.distributed" in fault.text
    assert "Secret" not in fault.text


def test_no_fault_of_the_store_of_a_fleet_shows_a_password():
    (fault,) = fleet_settings.faults({"store": ["redis://:Secret@h"]})
    assert fault.startswith("settings.fleet.store must be the URL of a store")
    assert fault.endswith("got a list")


def test_what_is_switched_off_may_not_go_together():
    assert faults({"enabled": False, "executor": "process", "message_broker": "memory"}) == faults(None) == []
    assert faults({"enabled": False, "executor": "proces"})


def test_the_file_is_named_with_line_and_column():
    Path("m.yml").write_text(
        yaml.safe_dump(machine()).replace("settings: {}", "settings:\n    distributed:\n      executor: raj")
    )
    with pytest.raises(
        BundleError, match=r"m\.yml:\d+:\d+: settings\.distributed\.executor must be .* Did you mean 'ray'\?"
    ):
        cli.parse(["run", "./m.yml"], _known)
    assert main(["check", "m.yml"]) == 2


def test_two_settings_that_disagree_are_refused():
    same = {"store": "sqlite:fleet.db", "engine": "process"}
    both = {"message_broker": "sqlite", "executor": "process"}
    assert choice(machine(fleet=same, distributed=both)) == Choice("sqlite:fleet.db", "process")
    with pytest.raises(
        UsageError, match=r"settings\.fleet\.store and settings\.distributed ask for different stores; leave one"
    ):
        choice(machine(fleet={"store": "redis://h"}, distributed=both))
    with pytest.raises(UsageError, match="ask for different engines"):
        choice(machine(fleet={"engine": "ray"}, distributed=both))


# -- who comes first ---------------------------------------------------------------------------------------------------


def test_flags_come_before_variables_and_these_before_the_file(monkeypatch):
    told = {"distributed": {"executor": "process", "broker_url": "sqlite:file.db"}}
    assert (options().store, options().engine) == ("sqlite:fleet.db", "inline")
    assert (options(**told).store, options(**told).engine) == ("sqlite:file.db", "process")
    monkeypatch.setenv("FLATFLEET_STORE", "sqlite:env.db")
    monkeypatch.setenv("FLATFLEET_ENGINE", "process?max_size=3")
    assert (options(**told).store, options(**told).engine) == ("sqlite:env.db", "process?max_size=3")
    made = options("--store", "sqlite:flag.db", "--engine", "inline", **told)
    assert (made.store, made.engine) == ("sqlite:flag.db", "inline")


def test_the_fleet_may_say_where_it_is_and_what_its_pool_is():
    fleet = {"pool": "papers-2", "store": "sqlite:two.db", "engine": "process?slots=4"}
    made = options(fleet=fleet)
    assert (made.store, made.engine, made.inputs["pool"]) == ("sqlite:two.db", "process?slots=4", "papers-2")
    assert options("--pool", "mine", fleet=fleet).inputs["pool"] == "mine"
    assert "policy" not in made.inputs


def test_a_fleet_that_says_how_it_scales_says_so_without_its_place():
    fleet = {"pool": "a", "store": "sqlite:two.db", "mode": "target", "max": 3}
    assert options(fleet=fleet).inputs["policy"] == {"mode": "target", "max": 3}
    assert fleet_settings.load(fleet) == {"mode": "target", "max": 3}
    assert fleet_settings.validate(fleet).max == 3
    (fault,) = fleet_settings.faults({"pool": "a/b"})
    assert str(getattr(fault, "text", fault)) == 'settings.fleet.pool must be the name of a pool, or null, got "a/b"'


def test_a_run_opens_the_store_that_its_file_names(capsys):
    assert options(distributed={"broker_url": "sqlite:named.db"}).store == "sqlite:named.db"
    assert main(["run", "./m.yml"]) == 0
    assert Path("named.db").exists()
    assert not Path("fleet.db").exists()


def test_hosts_over_a_store_in_memory_are_refused_whoever_asks_for_them():
    options(distributed={"message_broker": "memory"})
    with pytest.raises(EngineUrlError, match="runs workers in other processes, and store 'memory:' lives in this one"):
        main(["run", "./m.yml", "--engine", "process"])


def test_nothing_of_it_is_read_from_machines_below():
    assert distributed.inside({"data": {"machines": {"worker": machine(distributed={"executor": "ray"})}}}) is None
