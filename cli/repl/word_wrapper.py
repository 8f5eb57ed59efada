"""Words into lines of a terminal.

This file owns where a line of prose is broken. Invariant: a word is written once, when it is complete, and nothing that
was written is moved: a later width counts from the next word on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.cells import cell_len

from cg_local.cli.repl.ink import Ink
from cg_local.cli.repl.markdown_inline import Span

MAX_COLUMNS = 100
"""Longer lines of prose are hard to read."""
MIN_COLUMNS = 20
# They stay with the character before them, as Chinese and Japanese typesetting has it.
_CLOSING = frozenset("、。，．！？：；）」』】》〉〕…ーっゃゅょ々")  # noqa: RUF001


class WordWrapper:
    """Writes lines of words.

    Args:
        write: takes text for the terminal.
        columns: tells the terminal's width; where that is 0, lines are not broken.
        ink: draws.
    """

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int], ink: Ink) -> None:
        self._write, self._columns, self._ink = write, columns, ink
        self._word: list[Span] = []
        self._spaces = ""
        self._rest, self._rest_width = "", 0
        self._column = 0

    def begin(self, first: str = "", rest: str | None = None, *kinds: str) -> None:
        """Begin a line.

        Args:
            first: stands before the text.
            rest: stands before what goes on below it; None for spaces of the same width.
            *kinds: looks of both.
        """
        width = cell_len(first)
        self._rest = self._ink.draw(" " * width if rest is None else rest, *kinds)
        self._rest_width = width if rest is None else cell_len(rest)
        self._write(self._ink.draw(first, *kinds))
        self._column, self._spaces = width, ""

    def put(self, spans: Iterable[Span]) -> None:
        """Write the words that these spans complete."""
        for text, kinds in spans:
            start = 0
            for place, character in enumerate(text):
                if character.isspace():
                    self._extend(text[start:place], kinds)
                    self._end_word()
                    self._spaces += " " if character in "\n\t" else character
                    start = place + 1
                elif self._breaks_before(character, text[place - 1] if place > start else ""):
                    self._extend(text[start:place], kinds)
                    self._end_word()
                    start = place
            self._extend(text[start:], kinds)

    def end(self) -> None:
        """Write what is left of the line, and the line break."""
        self._end_word()
        self._write("\n")
        self._spaces, self._column = "", 0

    def _extend(self, text: str, kinds: tuple[str, ...]) -> None:
        if text:
            self._word.append(Span(text, kinds))

    def _breaks_before(self, character: str, previous: str) -> bool:
        """Whether a line may be broken before a character though no space stands there; `previous`: "" for none."""
        last = previous or (self._word[-1].text[-1:] if self._word else "")
        if not last or character in _CLOSING or (ord(last) < 0x2E80 and ord(character) < 0x2E80):
            return False
        # Emoji that a joiner or a selector binds together are one.
        is_bound = cell_len(character) == 0 or last == "\u200d"
        return not is_bound and (cell_len(character) == 2 or cell_len(last) == 2)

    def _end_word(self) -> None:
        if not self._word:
            return
        width = cell_len("".join(span.text for span in self._word))
        columns = self._columns()
        # The last column stays free: some terminals break the line there by themselves.
        limit = min(max(columns, MIN_COLUMNS) - 1, MAX_COLUMNS) if columns else 1 << 30
        is_first = self._column == self._rest_width
        if not is_first and self._column + len(self._spaces) + width > limit:
            self._write("\n" + self._rest)
            self._column = self._rest_width
        elif self._spaces and not is_first:
            self._write(self._spaces)
            self._column += len(self._spaces)
        for text, kinds in self._word:
            self._write(self._ink.draw(text, *kinds))
        # A word longer than a line is broken by the terminal, so that it can be copied in one piece.
        self._column = (self._column + width) % max(limit + 1, 1)
        self._word, self._spaces = [], ""


def wrapped(spans: Iterable[Span], columns: int) -> list[list[Span]]:
    """Return spans as lines of at most so many columns, longer words cut."""
    lines: list[list[Span]] = [[]]
    room = columns
    for text, kinds in spans:
        for number, word in enumerate(text.split(" ")):
            piece = " " + word if number and room < columns else word
            while cell_len(piece) > room:
                if room == columns:
                    head = _fitting(piece, room)
                    lines[-1].append(Span(head, kinds))
                    piece = piece[len(head) :]
                else:
                    piece = piece.lstrip()
                lines.append([])
                room = columns
            if piece:
                lines[-1].append(Span(piece, kinds))
                room -= cell_len(piece)
    return lines


def _fitting(text: str, columns: int) -> str:
    end = 1
    while end < len(text) and cell_len(text[: end + 1]) <= columns:
        end += 1
    return text[:end]
