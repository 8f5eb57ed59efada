"""What holds for every gap and every text that a model may write into it."""

from __future__ import annotations

import re

from hypothesis import assume, example, given
from hypothesis import strategies as st

from cg_local.infill.cursor import Target, decode_source, locate
from cg_local.infill.postprocess import MODES, MiddleTrimmer
from cg_local.infill.scanner import Scanner
from cg_local.infill.syntax import BLANK, syntax_of
from cg_local.languages import LANGUAGES

CUTS = {
    *("line_endings", "indentation", "double_space", "line", "block", "suffix_overlap", "unmatched_closer"),
    *("repetition", "blank_tail"),
}
paths = st.sampled_from(["a" + endings[0] for endings in LANGUAGES.values()] + ["a.lua", "a.unknown", "a.toml"])
modes = st.sampled_from(MODES)
# Whole lines of several languages at several depths, so that overlaps, dedents and closers come about by chance.
bodies = st.sampled_from(
    [
        "return total",
        "total += 1",
        "if x:",
        "if (x) {",
        "}",
        "});",
        "end",
        "else:",
        "# note",
        "f(",
        ")",
        '"""',
        "x = {",
        "é",
    ]
)
leads = st.sampled_from(["", "    ", "        ", "\t", "\t\t", "  "])
lines = st.lists(st.builds(str.__add__, leads, bodies) | st.just(""), max_size=8)
breaks = st.sampled_from(["\n", "\r\n", "\r"])
any_text = st.text(max_size=60) | st.text("()[]{}\"'`#/*\\-<>!= \t\r\nabßé\u0301\u2028🎉", max_size=80)


def fill(prefix: str, suffix: str, written: str, mode: str, path: str) -> MiddleTrimmer:
    trimmer = MiddleTrimmer(prefix, suffix, mode, path)
    trimmer.push(written)
    trimmer.finish()
    return trimmer


def opens_and_closes(text: str, path: str) -> bool:
    """Whether the last line of a text ends something that the lines before it began, with a bracket or a word."""
    before, _, last = text.rstrip(BLANK).rpartition("\n")
    syntax = syntax_of(path)
    depth = len(Scanner(syntax).read(before).brackets)
    return len(Scanner(syntax).read(before + "\n" + last).brackets) < depth


@given(lines, lines, lines, modes, paths)
@example([], ["    return total"], ["    total += 1", "    return total"], "block", "a.py")
@example(["f("], [")"], ["    x = {", "    }", ")"], "auto", "a.js")
def test_no_line_of_the_suffix_is_written_twice(
    above: list[str], below: list[str], written: list[str], mode: str, path: str
) -> None:
    """The middle's last line is never the next line of the file, unless it closes what the middle itself opened."""
    prefix, suffix = "\n".join([*above, "x = 1"]), "\n" + "\n".join([*below, "done()"]) + "\n"
    text = fill(prefix, suffix, "\n" + "\n".join(written), mode, path).text
    assume(text.strip(BLANK))
    last = text.rstrip(BLANK).rpartition("\n")[2].rstrip(BLANK)
    following = next(line.rstrip(BLANK) for line in suffix.split("\n") if line.strip(BLANK))
    assert last != following or opens_and_closes(text, path)


@given(any_text, any_text, any_text, modes, paths)
def test_any_text_survives(prefix: str, suffix: str, written: str, mode: str, path: str) -> None:
    """No character is changed or made up: lines keep what stands behind their indentation, up to the end."""
    trimmer = fill(prefix, suffix, written, mode, path)
    assert trimmer.raw == written[: len(trimmer.raw)]
    assert set(trimmer.trimmed) <= CUTS

    def bare(text: str) -> str:
        return re.sub(r"(?m)^[ \t]+", "", text.replace("\r\n", "\n").replace("\r", "\n"))

    assert bare(written).startswith(bare(trimmer.text).rstrip(BLANK))
    assert "\r" not in trimmer.text
    if not trimmer.trimmed and trimmer.stop_reason is None:
        assert trimmer.text == written.replace("\r\n", "\n").replace("\r", "\n")


@given(any_text, any_text, any_text, modes, paths, st.lists(st.integers(1, 5), min_size=1))
def test_pieces_change_nothing(prefix: str, suffix: str, written: str, mode: str, path: str, sizes: list[int]) -> None:
    whole = fill(prefix, suffix, written, mode, path)
    trimmer, shown, position, index = MiddleTrimmer(prefix, suffix, mode, path), "", 0, 0
    while position < len(written):
        size = sizes[index % len(sizes)]
        shown += trimmer.push(written[position : position + size])
        position, index = position + size, index + 1
    shown += trimmer.finish()
    assert shown == trimmer.text == whole.text
    assert (trimmer.stop_reason, trimmer.trimmed) == (whole.stop_reason, whole.trimmed)


@given(lines, breaks, lines, modes, paths)
def test_line_breaks_of_the_model_change_nothing(
    above: list[str], newline: str, written: list[str], mode: str, path: str
) -> None:
    prefix = "\n".join([*above, "x = 1"])
    plain = fill(prefix, "\n", "\n".join(written), mode, path)
    other = fill(prefix, "\n", newline.join(written), mode, path)
    assert (other.text, other.stop_reason) == (plain.text, plain.stop_reason)


@given(lines, st.sampled_from(["\n", "\r\n"]), st.data(), modes, paths, any_text)
def test_bytes_outside_of_the_gap_stay(
    whole: list[str], newline: str, data: st.DataObject, mode: str, path: str, written: str
) -> None:
    """A file put together again with the middle in it has its own bytes on both sides."""
    content = newline.join([*whole, "x = 1", ""])
    source = decode_source(content.encode("utf-8"), "a")
    line = data.draw(st.integers(1, len(whole) + 1))
    target = Target("a", line, data.draw(st.integers(1, len([*whole, "x = 1"][line - 1]) + 1)))
    gap = locate(source, target)
    text = fill(gap.prefix, gap.suffix, written, mode, path).text
    filled = (gap.prefix + text + gap.suffix).replace("\n", source.newline)
    start = sum(len(part) + len(newline) for part in whole[: line - 1]) + (target.column or 1) - 1
    assert filled.startswith(content[:start])
    assert filled.endswith(content[start:])
    assert filled[start : len(filled) - len(content[start:])] == text.replace("\n", newline)


@given(st.lists(leads, min_size=1, max_size=6), st.sampled_from(["\t", "    ", "  "]), paths)
def test_tabs_and_spaces_are_not_mixed_in_a_file_of_one_kind(written: list[str], style: str, path: str) -> None:
    prefix = f"a\n{style}b\n{style}{style}c\n{style}d {{"
    text = fill(prefix, "\n", "".join(f"\n{lead}x" for lead in written), "block", path).text
    styled = re.findall(r"(?m)^[ \t]+", text)
    assert not any("\t" in lead for lead in styled) or style == "\t"
    assert all(lead.startswith("\t") or len(lead) < 4 for lead in styled) or style != "\t"
