"""Syntax trees of languages other than Python, by tree-sitter.

Owns which package holds which grammar, and how text becomes a tree. What the trees mean is `imports`' and `segments`'.
Invariant: nothing is downloaded; each grammar is compiled code inside its package (extra `syntax`).
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING

from cg_local.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node, Parser, Tree

GRAMMARS = {
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "java": ("tree_sitter_java", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "csharp": ("tree_sitter_c_sharp", "language"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "kotlin": ("tree_sitter_kotlin", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "bash": ("tree_sitter_bash", "language"),
    "sql": ("tree_sitter_sql", "language"),
    "html": ("tree_sitter_html", "language"),
    "css": ("tree_sitter_css", "language"),
    "json": ("tree_sitter_json", "language"),
    "yaml": ("tree_sitter_yaml", "language"),
    "markdown": ("tree_sitter_markdown", "language"),
}
"""Language to the module of its grammar and the function in it that returns the grammar."""


@functools.cache
def parser_of(language: str) -> Parser:
    """The parser of a language of `GRAMMARS`.

    Raises:
        TrainingError: the grammar's package is not installed.
    """
    module, function = GRAMMARS[language]
    try:
        import tree_sitter

        grammar = import_module(module)
    except ImportError as error:
        raise TrainingError(
            f"{language}: reading it needs the package {error.name}, which is not installed. "
            "Install the extra: pip install 'cg-local[syntax]'."
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(getattr(grammar, function)()))


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
