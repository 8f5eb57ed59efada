"""Modes, stops and trimming, on written cases and on random texts in random pieces."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cg_local.infill.gap import choose_mode, gap_shape
from cg_local.infill.postprocess import MODES, MiddleTrimmer
from cg_local.infill.syntax import syntax_of

PYTHON = syntax_of("a.py")
# Short lines of a few words, so that repeats, overlaps, dedents and brackets come about by chance.
snippets = st.lists(
    st.sampled_from(
        [
            "\n",
            "\n\n",
            "    ",
            "        ",
            " ",
            "a",
            "return total",
            "x = f(",
            ")",
            "(",
            "]",
            "}",
            "if y:",
            '"',
            "'",
            '"""',
            *("# ", "/* ", "*/", "while True:", "values.append(x)", ",", "\t", "é"),
        ]
    ),
    max_size=14,
).map("".join)


def fill(prefix: str, suffix: str, answer: str, mode: str = "auto", path: str = "a.py") -> MiddleTrimmer:
    trimmer = MiddleTrimmer(prefix, suffix, mode, path)
    trimmer.push(answer)
    trimmer.finish()
    return trimmer


@pytest.mark.parametrize(
    ("prefix", "suffix", "mode"),
    [
        ("x = ", " + 1\n", "line"),
        ("print(", ")\n", "block"),
        ("names = [", '"],\n', "block"),
        ("def f():", "\n", "block"),
        ("x = 1  # the ", "\n", "line"),
        ("x = '#", "\n", "block"),
        ("def f():\n", "    return x\n", "line"),
        ("def f():\n", "\n", "block"),
        ("def f():\n", "", "block"),
    ],
)
def test_mode_is_chosen_by_what_surrounds_the_gap(prefix: str, suffix: str, mode: str) -> None:
    assert choose_mode(gap_shape(prefix, suffix, PYTHON)) == mode


def test_line_of_a_whole_line_gap_keeps_its_line_break() -> None:
    filled = fill("def f(x):\n", "    return y\n", "    y = x + 1\n    z = 2\n")
    assert (filled.text, filled.stop_reason, filled.mode) == ("    y = x + 1\n", "line", "line")


def test_line_in_the_middle_of_a_line_ends_before_the_line_break() -> None:
    filled = fill("x = ", " + 1\n", "y * 2\nz")
    assert (filled.text, filled.stop_reason) == ("y * 2", "line")


def test_line_after_a_finished_line_is_the_next_line() -> None:
    assert fill("def f(x):", "\n", "\n    return x\n    pass", mode="line").text == "\n    return x"


def test_line_at_the_last_line_of_the_file_without_suffix_keeps_its_line_break() -> None:
    assert fill("def f(x):\n", "", "    return x\n\n\n\n").text == "    return x\n"


def test_block_ends_at_a_dedent_below_the_gap_line() -> None:
    filled = fill("def f(x):\n    y = 1\n    ", "\n", "z = 2\n    if z:\n        return 3\nprint(f(1))\n")
    assert (filled.text, filled.stop_reason) == ("z = 2\n    if z:\n        return 3", "block")
    assert filled.trimmed == ("block", "blank_tail") or filled.trimmed == ("block",)


def test_block_of_a_header_ends_where_its_body_ends() -> None:
    filled = fill("if a:\n    for b in c:", "\n", "\n        d(b)\n        e(b)\n    f()\n")
    assert (filled.text, filled.stop_reason) == ("\n        d(b)\n        e(b)", "block")


def test_block_keeps_dedented_lines_within_its_own_brackets_and_strings() -> None:
    answer = 'x = f(\n1,\n)\n    y = """\ntext\n"""\n    return y'
    assert fill("def g():\n    ", "\n", answer).text == answer


def test_block_in_braces_ends_after_its_closing_brace() -> None:
    filled = fill("int f(int x) {", "\n", "\n    return x;\n}\n\nint g() {", path="a.c")
    assert filled.text == "\n    return x;\n}"


def test_block_at_the_top_level_ends_at_two_blank_lines() -> None:
    filled = fill("import os", "\n", "\nimport re\n\nX = 1\n\n\ndef f():\n")
    assert (filled.text, filled.stop_reason) == ("\nimport re\n\nX = 1", "block")


def test_middle_stops_before_the_bracket_that_the_suffix_closes() -> None:
    filled = fill("print(", ")\n", "f(x), y)\nz = 2")
    assert (filled.text, filled.stop_reason) == ("f(x), y", "suffix")


def test_middle_may_close_brackets_that_the_suffix_leaves_open() -> None:
    assert fill("foo(\n    bar(x", "\n)\n", ", y)").text == ", y)"


