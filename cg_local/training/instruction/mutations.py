"""Plants bugs in short functions.

Owns the kinds of bugs and what is said about each. It does not know what the function is for.
Invariant: a planted bug changes the syntax tree (or leaves none), and the original is what repairs it.
"""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SWAPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "/", "%": "//", "**": "*", "<": ">", ">": "<", "<=": "<", ">=": ">",
    "==": "!=", "!=": "==", "+=": "-=", "-=": "+=", "*=": "+=", "and": "or", "or": "and", "max": "min", "min": "max",
    "any": "all", "all": "any", "True": "False", "False": "True", "upper": "lower", "lower": "upper", "append": "add",
    "startswith": "endswith", "endswith": "startswith", "keys": "values", "values": "keys", "in": "not in",
    "not in": "in", "split": "join", "join": "split", "len": "sum", "sum": "len", "items": "keys",
    "read": "write", "write": "read", "strip": "split", "isdigit": "isalpha", "isupper": "islower",
}  # fmt: skip
"""A token and the wrong one in its place."""


@dataclass(frozen=True)
class Bug:
    """A planted bug.

    Attributes:
        source: the code with the bug.
        remedy: one sentence that says what was wrong.
    """

    source: str
    remedy: str


def replaced(source: str, token: tokenize.TokenInfo, new: str) -> str:
    """`source` with one token, or the run of tokens on its line that it spans, replaced."""
    lines = source.split("\n")
    row = token.start[0] - 1
    lines[row] = lines[row][: token.start[1]] + new + lines[row][token.end[1] :]
    return "\n".join(lines)


def swaps(source: str, tokens: list[tokenize.TokenInfo]) -> Iterator[Bug]:
    """Wrong operators and wrong functions."""
    for before, token in itertools.pairwise(tokens):
        is_star = token.string in ("*", "**") and before.string in ("(", ",", "{")
        is_for = token.string == "in" and "for " in token.line[: token.start[1]]
        is_sign = (
            token.string == "-" and before.type in (tokenize.OP, tokenize.NAME) and before.string not in (")", "]")
        )
        is_sign = is_sign and not (before.type == tokenize.NAME and not keyword.iskeyword(before.string))
        is_definition = before.string == "def"
        if (
            token.string in SWAPS
            and token.type != tokenize.STRING
            and not (is_star or is_for or is_sign or is_definition)
        ):
            wrong = SWAPS[token.string]
            yield Bug(replaced(source, token, wrong), f"`{wrong}` must be `{token.string}`.")


def numbers(source: str, tokens: list[tokenize.TokenInfo]) -> Iterator[Bug]:
    """Off by one: a start, a step, an index or a limit."""
    for token in tokens:
        if token.type == tokenize.NUMBER and token.string.isdigit():
            for wrong in {int(token.string) + 1, max(0, int(token.string) - 1)} - {int(token.string)}:
                yield Bug(replaced(source, token, str(wrong)), f"`{wrong}` must be `{token.string}`.")


def missing_ends(source: str, tokens: list[tokenize.TokenInfo]) -> Iterator[Bug]:
    """Range ends without their "+ 1"."""
    for first, second, third, after in zip(tokens, tokens[1:], tokens[2:], tokens[3:]):  # noqa: B905
        if "range(" in first.line and (second.string, third.string) == ("+", "1") and after.string in (")", ","):
            lines = source.split("\n")
            row = first.start[0] - 1
            lines[row] = lines[row][: first.end[1]] + lines[row][third.end[1] :]
            yield Bug("\n".join(lines), f"The range must end at `{first.string} + 1`.")


def missing_parts(source: str, tokens: list[tokenize.TokenInfo]) -> Iterator[Bug]:
    """A missing return, colon, bracket or self."""
    for token, after in itertools.pairwise(tokens):
        if token.string == "return" and after.type not in (tokenize.NEWLINE, tokenize.OP):
            whole = token._replace(end=after.start)
            yield Bug(replaced(source, whole, ""), "The `return` was missing.")
        if token.string == ":" and after.type == tokenize.NEWLINE:
            yield Bug(replaced(source, token, ""), "A colon was missing.")
        if token.string == ")" and after.type == tokenize.NEWLINE:
            yield Bug(replaced(source, token, ""), "A closing bracket was missing.")
        if token.string == "self" and after.string == "." and not token.line[: token.start[1]].strip():
            yield Bug(replaced(source, token._replace(end=after.end), ""), "The `self.` was missing.")


def assignments(source: str, tokens: list[tokenize.TokenInfo]) -> Iterator[Bug]:
    """An assignment where a comparison belongs."""
    for token in tokens:
        if token.string == "==" and token.line.strip().startswith(("if ", "elif ", "while ")):
            yield Bug(replaced(source, token, "="), "`=` must be `==`.")


def names(source: str, tokens: list[tokenize.TokenInfo]) -> Iterator[Bug]:
    """A name that is cut short or takes another's place."""
    tree = ast.parse(source)
    arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg) and node.arg != "self"]
    loaded = {
        (node.lineno, node.col_offset)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for token in tokens:
        if token.type == tokenize.NAME and token.start in loaded and token.string in arguments:
            others = [name for name in arguments if name != token.string]
            for wrong in [*others[:1], *([token.string[:-1]] if len(token.string) > 4 else [])]:
                yield Bug(replaced(source, token, wrong), f"`{wrong}` must be `{token.string}`.")


KINDS: Mapping[str, Callable[[str, list[tokenize.TokenInfo]], Iterator[Bug]]] = {
    "operator": swaps,
    "number": numbers,
    "range": missing_ends,
    "part": missing_parts,
    "assignment": assignments,
    "name": names,
}

EVIDENT = ("part", "assignment", "name")
"""Kinds that the code alone gives away; the others need to be told, or a function's name, to see what is meant."""


def parsed(source: str) -> str | None:
    """The dump of a source's syntax tree, or None if it does not parse."""
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:
        return None


def plant(source: str) -> dict[str, list[Bug]]:
    """All bugs that can be planted in a function, by kind.

    Args:
        source: code that parses.

    Returns:
        Kinds without a bug are left out. A bug whose code does not parse is kept only where that is its nature: a
        missing colon or bracket, and an assignment in a condition.
    """
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    good = parsed(source)
    found: dict[str, list[Bug]] = {}
    for kind, make in KINDS.items():
        for bug in make(source, tokens):
            bad = parsed(bug.source)
            may_fail = kind in ("part", "assignment")
            if bad != good and (bad is not None or may_fail):
                found.setdefault(kind, []).append(bug)
    return found


def is_felt(name: str, bug: Bug, calls: tuple[tuple[str, str], ...]) -> bool:
    """Whether a bug in one of our own functions changes the result of at least one example call.

    Only code made from our own templates is executed. A loop that the bug makes endless is told by its bound of steps.
    """
    space: dict[str, Any] = {}
    try:
        exec(compile(bug.source, "<bug>", "exec"), space)
        return any(repr(run_bounded(f"{name}({arguments})", space)) != result for arguments, result in calls)
    except Exception:  # any error is a change
        return True


def run_bounded(expression: str, space: dict[str, Any], max_events: int = 20_000) -> Any:
    """Evaluate an expression; RuntimeError after `max_events` instructions of the interpreter."""
    events = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal events
        frame.f_trace_opcodes = True  # a loop on one line has no event for its line
        events += 1
        if events > max_events:
            raise RuntimeError("endless")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return eval(expression, space)
    finally:
        sys.settrace(before)
