"""Text that somebody else wrote, made fit for a terminal.

This file owns which characters a terminal may be sent. It knows no terminal. Invariant: of what `TerminalFilter` lets
through, no character is a control but newline and tab, none is invisible, and none changes the order of others. What it
does not let through it shows: a picture for ASCII controls, <U+202E> for the rest. As each character is judged by
itself (and the one before), a sequence that comes in pieces has no way around it.

Only terminals are protected; a file or a pipe gets the bytes as the model wrote them.

Source: Unicode 15, DerivedCoreProperties.txt (Default_Ignorable_Code_Point) and Bidi_Control; trojansource.codes
(arXiv 2111.00169) on invisible and reordering characters in source code.
"""

from __future__ import annotations

import re
import unicodedata

_FIRST_PICTURE = 0x2400  # U+2400 SYMBOL FOR NULL and those behind it show the ASCII controls
_DELETE, _DELETE_PICTURE = 0x7F, 0x2421
_KEPT = frozenset("\n\t")
# Format characters that are visible: signs before Arabic, Syriac and Kaithi numbers.
_VISIBLE_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Without a glyph, though no format characters: fillers, joiners and selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2028\u2029\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0000-\U000e0fff]"
)
# They shape emoji and the scripts that join letters; behind anything else they only hide.
_JOINERS = frozenset("\u200c\u200d")
_SELECTORS = frozenset("\ufe0e\ufe0f")
_PLAIN = re.compile(r"[\n\t\x20-\x7e]*")


class TerminalFilter:
    """Makes the pieces of one text fit for a terminal."""

    def __init__(self) -> None:
        """Begin a text."""
        self._previous = ""

    def push(self, piece: str) -> str:
        """Return what may be shown of the next piece."""
        if not piece:
            return ""
        if _PLAIN.fullmatch(piece):  # nearly always
            self._previous = piece[-1]
            return piece
        shown = []
        for character in piece:
            shown.append(character if self._is_fit(character) else visible_form(character))
            self._previous = character
        return "".join(shown)

    def _is_fit(self, character: str) -> bool:
        if character in _JOINERS:
            return ord(self._previous or "\0") >= 0x0600 and self._previous not in _JOINERS
        if character in _SELECTORS:
            is_base = self._previous not in ("", *_KEPT, " ") and not _INVISIBLE.match(self._previous)
            return is_base and not self._previous.isalpha()
        category = unicodedata.category(character)
        if category == "Cc":
            return character in _KEPT
        is_format = category in ("Cf", "Cs") and character not in _VISIBLE_FORMATS
        return not is_format and not _INVISIBLE.match(character)


def visible_text(text: str) -> str:
    """Return a whole text fit for a terminal."""
    return TerminalFilter().push(text)


def visible_line(text: str) -> str:
    """Return a text fit for one line of a terminal: line breaks and tabs become spaces."""
    return visible_text(" ".join(text.split()))


def visible_form(character: str) -> str:
    """Return what stands for a character that must not be sent."""
    number = ord(character)
    if number < 0x20:
        return chr(_FIRST_PICTURE + number)
    return chr(_DELETE_PICTURE) if number == _DELETE else f"<U+{number:04X}>"
