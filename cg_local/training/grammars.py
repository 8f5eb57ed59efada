"""Syntax trees of languages other than Python, by tree-sitter.

Owns the refusal to go on without a grammar. Which package holds one is `cg_local.grammars`'; what the trees mean is
`repository.imports`' and `structure`'s.
Invariant: a missing grammar is an error that names its package; a recipe never reads less than it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cg_local.errors import TrainingError
from cg_local.grammars import GRAMMARS, find_parser

if TYPE_CHECKING:
    from tree_sitter import Parser


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
