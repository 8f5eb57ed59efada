"""Columns of compilers and searches, which count characters, bytes or places on a screen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Inside

from cg_local.infill.columns import character_column

TAB, WIDE = "\tint y = x", 's := "日本" + x'


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ("g.c:5:5: warning: x", "int y = x", 5, 5),
        ("g.c:5:16: warning: x", TAB, 16, None),  # gcc: the tab counts as 8; clang: as 1
        ("g.c:5:1: warning: x", TAB, 1, 1),
        ("g.c:5:9", TAB, 9, 9),  # typed
        ("g.c:5:2:" + TAB, TAB, 2, 2),  # rg --column: bytes
        ("u.go:4:17: undefined: x", WIDE, 17, 13),  # Go: bytes
        ("u.go:4:8: undefined: x", WIDE, 8, None),  # in the middle of a character
        ("u.go:4:99: undefined: x", WIDE, 99, None),
        ("u.go:4:6: undefined: x", TAB, 6, 6),
        ("a.ts(4,13): error TS2304: x", WIDE, 13, 13),
        ("a.py:4:13: F821 x", WIDE, 13, 13),
        ("a.py:4:4: F821 x", "s😀 = x", 4, None),  # UTF-16 or code points
        ("a.lua:4:13: x", WIDE, 13, None),
        ("a.lua:4:6: x", TAB, 6, 6),
    ],
)
def test_column_is_that_of_the_program_or_none(text: str, line: str, column: int, expected: int | None) -> None:
    file = text.split(":")[0].split("(")[0]
    assert character_column(text, file, line, column) == expected


def test_place_with_an_uncertain_column_is_refused(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Callable[..., subprocess.CompletedProcess[bytes]] = Inside(capfdbinary, monkeypatch).run
    tmp_path.joinpath("g.c").write_text(f"{TAB}\n")
    done = run("fill", "g.c:1:10: warning: x", "--write", home=tmp_path)
    assert (done.returncode, done.stdout, tmp_path.joinpath("g.c").read_text()) == (1, b"", f"{TAB}\n")
    assert done.stderr.decode() == (
        "cg-local: error: g.c:1: column 10 may count characters, bytes or, as gcc does, a tab as 8, and they differ in "
        "this line; give g.c:1, the end of the line, or g.c:1:COL in characters\n"
    )
