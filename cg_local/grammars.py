"""Which package holds the tree-sitter grammar of a language.

Owns the table and the loading of one grammar at its first use. What trees mean is the callers'. Invariant: nothing is
downloaded and nothing fails: a grammar whose package is not installed (SQL's comes with the extra `syntax`) is None.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Parser

GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
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
def find_parser(language: str) -> Parser | None:
    """The parser of a language, or None where its package is not installed or fits another version of tree-sitter.

    Args:
        language: a key of `GRAMMARS`; another name has no parser.
    """
    module, function = GRAMMARS.get(language, ("", ""))
    try:
        import tree_sitter

        return tree_sitter.Parser(tree_sitter.Language(getattr(import_module(module), function)()))
    except (ImportError, AttributeError, ValueError):
        return None
