"""Answers as edits of a file's bytes, and as differences that `patch` and git apply."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.infill.cursor import Target, decode_source, locate
from cg_local.infill.edit import Edit, apply_edits, clashes, edit_of, unified_diff

BOM = b"\xef\xbb\xbf"
characters = st.sampled_from(["a", "é", "😀", "\t", " ", "\n", "\r\n", "\r", "\f", "\u2028", "\\"])
texts = st.lists(characters, min_size=1, max_size=30).map("".join)


def edit_at(data: bytes, target: Target, text: str) -> Edit:
    source = decode_source(data, "a.py")
    return edit_of(source, locate(source, target), text)


@given(texts, st.booleans(), st.data(), texts)
def test_bytes_outside_of_the_gap_stay_for_any_text(
    text: str, has_mark: bool, data: st.DataObject, answer: str
) -> None:
    """The oracle walks over the characters of the file and counts lines and columns by hand."""
    content = BOM * has_mark + text.encode()
    source = decode_source(content, "a.py")
    lines = source.text.split("\n")
    number = data.draw(st.integers(1, len(lines)))
    column = data.draw(st.integers(1, len(lines[number - 1]) + 1))
    position, line, passed = len(BOM) * has_mark, 1, 1
    rest = text
    while (line, passed) != (number, column):
        step = 2 if rest.startswith("\r\n") else 1
        position += len(rest[:step].encode())
        line, passed = (line + 1, 1) if rest[:step].endswith("\n") else (line, passed + 1)
        rest = rest[step:]
    answer = answer.replace("\r", "")
    edit = edit_at(content, Target("a.py", number, column), answer)
    assert edit == Edit(position, b"", answer.replace("\n", source.newline).encode())
    assert apply_edits(content, [edit]) == content[:position] + edit.after + content[position:]


def test_lines_written_anew_keep_their_last_line_break() -> None:
    data = BOM + "a\r\nbä\r\nc\r\n".encode()
    edit = edit_at(data, Target("a.py", 1, last_line=2), "x\ny\nz")
    assert apply_edits(data, [edit]) == BOM + b"x\r\ny\r\nz\r\nc\r\n"
    assert edit.before == "a\r\nbä".encode()


def test_edits_of_one_file_are_applied_together_in_any_order() -> None:
    data = b"one\ntwo\nthree\n"
    edits = [Edit(9, b"hree", b"HREE!"), Edit(0, b"one", b""), Edit(5, b"", b"22")]
    assert apply_edits(data, edits) == b"\nt22wo\ntHREE!\n"
    for clash in (Edit(9, b"", b"x"), Edit(10, b"", b"x"), Edit(8, b"th", b"")):
        assert clashes(edits, clash)
    assert not any(clashes(edits, edit) for edit in (Edit(3, b"", b"x"), Edit(8, b"t", b""), Edit(13, b"", b"x")))


def test_difference_has_three_lines_around_each_change() -> None:
    data = b"".join(b"line %d\n" % number for number in range(1, 30))
    edits = [edit_at(data, Target("a.py", 10), " more\nand more"), edit_at(data, Target("a.py", 25, last_line=26), "x")]
    assert unified_diff("src/a.py", data, edits) == (
        "--- a/src/a.py\n+++ b/src/a.py\n"
        "@@ -7,7 +7,8 @@\n line 7\n line 8\n line 9\n-line 10\n+line 10 more\n+and more\n line 11\n line 12\n line 13\n"
        "@@ -22,8 +23,7 @@\n line 22\n line 23\n line 24\n-line 25\n-line 26\n+x\n line 27\n line 28\n line 29\n"
    )


def test_difference_of_nothing_is_empty() -> None:
    assert unified_diff("a.py", b"a\nb\n", [Edit(1, b"", b"")]) == ""
    assert unified_diff("a.py", b"a\nb\n", [Edit(0, b"a", b"a")]) == ""


def test_difference_says_where_the_last_line_has_no_break() -> None:
    assert unified_diff("a.py", b"a", [Edit(1, b"", b"b\nc")]) == (
        "--- a/a.py\n+++ b/a.py\n@@ -1 +1,2 @@\n"
        "-a\n\\ No newline at end of file\n+ab\n+c\n\\ No newline at end of file\n"
    )


@pytest.mark.parametrize("program", [("git", "apply", "-"), ("patch", "-p1", "-s")])
@pytest.mark.parametrize("name", ["a.py", "two words.py", 'a "quote"\\and\ttab.py', "ä/ö.py"])
def test_patch_and_git_apply_the_difference(tmp_path: Path, program: tuple[str, ...], name: str) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"needs {program[0]}")
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    cases = [
        (b"a\nb\nc\n", Target("a.py", 2), "x\ny"),
        (b"a\nb\nc", Target("a.py", 3), "x"),
        (b"a\nb\nc\n", Target("a.py", 4), "x"),
        (b"a\nb\nc\n", Target("a.py", 4), "x\n"),
        (b"a\r\nb\r\n", Target("a.py", 1, 1), "x\ny"),
        (BOM + b"a\n", Target("a.py", 1, last_line=1), ""),
        (b"a\n" * 20, Target("a.py", 1, last_line=20), "b\na\na"),
    ]
    for data, target, text in cases:
        edit = edit_at(data, target, text)
        place.write_bytes(data)
        difference = unified_diff(name, data, [edit]).encode()
        done = subprocess.run(
            [*program, *(["--binary"] if program[0] == "patch" else [])],
            input=difference,
            cwd=tmp_path,
            capture_output=True,
        )
        assert (done.returncode, place.read_bytes()) == (0, apply_edits(data, [edit])), (data, done)


@given(st.lists(st.sampled_from(["a\n", "b\n", "\n", "c"]), max_size=30), st.data())
def test_difference_turns_the_old_lines_into_the_new(parts: list[str], draw: st.DataObject) -> None:
    """The oracle applies hunks by their numbers alone."""
    data = "".join(parts).encode()
    places = sorted(draw.draw(st.sets(st.integers(0, len(data)), max_size=4)))
    edits = [Edit(place, b"", draw.draw(st.sampled_from([b"x", b"\n", b"x\ny", b"a\nb\n"]))) for place in places]
    difference = unified_diff("a.py", data, edits).split("\n")
    old, new, at = data.decode().split("\n"), list[str](), 0
    for line in difference[2:-1]:
        if line.startswith("@@"):
            start, _, count = line.split()[1][1:].partition(",")
            first = int(start) - (count != "0")
            new += old[at:first]
            at = first
        elif line[0] in "- ":
            assert old[at] == line[1:]
            at += 1
        if line[0] in "+ ":
            new.append(line[1:])
    is_cut = bool(difference[2:]) and difference[-2].startswith("\\")
    new += old[at:]
    expected = apply_edits(data, edits).decode()
    assert "\n".join(new).rstrip("\n") == expected.rstrip("\n")
    assert not is_cut or not (data.endswith(b"\n") and expected.endswith("\n"))
