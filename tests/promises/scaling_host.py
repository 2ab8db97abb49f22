"""`host.py` with a scaler that can be told where to die, and a note of every worker that starts.

SCALER_DIES is `{state}:{when}:{time}`: SIGKILL as that state of a scaler is `entered` (its checkpoint is committed) or
`done` (before the next one is), or when the machine has `parked` in it; the n-th time that this happens while the file
SCALER_ARMED is there.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import trial
from flatfleet import hooks, run
from flatfleet.hooks.registration import Registration
from flatfleet.runtime.machine import Machine

STATE, WHEN, TIME = (os.environ.get("SCALER_DIES") or "::0").split(":")


class Deaths:
    seen = 0


def _die(machine: Any, state: str, when: str) -> None:
    if (
        machine.machine_name == "scaler"
        and (state, when) == (STATE, WHEN)
        and Path(os.environ["SCALER_ARMED"]).exists()
    ):
        Deaths.seen += 1
        if Deaths.seen == int(TIME):
            os.kill(os.getpid(), signal.SIGKILL)


def _note(name: str) -> None:
    log = os.open(os.environ["TRIAL_LOG"] + ".workers", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(log, (json.dumps({"worker": name, "pid": os.getpid()}) + "\n").encode())
    os.close(log)


def _instrument() -> None:
    execute, save, start = Machine._execute_state, Machine._save_checkpoint, Registration.on_machine_start

    async def execute_state(self: Any, state_name: str, context: Any) -> Any:
        _die(self, state_name, "entered")
        done = await execute(self, state_name, context)
        _die(self, state_name, "done")
        return done

    async def save_checkpoint(self: Any, event: str, state_name: str, *args: Any, **named: Any) -> None:
        await save(self, event, state_name, *args, **named)
        if event == "waiting":
            _die(self, state_name, "parked")

    async def on_machine_start(self: Any, context: dict[str, Any]) -> dict[str, Any]:
        made = await start(self, context)
        _note(made["worker_id"])
        return made

    Machine._execute_state = execute_state  # type: ignore[method-assign]
    Machine._save_checkpoint = save_checkpoint  # type: ignore[method-assign]
    Registration.on_machine_start = on_machine_start  # type: ignore[method-assign]


if __name__ == "__main__":
    _instrument()
    hooks.MODULES = (*hooks.MODULES, trial)
    run.compose = functools.partial(run.compose, lease=float(os.environ.get("TRIAL_LEASE", "60")))
    run.console()
