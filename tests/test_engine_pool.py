"""The pool of hosts, over hosts that do nothing: who gets which, how many there are, what becomes of those not well."""

from __future__ import annotations

import asyncio
import time

import pytest
from flatfleet.runtime.engines import pool as pools
from flatfleet.runtime.engines import wellness
from flatfleet.runtime.engines.hosts import Event, heard, told
from flatfleet.runtime.engines.pool import HostPool
from flatfleet.runtime.engines.spec import PoolSettings, parse
from flatfleet.runtime.errors import (
    EngineError,
    EngineUrlError,
    HostDied,
    MachineError,
    PoolAtCapacity,
    StoreUnavailable,
    UnknownAction,
)


class Host:
    """A host that comes up when it is let (`up`), and answers while it is `well`."""

    def __init__(self, name):
        self.id, self.owner = name, None
        self.on_event = lambda event: None
        self.up, self.fault, self.well = asyncio.Event(), None, True
        self.drained = self.stopped = self.killed = False

    async def start(self):
        await self.up.wait()
        if self.fault is not None:
            raise self.fault
        self.owner = f"owner of {self.id}"

    async def ping(self):
        if not self.well:
            await asyncio.Event().wait()
        return True

    def drain(self):
        self.drained = True

    def kill(self):
        self.killed = True
        self.on_event(Event("died", reason="killed"))

    async def stop(self, seconds):
        self.stopped = True
        self.on_event(Event("died", reason="exit code 0"))
        return 1

    def about(self):
        return {"pid": 7}


class Pool(HostPool):
    """Hosts come up at once unless `slow`; `hosts` are all that were ever made."""

    def __init__(self, hung=60.0, slow=False, **settings):
        self.hosts, self.events, self.slow = [], [], slow
        super().__init__(PoolSettings(**settings), self.make_one, lambda place, event: self.events.append(event), hung)

    def make_one(self, name):
        host = Host(name)
        if not self.slow:
            host.up.set()
        self.hosts.append(host)
        return host

    async def close(self, seconds=0):
        return await super().close(seconds)

    def ids(self):
        return [place.host.id for place in self.places]

    async def until(self, happened):
        async with asyncio.timeout(10):
            while not happened():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(pools, "PATIENCE", 0.02)
    monkeypatch.setattr(wellness, "HEALTH", 0.02)


class Pools:
    """Makes pools, and closes them."""

    def __init__(self):
        self._made = []

    def __call__(self, **options):
        self._made.append(Pool(**options))
        return self._made[-1]

    async def close(self):
        for pool in self._made:
            await pool.close()


@pytest.fixture
def make():
    return Pools()


# -- who gets which ----------------------------------------------------------------------------------------------------


async def test_a_pool_is_warmed_and_an_idle_host_is_had_at_once(make):
    pool = make(min_size=2)
    pool.start()
    pool.start()
    await pool.until(lambda: all(place.ready for place in pool.places))
    assert pool.ids() == ["host-1", "host-2"]
    first, second = await pool.acquire(), await pool.acquire()
    assert {first.host.id, second.host.id} == {"host-1", "host-2"}
    assert len(pool.hosts) == 2


async def test_who_finds_no_idle_host_waits_a_little_then_one_more_is_started(make):
    pool = make(min_size=1, max_size=2, slots=1)
    first = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    assert len(pool.hosts) == 1
    assert (await waiting).host.id == "host-2"
    assert first.host.id == "host-1"


async def test_a_host_that_becomes_idle_meanwhile_is_taken_and_none_is_started(make):
    pool = make(min_size=1, max_size=2, slots=1)
    first = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.release(first)
    assert await waiting is first
    await asyncio.sleep(0.04)
    assert len(pool.hosts) == 1


async def test_beyond_max_size_requests_queue_first_come_first_served(make):
    pool = make(min_size=1, max_size=1, slots=1)
    place, order = await pool.acquire(), []

    async def wait(n):
        got = await pool.acquire()
        order.append(n)
        pool.release(got)

    waiting = [asyncio.create_task(wait(n)) for n in range(5)]
    await asyncio.sleep(0.05)
    assert (order, len(pool.hosts), pool.metrics()["queued"]) == ([], 1, 5)
    waiting[1].cancel()
    pool.release(place)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert order == [0, 2, 3, 4]
    assert pool.metrics()["active"] == 0


