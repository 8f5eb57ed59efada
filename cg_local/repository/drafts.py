"""The imports of a file that is being edited, or whose language has no grammar here.

Owns the reading of import statements without a tree. What an import means is `imports`'. Invariant: broken syntax
elsewhere in the file takes no import away, so the imports do not change while a line below them is being written.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from cg_local.grammars import find_parser
from cg_local.languages import language_of
from cg_local.repository.imports import STATEMENTS, TOP_LINES, Import, imports_of, python_imports, statement_imports

PYTHON_START = re.compile(r"[ \t]*(?:from[ \t]+[.\w]+[ \t]+import\b|import[ \t]+\w)")
MAX_STATEMENT_LINES = 60

_SCRIPT = re.compile(
    r"""^[ \t]*(?:import|export)\b[^;"'`]*["'][^"'\n]+["']|\brequire\(\s*["'][^"'\n]+["']\s*\)""", re.M
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"[^"\n]+"', re.M)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+[\w. \t]+", re.M)
PATTERNS = {
    "javascript": _SCRIPT,
    "typescript": _SCRIPT,
    "tsx": _SCRIPT,
    "c": _INCLUDE,
    "cpp": _INCLUDE,
    "java": _IMPORT,
    "kotlin": _IMPORT,
    "csharp": re.compile(r"^[ \t]*(?:global[ \t]+)?using[ \t][^;{(\n]+;", re.M),
    "rust": re.compile(r"^[ \t]*(?:pub(?:\([\w ]+\))?[ \t]+)?(?:use[ \t][^;]+;|mod[ \t]+\w+[ \t]*;)", re.M),
}
"""The text of one import statement in languages whose grammar is not installed."""

GO_BLOCK = re.compile(r"^import[ \t]*(?:\(([^)]*)\)|(?:[\w.]+[ \t]+)?(\"[^\"\n]+\"))", re.M)


def draft_imports(path: str, text: str) -> list[Import]:
    """The imports at the top of a file whose syntax may be broken.

    Args:
        path: the file's path in its repository, with forward slashes.
        text: its content.
    """
    language = language_of(path) or ""
    if language == "python":
        return [found for statement in python_statements(text) for found in python_imports(path, statement)]
    if language in STATEMENTS and find_parser(language) is not None:
        return imports_of(path, text)
    top = "\n".join(text.split("\n")[:TOP_LINES])
    if language == "go":
        statements = [line.strip() for match in GO_BLOCK.finditer(top) for line in (match[1] or match[2]).split("\n")]
    else:
        pattern = PATTERNS.get(language)
        statements = [match[0].strip() for match in pattern.finditer(top)] if pattern else []
    return [found for statement in statements for found in statement_imports(language, path, statement)]


def python_statements(text: str) -> Iterator[str]:
    """The import statements among the top lines, each by itself and without its indentation."""
    lines = text.split("\n")
    for number, line in enumerate(lines[:TOP_LINES]):
        if PYTHON_START.match(line):
            after = number + 1
            while after < min(len(lines), number + MAX_STATEMENT_LINES) and is_open("\n".join(lines[number:after])):
                after += 1
            yield textwrap.dedent("\n".join(lines[number:after]))


def is_open(statement: str) -> bool:
    """Whether an import statement goes on in the next line."""
    return statement.endswith("\\") or statement.count("(") > statement.count(")")