def test_middle_stops_before_the_quote_that_the_suffix_closes() -> None:
    assert fill('name = "', '"\n', 'cg-local"\nother = 1').text == "cg-local"


def test_middle_stops_at_the_end_of_a_docstring_that_the_suffix_closes() -> None:
    filled = fill('def f():\n    """Add ', '\n    """\n', 'two numbers.\n    """\n    return 1')
    assert filled.text == "two numbers."


@pytest.mark.parametrize("tail", ["", "\n", "\n    more = 1\n"])
def test_suffix_lines_at_the_end_are_cut(tail: str) -> None:
    suffix = "\n    total += value\n    return total\n"
    filled = fill("def f(v):\n    a = 1", suffix, "\n    b = 2\n    total += value\n    return total" + tail)
    assert filled.text == "\n    b = 2"
    assert "suffix_overlap" in filled.trimmed


def test_suffix_overlap_passes_over_blank_lines() -> None:
    assert fill("a = 1", "\n\n\nmain()\n", "\nb = 2\nmain()").text == "\nb = 2"


def test_rest_of_the_line_at_the_end_is_cut() -> None:
    filled = fill("x = ", "scale + offset\n", "2 * scale + offset\n")
    assert (filled.text, filled.trimmed) == ("2 * ", ("suffix_overlap",))


def test_closers_of_the_middles_own_brackets_are_kept() -> None:
    assert fill("print(", ")\n", "f()").text == "f()"
    assert fill("x = g(", ");\n", "f();").text == "f();"


def test_lines_repeated_again_and_again_are_cut_to_one() -> None:
    filled = fill("def f():\n    a = 1", "\n", "\n    b = 2" + "\n    c = 3" * 9)
    assert (filled.text, filled.stop_reason) == ("\n    b = 2\n    c = 3", "repetition")


def test_a_stutter_within_a_line_stops() -> None:
    assert fill("x = ", "\n", "0, " * 200).stop_reason == "repetition"


def test_text_without_anything_but_blanks_becomes_empty() -> None:
    filled = fill("x = 1", "\ny = 2\n", "\n   \n")
    assert (filled.text, filled.trimmed) == ("", ("blank_tail",))


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown mode 'word'; known: auto, line, block"):
        MiddleTrimmer("", "", "word")


@given(snippets, snippets, snippets, st.sampled_from(MODES), st.sampled_from(["a.py", "a.c"]), st.randoms())
@example("", "\n", '"""', "block", "a.py", None)
# The next text of the file, and then what ends the middle behind it: the closing mark, the same line over and over, or
# the next text once more.
@example('def f():\n    """Add ', 'sums\n    """\n', 'sums"""', "line", "a.py", None)
@example("while x:\n", "    pass\n", 9 * "    pass\n", "block", "a.py", None)
@example("x = ", "return y\n", "a return yreturn y\n", "block", "a.py", None)
def test_pieces_shown_while_streaming_are_the_final_text(
    prefix: str, suffix: str, answer: str, mode: str, path: str, random: object
) -> None:
    whole = fill(prefix, suffix, answer, mode, path)
    trimmer, shown, position = MiddleTrimmer(prefix, suffix, mode, path), "", 0
    while position < len(answer) and trimmer.stop_reason is None:
        size = random.randint(1, 7) if random else 1  # type: ignore[attr-defined]
        shown += trimmer.push(answer[position : position + size])
        position += size
    shown += trimmer.finish()
    assert shown == trimmer.text == whole.text
    assert trimmer.stop_reason == whole.stop_reason
    assert trimmer.trimmed == whole.trimmed


@given(snippets, snippets, snippets, st.sampled_from(MODES))
def test_middle_is_a_beginning_of_the_answer_but_for_blanks(prefix: str, suffix: str, answer: str, mode: str) -> None:
    """Lines keep their text; what they start with may be written as the file does, and what they end with be cut."""
    text = fill(prefix, suffix, answer, mode).text

    def bare(lines: str) -> str:
        return re.sub(r"(?m)^[ \t]+", "", lines)

    assert bare(answer).startswith(bare(text).rstrip(" \t\r\n"))


@given(st.lists(st.sampled_from(["    total = 0", "    return total", "    if x:", "        y = 1"]), min_size=1))
def test_middle_never_ends_with_the_next_line_of_the_file(lines: list[str]) -> None:
    suffix = "\n    return total\n    done()\n"
    filled = fill("def f(x):\n    start()", suffix, "\n" + "\n".join(lines), "block")
    assert filled.text.split("\n")[-1] != "    return total"
