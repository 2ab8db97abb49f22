"""`compose` for processes with `--engine process` and their hosts: with the hooks of trial.py, and TRIAL_LEASE seconds a lease."""

from __future__ import annotations

import os
from typing import Any

import trial
from flatfleet import hooks, run

if trial not in hooks.MODULES:
    hooks.MODULES = (*hooks.MODULES, trial)


def compose(url: str, **options: Any) -> run.Parts:
    return run.compose(url, **{"lease": float(os.environ.get("TRIAL_LEASE", "60")), **options})
