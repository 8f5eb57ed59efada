"""Blanks at the start of generated lines: as the file writes them, and not twice at the gap.

This file owns tabs against spaces and the seam left of the gap. It knows no brackets. Invariant: only blanks at the
start of a line change, and what a line's blanks become depends only on the file and on the lines before.
"""

from __future__ import annotations

import re

from cg_local.infill.gap import GapShape
from cg_local.infill.syntax import Syntax, indentation, lead_of

# Lines of the file on each side that tell its style.
_SAMPLE_LINES = 200
_SAMPLE_CHARS = 20_000
_DEFAULT_UNIT = 4
_UNITS = (2, 3, 4, 8)
# A line that ends so goes on in the next one, which may then be deeper.
_GOES_ON = re.compile(r"[(\[{:,=+\-*/&|\\<>?.]\s*$|\b(do|then|else|return)\s*$")


class IndentationStyle:
    """Writes blanks the way the file does."""

    def __init__(self, prefix: str, suffix: str) -> None:
        """Look at the lines of the file around the gap."""
        lines = (
            prefix[-_SAMPLE_CHARS:].split("\n")[-_SAMPLE_LINES:] + suffix[:_SAMPLE_CHARS].split("\n")[:_SAMPLE_LINES]
        )
        leads = [lead_of(line) for line in lines if line.strip()]
        widths = [len(lead) for lead in leads if lead.startswith("  ")]
        has_tabs = any(lead.startswith("\t") for lead in leads)
        self.uses_tabs = has_tabs and not widths
        self.uses_spaces = bool(widths) and not has_tabs
        self.unit = next((width for width in (min(widths, default=0),) if width in _UNITS), _DEFAULT_UNIT)
        self._text_unit = 0  # spaces that stand for a tab, told by the first line that has any

    def rewrite(self, lead: str, depth: int) -> str:
        """Return a line's blanks as the file writes them.

        Args:
            lead: spaces and tabs.
            depth: how many tabs a line at this place has most likely.
        """
        if self.uses_tabs and lead and lead == len(lead) * " ":
            if not self._text_unit:
                unit = len(lead) // depth if depth and len(lead) % depth == 0 else 0
                self._text_unit = unit if unit in _UNITS else _DEFAULT_UNIT
            return len(lead) // self._text_unit * "\t" + len(lead) % self._text_unit * " "
        if self.uses_spaces and "\t" in lead:
            return lead.replace("\t", self.unit * " ")
        return lead


def seam(shape: GapShape, syntax: Syntax, lead: str, unit: int) -> tuple[str, str]:
    """Return what stays of the blanks that the text starts with, and how the cut is called ("" if all stay).

    Args:
        shape: the gap.
        syntax: of the file.
        lead: the blanks before the first other character of the text's first line.
        unit: columns of one level of indentation.
    """
    if not lead or shape.quote:
        return lead, ""
    if shape.line_prefix.strip():
        return ("", "double_space") if shape.line_prefix[-1] in " \t" else (lead, "")
    if not shape.line_prefix or not lead.startswith(shape.line_prefix):
        return lead, ""
    goes_on = _GOES_ON.search(shape.above) or (syntax.opener is not None and syntax.opener.match(shape.above))
    deepest = indentation(shape.above) + (unit if goes_on else 0)
    if indentation(shape.line_prefix + lead) > deepest:
        return lead[len(shape.line_prefix) :], "indentation"
    return lead, ""
