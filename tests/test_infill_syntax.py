"""The scan of brackets, strings and comments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.infill.syntax import Scanner, scan, syntax_of

PYTHON, C, SQL = syntax_of("a.py"), syntax_of("a.c"), syntax_of("a.sql")
code = st.text("()[]{}\"'`#/*-\\\n ab", max_size=40)


@pytest.mark.parametrize(
    ("text", "open_brackets"),
    [("f(a, [1", "(["), ("f(a)", ""), ("'('", ""), ("# (", ""), ('"""\n(', ""), ("'\\'('", ""), ("'it\n(", "(")],
)
def test_scan_finds_open_brackets_outside_of_strings_and_comments(text: str, open_brackets: str) -> None:
    assert "".join(scan(text, PYTHON).open_brackets) == open_brackets


def test_scan_finds_closers_of_brackets_opened_before() -> None:
    assert scan("(a)) + ']' # )\n]", PYTHON).unmatched == [(3, ")"), (15, "]")]


@pytest.mark.parametrize(
    ("text", "syntax", "quote"),
    [
        ("x = 'a", PYTHON, "'"),
        ("'''a\nb", PYTHON, "'''"),
        ("x # y", PYTHON, "#"),
        ("x # y\n", PYTHON, ""),
        ("x # y \\\n(", PYTHON, ""),
        ("x // y", C, "//"),
        ("x // y", PYTHON, ""),
        ("/* a\n", C, "/*"),
        ("/* a */", C, ""),
        ("select -- a", SQL, "--"),
        ('""', PYTHON, ""),
    ],
)
def test_scan_tells_what_is_open_at_the_end(text: str, syntax: object, quote: str) -> None:
    assert scan(text, syntax).quote == quote  # type: ignore[arg-type]


def test_scan_tells_where_the_outer_string_ends() -> None:
    assert scan('ab" + "c"', PYTHON, '"').quote_end == 2
    assert scan('ab\n"""', PYTHON, '"""').quote_end == 3
    assert scan('a " b', PYTHON, '"""').quote_end is None
    assert scan("ab\n", PYTHON, '"').quote_end is None


def test_scan_marks_lines_within_brackets_and_strings() -> None:
    assert scan("f(\na\n)\nb", PYTHON).inner_lines == {3, 5}


@given(code, code, st.sampled_from([PYTHON, C, SQL]))
def test_scan_of_a_longer_text_changes_no_earlier_finding(text: str, more: str, syntax: object) -> None:
    short, long = scan(text, syntax), scan(text + more, syntax)  # type: ignore[arg-type]
    assert long.unmatched[: len(short.unmatched)] == short.unmatched
    assert all(position >= len(text) for position, _ in long.unmatched[len(short.unmatched) :])


@given(
    st.lists(st.sampled_from([*"()[]{}\"'`/*-#\\\na", '"""', "//", "/*", "*/"]), max_size=40),
    st.sampled_from(["a.py", "a.c", "a.sql", "a.txt"]),
    st.sampled_from(["", '"', '"""', "/*", "#"]),
)
def test_scanner_finds_in_a_growing_text_what_a_scan_of_the_whole_finds(pieces, path, quote):
    syntax, text = syntax_of(path), ""
    scanner = Scanner(syntax, quote)
    for piece in pieces:
        text += piece
        assert scanner.scan(text) == scan(text, syntax, quote)
