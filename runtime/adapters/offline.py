"""The offline agent adapter: extractive text analysis without model, key or network (`type: offline`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from flatfleet.runtime.adapters.critique import Output
from flatfleet.runtime.adapters.roles import analyze, improve, judge, synthesize
from flatfleet.runtime.errors import ChildFailed, ChildWaiting, UsageError, did_you_mean
from flatmachines.agents import AgentAdapter, AgentAdapterContext, AgentExecutor, AgentRef, AgentResult

THREAD_CHARS = 2_000  # more text than this is read in a thread, so that the event loop goes on
PASS_SCORE = 7.5
ROLES: Mapping[str, Callable[[Output], Output]] = {
    "analyze": analyze,
    "synthesize": synthesize,
    "judge": judge,
    "improve": improve,
}


class OfflineAdapter(AgentAdapter):
    """Builds executors for `{type: offline, config: {role, delay, pass_score}}`.

    `role` is one of analyze, synthesize, judge, improve; `delay` waits that many seconds before each answer, as a model
    would; `pass_score` is what the judge asks for, of 10. Raises UsageError for any other configuration.
    """

    type_name = "offline"

    def create_executor(self, *, agent_name: str, agent_ref: AgentRef, context: AgentAdapterContext) -> AgentExecutor:
        """Return the executor for one agent; it keeps no state between calls."""
        config = dict(agent_ref.config or {})
        role = config.pop("role", None)
        if role not in ROLES:
            raise UsageError(f"offline agent '{agent_name}': unknown role {role!r}{did_you_mean(str(role), ROLES)}")
        delay = _number(agent_name, "delay", config.pop("delay", 0.0))
        pass_score = _number(agent_name, "pass_score", config.pop("pass_score", PASS_SCORE))
        for key in config:
            known = did_you_mean(key, ("role", "delay", "pass_score"))
            raise UsageError(f"offline agent '{agent_name}': unknown key '{key}' in config{known}")
        return OfflineExecutor(role, delay=delay, pass_score=pass_score)


class OfflineExecutor(AgentExecutor):
    """Answers one role from its input alone: the same input gives the same output, on any machine."""

    def __init__(self, role: str, *, delay: float = 0.0, pass_score: float = PASS_SCORE) -> None:
        self._role, self._delay, self._pass_score = role, delay, pass_score

    @property
    def metadata(self) -> dict[str, Any]:
        """Name the role and the adapter."""
        return {"adapter": "offline", "role": self._role}

    async def execute(
        self, input_data: dict[str, Any], context: dict[str, Any] | None = None, session_id: str | None = None
    ) -> AgentResult:
        """Return the role's output; usage and cost are zero.

        Input of a wrong type comes back as `error` (not retryable). Raises ChildFailed or ChildWaiting where an
        analysis or a draft is what a failed or parked child left behind: that is never content.
        """
        if self._delay:
            await asyncio.sleep(self._delay)
        try:
            data = read_input(self._role, input_data) | {"pass_score": self._pass_score}
        except ValueError as exc:
            error = {"code": "invalid_request", "type": "ValueError", "message": str(exc), "retryable": False}
            return AgentResult(error=error, finish_reason="error", cost=0.0)
        answer = ROLES[self._role]
        output = await asyncio.to_thread(answer, data) if _size(data) > THREAD_CHARS else answer(data)
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "api_calls": 0}
        return AgentResult(output=output, usage=usage, cost=0.0, finish_reason="stop", metadata=self.metadata)

    async def execute_with_tools(
        self,
        input_data: dict[str, Any],
        tools: list[dict[str, Any]],
        messages: list[dict[str, Any]] | None = None,
        context: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> AgentResult:
        """Raise UsageError: an offline agent has no tools."""
        raise UsageError(f"the offline agent '{self._role}' has no tools: use it in a state without tool_loop")


def read_input(role: str, data: Mapping[str, Any]) -> Output:
    """Return the checked input of `role`, with each field present.

    Lists and dicts may come as JSON text, which is what a template makes of them. Raises ValueError for a value of
    a wrong type, ChildFailed and ChildWaiting for the remains of a child that did not end well.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{role}: the input must be a mapping, got {type(data).__name__}")
    found: Output = {"title": _text(role, data, "title")}
    if role == "analyze":
        return found | {"heading": _text(role, data, "heading"), "text": _text(role, data, "text")}
    found["analyses"] = [_checked(role, f"analyses[{i}]", item) for i, item in enumerate(_list(role, data, "analyses"))]
    found["abstract"] = _text(role, data, "abstract")
    if role != "synthesize":
        draft = _parsed(data.get("draft"))
        found["draft"] = {"summary": draft} if isinstance(draft, str) else _checked(role, "draft", draft or {})
    if role == "improve":
        feedback = data.get("feedback")
        parsed = _parsed(feedback)
        found["feedback"] = list(map(str, parsed)) if isinstance(parsed, list) else [_text(role, data, "feedback")]
    return found


def _text(role: str, data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{role}: '{key}' must be text, got {type(value).__name__}")
    return value


def _list(role: str, data: Mapping[str, Any], key: str) -> list[Any]:
    value = _parsed(data.get(key))
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise ValueError(f"{role}: '{key}' must be a list, got {type(value).__name__}")
    return value


def _checked(role: str, name: str, item: Any) -> Output:
    if not isinstance(item, dict):
        raise ValueError(f"{role}: {name} must be a mapping, got {type(item).__name__}")
    if "_error" in item:
        raise ChildFailed(f"{role}: {name} is not content but a failed child: {item['_error']}")
    if "_waiting" in item:
        raise ChildWaiting(f"{role}: {name} is not content but a child that still waits")
    if "_raw" in item:
        raise ValueError(f"{role}: {name} is an answer that was not JSON: {str(item['_raw'])[:80]!r}")
    return item


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _number(agent_name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UsageError(f"offline agent '{agent_name}': '{key}' must be a number of at least 0, got {value!r}")
    return float(value)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0
