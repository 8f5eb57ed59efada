"""The context of a file in hand-made repositories: which files, in which order, how much of each; with and without
grammars."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cg_local import grammars
from cg_local.repository import definitions, drafts, imports
from cg_local.repository.context import MIN_FILE_TOKENS, Candidate, candidates, pack
from cg_local.repository.definitions import units_of
from cg_local.repository.excerpts import excerpt
from cg_local.repository.work_tree import WorkTree


def count(text: str) -> int:
    return len(re.findall(r"\w+|\n|[^\w\s]", text))


def tree_of(tmp_path: Path, files: dict[str, str]) -> WorkTree:
    for path, text in files.items():
        tmp_path.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(path).write_text(text, encoding="utf-8")
    return WorkTree(tmp_path.resolve(), is_git=False)


def found(tree: WorkTree, path: str, text: str) -> list[tuple[str, str]]:
    return [(candidate.kind, candidate.path) for candidate in candidates(tree, path, text)]


REPOSITORIES = {
    "python": (
        {
            "shop/__init__.py": "from .money import Money\n",
            "shop/money.py": "class Money:\n    pass\n",
            "shop/tax.py": "def rate():\n    return 1\n",
            "shop/cart.py": "import json\nfrom . import tax\nfrom shop import Money\n\ntotal = Money(\n",
            "shop/discount.py": "def rebate(total):\n    return total\n",
            "shop/listing.py": "def total():\n    return 1\n",
            "tests/test_cart.py": "from shop.cart import total\n",
        },
        "shop/cart.py",
        [
            ("import", "shop/tax.py"),
            ("import", "shop/money.py"),
            ("partner", "tests/test_cart.py"),
            ("sibling", "shop/listing.py"),
        ],
    ),
    "test of python": (
        {
            "a/cart.py": "def f(): pass\n",
            "a/b.py": "def g(): pass\n",
            "t/test_cart.py": "from a.b import g\nimport a.cart\n",
        },
        "t/test_cart.py",
        [("partner", "a/cart.py"), ("import", "a/b.py")],
    ),
    "typescript": (
        {
            "src/app.ts": 'import { Cart } from "./cart";\nimport type { Tax } from "./lib";\nconst x = new Cart(',
            "src/cart.ts": "export class Cart { add(a: number) { return a; } }\n",
            "src/lib/index.ts": 'export { Tax } from "./tax";\n',
            "src/lib/tax.ts": "export interface Tax { rate: number }\n",
            "src/app.test.ts": 'import "./app";\n',
            "src/other.ts": "export const nothing = 1;\n",
        },
        "src/app.ts",
        [("import", "src/cart.ts"), ("import", "src/lib/tax.ts"), ("partner", "src/app.test.ts")],
    ),
    "java": (
        {
            "src/org/x/Basket.java": "package org.x;\nimport org.x.util.Money;\nclass Basket { Money m; Helper h = ",
            "src/org/x/util/Money.java": "package org.x.util;\npublic class Money { }\n",
            "src/org/x/Helper.java": "package org.x;\nclass Helper { }\n",
            "src/org/x/Unused.java": "package org.x;\nclass Unused { }\n",
            "test/org/x/BasketTest.java": "package org.x;\nclass BasketTest { }\n",
        },
        "src/org/x/Basket.java",
        [
            ("import", "src/org/x/util/Money.java"),
            ("partner", "test/org/x/BasketTest.java"),
            ("sibling", "src/org/x/Helper.java"),
        ],
    ),
    "go": (
        {
            "go.mod": "module example.org/shop\n",
            "main.go": 'package main\nimport (\n\t"fmt"\n\t"example.org/shop/money"\n)\nfunc main() {\n\tprintTotal(',
            "money/money.go": "package money\n\nfunc New() int { return 1 }\n",
            "print.go": "package main\n\nfunc printTotal(a int) { }\n",
            "main_test.go": "package main\n",
        },
        "main.go",
        [("import", "money/money.go"), ("partner", "main_test.go"), ("sibling", "print.go")],
    ),
    "c": (
        {
            "src/list.c": '#include "list.h"\n#include <stdio.h>\n#include "mem.h"\nint f(void) {\n',
            "include/list.h": "int f(void);\n",
            "src/mem.h": "void *take(int n);\n",
            "src/mem.c": "void *take(int n) { return 0; }\n",
        },
        "src/list.c",
        [("import", "src/mem.h"), ("partner", "include/list.h")],
    ),
    "rust": (
        {
            "src/main.rs": "mod args;\nuse crate::net::{client::Client, server};\nfn main() {\n",
            "src/args.rs": "pub fn parse() {}\n",
            "src/net/client.rs": "pub struct Client;\n",
            "src/net/server.rs": "pub fn serve() {}\n",
        },
        "src/main.rs",
        [("import", "src/args.rs"), ("import", "src/net/client.rs"), ("import", "src/net/server.rs")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPOSITORIES)
def test_files_that_help_best_first(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tree_sitter")
    files, path, expected = REPOSITORIES[name]
    assert found(tree_of(tmp_path, files), path, files[path]) == expected


@pytest.mark.parametrize("name", [name for name in REPOSITORIES if name != "typescript"])
def test_imports_are_found_without_grammars(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings in other languages than Python need the trees, and so do names that another file passes on."""
    for module in (drafts, imports, definitions):
        monkeypatch.setattr(module, "find_parser", lambda language: None)
    files, path, expected = REPOSITORIES[name]
    kinds = {"import", "partner", "sibling"} if "python" in name else {"import", "partner"}
    assert found(tree_of(tmp_path, files), path, files[path]) == [item for item in expected if item[0] in kinds]


