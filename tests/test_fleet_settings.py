"""`settings.fleet`: every key and default, each preset, and what a wrong value is told."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from importlib import resources
from pathlib import Path

import pytest
import yaml
from flatfleet.runtime.errors import UsageError
from flatfleet.runtime.fleet_settings import PLACES, faults, validate
from flatfleet.runtime.policies.settings import (
    MODES,
    PREDICTORS,
    PRESETS,
    Cost,
    Entry,
    Settings,
    Slo,
    objective,
    seconds,
)
from jsonschema import Draft7Validator

SCHEMA = json.loads(resources.files("flatfleet.schemas").joinpath("fleet.schema.json").read_text("utf-8"))
DEFAULTS = {
    "mode": ("thresholds",), "min": 1, "max": 20, "workers": None, "interval": 10, "idle_terminate": 300,
    "target_utilization": 0.7, "scale_up_threshold": 0.8, "scale_down_threshold": 0.3, "queue_depth": 5, "max_wait": 1,
    "sla": None, "slo": None, "metrics_window": 60, "cooldown_period": (60, 60), "scale_up_rate": (1,),
    "scale_down_rate": (1,), "stabilization": (0, 0), "tolerance": (0.1, 0.1), "burst_capacity": 0, "burst_threshold": 2,
    "burst_time": 300, "flap_budget": None, "schedule": (), "predictor": "seasonal", "season": 86400, "cost": Cost(),
    "prefer_spot": False, "spot_wait": 120, "stale_after": 30, "preset": None,
}  # fmt: skip

GOOD = {
    "preset": [("auto", "auto"), (None, None)],
    "mode": [("target", ("target",)), (["target", "thresholds"], ("target", "thresholds")), ("fixed", ("fixed",))],
    "min": [(0, 0), (3.0, 3), (20, 20)],
    "max": [(1, 1), (100000, 100000)],
    "workers": [(7, 7), (None, None)],
    "interval": [(15, 15), ("250ms", 0.25)],
    "idle_terminate": [(0, 0), ("2m", 120)],
    "target_utilization": [(2, 2), (0.01, 0.01)],
    "scale_up_threshold": [(1, 1), (0.31, 0.31)],
    "scale_down_threshold": [(0, 0), (0.79, 0.79)],
    "queue_depth": [(0, 0), (99, 99)],
    "max_wait": [(0, 0), ("1.5s", 1.5)],
    "sla": [(2, 2), ("1h", 3600), (None, None)],
    "slo": [("5s@95%", Slo(5, 0.95)), ("100ms @ 99.9%", Slo(0.1, 0.999)),
     ({"wait": "1m", "level": 0.5}, Slo(60, 0.5)), (None, None)],
    "metrics_window": [("5m", 300)],
    "cooldown_period": [(0, (0, 0)), ("5m", (300, 300)), ({"up": 5}, (5, 60)), ({"up": 0, "down": "5m"}, (0, 300))],
    "scale_up_rate": [(5, (5,)), ("50%", ("50%",)), ([4, "100%"], (4, "100%")), (None, None)],
    "scale_down_rate": [(2, (2,)), (None, None)],
    "stabilization": [({"down": 300}, (0, 300)), (30, (30, 30))],
    "tolerance": [(0, (0, 0)), ({"up": 0.05}, (0.05, 0.1))],
    "burst_capacity": [(20, 20)],
    "burst_threshold": [(1, 1), (3.5, 3.5)],
    "burst_time": [("1m", 60)],
    "flap_budget": [(2, 2), (None, None)],
    "schedule": [
        ([], ()),
        ([{"cron": "0 9 * * mon-fri", "duration": "8h", "min": 5}], (Entry("0 9 * * mon-fri", 28800, "UTC", 5),)),
        ([{"cron": "* * * * *", "duration": 60, "zone": "Europe/Berlin", "max": 50, "target": 2}],
         (Entry("* * * * *", 60, "Europe/Berlin", None, 50, 2),)),
    ],
    "predictor": [("learned", "learned")],
    "season": [("1h", 3600)],
    "cost": [({"per_worker_hour": 0.5, "per_spot_hour": 0.2, "per_item": 0.01, "cost_threshold": 100, "budget": None},
              Cost(0.5, 0.2, 0.01, 100, None))],
    "prefer_spot": [(True, True)],
    "spot_wait": [(0, 0)],
    "stale_after": [("1m", 60), (None, 30)],
}  # fmt: skip

WORKERS = "a whole number from 0 to 100000"
SECONDS = "0 s to 365 d, as a number of seconds or a text such as '90s', '5m', '2h' (ms, s, m, h, d)"
PERIOD = "0.001 s to 365 d, as a number of seconds or a text such as '90s', '5m', '2h' (ms, s, m, h, d)"
RHYTHM = PERIOD.replace("0.001", "0.01")
BOTH = "0 s to 365 d, as a number of seconds, a text such as '5m', or both ways apart, such as {up: 0, down: 5m}"
RATE = (
    "a whole number of workers of at least 1, a percentage such as '50%', a list of these (the largest counts), "
    "or null (no limit)"
)
MODE = "one of fixed, thresholds, target, latency, slo, predictive, or a list of them"
SHARE = "a number from 0 to 1"
HUGE = 10**400
BAD = [
    ("preset", "agressive", "one of aggressive, reactive, conservative, auto, or null", "Did you mean 'aggressive'?"),
    ("mode", "treshold", MODE, "Did you mean 'thresholds'?"),
    ("mode", ["slo", "latancy"], MODE, "Did you mean 'latency'?"),
    ("mode", [], MODE, ""),
    ("mode", ["target", "target"], MODE, ""),
    ("min", -1, WORKERS, ""),
    ("min", 1.5, WORKERS, ""),
    ("min", True, WORKERS, ""),
    ("min", "3", WORKERS, ""),
    ("max", 0, "a whole number from 1 to 100000", ""),
    ("max", 100001, "a whole number from 1 to 100000", ""),
    ("workers", "all", WORKERS + ", or null", ""),
    ("interval", 0, RHYTHM, ""),
    ("interval", "0s", RHYTHM, ""),
    ("idle_terminate", "5 minutes", SECONDS, ""),
    ("idle_terminate", -1, SECONDS, ""),
    ("target_utilization", 0, "a number from 0.001 to 1000", ""),
    ("scale_up_threshold", 80, SHARE, ""),
    ("scale_down_threshold", -0.1, SHARE, ""),
    ("queue_depth", 2.5, "a whole number from 0 to 1000000000", ""),
    ("max_wait", None, SECONDS, ""),
    ("sla", 0, "0.001 s to 365 d, as a number of seconds or a text such as '90s', or null", ""),
    ("slo", "5s", "a wait and the share of items that keep it, such as '5s@95%' or {wait: 5, level: 0.95}", ""),
    ("slo", "5s@100%", "a wait and the share of items that keep it, such as '5s@95%' or {wait: 5, level: 0.95}", ""),
    ("slo", "0s@95%", "a wait and the share of items that keep it, such as '5s@95%' or {wait: 5, level: 0.95}", ""),
    ("metrics_window", "x", RHYTHM, ""),
    ("cooldown_period", "soon", BOTH, ""),
    ("scale_up_rate", 0, RATE, ""),
    ("scale_up_rate", "0%", RATE, ""),
    ("scale_down_rate", [1, "half"], RATE, ""),
    ("stabilization", True, BOTH, ""),
    ("tolerance", 2, SHARE + ", or both ways apart, such as {up: 0.1, down: 0.2}", ""),
    ("burst_capacity", -2, WORKERS, ""),
    ("burst_threshold", 0.5, "a number from 1 to 1000000", ""),
    ("burst_time", 0, RHYTHM, ""),
    ("flap_budget", 1, "a whole number from 2 to 1000000000, or null", ""),
    ("schedule", "daily", "a list of mappings such as {cron: '0 9 * * mon-fri', duration: 8h, min: 5}", ""),
    ("predictor", "seasnal", "one of seasonal, learned", "Did you mean 'seasonal'?"),
    ("season", 5, "60 s to 31 d, as a number of seconds or a text such as '1d'", ""),
    ("cost", 5, "a mapping such as {per_worker_hour: 0.5, cost_threshold: 100}", ""),
    ("prefer_spot", "yes", "true or false", ""),
    ("spot_wait", [], SECONDS, ""),
    ("interval", 0.009, RHYTHM, ""),
    ("interval", "9ms", RHYTHM, ""),
    ("interval", "366d", RHYTHM, ""),
    ("interval", "90s\n", RHYTHM, ""),
    ("interval", "9\ns", RHYTHM, ""),
    ("interval", "٣s", RHYTHM, ""),
    ("metrics_window", "1ms", RHYTHM, ""),
    ("burst_time", "0.001s", RHYTHM, ""),
    (
        "stale_after",
        1e-9,
        "0.01 s to 365 d, as a number of seconds or a text such as '90s', or null (three intervals)",
        "",
    ),
    ("idle_terminate", "1000d", SECONDS, ""),
    ("slo", "5s@95%\n", "a wait and the share of items that keep it, such as '5s@95%' or {wait: 5, level: 0.95}", ""),
    (
        "slo",
        "5s@99.9999999999%",
        "a wait and the share of items that keep it, such as '5s@95%' or {wait: 5, level: 0.95}",
        "",
    ),
    ("slo", "0.1ms@95%", PERIOD, ""),
    ("target_utilization", 1e-300, "a number from 0.001 to 1000", ""),
    ("queue_depth", HUGE, "a whole number from 0 to 1000000000", ""),
    ("burst_threshold", HUGE, "a number from 1 to 1000000", ""),
    ("flap_budget", HUGE, "a whole number from 2 to 1000000000, or null", ""),
    (
        "stale_after",
        -1,
        "0.01 s to 365 d, as a number of seconds or a text such as '90s', or null (three intervals)",
        "",
    ),
]

ENTRY = {"cron": "0 9 * * *", "duration": "8h", "min": 2}
DEEPER = [
    ({"max": float("nan")}, "settings.fleet.max must be a finite number, got nan"),
    ({"cost": {"budget": float("inf")}}, "settings.fleet.cost.budget must be a finite number, got inf"),
    ({"slo": {"wait": 5}}, "settings.fleet.slo has no level; it needs wait and level"),
    ({"slo": {"wait": 5, "level": 95}}, "settings.fleet.slo.level must be a number between 0 and 1, got 95"),
    ({"stabilization": {"upp": 3}},
     "unknown key 'upp' in settings.fleet.stabilization — known: down, up. Did you mean 'up'?"),
    ({"stabilization": {"up": -3}}, f"settings.fleet.stabilization.up must be {SECONDS}, got -3"),
    ({"cost": {"budgt": 1}}, "unknown key 'budgt' in settings.fleet.cost — known: budget, cost_threshold, per_item, "
                             "per_spot_hour, per_worker_hour. Did you mean 'budget'?"),
    ({"cost": {"budget": -1}}, "settings.fleet.cost.budget must be a number from 0 to 1e12, or null, got -1"),
    *(({"cost": {name: HUGE}}, f"settings.fleet.cost.{name} must be a number from 0 to 1e12, or null, got {str(HUGE)[:80]}…")
      for name in Cost._fields),
    ({"stabilization": {"up": "999999d"}}, f'settings.fleet.stabilization.up must be {SECONDS}, got "999999d"'),
    ({"pool": "papers\n"}, 'settings.fleet.pool must be the name of a pool, or null, got "papers\\n"'),
    ({"cost_threshold": 1},
     "unknown key 'cost_threshold' in settings.fleet — it stands in cost, as settings.fleet.cost.cost_threshold"),
    ({"schedule": [{"cron": "0 9 * * *", "duration": "8h"}]},
     "settings.fleet.schedule[0] sets nothing; it needs min, max or target"),
    ({"schedule": [ENTRY, {"min": 2, "duration": 60}]}, "settings.fleet.schedule[1] has no cron; it needs cron and duration"),
    ({"schedule": [{**ENTRY, "cron": "0 25 * * *"}]},
     "settings.fleet.schedule[0].cron: hour '25' is none of: *, 0 to 23, a-b, */n"),
    ({"schedule": [{**ENTRY, "zone": "Mars"}]},
     "settings.fleet.schedule[0].zone: 'Mars' is no known time zone, such as UTC or Europe/Berlin"),
    ({"schedule": [{**ENTRY, "duration": "8d"}]}, 'settings.fleet.schedule[0].duration must be 60 s to 7 d, got "8d"'),
    ({"season": "40d"}, 'settings.fleet.season must be 60 s to 31 d, got "40d"'),
    ({"min": 5, "max": 3}, "settings.fleet.min is 5, which is more than max, 3"),
    ({"preset": "aggressive", "max": 3}, "settings.fleet.min is 5, which is more than max, 3"),
    ({"mode": "slo"}, "settings.fleet.slo is missing: mode slo needs it, such as slo: 5s@95%"),
    ({"mode": "predictive"}, "settings.fleet.mode is predictive alone, which only scales up: name another beside it, such as "
                             "[predictive, target]"),
    ({"mode": ["fixed", "target"]}, "settings.fleet.mode is [fixed, target]: fixed stands alone"),
    ({"mode": "fixed", "workers": 30}, "settings.fleet.workers is 30, which is not within min and max, 1 to 20"),
    ({"scale_down_threshold": 0.8},
     "settings.fleet.scale_down_threshold is 0.8, and must be less than scale_up_threshold, 0.8: "
                                    "else the fleet goes up and down for ever"),
    ({"stale_after": 5}, "settings.fleet.stale_after is 5 s, which is less than interval, 10 s"),
    ({"schedule": [{**ENTRY, "min": 30}]}, "settings.fleet.schedule[0]: min is 30, which is more than max, 20"),
    ([3], "settings.fleet must be a mapping of settings, got [3]"),
]  # fmt: skip


def test_the_defaults_are_the_documented_ones():
    made = validate({})
    assert {each.name: getattr(made, each.name) for each in fields(Settings)} == DEFAULTS
    assert validate(None) == made == Settings()


def test_the_schema_says_the_same_defaults_and_names():
    assert set(SCHEMA["properties"]) - set(PLACES) == set(DEFAULTS) == set(GOOD)
    for name, part in SCHEMA["properties"].items():
        if part["default"] is not None:
            assert getattr(validate({name: part["default"]}), name) == DEFAULTS[name], name
        assert part["description"], name
    assert SCHEMA["properties"]["preset"]["enum"] == [*PRESETS, None]
    assert tuple(SCHEMA["definitions"]["modeName"]["enum"]) == MODES
    assert tuple(SCHEMA["properties"]["predictor"]["enum"]) == PREDICTORS
    assert set(SCHEMA["properties"]["cost"]["properties"]) == set(Cost._fields)
    assert set(SCHEMA["definitions"]["entry"]["properties"]) == set(Entry._fields)
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(("name", "value", "read"), [(name, *each) for name, rows in GOOD.items() for each in rows])
def test_a_good_value(name, value, read):
    assert getattr(validate({name: value}), name) == read


def shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"


@pytest.mark.parametrize(("name", "value", "allowed", "meant"), BAD)
def test_a_wrong_value_says_where_what_and_what_is_allowed(name, value, allowed, meant):
    (line,) = faults({name: value})
    said = f"settings.fleet.{name} must be {allowed}, got {shown(value)}"
    assert line == (f"{said}. {meant}" if meant else said)


def test_patterns_mean_the_whole_text_and_digits_of_one_script():
    found = [each for name, each in walked(SCHEMA) if name == "pattern"]
    assert len(found) > 5
    assert [each for each in found if "\\d" in each or "\\s" in each or not each.endswith("$(?!\\n)")] == []


def walked(part):
    for name, each in part.items() if isinstance(part, dict) else enumerate(part):
        yield name, each
        if isinstance(each, dict | list):
            yield from walked(each)


def test_every_key_has_a_wrong_value_in_the_tests():
    assert {name for name, *_ in BAD} == set(DEFAULTS)


@pytest.mark.parametrize(("data", "said"), DEEPER)
def test_a_wrong_place_or_combination(data, said):
    assert faults(data) == [said]


def test_an_unknown_key_says_which_are_known():
    (line,) = faults({"max_workers": 3})
    assert line.startswith("unknown key 'max_workers' in settings.fleet — known: burst_capacity, ")
    (line,) = faults({"cooldown": 3})
    assert line.endswith("Did you mean 'cooldown_period'?")


def test_all_faults_are_told_at_once_and_with_their_place():
    with pytest.raises(UsageError) as caught:
        validate({"min": -1, "max": "x", "mod": 1}, "machines/a.yml: settings.fleet")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all("machines/a.yml: settings.fleet" in line for line in lines)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("aggressive", {"min": 5, "max": 50, "scale_up_rate": (5,), "scale_down_rate": (1,), "predictor": "learned"}),
        ("reactive", {"min": 0, "max": 100, "burst_capacity": 20, "idle_terminate": 120}),
        ("conservative", {"min": 1, "max": 5, "cost": Cost(cost_threshold=100), "prefer_spot": True}),
        ("auto", {"min": 1, "max": 20, "target_utilization": 0.7, "scale_up_threshold": 0.8, "scale_down_threshold": 0.3,
                  "cooldown_period": (60, 60)}),
    ],
)  # fmt: skip
def test_a_preset(preset, expected):
    made = validate({"preset": preset})
    assert {name: getattr(made, name) for name in expected} == expected
    others = set(DEFAULTS) - set(expected) - {"mode", "preset"}
    assert {name: getattr(made, name) for name in others} == {name: DEFAULTS[name] for name in others}
    assert "predictive" in made.mode if expected.get("predictor") else True


def test_what_stands_beside_a_preset_overrides_it():
    made = validate({"preset": "conservative", "max": 9, "cost": {"per_worker_hour": 2}})
    assert (made.max, made.prefer_spot) == (9, True)
    assert made.cost == Cost(per_worker_hour=2, cost_threshold=100)


def test_the_documents_have_every_key_and_examples_that_are_valid():
    page = (Path(__file__).parents[1] / "docs/scaling.md").read_text("utf-8")
    table = page.partition("## Settings")[2].partition("## Presets")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(DEFAULTS)
    first, prices, second = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert validate(first["data"]["settings"]["fleet"]).slo == Slo(5, 0.95)
    assert validate(prices).cost == Cost(0.4, 0.12, 0.002, 5, 200)
    assert len(validate(second).schedule) == 2
    assert faults({"mode": "slow"})[0] in page


def test_stale_is_three_intervals():
    assert validate({"interval": 15}).stale_after == 45


def test_the_flap_budget_follows_the_size_of_the_fleet():
    assert validate({"max": 30, "burst_capacity": 5}).flaps == 350
    assert validate({"flap_budget": 12}).flaps == 12


@pytest.mark.parametrize("text", ["5", "s", "1 week", "-5s", "1e3s", "5s\n", "5\ns", "٣s"])
def test_a_wrong_duration_is_no_duration(text):
    with pytest.raises(ValueError, match="is no duration"):
        seconds(text)


@pytest.mark.parametrize("text", ["5s", "5s@", "5s@95", "@95%", "5s@0%", "5s@100%", "5s@95%\n", "5s@٣%", "5s\n@95%"])
def test_a_wrong_objective_is_no_objective(text):
    with pytest.raises(ValueError, match=r"is no objective|is no duration"):
        objective(text)
