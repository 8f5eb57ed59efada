"""Syntax trees of languages other than Python, by tree-sitter.

Owns how text becomes a tree. Which package holds a grammar is `cg_local.grammars`'; what the trees mean is `imports`'
and `segments`'.
Invariant: a missing grammar is an error that names its package; a recipe never reads less than it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cg_local.errors import TrainingError
from cg_local.grammars import GRAMMARS, find_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node, Parser, Tree


def parser_of(language: str) -> Parser:
    """The parser of a language of `GRAMMARS`.

    Raises:
        TrainingError: the grammar's package is not installed.
    """
    parser = find_parser(language)
    if parser is None:
        raise TrainingError(
            f"{language}: reading it needs the package {GRAMMARS[language][0]}, which is not installed. "
            "Install the extra: pip install 'cg-local[syntax]'."
        )
    return parser


def parse(language: str, text: str) -> Tree:
    """The syntax tree of a text; wrong syntax gives a tree with error nodes, never an exception."""
    return parser_of(language).parse(text.encode())


def descendants(node: Node) -> Iterator[Node]:
    """Every named node below `node`, parents before children, in the order of the text."""
    waiting = list(reversed(node.named_children))
    while waiting:
        found = waiting.pop()
        yield found
        waiting.extend(reversed(found.named_children))
