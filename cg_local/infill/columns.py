"""Columns as other programs count them: characters, bytes, or places on a screen.

This file owns the way from a printed column to characters. Invariant: where the line leaves open which character is
meant, none is chosen.
"""

from __future__ import annotations

import os
import re

# A place and nothing behind it: what a person types, or a program prints for others. Its column counts characters.
_BARE = re.compile(r".+:[0-9]{1,9}:[0-9]{1,9}:?\s*", re.DOTALL)
# Programs of these languages (CPython, ruff, flake8, tsc, ESLint, Node, rustc, .NET) count characters or UTF-16 units,
# and a tab as one.
_CHARACTERS = frozenset((".py", ".pyi", ".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".mts", ".cts", ".rs", ".cs"))
# gcc counts what a screen shows, tabs up to the next eighth column (-fdiagnostics-column-unit); clang counts bytes.
_SCREEN = frozenset(
    (
        *(".c", ".h", ".cc", ".cpp", ".cxx", ".c++", ".hh", ".hpp", ".hxx", ".inl", ".ipp", ".m", ".mm"),
        *(".cu", ".cuh", ".d", ".f", ".f90", ".f95", ".for", ".adb", ".ads"),
    )
)


def character_column(text: str, file: str, line: str, column: int) -> int | None:
    """Return the column in characters that a line of another program's output means.

    Args:
        text: the line of output.
        file: the file that it names.
        line: the text of the line that it names.
        column: as printed, from 1.

    Returns:
        The column in code points from 1; None where programs that print such a line mean different ones.
    """
    before = line[: column - 1]
    if _BARE.fullmatch(text) or (before.isascii() and "\t" not in before):
        return column
    suffix = os.path.splitext(file)[1].lower()
    if suffix == ".go" or text.rstrip("\r\n").endswith(f":{column}:{line}"):  # Go; `rg --column` with the line found
        return _of_bytes(line, column)
    if suffix in _CHARACTERS:
        return column if all(character <= "\uffff" for character in before) else None
    return column if before.isascii() and suffix not in _SCREEN else None


def _of_bytes(line: str, column: int) -> int | None:
    data = line.encode("utf-8", "surrogatepass")
    try:
        return len(data[: column - 1].decode("utf-8", "surrogatepass")) + 1 if column <= len(data) + 1 else None
    except UnicodeDecodeError:  # in the middle of a character
        return None
