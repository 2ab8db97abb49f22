"""The actions of trial.yml. An item is data: {key, seconds, do: {state: what}}; each state notes in a log that it ran.

`do` for a state: `kill` this process · `block` the event loop for `seconds` · `thread` the same in a thread ·
`wait` until the file `until` exists · `fail` · `pass`, which takes no time. Otherwise a state just takes `seconds`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any


async def first(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    return await _step("first", context, fleet)


async def second(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    return await _step("second", context, fleet)


async def third(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    return await _step("third", context, fleet)


async def _step(state: str, context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    item, seconds = context["item"], context["item"].get("seconds", 0.0)
    what = item.get("do", {}).get(state)
    _note(context["item_id"], state)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "block":
        time.sleep(seconds)  # noqa: ASYNC251
    elif what == "thread":
        await fleet.in_thread(lambda: time.sleep(seconds))
    elif what == "wait":
        while not Path(item["until"]).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    elif what == "fail":
        raise ValueError(f"{state} was told to fail")
    elif what != "pass":
        await asyncio.sleep(seconds)
    context["ran"] = [*context["ran"], state]
    return context


def _note(item_id: str, state: str) -> None:
    """Append one line; it is whole, and it is there, even if this process is killed in the next moment."""
    line = json.dumps({"item": item_id, "state": state, "pid": os.getpid(), "at": time.monotonic()}) + "\n"
    log = os.open(os.environ["TRIAL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(log, line.encode())
    finally:
        os.close(log)
