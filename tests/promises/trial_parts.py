"""`compose` for processes with hosts, and for these: with the hooks of trial.py; TRIAL_LEASE is how long a lease lasts."""

from __future__ import annotations

import os
from typing import Any

import trial
from flatfleet import hooks, run

if trial not in hooks.MODULES:
    hooks.MODULES = (*hooks.MODULES, trial)


def compose(url: str, **options: Any) -> run.Parts:
    return run.compose(url, **{"lease": float(os.environ.get("TRIAL_LEASE", "60")), **options})
