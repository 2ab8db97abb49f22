"""Traces of arrivals and of rates: what is read, what is drawn, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import random
import statistics
from pathlib import Path

import pytest
from flatfleet.runtime.errors import SourceError, UsageError
from flatfleet.runtime.replay import expressions, traces

ARRIVALS = "arrival_s,output_tokens,service\n0.5,100,7\n\n1.5,0,8\n1.5,50,9\n"
RATES = "window_start_s,rate_per_s,other\n600,0.5,x\n1200,0,x\n1800,2,x\n"


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_arrivals_with_a_service_column_or_an_expression(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, ARRIVALS, name)
    trace = traces.read(path)
    assert list(trace.requests()) == [(0.5, 7), (1.5, 8), (1.5, 9)]
    assert (trace.start, trace.end, trace.work, len(trace)) == (0.5, 1.5, 24, 3)
    assert list(traces.read(path, "0.5 + 0.02*output_tokens").services) == [2.5, 0.5, 1.5]


def test_a_byte_order_mark_and_blanks_in_the_heads(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffarrival_s , service\r\n1,2\r\n")
    assert list(traces.read(path).requests()) == [(1, 2)]


def test_the_longest_gap_and_its_line(tmp_path: Path) -> None:
    assert traces.read(written(tmp_path, "arrival_s,service\n1,1\n\n3,1\n7,1\n9,1\n")).gap == (4, 5)
    assert traces.read(written(tmp_path, "arrival_s,service\n1,1\n")).gap == (0, 0)
    assert traces.read(written(tmp_path, RATES), "1").gap == (600, 3)


def test_requests_are_streamed(tmp_path: Path) -> None:
    """A wrong row is met when it is reached, and not before."""
    found = traces.requests(written(tmp_path, "arrival_s,service\n1,2\nx,2\n"))
    assert next(found) == (1, 2)
    with pytest.raises(SourceError, match=r"trace.csv:3: arrival_s is 'x'"):
        next(found)


def test_scale_takes_a_part_of_the_arrivals_or_each_several_times(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival_s,service\n" + "".join(f"{n},1\n" for n in range(4000)))
    part = traces.read(path, scale=0.25)
    assert 900 < len(part) < 1100
    assert set(part.arrivals) <= set(map(float, range(4000)))
    assert part.arrivals == traces.read(path, scale=0.25).arrivals != traces.read(path, scale=0.25, seed=1).arrivals
    more = traces.read(path, scale=2.5)
    assert 9800 < len(more) < 10200
    assert {list(more.arrivals).count(at) for at in range(50)} == {2, 3}
    assert traces.read(path, scale=0.25).end == 3999  # a thinned trace is as long as it was


def test_rates_are_poisson_within_their_window(tmp_path: Path) -> None:
    path = written(tmp_path, RATES)
    trace = traces.read(path, "exp(50)", scale=10)
    counts = [sum(start <= at < start + 600 for at in trace.arrivals) for start in (600, 1200, 1800)]
    assert counts[1] == 0
    assert counts[0] == pytest.approx(3000, abs=4 * 3000**0.5)
    assert counts[2] == pytest.approx(12000, abs=4 * 12000**0.5)
    assert (trace.start, trace.end) == (600, 2400)
    assert list(trace.arrivals) == sorted(trace.arrivals)
    late = [at for at in trace.arrivals if at >= 1800]
    gaps = [b - a for a, b in itertools.pairwise(late)]
    assert statistics.variance(gaps) / statistics.mean(gaps) ** 2 == pytest.approx(1, abs=0.08)
    assert statistics.mean(trace.services) == pytest.approx(50, rel=0.05)


def test_the_seed_decides_all_and_the_service_moves_no_arrival(tmp_path: Path) -> None:
    path = written(tmp_path, RATES)
    one, two, other = (traces.read(path, "exp(9)", seed=seed) for seed in (3, 3, 4))
    assert (one.arrivals, one.services) == (two.arrivals, two.services)
    assert one.arrivals != other.arrivals
    assert traces.read(path, "1", seed=3).arrivals == one.arrivals


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("time,tokens\n1,2\n", "needs arrival_s, or window_start_s and rate_per_s; its columns are time, tokens"),
        ("arrival_s,service\n", "has no request in it"),
        ("arrival_s,service\n2,1\n1,1\n", ":3: arrival_s is 1, which is before the row above; sort the trace by it"),
        ("arrival_s,service\nnan,1\n", ":2: arrival_s is nan, which is no moment in seconds"),
        ("arrival_s,service\n1,1\n1e12,1\n", ":3: arrival_s is 1e+12, which is no moment in seconds; are these milliseconds?"),
        ("arrival_s,service\n-1e12,1\n", ":2: arrival_s is -1e+12, which is no moment in seconds"),
        ("window_start_s,rate_per_s,service\n1,0,1\n2e12,0,1\n", ":3: window_start_s is 2e+12, which is no moment in seconds"),
        ("arrival_s,service\n1\n", ":2: service is '', which is no number"),
        ("arrival_s,service\n1,-2\n", ":2: 'service' comes to -2 s there"),
        ("arrival_s,tokens\n1,2\n", "has no column 'service': say how long a request takes"),
        ("window_start_s,rate_per_s,service\n0,1,1\n", ":2: a window begins after the one above it, and a trace of rates has"),
        ("window_start_s,rate_per_s,service\n0,1,1\n0,1,1\n", ":3: a window begins after the one above it"),
        ("window_start_s,rate_per_s,service\n0,-1,1\n9,1,1\n", ":2: a window needs a start and a rate of at least 0"),
    ],
)  # fmt: skip
def test_what_is_no_trace(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        traces.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*none\.csv: No such file"):
        traces.read(tmp_path / "none.csv")
    with pytest.raises(SourceError, match="cannot read"):
        traces.read(tmp_path)
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(ARRIVALS.encode())[:-9])
    (tmp_path / "latin.csv").write_bytes(b"arrival_s,service\n\xff,1\n")
    for name in ("half.csv.gz", "latin.csv"):
        with pytest.raises(SourceError, match=f"cannot read .*{name}"):
            traces.read(tmp_path / name, "1")


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown column 'output_token' in .*Did you mean 'output_tokens'"):
        traces.read(written(tmp_path, ARRIVALS), "0.02*output_token")


# -- expressions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "columns"),
    [
        ("50", 50, set()),
        (" 0.5 + 0.02*output_tokens ", 4.5, {"output_tokens"}),
        ("-(a - 3*b)/2 + +1", 2.5, {"a", "b"}),
        ("1e2 / exp", 5, {"exp"}),
        ("exp(0)*a", 0, {"a"}),
    ],
)
def test_expressions(text: str, value: float, columns: set[str]) -> None:
    found = expressions.parse(text)
    row = {"output_tokens": 200.0, "a": 3.0, "b": 2.0, "exp": 20.0}
    assert (found.value(row, random.Random(0)), found.columns) == (value, columns)


def test_exp_draws_with_a_mean_that_may_be_an_expression() -> None:
    found, rng = expressions.parse("1 + exp(2*a)"), random.Random(5)
    drawn = [found.value({"a": 4.0}, rng) for _ in range(20_000)]
    assert statistics.mean(drawn) == pytest.approx(9, rel=0.03)
    assert statistics.stdev(drawn) == pytest.approx(8, rel=0.05)
    assert min(drawn) > 1


@pytest.mark.parametrize(
    "text",
    ["", "1 +", "2**9", "a.b", "a[0]", "__import__('os')", "max(1, 2)", "exp(1, 2)", "exp(*a)", "exp(x=1)", "'1'", "True",
     "lambda: 1", "1 if a else 2", "a < 1", "1j", "1e999", "9" * 400, "(" * 400, "1+" * 249 + "1" * 9, "a := 1", "1 % 2"],
)  # fmt: skip
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expression"):
        expressions.parse(text)


def test_a_refused_part_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"numbers, columns, \+ - \* /, brackets and exp\(mean\): sqrt\(4\) is not known"
    ):
        expressions.parse("1 + sqrt(4)")


def test_division_by_a_column_that_is_0(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r":3: '1/output_tokens' comes to nan s there|:4: .* nan s there"):
        traces.read(written(tmp_path, ARRIVALS), "1/output_tokens")