@pytest.mark.parametrize("name", ["typescript", "java", "go", "rust", "csharp", "kotlin"])
def test_draft_reads_the_same_imports_with_and_without_a_grammar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tree_sitter")
    path, text = {
        "typescript": (
            "a/b.ts",
            'import x, {y as z} from "../c/d";\nimport "./e";\nexport * from "./f";\nconst g = require("./h");\n',
        ),
        "java": ("A.java", "import a.b.C;\nimport static a.D.e;\n"),
        "go": ("a.go", 'package a\nimport "x/y"\nimport (\n\tq "z/w"\n\t"v"\n)\n'),
        "rust": ("a.rs", "mod b;\npub use crate::c::{d, e::F};\n"),
        "csharp": ("A.cs", "using A.B;\nusing static C.D;\n"),
        "kotlin": ("a.kt", "import a.b.C\nimport d.E\n"),
    }[name]  # fmt: skip
    with_grammar = drafts.draft_imports(path, text)
    monkeypatch.setattr(drafts, "find_parser", lambda language: None)
    assert drafts.draft_imports(path, text) == with_grammar
    assert with_grammar


def test_names_that_are_passed_on_are_followed_and_the_others_stay(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        {
            "p/__init__.py": "from .deep import Far\nfrom .near import *\n\nHere = 1\n",
            "p/deep/__init__.py": "from .x import Far\n",
            "p/deep/x.py": "class Far: pass\n",
            "p/near.py": "def close(): pass\n",
        },
    )
    far, here = ("import", "p/deep/x.py"), ("import", "p/__init__.py")
    assert found(tree, "a.py", "from p import Far\n") == [far]
    assert found(tree, "a.py", "from p import Far, Here\n") == [here, far]
    assert found(tree, "a.py", "from p import close\n") == [here]
    assert found(tree, "a.py", "import p\n") == [here]


def test_broken_python_keeps_its_imports() -> None:
    text = "from a import (\n    b,\n    c,\n)\nimport d\n\ndef f(:\n    return x.\n"
    assert [wanted.parts for wanted in drafts.draft_imports("m.py", text)] == [("a", "b"), ("a", "c"), ("d",)]


MODULE = '''"""A module."""
import os

LIMIT = 3


def helper(a, b):
    """Help.

    At length.
    """
    total = a + b
    return total


class Cart:
    """A cart."""

    def __init__(self, owner):
        self.owner = owner
        self.items = []

    def add(self, item):
        self.items.append(item)


def _hidden():
    return 1


def other():
    return LIMIT
'''


def test_excerpt_of_a_short_file_is_the_file() -> None:
    assert excerpt("m.py", MODULE, {"Cart"}, count(MODULE), count) == MODULE


def test_excerpt_shows_the_wanted_definition_first() -> None:
    outline = (
        'class Cart:\n    """A cart."""\n\n    def __init__(self, owner):\n        ...\n\n'
        "    def add(self, item):\n        ...\n"
    )
    assert excerpt("m.py", MODULE, {"Cart"}, count(outline) + 1, count) == outline
    whole = MODULE[MODULE.index("class Cart") : MODULE.index("\n\ndef _hidden")]
    assert excerpt("m.py", MODULE, {"Cart"}, count(whole) + 1, count) == whole


def test_excerpt_without_wanted_names_is_an_outline_of_what_is_public() -> None:
    outline = (
        'LIMIT = 3\n\ndef helper(a, b):\n    """Help."""\n\nclass Cart:\n    """A cart."""\n\n'
        "    def __init__(self, owner):\n        ...\n\n    def add(self, item):\n        ...\n\n"
        "def other():\n    return LIMIT\n"  # shorter than the ellipsis that would stand for it
    )
    assert excerpt("m.py", MODULE, {"nothing"}, count(outline) + 2, count) == outline


@pytest.mark.parametrize("max_tokens", range(0, 130, 3))
def test_excerpt_is_never_longer_than_allowed(max_tokens: int) -> None:
    for wanted in (set(), {"Cart"}, {"LIMIT", "other"}):
        assert count(excerpt("m.py", MODULE, wanted, max_tokens, count)) <= max_tokens


