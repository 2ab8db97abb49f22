"""The command capacity: its table, its JSON, its pictures, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from flatfleet import run
from flatfleet.commands import exits
from flatfleet.runtime.charts import chart, wide
from flatfleet.runtime.policies import slo
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.policies.queueing import Queue, workers_for
from flatfleet.runtime.policies.settings import settings

ROOT = Path(__file__).parents[1]
SEED = ["--arrival", "100", "--service", "120", "--dispatch", "0.005", "--workers", "1..8"]


def capacity(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        exits.leave(run.main, ["capacity", *argv])
    out, err = capsys.readouterr()
    return caught.value.code, out, err  # type: ignore[return-value]


def table(out: str) -> list[dict[str, str]]:
    """The rows under the line that begins with `workers`; heads have no blanks before they are split."""
    lines = out.replace("95% wait ≤", "p95").splitlines()
    start = next(n for n, line in enumerate(lines) if line.split()[:1] == ["workers"])
    rows = [line.split() for line in [*lines, ""][start : [*lines, ""].index("", start)]]
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = capacity(capsys, *SEED)
    assert (code, err) == (0, "")
    assert out.startswith("λ = 100/s, μ = 120/s a worker, offered load 0.8333, dispatch 5ms, M/M/c\n")
    rows = table(out)
    assert [row["workers"] for row in rows] == list("12345678")
    assert rows[0] == {
        "workers": "1", "ρ": "0.8333", "P0": "0.1667", "P(wait)": "0.8333", "Lq": "4.167", "L": "5", "Wq": "41.67ms",
        "W": "50ms", "T": "55ms", "p95": "140.7ms", "B": "0.4545", "done/s": "100",
    }  # fmt: skip
    assert rows[7]["T"] == "13.33ms"
    assert "ρ ≥ 1" not in out


def test_too_few_workers_and_the_fewest_for_an_slo(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--arrival", "100", "--service-time", "50ms", "--workers", "4,5,6..8", "--slo", "100ms@95%"]
    code, out, _ = capacity(capsys, *argv)
    assert code == 0
    assert [row["T"] for row in table(out)][:2] == ["∞", "∞"]
    assert [row["done/s"] for row in table(out)] == ["80", "100", "100", "100", "100"]
    assert "ρ ≥ 1 with fewer than 6 workers: the queue grows without end" in out
    assert "P(wait ≤ 100ms) ≥ 95% needs at least 7 workers, which reach 99.4" in out
    assert workers_for(100, 20, 0.1, 0.95) == 7


def test_the_dispatch_delay_is_part_of_what_an_slo_allows_as_in_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--arrival",
        "100",
        "--service-time",
        "50ms",
        "--workers",
        "6..9",
        "--slo",
        "100ms@95%",
        "--dispatch",
        "95ms",
    ]
    code, out, _ = capacity(capsys, *argv)
    assert code == 0
    assert "P(d + wait ≤ 100ms) ≥ 95% needs at least 10 workers" in out
    about = json.loads(capacity(capsys, *argv, "--json")[1])
    assert about["slo"]["reached"] == pytest.approx(Queue(100, 20, 10, 0.095).level(0.005))
    assert [row["service_level"] for row in about["rows"]] == pytest.approx(
        [Queue(100, 20, n, 0.095).level(0.005) for n in (6, 7, 8, 9)]
    )
    seen = Observation(at=0.0, workers=1, waiting=0, claimed=0, expired=0, target=1, dispatch=0.095)
    policy = slo.sized("slo", seen, settings({"mode": "slo", "slo": "100ms@95%"}), slo.Load(100, 0.05, 1, 1), {})
    assert policy.desired == about["slo"]["workers"] == 10
    assert capacity(capsys, *argv[:-1], "100ms")[0] == 0


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = capacity(
        capsys, "--arrival=6000/m", "--service=20", "--workers=5..6", "--slo", "0.1s@0.95", "--json"
    )
    told = json.loads(out)
    assert code == 0
    assert (told["arrival"], told["offered"], told["fewest_stable"]) == (100, 5, 6)
    five, six = told["rows"]
    assert (five["stable"], five["wq"], five["service_level"], five["throughput"]) == (False, None, 0, 100)
    queue = Queue(100, 20, 6)
    assert (six["wq"], six["p0"], six["service_level"]) == (queue.wq, queue.p0, queue.level(0.1))
    assert told["slo"] == {"within": 0.1, "level": 0.95, "workers": 7, "reached": Queue(100, 20, 7).level(0.1)}


def test_variability_is_used_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--arrival", "3", "--service", "1", "--workers", "4", "--arrival-cv2", "4", "--service-cv2", "0.5"]
    _, out, _ = capacity(capsys, *argv)
    assert "G/G/c, approximated: ca² = 4, cs² = 0.5" in out
    _, out, _ = capacity(capsys, *argv, "--json")
    assert json.loads(out)["rows"][0]["wq"] == pytest.approx(2.25 * Queue(3, 1, 4).wq)


def test_without_workers_the_rows_are_around_the_need(capsys: pytest.CaptureFixture[str]) -> None:
    for arrival in ("0.01", "100", "99999"):
        _, out, _ = capacity(capsys, "--arrival", arrival, "--service", "2", "--slo", "1ms@99%", "--json")
        told = json.loads(out)
        shown = [row["workers"] for row in told["rows"]]
        assert len(shown) <= 20
        assert max(1, told["fewest_stable"] - 1) == shown[0] <= told["slo"]["workers"] <= shown[-1]


def texts(path: Path) -> str:
    return "\n".join(ET.fromstring(path.read_text("utf-8")).itertext())


def test_the_pictures_of_the_documents_are_those_that_the_command_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = capacity(capsys, *SEED, "--plot", str(tmp_path / "new" / "folder"))
    assert code == 0
    for name in ("capacity-latency.svg", "capacity-throughput.svg"):
        path = tmp_path / "new" / "folder" / name
        assert f"wrote {path}" in out
        assert path.read_text("utf-8") == (ROOT / "docs/images" / name).read_text("utf-8")
    assert "answer, mean T · 13.33ms" in texts(tmp_path / "new/folder/capacity-latency.svg")
    assert "done · 100" in texts(tmp_path / "new/folder/capacity-throughput.svg")


def test_pictures_of_a_queue_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--arrival", "100", "--service", "1", "--plot", str(tmp_path)]
    assert capacity(capsys, *argv, "--workers", "90..200")[0] == 0
    assert "none below 101: ρ ≥ 1" in texts(tmp_path / "capacity-latency.svg")
    code, _, err = capacity(capsys, *argv, "--workers", "1..100")
    assert code == 2 and "no latency to draw; 101 are enough" in err
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):  # which exits.leave turns into a message and 2
        run.main(["capacity", "--arrival", "1", "--service", "2", "--plot", str(tmp_path / "file")])


GOOD = {"--arrival": "100", "--service": "120", "--workers": "1..8"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--arrival": None}, ["needs --arrival", "flatfleet capacity --arrival 100"]),
        ({"--service": None}, ["one of --service", "--service-time"]),
        ({"--service-time": "1s"}, ["one of --service", "--service-time"]),
        ({"--service": None, "--service-time": "0"}, ["--service-time is 0"]),
        ({"--arrival": "0"}, ["--arrival", "'0' is no rate above 0"]),
        ({"--arrival": "-5"}, ["--arrival", "no rate above 0"]),
        ({"--arrival": "ten"}, ["--arrival", "'ten'", "90/m"]),
        ({"--arrival": "1e400"}, ["--arrival", "no rate above 0"]),
        ({"--arrival": "nan"}, ["--arrival", "no rate above 0"]),
        ({"--arrival": "1e12"}, ["more than 10,000,000 workers do"]),
        ({"--service": "10/y"}, ["--service", "'10/y'"]),
        ({"--workers": "8..1"}, ["'8..1' counts down", "1..8"]),
        ({"--workers": "ten"}, ["'ten' is no number of workers"]),
        ({"--workers": "1-8"}, ["'1-8' is no number of workers"]),
        ({"--workers": "0..8"}, ["out of bounds"]),
        ({"--workers": "1..1000000"}, ["10,000 rows"]),
        ({"--workers": "99999999"}, ["1 to 10,000,000 workers"]),
        ({"--slo": "0.1s"}, ["'0.1s' is no wait and percentage", "0.1s@95%"]),
        ({"--slo": "0.1s@95"}, ["0.1s@95%"]),
        ({"--slo": "0.1s@100%"}, ["less than 100%"]),
        ({"--slo": "soon@95%"}, ["'soon'", "no number of seconds"]),
        ({"--slo": "100ms@95%", "--dispatch": "101ms"}, ["--dispatch alone takes 101ms", "no number of workers"]),
        ({"--dispatch": "-1"}, ["--dispatch", "no number of seconds"]),
        ({"--dispatch": "ms"}, ["--dispatch", "'ms'"]),
        ({"--arrival": "١٠٠"}, ["--arrival", "no rate above 0"]),
        ({"--arrival": "100\n"}, ["--arrival", "no rate above 0"]),
        ({"--dispatch": "٣s"}, ["--dispatch", "no number of seconds"]),
        ({"--dispatch": "1s\n"}, ["--dispatch", "no number of seconds"]),
        ({"--workers": "٣"}, ["--workers", "no number of workers"]),
        ({"--slo": "5s@95%\n"}, ["--slo", "no wait and percentage"]),
        ({"--slo": "5s@٩٥%"}, ["--slo", "no wait and percentage"]),
        ({"--service-cv2": "١"}, ["--service-cv2", "variance ÷ mean²"]),
        ({"--service": None, "--service-time": "0." + "0" * 310 + "1"}, ["--service-time", "too short"]),
        ({"--arrival-cv2": "-1"}, ["--arrival-cv2", "variance ÷ mean²"]),
        ({"--service-cv2": "inf"}, ["--service-cv2", "variance ÷ mean²"]),
        ({"--arival": "1"}, ["unknown flag '--arival'", "--arrival"]),
    ],
)
def test_refused(change: dict[str, str | None], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = [f"{flag}={value}" for flag, value in {**GOOD, **change}.items() if value is not None]
    code, out, err = capacity(capsys, *argv)
    assert (code, out) == (2, "")
    assert [word for word in words if word not in err] == []
    code, out, _ = capacity(capsys, *argv, "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "UsageError"


def test_the_level_is_told_as_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--arrival=100", "--service=30", "--slo=0.2s@99.9999%"]
    _, out, _ = capacity(capsys, *argv)
    last = out.splitlines()[-1]
    assert last.startswith("P(wait ≤ 200ms) ≥ 99.9999% needs at least ")
    reached = float(last.rpartition(" ")[2].removesuffix("%"))
    assert 99.9999 <= reached < 100


def test_figures_of_any_size_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    for rate in ("1e308", "1e17", "1e-300"):
        code, out, _ = capacity(capsys, f"--arrival={rate}", f"--service={rate}")
        assert (code, "nan" in out) == (0, False)
        assert max(map(len, out.split())) < 20
    code, out, _ = capacity(capsys, "--arrival=1e-300", "--service=1e300", "--slo=5s@95%")
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["1", "2"]
    assert "needs at least 1 worker, which reach" in out


# -- charts ------------------------------------------------------------------------------------------------------------


def drawn(svg: str, tag: str) -> list[Any]:
    return ET.fromstring(svg).findall(f".//{{http://www.w3.org/2000/svg}}{tag}")


def test_a_chart_leaves_out_what_has_no_place() -> None:
    lines = {"a <b>": {1: float("inf"), 2: 4.0, 3: 0.0, 4: 2.0}, "none": {1: float("nan")}}
    svg = chart("t & u", lines, across="x", log_y=True)
    assert len(drawn(svg, "polyline")) == 1 and len(drawn(svg, "circle")) == 2
    assert "a <b> · 2" in "".join(ET.fromstring(svg).itertext())
    assert len(drawn(chart("t", lines, across="x"), "circle")) == 3
    with pytest.raises(ValueError, match="nothing to draw for 't'"):
        chart("t", {"none": {1: float("inf")}}, across="x")


@pytest.mark.parametrize("log_y", [True, False])
@pytest.mark.parametrize(
    "lines", [{1: 10.0}, {1: 0.02, 2: 0.5}, {1: 7.0, 500: 7.0, 9_000: 123_456.0}, {1: 5e-7, 2: 9e8}]
)
def test_all_points_and_ticks_are_inside(lines: dict[float, float], log_y: bool) -> None:
    svg = chart("t", {"a": lines}, across="x", log_x=wide(lines), log_y=log_y)
    spots = [(float(each.get("cx")), float(each.get("cy"))) for each in drawn(svg, "circle")]
    assert len(spots) == len(lines)
    assert all(64 <= x <= 490 and 44 <= y <= 352 for x, y in spots)
    heights = [float(each.get("y1")) for each in drawn(svg, "line")]
    assert 2 <= len(set(heights)) <= 20 and all(44 <= y <= 352 for y in heights)


def test_what_is_wide() -> None:
    assert wide([1, 51]) and not wide([1, 50]) and not wide([0, 1, float("inf")]) and not wide([])