async def test_without_a_queue_who_would_have_to_wait_is_refused(make):
    pool = make(min_size=1, max_size=2, slots=1, queue=False)
    places = [await pool.acquire(), await pool.acquire()]
    with pytest.raises(PoolAtCapacity, match="max_size=2, slots=1"):
        await pool.acquire()
    pool.release(places[0])
    assert await pool.acquire() is places[0]


async def test_without_a_queue_a_host_that_is_starting_is_waited_for(make):
    pool = make(min_size=1, max_size=1, slots=1, queue=False, slow=True)
    first, second = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
    with pytest.raises(PoolAtCapacity):
        await second
    pool.hosts[0].up.set()
    assert (await first).host.id == "host-1"


@pytest.mark.parametrize(("assignment", "got"), [("least_loaded", "2 3 2 3"), ("round_robin", "2 3 1 2")])
async def test_assignment(make, assignment, got):
    pool = make(min_size=3, max_size=3, slots=9, assignment=assignment)
    pool.start()
    await pool.until(lambda: all(place.ready for place in pool.places))
    one, two, three = sorted(pool.places, key=lambda place: place.number)
    for place, n in ((one, 3), (two, 1), (three, 1)):
        for _ in range(n):
            place.enter()
    pool._turn = 1
    names = [(await pool.acquire()).host.id.removeprefix("host-") for _ in range(4)]
    assert " ".join(names) == got


async def test_without_slots_each_machine_has_a_host_of_its_own_until_there_are_enough_and_nobody_queues(make):
    pool = make(min_size=2, max_size=4)
    places = await asyncio.gather(*(pool.acquire() for _ in range(4)))
    assert {place.reserved for place in places} == {1}
    assert len(pool.places) == 4
    await asyncio.gather(*(pool.acquire() for _ in range(36)))
    assert [place.reserved for place in pool.places] == [10] * 4
    assert pool.metrics()["queued"] == 0


async def test_without_slots_many_that_come_at_once_are_spread_over_hosts_that_come_up_one_by_one(make):
    pool = make(min_size=2, max_size=4, slow=True)
    asked = [asyncio.create_task(pool.acquire()) for _ in range(42)]
    await pool.until(lambda: len(pool.hosts) == 4)
    for n, host in enumerate(pool.hosts):
        host.up.set()
        await pool.until(lambda n=n: pool.places[n].ready)
        assert pool.places[n].reserved in (10, 11, 12)
    await asyncio.gather(*asked)
    assert sorted(place.reserved for place in pool.places) == [10, 10, 11, 11]


async def test_hosts_of_several_slots_take_as_many_and_no_more_hosts_start_than_are_needed(make):
    pool = make(min_size=1, max_size=9, slots=4)
    await asyncio.gather(*(pool.acquire() for _ in range(9)))
    assert (len(pool.hosts), sorted(place.reserved for place in pool.places)) == (3, [1, 4, 4])


# -- how many there are ------------------------------------------------------------------------------------------------


async def test_hosts_that_are_idle_for_too_long_go_down_to_min_size(make):
    pool = make(min_size=1, max_size=4, slots=1, idle_timeout=0.05)
    places = await asyncio.gather(*(pool.acquire() for _ in range(3)))
    for place in places[1:]:
        pool.release(place)
    await pool.until(lambda: len(pool.places) == 1)
    assert pool.places == places[:1]
    pool.release(places[0])
    await asyncio.sleep(0.15)
    assert pool.places == places[:1]
    assert [host.stopped for host in pool.hosts] == [False, True, True]


async def test_a_host_that_is_one_too_many_goes_when_it_is_given_back(make):
    pool = make(min_size=1, max_size=2, slots=1)
    places = [await pool.acquire() for _ in range(2)]
    pool.settings = PoolSettings(min_size=1, max_size=1, slots=1)
    pool.release(places[1])
    await pool.until(lambda: len(pool.places) == 1)
    assert places[1].host.stopped
    pool.release(places[0])
    assert not places[0].host.stopped


async def test_a_host_that_dies_is_replaced_and_who_had_it_hears_of_it(make):
    pool = make(min_size=1, max_size=1, slots=1)
    place = await pool.acquire()
    place.host.kill()
    assert [event.kind for event in pool.events] == ["died"]
    assert (await pool.acquire()).host.id == "host-2"
    assert place.state == "gone"


