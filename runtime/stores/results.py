"""The SDK's ResultBackend: an item's URIs read the item itself, all others are entries."""

from __future__ import annotations

import time
from typing import Any

from flatfleet.runtime.errors import StoreError
from flatfleet.runtime.stores.bell import Bell, heard
from flatfleet.runtime.stores.contract import Driver
from flatmachines.backends import parse_uri

POLL = 0.5
"""Seconds between two looks of a blocked reader, for what another process wrote."""


class Results:
    """`flatagents://{item_id}/work` is the item's data, `…/result` its committed result (an `_error` if it is dead)."""

    def __init__(self, driver: Driver, bell: Bell) -> None:
        self._driver = driver
        self._bell = bell

    async def write(self, uri: str, data: Any) -> None:
        """Store data at a URI; StoreError for an item's own URIs, which only its holder's `complete` may write."""
        execution_id, path = parse_uri(uri)
        if path in ("work", "result") and await self._driver.item(execution_id) is not None:
            raise StoreError(f"{uri} belongs to a work item: its result is committed by complete(token) alone")
        await self._driver.put(f"{execution_id}/{path}", data)
        self._bell.ring(execution_id)

    async def read(self, uri: str, block: bool = True, timeout: float | None = None) -> Any:
        """Return the data; if there is none yet, wait for it (`block`) or return None. TimeoutError after `timeout` s."""
        execution_id, _ = parse_uri(uri)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._bell.listen(execution_id) as rung:
            while True:
                found, value = await self._find(uri)
                if found or not block:
                    return value
                left = POLL if deadline is None else min(POLL, deadline - time.monotonic())
                if left <= 0:
                    raise TimeoutError(f"nothing at {uri} within {timeout} s")
                await heard(rung, left)

    async def exists(self, uri: str) -> bool:
        return (await self._find(uri))[0]

    async def delete(self, uri: str) -> None:
        execution_id, path = parse_uri(uri)
        await self._driver.drop(f"{execution_id}/{path}")

    async def _find(self, uri: str) -> tuple[bool, Any]:
        execution_id, path = parse_uri(uri)
        item = await self._driver.item(execution_id) if path in ("work", "result") else None
        if item is None:
            return await self._driver.get(f"{execution_id}/{path}")
        if path == "work":
            return True, item.data
        if item.state == "dead":
            return True, {"_error": item.error, "_error_type": item.error_type}
        return item.state == "completed", item.result
