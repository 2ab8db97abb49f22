"""`flatfleet …` with two differences: the hooks of trial.py are known, and TRIAL_LEASE seconds is how long a lease lasts."""

from __future__ import annotations

import functools
import os

import trial
from flatfleet import hooks, run

if __name__ == "__main__":
    hooks.MODULES = (*hooks.MODULES, trial)
    run.compose = functools.partial(run.compose, lease=float(os.environ.get("TRIAL_LEASE", "60")))
    run.console()
