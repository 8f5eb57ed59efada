"""An answer in Markdown, rendered while it is being written.

This file owns what kind of block a line belongs to. Invariant: text is only ever appended; a word of prose is written
when its line's marks before it are decided, a line of code as far as its strings are, a table when its columns are
known. So nothing flickers, and the width of the terminal may change at any time.

Source: CommonMark 0.31; GitHub Flavored Markdown for tables. Line breaks within paragraphs stay, because models and
people write them on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cg_local.cli.repl.code_highlighter import CodeHighlighter
from cg_local.cli.repl.ink import Ink
from cg_local.cli.repl.markdown_inline import InlineText, Span
from cg_local.cli.repl.markdown_table import Table, is_delimiter_row, is_row
from cg_local.cli.repl.word_wrapper import WordWrapper
from cg_local.code_blocks import Fence, opening_fence

MAX_HELD_ROWS = 16
"""A table's columns are chosen when so many lines of it are known; longer tables go on row by row."""
RULE_COLUMNS = 60

_HEADING = re.compile(r" {0,3}(?P<marks>#{1,6})(?:\s+(?P<text>.*?))?(?:\s+#+)?\s*")
_BULLET = re.compile(r"(?P<indent>\s*)[-*+]\s+(?=\S)")
_NUMBER = re.compile(r"(?P<indent>\s*)(?P<number>\d{1,9}[.)])\s+(?=\S)")
_QUOTE = re.compile(r" {0,3}(?P<marks>>(?: ?>)*) ?")
_BREAK = re.compile(r" {0,3}([-*_])(?:\s*\1){2,}\s*")
# What a line may still become another block of, while it is being written: a fence, a heading, a row, a quote or list
# mark without text behind it, a rule.
_UNDECIDED = re.compile(r"\s*(?:[`~]{1,2}|[`~]{3,}.*|#.*|\|.*|\d{1,9}[.)]?\s*|[+]\s*|[-*_\s]*|>[>\s]*)")


