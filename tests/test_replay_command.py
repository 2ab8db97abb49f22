"""The command replay: its table, its JSON, its picture, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from flatfleet import run
from flatfleet.commands import exits

ROWS = [(at, 20 + at % 7 * 40) for at in range(0, 600, 2)]


def replay(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        exits.leave(run.main, ["replay", *map(str, argv)])
    out, err = capsys.readouterr()
    return caught.value.code, out, err  # type: ignore[return-value]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "day.csv"
    path.write_text("arrival_s,output_tokens\n" + "".join(f"{at},{tokens}\n" for at, tokens in ROWS))
    return path


@pytest.fixture
def over(trace: Path) -> list[object]:
    return ["--trace", trace, "--service", "0.5 + 0.02*output_tokens"]


def test_policies_side_by_side(capsys: pytest.CaptureFixture[str], over: list[object], tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("mode: target\nmax: 9\nscale_up_rate: 4\ncost: {per_worker_hour: 2}\n")
    code, out, err = replay(
        capsys, "--policy", tmp_path / "mine.yml", "--policy", "fixed:4", "--policy", "hpa:1", *over
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "day.csv: 300 requests in 9m58s, 1.65 busy on average, start-up 30s, SLO: wait ≤ 5s for 95%"
    assert lines[2].split() == [
        "policy",
        "≤",
        "5s",
        "mean",
        "wait",
        "p50",
        "p95",
        "worker-hours",
        "peak",
        "starts+stops",
        "busy",
        "cost",
    ]
    rows = {line.split()[0]: line.split() for line in lines[3:6]}
    assert list(rows) == ["mine", "fixed:4", "hpa:1"]
    assert rows["fixed:4"] == ["fixed:4", "100.00%", "✓", "0s", "0s", "0s", "0.7", "4", "0", "41.09%", "–"]
    assert float(rows["mine"][-1]) > 0
    work = sum(0.5 + 0.02 * tokens for _, tokens in ROWS) / 3600
    assert f"no fleet can do it in less than {work:.4g} worker-hours" in lines[-1]


def test_json_and_the_picture(capsys: pytest.CaptureFixture[str], over: list[object], tmp_path: Path) -> None:
    argv = [
        "--policy",
        "auto",
        "--policy",
        "clairvoyant",
        *over,
        "--plot",
        tmp_path / "new" / "plots",
        "--price",
        3,
        "--json",
    ]
    code, out, _ = replay(capsys, *argv)
    told = json.loads(out)
    assert (code, told["requests"], told["slo"], told["failed"]) == (0, 300, {"wait": 5, "level": 0.95}, [])
    auto, known = told["policies"]
    assert (auto["policy"], auto["requests"], auto["unfinished"]) == ("auto", 300, 0)
    assert auto["cost"] == pytest.approx(3 * auto["worker_hours"])
    assert known["slo"] == 1
    assert known["worker_hours"] > told["floor_worker_hours"] == pytest.approx(told["work"] / 3600)
    assert told["plots"] == [str(tmp_path / "new" / "plots" / "replay.svg")]
    assert ET.parse(told["plots"][0]).getroot().tag.endswith("svg")
    assert replay(capsys, *argv)[1] == out


def test_conditions_matter(capsys: pytest.CaptureFixture[str], over: list[object]) -> None:
    """A slower start, another seed of losses, another interval and another objective each give something else."""
    base = ["--policy", "reactive", *over, "--json"]

    def row(*more: object) -> dict[str, float]:
        return json.loads(replay(capsys, *base, *more)[1])["policies"][0]

    plain = row()
    assert row("--startup", "2m")["wait_mean"] > plain["wait_mean"]
    assert row("--interval", "60")["decisions"] < plain["decisions"] / 5
    assert row("--slo", "100ms@99%")["slo"] < plain["slo"]
    assert row("--scale", "0.5")["requests"] < 200
    assert row("--spot-loss", "30")["lost"] > 0
    assert row("--spot-loss", "30", "--seed", "4") != row("--spot-loss", "30")
    assert row("--seed", "4") == plain


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("slo<0.99", "fixed:1: slo is 0.0"),
        ("slo < 95%", "fixed:1: slo is "),
        ("wait_p95>5s", "fixed:1: wait_p95 is "),
        ("utilisation>=0.9", "fixed:1: utilisation is "),
        ("starts+stops==0", "fixed:1: flaps is 0, and that fails: starts+stops==0"),
    ],
)
def test_fail_if(capsys: pytest.CaptureFixture[str], over: list[object], condition: str, said: str) -> None:
    argv = ["--policy", "fixed:1", *over, "--fail-if", "peak>9", "--fail-if", condition]
    code, out, _ = replay(capsys, *argv)
    assert code == 1
    assert out.splitlines()[-1].startswith(said)
    code, out, _ = replay(capsys, *argv, "--json")
    assert code == 1
    assert [line.startswith(said) for line in json.loads(out)["failed"]] == [True]
    assert replay(capsys, "--policy", "fixed:1", *over, "--fail-if", "peak>9")[0] == 0


def test_requests_that_do_not_end_are_told(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    argv = ["--policy", "fixed:1", "--trace", trace, "--service", "60000", "--fail-if", "unfinished>0"]
    code, out, _ = replay(capsys, *argv)
    assert code == 1
    assert "fixed:1: 299 requests had not ended a day later" in out
    assert "∞" in out
    assert json.loads(replay(capsys, *argv, "--json")[1])["policies"][0]["wait_p95"] is None


def test_recorded_decisions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log, policy, other = (tmp_path / name for name in ("log.jsonl", "mine.yml", "other.yml"))
    policy.write_text("mode: target\nmax: 50\nscale_up_rate: null\ncooldown_period: 0\ntarget_utilization: 1\n")
    other.write_text(policy.read_text().replace("50", "8"))
    seen = {"workers": 2, "target": 2, "waiting": 10, "claimed": 2, "expired": 0}
    records = [
        {"seen": {**seen, "at": at, "measured": at}, "desired": 12, "outcome": "up", "raw": 12.0} for at in (0, 10)
    ]
    log.write_text("\n".join(map(json.dumps, records)))
    code, out, _ = replay(capsys, "--policy", policy, "--policy", other, "--trace", log, "--fail-if", "differences>1")
    lines = out.splitlines()
    assert code == 1
    assert lines[:2] == ["mine: 2 decisions, 0 come out differently", "other: 2 decisions, 2 come out differently"]
    assert lines[2].startswith("  line 1: desired 12 → 8 (target: ")
    assert lines[-1] == "other: differences is 2, and that fails: differences>1"
    code, out, _ = replay(capsys, "--policy", other, "--trace", log, "--json")
    told = json.loads(out)
    assert (code, told["policies"][0]["differences"], told["policies"][0]["changed"][1]["line"]) == (0, 2, 2)
    assert told["policies"][0]["changed"][0]["changed"] == {"desired": {"then": 12, "now": 8}}
    code, _, err = replay(capsys, "--policy", "hpa", "--trace", log)
    assert (code, "a baseline decides nothing by what a log has seen" in err) == (2, True)


def test_an_empty_log_passes_no_build(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (log := tmp_path / "log.jsonl").write_text("")
    code, out, err = replay(capsys, "--policy", "auto", "--trace", log, "--fail-if", "differences>0")
    assert (code, out, "has no decision in it" in err) == (2, "", True)


def test_a_run_of_too_many_decisions_is_refused_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (trace := tmp_path / "long.csv").write_text("arrival_s,service\n0,1\n\n5,1\n1e9,1\n1e9,1\n")
    code, out, err = replay(capsys, "--policy", "auto", "--trace", trace)
    assert (code, out) == (2, "")
    assert (
        "auto: from 0 to 1000000000 s there would be 100,000,000 decisions, one each 10 s, and 5,000,000 at most" in err
    )
    assert f"a longer interval takes fewer; the longest gap is 1e+09 s, at {trace}:5: are these milliseconds?" in err


def test_the_clairvoyant_alone_is_drawn(capsys: pytest.CaptureFixture[str], over: list[object], tmp_path: Path) -> None:
    code, out, _ = replay(capsys, "--policy", "clairvoyant", *over, "--plot", tmp_path / "pz")
    assert (code, out.splitlines()[-1]) == (0, f"wrote {tmp_path / 'pz' / 'replay.svg'}")
    assert (tmp_path / "pz" / "replay.svg").stat().st_size > 1000


def test_a_picture_of_no_time_is_missed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (trace := tmp_path / "one.csv").write_text("arrival_s,service\n5,0\n")
    code, out, _ = replay(capsys, "--policy", "clairvoyant", "--trace", trace, "--plot", tmp_path / "pz")
    assert (code, out.splitlines()[-1].startswith("no picture: ")) == (0, True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--trace", "x.csv"], "replay needs --policy, as in: flatfleet replay --policy auto"),
        (["--policy", "auto"], "replay needs --trace"),
        (["--policy", "auto", "--trace", "no.csv"], "cannot read no.csv: No such file or directory"),
        (["--policy", "aut", "--trace", "no.csv"], "Did you mean 'auto'?"),
        (["--policy", "auto", "--trace", "x", "--slo", "5s"], "--slo: '5s' is no objective"),
        (["--policy", "auto", "--trace", "x", "--slo", "0s@5%", "--scale", "0"], "--scale: '0' is no number above 0"),
        (["--policy", "auto", "--trace", "x", "--interval", "0"], "--interval: '0' is no time of 0.01 s at least"),
        (["--policy", "auto", "--trace", "x", "--startup", "soon"], "--startup: 'soon' is no number of seconds"),
        (["--policy", "auto", "--trace", "x", "--spot-loss", "-1"], "--spot-loss: '-1' is no number of at least 0"),
        (["--policy", "auto", "--trace", "x", "--fail-if", "slow<1"], "unknown number 'slow' in 'slow<1'"),
        (["--policy", "auto", "--trace", "x", "--polcy", "y"], "unknown flag '--polcy' for replay"),
        (["--policy", "auto", "--trace", "x.jsonl", "--fail-if", "slo<1"], "unknown number 'slo' in 'slo<1' — known: dec"),
    ],
)  # fmt: skip
def test_what_is_refused(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    code, out, err = replay(capsys, *argv)
    assert (code, out) == (2, "")
    assert said in err


def test_the_service_has_to_be_said(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    code, _, err = replay(capsys, "--policy", "auto", "--trace", trace)
    assert (code, "has no column 'service': say how long a request takes" in err) == (2, True)
    code, _, err = replay(capsys, "--policy", "auto", "--trace", trace, "--service", "tokens*2")
    assert (code, "unknown column 'tokens'" in err) == (2, True)
