"""What a fresh reader broke by using it: each stays mended."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flatfleet import hooks
from flatfleet.runtime import bundle, reports
from flatfleet.runtime.adapters.offline import OfflineExecutor
from flatfleet.runtime.errors import BadKey, BundleError, OutputError
from flatfleet.runtime.faults import describe
from flatfleet.runtime.stores.keys import slug
from flatmachines import MachineHooks

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_readmes_example_under_the_sdks_class_runs_and_ends(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    code = block.replace("machines/launcher.yml", str(ROOT / "machines" / "launcher.yml"))
    (tmp_path / "example.py").write_text(code.replace("examples/papers", str(ROOT / "examples" / "papers")), "utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "results").glob("*.md"))) == 12


def _machine(**process: Any) -> dict[str, Any]:
    child = {
        "spec": "flatmachine",
        "spec_version": "4.2.1",
        "data": {
            "name": "child",
            "states": {
                "act": {"type": "initial", "action": "act", "hooks": "mine", "transitions": [{"to": "end"}]},
                "end": {"type": "final"},
            },
        },
    }
    states = {
        "process": {"type": "initial", "machine": "child", "transitions": [{"to": "end"}], **process},
        "end": {"type": "final", "output": {"error": "context.last_error_type"}},
    }
    data = {"name": "parent", "context": {"a": 1}, "machines": {"child": child}, "states": states}
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": data}


class _Cancels(MachineHooks):
    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        raise asyncio.CancelledError


@pytest.mark.parametrize("key", ["context.itm_id", "context.a"])
async def test_a_key_that_is_no_text_is_an_error_and_not_everybodys_result(any_kit: Any, key: str) -> None:
    any_kit.parts.hooks.register("mine", _Cancels)
    with pytest.raises(BadKey, match="must be a text"):
        await any_kit.machine(_machine(key=key)).run({})


async def test_a_child_that_cancels_itself_fails_and_does_not_end_its_parent(any_kit: Any) -> None:
    any_kit.parts.hooks.register("mine", _Cancels)
    output = await any_kit.machine(_machine(on_error="end")).run({})
    assert output == {"error": "ChildFailed"}


def test_a_report_that_cannot_be_written_is_not_the_items_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OutputError) as raised:
        reports.write(tmp_path / "file" / "folder", "a", {"title": "A"})
    assert describe(raised.value)["provider"]
    assert not describe(raised.value)["permanent"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "        parallelism: context.parallelism\n",
            "        paralelism: context.parallelism\n",
            "no input 'paralelism'",
        ),
        ("settings: {max_steps: 0}", "settings: {max_step: 0}", "did you mean 'max_steps'"),
    ],
)
def test_a_misspelt_input_or_setting_is_found(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (ROOT / "machines" / "worker.yml").read_text("utf-8")
    assert old in text
    text = text.replace(old, new).replace("./paper.yml", str(ROOT / "machines" / "paper.yml"))
    (tmp_path / "worker.yml").write_text(text, "utf-8")
    with pytest.raises(BundleError, match=re.escape(said)):
        bundle.load(tmp_path / "worker.yml", known=hooks.known())


def test_a_long_name_keeps_whole_words() -> None:
    assert slug("/x/fermentation-temperature-and-sourdough-flavour-and-more.txt").startswith(
        "temperature-and-sourdough"
    )


async def test_parts_are_analysed_at_once_even_without_a_model_to_wait_for() -> None:
    running: list[int] = []
    peak = 0
    text = " ".join(f"We found that sample {n} gained {n % 7} per cent of weight in week {n % 5}." for n in range(2000))

    async def analyse(n: int) -> None:
        nonlocal peak
        running.append(n)
        peak = max(peak, len(running))
        await OfflineExecutor("analyze").execute({"title": "T", "heading": "H", "text": text, "index": n, "of": 3})
        running.remove(n)

    await asyncio.gather(*(analyse(n) for n in range(3)))
    assert peak == 3
