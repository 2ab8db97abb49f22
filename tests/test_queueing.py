"""The queueing formulas: published values, identities, ten thousand workers and more, edges, and simulated queues."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import pytest
from flatfleet.benchmarks.queue_model import simulate, waits, walk
from flatfleet.runtime.policies.erlang import erlang_b, erlang_c, log_erlang_b, log_erlang_c
from flatfleet.runtime.policies.queueing import Queue, fewest_stable, workers_for
from hypothesis import assume, example, given
from hypothesis import strategies as st

# -- published values --------------------------------------------------------------------------------------------------

PUBLISHED = [
    # capacity_planning/queueing, erlang_test.py (Mathematica)
    ("q001", 120, 1, 100, "log_b", 0, -1.62826407041, 1e-06),
    ("q003", 20, 1, 100, "log_b", 0, -84.1661482002, 1e-06),
    ("q005", 10000, 1, 100, "log_b", 0, -0.01004931575, 1e-06),
    ("q007", 9000, 1, 10000, "log_c", 0, -56.8266885378, 1e-06),
    ("q009", 100, 1, 10000, "log_c", 0, -36157.2159266, 1e-05),
    # a package test, repository not identified
    ("q014", 123, 1, 132, "p_wait", 0, 0.3211, 5e-05),
    # rodrigo-arenas/pyworkforce, erlangc.md and test_erlang.py
    ("q016", 3.3333333333333335, 0.3333333333333333, 14, "p_wait", 0, 0.1741319335950498, 1e-12),
    ("q018", 3.3333333333333335, 0.3333333333333333, 14, "utilisation", 0, 0.7142857142857143, 1e-12),
    ("q020", 3.3333333333333335, 0.3333333333333333, 15, "level", 0.33, 0.941, 0.0005),
    # FelixKleineBoesing/queuingSystem, test_erlangb.py and test_erlangc.py
    ("q022", 0.027777777777777776, 0.005555555555555556, 10, "p_wait", 0, 0.03610535915832015, 1e-09),
    ("q024", 120, 5, 35, "p_wait", 0, 0.023521116861458607, 1e-09),
    ("q026", 0.1, 0.0033, 40, "p_wait", 0, 0.06278834613535761, 1e-09),
    ("q028", 0.1, 0.0033, 40, "level", 20, 0.9668921807646333, 1e-09),
    ("q030", 7, 1, 9, "l", 0, 8.34731482954869, 1e-09),
    ("q032", 0.1, 0.0033333333333333335, 35, "w", 0, 317.07494774481046, 1e-07),
    ("q034", 100, 5, 10, "erlang_b", 0, 0.5379631686320729, 1e-12),
    # mmarzolla/queueing, qsmmm.m, citing ETH Zurich ASL 2017 slides
    ("q036", 9, 5, 2, "lq", 0, 7.674, 0.001),
    ("q038", 9, 5, 4, "lq", 0, 0.105, 0.001),
    # queuecomputer vignette MMk_queues (Thomopoulos 2012)
    ("q040", 1, 1.25, 1, "p0", 0, 0.2, 1e-07),
    ("q042", 1, 1.25, 3, "p0", 0, 0.4471545, 1e-07),
    ("q044", 1, 0.4, 3, "p0", 0, 0.0449438202, 1e-07),
    # Bronson 1982, problems 23.3, 23.14, 24.6
    ("q046", 24, 30, 1, "l", 0, 4, 0.005),
    ("q048", 24, 30, 1, "p0", 0, 0.2, 1e-09),
    ("q050", 0.5, 0.6666666666666666, 1, "wq", 0, 4.5, 0.05),
    ("q052", 300, 182.5, 3, "l", 0, 1.996, 0.0005),
    ("q054", 300, 182.5, 3, "w", 0, 0.006654, 5e-07),
    # OPRE assignment 5, student spreadsheet
    ("q056", 3.7, 1.33, 5, "utilisation", 0, 0.5564, 6e-05),
    ("q058", 3.7, 1.33, 5, "lq", 0, 0.2328, 6e-05),
    ("q060", 3.7, 1.33, 5, "wq", 0, 0.0629, 6e-05),
    ("q062", 3.7, 1.33, 6, "utilisation", 0, 0.4637, 6e-05),
    ("q064", 3.7, 1.33, 6, "lq", 0, 0.0636, 6e-05),
    ("q066", 3.7, 1.33, 6, "wq", 0, 0.0172, 6e-05),
    ("q068", 3.7, 1.33, 7, "utilisation", 0, 0.3974, 6e-05),
    ("q070", 3.7, 1.33, 7, "lq", 0, 0.0173, 6e-05),
    ("q072", 3.7, 1.33, 7, "wq", 0, 0.0047, 6e-05),
    # erlanglib, tests/test_core.py
    ("q074", 10, 1, 11, "p_wait", 0, 0.6821, 5e-05),
    ("q076", 0.05555555555555555, 0.005555555555555556, 11, "level", 20, 0.39, 0.005),
    ("q078", 0.05555555555555555, 0.005555555555555556, 14, "wq", 0, 7.83593, 5e-05),
    # eveneveno/MMC_queue, README.md
    ("q080", 5, 3, 2, "l", 0, 5.455, 0.0005),
    # AlgoGraph/Queuing-theory, MMC.test.ts
    ("q082", 0.1, 0.05, 3, "w", 0, 28.88, 0.01),
]
"""(id, λ, μ, c, what, t of P(wait ≤ t), published value, its tolerance)"""


@pytest.mark.parametrize(("arrival", "service", "workers", "what", "within", "value", "tolerance"),
                         [row[1:] for row in PUBLISHED], ids=[row[0] for row in PUBLISHED])  # fmt: skip
def test_published_values(
    arrival: float, service: float, workers: int, what: str, within: float, value: float, tolerance: float
) -> None:
    queue = Queue(arrival, service, workers)
    found = queue.level(within) if what == "level" else getattr(queue, what)
    assert abs(found - value) <= tolerance


# -- identities --------------------------------------------------------------------------------------------------------

LOADS = st.floats(1e-6, 500)
COUNTS = st.integers(1, 600)
CV2 = st.floats(0, 20)


def losses(offered: Fraction, workers: int) -> Fraction:
    """B by its definition, exactly."""
    terms = [Fraction(1)]
    for count in range(1, workers + 1):
        terms.append(terms[-1] * offered / count)
    return terms[-1] / sum(terms)


@given(st.fractions(Fraction(1, 64), 40, max_denominator=64), st.integers(0, 40))
def test_erlang_b_and_c_are_their_definitions(offered: Fraction, workers: int) -> None:
    loss = losses(offered, workers)
    assert erlang_b(float(offered), workers) == pytest.approx(float(loss), rel=1e-12)
    if offered < workers:
        rho = offered / workers
        assert erlang_c(float(offered), workers) == pytest.approx(float(loss / (1 - rho * (1 - loss))), rel=1e-12)


@given(st.fractions(Fraction(1, 64), 20, max_denominator=64), st.integers(1, 30))
def test_p0_is_its_definition(offered: Fraction, workers: int) -> None:
    assume(offered < workers)
    terms = [Fraction(1)]
    for count in range(1, workers + 1):
        terms.append(terms[-1] * offered / count)
    p0 = 1 / (sum(terms[:-1]) + terms[-1] / (1 - offered / workers))
    assert Queue(float(offered), 1, workers).p0 == pytest.approx(float(p0), rel=1e-11)


@given(LOADS, COUNTS)
def test_the_recurrence_and_the_relation_of_b_and_c(offered: float, workers: int) -> None:
    before, loss = log_erlang_b(offered, workers - 1), log_erlang_b(offered, workers)
    step = math.log(offered) + before - math.log(workers + offered * math.exp(before))
    assert loss == pytest.approx(step, rel=1e-11, abs=1e-11)
    assert log_erlang_c(offered, workers) >= loss
    rho = offered / workers
    if rho < 1 - 1e-9 and loss > -600:
        assert erlang_c(offered, workers) * (1 - rho * (1 - math.exp(loss))) == pytest.approx(math.exp(loss), rel=1e-9)


@given(st.floats(0.01, 100), st.floats(0.01, 100), COUNTS, st.floats(0, 10), CV2, CV2)
def test_littles_law_and_the_sums(
    arrival: float, service: float, workers: int, dispatch: float, ca2: float, cs2: float
) -> None:
    queue = Queue(arrival, service, workers, dispatch, ca2, cs2)
    assert queue.lq == pytest.approx(arrival * queue.wq)
    assert queue.l == pytest.approx(arrival * queue.w)
    assert queue.w == pytest.approx(queue.wq + 1 / service)
    assert queue.response == pytest.approx(dispatch + queue.lq / arrival + 1 / service)
    assert queue.utilisation == pytest.approx(arrival / (workers * service))
    assert queue.throughput == pytest.approx(min(arrival, workers * service))
    assert 0 <= queue.p0 <= 1 and 0 <= queue.p_wait <= 1
    assert queue.stable == math.isfinite(queue.l)


@given(st.floats(0.5, 300), st.integers(1, 400), CV2)
def test_more_workers_wait_less_and_more_arrivals_longer(offered: float, workers: int, cs2: float) -> None:
    fewer = Queue(offered, 1, workers, service_cv2=cs2)
    for better in (Queue(offered, 1, workers + 1, service_cv2=cs2), Queue(offered * 0.99, 1, workers, service_cv2=cs2)):
        assert better.wq <= fewer.wq
        assert better.p_wait <= fewer.p_wait
        assert better.log_b < fewer.log_b
        assert better.level(0.1) >= fewer.level(0.1)
        assert better.percentile(0.9) <= fewer.percentile(0.9)
    assert Queue(offered, 1, workers, service_cv2=cs2 + 1).wq >= fewer.wq


@given(st.floats(0.1, 300), st.integers(1, 400), CV2, st.floats(0, 0.999))
def test_a_percentile_is_the_wait_at_its_service_level(offered: float, workers: int, cs2: float, part: float) -> None:
    queue = Queue(offered, 1, workers, service_cv2=cs2)
    assume(queue.stable)
    wait = queue.percentile(part)
    assert queue.level(wait) == pytest.approx(max(part, 1 - queue.p_wait), abs=1e-9)
    assert queue.level(wait + 1) >= part


@given(st.floats(0.01, 0.99), CV2)
def test_one_worker_is_pollaczek_khinchine(rho: float, cs2: float) -> None:
    queue = Queue(rho, 1, 1, service_cv2=cs2)
    assert queue.wq == pytest.approx(rho * (1 + cs2) / 2 / (1 - rho))
    assert queue.p_wait == pytest.approx(rho)


@given(st.floats(0.1, 300), st.floats(0.1, 10), st.floats(0, 3), st.floats(0.01, 0.9999), CV2, CV2)
@example(3 * 0.1, 0.1, 0.0, 0.5, 1.0, 1.0)
def test_workers_for_is_the_fewest(
    offered: float, service: float, within: float, level: float, ca2: float, cs2: float
) -> None:
    arrival = offered * service
    found = workers_for(arrival, service, within, level, arrival_cv2=ca2, service_cv2=cs2)
    assert Queue(arrival, service, found, 0, ca2, cs2).level(within) >= level - 1e-12
    fewer = Queue(arrival, service, found - 1, 0, ca2, cs2)
    assert fewer.level(within) < level + 1e-12
    assert not fewer.stable or found > fewest_stable(arrival, service)


# -- many workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "workers", "log_b", "log_c"),
    [
        (9999.9, 10_000, -4.8370687790436499567, -0.0012502100106919463),
        (9900, 10_000, -5.8575888551614685864, -1.5015843271698179102),
        (100, 10_000, -36157.2259769334397750, -36157.2159265975862736),
        (99_900, 100_000, -6.2553119892118304125, -0.4185602081988958551),
        (99_999.999, 100_000, -5.9839381104345571569, -3.9599994232956256e-06),
        (10_000, 10_000, -4.8362749376262491436, 0.0),
    ],
)
def test_many_workers(offered: float, workers: int, log_b: float, log_c: float) -> None:
    """Against the recurrence in decimal numbers of 50 digits."""
    assert log_erlang_b(offered, workers) == pytest.approx(log_b, rel=1e-12)
    assert log_erlang_c(offered, workers) == pytest.approx(log_c, rel=1e-8, abs=1e-12)
    for value in Queue(offered, 1, workers).data().values():
        assert math.isfinite(value) or offered == workers


def test_ten_million_workers_are_as_halfin_and_whitt_say() -> None:
    """C → 1/(1 + β·Φ(β)/φ(β)) with c = a + β·√a (*Heavy-traffic limits for queues with many exponential servers*, 1981)."""
    offered, beta = 1e7, 1.0
    phi, below = math.exp(-0.5) / math.sqrt(2 * math.pi), (1 + math.erf(math.sqrt(0.5))) / 2
    assert erlang_c(offered, round(offered + beta * math.sqrt(offered))) == pytest.approx(
        1 / (1 + below / phi), rel=1e-3
    )
    assert erlang_b(offered, 10_000_000) == pytest.approx(math.sqrt(2 / math.pi / offered), rel=1e-3)


def test_the_fewest_of_many() -> None:
    found = workers_for(9000, 1, 0.01, 0.99)
    assert Queue(9000, 1, found).level(0.01) >= 0.99 > Queue(9000, 1, found - 1).level(0.01)


# -- edges -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 10_000])
def test_nothing_arrives(workers: int) -> None:
    queue = Queue(0, 2, workers, 0.25)
    assert (queue.p0, queue.p_wait, queue.lq, queue.l, queue.wq, queue.throughput) == (1, 0, 0, 0, 0, 0)
    assert (queue.w, queue.response, queue.level(0), queue.percentile(0.99)) == (0.5, 0.75, 1, 0)
    assert queue.stable and queue.utilisation == 0
    assert workers_for(0, 2, 0, 0.99) == fewest_stable(0, 2) == 0


@pytest.mark.parametrize(
    ("arrival", "service", "workers"), [(3, 1, 3), (4, 1, 3), (0.3, 0.1, 3), (1e300, 1, 3), (1, 1, 0)]
)
def test_no_steady_state(arrival: float, service: float, workers: int) -> None:
    queue = Queue(arrival, service, workers)
    assert not queue.stable
    assert [queue.lq, queue.l, queue.wq, queue.w, queue.response, queue.percentile(0.5)] == [math.inf] * 6
    assert (queue.p0, queue.p_wait, queue.level(1e9)) == (0, 1, 0)
    assert queue.throughput == min(arrival, workers * service)
    assert 0 < queue.erlang_b <= 1


def test_nearly_full() -> None:
    gaps = [10.0**-n for n in range(1, 11)]
    queues = [Queue(4 * (1 - gap), 1, 4) for gap in gaps]
    for gap, queue in zip(gaps, queues, strict=True):
        assert queue.wq * gap * 4 == pytest.approx(queue.p_wait, rel=1e-5)
    assert queues[-1].p_wait == pytest.approx(1, abs=1e-9)


def test_where_nothing_varies_nobody_waits() -> None:
    queue = Queue(3.9, 1, 4, 0.0, 0, 0)
    assert (queue.wq, queue.p_wait, queue.level(0), queue.percentile(0.99)) == (0, 0, 1, 0)
    assert workers_for(3.9, 1, 0, 0.99, arrival_cv2=0, service_cv2=0) == 4
    assert not Queue(4, 1, 4, 0.0, 0, 0).stable


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((-1, 1, 1), "arrival"), ((math.nan, 1, 1), "arrival"), ((math.inf, 1, 1), "arrival"), ((1, 0, 1), "service"),
     ((1, -1, 1), "service"), ((1e300, 1e-300, 1), "service"), ((1, 1, -1), "workers"), ((1, 1, 1.5), "workers"),
     ((1, 1, 1, -1), "dispatch"), ((1, 1, 1, 0, -1), "arrival_cv2"), ((1, 1, 1, 0, 1, math.nan), "service_cv2")],
)  # fmt: skip
def test_what_is_no_queue(arguments: tuple[float, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Queue(*arguments)  # type: ignore[arg-type]


def test_what_is_no_question() -> None:
    queue = Queue(1, 1, 2)
    with pytest.raises(ValueError, match="within"):
        queue.level(-1)
    for part in (-0.1, 1, math.nan):
        with pytest.raises(ValueError, match="part"):
            queue.percentile(part)
        with pytest.raises(ValueError, match="level"):
            workers_for(1, 1, 1, part)
    with pytest.raises(ValueError, match="counted"):
        fewest_stable(1e20, 1)


# -- simulated queues --------------------------------------------------------------------------------------------------


def test_waits_of_a_queue_that_can_be_done_by_hand() -> None:
    items = [(0, 5), (1, 5), (1, 1), (0, 1), (10, 1)]  # two workers: busy until 5 and 6
    assert list(waits(items, 2)) == [0, 0, 3, 4, 0]
    assert list(waits(items, 1)) == [0, 4, 8, 9, 0]


@pytest.mark.parametrize(("workers", "rho", "steps"), [
    (1, 0.5, 1200), (1, 0.7, 1200), (1, 0.9, 1200), (4, 0.5, 1200), (4, 0.7, 1200), (4, 0.9, 600),
    (16, 0.7, 2000), (16, 0.8, 1200), (16, 0.9, 600), (64, 0.9, 1200),
])  # fmt: skip
def test_the_mean_wait_is_that_of_a_simulation(workers: int, rho: float, steps: int) -> None:
    assert walk(rho * workers * 2, 2, workers, steps, seed=1) == pytest.approx(
        Queue(rho * workers * 2, 2, workers).wq, rel=0.02
    )


@pytest.mark.parametrize(("workers", "rho"), [(1, 0.5), (4, 0.7)])
def test_items_wait_as_long_one_by_one(workers: int, rho: float) -> None:
    queue = Queue(rho * workers, 1, workers)
    found = simulate(queue.arrival, 1, workers, 400_000, seed=3)
    assert abs(found.mean - queue.wq) < 3 * found.error < 0.06 * queue.wq
    late = simulate(queue.arrival, 1, workers, 400_000, seed=4, within=1.0)
    assert abs(late.mean - queue.longer(1.0)) < 3 * late.error < 0.06 * late.mean


@cache
def simulated(ca2: float, cs2: float) -> float:
    return simulate(3.2, 1, 4, 300_000, 5, (ca2, cs2)).mean


@pytest.mark.parametrize(
    ("ca2", "cs2", "most"), [(1, 0, 0.05), (1, 4, 0.1), (0.25, 1, 0.3), (0.25, 0.25, 0.45), (4, 1, 0.3)]
)
def test_the_correction_is_far_nearer_than_none(ca2: float, cs2: float, most: float) -> None:
    """As docs/capacity.md states its errors; exact it is for one worker and Poisson arrivals only."""
    queue, plain = Queue(3.2, 1, 4, 0.0, ca2, cs2), Queue(3.2, 1, 4)
    error = abs(queue.wq / simulated(ca2, cs2) - 1)
    assert error < most < abs(plain.wq / simulated(ca2, cs2) - 1)
