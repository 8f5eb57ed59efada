"""Targets, decoding and cutting of source files, checked with hand-written cases and random texts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.errors import SourceFileError
from cg_local.infill.cursor import SourceText, Target, decode_source, locate, parse_target, read_source

file_names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
numbers = st.integers(0, 10**6)


def nothing_exists(path: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py:7", Target("a.py", 7)),
        ("a.py:7:3", Target("a.py", 7, column=3)),
        ("a.py:7-9", Target("a.py", 7, last_line=9)),
        ("-:12", Target("-", 12)),
        ("my file:v2.py:7", Target("my file:v2.py", 7)),
        ("C:\\src\\a.py:7:3", Target("C:\\src\\a.py", 7, column=3)),
        ("C:\\src\\a.py:7", Target("C:\\src\\a.py", 7)),
        ("a-b-3.py:1-1", Target("a-b-3.py", 1, last_line=1)),
    ],
)
def test_target_is_parsed(text: str, expected: Target) -> None:
    assert parse_target(text, nothing_exists) == expected


@given(file_names.filter(lambda name: "\n" not in name and not name[-1].isdigit()), numbers, numbers, numbers)
def test_target_round_trips_for_any_file_name(name: str, line: int, column: int, more: int) -> None:
    assert parse_target(f"{name}:{line}", nothing_exists) == Target(name, line)
    assert parse_target(f"{name}:{line}:{column}", nothing_exists) == Target(name, line, column=column)
    assert parse_target(f"{name}:{line}-{line + more}", nothing_exists) == Target(name, line, last_line=line + more)


def test_target_prefers_the_reading_that_names_a_file() -> None:
    assert parse_target("notes:3:5", lambda path: path == "notes:3") == Target("notes:3", 5)
    assert parse_target("notes:3:5", lambda path: True) == Target("notes", 3, column=5)


@pytest.mark.parametrize("text", ["", "a.py", "a.py:", "a.py:x", ":3", "a.py:-3", "a.py:3:", "a.py:9999999999"])
def test_target_without_a_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no line: write FILE:LINE, FILE:LINE:COL or FILE:FIRST-LAST"):
        parse_target(text, nothing_exists)


def test_target_with_a_reversed_range_names_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"ends before it begins: write a\.py:3-7"):
        parse_target("a.py:7-3", nothing_exists)


def test_source_keeps_the_byte_order_mark_out_and_remembers_line_endings() -> None:
    assert decode_source(b"\xef\xbb\xbfa\r\nb\r\n", "a.py") == SourceText("a.py", "a\nb\n", "\r\n")
    assert decode_source("ä\n".encode(), "a.py") == SourceText("a.py", "ä\n", "\n")
    assert decode_source(b"a\nb\r\n", "a.py").newline == "\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.py: empty; write a first line"),
        (b"\xef\xbb\xbf", "a.py: empty"),
        (b"ok\nna\0me", r"a.py: a binary file \(NUL at byte 6\); a text file is needed"),
        ("x = 1\n".encode("utf-16"), "encoded as UTF-16, UTF-8 is needed; convert it: iconv -f UTF-16 -t UTF-8 'a.py'"),
        ("x = 1\n".encode("utf-32"), "encoded as UTF-32"),
        (
            b"x = 1\ny = 'caf\xe9'\n",
            "not UTF-8: byte 0xe9 at line 2; if it is Windows-1252, convert it: iconv -f CP1252",
        ),
    ],
)
def test_source_that_is_not_utf8_text_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(SourceFileError, match=message):
        decode_source(data, "a.py")


def test_source_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceFileError, match="no such file"):
        read_source(tmp_path / "none.py")
    with pytest.raises(SourceFileError, match="this is a folder"):
        read_source(tmp_path)
    with pytest.raises(SourceFileError, match="this is a device or socket"):
        read_source(os.devnull)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd")
def test_pipe_that_a_shell_hands_over_is_read() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"x = 1\n")
    os.close(theirs)
    with os.fdopen(ours):
        assert read_source(f"/dev/fd/{ours}").text == "x = 1\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_source_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x\n")
    path.chmod(0)
    with pytest.raises(SourceFileError, match="cannot be read: Permission denied"):
        read_source(path)


def source(text: str) -> SourceText:
    return SourceText("a.py", text, "\n")


def test_gap_lies_at_the_end_of_the_line_or_before_the_column() -> None:
    text = "ab\nçdé\n"
    assert locate(source(text), Target("a.py", 2)).prefix == "ab\nçdé"
    assert locate(source(text), Target("a.py", 2)).column == 4
    assert locate(source(text), Target("a.py", 2, column=2)).prefix == "ab\nç"
    assert locate(source(text), Target("a.py", 2, column=4)).suffix == "\n"
    assert locate(source(text), Target("a.py", 3)).prefix == text


def test_gap_of_a_range_keeps_the_last_line_break_outside() -> None:
    gap = locate(source("a\nb\nc\nd\n"), Target("a.py", 2, last_line=3))
    assert (gap.prefix, gap.suffix, gap.line, gap.column) == ("a\n", "\nd\n", 2, 1)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target("a.py", 0), "a.py: line 0 is out of range; the file has 2 lines, counted from 1"),
        (Target("a.py", 4), "line 4 is out of range; the file has 2 lines"),
        (Target("a.py", 1, last_line=3), "line 3 is out of range"),
        (Target("a.py", 1, column=5), "column 5 is out of range; line 1 has 3 characters, so its columns are 1 to 4"),
        (Target("a.py", 1, column=0), "column 0 is out of range"),
    ],
)
def test_gap_outside_of_the_file_is_refused_with_the_numbers(target: Target, message: str) -> None:
    with pytest.raises(SourceFileError, match=message):
        locate(source("abc\nd\n"), target)


@given(st.text(min_size=1), st.data())
def test_gap_loses_no_character(text: str, data: st.DataObject) -> None:
    lines = text.split("\n")
    line = data.draw(st.integers(1, len(lines)))
    column = data.draw(st.integers(1, len(lines[line - 1]) + 1))
    gap = locate(source(text), Target("a.py", line, column=column))
    assert gap.prefix + gap.suffix == text
    assert gap.prefix.count("\n") == line - 1
    assert len(gap.prefix.split("\n")[-1]) == column - 1


@given(st.lists(st.text(st.characters(exclude_characters="\n")), min_size=1), st.data())
def test_gap_of_a_range_replaces_exactly_its_lines(lines: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(lines)))
    last = data.draw(st.integers(first, len(lines)))
    gap = locate(source("\n".join(lines) + "\n"), Target("a.py", first, last_line=last))
    middle = "\n".join(lines[first - 1 : last])
    assert gap.prefix + middle + gap.suffix == "\n".join(lines) + "\n"
