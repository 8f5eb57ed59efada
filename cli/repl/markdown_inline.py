"""The styles within a line of Markdown: code, emphasis, strike-through, links.

This file owns which characters are marks and which are text, while the line is still being written. Invariant: a span
that `InlineText` has given out is final: no character that follows would have changed its text or its kinds.

Source: CommonMark 0.31, sections 2.4 and 6.1 to 6.3, without its rule of three; GitHub's strike-through.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_HELD_CHARACTERS = 200
"""A mark whose counterpart does not come within so much text is text itself, so that a line never waits for long."""

_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_MARKS = frozenset("\\`*_~[!")
_ANY_MARK = re.compile(r"[\\`*_~\[!]")
_LINK = re.compile(r"!?\[(?P<text>[^\[\]]*)\]\((?P<url>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+\"[^\"]*\")?\)")
_LINK_BEGUN = re.compile(r"!?(?:\[[^\[\]]*(?:\](?:\([^)]*)?)?)?")


class Span(NamedTuple):
    """Text of one look; `kinds` are names of `ink.LOOKS`."""

    text: str
    kinds: tuple[str, ...] = ()


class InlineText:
    """The text of one line, taken in pieces."""

    def __init__(self) -> None:
        """Begin a line."""
        self._held = ""
        self._previous = " "

    def push(self, text: str) -> list[Span]:
        """Return the spans that are final with this text."""
        self._held += text
        return self._take(is_whole=False)

    def finish(self) -> list[Span]:
        """End the line; return what is left."""
        return self._take(is_whole=True)

    def _take(self, *, is_whole: bool) -> list[Span]:
        spans, end = _scan(self._held, self._previous, (), is_whole=is_whole)
        if end:
            self._previous = self._held[end - 1]
        self._held = self._held[end:]
        return spans


def inline_spans(text: str) -> list[Span]:
    """Return the spans of a whole line."""
    return _scan(text, " ", (), is_whole=True)[0]


def _scan(text: str, previous: str, kinds: tuple[str, ...], *, is_whole: bool) -> tuple[list[Span], int]:
    """Return the spans at the start of a text that are final, and how many characters they took."""
    spans, place = list[Span](), 0
    while place < len(text):
        before = text[place - 1] if place else previous
        found = None
        if text[place] in _MARKS:
            # Only so far is a counterpart looked for: from each of many marks to the end would take the square of it.
            near = text[place : place + MAX_HELD_CHARACTERS]
            found = _read_mark(near, 0, before, kinds, is_whole=is_whole or len(text) - place > MAX_HELD_CHARACTERS)
        if found is None:
            mark = _ANY_MARK.search(text, place + 1)
            end = (mark.start() if mark else len(text)) - place
            found = [Span(text[place : place + end], kinds)], end
        if not found[1]:
            break  # what follows decides
        spans += found[0]
        place += found[1]
    return spans, place


def _read_mark(
    text: str, place: int, before: str, kinds: tuple[str, ...], *, is_whole: bool
) -> tuple[list[Span], int] | None:
    """Read what begins at a mark: (spans, end); an end of 0 means that it is undecided, None that it is text."""
    character = text[place]
    if character == "\\":
        return _read_escape(text, place, kinds, is_whole=is_whole)
    if character in "[!":
        return _read_link(text, place, kinds, is_whole=is_whole)
    end = place
    while end < len(text) and text[end] == character:
        end += 1
    if end == len(text) and not is_whole:
        return [], 0
    if character == "`":
        closing = _find_run(text, end, "`", end - place)
        inside: list[Span] | None = None
        if closing is not None:
            inside = [Span(_code_text(text[end:closing]), (*kinds, "code"))]
    else:
        closing = _find_emphasis_end(text, place, end, before, is_whole=is_whole)
        if closing == -1:
            return [Span(text[place:end], kinds)], end
        inside = None
        if closing is not None and _is_dunder(text[place : closing + end - place]):
            inside = [Span(text[place : closing + end - place], kinds)]
        elif closing is not None:
            kind = _emphasis(character, end - place)
            inside = _scan(text[end:closing], character, (*kinds, *kind), is_whole=True)[0]
    if closing is None or inside is None:
        return ([Span(text[place:end], kinds)], end) if is_whole else ([], 0)
    after = closing + end - place
    # One more of the marks would make it another run.
    return (inside, after) if after < len(text) or is_whole else ([], 0)


def _is_dunder(text: str) -> bool:
    """Whether a text is a name such as __init__: in answers about code that is meant far more often than bold."""
    return text.startswith("__") and text.isidentifier()


def _read_escape(text: str, place: int, kinds: tuple[str, ...], *, is_whole: bool) -> tuple[list[Span], int] | None:
    if place + 1 == len(text):
        return None if is_whole else ([], 0)
    return ([Span(text[place + 1], kinds)], place + 2) if text[place + 1] in _PUNCTUATION else None


def _read_link(text: str, place: int, kinds: tuple[str, ...], *, is_whole: bool) -> tuple[list[Span], int] | None:
    if match := _LINK.match(text, place):
        label = _scan(match["text"], "[", (*kinds, "link"), is_whole=True)[0]
        url = match["url"]
        shown = [Span(f" ({url})", (*kinds, "url"))] if url and url != match["text"] else []
        return [*label, *shown], match.end()
    is_begun = _LINK_BEGUN.fullmatch(text, place) is not None
    return ([], 0) if is_begun and not is_whole else None


def _emphasis(character: str, length: int) -> tuple[str, ...]:
    """Return what a run of marks means: one is italic, two are bold, three both."""
    if character == "~":
        return ("strike",)
    return (("italic",), ("bold",), ("bold", "italic"))[length - 1]


def _find_emphasis_end(text: str, place: int, end: int, before: str, *, is_whole: bool) -> int | None:
    """Return where the closing run begins, None if it may follow, -1 if the run is text."""
    character, length = text[place], end - place
    following = text[end : end + 1]
    is_word = before.isalnum() and character == "_"
    if length > 3 or not following.strip() or is_word or (character == "~" and length != 2):
        return -1
    start = end
    while (closing := _find_run(text, start, character, length, is_whole=is_whole)) is not None:
        after = text[closing + length : closing + length + 1]
        if not text[closing - 1].isspace() and not (character == "_" and after.isalnum()):
            return closing
        start = closing + length
    return None


def _find_run(text: str, start: int, character: str, length: int, *, is_whole: bool = True) -> int | None:
    """Return where the next run of exactly so many marks begins; those within code count only for code.

    Where the text may go on, there is none behind a backtick whose counterpart may still come.
    """
    place = start
    while place < len(text):
        if text[place] == "\\" and character != "`":
            place += 2
            continue
        end = place
        while end < len(text) and text[end] == text[place]:
            end += 1
        if text[place] == character and end - place == length:
            return place
        if text[place] == "`" and character != "`":
            closing = _find_run(text, end, "`", end - place)
            if closing is None and not is_whole:
                return None
            end = closing + end - place if closing is not None else end
        place = end
    return None


def _code_text(text: str) -> str:
    """Without the space on each side that sets backticks apart."""
    is_padded = text.startswith(" ") and text.endswith(" ") and text.strip() != ""
    return text[1:-1] if is_padded else text
