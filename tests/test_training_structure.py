"""Statements, definitions and import headers of every language, and documents made of them."""

from __future__ import annotations

import numpy as np
import pytest

from cg_local.training import fim, packing, segments
from cg_local.training.structure import split_lines

SOURCES = {
    "a.js": 'import x from "./x";\n\nfunction twice(a) {\n  const b = 2;\n  return a * b;\n}\n\nclass C {\n }\n',
    "a.ts": "function twice(a: number): number {\n  return a * 2;\n}\n",
    "a.tsx": "export const A = () => {\n  return <b>hi</b>;\n};\n",
    "a.java": "package p;\n\nimport p.q.R;\n\nclass A {\n  int twice(int a) {\n    return a * 2;\n  }\n}\n",
    "a.c": '#include "a.h"\n\nint twice(int a) {\n  return a * 2;\n}\n',
    "a.cpp": "int twice(int a) {\n  return a * 2;\n}\n",
    "a.cs": "using P.Q;\n\nclass A {\n  int Twice(int a) {\n    return a * 2;\n  }\n}\n",
    "a.go": 'package p\n\nimport (\n\t"p/q"\n)\n\nfunc twice(a int) int {\n\treturn a * 2\n}\n',
    "a.rs": "use crate::q;\n\nfn twice(a: i32) -> i32 {\n    let b = 2;\n    a * b\n}\n",
    "a.kt": "import p.q.R\n\nfun twice(a: Int): Int {\n    return a * 2\n}\n",
    "a.rb": 'require "q"\n\ndef twice(a)\n  a * 2\nend\n',
    "a.php": "<?php\nfunction twice($a) {\n  return $a * 2;\n}\n",
    "a.sh": "twice() {\n  echo $(( $1 * 2 ))\n}\n\ntwice 3\n",
    "a.sql": "SELECT a, b\nFROM t\nWHERE a > 2;\n",
    "a.html": "<html>\n  <body>\n    <p>hi</p>\n  </body>\n</html>\n",
    "a.css": "p {\n  color: red;\n}\n\nb { color: blue; }\n",
    "a.json": '{\n  "a": [\n    1,\n    2\n  ],\n  "b": 3\n}\n',
    "a.yaml": "a:\n  b: 1\n  c:\n    - d\n",
    "a.md": "# Title\n\nSome words.\n\n- one\n- two\n",
    "a.py": "import os\n\n\ndef twice(a):\n    return a * 2\n",
}


def encode(text: str) -> list[int]:
    """One id per byte, clear of the control ids."""
    return [256 + byte for byte in text.encode()]


def decode(token_ids: list[int]) -> str:
    return bytes(token_id - 256 for token_id in token_ids).decode()


def outline(path: str, text: str, max_unit_tokens: int = 400) -> segments.Outline:
    return segments.outline("own", path, text, encode, max_unit_tokens)


@pytest.fixture(autouse=True)
def _grammars() -> None:
    pytest.importorskip("tree_sitter")


def texts_of(file: segments.Outline) -> set[str]:
    return {"".join(file.lines[start:end]) for start, end in file.blocks}


