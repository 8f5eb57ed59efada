"""Tables of Markdown as aligned columns.

This file owns the widths of columns and the drawing of rows. Invariant: the widths are chosen once for a table, so that
rows that come later stand below those that were drawn.

Source: GitHub Flavored Markdown, section 4.10 (tables).
"""

from __future__ import annotations

import re

from rich.cells import cell_len

from cg_local.cli.repl.ink import Ink
from cg_local.cli.repl.markdown_inline import Span, inline_spans
from cg_local.cli.repl.word_wrapper import wrapped

GAP = "  "
MIN_CELL = 4

_DELIMITERS = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
_BORDER = re.compile(r"(?<!\\)\|")


def is_row(line: str) -> bool:
    """Whether a line may be a row; only those that begin with a bar count."""
    return line.lstrip().startswith("|")


def is_delimiter_row(line: str) -> bool:
    """Whether a line is what stands below a table's header."""
    return "-" in line and _DELIMITERS.fullmatch(line.strip()) is not None


class Table:
    """A table whose first rows are known.

    Args:
        lines: header, delimiter row, and rows.
        columns: of the terminal.
        ink: draws.
    """

    def __init__(self, lines: list[str], columns: int, ink: Ink) -> None:
        self._ink = ink
        self._alignments = [_alignment(cell) for cell in _cells(lines[1])]
        rows = [self._spans(line) for line in (lines[0], *lines[2:])]
        natural = [max(_width(row[place]) for row in rows) for place in range(len(self._alignments))]
        self._widths = _fitted(natural, columns - 1 - len(GAP) * (len(natural) - 1))
        self._head, self._body = lines[0], lines[2:]

    def draw(self) -> str:
        """Return header, a rule and the rows that are known."""
        head = [[Span(text, (*kinds, "bold")) for text, kinds in cell] for cell in self._spans(self._head)]
        rule = self._ink.draw(GAP.join("─" * width for width in self._widths), "rule")
        return self._draw_row(head) + rule + "\n" + "".join(map(self.draw_line, self._body))

    def draw_line(self, line: str) -> str:
        """Return one more row."""
        return self._draw_row(self._spans(line))

    def _spans(self, line: str) -> list[list[Span]]:
        cells = _cells(line)[: len(self._alignments)]
        cells += [""] * (len(self._alignments) - len(cells))
        return [inline_spans(cell) for cell in cells]

    def _draw_row(self, cells: list[list[Span]]) -> str:
        columns = [wrapped(cell, width) for cell, width in zip(cells, self._widths, strict=True)]
        lines = []
        for number in range(max(map(len, columns))):
            parts = [
                self._draw_cell(column[number] if number < len(column) else [], width, alignment)
                for column, width, alignment in zip(columns, self._widths, self._alignments, strict=True)
            ]
            lines.append(GAP.join(parts).rstrip() + "\n")
        return "".join(lines)

    def _draw_cell(self, spans: list[Span], width: int, alignment: str) -> str:
        space = width - _width(spans)
        before = {"left": 0, "right": space, "center": space // 2}[alignment]
        text = "".join(self._ink.draw(text, *kinds) for text, kinds in spans)
        return " " * before + text + " " * (space - before)


def _cells(line: str) -> list[str]:
    cells = [cell.strip().replace("\\|", "|") for cell in _BORDER.split(line.strip())]
    return cells[1 if cells[0] == "" else 0 : -1 if len(cells) > 1 and cells[-1] == "" else None]


def _alignment(cell: str) -> str:
    if cell.endswith(":"):
        return "center" if cell.startswith(":") else "right"
    return "left"


def _width(spans: list[Span]) -> int:
    return sum(cell_len(text) for text, _ in spans)


def _fitted(natural: list[int], room: int) -> list[int]:
    """Take from the widest column until all fit, as far as each keeps MIN_CELL."""
    widths = [max(width, 1) for width in natural]
    while sum(widths) > room and max(widths) > MIN_CELL:
        widths[widths.index(max(widths))] -= 1
    return widths
