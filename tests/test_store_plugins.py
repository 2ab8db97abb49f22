"""Stores of other packages: found by their entry point, and proved by the same suite (docs/backends.md)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flatfleet.runtime.errors import StoreUrlError
from flatfleet.runtime.stores import open_store

ROOT = Path(__file__).parents[1]
DRIVER = """
from flatfleet.runtime.stores.memory import MemoryDriver

opened = []

def open_driver(url, must_exist):
    opened.append((url, must_exist))
    return MemoryDriver()

class Forgetful(MemoryDriver):
    async def claim(self, *args, **options):
        claims = await super().claim(*args, **options)
        for claim in claims:
            self._items[claim.id].token = claim.token = 1
        return claims

def open_sound(path, clock):
    return MemoryDriver(clock)

def open_forgetful(path, clock):
    return Forgetful(clock)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder on the path with an installed package `fleet_trial`, whose store has the scheme `trial`."""
    (tmp_path / "fleet_trial.py").write_text(DRIVER)
    about = tmp_path / "fleet_trial-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet-trial\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[flatfleet.stores]\ntrial = fleet_trial:open_driver\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fleet_trial", raising=False)
    yield tmp_path
    sys.modules.pop("fleet_trial", None)


def test_a_store_of_another_package_is_opened_by_its_scheme(package):
    store = open_store("trial://127.0.0.1:8500/papers", must_exist=True)

    async def use():
        pool = store.work.pool("p")
        await pool.push({"n": 1}, {"key": "a"})
        claim = await pool.claim("w")
        await pool.complete(claim.id, "done", token=claim.token)
        counts = await pool.counts()
        await store.close()
        return counts.completed

    assert asyncio.run(use()) == 1
    assert sys.modules["fleet_trial"].opened == [("trial://127.0.0.1:8500/papers", True)]


def test_an_unknown_scheme_is_compared_with_those_of_other_packages_too(package):
    with pytest.raises(StoreUrlError, match=r"'trail'.*trial"):
        open_store("trail://x")


@pytest.mark.slow
@pytest.mark.parametrize(("function", "code"), [("open_sound", 0), ("open_forgetful", 1)])
def test_the_suite_runs_over_a_driver_of_another_package_and_finds_its_faults(package, function, code):
    env = os.environ | {"FLATFLEET_TEST_DRIVER": f"fleet_trial:{function}", "PYTHONPATH": str(package)}
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "tests/test_store_contract.py",
        "-k",
        "fleet_trial and token",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("failed" in done.stdout) == bool(code)
