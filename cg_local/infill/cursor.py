"""The place to fill: parsing FILE:LINE targets, reading the file, cutting its text at the cursor.

This file owns the meaning of lines and columns and the decoding of source files. It does not build prompts and never
writes a file. Invariant: `gap.prefix + replaced text + gap.suffix` is the whole text of the source, and for a cursor
without a line range the replaced text is empty.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cg_local.errors import SourceFileError

STANDARD_INPUT = "-"
# What messages call it.
STANDARD_INPUT_NAME = "standard input"
# A bound on what is read into memory; the largest hand-written source files have a few megabytes.
MAX_SOURCE_BYTES = 64 * 1024 * 1024

# A shell's <(command) is a pipe that somebody writes to; one in the file system may wait for a writer for ever.
_OPEN_FILES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")

_LINE_TARGET = re.compile(r"(?P<file>.+):(?P<line>[0-9]{1,9})")
_COLUMN_TARGET = re.compile(r"(?P<file>.+):(?P<line>[0-9]{1,9}):(?P<column>[0-9]{1,9})")
_COLUMN_OF_RANGE = re.compile(r"(?P<range>(?P<file>.+):[0-9]{1,9}-[0-9]{1,9}):[0-9]{1,9}:?")
_RANGE_TARGET = re.compile(r"(?P<file>.+):(?P<line>[0-9]{1,9})-(?P<last>[0-9]{1,9})")

# Longest marks first: the UTF-32 mark starts with the UTF-16 one.
_FOREIGN_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True)
class Target:
    """A place in a file as the user names it.

    Attributes:
        file: path of the file, or "-" for standard input.
        line: line of the cursor, or first line of the range; counted from 1.
        column: the cursor stands before this character (code points, from 1); None: at the end of the line.
        last_line: last line of the range to rewrite; None: nothing is replaced.
    """

    file: str
    line: int
    column: int | None = None
    last_line: int | None = None


@dataclass(frozen=True)
class SourceText:
    """The decoded text of a source file.

    Attributes:
        name: what to call the source in messages.
        text: its text without byte order mark; every line ends with "\\n".
        newline: the line ending of the file, "\\n" or "\\r\\n" (the more frequent one where both occur).
        data: the bytes that were decoded.
    """

    name: str
    text: str
    newline: str
    data: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True)
class Gap:
    """The text on both sides of what is to be filled.

    Attributes:
        prefix: everything before the gap.
        suffix: everything behind it. For a range of lines it starts with the line break of the last line, so that no
            answer can glue that line to the next one.
        line: line of the cursor, from 1.
        column: column of the cursor in code points, from 1.
    """

    prefix: str
    suffix: str
    line: int
    column: int


def parse_target(text: str, is_file: Callable[[str], bool] | None = None) -> Target:
    """Parse FILE:LINE, FILE:LINE:COL or FILE:FIRST-LAST.

    A colon may also belong to the file's name ("a:3" in "a:3:5"). The reading with a column is preferred unless only
    the other one names an existing file.

    Args:
        text: the target as typed.
        is_file: tells whether a path exists; None: the file system is asked.

    Raises:
        ValueError: the text names no line, or a range ends before it begins.
    """
    exists = is_file or os.path.exists  # Path's raises an error of its own about a name that is too long
    if match := _RANGE_TARGET.fullmatch(text):
        first, last = int(match["line"]), int(match["last"])
        if last < first:
            raise ValueError(f"{text!r} ends before it begins: write {match['file']}:{last}-{first}")
        return Target(match["file"], first, last_line=last)
    odd = _COLUMN_OF_RANGE.fullmatch(text)
    if odd and not exists(odd["range"]) and not _LINE_TARGET.fullmatch(odd["file"]):
        raise ValueError(f"{text!r}: a range of lines is rewritten whole and takes no column: write {odd['range']}")
    plain = _LINE_TARGET.fullmatch(text)
    if match := _COLUMN_TARGET.fullmatch(text):
        if plain and not exists(match["file"]) and exists(plain["file"]):
            return Target(plain["file"], int(plain["line"]))
        return Target(match["file"], int(match["line"]), int(match["column"]))
    if plain:
        return Target(plain["file"], int(plain["line"]))
    raise ValueError(f"{text!r} names no line: write FILE:LINE, FILE:LINE:COL or FILE:FIRST-LAST")


def read_source(path: str | Path) -> SourceText:
    """Read and decode a source file.

    Raises:
        SourceFileError: the file is missing, not a regular file, unreadable, empty, too large, binary or not UTF-8.
    """
    name = str(path)
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise SourceFileError(f"{name}: this is a folder; name a file in it")
        if stat.S_ISFIFO(mode) and not name.startswith(_OPEN_FILES):
            raise SourceFileError(
                f"{name}: this is a named pipe; name a regular file, or send the text in and write -:LINE"
            )
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise SourceFileError(f"{name}: this is a device or socket; name a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceFileError(f"{name}: no such file; check the path, seen from {Path.cwd()}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceFileError(f"{name}: cannot be read: {reason}") from error
    return decode_source(data, name)


def decode_source(data: bytes, name: str) -> SourceText:
    """Decode the bytes of a source file: UTF-8, with or without byte order mark, LF or CRLF.

    Args:
        data: the whole file.
        name: what to call the source in messages.

    Raises:
        SourceFileError: there is no text, or it is too large, binary or in another encoding.
    """
    if len(data) > MAX_SOURCE_BYTES:
        raise SourceFileError(f"{name}: more than {MAX_SOURCE_BYTES // 2**20} MiB; a source file was expected")
    for mark, encoding in _FOREIGN_MARKS:
        if data.startswith(mark):
            raise SourceFileError(f"{name}: encoded as {encoding}, UTF-8 is needed; {_conversion(encoding, name)}")
    if b"\0" in data:
        raise SourceFileError(f"{name}: a binary file (NUL at byte {data.index(0) + 1:,}); a text file is needed")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        bad, line = error.object[error.start], error.object.count(b"\n", 0, error.start) + 1
        raise SourceFileError(
            f"{name}: not UTF-8: byte 0x{bad:02x} at line {line}; if it is Windows-1252, {_conversion('CP1252', name)}"
        ) from None
    if not text:
        raise SourceFileError(f"{name}: empty; write a first line (a comment, a def) to go on from")
    num_crlf = text.count("\r\n")
    newline = "\r\n" if 2 * num_crlf > text.count("\n") else "\n"
    return SourceText(name, text.replace("\r\n", "\n") if num_crlf else text, newline, data)


def locate(source: SourceText, target: Target) -> Gap:
    """Cut the text of a source at a target.

    The line after a final line break counts as a line (an editor shows it), with one place to stand on.

    Raises:
        SourceFileError: the line or the column lies outside of the file.
    """
    lines = source.text.split("\n")
    num_lines = len(lines) - (lines[-1] == "")
    last = target.last_line if target.last_line is not None else target.line
    limit = num_lines if target.last_line is not None else len(lines)
    if target.line < 1 or last > limit:
        wrong = target.line if target.line < 1 else last
        raise SourceFileError(
            f"{source.name}: line {wrong:,} is out of range; the file has {_count(num_lines, 'line')}, counted from 1"
        )
    line = lines[target.line - 1]
    start = sum(map(len, lines[: target.line - 1])) + target.line - 1
    if target.last_line is not None:
        end = start + sum(map(len, lines[target.line - 1 : last])) + last - target.line
        return Gap(source.text[:start], source.text[end:], target.line, 1)
    column = target.column if target.column is not None else len(line) + 1
    if not 1 <= column <= len(line) + 1:
        raise SourceFileError(
            f"{source.name}: column {column:,} is out of range; line {target.line:,} has "
            f"{_count(len(line), 'character')}, so its columns are 1 to {len(line) + 1:,}"
        )
    cut = start + column - 1
    return Gap(source.text[:cut], source.text[cut:], target.line, column)


def _conversion(encoding: str, name: str) -> str:
    source = f"'{name}'" if name != STANDARD_INPUT_NAME else "FILE"
    return f"convert it: iconv -f {encoding} -t UTF-8 {source} > converted"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
