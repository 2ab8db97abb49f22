"""How long a request takes, as an expression over the columns of its row: `0.5 + 0.02*output_tokens`, `exp(50)`."""

from __future__ import annotations

import ast
import math
import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flatfleet.runtime.errors import UsageError

Row = Mapping[str, float]
Value = Callable[[Row, random.Random], float]

LONGEST = 500
ALLOWED = "numbers, columns, + - * /, brackets and exp(mean)"
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A checked expression: its text, the columns that it reads, and what it comes to for a row."""

    text: str
    columns: frozenset[str]
    value: Value


def parse(text: str) -> Expression:
    """Read an expression. `exp(mean)` draws from an exponential distribution; nothing else is a function.

    Raises UsageError for anything beyond numbers, columns, + - * /, brackets and exp(mean).
    """
    if len(text) > LONGEST:
        raise UsageError(f"an expression has at most {LONGEST} characters, this one has {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        columns = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}
        return Expression(text, frozenset(columns & named), _made(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = f": {error.args[0]}" if isinstance(error, _Refused) else ""
        raise UsageError(
            f"'{text}' is no expression of {ALLOWED}{what}; write it as in 0.5 + 0.02*output_tokens"
        ) from error


class _Refused(ValueError):
    """A part of the expression that is not allowed."""


def _made(node: ast.expr) -> Value:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            number = float(node.value)  # type: ignore[arg-type]
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise _Refused("a number is too large")
        return lambda row, rng: number
    if isinstance(node, ast.Name):
        name = node.id
        return lambda row, rng: row[name]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner, sign = _made(node.operand), -1.0 if isinstance(node.op, ast.USub) else 1.0
        return lambda row, rng: sign * inner(row, rng)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right, act = _made(node.left), _made(node.right), _OPERATORS[type(node.op)]
        return lambda row, rng: act(left(row, rng), right(row, rng))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id != "exp" or len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
            raise _Refused(f"{ast.unparse(node)} is not known, only exp(mean)")
        mean = _made(node.args[0])
        return lambda row, rng: mean(row, rng) * rng.expovariate(1.0)
    raise _Refused(f"{ast.unparse(node)} is not allowed")
