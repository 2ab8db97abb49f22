"""Each mutant of tests/mutants.py is noticed by the test that it names: the short list in CI, all of them in `make soak`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_mutant_of_a_promise_is_killed() -> None:
    script = Path(__file__).parent / "mutants.py"
    short = [] if os.environ.get("FLATFLEET_SOAK") == "1" else ["--short"]
    done = subprocess.run([sys.executable, str(script), *short], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