def test_excerpt_of_python_parses() -> None:
    import ast

    for path in Path(definitions.__file__).parent.glob("*.py"):
        for unit in units_of(path.name, path.read_text(encoding="utf-8")):
            ast.parse(unit.outline)


def test_excerpt_without_a_grammar_is_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "find_parser", lambda language: None)
    text = "package a\n\nfunc F() int {\n\treturn 1\n}\n"
    assert excerpt("a.go", text, {"F"}, 9, count) == "package a\n\n"


OUTLINES = {
    "a.ts": (
        "export class A {\n  run(x: string): void {\n    log(x);\n  }\n}\n",
        "export class A {\n  run(x: string): void;\n}\n",
    ),
    "a.js": ("export const f = (a) => {\n  return a;\n};\n", "export const f = (a) => {};\n"),
    "A.java": ("class A {\n  int f(int a) {\n    return a;\n  }\n}\n", "class A {\n  int f(int a);\n}\n"),
    "a.go": ("func (t *T) Run(a int) int {\n\treturn a\n}\n", "func (t *T) Run(a int) int\n"),
    "a.c": ("int add(int a, int b) {\n    return a + b;\n}\n", "int add(int a, int b);\n"),
    "a.cpp": ("class A {\n  int f() const {\n    return 1;\n  }\n};\n", "class A {\n  int f() const;\n};\n"),
    "a.rs": ("impl A {\n    pub fn new() -> Self {\n        A\n    }\n}\n", "impl A {\n    pub fn new() -> Self;\n}\n"),
}  # fmt: skip


@pytest.mark.parametrize("path", OUTLINES)
def test_outline_keeps_signatures(path: str) -> None:
    pytest.importorskip("tree_sitter")
    text, outline = OUTLINES[path]
    assert [(unit.text, unit.outline) for unit in units_of(path, text)] == [(text, outline)]


def test_names_of_declarations_in_c() -> None:
    pytest.importorskip("tree_sitter")
    text = (
        "#ifndef A\n#define A\n#define N 3\ntypedef struct x { int y; } x_t;\nchar *f(int a);\nextern int c;\n#endif\n"
    )
    units = [(unit.names, unit.is_definition) for unit in units_of("a.h", text)]
    assert units == [(("N",), False), (("x_t",), True), (("f",), True), (("c",), False)]


def test_order_and_texts_do_not_depend_on_the_gap(tmp_path: Path) -> None:
    """A line more or less at the cursor moves nothing: the K and V of the context stay valid."""
    files, path, _ = REPOSITORIES["python"]
    tree = tree_of(tmp_path, files)
    shown = []
    for edit in ("", "x = 1\n", "def broken(:\n", "total.rate(\n"):
        text = files[path] + edit
        shown.append(pack(WorkTree(tree.root, is_git=False), candidates(tree, path, text), 400, count))
    assert shown[0]
    assert all(other == shown[0] for other in shown)


def test_nearest_stands_last_and_the_budget_holds(tmp_path: Path) -> None:
    long = "".join(f"def function_{number}(a):\n    return a + {number}\n\n\n" for number in range(60))
    tree = tree_of(tmp_path, {"a.py": long, "b.py": long, "c.py": long})
    wanted = [Candidate(path, "import", {"function_7"}) for path in ("a.py", "b.py", "c.py")]
    for budget in range(0, 900, 50):
        files = pack(tree, wanted, budget, count)
        assert sum(file.num_tokens for file in files) <= budget
        assert [file.path for file in files] == sorted((file.path for file in files), reverse=True)
        for file in files:
            assert file.num_tokens == count(f"{file.path}\n{file.text}") + 1
            assert "def function_7(a):" in file.text
    assert [file.path for file in pack(tree, wanted, 900, count)] == ["c.py", "b.py", "a.py"]
    assert pack(tree, wanted, MIN_FILE_TOKENS, count) == []


def test_secrets_and_ignored_files_are_no_context(tmp_path: Path) -> None:
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    tree = tree_of(
        tmp_path,
        {
            ".gitignore": "local.py\n",
            "a.py": "import keys\nimport local\nimport good\n",
            "keys.py": f'KEY = "{key}"\n',
            "local.py": "PASSWORD = 1\n",
            "good.py": "def fine():\n    return 1\n\n\ndef more():\n    return [fine(), fine(), fine(), fine()]\n",
        },
    )
    found_files = candidates(tree, "a.py", "import keys\nimport local\nimport good\n")
    assert [candidate.path for candidate in found_files] == ["keys.py", "good.py"]
    assert [file.path for file in pack(tree, found_files, 500, count)] == ["good.py"]
    assert tree.refused == {"keys.py": "holds what looks like an AWS key"}


def test_every_grammar_that_cuts_is_known() -> None:
    assert set(definitions.BODY_SIGNS) <= set(grammars.GRAMMARS)
