"""Styles of text as a terminal understands them, or none.

This file owns the look of each kind of text and the escape sequences for it. Invariant: with `Ink(0)` no escape
sequence is written at all; with 1 (NO_COLOR) none that sets a colour.

Colours are the 16 of the terminal's own theme, so that they are readable on light and dark grounds alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.style import Style

PLAIN, ATTRIBUTES, COLORS = 0, 1, 2

LOOKS: Mapping[str, str] = {
    "": "",
    "bold": "bold",
    "italic": "italic",
    "strike": "strike",
    "code": "cyan",
    "link": "underline",
    "url": "dim",
    "heading": "bold magenta",
    "quote": "italic",
    "mark": "dim",
    "rule": "dim",
    "note": "dim",
    "warning": "yellow",
    "error": "red",
    "added": "green",
}
"""Kind of text to its look in rich's words."""


def ink_level(is_terminal: bool) -> int:
    """Return how much styling a terminal gets, after NO_COLOR (no-color.org) and TERM."""
    if not is_terminal or os.environ.get("TERM") == "dumb":
        return PLAIN
    return ATTRIBUTES if os.environ.get("NO_COLOR") else COLORS


class Ink:
    """Gives text its look.

    Args:
        level: PLAIN, ATTRIBUTES or COLORS.
    """

    def __init__(self, level: int) -> None:
        self.level = level

    def draw(self, text: str, *kinds: str) -> str:
        """Return the text with the looks of its kinds."""
        look = " ".join(LOOKS[kind] for kind in kinds if LOOKS[kind])
        return self.render(text, _style(look)) if look and text else text

    def render(self, text: str, style: Style) -> str:
        """Return the text in a style of rich's."""
        from rich.color import ColorSystem

        if self.level == PLAIN or not text.strip():
            return text
        if self.level == ATTRIBUTES:
            style = style.without_color
        return style.render(text, color_system=ColorSystem.STANDARD)


@lru_cache(maxsize=64)
def _style(look: str) -> Style:
    from rich.style import Style

    return Style.parse(look)
