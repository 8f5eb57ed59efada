"""Whether a file still parses.

This file owns the counting of errors in a whole text. It ranks nothing. Invariant: it never fails, and text is parsed,
never run.
"""

from __future__ import annotations

import ast
import warnings
from typing import TYPE_CHECKING

from cg_local.grammars import find_parser
from cg_local.languages import language_of

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_PARSED_CHARACTERS = 2_000_000
"""A longer text is not judged: Python's parser takes 0.5 s for a million characters."""


def num_parse_errors(text: str, path: str | None) -> int | None:
    """Count the places where a text breaks its language's grammar.

    Args:
        text: the whole file.
        path: its name; the ending names the language. None: no language.

    Returns:
        0 for a text that parses. Python is judged by Python's own parser, which also refuses wrong indentation. None
        where the language is not known or its grammar not installed (extra `syntax`).
    """
    language = language_of(path) if path else None
    if language is None or len(text) > MAX_PARSED_CHARACTERS:
        return None
    is_python = language == "python"
    if is_python and _is_python(text):
        return 0
    parser = find_parser(language)
    if parser is None:
        return 1 if is_python else None
    num_errors = _num_errors(parser.parse(text.encode("utf-8", errors="replace")).root_node)
    return max(1, num_errors) if is_python else num_errors


def _is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _num_errors(root: Node) -> int:
    """Count the nodes that are errors, or that the parser had to invent."""
    found, waiting = 0, [root]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            found += 1
        elif node.has_error:
            waiting += node.children
    return found
