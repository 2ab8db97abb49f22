"""What the strings of a machine file refer to: bare paths, templates, conditions, all read as the SDK reads them."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from flatfleet.runtime.bundle.yamlmap import Where
from flatfleet.runtime.errors import did_you_mean

ROOTS = ("context", "input", "output")

_BARE = re.compile(r"(output|context|input)(\.[a-zA-Z_][a-zA-Z0-9_]*)*")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_NEARLY_BARE = re.compile(r"(output|context|input)[.\[]\S*")


class Use(NamedTuple):
    """One reference: its first word, and the field that is taken of it (None: the whole)."""

    root: str
    field: str | None


class Text(NamedTuple):
    """One string of the file, with its place and whether the SDK renders it at all."""

    where: Where
    value: str
    rendered: bool


def is_template(text: str) -> bool:
    """Tell whether the SDK renders `text` with Jinja (to a string)."""
    return "{{" in text or "{%" in text


def is_bare(text: str) -> bool:
    """Tell whether the SDK takes `text` for a path, which keeps the type of the value."""
    return _BARE.fullmatch(text.strip()) is not None


def texts(value: Any, where: Where, rendered: bool = True) -> Iterator[Text]:
    """Yield every string below `value`; the SDK renders those in mappings and directly in lists."""
    if isinstance(value, str):
        yield Text(where, value, rendered)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(inner, (*where, key), rendered)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from texts(inner, (*where, index), rendered and isinstance(inner, str))


class Templates:
    """Jinja as the SDK sets it up: parses templates, compiles nothing that is kept."""

    def __init__(self) -> None:
        import jinja2

        self._env = jinja2.Environment()
        self._env.filters["fromjson"] = json.loads

    def problem(self, text: str) -> str | None:
        """Say why `text` does not compile as a template, or return None."""
        import jinja2

        try:
            self._env.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            line = f" (line {error.lineno} of the template)" if "\n" in text else ""
            return f"the template does not compile: {error.message}{line}"
        return None

    def uses(self, text: str) -> set[Use]:
        """Return what a bare path or a template refers to; nothing for a literal, or a template with an error."""
        if not is_template(text):
            root, *rest = text.strip().split(".")
            return {Use(root, rest[0] if rest else None)} if is_bare(text) else set()
        import jinja2
        from jinja2 import meta, nodes

        try:
            tree = self._env.parse(text)
            free = meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError:
            return set()
        found: set[Use] = set()
        whole = Counter(node.name for node in tree.find_all(nodes.Name) if node.name in free)
        fields: Iterator[Any] = tree.find_all((nodes.Getattr, nodes.Getitem))
        for node in fields:
            if isinstance(node.node, nodes.Name) and node.node.name in free:
                key = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
                if isinstance(key, str):
                    found.add(Use(node.node.name, key))
                    whole[node.node.name] -= 1
        return found | {Use(name, None) for name, left in whole.items() if left > 0}


def literal_problem(text: str, as_name: str | None) -> str | None:
    """Say that a string without template syntax looks like a path but would stay text, or return None."""
    word = text.strip()
    if is_bare(word):
        return None
    if as_name and as_name not in ROOTS and re.match(rf"{re.escape(as_name)}(\.\w+)*$", word):
        return f"'{word}' is taken as text — write {{{{ {word} }}}}, or use `as: output`, whose paths keep their type"
    if _NEARLY_BARE.fullmatch(word):
        return f"'{word}' is no bare path (words and dots only), so it is taken as text — write {{{{ {word} }}}}"
    if _DOTTED.fullmatch(word):
        root, _, rest = word.partition(".")
        if close := get_close_matches(root, ROOTS, n=1, cutoff=0.75):
            return f"'{word}' is taken as text{did_you_mean(root, ROOTS)} (that is, '{close[0]}.{rest}')"
    return None


_NODES = "context paths, comparisons, and/or/not, + - * /, literals"
_FINE = (
    ast.Attribute,
    ast.BoolOp,
    ast.Compare,
    ast.Constant,
    ast.Subscript,
    *(ast.And, ast.Or, ast.Not, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Load),
)
_NAMES = ("context", "true", "false", "null", "True", "False", "None")


def condition_problems(text: str) -> list[str]:
    """Say what the SDK's simple engine would not evaluate in a condition."""
    if is_template(text):
        return ["a condition is an expression, not a template — write it without {{ }}, e.g. context.count >= 3"]
    if not text.strip():
        return []
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        return [f"the condition '{text}' cannot be read: {reason} — known: {_NODES}"]
    return [f"condition '{text}': {problem}" for node in _nodes(tree) if (problem := _node_problem(node))]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, (*_FINE, ast.BinOp, ast.UnaryOp)):
        for child in ast.iter_child_nodes(node):
            yield from _nodes(child)


def _node_problem(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        if node.id in _NAMES:
            return None
        why = f"'{node.id}' is not there, conditions see only `context`"
        return why + did_you_mean(node.id, {"context", "true", "false", "null"})
    if isinstance(node, ast.USub):
        return "the engine has no negative numbers — write 0 - 1 for -1"
    if isinstance(node, (*_FINE, ast.BinOp, ast.UnaryOp)):
        return None
    if isinstance(node, ast.operator | ast.unaryop | ast.cmpop):
        return f"the engine has no operator {type(node).__name__} — known: {_NODES}"
    return f"the engine has no {type(node).__name__} — known: {_NODES}"


def unknown_roots(uses: set[Use], known: Collection[str]) -> list[str]:
    """Return the first words among `uses` that are not in `known`, sorted."""
    return sorted({use.root for use in uses} - set(known))
