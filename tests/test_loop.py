"""The event loop of our processes does what asyncio's does, and waits for timers without rounding them up."""

from __future__ import annotations

import asyncio
import select
import selectors
import threading

import pytest
from flatfleet.runtime import loop

pytestmark = pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="asyncio's own loop is exact here")


def test_a_short_wait_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = select.select

    def watched(*args):
        waits.append(args[3])
        return real(*args)

    monkeypatch.setattr(select, "select", watched)
    loop.run(asyncio.sleep(0.0047))
    assert any(0.001 < wait < 0.0047 and (wait * 1000) % 1 for wait in waits)


def test_threads_sockets_and_processes_wake_it() -> None:
    async def main() -> tuple[str, bytes, bytes]:
        running, woken = asyncio.get_running_loop(), asyncio.Event()
        timer = threading.Timer(0.01, lambda: running.call_soon_threadsafe(woken.set))
        timer.start()
        async with asyncio.timeout(0.9):
            await woken.wait()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            heard = await reader.readline()
            writer.close()
        process = await asyncio.create_subprocess_exec("echo", "there", stdout=asyncio.subprocess.PIPE)
        return "woken", heard, (await process.communicate())[0]

    assert loop.run(main()) == ("woken", b"hello\n", b"there\n")


def test_a_process_with_very_many_files_gets_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FD_SETSIZE", 0)
    made = loop.new_event_loop()
    made.close()
    assert type(made._selector) is not loop._Exact  # type: ignore[attr-defined]
    assert loop.run(asyncio.sleep(0, "done")) == "done"
