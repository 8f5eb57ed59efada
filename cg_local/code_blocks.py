"""The code blocks of a Markdown text.

This file owns where a fenced block begins and ends. It draws nothing. Invariant: a block's text is what stands between
its fences, each line without the indentation of the opening one, and an open block at the end of the text counts.

Source: CommonMark 0.31, section 4.5 (fenced code blocks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPENING = re.compile(r"(?P<indent> {0,3})(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>.*?)[ \t]*")


@dataclass(frozen=True)
class Fence:
    """The opening line of a block.

    Attributes:
        mark: "`" or "~".
        length: of the run of marks; a closing run is at least as long.
        indent: spaces before it.
        info: what stands behind it: the language, and whatever else.
    """

    mark: str
    length: int
    indent: int
    info: str

    @property
    def language(self) -> str:
        """The first word of the info, in small letters; "" for none."""
        return self.info.split()[0].strip("{}.").lower() if self.info.split() else ""

    def is_closed_by(self, line: str) -> bool:
        """Whether a line ends the block."""
        stripped = line.strip()
        is_run = len(stripped) >= self.length and set(stripped) == {self.mark}
        return is_run and len(line) - len(line.lstrip(" ")) <= self.indent + 3

    def without_indent(self, line: str) -> str:
        """Return a line of the block without the fence's own indentation."""
        num_spaces = len(line) - len(line.lstrip(" "))
        return line[min(num_spaces, self.indent) :]


@dataclass(frozen=True)
class CodeBlock:
    """One block.

    Attributes:
        language: as its fence names it; "" for none.
        text: its lines, each with a line break.
    """

    language: str
    text: str


def opening_fence(line: str, *, max_indent: int = 3) -> Fence | None:
    """Return the fence that a line is, None if it is none.

    Args:
        line: without its line break.
        max_indent: spaces that may stand before it; more than 3 only inside a list.
    """
    num_spaces = len(line) - len(line.lstrip(" "))
    if num_spaces > max_indent:
        return None
    match = _OPENING.fullmatch(line.lstrip(" "))
    if match is None or (match["fence"][0] == "`" and "`" in match["info"]):
        return None
    return Fence(match["fence"][0], len(match["fence"]), num_spaces, match["info"])


def code_blocks(text: str) -> list[CodeBlock]:
    """Return the fenced blocks of a text in their order; one inside a list item counts too."""
    blocks: list[CodeBlock] = []
    fence, lines = None, list[str]()
    for line in text.splitlines():
        if fence is None:
            fence = opening_fence(line, max_indent=len(line))
        elif fence.is_closed_by(line):
            blocks.append(CodeBlock(fence.language, "".join(lines)))
            fence, lines = None, []
        else:
            lines.append(fence.without_indent(line) + "\n")
    if fence is not None:
        blocks.append(CodeBlock(fence.language, "".join(lines)))
    return blocks
