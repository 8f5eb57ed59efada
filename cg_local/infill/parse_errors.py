"""Whether a file still parses with a text in its gap, or as well as it can.

This file owns the counting of errors in a whole text, and which of them a text in a gap is to blame for. It ranks
nothing. Invariant: it never fails, and text is parsed, never run.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cg_local.grammars import find_parser
from cg_local.languages import language_of

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_PARSED_CHARACTERS = 2_000_000
"""A longer text is not judged: Python's parser takes 0.5 s for a million characters."""


_PLACEHOLDERS = ("", "_", "0")
"""Texts that fit into most gaps of most languages; a name is an expression and a statement of Python."""


@dataclass(frozen=True, order=True)
class _Damage:
    """How far a text breaks its language's grammar.

    Attributes:
        extent: bytes outside of the gap that are part of an error, and one for each error: one error may take the place
            of several and swallow the file.
        num_errors: the nodes that are errors, or that the parser had to invent.
    """

    extent: int = 0
    num_errors: int = 0


def num_added_errors(prefix: str, suffix: str, path: str | None, texts: Sequence[str]) -> list[int | None]:
    """Count the syntax errors that each of some texts adds to those that the file has around the gap by itself.

    A file that is being written has other open places, which say nothing of the texts. What it has by itself is the
    least that any of the texts or a placeholder brings.

    Args:
        prefix, suffix: the file around the gap.
        path: its name; the ending names the language. None: no language.
        texts: what may come into the gap.

    Returns:
        A number for each text, 0 where it does no harm. Python is judged by Python's own parser, too, which refuses
        wrong indentation. None where the language is not known or its grammar not installed (extra `syntax`).
    """
    found = [_damage(prefix, text, suffix, path) for text in texts]
    known = [damage for damage in found if damage is not None]
    if known and min(known) > _Damage():
        others = (_damage(prefix, placeholder, suffix, path) for placeholder in _PLACEHOLDERS)
        known += [damage for damage in others if damage is not None]
    own = min(known, default=_Damage())
    return [None if each is None else _added(each, own) for each in found]


def _added(damage: _Damage, own: _Damage) -> int:
    return max(1, damage.num_errors - own.num_errors) if damage.extent > own.extent else 0


def _damage(prefix: str, middle: str, suffix: str, path: str | None) -> _Damage | None:
    text = prefix + middle + suffix
    language = language_of(path) if path else None
    if language is None or len(text) > MAX_PARSED_CHARACTERS:
        return None
    is_python = language == "python"
    if is_python and _is_python(text):
        return _Damage()
    parser = find_parser(language)
    if parser is None:
        return _Damage(1, 1) if is_python else None
    start, data = len(_encoded(prefix)), _encoded(text)
    errors = _errors(parser.parse(data).root_node)
    end = start + len(_encoded(middle))
    extent = sum(1 + node.end_byte - node.start_byte - _overlap(node, start, end) for node in errors)
    # What Python refuses may be no error of the grammar.
    return _Damage(is_python + extent, is_python + len(errors))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def _overlap(node: Node, start: int, end: int) -> int:
    first, last = max(int(node.start_byte), start), min(int(node.end_byte), end)
    return max(0, last - first)


def _is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _errors(root: Node) -> list[Node]:
    """Return the nodes that are errors, or that the parser had to invent; not what lies in them."""
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            found.append(node)
        elif node.has_error:
            waiting += node.children
    return found
