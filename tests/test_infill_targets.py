"""Places as grep, compilers and test runners print them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.infill.cursor import Target, parse_target
from cg_local.infill.targets import parse_place, places_in

LONG = 100_000


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
        ('  File "a.py", line 7, in f', Target("a.py", 7)),  # Python
        ('  File "my file.py", line 7', Target("my file.py", 7)),  # SyntaxError
        ('    |   File "a.py", line 7, in <module>', Target("a.py", 7)),  # ExceptionGroup
        ('  File \x1b[35m"a.py"\x1b[0m, line \x1b[35m7\x1b[0m, in \x1b[35mf\x1b[0m', Target("a.py", 7)),  # Python 3.13
        ("a.py:7: in f", Target("a.py", 7)),  # pytest --tb=short
        ("    at f (/a/b.js:7:3)", Target("/a/b.js", 7, 3)),  # Node
        ("    at async Object.f [as g] (/a (1)/b.js:7:3)", Target("/a (1)/b.js", 7, 3)),
        ("    at /a/b.js:7:3", Target("/a/b.js", 7, 3)),
        ("    at async file:///a/my%20b.mjs:7:3", Target("/a/my b.mjs", 7, 3)),
        ("    at f (file:///C:/a/b.mjs:7:3)", Target("C:/a/b.mjs", 7, 3)),
        ("\t/a/b.go:7 +0x1d", Target("/a/b.go", 7)),  # Go
        ("    b_test.go:7: got 1", Target("b_test.go", 7)),  # go test
        ("thread 'main' panicked at src/main.rs:7:3:", Target("src/main.rs", 7, 3)),  # Rust
        ("thread 'main' panicked at 'no, not', src/main.rs:7:3", Target("src/main.rs", 7, 3)),
        ("             at ./src/main.rs:7:3", Target("./src/main.rs", 7, 3)),
        ("  ::: src/lib.rs:7:3", Target("src/lib.rs", 7, 3)),
        ("   at A.B.C(Int32 x) in /src/a.cs:line 7", Target("/src/a.cs", 7)),  # .NET
        ("  1>a.cs(7,3): error CS0103: no [/src/a.csproj]", Target("a.cs", 7, 3)),  # MSBuild
        ("a.cs(7,3,7,9): error CS0103: no", Target("a.cs", 7, 3)),
        ("a.cpp(7,3): error C2065: no", Target("a.cpp", 7, 3)),  # MSVC
        ("\tfrom a.rb:7:in 'Object#f'", Target("a.rb", 7)),  # Ruby
        ("a.rb:7:in 'f': no (RuntimeError)", Target("a.rb", 7)),
        ("#0 /a/b.php(7): f()", Target("/a/b.php", 7)),  # PHP
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


@pytest.mark.parametrize("text", ["a.py:5-6:3", "a.py:5-6:3:", "-:5-6:3"])
def test_range_takes_no_column(text: str) -> None:
    range_of = text.removesuffix(":").rpartition(":")[0]
    with pytest.raises(ValueError, match=f"a range of lines .* takes no column: write {range_of}$"):
        parse_place(text, lambda path: path in ("a.py", "-"))
    assert parse_place("a:5-6:3", lambda path: path == "a:5-6") == Target("a:5-6", 3)


@pytest.mark.parametrize("first", ['  File "a.py", line 7, in f', "    at f (a.py:7:3)", "\tfrom a.py:7:in 'f'"])
def test_name_of_an_existing_file_wins_over_a_trace(first: str) -> None:
    assert parse_place(f"{first}:9", lambda path: path in (first, "a.py")) == Target(first, 9)


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


def test_words_too_long_for_a_name_do_not_hide_the_place_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text("x\n")
    long = f"E   AssertionError: {'x' * 270} at 12:30 today"
    assert places_in(["a.py:1: error: x", long]) == (["a.py:1: error: x"], 1)
    assert parse_target(f"{'x' * 270}:3:4") == Target("x" * 270, 3, 4)


def test_trace_of_a_path_that_cannot_be_resolved_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text("x\n")
    lines = ["a.py:1", '  File "a\0b.py", line 3', f'  File "{"x" * 5000}.py", line 3']
    with contextlib.suppress(OSError):  # Windows asks for a privilege
        Path("loop.py").symlink_to("loop.py")
    assert places_in([*lines, '  File "loop.py", line 3']) == (["a.py:1"], 3)


FOUND = ["in the beginning", "in x", "in f'y'", "in 'f': z", "    in y"]


def test_lines_that_grep_finds_elsewhere_are_no_trace_though_they_read_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, own = tmp_path / "notes.txt", tmp_path / "own"
    notes.write_text("\n".join(FOUND))
    own.mkdir()
    monkeypatch.chdir(own)
    listed = [f"{notes}:{number}:{text}" for number, text in enumerate(FOUND, 1)]
    assert places_in(listed) == (listed, 0)
    frames = [f"{notes}:1: in f", f"{notes}:2: in <listcomp>", f"{notes}:3:in `f'", f"{notes}:5:in 'A#f': no (E)"]
    assert places_in(frames) == ([], 4)


@pytest.mark.parametrize(
    "text",
    [
        " " * LONG,
        "a.py:1\r" + " " * LONG,
        "--> " + " " * LONG,
        "1> " + " " * LONG,
        "#1 " + " " * LONG,
        "1" * LONG,
        "a(1)" + " " * LONG,
        "at " + "f (" * LONG,
        "panicked at " * LONG,
        "panicked at '" + "', " * LONG,
        "panicked at 'x', " * LONG,
        "at " + "x in " * LONG,
        "\tfrom a:" + "1:in" * LONG,
        "\ta:" + "1 +0x1" * LONG,
        'File "' + '", line ' * LONG,
        "a:1:" + " in x.y" * LONG + "!",
        "a:1:" + "in '" * LONG,
        ":1" * LONG,
        "\x1b]" * LONG,
        "\x1b[" + "0;" * LONG,
    ],
    ids=lambda text: repr(text[:16]),
)
def test_long_line_is_read_in_time_that_grows_with_its_length(text: str) -> None:
    """A pattern that tries every pair of its places, as each of these was made for, takes minutes to hours."""
    assert len(places_in([text], lambda path: False)[0]) <= 1


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


def test_traces_are_followed_into_ones_own_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, foreign = tmp_path / "own", tmp_path / "lib"
    files = [own / "a.py", own / ".venv" / "site-packages" / "b.py", own / "node_modules" / "c.js", foreign / "d.py"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x\n")
    monkeypatch.chdir(own)
    lines = [
        '  File "a.py", line 1, in f',
        f'  File "{files[0]}", line 1, in g',
        f'  File "{files[1]}", line 1, in h',
        f"{files[1]}:1: in h",  # pytest --tb=short
        f"    at f ({files[2]}:1:1)",
        f'  File "{files[3]}", line 1, in i',
        f"\t{files[3]}:1 +0x1d",
        f"{files[3]}:1: error",  # a linter was asked for that file
    ]
    assert places_in(lines) == ([lines[0], lines[1], lines[7]], 5)


def test_traces_are_sifted() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "<stdin>", line 1, in <module>',
        '  File "a.py", line 3, in f',
        "    return 1 / 0",
        "ZeroDivisionError: division by zero",
        "    at node:internal/main:7:3",
        "    at Object.<anonymous> (b.js:10:5)",
        "    at 12:30:15",
        "goroutine 1 [running]:",
        "main.f(0x1)",
        "\tc.go:12 +0x1d",
        "In file included from a.h:1,",
        "                 from a.c:2:",
    ]
    texts, num_others = places_in(lines, lambda path: path in ("a.py", "b.js", "c.go", "a.c", "a.h"))
    assert (texts, num_others) == ([lines[2], lines[6], lines[10]], 10)
