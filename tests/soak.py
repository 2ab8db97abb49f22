"""The promise tests in their long form: `python tests/soak.py [MINUTES] [pytest's arguments]` (or `make soak`).

The same code as in CI with larger numbers: 20 kills over 500 items, 100 processes, 20,000 contended claims, 200,000 items
through one process. It ends after MINUTES (30) at the latest, and takes all that it started with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOO_LONG = 124


def main(argv: list[str]) -> int:
    minutes, rest = (float(argv[0]), argv[1:]) if argv and argv[0].replace(".", "").isdigit() else (30.0, argv)
    command = [sys.executable, "-m", "pytest", "tests/promises", "tests/test_mutants.py", "-v", "--durations=0", *rest]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"FLATFLEET_SOAK": "1"})
    try:
        return process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest ends the test that runs, which stops its processes
        process.wait(60)
        return TOO_LONG
    finally:
        process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