async def test_a_host_that_was_told_to_go_gets_nothing_more_and_is_replaced_while_it_drains(make):
    pool = make(min_size=1, max_size=1, slots=4)
    place = await pool.acquire()
    place.host.on_event(Event("leaving", seconds=30.0))
    assert (await pool.acquire()).host.id == "host-2"
    assert [place.as_dict()["state"] for place in pool.places] == ["leaving", "busy"]
    pool.release(place)
    place.host.kill()
    assert pool.ids() == ["host-2"]


async def test_a_host_that_does_not_answer_is_killed_and_replaced(make, caplog):
    pool = make(min_size=1, max_size=1, hung=0.05)
    place = await pool.acquire()
    await asyncio.sleep(0.1)
    assert not place.host.killed
    place.host.well = False
    await pool.until(lambda: place.host.killed)
    assert (await pool.acquire()).host.id == "host-2"


async def test_hosts_that_die_young_come_back_later_each_time(make, monkeypatch):
    naps, nap = [], asyncio.sleep

    async def note(seconds):
        naps.append(seconds)
        await nap(0)

    monkeypatch.setattr(pools.asyncio, "sleep", note)
    pool = make(min_size=1, max_size=1)
    for _ in range(4):
        (await pool.acquire()).host.kill()
    place = await pool.acquire()
    assert [seconds for seconds in naps if seconds != wellness.HEALTH] == [0.0, 0.2, 0.4, 0.8, 1.6]
    monkeypatch.setattr(pools, "YOUNG", 0.0)
    place.host.kill()
    await pool.acquire()
    assert [seconds for seconds in naps if seconds != wellness.HEALTH][5:] == [0.0]
    monkeypatch.setattr(pools, "YOUNG", 60.0)
    for _ in range(3):  # somebody has killed these
        pool.places[0].host.on_event(Event("died", killed=True))
        await pool.acquire()
    assert [seconds for seconds in naps if seconds != wellness.HEALTH][6:] == [0.0] * 3


async def test_hosts_that_somebody_kills_while_they_start_are_started_again(make, monkeypatch):
    monkeypatch.setattr(pools, "KILLS", 8)
    pool = make(min_size=1, max_size=1, slow=True)
    asked = asyncio.create_task(pool.acquire())
    for n in range(7):
        await pool.until(lambda n=n: len(pool.hosts) > n)
        pool.hosts[n].fault = HostDied("killed by SIGKILL")
        pool.hosts[n].up.set()
    await pool.until(lambda: len(pool.hosts) == 8)
    pool.hosts[7].up.set()
    assert (await asked).host.id == "host-8"
    pool.places[0].host.kill()
    again = asyncio.create_task(pool.acquire())
    for n in range(8, 16):
        await pool.until(lambda n=n: len(pool.hosts) > n)
        pool.hosts[n].fault = HostDied("killed by SIGKILL")
        pool.hosts[n].up.set()
    with pytest.raises(EngineError, match="SIGKILL"):
        await again


async def test_after_three_starts_that_failed_in_a_row_nobody_waits_for_another(make, monkeypatch):
    pool = make(min_size=1, max_size=5, slow=True)
    asked = [asyncio.create_task(pool.acquire()) for _ in range(2)]
    for n in range(3):
        await pool.until(lambda n=n: len(pool.hosts) > n)
        pool.hosts[n].fault = EngineError(f"host-{n + 1} did not start: no module named x")
        pool.hosts[n].up.set()
        await asyncio.sleep(0)
    for each in asked:
        with pytest.raises(EngineError, match="did not start: no module named x"):
            await each
    made = len(pool.hosts)
    with pytest.raises(EngineError, match="no module named x"):
        await pool.acquire()
    assert "no module named x" in pool.metrics()["fault"]
    assert len(pool.hosts) == made
    monkeypatch.setattr(pools, "GIVEN_UP", 0.0)
    pool.slow = False
    for host in pool.hosts:
        host.up.set()
    assert (await pool.acquire()).ready
    assert pool.metrics()["fault"] is None


# -- the end, and in numbers -------------------------------------------------------------------------------------------


async def test_closing_stops_every_host_refuses_who_waits_and_counts_what_came_back(make):
    pool = make(min_size=2, max_size=2, slots=1)
    await asyncio.gather(pool.acquire(), pool.acquire())
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    assert await pool.close() == 2
    with pytest.raises(EngineError, match="closing"):
        await waiting
    with pytest.raises(EngineError, match="closing"):
        await pool.acquire()
    assert all(host.stopped for host in pool.hosts)
    assert await pool.close() == 0


