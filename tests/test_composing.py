"""FLATFLEET_COMPOSE: a module of somebody else's that cannot be imported is named with its line, here and in hosts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from flatfleet.runtime.engines import hosting
from flatfleet.runtime.engines.hosts import Setup
from flatfleet.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nx / 0\n", r"ZeroDivisionError: division by zero \(.*my_fleet_1\.py, line 2\)"),
        ("\nimport json\njson.loads('{')\n", r"JSONDecodeError: .*my_fleet_1\.py, line 3\)"),
        ("import no_such_module_of_mine\n", r"ModuleNotFoundError: No module .*my_fleet_1\.py, line 1\)"),
        ("x = 1\nif:\n", r"SyntaxError: .*my_fleet_1\.py, line 2\)"),
    ],
)
def test_a_module_that_fails_is_named_with_its_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_fleet_1.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_fleet_1", raising=False)
    about = "module 'my_fleet_1' of 'my_fleet_1:compose' cannot be imported: "
    with pytest.raises(UsageError, match=about + told):
        hosting.named("my_fleet_1:compose")
    with pytest.raises(UsageError, match=about + told):
        hosting.compose(Setup("memory:", 60.0, "", compose="my_fleet_1:compose"))


@pytest.mark.parametrize("name", ["no_such_module_of_mine:compose", "json:no_such_name", "json", "", ":x"])
def test_what_names_no_function(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' does not name a function, as module:function does: "):
        hosting.named(name)
