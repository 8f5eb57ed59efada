"""Text of a model on a terminal: nothing that steers it, nothing invisible, nothing reordered, however it is cut."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.cli.terminal_text import TerminalFilter, visible_line, visible_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def f(x):\n\treturn x\n", "def f(x):\n\treturn x\n"),
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x1bP1;2|x\x1b\\", "␛P1;2|x␛\\"),
        ("\x9b2J\x85", "<U+009B>2J<U+0085>"),
        ("a\x00b\x7fc\rd", "a␀b␡c␍d"),
        ("user\u202e \u2066// admin\u2069", "user<U+202E> <U+2066>// admin<U+2069>"),
        ("pass\u200bword \ufeff\u00ad", "pass<U+200B>word <U+FEFF><U+00AD>"),
        ("a\u2028b\u2029c", "a<U+2028>b<U+2029>c"),
        ("x\u3164y\U000e0041", "x<U+3164>y<U+E0041>"),
        ("na\u0308ive 日本語 עברית العربية", "na\u0308ive 日本語 עברית العربية"),
        ("👩\u200d💻 ❤\ufe0f 1\ufe0f\u20e3", "👩\u200d💻 ❤\ufe0f 1\ufe0f\u20e3"),
        ("क\u094d\u200dष", "क\u094d\u200dष"),
        ("ad\u200dmin", "ad<U+200D>min"),
        ("👩\u200d\u200d💻", "👩\u200d<U+200D>💻"),
        ("x\ufe0f❤\ufe0f\ufe0f", "x<U+FE0F>❤\ufe0f<U+FE0F>"),
    ],
)
def test_what_steers_or_deceives_is_shown_instead(text: str, shown: str) -> None:
    assert visible_text(text) == shown


@given(st.text(), st.lists(st.integers(1, 5)))
def test_pieces_are_judged_as_the_whole(text: str, sizes: list[int]) -> None:
    pieces, start = TerminalFilter(), 0
    shown = ""
    for size in [*sizes, len(text)]:
        shown += pieces.push(text[start : start + size])
        start += size
    assert shown == visible_text(text)


@given(st.text(st.characters(codec="utf-8")))
def test_nothing_shown_is_a_control(text: str) -> None:
    shown = visible_text(text)
    assert {character for character in shown if unicodedata.category(character) == "Cc"} <= {"\n", "\t"}
    assert not any(unicodedata.bidirectional(character) in ("RLO", "LRO", "RLE", "LRE", "PDF") for character in shown)
    assert not any(unicodedata.bidirectional(character) in ("LRI", "RLI", "FSI", "PDI") for character in shown)


def test_one_line_has_no_line_break() -> None:
    assert visible_line("a\n\tb\r\n c\x1b") == "a b c␛"
