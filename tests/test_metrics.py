"""runtime/metrics.py: what a store measures as the observation that policies decide on."""

from __future__ import annotations

import time

import pytest
from flatfleet.runtime.metrics import observation, observe
from flatfleet.runtime.policies.settings import settings
from flatfleet.runtime.stores.buckets import Activity, Bucket
from flatfleet.runtime.stores.records import Counts, NewItem
from flatmachines import WorkerRegistration

AT = 1_000_000.5


def living(owner):
    return False


def bucket(ago, *events, last=None):
    made = Bucket(int(AT - ago)) if last is None else last.next(int(AT - ago))
    for kind, value, *more in events:
        made.add(kind, AT - ago, value, *more)
    return made


def seen(*buckets, window=60.0, target=None, counts=Counts(), dead=living, **fields):  # noqa: B008
    return observation(Activity(AT, counts, buckets, **fields), target, window, dead)


def test_of_a_new_pool_nothing_is_known_but_that_there_is_no_demand():
    o = seen()
    assert (o.at, o.measured, o.demand, o.workers, o.target) == (AT, AT, 0, 0, 0)
    assert o.oldest_wait == 0.0
    for name in ("arrival_rate", "arrival_cv2", "service_mean", "service_cv2", "startup", "wait_mean", "wait_p50"):
        assert getattr(o, name) is None, name
    for name in ("wait_p95", "response", "throughput", "utilisation", "idle", "provider_faults"):
        assert getattr(o, name) is None, name


def test_rates_are_over_the_whole_window_and_what_is_older_does_not_count():
    old = bucket(70, ("pushed", 50), ("completed", 9.0, 9.0))
    new = bucket(5, ("pushed", 3), ("completed", 2.0, 4.0), ("failed", 4.0), ("provider", 1.0), last=old)
    o = seen(old, new, last_arrival=AT - 5, last_end=AT - 5)
    assert o.arrival_rate == 3 / 60
    assert o.throughput == 1 / 60
    assert o.provider_faults == 1 / 60
    assert o.service_mean == 3.0
    assert o.service_cv2 == pytest.approx(1 / 9)
    assert o.response == 4.0
    assert seen(old, new, window=600.0, last_arrival=AT).arrival_rate == 53 / 600


def test_a_quiet_window_has_rates_of_zero():
    o = seen(last_arrival=AT - 500, last_end=AT - 400)
    assert (o.arrival_rate, o.throughput, o.provider_faults, o.idle) == (0.0, 0.0, 0.0, 400.0)
    assert (o.service_mean, o.wait_mean) == (None, None)


def test_while_there_is_demand_nobody_is_idle():
    assert seen(counts=Counts(claimed=1), last_end=AT - 400).idle == 0.0
    assert seen(counts=Counts(expired=1), last_end=AT - 400).idle == 0.0
    assert seen(counts=Counts(delayed=1), last_end=AT - 400).idle == 400.0


def test_waits():
    o = seen(bucket(3, *[("claimed", 1.0)] * 90, *[("claimed", 20.0)] * 10), oldest=AT - 42)
    assert o.wait_mean == pytest.approx(2.9)
    assert o.wait_p50 == pytest.approx(1.0, rel=0.1)
    assert o.wait_p95 == pytest.approx(20.0, rel=0.1)
    assert o.oldest_wait == 42.0


def test_even_arrivals_vary_little_and_those_in_batches_much():
    even, last = [], None
    for ago in range(50, 0, -1):
        even.append(last := bucket(ago, ("pushed", 1), last=last))
    assert seen(*even).arrival_cv2 == pytest.approx(0.0, abs=1e-9)
    batch, last = [], None
    for ago in (50, 40, 30, 20):
        batch.append(last := bucket(ago, ("pushed", 10), last=last))
    assert seen(*batch).arrival_cv2 > 5
    assert seen(bucket(5, ("pushed", 10))).arrival_cv2 is None


def test_the_workers_of_dead_processes_do_not_count():
    crew = {"a": (4, 1, 2), "b": (8, 8, 8)}
    o = seen(crew=crew, counts=Counts(claimed=3), dead=lambda owner: owner == "b")
    assert (o.workers, o.starting, o.draining, o.target, o.utilisation) == (4, 1, 2, 4, 0.5)
    assert seen(crew=crew, target=7).target == 7
    assert seen(crew=crew, target=0).target == 0
    assert seen(crew={"a": (1, 0, 0)}, counts=Counts(claimed=3)).utilisation == 1.0


async def test_a_store_is_observed_as_it_is(any_kit):
    store = any_kit.store
    o = await observe(store, "p", settings({}))
    assert (o.demand, o.workers, o.target, o.measured) == (0, 0, 0, o.at)
    pool = store.work.pool("p")
    await pool.push_many([NewItem(f"p:{n}", str(n), {}) for n in range(3)])
    await store.registration.register(WorkerRegistration(worker_id="w"), {"pool": "p", "parallelism": 2})
    assert (await observe(store, "p", settings({}))).starting == 2
    await store.fleet("p").set_target(5)
    claim = await pool.claim("w")
    o = await observe(store, "p", settings({"metrics_window": "10s"}))
    assert (o.waiting, o.claimed, o.workers, o.starting, o.target) == (2, 1, 2, 0, 5)
    assert o.arrival_rate == 0.3
    assert o.utilisation == 0.5
    assert abs(o.at - time.time()) < 60
    await pool.complete(claim.id, 1, token=claim.token)
    o = await observe(store, "p", settings({}))
    assert o.throughput == 1 / 60
    assert o.startup is not None
