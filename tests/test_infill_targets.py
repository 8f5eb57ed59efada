"""Places as grep, compilers and test runners print them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.infill.cursor import Target, parse_target
from cg_local.infill.targets import parse_place, places_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py:7", Target("a.py", 7)),
        ("a.py:7:", Target("a.py", 7)),
        ("a.py:7:3", Target("a.py", 7, 3)),
        ("a.py:7:3:", Target("a.py", 7, 3)),
        ("a.py:7-9", Target("a.py", 7, last_line=9)),
        ("-:7:3", Target("-", 7, 3)),
        ("a.py:7:    return x[1:2]", Target("a.py", 7)),  # grep -n
        ("a.py:7:3:    return", Target("a.py", 7, 3)),  # rg --vimgrep, grep -n --column
        ("a.c:7:3: error: expected ';' before '}' token", Target("a.c", 7, 3)),  # gcc, clang
        ("a.go:7:3: undefined: x", Target("a.go", 7, 3)),
        ("a.py:7: error: Missing return statement  [return]", Target("a.py", 7)),  # mypy
        ("a.py:7: AssertionError", Target("a.py", 7)),  # pytest
        ("  --> src/main.rs:7:3", Target("src/main.rs", 7, 3)),  # rustc
        ("a.ts(7,3): error TS2304: Cannot find name 'x'.", Target("a.ts", 7, 3)),  # tsc
        ("a.cs(7): warning CS0168: never used", Target("a.cs", 7)),
        ("a.ts:7:3 - error TS2304: Cannot find name 'x'.", Target("a.ts", 7, 3)),
        ("C:\\src\\a.c:7:3: error: x", Target("C:\\src\\a.c", 7, 3)),
        ("C:\\src\\a.c:7", Target("C:\\src\\a.c", 7)),
        ("C:/src/a.c(7,3) : error C2065: 'x'", Target("C:/src/a.c", 7, 3)),
        ("my file.py:7: x", Target("my file.py", 7)),
        ("\x1b[35ma.py\x1b[m\x1b[36m:\x1b[m\x1b[32m7\x1b[m\x1b[36m:\x1b[mx = 1", Target("a.py", 7)),  # grep --color
        ("a.py:7: see b.py:9", Target("a.py", 7)),
        ("a.py:7\n", Target("a.py", 7)),
        ("a.py:7: x\r\n", Target("a.py", 7)),
    ],
)
def test_place_is_read_as_it_is_printed(text: str, expected: Target) -> None:
    files = {expected.file, "b.py", "-"}
    assert parse_place(text, lambda path: path in files) == expected


@pytest.mark.parametrize("text", ["a.py:7: see b.py:9", "a.py:7:3: no", "a.py:7"])
def test_first_place_is_meant_also_where_no_file_exists(text: str) -> None:
    assert (parse_place(text, lambda path: False).file, parse_place(text, lambda path: False).line) == ("a.py", 7)


def test_name_of_an_existing_file_wins() -> None:
    assert parse_place("a.py:7: see b:9", lambda path: path == "a.py:7: see b") == Target("a.py:7: see b", 9)
    assert parse_place("notes:3:5", lambda path: path == "notes:3") == Target("notes:3", 5)
    assert parse_place("f(3,4):5", lambda path: path == "f(3,4)") == Target("f(3,4)", 5)


def test_number_that_begins_the_line_found_is_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yml").write_text("ports:\n  x: 1\n80: http\n12 apples\n")
    assert parse_place("a.yml:3:80: http") == Target("a.yml", 3)
    assert parse_place("a.yml:4:12 apples") == Target("a.yml", 4)
    assert parse_place("a.yml:3:2: wrong") == Target("a.yml", 3, 2)


@pytest.mark.parametrize("text", ["a.py:1:2-1:3", "a.py:1:2-8", "a.py:1:2abc", "none.py:1:5x"])
def test_column_with_something_behind_it_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text("pass\n")
    with pytest.raises(ValueError, match="names no line"):
        parse_place(text)


@pytest.mark.parametrize("text", ["", "a.py", "a.py:", "error: 3 of 4", ":3", "make: *** [all] Error 1"])
def test_text_without_a_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no line: write FILE:LINE"):
        parse_place(text, lambda path: False)


def test_several_lines_are_no_place() -> None:
    with pytest.raises(ValueError, match=r"'a.py:3' and more: give each place by itself"):
        parse_place("a.py:3\nb.py:4")


@given(
    st.text(st.characters(exclude_characters="\0\n\r\x1b", exclude_categories=["Cs"]), min_size=1), st.integers(0, 999)
)
def test_place_of_an_existing_file_is_what_it_is_for_parse_target(name: str, line: int) -> None:
    text = f"{name}:{line}"
    expected = parse_target(text, lambda path: True)
    assert parse_place(text, lambda path: path == expected.file) == expected


def test_output_of_a_compiler_is_sifted() -> None:
    lines = [
        "In file included from a.c:1:",
        "b.h:3:5: error: unknown type name 'x'",
        "    3 |     x y;",
        "      |     ^",
        "b.h:3:5: note: in another place",
        "",
        "gone.c:9:1",
        "gone.c:8:1: error: no such file, and a text behind",
        "at 12:30 nothing happened",
        "make: *** [Makefile:7: all] Error 1",
    ]
    texts, num_others = places_in(lines, lambda path: path in ("a.c", "b.h"))
    assert (texts, num_others) == ([lines[1], lines[6]], 7 - 1)
