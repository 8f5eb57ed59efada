"""Rendering of Markdown while it is written: the same whatever the pieces, nothing taken back, lines that fit."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygments.lexers import PythonLexer
from rich.cells import cell_len

from cg_local.cli.repl.ink import ATTRIBUTES, COLORS, PLAIN, Ink
from cg_local.cli.repl.markdown_inline import Span, inline_spans
from cg_local.cli.repl.markdown_stream import MAX_HELD_ROWS, MarkdownStream

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
MARKUP = "#*_`~|->.1)[]!( )\n ab日\\"


def render(text: str, columns: int = 60, size: int | None = None, level: int = PLAIN) -> str:
    """Render a text that comes in pieces of so many characters."""
    parts: list[str] = []
    stream = MarkdownStream(parts.append, lambda: columns, Ink(level))
    size = size or max(len(text), 1)
    for start in range(0, len(text), size):
        stream.push(text[start : start + size])
    stream.finish()
    return "".join(parts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain\n"),
        ("\n\none\n\n\n\ntwo\n", "one\n\ntwo\n"),
        ("# A *big* title\ntext", "A big title\ntext\n"),
        ("a **b** `c` _d_ ~~e~~ snake_case 2 * 3 \\*f\\*", "a b c d e snake_case 2 * 3 *f*\n"),
        ("[name](http://x.y/z) [http://x](http://x) [no](", "name (http://x.y/z) http://x [no](\n"),
        ("- one\n* two\n  + three", "• one\n• two\n  • three\n"),
        ("1. one\n10) ten", "1. one\n10) ten\n"),
        ("> quote\n>> deeper", "│ quote\n│ │ deeper\n"),
        ("a\n\n---\nb", "a\n\n" + "─" * 59 + "\nb\n"),
        ("    indented *code*", "    indented *code*\n"),
        ("```\nx\n", "── [1] ".ljust(59, "─") + "\nx\n" + "─" * 59 + "\n"),
        ("~~~py\n```\n~~~", "── py [1] ".ljust(59, "─") + "\n```\n" + "─" * 59 + "\n"),
        ("| a |\nno table", "| a |\nno table\n"),
        ("|a|b|\n|-|-:|\n|1|2|\nafter", "a  b\n─  ─\n1  2\nafter\n"),
        ("**not closed and `this", "**not closed and `this\n"),
        ("`a ** b` ** c", "a ** b ** c\n"),
        ("***both*** __init__.py and __all__", "both __init__.py and __all__\n"),
    ],
)
def test_each_kind_of_block_has_its_form(text: str, shown: str) -> None:
    assert render(text) == shown


@settings(max_examples=300)
@given(st.text(MARKUP, max_size=60), st.integers(1, 7))
def test_pieces_do_not_matter(text: str, size: int) -> None:
    assert render(text, 30, size) == render(text, 30)


@settings(max_examples=60)
@given(st.text("*_`~[]()! ab\\", min_size=200, max_size=700), st.sampled_from([1, 7, 190, 230]))
def test_pieces_do_not_matter_in_a_line_that_is_longer_than_a_mark_waits(text: str, size: int) -> None:
    assert render(text, 30, size) == render(text, 30)


@given(st.text(MARKUP, max_size=80), st.integers(1, 9))
def test_colours_change_no_text(text: str, size: int) -> None:
    assert ESCAPES.sub("", render(text, 30, size, COLORS)) == render(text, 30)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=60))
def test_any_text_is_rendered_to_its_end(text: str) -> None:
    assert render(text, 40, 3).endswith("\n") or not text.strip()


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_prose_fits_the_terminal(columns: int) -> None:
    words = "A line of words that is long enough to be broken, with `code` and **bold text** in it. "
    text = (
        f"{words * 3}\n\n- {words * 2}\n\n> {words * 2}\n\n日本語のテキストは空白なしで続きますので改行できます。" * 3
    )
    lines = render(text, columns).splitlines()
    assert max(map(cell_len, lines)) < columns
    assert max(map(cell_len, lines)) > min(columns, 100) - 15


def test_nothing_waits_for_longer_than_it_must() -> None:
    parts: list[str] = []
    stream = MarkdownStream(parts.append, lambda: 60, Ink(PLAIN))
    stream.push("One word and ano")
    assert "".join(parts) == "One word and"
    stream.push("ther\n```py\nvalue = 1 + oth")
    assert "".join(parts).endswith("\nvalue = 1 + ")
    stream.push("er\n```\n" + "held *" + "x" * 300)
    assert "".join(parts).endswith("held")
    stream.push(" more")
    assert "*xxx" in "".join(parts)


def test_width_may_change_meanwhile() -> None:
    columns, parts = 60, list[str]()
    stream = MarkdownStream(parts.append, lambda: columns, Ink(PLAIN))
    stream.push("word " * 20)
    columns = 40
    stream.push("word " * 20 + "\n")
    lengths = [len(line) for line in "".join(parts).splitlines()]
    assert max(lengths[:2]) <= 59
    assert max(lengths[2:]) <= 39


def test_long_table_goes_on_row_by_row_in_its_columns() -> None:
    rows = [f"| {number} | {'x' * (number % 7)} |" for number in range(40)]
    table = ["| n | some text |", "|---|---|", *rows]
    parts: list[str] = []
    stream = MarkdownStream(parts.append, lambda: 60, Ink(PLAIN))
    for number, line in enumerate(table):
        stream.push(line + "\n")
        assert bool(parts) == (number + 1 >= MAX_HELD_ROWS)
    stream.finish()
    assert "".join(parts) == render("\n".join(table))
    assert len("".join(parts).splitlines()) == len(table)


def test_wide_table_is_fitted() -> None:
    text = "| name | what |\n|---|---|\n| first | " + "many words " * 10 + "|\n| second | short |"
    lines = render(text, 40).splitlines()
    assert max(map(len, lines)) <= 39
    assert sum(line.startswith("second") for line in lines) == 1


def test_code_is_neither_broken_nor_restyled() -> None:
    code = 'def f(text: str = "a b c", *rest) -> None:  # ' + "long comment " * 10 + "\n    '''Doc\n    string.'''\n"
    shown = render(f"```python\n{code}```\n", 40, 4, COLORS)
    assert ESCAPES.sub("", shown).splitlines()[1:-1] == code.splitlines()
    assert "\x1b[" in shown


def test_work_on_a_line_of_code_does_not_grow_with_the_square_of_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, read = [0], PythonLexer.get_tokens_unprocessed

    def counted(lexer: PythonLexer, text: str) -> Iterator[tuple[int, object, str]]:
        seen[0] += len(text)
        return read(lexer, text)  # type: ignore[no-any-return]

    monkeypatch.setattr(PythonLexer, "get_tokens_unprocessed", counted)
    counts = []
    for length in (4_000, 8_000):
        seen[0] = 0
        line = ("x = 1; 'abc'; " * length)[:length]
        shown = render(f"```python\n{line}\ny = 2\n```\n", 80, 4, COLORS)
        assert ESCAPES.sub("", shown).splitlines()[1:-1] == [line, "y = 2"]
        counts.append(seen[0])
    assert counts[0] == counts[1] > 0


def test_no_color_sets_attributes_only() -> None:
    shown = render("# Title\n**bold** `code`\n```python\nreturn 1\n```\n", level=ATTRIBUTES)
    codes = {code for found in ESCAPES.findall(shown) for code in found[2:-1].split(";")}
    assert codes <= {"", "0", "1", "2", "3", "4", "9"}
    assert "\x1b[1m" in shown


def test_spans_name_their_looks() -> None:
    assert inline_spans("a **b *c* d** `e`") == [
        Span("a "),
        Span("b ", ("bold",)),
        Span("c", ("bold", "italic")),
        Span(" d", ("bold",)),
        Span(" "),
        Span("e", ("code",)),
    ]
