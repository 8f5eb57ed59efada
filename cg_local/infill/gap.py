"""How a gap lies in its file.

This file owns what is looked at around the gap, and the choice of the mode. It sees no generated text. Invariant: a
shape depends on at most `_CONTEXT_CHARS` characters on each side, so it costs the same in a long file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cg_local.infill.scanner import Scanner, first_unmatched
from cg_local.infill.syntax import BLANK, CLOSERS, Syntax
from cg_local.infill.trees import place_of_gap

# How far around the gap brackets and strings are looked at: a statement of more lines is hardly ever written by hand.
_CONTEXT_LINES = 200
_CONTEXT_CHARS = 20_000
# A line that starts with one of these, or with a blank, starts no top-level statement.
_NO_START = ("", " ", "\t", ")", "]", "}", "#", '"', "'", "<")
# Their bodies are hardly ever indented: statements within look like top-level ones.
_UNINDENTED = re.compile(r'(inline )?namespace\b.*\{\s*$|extern "C" \{')


@dataclass(frozen=True)
class GapShape:
    """How the gap lies in its lines.

    Attributes:
        line_prefix: text left of the gap on its line.
        line_suffix: text right of the gap on its line; "" where the gap consists of whole lines.
        above: the last line before the gap's that is not blank, "" if there is none.
        following: the next lines of the file that are not blank, without trailing blanks.
        is_whole_lines: the gap starts at a line start and the text after it too, so the middle ends with a line break.
        scanner: the state of a scan at the gap.
        line_floor: how many brackets of `scanner` were opened before the gap's line.
        quote: the string or comment that is open at the gap.
        closes_quote: the text after the gap closes the string that is open at the gap.
        num_needed: how many brackets the text after the gap closes that nothing before it opened.
        num_closable: how many brackets opened before the gap the middle may close; the text after it closes the rest.
        next_closer: the first closer after the gap whose bracket was opened before it; "" if there is none.
        closer_column: where in `line_suffix` it stands; None where it is not there.
        is_comment: the gap lies in a comment.
        ends_comment: it is one that ends with its line, where the gap lies.
        is_in_fence: the gap lies in a fenced part of a text.
    """

    line_prefix: str
    line_suffix: str
    above: str
    following: tuple[str, ...]
    is_whole_lines: bool
    scanner: Scanner
    line_floor: int
    quote: str
    closes_quote: bool
    num_needed: int
    num_closable: int
    next_closer: str
    closer_column: int | None
    is_comment: bool
    ends_comment: bool
    is_in_fence: bool


def gap_shape(prefix: str, suffix: str, syntax: Syntax) -> GapShape:
    """Describe the gap between a prefix and a suffix."""
    line_prefix = prefix[prefix.rfind("\n") + 1 :]
    is_whole_lines = not line_prefix and not suffix.startswith("\n")
    head = suffix[:_CONTEXT_CHARS].split("\n")[:_CONTEXT_LINES]
    lines = prefix[-_CONTEXT_CHARS:].split("\n")[-_CONTEXT_LINES:]
    place = place_of_gap(syntax.language, prefix, suffix)
    scanner, line_floor = _scan_prefix(lines, syntax, place)
    closers, quote_end = first_unmatched(_near_suffix(head), syntax, scanner.quote)
    position, closer = closers[0] if closers else (len(suffix), "")
    return GapShape(
        line_prefix=line_prefix,
        line_suffix="" if is_whole_lines else head[0],
        above=next((line for line in reversed(lines[:-1]) if line.strip(BLANK)), ""),
        following=tuple(line.rstrip(BLANK) for line in head[0 if is_whole_lines else 1 :] if line.strip(BLANK)),
        is_whole_lines=is_whole_lines,
        scanner=scanner,
        line_floor=line_floor,
        quote=scanner.quote,
        closes_quote=quote_end is not None and scanner.quote not in syntax.line_comments,
        num_needed=max(0, len(closers) - len(scanner.brackets)),
        num_closable=max(0, len(scanner.brackets) - len(closers)),
        next_closer=closer,
        closer_column=position if not is_whole_lines and position < len(head[0]) else None,
        is_comment=bool(scanner.quote) and scanner.quote in (*syntax.line_comments, syntax.block_comment[0]),
        ends_comment=scanner.quote in syntax.line_comments and not is_whole_lines and not head[0].strip(BLANK),
        is_in_fence=syntax.is_prose and sum(line.lstrip(" ").startswith("```") for line in lines[:-1]) % 2 == 1,
    )


def _scan_prefix(lines: list[str], syntax: Syntax, place: str | None) -> tuple[Scanner, int]:
    """Scan what stands before the gap; where a tree knows better whether the gap lies in a comment, it is believed."""
    near = _near_prefix(lines)
    start = len(near) - len(lines[-1])
    scanner = Scanner(syntax).read(near[:start])
    floor = len(scanner.brackets)
    for position in range(start, len(near)):
        scanner.feed(position, near[position], near[position - 1] if position else "")
        floor = min(floor, len(scanner.brackets))
    is_comment = scanner.quote in (*syntax.line_comments, syntax.block_comment[0])
    if place == "code" or (place == "string" and is_comment):
        scanner.quote = ""
    elif place == "comment" and not (scanner.quote and is_comment):
        scanner.quote = syntax.block_comment[0] or syntax.line_comments[0]
    scanner.mark_gap()
    return scanner, floor


def choose_mode(shape: GapShape) -> str:
    """Return "line" where code stands right of the gap or the gap lies in a comment, else "block"."""
    if shape.is_whole_lines and shape.following:
        return "line"
    if shape.line_suffix.strip(BLANK + CLOSERS):
        return "line"
    return "line" if shape.is_comment else "block"


def _near_prefix(lines: list[str]) -> str:
    """The end of the prefix from the last line on that starts a top-level statement."""
    for index in range(len(lines) - 1, 0, -1):
        if lines[index][:1] not in _NO_START and not lines[index].startswith(
            ("{", "public:", "private:", "protected:")
        ):
            start = next((above for above in range(index) if _UNINDENTED.match(lines[above])), index)
            return "\n".join(lines[start:])
    return "\n".join(lines)


def _near_suffix(head: list[str]) -> str:
    """The beginning of the suffix up to the next line that starts a top-level statement."""
    for index in range(1, len(head)):
        if head[index][:1] not in _NO_START:
            return "\n".join(head[:index])
    return "\n".join(head)
