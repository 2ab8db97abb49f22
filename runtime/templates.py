"""Templates and conditions, compiled once per bundle; they mean what the SDK means by them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from flatmachines.expressions.simple import SimpleExpressionEngine

Render = Callable[[Mapping[str, Any]], Any]

_PATH = re.compile(r"(output|context|input)(\.[a-zA-Z_][a-zA-Z0-9_]*)*")


def compile_template(text: str, environment: Any) -> Render:
    """A function from variables to the value: a bare path keeps its type, `{{ … }}` makes a string, other text is itself."""
    stripped = text.strip()
    if "{{" in stripped or "{%" in stripped:
        template = environment.from_string(text)
        template.globals = dict(template.globals)  # jinja2 makes a ChainMap, and copies it at each rendering
        return template.render
    if _PATH.fullmatch(stripped):
        first, *rest = stripped.split(".")
        return _path(first, tuple(rest))
    return lambda variables: text


def _path(first: str, rest: tuple[str, ...]) -> Render:
    if len(rest) == 1:
        only = rest[0]

        def field(variables: Mapping[str, Any]) -> Any:
            value = variables.get(first)
            return value.get(only) if isinstance(value, Mapping) else None

        return field

    def walk(variables: Mapping[str, Any]) -> Any:
        value = variables.get(first)
        for part in rest:
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value

    return walk


class Conditions:
    """The SDK's simple expression engine, which parses each expression once."""

    def __init__(self) -> None:
        self._engine = SimpleExpressionEngine()
        self._parsed: dict[str, ast.AST] = {}

    def evaluate(self, expression: str, variables: dict[str, Any]) -> Any:
        node = self._parsed.get(expression)
        if node is None:
            if not expression.strip():
                return True
            try:
                node = ast.parse(expression.strip(), mode="eval").body
            except SyntaxError as error:
                raise ValueError(f"condition {expression!r} is not an expression: {error.msg}") from error
            self._parsed[expression] = node
        return self._engine._eval_node(node, variables)