class MarkdownStream:
    """Renders one answer.

    Args:
        write: takes text for the terminal.
        columns: tells the terminal's width; where that is 0, prose is not broken into lines.
        ink: draws.
    """

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int], ink: Ink) -> None:
        self._write, self._columns, self._ink = write, columns, ink
        self._words = WordWrapper(write, columns, ink)
        self._line = ""
        self._inline: InlineText | None = None  # of a line of prose under way
        self._verbatim: int | None = None  # columns written of a line under way that is shown as it is
        self._fed = 0
        self._fence: Fence | None = None
        self._code = CodeHighlighter("", ink)
        self._rows: list[str] = []
        self._table: Table | None = None
        self._num_blocks = 0
        self._is_in_list = self._is_after_blank = False
        self._is_empty = True

    def push(self, text: str) -> None:
        """Take the next piece of the answer."""
        *lines, rest = text.split("\n")
        for line in lines:
            self._line += line
            self._end_line()
        if rest:
            self._line += rest
            self._advance()

    def finish(self) -> None:
        """End the answer; the cursor stands at the start of a line."""
        if self._line:
            self._end_line()
        self._end_table()
        if self._fence is not None:
            self._close_fence()

    # A line under way

    def _advance(self) -> None:
        """Write what is final of the line under way."""
        if self._fence is not None:
            self._advance_code(self._fence)
        elif self._inline is None and self._verbatim is None and not _UNDECIDED.fullmatch(self._line):
            self._begin_line()
        if self._fence is None:
            self._feed()

    def _begin_line(self) -> None:
        """Decide what a line is and write what stands before its text."""
        self._end_table()
        line = self._line
        self._is_empty = self._is_after_blank = False
        self._fed = 0
        if bullet := _BULLET.match(line):
            self._begin_item(bullet["indent"] + "• ", bullet.end())
        elif number := _NUMBER.match(line):
            self._begin_item(f"{number['indent']}{number['number']} ", number.end())
        elif quote := _QUOTE.match(line):
            marks = "│ " * quote["marks"].count(">")
            self._begin_prose(marks, quote.end(), "mark", rest=marks)
        elif line.startswith(("    ", "\t")) and not self._is_in_list:
            self._verbatim = 0
        else:
            indent = line[: len(line) - len(line.lstrip())] if self._is_in_list else ""
            self._is_in_list = self._is_in_list and bool(indent)
            self._begin_prose(indent.expandtabs(4), len(line) - len(line.lstrip()))

    def _begin_item(self, mark: str, start: int) -> None:
        self._is_in_list = True
        self._begin_prose(mark.expandtabs(4), start)

    def _begin_prose(self, first: str, start: int, *kinds: str, rest: str | None = None) -> None:
        self._words.begin(first, rest, *kinds)
        self._inline, self._fed = InlineText(), start

    def _feed(self) -> None:
        """Hand the new part of a line on."""
        if self._inline is not None:
            self._words.put(self._inline.push(self._line[self._fed :]))
            self._fed = len(self._line)
        elif self._verbatim is not None:
            self._write(self._line[self._verbatim :])
            self._verbatim = len(self._line)

    # Whole lines

    def _end_line(self) -> None:
        line, begun = self._line, self._inline is not None or self._verbatim is not None
        if self._fence is not None:
            self._end_code_line(self._fence)
        elif begun:
            self._end_prose()
        elif not line.strip():
            self._blank()
        elif fence := opening_fence(line, max_indent=len(line)):
            self._open_fence(fence)
        elif is_row(line):
            self._add_row(line)
        elif _BREAK.fullmatch(line):
            self._end_table()
            self._say(self._ink.draw("─" * self._rule_columns(), "rule"))
        elif heading := _HEADING.fullmatch(line):
            self._heading(heading["text"] or "")
        else:
            self._begin_line()
            self._end_prose()
        self._line = ""

    def _end_prose(self) -> None:
        self._feed()
        if self._inline is not None:
            self._words.put(self._inline.finish())
            self._words.end()
        else:
            self._write("\n")
        self._inline = self._verbatim = None

    def _blank(self) -> None:
        """Any number of empty lines is one; none stands at the start."""
        self._end_table()
        if not self._is_after_blank and not self._is_empty:
            self._write("\n")
        self._is_after_blank = True

    def _heading(self, text: str) -> None:
        self._end_table()
        self._is_empty = self._is_after_blank = self._is_in_list = False
        self._words.begin()
        inline = InlineText()
        spans = [*inline.push(text), *inline.finish()]
        self._words.put([Span(part, (*kinds, "heading")) for part, kinds in spans])
        self._words.end()

    def _say(self, line: str) -> None:
        self._is_empty = self._is_after_blank = False
        self._write(line + "\n")

    def _rule_columns(self) -> int:
        return min((self._columns() or RULE_COLUMNS + 1) - 1, RULE_COLUMNS)

    # Code

    def _open_fence(self, fence: Fence) -> None:
        self._end_table()
        self._fence = fence
        self._code = CodeHighlighter(fence.language, self._ink)
        self._num_blocks += 1
        self._fed = 0
        # The number is what /copy and /write take.
        title = f"── {fence.language} " if fence.language else "── "
        title = f"{title}[{self._num_blocks}] "[: self._rule_columns()]
        self._say(self._ink.draw(title + "─" * (self._rule_columns() - len(title)), "rule"))

    def _close_fence(self) -> None:
        self._fence = None
        self._say(self._ink.draw("─" * self._rule_columns(), "rule"))

    def _advance_code(self, fence: Fence) -> None:
        """Write a line of code up to its last space, if it is not within a string and no fence can come of it."""
        # What is written is no fence any more; before that, a line of marks alone may become one.
        if not self._fed and not self._line.strip().strip(fence.mark):
            return
        code = fence.without_indent(self._line)
        end = code.rfind(" ") + 1
        if end > self._fed and code[:end].strip() and self._code.is_settled(code[:end]):
            self._write(self._code.part(code, self._fed, end))
            self._fed = end

    def _end_code_line(self, fence: Fence) -> None:
        if fence.is_closed_by(self._line):
            self._close_fence()
        else:
            code = fence.without_indent(self._line)
            self._write(self._code.part(code, self._fed, len(code)) + "\n")
            self._code.end_line(code)
        self._fed = 0

    # Tables

    def _add_row(self, line: str) -> None:
        self._is_empty = self._is_after_blank = False
        if self._table is not None:
            self._write(self._table.draw_line(line))
            return
        self._rows.append(line)
        if len(self._rows) == 2 and not is_delimiter_row(line):
            self._end_table()
        elif len(self._rows) == MAX_HELD_ROWS:
            self._begin_table()

    def _begin_table(self) -> None:
        rows, self._rows = self._rows, []
        self._table = Table(rows, self._columns() or 1 << 30, self._ink)
        self._write(self._table.draw())

    def _end_table(self) -> None:
        """Draw the rows that wait; those that are no table are prose."""
        rows, self._rows = self._rows, []
        if len(rows) > 1 and is_delimiter_row(rows[1]):
            self._rows = rows
            self._begin_table()
        else:
            for row in rows:
                self._words.begin()
                inline = InlineText()
                self._words.put([*inline.push(row.strip()), *inline.finish()])
                self._words.end()
        self._table = None
