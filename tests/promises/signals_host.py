"""Machines that wait for messages, and processes that wake them: `signals_host.py URL host | park … | parked N | wake N`.

`host` runs a dispatcher until it is killed. `park CHANNEL NAME…` parks machines and ends. `parked N` parks N machines here
and `wake N` wakes one of them N times; both print what that cost this process. What is heard goes into TRIAL_LOG.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flatfleet import hooks, run
from flatfleet.runtime.dispatcher import Dispatcher

STATES = {
    "wait": {
        "type": "initial",
        "wait_for": "{{ context.channel }}",
        "output_to_context": {"n": "output.n", "sent": "output.sent", "end": "output.end"},
        "transitions": [{"to": "note"}],
    },
    "note": {
        "action": "note",
        "hooks": "signals",
        "transitions": [{"condition": "context.end", "to": "done"}, {"to": "wait"}],
    },
    "done": {"type": "final", "output": {"seen": "context.seen"}},
}
CONTEXT = {"channel": "input.channel", "keep": "input.keep", "seen": [], "count": 0}
WAITER = {
    "spec": "flatmachine",
    "spec_version": "4.2.1",
    "data": {
        "name": "waiter",
        "context": CONTEXT,
        "persistence": {
            "enabled": True,
            "backend": "memory",
            "checkpoint_on": ["state_enter", "waiting", "machine_end"],
        },
        "settings": {"max_steps": 0},
        "states": STATES,
    },
}


def say(line: dict[str, Any]) -> None:
    """Append one line to the log; it is there even if this process is killed in the next moment."""
    log = os.open(os.environ["TRIAL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(log, (json.dumps(line | {"pid": os.getpid()}) + "\n").encode())
    os.close(log)


async def note(context: dict[str, Any], fleet: Any) -> dict[str, Any]:
    """Note the message in the log, as what may happen twice, and in the context, as what may not."""
    heard = {"who": context["machine"]["execution_id"], "n": context["n"]}
    say(heard | {"sent": context["sent"], "at": time.monotonic()})
    await asyncio.sleep(float(os.environ.get("TRIAL_WORK", "0")))
    context["seen"] = [*context["seen"], context["n"]][-context["keep"] :]
    context["count"] += 1
    return context


def compose(url: str) -> Any:
    parts = run.compose(url)
    shared = hooks.Actions("signals", {"note": note}, parts.fleet)
    parts.hooks.register("signals", lambda: shared)
    return parts


async def park(parts: Any, channel: str, names: list[str], keep: int = 10_000) -> None:
    for name in names:
        output = await parts.machine(WAITER, str(Path.cwd()), name).run({"channel": channel, "keep": keep})
        assert output["_waiting"]


async def host(parts: Any) -> None:
    deliver = parts.store.driver.deliver

    async def watched(*args: Any) -> Any:
        found = await deliver(*args)
        if found:
            say({"offered": found})
        return found

    parts.store.driver.deliver = watched
    dispatcher = Dispatcher(parts.store, parts.engine)
    dispatcher.start()
    await dispatcher.look()
    say({"ready": True})
    await asyncio.Event().wait()


# -- what it costs -------------------------------------------------------------------------------------------------------


def held() -> dict[str, int]:
    gc.collect()
    pid = os.getpid()
    children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "children": len(" ".join(children).split()),
        "blocks": sys.getallocatedblocks(),
        "resident": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    }


async def cost_of_parked(parts: Any, n: int) -> list[dict[str, int]]:
    dispatcher = Dispatcher(parts.store, parts.engine)
    dispatcher.start()
    await park(parts, "go", [f"early{k}" for k in range(20)])
    await dispatcher.settle()
    found = [held()]
    await park(parts, "go", [f"w{k}" for k in range(n)])
    await dispatcher.settle()
    found.append(held())
    await dispatcher.stop()
    return found


async def cost_of_waking(parts: Any, n: int) -> list[dict[str, int]]:
    await park(parts, "go", ["x"], keep=1)
    dispatcher = Dispatcher(parts.store, parts.engine)
    dispatcher.start()
    found = []
    for k in range(n):
        if k in (n // 4, n // 2):
            found.append(held())
        await parts.store.signals.send("go", {"n": k, "sent": 0, "end": False})
        async with asyncio.timeout(30):
            while not await parked_after(parts, k + 1):
                pass
        await parts.engine.join()
    found.append(held())
    await dispatcher.stop()
    return found


async def parked_after(parts: Any, n: int) -> bool:
    row = await parts.store.driver.load_snapshot("x")
    return row.event == "waiting" and json.loads(row.body)["context"]["count"] == n


def orphaned(parent: int) -> None:
    """End this process when the test's is gone, however that was ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


async def main(url: str, mode: str, *args: str) -> None:
    threading.Thread(target=orphaned, args=(os.getppid(),), daemon=True).start()
    parts = compose(url)
    try:
        if mode == "host":
            await host(parts)
        elif mode == "park":
            await park(parts, args[0], list(args[1:]))
        else:
            measure = {"parked": cost_of_parked, "wake": cost_of_waking}[mode]
            print(json.dumps(await measure(parts, int(args[0]))))  # noqa: T201
    finally:
        await parts.engine.close(0)
        await parts.fleet.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
