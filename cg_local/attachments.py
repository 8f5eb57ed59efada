"""Files as parts of a question: FILE or FILE:FIRST-LAST, read and put into a fence.

This file owns the naming of a part of a file and how it reads in a question. Reading and decoding is `infill.cursor`'s
work. Invariant: the fence around a text is longer than any run of backticks in it, so no file can end it from within.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cg_local.errors import SourceFileError
from cg_local.infill.cursor import read_source

_RANGE = re.compile(r"(?P<file>.+):(?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9})?)?")


@dataclass(frozen=True)
class Attachment:
    """A file, or lines of it.

    Attributes:
        name: the file's path as the user wrote it.
        text: the lines, each ending with a line break.
        first_line, last_line: from 1; None: the whole file.
    """

    name: str
    text: str
    first_line: int | None = None
    last_line: int | None = None

    @property
    def title(self) -> str:
        """The name, with the lines if not all of them are meant."""
        if self.first_line is None:
            return self.name
        is_one = self.first_line == self.last_line
        return f"{self.name}:{self.first_line}" if is_one else f"{self.name}:{self.first_line}-{self.last_line}"

    @property
    def num_lines(self) -> int:
        """How many lines the text has."""
        return len(_lines(self.text))

    def as_markdown(self) -> str:
        """Return the title and the text in a fence that names the language."""
        longest = max((len(run) for run in re.findall("`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        end = "" if self.text.endswith("\n") else "\n"
        return f"{self.title}:\n{fence}{Path(self.name).suffix[1:]}\n{self.text}{end}{fence}"


def read_attachment(target: str) -> Attachment:
    """Read FILE, FILE:LINE, FILE:FIRST-LAST or FILE:FIRST- (to the end); a file whose name reads so is preferred.

    Raises:
        SourceFileError: the file cannot be read as text (see `read_source`), or has not these lines.
    """
    # Of `os.path`, because pathlib raises for a user who is not there and for names that no file can have.
    path = os.path.expanduser(target)
    match = None if os.path.exists(path) else _RANGE.fullmatch(target)
    if match is None:
        return Attachment(target, read_source(path).text)
    lines = _lines(read_source(os.path.expanduser(match["file"])).text)
    first = int(match["first"])
    last = len(lines) if target.endswith("-") else int(match["last"] or first)
    if first < 1 or first > len(lines):
        raise SourceFileError(f"{target}: the file has lines 1 to {len(lines)}; name some of these")
    if last < first:
        raise SourceFileError(f"{target}: ends before it begins; write {match['file']}:{last}-{first}")
    last = min(last, len(lines))
    return Attachment(match["file"], "".join(lines[first - 1 : last]), first, last)


def _lines(text: str) -> list[str]:
    """Split at line feeds alone, as editors count; `splitlines` takes form feeds and others for ends of lines too."""
    return list(io.StringIO(text, newline="\n"))
