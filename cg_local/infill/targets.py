"""Places as other programs print them: `grep -n`, compilers, linters, test runners.

This file owns the way from such a line to a `Target`. It reads files only to tell apart what a line leaves open.
Invariant: what `parse_target` takes and names a file that exists means here what it means there.

Taken are FILE:LINE, FILE:LINE:COL and FILE:LINE:TEXT, with or without a colon or a text behind, `--> FILE:LINE:COL` as
rustc has it, FILE(LINE,COL) as tsc and MSVC have it, and the lines of stack traces that name a file with its path. A
drive letter ("C:\\\\a.c:3") belongs to the file's name.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from cg_local.infill.cursor import Target, parse_target

# Lines may be long, so each pattern takes time in proportion to the length: a file's name begins with no blank, and
# words before it end in one place only, which `_committed` keeps from being moved.
_REPORT = re.compile(
    r"\s*(?:(?:-->|:::)\s+)?(?P<file>\S.*?):(?P<line>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9})|:(?P<column>[0-9]{1,9}))?"
    r"(?P<rest>[:\s].*)?",
    re.DOTALL,
)
# MSBuild puts "1>" before it, PHP's traces "#0 ", and MSBuild may print where the place ends, too.
_PARENTHESES = re.compile(
    r"\s*(?:[0-9]+>\s*|#[0-9]+\s+)?(?P<file>\S.*?)"
    r"\((?P<line>[0-9]{1,9})(?:,(?P<column>[0-9]{1,9})(?:,[0-9]+){0,2})?(?P<last>)\)(?P<rest>\s*:.*)",
    re.DOTALL,
)
_PLACE = r"(?P<file>\S.*?):(?P<line>[0-9]{1,9}):(?P<column>[0-9]{1,9})"


def _committed(name: str, pattern: str) -> str:
    """Return a pattern that keeps its first match; from Python 3.11 on this is (?>...)."""
    return f"(?=(?P<{name}>{pattern}))(?P={name})"


# Lines of stack traces, which have words before the file.
_TRACES = (
    re.compile(r'[\s|+]*File "(?P<file>[^"]+)", line (?P<line>[0-9]{1,9})(?P<column>)(?:, in .*)?'),  # Python
    re.compile(rf"\s*at {_committed('function', r'.+? [(]')}{_PLACE}\)"),  # Node: a function
    re.compile(rf"\s*at (?:async )?{_PLACE}"),  # Node: a file; Rust
    re.compile(  # Rust
        _committed("thread", r".*?\bpanicked at ") + _committed("message", "(?:'.*', )?") + rf"{_PLACE}:?"
    ),
    re.compile(rf"\s*at {_committed('method', '.+ in ')}(?P<file>.+):line (?P<line>[0-9]{{1,9}})(?P<column>)"),  # .NET
    re.compile(r"\s+from (?P<file>\S.*?):(?P<line>[0-9]{1,9})(?P<column>):in .*"),  # Ruby
    re.compile(r"\t(?P<file>\S.*?):(?P<line>[0-9]{1,9})(?P<column>) \+0x[0-9a-f]+"),  # Go
)
# Lines of traces that look like any other report: pytest's, and Ruby's first one.
_FRAME = re.compile(r":[0-9]+:(?P<text> in [\w<>.]+|in [`'][^`']*'(?:: .*)?)\Z")
_FOREIGN_FOLDERS = frozenset(("site-packages", "dist-packages", "node_modules"))
_ODD_COLUMN = -1
"""In place of a column with something behind it that no program prints."""

_DIGIT = re.compile(r":[0-9]")
_BARE = re.compile(r"\S+:[0-9]{1,9}(?:[:-][0-9]{1,9})?:?")
# The colours of `grep --color=always` and of compilers, and their links: OSC 8.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


def parse_place(text: str, is_file: Callable[[str], bool] | None = None) -> Target:
    """Parse a place as a user types it or another program prints it.

    Args:
        text: one line.
        is_file: tells whether a path exists; None: the file system is asked.

    Raises:
        ValueError: the text names no line, or a range ends before it begins.
    """
    exists = is_file or os.path.exists  # Path's raises an error of its own about a name that is too long
    text = _ESCAPES.sub("", text).rstrip("\r\n")
    if "\n" in text:
        raise ValueError(f"{text.splitlines()[0]!r} and more: give each place by itself, or all on standard input (-)")
    located = _located(text, exists)
    try:
        exact = parse_target(text, exists)
    except ValueError:
        if located is None:
            raise
    else:
        if located is None or exists(exact.file):
            return exact
    if located.column == _ODD_COLUMN:
        raise ValueError(f"{text!r} names no line: write FILE:LINE, FILE:LINE:COL or FILE:FIRST-LAST")
    return located


def places_in(lines: Iterable[str], is_file: Callable[[str], bool] | None = None) -> tuple[list[str], int]:
    """Choose the lines of another program's output that name a place, each place once.

    A line with anything behind the place counts only if the file exists: words with a number behind a colon occur in
    much that programs print. A stack trace goes through libraries, which nobody wants filled: its lines count where
    the file lies in the current folder or its git work tree, and in no folder of installed packages.

    Returns:
        The lines, in order, and how many others there are, empty ones left out.
    """
    exists = is_file or os.path.exists
    chosen: dict[Target, str] = {}
    num_others = 0
    for line in lines:
        try:
            place = parse_place(line, exists)
        except ValueError:
            num_others += bool(line.strip())
            continue
        if _is_frame(line, place) and not _is_own(place.file):
            num_others += 1
        elif exists(place.file) or _BARE.fullmatch(line.strip()):
            chosen.setdefault(place, line)
        else:
            num_others += 1
    return list(chosen.values()), num_others


def missing_file(lines: Iterable[str]) -> str | None:
    """Return the first file that lines seem to name and that does not exist, to tell who looks for a place in them."""
    for line in lines:
        try:
            file = parse_place(line).file
        except ValueError:
            continue
        if not os.path.exists(file):
            return file
    return None


def _is_frame(line: str, place: Target) -> bool:
    line = _ESCAPES.sub("", line).rstrip("\r\n")
    if match := _FRAME.search(line):
        return not _is_text_of(place.file, place.line, match["text"])  # `grep -n` found a line that reads like one
    return any(trace.fullmatch(line) for trace in _TRACES)


def _is_own(file: str) -> bool:
    from cg_local.repository.work_tree import find_work_tree

    here = Path.cwd()
    tree = find_work_tree(here / "file")
    root = (tree.root if tree.is_git else here).resolve()
    try:
        path = Path(file).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL; a name that is too long; before Python 3.13 a loop of links
        return False
    return path.is_relative_to(root) and not _FOREIGN_FOLDERS & set(path.relative_to(root).parts)


def _located(text: str, exists: Callable[[str], bool]) -> Target | None:
    for trace in _TRACES:
        if match := trace.fullmatch(text):
            return Target(_path(match["file"]), int(match["line"]), int(match["column"]) if match["column"] else None)
    for pattern in (_REPORT, _PARENTHESES):
        match = pattern.fullmatch(text)
        if match is None or (pattern is _PARENTHESES and not exists(match["file"])):
            continue
        line, rest = int(match["line"]), match["rest"] or ""
        column = int(match["column"]) if match["column"] else None
        if match["last"]:
            continue  # nobody prints a range; a typed one is `parse_target`'s
        if column is None and _DIGIT.match(rest) and not _is_text_of(match["file"], line, rest[1:]):
            column = _ODD_COLUMN
        elif column is not None and rest and _is_text_of(match["file"], line, f"{match['column']}{rest}"):
            column = None  # `grep -n` found a line that begins with a number
        return Target(match["file"], line, column)
    return None


def _path(name: str) -> str:
    """Return the path that a trace names; Node names modules by URLs."""
    if not name.startswith("file://"):
        return name
    from urllib.parse import unquote

    path = unquote(name.removeprefix("file://"))
    return path[1:] if re.match("/[A-Za-z]:/", path) else path


def _is_text_of(file: str, number: int, text: str) -> bool:
    if not os.path.isfile(file):  # a named pipe would be waited for
        return False
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            found = next(itertools.islice(lines, max(number - 1, 0), None), None)
    except (OSError, ValueError):
        return False
    return found is not None and found.strip() == text.strip()
