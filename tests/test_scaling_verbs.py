"""explain-scaling, pause-scaling, resume-scaling and scale --hold, in this process, over a real store."""

from __future__ import annotations

import asyncio
import io
import json
import time
from importlib import resources
from pathlib import Path

import pytest
from flatfleet import hooks
from flatfleet.commands import messages, run
from flatfleet.run import main
from flatfleet.runtime import fleet_settings
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.policies import deciding, naming
from flatfleet.runtime.policies.observation import Observation
from flatfleet.runtime.stores import open_store

SETTINGS = {"mode": "target", "max": 8, "scale_up_rate": None, "cooldown_period": 0}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLATFLEET_STORE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.fixture
def say(capsys):
    def run(*argv, code=0):
        capsys.readouterr()
        assert main(argv) == code
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def do(act):
    async def run():
        store = open_store("sqlite:fleet.db")
        try:
            await store.fleet("papers").set_target(4)
            return await act(store.fleet("papers"), store)
        finally:
            await store.close()

    return asyncio.run(run())


@pytest.fixture
def decided():
    """A fleet of 4 of which three decisions are recorded: it stays, goes to 8, and stays."""

    async def record(fleet, store):
        state, s = {}, fleet_settings.validate(SETTINGS)
        for n, (target, waiting) in enumerate([(4, 0), (4, 4), (8, 2)]):
            at = time.time() - 60 + 10 * n
            claimed = target if n != 0 else 3
            o = Observation(at, workers=target, target=target, waiting=waiting, claimed=claimed, expired=0, measured=at)
            decision, state = deciding.decide(o, s, state)
            about = {
                "id": f"auto-{n}",
                "fleet": "papers",
                "policy": naming.label(SETTINGS),
                "sent": decision.outcome != "hold",
            }
            await fleet.decide_policy({**about, **decision.data()})

    do(record)


def test_the_last_decision_is_explained(decided, say):
    lines = say("explain-scaling", "--last", "2").split("\n\n")[0].splitlines()
    assert "papers: 4 → 8: target: 8 items at 0.7 a worker; max = 8" in lines[0]
    assert lines[1].startswith(
        "  saw      workers 4 · starting 0 · draining 0 · target 4 · waiting 4 · claimed 4 · expired 0"
    )
    assert lines[2] == f"  policy   {naming.label(SETTINGS)}"
    assert f"  scaled by policy {naming.label(SETTINGS)}\n" in say("status")
    assert [line.split(maxsplit=1)[0] for line in lines[3:]] == ["wanted", "clamp", "clamp", "else", "sent"]
    assert lines[3] == "  wanted   11.429 by target: 8 items at 0.7 a worker"
    assert lines[5] == "  clamp    max 12 → 8: max = 8  ← binds"
    assert lines[6] == "  else     would be 12 but for max = 8"
    assert lines[7] == "  sent     the scaler was told (decision auto-1)"
    assert "stays at 8" in say("explain-scaling").splitlines()[0]
    assert "4 → 8" in say("explain-scaling", "--changes").splitlines()[0]


def test_as_json_there_is_one_decision_a_line_and_replay_decides_them_again(decided, say, tmp_path):
    text = say("explain-scaling", "--json")
    assert [json.loads(line)["id"] for line in text.splitlines()] == ["auto-0", "auto-1", "auto-2"]
    assert [json.loads(line)["id"] for line in say("explain-scaling", "--json", "--last", "1").splitlines()] == [
        "auto-2"
    ]
    (tmp_path / "log.jsonl").write_text(text)
    (tmp_path / "mine.yml").write_text(json.dumps(SETTINGS))
    (tmp_path / "other.yml").write_text(json.dumps({**SETTINGS, "max": 6}))
    assert say("replay", "--policy", "mine.yml", "--trace", "log.jsonl") == (
        "mine: 3 decisions, 0 come out differently\n"
    )
    told = say("replay", "--policy", "other.yml", "--trace", "log.jsonl")
    assert " 0 come" not in told
    assert f"  3 of them were decided by other settings then: {naming.label(SETTINGS)}\n" in told
    rows = json.loads(say("replay", "--policy", "other.yml", "--trace", "log.jsonl", "--json"))["policies"]
    assert rows[0]["others"] == {naming.label(SETTINGS): 3}


def test_a_fleet_without_an_autoscaler(say):
    do(lambda fleet, store: fleet.set_target(4))
    for argv in (["explain-scaling"], ["explain-scaling", "--json"]):
        with pytest.raises(
            UsageError, match=r"has no autoscaler .*; give the command that starts its workers --policy"
        ):
            main(argv)
    for wrong in ("0", "1001", "x"):
        with pytest.raises(UsageError, match="is no number from 1 to 1000"):
            main(["explain-scaling", "--last", wrong])


def test_the_autoscalers_decisions_are_no_pool_and_no_decision_of_the_scaler(decided, say):
    document = json.loads(say("status", "--json"))
    assert list(document["pools"]) == ["papers"]
    assert document["pools"]["papers"]["last_decision"] is None