async def test_closing_does_not_wait_for_a_host_that_is_starting(make):
    pool = make(min_size=1, slow=True)
    pool.start()
    await asyncio.sleep(0)
    assert await pool.close() == 0
    assert pool.places == []


async def test_draining_reaches_every_host(make):
    pool = make(min_size=2)
    await asyncio.gather(pool.acquire(), pool.acquire())
    pool.drain()
    assert all(host.drained for host in pool.hosts)


async def test_the_numbers(make):
    pool = make(min_size=2, max_size=2, slots=2)
    begun = time.time()
    places = await asyncio.gather(*(pool.acquire() for _ in range(3)))
    metrics = pool.metrics()
    assert (metrics["requests"], metrics["active"], metrics["queued"], metrics["utilisation"]) == (3, 3, 0, 0.75)
    assert metrics["wait"]["count"] == 3
    assert metrics["wait"]["max"] >= metrics["wait"]["mean"] >= 0
    for place in places:
        pool.release(place, 2.0)
    metrics = pool.metrics()
    assert metrics["execution"] == {"count": 3, "mean": 2.0, "max": 2.0}
    assert (metrics["active"], metrics["utilisation"]) == (0, 0.0)
    told = metrics["hosts"][0]
    assert {**told, "last_used": 0, "since": 0} == {
        "id": "host-1",
        "state": "idle",
        "reserved": 0,
        "usage_count": 2,
        "last_used": 0,
        "since": 0,
        "owner": "owner of host-1",
        "pid": 7,
    }
    assert told["last_used"] >= begun


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "address", "pool"),
    [
        ("inline", "inline", "", PoolSettings()),
        ("process", "process", "", PoolSettings(2, 10, 300.0, 0, "least_loaded", True)),
        ("process?max_size=4&slots=8", "process", "", PoolSettings(max_size=4, slots=8)),
        ("process?max_size=1", "process", "", PoolSettings(min_size=1, max_size=1)),
        ("process?min_size=0&idle_timeout=0.5&queue=false", "process", "", PoolSettings(0, 10, 0.5, queue=False)),
        ("process?assignment=round_robin", "process", "", PoolSettings(assignment="round_robin")),
        ("ray", "ray", "", PoolSettings()),
        ("ray://head:6379?slots=2", "ray", "head:6379", PoolSettings(slots=2)),
    ],
)
def test_a_spec_is_read(text, kind, address, pool):
    spec = parse(text)
    assert (spec.kind, spec.address, spec.pool, spec.text) == (kind, address, pool, text)
    assert spec.hosted == (kind != "inline")
    assert parse(spec) is spec


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("proces", "unknown kind 'proces' — known: inline, process, ray. Did you mean 'process'?"),
        ("", "unknown kind ''"),
        ("process?slot=3", "unknown option 'slot' of process — known: .* Did you mean 'slots'?"),
        ("inline?slots=3", "unknown option 'slots' of inline; it takes none"),
        ("process?slots=many", "slots is 'many'; it is a whole number, 0 at least"),
        ("process?max_size=0", "max_size is '0'; it is a whole number, 1 at least"),
        ("process?min_size=-1", "min_size is '-1'"),
        ("process?max_size=2&min_size=3", "min_size 3 is more than max_size 2"),
        ("process?idle_timeout=soon", "idle_timeout is 'soon'"),
        ("process?idle_timeout=nan", "idle_timeout is 'nan'"),
        ("process?queue=maybe", "queue is 'maybe' — known: false, true"),
        ("process?assignment=roundrobin", "Did you mean 'round_robin'?"),
        ("process://host", "'process' is on this machine and has no address"),
        ("ray:host", "write the address as in ray://host:6379"),
        ("ray://", "write the address as in"),
    ],
)
def test_a_spec_that_is_wrong_is_refused_with_what_is_known(text, told):
    with pytest.raises(EngineUrlError, match=told.replace("?", r"\?")):
        parse(text)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("power"), OSError),
        (KeyError("x"), KeyError),
        (StoreUnavailable("gone"), StoreUnavailable),
        (UnknownAction("no 'x'"), MachineError),
        (type("Odd", (ValueError,), {})("own"), EngineError),
        (type("parse", (Exception,), {})("own"), EngineError),
        (HostDied("it did"), EngineError),
    ],
)
def test_errors_are_told_with_their_names_and_texts_and_known_ones_keep_their_class(error, kind):
    again = heard(told(error))
    assert isinstance(again, kind)
    assert (type(again).__name__, str(again)) == (type(error).__name__, str(error))
