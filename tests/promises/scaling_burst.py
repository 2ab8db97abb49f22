"""Send scale messages as fast as it goes: `scaling_burst.py STORE SENDER N ALIKE`; prints the id of each, one a line.

Every tenth is malformed, and so many one after the other ask for the same target.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from flatfleet.runtime.stores import open_store

BAD: tuple[Any, ...] = ({"target": -1}, {"target": "ten"}, {"delta": 0}, {"target": 1, "delta": 1}, {"targte": 5})


async def main(url: str, sender: str, n: int, alike: int) -> None:
    store = open_store(url)
    for k in range(n):
        what = BAD[k % len(BAD)] if k % 10 == 9 else {"target": 4 + (k // alike + int(sender)) % 3}
        print(await store.signals.send("fleet/trial/scale", {**what, "by": sender, "reason": str(k)}))  # noqa: T201
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
