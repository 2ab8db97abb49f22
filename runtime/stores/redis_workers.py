"""Workers and locks in the Redis store (lua/workers.lua)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from flatfleet.runtime.errors import WorkerConflict
from flatfleet.runtime.stores.records import LIVE_WORKER, SCREEN_WORKER, Beat
from flatfleet.runtime.stores.redis_base import CHUNK, Base, decoded, flat, loaded, maybe, optional, pairs
from flatfleet.runtime.stores.text import dump, moment, stamp
from flatmachines import WorkerRecord, WorkerRegistration

STATUSES = tuple(SCREEN_WORKER)
"""Those that a worker of a pool can have."""


class RedisWorkers(Base):
    """The parts of `contract.Driver` under "workers" and "locks"."""

    _asked: set[str]

    async def register(
        self, worker: WorkerRegistration, owner: str, lease: float, metadata: Mapping[str, Any]
    ) -> WorkerRecord:
        name = worker.worker_id
        self._asked.discard(name)
        able = None if worker.capabilities is None else dump(worker.capabilities, "capabilities")
        about = (worker.host, worker.pid, able, worker.started_at, _began(worker.started_at))
        answer = await self._run("register", name, owner, float(lease), *about, *flat(name, metadata))
        if isinstance(answer, list):
            status, holder, until = map(decoded, answer)
            raise WorkerConflict(
                f"worker {name!r} is {status} under {holder!r} until {stamp(float(until))} "
                f"— {owner!r} needs another id, or has to wait until that lease runs out"
            )
        return _record(answer)

    async def beat(self, owner: str, workers: Sequence[str], leases: Mapping[str, int], lease: float) -> Beat:
        """Renews 500 at a time."""
        lost: list[str] = []
        statuses: dict[str, str | None] = {}
        held, names = iter(leases.items()), iter(workers)
        while True:
            some = [(item_id, token) for item_id, token in islice(held, CHUNK)]
            crew = list(islice(names, CHUNK - len(some)))
            told = [each for pair in some for each in pair]
            gone, known = await self._run("beat", owner, float(lease), len(some), *told, *crew)
            lost += map(decoded, gone)
            statuses |= zip(crew, map(maybe, known), strict=True)
            if len(some) + len(crew) < CHUNK:
                return Beat(tuple(lost), statuses)

    async def set_status(self, worker_id: str, status: str, metadata: Mapping[str, Any] | None = None) -> None:
        if not await self._run("set_status", worker_id, status, *flat(worker_id, metadata or {})):
            raise KeyError(f"no worker {worker_id!r} in this store")

    async def workers(
        self, worker_id: str | None = None, *, statuses: Collection[str] | None = None, pool: str | None = None
    ) -> list[WorkerRecord]:
        """All workers, or the one; of these only those in one of the statuses, and whose metadata names this `pool`.

        Those of a pool, and the live ones, are read at one go, all others 500 at a time.
        """
        if worker_id is not None:
            found = await self._run("worker", worker_id)
            one = [_record(found)] if found else []
            return [
                each
                for each in one
                if (statuses is None or each.status in statuses) and pool in (None, (each.metadata or {}).get("pool"))
            ]
        wanted = None if statuses is None else sorted(set(statuses))
        if pool is not None or (wanted is not None and LIVE_WORKER.issuperset(wanted)):
            name = None if pool is None else dump(pool, "the name of a pool")
            rows = await self._run("staff", name, *(STATUSES if wanted is None else wanted))
            return [_record(text) for _, text in sorted(rows, key=lambda row: float(row[0]))]
        texts: list[bytes] = []
        after = b"-inf"
        while after:
            after, *page = await self._run("workers", after, CHUNK, *(wanted or ()))
            texts += page
        return [_record(each) for each in texts]

    async def draining(self, owner: str) -> dict[str, float | None]:
        answer = await self._run("draining", owner)
        return {
            decoded(name): moment(json.loads(until)) if until else None
            for name, until in zip(answer[::2], answer[1::2], strict=True)
        }

    async def owners(self) -> list[str]:
        return sorted(map(decoded, await self._run("owners")))

    async def claims(self, owner: str) -> dict[str, int]:
        return {item_id: int(token) for item_id, token in pairs(await self._run("claims", owner)).items()}

    async def mark_lost(self, owner: str | None) -> list[str]:
        return list(await self._once("mark_lost", optional(owner)))

    async def lock(self, key: str, owner: str, lease: float) -> bool:
        return bool(await self._run("lock", key, owner, float(lease)))

    async def unlock(self, key: str, owner: str) -> None:
        await self._run("unlock", key, owner)

    async def locks(self, prefix: str) -> list[tuple[str, str, float]]:
        rows = iter(await self._run("locks", prefix))
        return [
            (decoded(key), decoded(owner), float(until)) for key, owner, until in zip(rows, rows, rows, strict=True)
        ]


def _began(started: str) -> float | None:
    try:
        return datetime.fromisoformat(started).timestamp()
    except ValueError:
        return None


def _record(answer: bytes) -> WorkerRecord:
    about, rest = loaded(answer)
    status, heartbeat, host, pid, capabilities, started, owner, lease_until, task, name = about
    told = iter(rest or [])
    return WorkerRecord(
        worker_id=name,
        status=status,
        last_heartbeat=stamp(float(heartbeat)),
        host=host or None,
        pid=int(pid) if pid else None,
        capabilities=json.loads(capabilities) if capabilities else None,
        started_at=started,
        current_task_id=task or None,
        metadata={
            **{key: json.loads(value) for key, value in zip(told, told, strict=True)},
            "owner": owner,
            "lease_until": float(lease_until),
        },
    )
