"""The scan of brackets, strings and comments, and the table of languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.infill.scanner import SPECIALS, Scanner, first_unmatched
from cg_local.infill.syntax import Syntax, indentation, syntax_of
from cg_local.languages import LANGUAGES

PYTHON, C, SQL, RUST = syntax_of("a.py"), syntax_of("a.c"), syntax_of("a.sql"), syntax_of("a.rs")
code = st.text("()[]{}\"'`#/*-\\\n ab", max_size=40)
syntaxes = st.sampled_from([PYTHON, C, SQL, RUST, *map(syntax_of, ("a.sh", "a.html", "a.java", "a.txt", "a.lua"))])


def fed(text: str, syntax: Syntax, quote: str = "") -> Scanner:
    """Feed every character, whether a scanner needs it or not."""
    scanner = Scanner(syntax, quote)
    for position, character in enumerate(text):
        scanner.feed(position, character, text[position - 1] if position else "")
    return scanner


def state(scanner: Scanner) -> tuple[object, ...]:
    return (scanner.brackets, scanner.quote, scanner.num_unmatched, scanner.unmatched, scanner.quote_end)


@pytest.mark.parametrize(
    ("text", "open_brackets"),
    [("f(a, [1", "(["), ("f(a)", ""), ("'('", ""), ("# (", ""), ('"""\n(', ""), ("'\\'('", ""), ("'it\n(", "(")],
)
def test_scan_finds_open_brackets_outside_of_strings_and_comments(text: str, open_brackets: str) -> None:
    assert "".join(Scanner(PYTHON).read(text).brackets) == open_brackets


def test_closers_of_brackets_opened_before_are_found() -> None:
    assert first_unmatched("(a)) + ']' # )\n]", PYTHON, "")[0] == [(3, ")"), (15, "]")]


@pytest.mark.parametrize(
    ("text", "path", "quote"),
    [
        ("x = 'a", "a.py", "'"),
        ("'''a\nb", "a.py", "'''"),
        ("x # y", "a.py", "#"),
        ("x # y\n", "a.py", ""),
        ("x # y \\\n(", "a.py", ""),
        ("x // y", "a.c", "//"),
        ("x // y", "a.py", ""),
        ("/* a\n", "a.c", "/*"),
        ("/* a */", "a.c", ""),
        ("select -- a", "a.sql", "--"),
        ('""', "a.py", ""),
        ("fn f<'a>(x: &'a str) -> char { 'x' }", "a.rs", ""),
        ("let c = '\\''; // it", "a.rs", "//"),
        ("echo $# and a#b", "a.sh", ""),
        ("echo a # b", "a.sh", "#"),
        ("<p> <!-- a", "a.html", "<!--"),
        ("`a\n${b}", "a.ts", "`"),
    ],
)
def test_scan_tells_what_is_open_at_the_end(text: str, path: str, quote: str) -> None:
    assert Scanner(syntax_of(path)).read(text).quote == quote


def test_scan_tells_where_the_outer_string_ends() -> None:
    ends = [
        first_unmatched(text, PYTHON, quote)[1]
        for text, quote in (('ab" + "c"', '"'), ('ab\n"""', '"""'), ('a " b', '"""'), ("ab\n", '"'))
    ]
    assert ends == [2, 3, None, None]


def test_brackets_of_the_file_are_told_from_the_middles_own() -> None:
    scanner = Scanner(PYTHON).read("f(g([")
    scanner.mark_gap()
    scanner.read("(a)])")
    assert (scanner.floor, scanner.num_unmatched, scanner.unmatched) == (1, 2, (4, ")"))


@given(code, syntaxes, st.sampled_from(["", '"', "/*"]))
def test_only_special_characters_have_to_be_fed(text: str, syntax: Syntax, quote: str) -> None:
    assert state(fed(text, syntax, quote)) == state(Scanner(syntax, quote).read(text))
    assert set("()[]{}\n") <= SPECIALS


@given(code, code, syntaxes)
def test_a_longer_text_changes_no_earlier_finding(text: str, more: str, syntax: Syntax) -> None:
    short, long = first_unmatched(text, syntax, "")[0], first_unmatched(text + more, syntax, "")[0]
    assert long[: len(short)] == short
    assert all(position >= len(text) - 1 for position, _ in long[len(short) :])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_known_language_has_its_syntax(language: str) -> None:
    found = [syntax_of("a" + suffix) for suffix in LANGUAGES[language]]
    assert {syntax.language for syntax in found} == {language}


@pytest.mark.parametrize("path", ["a.lua", "a.swift", "Makefile.mk", "a.vue", "a.unknown", "noending"])
def test_other_files_have_a_syntax_too(path: str) -> None:
    assert syntax_of(path).language == ""
    assert '"' in syntax_of(path).quotes


def test_indentation_counts_tabs_to_the_next_multiple_of_eight() -> None:
    assert [indentation(line) for line in ("x", "  x", "\tx", "  \tx", "\t  x")] == [0, 2, 8, 8, 10]
