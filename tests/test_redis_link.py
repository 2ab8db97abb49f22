"""The link to a Redis server: lost answers, broken connections, servers that stop, restart or forget; real servers only."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import Any

import pytest
from flatfleet.runtime.errors import LeaseLost, StoreGone, StoreUnavailable
from flatfleet.runtime.stores import open_store
from flatfleet.runtime.stores.records import Counts, Failure, NewItem, SnapshotRow
from flatfleet.runtime.stores.redis import RedisDriver
from flatfleet.runtime.stores.redis_session import ask, connect
from flatfleet.runtime.stores.redis_url import parse
from flatmachines import WorkerRegistration

LEASE = 60.0


class Proxy:
    """A way to the server that loses answers: what is asked arrives, and then the connection breaks."""

    def __init__(self, url: str) -> None:
        target = parse(url)
        self.to = (target.host, target.port)
        self.url = ""
        self.lose = b""
        self.lost = 0
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._query = url.partition("?")[2]

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}?{self._query}"
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection(*self.to)
        self._writers += (writer, down)
        doomed = asyncio.Event()

        async def ask_on() -> None:
            while data := await reader.read(65536):
                if self.lose and self.lose in data:
                    self.lose, self.lost = b"", self.lost + 1
                    doomed.set()
                down.write(data)

        async def answer() -> None:
            while data := await up.read(65536):
                if doomed.is_set():
                    break
                writer.write(data)
            writer.close()
            down.close()

        asking = asyncio.create_task(ask_on())
        with contextlib.suppress(OSError):
            await answer()
        asking.cancel()


@pytest.fixture
def url(redis: Any) -> str:
    """The URL of a fresh store on the server of the session."""
    return str(redis())


@contextlib.asynccontextmanager
async def through(url: str) -> Any:
    """(a driver behind a proxy, the proxy, a driver that has its own way to the same store)."""
    proxy = await Proxy(url).start()
    driver, other = RedisDriver(parse(proxy.url)), RedisDriver(parse(url))
    try:
        await other.pools()
        await driver.pools()
        yield driver, proxy, other
    finally:
        await driver.close()
        await other.close()
        await proxy.close()


def new(name: str, **options: Any) -> NewItem:
    return NewItem(id=f"p:{name}", key=name, data={"n": name}, **options)


async def take(driver: Any, n: int = 1, owner: str = "o") -> Any:
    return await driver.claim("p", "w", owner, n, LEASE, ())


async def losing(proxy: Proxy, word: bytes, call: Any) -> Any:
    """Await the call; the first answer to what holds `word` gets lost on its way."""
    before, proxy.lose = proxy.lost, word
    found = await call
    assert proxy.lost == before + 1
    return found


# -- an answer that got lost --------------------------------------------------------------------------------------------


async def test_a_push_whose_answer_was_lost_says_what_it_added(url):
    async with through(url) as (driver, proxy, other):
        await other.push("p", [new("b")])
        assert await losing(proxy, b"p:a", driver.push("p", [new("a"), new("b"), new("a"), new("c")])) == [
            True,
            False,
            False,
            True,
        ]
        assert (await other.counts("p")).waiting == 3


async def test_a_claim_whose_answer_was_lost_is_the_same_claim(url):
    async with through(url) as (driver, proxy, other):
        await other.push("p", [new(str(n)) for n in range(6)])
        (first,) = await take(driver)
        claims = await losing(proxy, b"p", take(driver, 2))
        assert [(claim.key, claim.token, claim.data) for claim in claims] == [
            ("1", 1, {"n": "1"}),
            ("2", 1, {"n": "2"}),
        ]
        assert await driver.claims("o") == {claim.id: 1 for claim in (first, *claims)}
        assert (await other.counts("p")) == Counts(waiting=3, claimed=3)
        assert [claim.lease_until for claim in claims] == [(await other.item(claim.id)).due for claim in claims]


async def test_a_claim_that_got_nothing_and_whose_answer_was_lost_may_get_something_now(url):
    async with through(url) as (driver, proxy, _):
        assert await losing(proxy, b"claims nothing", driver.claim("p", "claims nothing", "o", 1, LEASE, ())) == []
        assert await driver.owners() == []


@pytest.mark.parametrize("token", [1, None])
async def test_a_completion_whose_answer_was_lost_is_no_lost_lease(url, token):
    async with through(url) as (driver, proxy, other):
        await other.push("p", [new("a"), new("b")])
        await take(driver, 2)
        await losing(proxy, b"fine", driver.complete("p:a", {"it is": "fine"}, token, 0.5, ["s"]))
        assert (await other.item("p:a")).result == {"it is": "fine"}
        assert [(each.outcome, each.cost) for each in await other.attempts("p:a")] == [("completed", 0.5)]
        assert await other.counts("p") == Counts(completed=1, claimed=1)
        with pytest.raises(LeaseLost):  # said once more by itself it is refused
            await driver.complete("p:a", {"it is": "fine"}, token, 0.5, ["s"])


async def test_a_completion_that_another_has_made_meanwhile_is_lost(url):
    async with through(url) as (driver, proxy, other):
        await other.push("p", [new("a")])
        await take(driver)
        await other.hand_back(owner="o", crashed=False)
        (heir,) = await take(other, owner="heir")
        await other.complete("p:a", {"it is": "fine"}, heir.token, 0.0)
        with pytest.raises(LeaseLost):
            await losing(proxy, b"fine", driver.complete("p:a", {"it is": "fine"}, 1, 0.0))
        assert proxy.lost == 1


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (Failure("E", "no luck"), "delayed"),
        (Failure("E", "no luck", retry_after=0), "ready"),
        (Failure("E", "no luck", permanent=True), "dead"),
        (Failure("E", "no luck", consume=False), "delayed"),
    ],
)
async def test_a_failure_whose_answer_was_lost_is_one(url, failure, state):
    async with through(url) as (driver, proxy, other):
        await other.push("p", [new("a")])
        await take(driver)
        assert await losing(proxy, b"no luck", driver.fail("p:a", failure, 1, 0.0)) == state
        assert len(await other.attempts("p:a")) == 1
        assert (await other.item("p:a")).state == state


async def test_a_release_whose_answer_was_lost_is_one(url):
    async with through(url) as (driver, proxy, other):
        await other.push("p", [new("a")])
        await take(driver)
        await losing(proxy, b"p:a", driver.release("p:a", 1))
        assert [each.outcome for each in await other.attempts("p:a")] == ["released"]
        assert await other.counts("p") == Counts(waiting=1)


async def test_messages_are_sent_and_consumed_once_whatever_answer_was_lost(url):
    async with through(url) as (driver, proxy, other):
        await losing(proxy, b"first", driver.send("ch", "first"))
        await driver.send("ch", "second")
        assert [each.data for each in await other.peek("ch")] == ["first", "second"]
        assert (await losing(proxy, b"ch", driver.consume("ch"))).data == "first"
        assert [each.data for each in await other.peek("ch")] == ["second"]
        assert (await losing(proxy, b"ch", driver.take("ch", "x"))).data == "second"
        assert (await other.take("ch", "x")).data == "second"


async def test_what_is_counted_and_named_once_is_so_whatever_answer_was_lost(url):
    async with through(url) as (driver, proxy, other):
        for name in ("w1", "w2"):
            await other.register(WorkerRegistration(worker_id=name), "gone", LEASE, {})
        await other.push("p", [new(str(n), max_attempts=1) for n in range(6)])
        await take(other, 6, "gone")
        assert await losing(proxy, b"gone", driver.mark_lost("gone")) == ["w1", "w2"]
        assert await losing(proxy, b"gone", driver.hand_back(owner="gone", crashed=True)) == 6
        assert await losing(proxy, b"p:1", driver.cancel("p", ["p:1", "p:2"])) == 2
        assert await losing(proxy, b"p:2", driver.retry("p", ["p:2"])) == 1
        assert await losing(proxy, b"the lock", driver.lock("the lock", "o", LEASE)) is True
        assert await other.counts("p") == Counts(waiting=5, dead=1)


async def test_a_checkpoint_whose_answer_was_lost_is_kept_and_its_fence_holds(url):
    async with through(url) as (driver, proxy, other):
        await other.push("p", [new("a")])
        await take(driver)
        row = SnapshotRow("p:a", "p:a/1", b"body", "state_enter")
        await losing(proxy, b"body", driver.save_snapshot(row, ("p:a", 1), None))
        assert (await other.load_snapshot("p:a")).body == b"body"


async def test_nothing_of_a_connection_that_was_given_up_is_done_later(url):
    """What a slow network still holds of it arrives at a connection that the server has ended."""
    driver, other = RedisDriver(parse(url)), RedisDriver(parse(url))
    await driver.pools()
    first = driver._link._session
    await driver.put("k", 1)
    driver._link._session = None  # given up without a word
    await driver.put("k", 2)
    with pytest.raises((OSError, EOFError, Exception), match=r"(?i)clos|reset|broken|connect"):
        await ask(first.connection, b"PING")
    assert await other.get("k") == (True, 2)
    await first.close()
    await driver.close()
    await other.close()


# -- the server --------------------------------------------------------------------------------------------------------


async def work_off(url: str, n: int, workers: int, meanwhile: Any, seconds: float = 0.0) -> Any:
    """Push and work off n items by so many coroutines of two stores, while something happens; the driver that looked on."""
    mine = [RedisDriver(parse(url)) for _ in range(2)]
    done: list[str] = []

    async def work(driver: RedisDriver, name: str) -> None:
        while (await driver.counts("p")).left:
            for claim in await driver.claim("p", name, f"o{mine.index(driver)}", 1, LEASE, ()):
                await asyncio.sleep(seconds)
                await driver.complete(claim.id, name, claim.token, 0.0)
                done.append(claim.id)

    await mine[0].push("p", [new(str(k)) for k in range(n)])
    working = [asyncio.create_task(work(mine[k % 2], f"w{k}")) for k in range(workers)]
    try:
        await meanwhile(mine, done)
        await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
    assert sorted(done) == sorted(f"p:{k}" for k in range(n))
    assert await mine[0].counts("p") == Counts(completed=n)
    for k in range(n):
        assert [each.outcome for each in await mine[0].attempts(f"p:{k}")] == ["completed"]
    for driver in mine:
        await driver.close()


async def until(happened: Any, within: float = 60.0) -> None:
    end = time.monotonic() + within
    while not happened():
        assert time.monotonic() < end, "it has not happened"
        await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_the_server_is_killed_and_restarted_with_its_file_amid_the_work(own_redis):
    server = own_redis("--appendonly", "yes", "--appendfsync", "always")

    async def restarts(_: Any, done: list[str]) -> None:
        for n in (100, 300, 500):
            await until(lambda n=n: len(done) >= n)
            server.kill()
            await asyncio.sleep(0.1)
            server.start()

    await work_off(server.url, 700, 16, restarts)


@pytest.mark.slow
async def test_the_server_stands_still_for_longer_than_the_timeout(own_redis):
    server = own_redis()

    async def pauses(_: Any, done: list[str]) -> None:
        await until(lambda: len(done) >= 50)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(2.5)
        server.signal(signal.SIGCONT)

    await work_off(f"{server.url}?timeout=1", 300, 16, pauses)


@pytest.mark.slow
async def test_connections_are_killed_amid_the_work(own_redis):
    server = own_redis()

    async def kills(mine: Any, done: list[str]) -> None:
        other = RedisDriver(parse(f"{server.url}?fleet=other"))
        await other.pools()
        for n in range(20, 400, 20):
            await until(lambda n=n: len(done) >= n)
            await ask(other._link._session.connection, b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
            await ask(other._link._session.connection, b"CLIENT", b"PAUSE", b"50")
        await other.close()

    await work_off(server.url, 500, 32, kills)


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(url):
    driver = RedisDriver(parse(url))
    await driver.push("p", [new(str(n)) for n in range(20)])
    await take(driver)
    for _ in range(2):
        await ask(driver._link._session.connection, b"SCRIPT", b"FLUSH")
        claims = await asyncio.gather(*(take(driver) for _ in range(5)))
        assert all(len(each) == 1 for each in claims)
    assert (await driver.counts("p")).claimed == 11
    await driver.close()


async def test_a_server_that_stays_away_is_an_error_after_the_patience_of_the_url(own_redis):
    server = own_redis()
    driver = RedisDriver(parse(f"{server.url}?patience=0.5"))
    await driver.push("p", [new("a")])
    server.kill()
    with pytest.raises(StoreUnavailable, match=rf"127.0.0.1:{server.port}.*cannot be used"):
        await driver.counts("p")
    server.start()  # without a file: all that it held is gone
    with pytest.raises(StoreUnavailable, match="not on the server any more"):
        await driver.counts("p")
    await driver.close()


@pytest.mark.slow
async def test_what_is_too_large_for_the_buffers_of_a_server_that_stands_still_is_sent_again(own_redis):
    server = own_redis()
    driver = RedisDriver(parse(f"{server.url}?timeout=1"))
    await driver.push("p", [new("a")])
    server.signal(signal.SIGSTOP)
    putting = [asyncio.create_task(driver.put(f"k{n}", "x" * 8_000_000)) for n in range(3)]
    claiming = asyncio.create_task(take(driver))
    await asyncio.sleep(2.5)
    server.signal(signal.SIGCONT)
    await asyncio.gather(*putting)
    assert [claim.key for claim in await claiming] == ["a"]
    assert all([(await driver.get(f"k{n}"))[0] for n in range(3)])
    await driver.close()


async def test_a_store_that_was_deleted_meanwhile_is_not_begun_anew(own_redis):
    server = own_redis()
    driver, other = RedisDriver(parse(server.url)), RedisDriver(parse(f"{server.url}?fleet=other"))
    await driver.push("p", [new("a")])
    await other.pools()
    await ask(other._link._session.connection, b"FLUSHALL")
    await ask(other._link._session.connection, b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await driver.counts("p")
    again = RedisDriver(parse(server.url), must_exist=True)
    with pytest.raises(StoreUnavailable, match="there is no store"):
        await again.pools()
    for each in (driver, other, again):
        await each.close()


@pytest.mark.parametrize("anew", [False, True])
async def test_a_store_that_is_emptied_under_a_living_connection_takes_no_write(own_redis, anew):
    server = own_redis()
    driver, other = RedisDriver(parse(server.url)), RedisDriver(parse(f"{server.url}?fleet=other"))
    await driver.push("p", [new(str(n)) for n in range(100)])
    await other.pools()
    working = [asyncio.create_task(take(driver)) for _ in range(20)]
    await working[0]
    await ask(other._link._session.connection, b"FLUSHALL")
    size, third = 0, RedisDriver(parse(server.url))
    if anew:
        await third.pools()
        size = 1
    ended = await asyncio.gather(*working, return_exceptions=True)
    assert all(isinstance(each, list | StoreGone) for each in ended)
    for call in (
        driver.push("p", [new("b")]),
        take(driver),
        driver.counts("p"),
        driver.send("ch", 1),
        driver.put("k", 1),
    ):
        with pytest.raises(StoreGone, match="not on the server any more"):
            await call
    assert await ask(other._link._session.connection, b"DBSIZE") == size
    for each in (driver, other, third):
        await each.close()


async def test_a_full_server_is_an_error_at_once_and_goes_on_when_there_is_room(own_redis):
    server = own_redis("--maxmemory", "3mb")
    driver = RedisDriver(parse(server.url))
    await driver.push("p", [new("a")])
    with pytest.raises(StoreUnavailable, match=r"cannot be used: OOM [^.]*\. The server's memory is full: [^.]*\.$"):
        for n in range(100):
            await driver.put(f"k{n}", "x" * 1_000_000)
    assert (await driver.counts("p")).waiting == 1
    await ask(driver._link._session.connection, b"CONFIG", b"SET", b"maxmemory", b"0")
    assert len(await take(driver)) == 1
    await driver.close()


# -- callers -----------------------------------------------------------------------------------------------------------


async def test_the_claim_of_a_caller_who_has_gone_is_given_back(url):
    driver = RedisDriver(parse(url))
    await driver.push("p", [new(str(n)) for n in range(50)])
    for wait in (0.0, 0.0005, 0.002, 0.01):
        claiming = [asyncio.create_task(take(driver)) for _ in range(10)]
        await asyncio.sleep(wait)
        for task in claiming:
            task.cancel()
        ended = await asyncio.gather(*claiming, return_exceptions=True)
        held = {claim.id for each in ended if isinstance(each, list) for claim in each}
        async with asyncio.timeout(10):
            while set(await driver.claims("o")) != held:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for item_id in held:
            await driver.release(item_id, None)
    assert await driver.counts("p") == Counts(waiting=50)
    await driver.close()


async def test_the_claim_that_is_under_way_when_its_caller_goes_is_given_back(own_redis):
    server = own_redis()
    driver = RedisDriver(parse(server.url))
    await driver.push("p", [new(str(n)) for n in range(5)])
    server.signal(signal.SIGSTOP)
    claiming = [asyncio.create_task(take(driver)) for _ in range(3)]
    await asyncio.sleep(0.05)  # they are sent by now
    for task in claiming[:2]:
        task.cancel()
    await asyncio.wait(claiming[:2])
    server.signal(signal.SIGCONT)
    assert [claim.key for claim in await claiming[2]] == ["2"]
    async with asyncio.timeout(10):
        while len(await driver.claims("o")) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert [[each.outcome for each in await driver.attempts(f"p:{n}")] for n in range(3)] == [["released"]] * 2 + [[]]
    await driver.close()


async def test_what_was_cancelled_before_it_was_sent_is_not_done(url):
    driver = RedisDriver(parse(url))
    await driver.pools()
    sending = asyncio.create_task(driver.send("ch", 1))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert await driver.peek("ch") == []
    await driver.close()


async def test_five_hundred_workers_use_two_connections(own_redis):
    server = own_redis()
    store, watch = open_store(server.url, owner="o"), RedisDriver(parse(f"{server.url}?fleet=other"))
    store.bell.open()
    pool, most = store.work.pool("p"), 0
    await pool.push_many([pool.new(n, key=str(n)) for n in range(1000)])

    async def work(name: str) -> None:
        nonlocal most
        while claim := await pool.claim(name):
            await pool.complete(claim.id, 1, token=claim.token)
            if name == "w0":
                await watch.pools()
                clients = await ask(watch._link._session.connection, b"CLIENT", b"LIST")
                most = max(most, len(clients.splitlines()) - 1)

    await asyncio.gather(*(work(f"w{n}") for n in range(500)))
    await until(lambda: store.bell.hears)
    assert most <= 2
    assert (await pool.counts()).completed == 1000
    await store.close()
    await watch.close()


async def test_a_store_can_be_used_by_one_event_loop_after_the_other(url):
    driver = RedisDriver(parse(url))
    await driver.push("p", [new("a")])

    def elsewhere() -> int:
        async def count() -> int:
            return (await RedisDriver(parse(url)).counts("p")).waiting

        return asyncio.run(count())

    assert await asyncio.to_thread(elsewhere) == 1
    await driver.close()
    assert (await driver.counts("p")).waiting == 1
    await driver.close()


# -- a cluster ---------------------------------------------------------------------------------------------------------


async def command(url: str, *words: bytes) -> Any:
    connection = connect(parse(url))
    await connection.connect()
    try:
        return await ask(connection, *words)
    finally:
        await connection.disconnect()


async def test_a_store_needs_one_slot_of_a_cluster(own_redis):
    """The node refuses every key of another slot, inside scripts too."""
    server = own_redis("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    slot = await command(server.url, b"CLUSTER", b"KEYSLOT", b"{night}:x")
    await command(server.url, b"CLUSTER", b"ADDSLOTS", b"%d" % slot)
    driver = RedisDriver(parse(f"{server.url}?fleet=night"))
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(StoreUnavailable):
                await driver.pools()
                break
            await asyncio.sleep(0.05)
    await driver.register(WorkerRegistration(worker_id="w"), "o", LEASE, {"pool": "p"})
    await driver.push("p", [new(str(n), requires=("gpu",) if n % 2 else (), max_attempts=1) for n in range(8)])
    claims = await driver.claim("p", "w", "o", 5, LEASE, ["gpu"])
    await driver.complete(claims[0].id, 1, claims[0].token, 0.0)
    await driver.fail(claims[1].id, Failure("E", "x"), claims[1].token, 0.0)
    await driver.release(claims[2].id, claims[2].token)
    await driver.cancel("p", [claims[3].id])
    await driver.retry("p", None)
    await driver.hand_back(owner="o", crashed=True)
    for name in ("x", "x:s:1"):
        await driver.save_snapshot(SnapshotRow(name, "k", b"{}", "waiting", "ch"), None, None)
    await driver.send("ch", 1)
    assert sorted(await driver.deliver()) == ["x", "x:s:1"]
    await driver.beat("o", ["w"], {claims[4].id: 1}, LEASE)
    await driver.lock("k", "o", LEASE)
    await driver.decide("f", {"id": "a", "outcome": "applied", "target": 3})
    await driver.put("config:x", 1)
    await driver.drop_snapshots("x")
    await driver.mark_lost("o")
    await driver.gc(2e9)
    await driver.metrics("p", 0.0, 100)
    assert (await driver.counts("p")).total == 8
    other = RedisDriver(parse(f"{server.url}?fleet=day"))
    with pytest.raises(StoreUnavailable, match="cluster"):
        await other.pools()
    await driver.close()
    await other.close()
