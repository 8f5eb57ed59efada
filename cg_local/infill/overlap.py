"""Where a growing text begins to repeat what follows the gap.

This file owns the comparison with the next lines of the file and with the rest of the gap's line. It cuts nothing.
Invariant: `pending` is never behind a place that `cut` may name once the text ends here or goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from cg_local.infill.syntax import BLANK

ClosesOwn = Callable[[int], bool]
"""Whether the text from a position on closes a bracket that the text before it opened, and so belongs to it."""


class LineOverlap:
    """Follows whole lines.

    Attributes:
        num_lines: how many lines of the file the last lines of the text repeat.
        last_line: the last line that is not blank, without trailing blanks.
    """

    def __init__(self, following: tuple[str, ...], lead: str, closes_own: ClosesOwn) -> None:
        """Start before the text.

        Args:
            following: the next lines of the file that are not blank, without trailing blanks.
            lead: what stands left of the gap on its line; it belongs to the text's first line.
            closes_own: see `ClosesOwn`.
        """
        self._following, self._closes_own = following, closes_own
        self._cut: int | None = None
        self._line_start = 0  # where the text after the last line that is not blank begins
        # A match: how many lines it has already, and where the text is cut if it gets whole.
        self._matched: list[tuple[int, int]] = []
        self._alive: list[tuple[int, int]] = []
        self._column, self._is_blank = 0, True
        self.num_lines, self.last_line = 0, ""
        self._line: list[str] = []
        self._start_line()
        for character in lead:
            self._compare(character)

    def feed(self, position: int, character: str) -> None:
        """Take the next character."""
        if character != "\n":
            self._compare(character)
            return
        if not self._is_blank:
            self._cut, self._matched, self.num_lines = self._whole()
            self._line_start = position + 1
            self.last_line = "".join(self._line).rstrip(BLANK)
        self._start_line()

    def cut(self) -> int | None:
        """Where to cut if the text ends here; None for nowhere."""
        return self._cut if self._is_blank else self._whole()[0]

    def pending(self, length: int) -> int:
        """Up to where a text of this length repeats nothing, whatever comes."""
        cuts = [start for _, start in self._alive] if not self._is_blank else []
        if self._is_blank and self._cut is not None:
            cuts.append(self._cut)
        return min([length, *cuts])

    def _start_line(self) -> None:
        first = self._cut if self._cut is not None else self._line_start
        self._alive = [match for match in (*self._matched, (0, first)) if match[0] < len(self._following)]
        self._column, self._is_blank, self._line = 0, True, []

    def _compare(self, character: str) -> None:
        column, self._column = self._column, self._column + 1
        self._line.append(character)
        self._is_blank = self._is_blank and character in BLANK
        if self._alive:
            self._alive = [match for match in self._alive if self._fits(self._following[match[0]], column, character)]

    @staticmethod
    def _fits(line: str, column: int, character: str) -> bool:
        return line[column] == character if column < len(line) else character in " \t"

    def _whole(self) -> tuple[int | None, list[tuple[int, int]], int]:
        """The cut, the matches and the longest match's lines, if the line ends here."""
        whole = [
            (size + 1, start)
            for size, start in self._alive
            if self._column >= len(self._following[size]) and not self._closes_own(start)
        ]
        return min((start for _, start in whole), default=None), whole, max((size for size, _ in whole), default=0)


class RestOverlap:
    """Follows the rest of the gap's line, with and without the blanks it starts with."""

    def __init__(self, line_suffix: str) -> None:
        """Prepare for the text right of the gap; a single letter or digit repeats nothing."""
        rest = line_suffix.rstrip(BLANK)
        bare = rest.lstrip(BLANK)
        is_telling = len(bare) > 1 or not bare.isalnum()
        self._wanted = list(dict.fromkeys((rest, bare))) if bare and is_telling else []
        self._failure = [_failure_of(wanted) for wanted in self._wanted]
        self._sizes = [0] * len(self._wanted)
        self._ends: list[int | None] = [None] * len(self._wanted)

    def feed(self, position: int, character: str) -> None:
        """Take the next character."""
        for index, wanted in enumerate(self._wanted):
            size, failure = self._sizes[index], self._failure[index]
            while size and (size == len(wanted) or wanted[size] != character):
                size = failure[size - 1]
            self._sizes[index] = size = size + (wanted[size] == character)
            if size == len(wanted):
                self._ends[index] = position + 1
            elif character not in BLANK:
                self._ends[index] = None

    def cut(self) -> int | None:
        """Where to cut if the text ends here; None for nowhere."""
        for end, wanted in zip(self._ends, self._wanted, strict=True):
            if end is not None:
                return end - len(wanted)
        return None

    def pending(self, length: int) -> int:
        """Up to where a text of this length repeats nothing, whatever comes."""
        starts = [length - size for size in self._sizes]
        whole = [end - len(wanted) for end, wanted in zip(self._ends, self._wanted, strict=True) if end is not None]
        return min([length, *starts, *whole])


def _failure_of(wanted: str) -> list[int]:
    """For each beginning, how long its longest proper beginning is that also ends it (Knuth, Morris, Pratt, 1977)."""
    failure, size = [0], 0
    for character in wanted[1:]:
        while size and wanted[size] != character:
            size = failure[size - 1]
        size += wanted[size] == character
        failure.append(size)
    return failure


class RepeatedLines:
    """Finds the same few lines over and over again, of a period of up to four lines."""

    MAX_PERIOD = 4
    MAX_COPIES = 4

    def __init__(self) -> None:
        """Start before the text."""
        self._lines: list[str] = []
        self._line: list[str] = []
        self._line_start = 0
        # By period: how many lines equal the ones a period before, where they start, and whether one is not blank.
        self._runs = [(0, 0, False)] * (self.MAX_PERIOD + 1)
        self._is_alike = [False] * (self.MAX_PERIOD + 1)
        self._is_blank = True

    def feed(self, position: int, character: str) -> int | None:
        """Take the next character; return where the repetition starts, if it has gone on for too long."""
        if character != "\n":
            column = len(self._line)
            self._line.append(character)
            self._is_blank = self._is_blank and character in BLANK
            for period in range(1, self.MAX_PERIOD + 1):
                if self._is_alike[period]:
                    line = self._lines[-period]
                    self._is_alike[period] = column < len(line) and line[column] == character
            return None
        return self._end_line(position)

    def _end_line(self, position: int) -> int | None:
        line = "".join(self._line)
        found = None
        for period in range(1, self.MAX_PERIOD + 1):
            count, start, is_filled = self._runs[period]
            if self._is_alike[period] and self._lines[-period] == line:
                run = (count + 1, start if count else self._line_start, is_filled or not self._is_blank)
                if run[2] and run[0] >= (self.MAX_COPIES - 1) * period:
                    found = run[1] if found is None else min(found, run[1])
            else:
                run = (0, 0, False)
            self._runs[period] = run
        self._lines = [*self._lines[-self.MAX_PERIOD + 1 :], line]
        self._line, self._line_start, self._is_blank = [], position + 1, True
        self._is_alike = [False, *(len(self._lines) >= period for period in range(1, self.MAX_PERIOD + 1))]
        return found

    def pending(self, length: int) -> int:
        """Up to where a text of this length repeats nothing, whatever comes."""
        starts = [length]
        for period in range(1, self.MAX_PERIOD + 1):
            count, start, is_filled = self._runs[period]
            if self._is_alike[period] and (is_filled or not self._is_blank):
                starts.append(start if count else self._line_start)
        return min(starts)
