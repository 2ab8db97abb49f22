"""A way to a server that can be cut: `link.py PORT TO`. Stopped (SIGSTOP) it lets nothing through and closes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(port: int, to: int) -> None:
    parent = os.getppid()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pump(reader, down), pump(up, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        while os.getppid() == parent:  # noqa: ASYNC110
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
