"""A scan of brackets, strings and comments, good enough to see where a gap lies in code.

This file owns the state that a text leaves a reader in. It parses nothing else and decides nothing. Invariant: the scan
takes each character once, from left to right, so what it says about a position depends only on the text up to it, and
a text costs the same whole or in pieces.
"""

from __future__ import annotations

import re

from cg_local.infill.syntax import CLOSER_OF, Syntax

_SPECIAL = re.compile(r"""[\\\n"'`#/*\-()\[\]{}<>!]""")
SPECIALS = frozenset("\\\n\"'`#/*-()[]{}<>!")
"""The characters that a scanner has to be fed with; it may be fed with others."""


class Scanner:
    """Reads code.

    Attributes:
        brackets: the open brackets, outermost first.
        quote: the mark that opened the string or comment which is open; "" outside of them.
        floor: of the brackets open at `mark_gap`, how many are still open.
        unmatched: position and character of the last closer whose bracket was not opened after `mark_gap`, if any.
        num_unmatched: how many of these there were.
        quote_end: where the mark stands that ends the string that was open at `mark_gap`; None if there is none.
    """

    def __init__(self, syntax: Syntax, quote: str = "") -> None:
        """Start before a text.

        Args:
            syntax: how its language writes strings and comments.
            quote: the string or comment that the text starts in.
        """
        self.brackets: list[str] = []
        self.quote = quote
        self.floor = self.num_unmatched = 0
        self.unmatched: tuple[int, str] | None = None
        self.quote_end: int | None = None
        self._syntax = syntax
        self._is_outer_quote = bool(quote)
        self._recent, self._last, self._escaped = "", -2, -1
        self._tick = -3  # where a single quote stood that may open a character
        self._held: tuple[int, str] | None = None

    def read(self, text: str, start: int = 0) -> Scanner:
        """Feed a text from a position on; return this scanner."""
        for match in _SPECIAL.finditer(text, start):
            position = match.start()
            self.feed(position, match.group(), text[position - 1] if position else "")
        return self

    def mark_gap(self) -> None:
        """Say that the gap starts here: positions count from 0 again, and brackets open now are the file's."""
        self.floor, self._is_outer_quote = len(self.brackets), bool(self.quote)
        self.num_unmatched, self.unmatched, self.quote_end = 0, None, None
        self._recent, self._last, self._escaped, self._tick, self._held = "", -2, -1, -3, None

    def feed(self, position: int, character: str, before: str) -> None:
        """Take a character of `SPECIALS`; others change nothing.

        Args:
            position: of the character; it only grows.
            character: one character.
            before: the character before it, "" at the start of the text.
        """
        if self._held is not None:
            held, self._held = self._held, None
            if character == "'" and position == held[0] + 1:
                self._last = position
                return
            self._take(*held, "'")
        if character not in SPECIALS or position == self._escaped:
            return
        if self._syntax.has_lifetimes and not self.quote and self._is_character(position, character):
            return
        self._take(position, character, before)

    def _is_character(self, position: int, character: str) -> bool:
        """Whether this belongs to a character in single quotes, or to a name behind one."""
        if position == self._tick + 1 and character == "\\":
            self.quote, self._escaped = "'", position + 1
            return True
        if position == self._tick + 1 and character != "'":
            self._held = (position, character)
            return True
        if character == "'":
            self._tick = -3 if position - self._tick <= 2 else position
            return True
        return False

    def _take(self, position: int, character: str, before: str) -> None:
        self._recent = (self._recent + character)[-4:] if position == self._last + 1 else character
        self._last = position
        if self.quote:
            self._within(position, character)
        else:
            self._outside(position, character, before)

    def _within(self, position: int, character: str) -> None:
        syntax, quote = self._syntax, self.quote
        if quote in syntax.line_comments:
            if character == "\n":
                self._end_quote(None)
        elif quote == syntax.block_comment[0]:
            if self._recent.endswith(syntax.block_comment[1]):
                self._end_quote(position - len(syntax.block_comment[1]) + 1)
        elif character == "\\":
            self._escaped = position + 1
        elif self._recent.endswith(quote):
            self._end_quote(position - len(quote) + 1)
            if len(quote) == 3:
                self._recent = ""  # a fourth one opens anew
        elif character == "\n" and len(quote) == 1 and quote not in syntax.long_quotes:
            self._end_quote(None)

    def _end_quote(self, start: int | None) -> None:
        self.quote = ""
        if start is None or self._recent[-1:] not in self._syntax.quotes:
            self._recent = ""
        if self._is_outer_quote:
            self.quote_end, self._is_outer_quote = start, False

    def _outside(self, position: int, character: str, before: str) -> None:
        syntax = self._syntax
        opening, _ = syntax.block_comment
        if opening and self._recent.endswith(opening):
            self.quote, self._recent = opening, ""
        elif comment := next((mark for mark in syntax.line_comments if self._recent.endswith(mark)), ""):
            if not (syntax.hash_needs_blank and before not in ("", " ", "\t", "\n", ";")):
                self.quote, self._recent = comment, ""
        elif character in syntax.quotes:
            is_triple = syntax.has_triple_quotes and self._recent.endswith(3 * character)
            self.quote = 3 * character if is_triple else character
            if is_triple:
                self._recent = ""
        elif character in CLOSER_OF:
            self.brackets.append(character)
        elif character in ")]}":
            self._close(position, character)

    def _close(self, position: int, closer: str) -> None:
        if len(self.brackets) > self.floor:
            self.brackets.pop()
        elif not self.brackets and closer in self._syntax.loose_closers:
            return
        else:
            self.num_unmatched, self.unmatched = self.num_unmatched + 1, (position, closer)
            if self.brackets:
                self.brackets.pop()
                self.floor -= 1


def first_unmatched(text: str, syntax: Syntax, quote: str) -> tuple[list[tuple[int, str]], int | None]:
    """Return the closers of a text whose brackets were opened before it, and where the string it starts in ends."""
    scanner, found = Scanner(syntax, quote), []
    for match in _SPECIAL.finditer(text):
        count, position = scanner.num_unmatched, match.start()
        scanner.feed(position, match.group(), text[position - 1] if position else "")
        if scanner.num_unmatched > count and scanner.unmatched is not None:
            found.append(scanner.unmatched)
    return found, scanner.quote_end
