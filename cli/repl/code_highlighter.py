"""Highlighting of code that is still being written.

This file owns the way from the lines of a block to styled text, through pygments. Invariant: the parts that `part`
returns for a line, joined and without their styles, are that line; none is given twice, whatever a later line makes of
an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cg_local.cli.repl.ink import PLAIN, Ink

if TYPE_CHECKING:
    from pygments.lexer import Lexer
    from rich.style import Style
    from rich.syntax import SyntaxTheme

MAX_CONTEXT_LINES = 60
"""So many lines before the current one are looked at, at each piece of a line; what goes on for longer, a string or a
comment, is drawn as code. 60 lines take pygments 2 to 6 ms, a token of 2B 70 ms."""

MAX_LINE_CHARACTERS = 300
"""What stands behind so many characters of a line, minified code or data, is drawn plainly: each piece of a line is
looked at together with what stands before it, which would take time with the square of the length."""

_PROBE = "x"


class CodeHighlighter:
    """Styles one code block, line by line.

    Args:
        language: as the fence names it; unknown ones are not highlighted.
        ink: draws.
    """

    def __init__(self, language: str, ink: Ink) -> None:
        self._ink, self._lines = ink, list[str]()
        self._lexer = _lexer(language) if ink.level != PLAIN else None
        self._theme = _theme() if self._lexer is not None else None

    def part(self, line: str, start: int, end: int) -> str:
        """Return columns start..end of the line under way, styled.

        Args:
            line: what there is of it.
            start, end: columns, in characters.
        """
        if self._lexer is None or start >= MAX_LINE_CHARACTERS:
            return line[start:end]
        parts, place, rest = [], 0, line[MAX_LINE_CHARACTERS:end]
        end = min(end, MAX_LINE_CHARACTERS)
        for token, text in self._tokens(line[:MAX_LINE_CHARACTERS]):
            shown = text[max(start - place, 0) : max(end - place, 0)]
            place += len(text)
            if shown:
                parts.append(self._ink.render(shown, self._style(token)))
        return "".join(parts) + rest

    def is_settled(self, line: str) -> bool:
        """Whether what there is of a line will probably keep its look: it is no half string."""
        from pygments.token import Error

        is_plain = self._lexer is None or len(line) > MAX_LINE_CHARACTERS
        return is_plain or not any(token in Error for token, _ in self._tokens(line))

    def end_line(self, line: str) -> None:
        """Take a whole line as context for the next ones."""
        if len(line) > MAX_LINE_CHARACTERS:  # whatever it leaves open
            self._lines.clear()
            return
        self._lines.append(line)
        del self._lines[:-MAX_CONTEXT_LINES]
        # Where a name is a name again, no string, comment or block goes on, and what came before does not matter.
        if self._lexer is not None and self._tokens(_PROBE) == list(self._tokens_of(_PROBE, 0)):
            self._lines.clear()

    def _tokens(self, line: str) -> list[tuple[object, str]]:
        """The pieces of the last line of the block."""
        source = "\n".join([*self._lines, line])
        return list(self._tokens_of(source, len(source) - len(line)))

    def _tokens_of(self, source: str, skip: int) -> Iterator[tuple[object, str]]:
        """The pieces of a text behind its first `skip` characters."""
        assert self._lexer is not None
        for place, token, text in self._lexer.get_tokens_unprocessed(source):
            if place + len(text) > skip:
                yield token, text[max(skip - place, 0) :]

    def _style(self, token: Any) -> Style:
        assert self._theme is not None
        return self._theme.get_style_for_token(token)


def _lexer(language: str) -> Lexer | None:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound:
        return None


def _theme() -> SyntaxTheme:
    from rich.syntax import Syntax

    return Syntax.get_theme("ansi_dark")