@pytest.mark.parametrize("path", SOURCES)
def test_every_language_has_blocks_of_whole_lines_and_units_that_tile(path: str) -> None:
    file = outline(path, SOURCES[path])
    assert "".join(file.lines) == SOURCES[path]
    assert len(file.blocks) > 0
    assert [file.units[0][0], file.units[-1][1]] == [0, len(file.lines)]
    assert all(one[1] == other[0] for one, other in zip(file.units, file.units[1:], strict=False))
    assert all(0 <= start < end <= len(file.lines) for start, end in file.blocks)


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("a.js", "  const b = 2;\n"), ("a.js", "function twice(a) {\n  const b = 2;\n  return a * b;\n}\n"),
        ("a.java", "    return a * 2;\n"), ("a.rs", "    let b = 2;\n"), ("a.go", "\treturn a * 2\n"),
        ("a.rb", "  a * 2\n"), ("a.css", "  color: red;\n"), ("a.html", "    <p>hi</p>\n"), ("a.json", "    1,\n"),
        ("a.yaml", "  c:\n    - d\n"), ("a.sql", "WHERE a > 2;\n"), ("a.sh", "  echo $(( $1 * 2 ))\n"),
        ("a.py", "    return a * 2\n"),
    ],
)  # fmt: skip
def test_statements_and_bodies_are_blocks(path: str, block: str) -> None:
    assert block in texts_of(outline(path, SOURCES[path]))


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("a.js", 'import x from "./x";\n'), ("a.java", "import p.q.R;\n"), ("a.go", '\t"p/q"\n'),
        ("a.py", "import os\n"), ("a.css", ""), ("a.c", '#include "a.h"\n'),
    ],
)  # fmt: skip
def test_import_headers_are_found(path: str, header: str) -> None:
    file = outline(path, SOURCES[path])
    assert "".join(file.lines[slice(*file.header)]) == header


def test_large_definitions_are_cut_into_members_with_their_comments() -> None:
    members = "".join(f"  // about m{i}\n  int m{i}() {{\n    return {i};\n  }}\n\n" for i in range(6))
    text = f"class A {{\n{members}}}\n"
    file = outline("A.java", text, max_unit_tokens=100)
    assert [file.lines[start] for start, _ in file.units[1:]] == [f"  // about m{i}\n" for i in range(6)]


def test_only_newlines_end_a_line() -> None:
    assert split_lines("a\x0bb\u2028c\n\x0cd\re") == ["a\x0bb\u2028c\n", "\x0cd\re"]


@pytest.mark.parametrize("path", SOURCES)
def test_documents_of_every_language_give_the_file_back_byte_for_byte(path: str) -> None:
    file, rng = outline(path, SOURCES[path]), np.random.default_rng(0)
    blocks = [(int(start), int(end)) for start, end in file.blocks]
    for _ in range(60):
        found = fim.draw_document(encode, path, SOURCES[path], blocks, recipe=fim.FimRecipe(), rng=rng)
        assert recovered(found.token_ids)[1] in (SOURCES[path], f"{path}\n{SOURCES[path]}")


def recovered(token_ids: list[int]) -> tuple[str, str]:
    """The text before the first sentinel, and the file's text, of one file's share of a document, any order."""
    assert token_ids[-1] == 70
    parts: dict[int, list[int]] = {0: []}
    at = 0
    for token_id in token_ids[:-1]:
        if token_id in (67, 68, 69):
            at = token_id
            parts[at] = []
        else:
            parts[at].append(token_id)
    if at == 0:
        return "", decode(parts[0])
    return decode(parts[0]), "".join(decode(parts[name]) for name in (67, 68, 69))


def test_joined_documents_hold_the_files_before_theirs_in_order_and_none_of_another_list() -> None:
    names = ["one", "two", "three", "four"]
    files = [
        segments.outline("own", f"{name}.py", f"def {name}():\n    return '{name}'\n", encode, 400, group)
        for name, group in zip(names, (0, 0, 0, 1), strict=True)
    ]
    recipe = packing.DataRecipe(fim.FimRecipe(path_rate=0.0, eos_rate=0.0), multi_file_rate=1.0, files_per_block=4)
    stream = packing.BatchStream(files, encode, recipe, 5)
    seen = set()
    for document in (found for block in range(40) for found in stream.documents(block, 2000)):
        shares = split_after(document.token_ids.tolist()[1:], 70)
        texts = [recovered(share)[1] for share in shares]
        seen.add(tuple(text.split("'")[1] for text in texts if "'" in text))
    assert {("one", "two", "three"), ("one", "two"), ("one",), ("four",)} <= seen
    assert all("four" not in document or document == ("four",) for document in seen)
    assert all(list(document) == sorted(document, key=names.index) for document in seen)


def split_after(token_ids: list[int], mark: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token_id in token_ids:
        parts[-1].append(token_id)
        if token_id == mark:
            parts.append([])
    return parts[:-1]
