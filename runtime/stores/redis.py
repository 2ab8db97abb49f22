"""The Redis driver: one server, or a cluster, shared by all processes of all hosts."""

from __future__ import annotations

from collections.abc import Callable

from flatfleet.runtime.stores.redis_executions import RedisExecutions
from flatfleet.runtime.stores.redis_faults import library
from flatfleet.runtime.stores.redis_fleets import RedisFleets
from flatfleet.runtime.stores.redis_items import RedisItems
from flatfleet.runtime.stores.redis_link import Link
from flatfleet.runtime.stores.redis_reads import RedisReads
from flatfleet.runtime.stores.redis_url import Target
from flatfleet.runtime.stores.redis_workers import RedisWorkers


class RedisDriver(RedisItems, RedisReads, RedisWorkers, RedisExecutions, RedisFleets):
    """contract.Driver over one store of a Redis server; what survives what is the server's `appendfsync`.

    `clock` returns seconds since the epoch; None leaves the time to the server.
    """

    durable = True

    def __init__(self, target: Target, clock: Callable[[], float] | None = None, must_exist: bool = False) -> None:
        library()
        self.server = target
        self._asked: set[str] = set()
        self._link = Link(target, clock, must_exist)

    @property
    def link(self) -> Link:
        return self._link

    async def close(self) -> None:
        await self._link.close()
