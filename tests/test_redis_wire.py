"""Waking over Redis: a ring reaches every process that listens, over one subscription each; what it may have missed is rung."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.bell import heard
from flatfleet.runtime.stores.redis import RedisDriver
from flatfleet.runtime.stores.redis_session import ask
from flatfleet.runtime.stores.redis_url import parse
from flatfleet.runtime.stores.redis_wire import TOPICS, RedisWire

SOON = 20.0


async def until(happened: Any, within: float = SOON) -> None:
    end = time.monotonic() + within
    while not happened():
        assert time.monotonic() < end, "it has not happened"
        await asyncio.sleep(0.002)


class Told:
    """A wire, and what it has heard."""

    def __init__(self, url: str) -> None:
        self.driver = RedisDriver(parse(url))
        self.wire = RedisWire(self.driver.server, self.driver.link)
        self.heard: list[Any] = []

    async def listen(self) -> Told:
        self.wire.open(self.heard.append)
        await until(lambda: self.wire.hears)
        return self

    async def close(self) -> None:
        await self.wire.close()
        await self.driver.close()


async def command(driver: RedisDriver, *words: bytes) -> Any:
    await driver.pools()
    return await ask(driver._link._session.connection, *words)


async def test_a_ring_reaches_all_others_and_not_who_rang(redis):
    url = redis()
    one, other, third = [await Told(url).listen() for _ in range(3)]
    stranger = await Told(redis()).listen()
    one.wire.announce(["p", "ключ 🔑"])
    await until(lambda: other.heard and third.heard)
    assert other.heard == third.heard == [{"p", "ключ 🔑"}]
    other.wire.announce(["q"])
    await until(lambda: one.heard and len(third.heard) == 2)
    assert one.heard == [{"q"}]
    assert stranger.heard == []
    for each in (one, other, third, stranger):
        await each.close()


async def test_what_is_rung_together_goes_in_one_message(redis):
    url = redis()
    one, other = [await Told(url).listen() for _ in range(2)]
    for n in range(200):
        one.wire.announce([f"t{n % 20}"])
    await until(lambda: other.heard)
    assert other.heard == [{f"t{n}" for n in range(20)}]
    one.wire.announce([f"t{n}" for n in range(TOPICS + 1)])
    await until(lambda: len(other.heard) == 2)
    assert other.heard[1] is None
    for each in (one, other):
        await each.close()


async def test_what_was_announced_is_told_before_the_end(redis):
    url = redis()
    one, other = Told(url), await Told(url).listen()
    one.wire.announce(["last words"])
    await one.close()
    await until(lambda: other.heard)
    assert other.heard == [{"last words"}]
    await other.close()


async def test_a_listener_of_another_process_is_woken(redis):
    url = redis()
    here, there = open_store(url, owner="here"), open_store(url, owner="there")
    with there.bell.listen("p") as rung:
        await until(lambda: there.bell.hears)
        await here.work.pool("p").push(1, {"key": "a"})
        assert await heard(rung, SOON)
    await here.close()
    await there.close()
    assert not there.bell.hears


async def test_nonsense_on_the_channel_is_taken_for_anything(redis):
    url = redis()
    one = await Told(url).listen()
    channel = f"{parse(url).tag}:bell".encode()
    for words in (b"no json", b"7", b'["x", 5]', b"\xff"):
        await command(one.driver, b"PUBLISH", channel, words)
    await until(lambda: len(one.heard) == 4)
    assert one.heard == [None] * 4
    await one.close()


async def test_a_subscription_that_breaks_is_made_again_and_anything_is_rung(own_redis):
    server = own_redis()
    one, other = [await Told(server.url).listen() for _ in range(2)]
    assert one.heard == []
    for n in range(1, 4):
        await command(other.driver, b"CLIENT", b"KILL", b"TYPE", b"pubsub")
        await until(lambda n=n: len(one.heard) == n and one.wire.hears and other.wire.hears)
        assert one.heard[-1] is None
    other.wire.announce(["again"])
    await until(lambda: len(one.heard) == 4)
    assert one.heard[-1] == {"again"}
    for each in (one, other):
        await each.close()


@pytest.mark.slow
async def test_a_server_that_does_not_answer_is_not_taken_for_a_silent_one(own_redis):
    server = own_redis()
    one = await Told(f"{server.url}?timeout=0.3").listen()
    await asyncio.sleep(1)
    assert one.wire.hears
    assert one.heard == []
    server.signal(signal.SIGSTOP)
    await until(lambda: not one.wire.hears)
    server.signal(signal.SIGCONT)
    await until(lambda: one.wire.hears and one.heard)
    await one.close()


async def test_to_announce_never_raises_and_never_waits(own_redis):
    server = own_redis()
    one = Told(f"{server.url}?patience=0.2")
    await one.driver.pools()
    server.kill()
    for n in range(1000):
        one.wire.announce([f"t{n}"])
    assert not one.wire.hears
    await one.close()


def test_without_a_loop_nothing_is_told_and_nothing_breaks(redis):
    store = open_store(redis())
    store.bell.open()
    store.bell.announce("p")
    assert not store.bell.hears


async def test_a_closed_wire_can_be_opened_again(redis):
    url = redis()
    one, other = await Told(url).listen(), Told(url)
    await one.close()
    other.wire.announce(["unheard"])
    await other.close()
    await one.listen()
    other.wire.announce(["heard"])
    await until(lambda: one.heard)
    assert one.heard == [{"heard"}]
    await one.close()
    await other.close()


async def test_a_wire_has_one_connection_and_asks_nothing_while_all_is_silent(own_redis):
    server = own_redis()
    one, watch = await Told(server.url).listen(), RedisDriver(parse(f"{server.url}?fleet=other"))

    async def commands() -> int:
        told = (await command(watch, b"INFO", b"stats")).decode()
        return int(told.partition("total_commands_processed:")[2].split()[0])

    await commands()
    first, second = await commands(), await commands()
    await asyncio.sleep(0.5)
    assert await commands() - second == second - first  # those of the question itself
    clients = (await command(watch, b"CLIENT", b"LIST", b"TYPE", b"pubsub")).splitlines()
    assert len(clients) == 1
    await one.close()
    await watch.close()