def test_scaling_is_paused_and_resumed(say):
    do(lambda fleet, store: fleet.set_target(4))
    assert "is paused until it is resumed. To go on: flatfleet resume-scaling" in say("pause-scaling")
    told = do(lambda fleet, store: fleet.orders())
    assert (told["paused"], told["until"], told["by"]) == (True, None, messages.sender())
    assert f"  scaling is paused by {messages.sender()} until it is resumed\n" in say("status")
    document = json.loads(say("pause-scaling", "--for", "10m", "--json"))
    orders = do(lambda fleet, store: fleet.orders())
    assert orders["until"] == document["scaling_paused_until"]
    assert 500 < orders["until"] - time.time() <= 600
    about = json.loads(say("status", "--json"))["pools"]["papers"]["scaling"]
    assert about == {
        "paused": True, "paused_until": orders["until"], "paused_by": messages.sender(), "held_until": None, "held_by": None,
        "policy": None, "fault": None,
    }  # fmt: skip
    assert say("resume-scaling") == "scaling of papers is resumed\n"
    orders = do(lambda fleet, store: fleet.orders())
    assert orders["paused"] is False
    assert json.loads(say("resume-scaling", "--json"))["scaling_paused"] is False
    say("pause-scaling")
    assert do(lambda fleet, store: fleet.orders())["resumed_at"] >= orders["resumed_at"]


def test_an_autoscaler_that_cannot_decide_is_shown(decided, say):
    fault = {"at": time.time() - 61, "why": "OverflowError: too large", "store": False}
    do(lambda fleet, store: fleet.keep_fault(fault))
    told = "the autoscaler cannot decide, for 1m01s by now: OverflowError: too large\n"
    assert f"  {told}" in say("status")
    assert json.loads(say("status", "--json"))["pools"]["papers"]["scaling"]["fault"] == fault
    assert say("explain-scaling").startswith(f"papers: {told}\n")
    assert all(json.loads(line) for line in say("explain-scaling", "--json").splitlines())
    do(lambda fleet, store: fleet.keep_fault({}))
    assert "cannot" not in say("status") + say("explain-scaling")


def test_one_that_has_never_decided_says_why(say):
    do(lambda fleet, store: fleet.set_target(4))
    do(lambda fleet, store: fleet.keep_fault({"at": time.time(), "why": "locked", "store": True}))
    assert "papers: the autoscaler cannot decide, for " in say("explain-scaling")


def test_the_status_says_who_holds_the_target(say):
    ends = time.time() + 600
    do(lambda fleet, store: fleet.set_target(4))
    do(lambda fleet, store: fleet.keep_hold({"id": "d", "at": ends - 600, "until": ends, "by": "ann@there"}))
    about = json.loads(say("status", "--json"))["pools"]["papers"]["scaling"]
    assert (about["paused"], about["held_until"], about["held_by"]) == (False, ends, "ann@there")
    assert "  the target is held by ann@there until " in say("status")
    say("resume-scaling")
    assert "held" not in say("status")


def test_a_scale_message_may_hold_the_target(say):
    do(lambda fleet, store: fleet.set_target(4))
    say("scale", "8", "--hold", "10m")
    (signal,) = do(lambda fleet, store: store.signals.peek(fleet.channel))
    assert signal.data["hold"] == 600
    with pytest.raises(UsageError, match="hold"):
        main(["scale", "8", "--hold", "-1"])


def test_a_policy_that_is_none_is_refused_before_anything_starts(tmp_path):
    for policy, said in (("autoo", "Did you mean 'auto'"), (str(tmp_path), "no such file")):
        with pytest.raises(UsageError, match=said):
            main(["package:flatfleet/launcher.yml", "--policy", policy])
    assert not (tmp_path / "fleet.db").exists()


def test_settings_of_the_machine_that_is_run_count_where_no_policy_is_named(tmp_path):
    folder = Path(str(resources.files("flatfleet.machines")))
    text = (folder / "launcher.yml").read_text("utf-8").replace(": ./", f": {folder}/")
    mine = tmp_path / "mine.yml"
    mine.write_text(text.replace("settings: {max_steps: 0}", "settings: {max_steps: 0, fleet: {mode: target, max: 3}}"))
    assert run.parse([str(mine)], hooks.known).inputs["policy"] == {"mode": "target", "max": 3}
    assert run.parse([str(mine), "--policy", "auto"], hooks.known).inputs["policy"] == {"preset": "auto"}
    assert "policy" not in run.parse([str(folder / "launcher.yml")], hooks.known).inputs
    mine.write_text(text.replace("settings: {max_steps: 0}", "settings: {max_steps: 0, fleet: {mode: slow}}"))
    with pytest.raises(UsageError, match=r"settings\.fleet\.mode must be one of"):
        run.parse([str(mine)], hooks.known)
