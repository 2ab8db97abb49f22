"""What operations cost a Redis server: by what the contract says, and never by all that there is. Counted in its commands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flatfleet.runtime.stores.records import NewItem, SnapshotRow
from flatfleet.runtime.stores.redis import RedisDriver
from flatfleet.runtime.stores.redis_session import ask
from flatfleet.runtime.stores.redis_url import parse
from flatmachines import WorkerRegistration

LEASE = 60.0


@pytest.fixture
def server(own_redis: Any) -> str:
    return str(own_redis().url)


async def cost(driver: RedisDriver, call: Any) -> int:
    """The commands that the server has run for a call, those inside scripts too; after it has learnt the script."""
    await call()
    assert driver._link._session is not None
    await ask(driver._link._session.connection, b"CONFIG", b"RESETSTAT")
    await call()
    told = (await ask(driver._link._session.connection, b"INFO", b"commandstats")).decode()
    lines = [line.split(":calls=") for line in told.splitlines() if ":calls=" in line]
    return sum(int(rest.split(",")[0]) for name, rest in lines if name not in ("cmdstat_config", "cmdstat_info"))


async def compared(server: str, fill: Any, call: Any, few: int = 10, many: int = 1000) -> tuple[int, int]:
    """What the call costs over a store that was filled with a few, and with many."""
    found = []
    for n in (few, many):
        driver = RedisDriver(parse(f"{server}?fleet=n{n}"))
        await fill(driver, n)
        found.append(await cost(driver, lambda driver=driver: call(driver)))
        await driver.close()
    return found[0], found[1]


async def push(driver: RedisDriver, n: int, **options: Any) -> None:
    await driver.push("p", [NewItem(f"p:{k}", str(k), None, **options) for k in range(n)])


async def push_and_claim(driver: RedisDriver, n: int) -> None:
    await push(driver, n)
    await driver.claim("p", "w", "o", n // 2, LEASE, ())
    for k in range(n // 4):
        await driver.complete(f"p:{k}", None, None, 0.0)


@pytest.mark.parametrize(
    "what", ["counts", "next_due", "metrics", "errors", "requirements", "pools", "owners", "paused"]
)
async def test_questions_about_a_pool_cost_nothing_by_its_items(server, what):
    async def question(driver: RedisDriver) -> None:
        if what == "metrics":
            await driver.metrics("p", 0.0, 0)
        elif what in ("pools", "owners"):
            await getattr(driver, what)()
        else:
            await getattr(driver, what)("p")

    few, many = await compared(server, push_and_claim, question, few=100)
    assert few == many


async def test_requirements_cost_by_the_sets(server):
    async def fill(driver: RedisDriver, n: int) -> None:
        await push(driver, n, requires=("gpu",))

    few, many = await compared(server, fill, lambda driver: driver.requirements("p"))
    assert few == many
    driver = RedisDriver(parse(f"{server}?fleet=n1000"))
    assert await driver.requirements("p") == {("gpu",): 1000}
    await driver.close()


async def test_a_claim_and_a_completion_cost_nothing_by_the_items(server):
    async def one(driver: RedisDriver) -> None:
        (claim,) = await driver.claim("p", "w", "o", 1, LEASE, ("gpu",))
        await driver.complete(claim.id, None, claim.token, 0.0)

    few, many = await compared(server, push, one)
    assert abs(many - few) <= 6  # a new second of the measures
    assert many <= 45


async def test_deliver_costs_by_what_is_pending(server):
    async def fill(driver: RedisDriver, n: int) -> None:
        rows = (SnapshotRow(f"m{k}", "k", b"{}", "waiting", f"c{k % 7}") for k in range(n))
        await asyncio.gather(*(driver.save_snapshot(row, None, None) for row in rows))
        for _ in range(n):
            await driver.send("nobody is here", 1)

    few, many = await compared(server, fill, lambda driver: driver.deliver())
    assert few == many


async def test_draining_and_the_workers_of_a_pool_cost_nothing_by_the_others(server):
    async def fill(driver: RedisDriver, n: int) -> None:
        for k in range(n):
            pool = "p" if k < 5 else "q"
            await driver.register(WorkerRegistration(worker_id=f"w{k}"), f"o{k % 9}", LEASE, {"pool": pool})
        await driver.set_status("w1", "terminating")

    for question in (
        lambda driver: driver.draining("o1"),
        lambda driver: driver.workers("w3"),
        lambda driver: driver.workers(statuses=["active", "terminating"], pool="p"),
        lambda driver: driver.metrics("p", 0.0, 0),
        lambda driver: driver.claims("o1"),
    ):
        few, many = await compared(f"{server}", fill, question)
        assert few == many


async def test_a_parked_machine_is_found_without_a_look_at_the_others(server):
    async def fill(driver: RedisDriver, n: int) -> None:
        ended = (SnapshotRow(f"e{k}", "k", b"{}", "machine_end") for k in range(n))
        await asyncio.gather(*(driver.save_snapshot(row, None, None) for row in ended))
        for event in ("waiting", "woken"):
            await driver.save_snapshot(SnapshotRow(event, "k", b"{}", event, "here"), None, None)

    for event, channel in (("waiting", None), ("waiting", "here"), ("woken", None)):
        few, many = await compared(server, fill, lambda driver, e=event, c=channel: driver.snapshots(e, c))
        assert few == many


async def test_what_an_ended_item_leaves_are_three_keys(server):
    driver = RedisDriver(parse(server))
    await push(driver, 100)
    before = await ask_size(driver)
    await driver.claim("p", "w", "o", 100, LEASE, ())
    row = SnapshotRow("p:1", "k", b"{}", "state_enter")
    await driver.save_snapshot(row, ("p:1", 1), None)
    for k in range(100):
        await driver.complete(f"p:{k}", {"n": k}, 1, 0.0)
    assert await ask_size(driver) - before <= 100  # the results; all that was of the claims is gone
    keys = {name.split(b":")[1] for name in await ask(driver._link._session.connection, b"KEYS", b"*")}
    assert keys <= {b"meta", b"sequence", b"pools", b"pool", b"all", b"item", b"data", b"result", b"seconds", b"second",
                    b"owners", b"lines"}  # fmt: skip
    await driver.close()


async def ask_size(driver: RedisDriver) -> int:
    assert driver._link._session is not None
    return int(await ask(driver._link._session.connection, b"DBSIZE"))
