"""What a call costs where time would tell nothing: the steps that it takes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any


async def steps_of_python(call: Callable[[], Any]) -> int:
    """The instructions of Python in a call."""
    steps = itertools.count()

    def trace(frame: Any, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        next(steps)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await call()
    finally:
        sys.settrace(before)
    return next(steps)
