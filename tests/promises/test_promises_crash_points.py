"""Promises 1, 3, 12 and 15 inside one store operation: it is whole or not at all, wherever it breaks off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_promise_03_every_store_operation_is_whole_or_not_at_all(trial):
    """Promises 1, 3, 15: die, meet a disk error, or a busy database at every statement of every operation."""
    process = trial.python(Path(__file__).parent / "crash_points.py")
    said = process.end(120)
    assert process.returncode == 0, said
    points = [json.loads(line) for line in said.splitlines()]
    last = {point["op"]: point for point in points if point["how"] == "exit"}
    assert last.keys() >= {"push", "claim", "complete", "fail", "release", "hand_back", "retry", "register"}
    for point in points:
        if point["how"] == "busy":
            assert (point["found"], point["said"]) == ("after", ""), point
        elif point["how"] == "error":
            assert point["found"] == "before" and "cannot be used: disk I/O error" in point["said"], point
        elif point is not last[point["op"]]:
            assert point["found"] == "before", point
    assert len(points) > 300
