"""Repository order on hand-made repositories: imports found, cycles cut, the report's rule, the places of tests."""

from __future__ import annotations

import random

import pytest

from cg_local.training import import_graph as graphs
from cg_local.training.imports import Import, PathIndex, imports_of

SHOP = {
    "shop/__init__.py": "",
    "shop/money.py": "def add(a, b):\n    return a + b\n",
    "shop/cart.py": "from shop.money import add\nfrom . import tax\n\n\ntotal = add(tax.of(1), add(1, 2))\n",
    "shop/tax.py": "from .money import add\n\n\ndef of(x):\n    return add(x, x)\n",
    "tests/test_cart.py": "import shop.cart\nimport json\n\nshop.cart.total()\n",
    "setup.py": "import sys\n",
    "zebra.py": "x = 1\n",
    "apple.py": "y = 2\n",
    "checks/test_apple.py": "z = 3\n",
}


def test_files_stand_behind_what_they_import_and_the_others_in_lexical_order() -> None:
    assert graphs.reading_order(SHOP) == [
        ["shop/money.py", "shop/tax.py", "shop/cart.py", "tests/test_cart.py"],
        ["apple.py", "checks/test_apple.py", "setup.py", "shop/__init__.py", "zebra.py"],
    ]


def test_order_does_not_depend_on_the_order_of_the_files() -> None:
    expected = graphs.reading_order(SHOP)
    for seed in range(10):
        paths = list(SHOP)
        random.Random(seed).shuffle(paths)
        assert graphs.reading_order({path: SHOP[path] for path in paths}) == expected


def test_the_next_file_is_the_nearest_to_those_sorted_not_the_first_by_name() -> None:
    # Behind a, both z (distance 1) and b (distance 3) have nothing left to wait for.
    graph: graphs.Graph = {"z": {"a": 1}, "y": {"z": 1, "b": 1}}
    assert graphs.topological_order(graph) == ["a", "z", "b", "y"]


def test_cycle_loses_its_least_important_edge() -> None:
    graph: graphs.Graph = {"a": {"b": 5}, "b": {"c": 2}, "c": {"a": 3}, "d": {"a": 1}}
    assert graphs.without_cycles(graph) == {"a": {"b": 5}, "c": {"a": 3}, "d": {"a": 1}}


def test_cycle_of_two_files_keeps_the_import_that_is_used_more() -> None:
    files = {
        "a.py": "import b\n\nb.one()\nb.two()\nb.three()\n",
        "b.py": "import a\n\na.one()\n",
    }
    assert graphs.import_graph(files) == {"a.py": {"b.py": 4}, "b.py": {"a.py": 2}}
    assert graphs.reading_order(files) == [["b.py", "a.py"]]


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_become_acyclic_and_are_sorted_completely(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"f{i:02}" for i in range(15)]
    graph: graphs.Graph = {}
    for _ in range(40):
        one, other = rng.sample(names, 2)
        graph.setdefault(one, {})[other] = rng.randint(1, 5)
    cut = graphs.without_cycles(graph)
    order = graphs.topological_order(cut)
    assert sorted(order) == sorted({*graph, *(t for targets in graph.values() for t in targets)})
    place = {name: i for i, name in enumerate(order)}
    assert all(place[target] < place[path] for path, targets in cut.items() for target in targets)
    # Every edge that was dropped would have closed a cycle with edges at least as important.
    for path, targets in graph.items():
        for target, weight in targets.items():
            if target not in cut.get(path, {}):
                strong = {p: {t: w for t, w in ts.items() if w >= weight} for p, ts in cut.items()}
                assert graphs.is_connected(strong, target, path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tests/test_cart.py", "cart"), ("cart_test.go", "cart"), ("TestFoo.java", "Foo"), ("FooTest.java", "Foo"),
        ("FooTests.cs", "Foo"), ("cart.test.ts", "cart"), ("cart.spec.js", "cart"), ("Cart_spec.rb", "Cart"),
        ("contest.py", None), ("Latest.java", None), ("testing.py", None), ("tests.py", None),
    ],
)  # fmt: skip
def test_names_of_tests_are_recognised(path: str, name: str | None) -> None:
    assert graphs.tested_name(path) == name


def test_tests_stand_beside_the_nearest_implementation() -> None:
    paths = ["src/b/Foo.java", "src/a/Foo.java", "src/b/t/TestFoo.java", "src/a/Bar.java", "src/a/TestNone.java"]
    assert graphs.lexical_order(paths) == [
        "src/a/Bar.java", "src/a/Foo.java", "src/a/TestNone.java", "src/b/Foo.java", "src/b/t/TestFoo.java",
    ]  # fmt: skip


def test_longest_suffix_wins_and_of_equal_ones_the_nearest() -> None:
    index = PathIndex(["src/a/util.py", "src/b/util.py", "util.py", "src/a/main.py"])
    assert index.find(Import(("b", "util")), "src/a/main.py") == ["src/b/util.py"]
    assert index.find(Import(("util",)), "src/a/main.py") == ["src/a/util.py"]
    assert index.find(Import(("util",)), "docs/x.py") == ["util.py"]
    assert index.find(Import(("c", "util")), "src/a/main.py") == []
    assert index.find(Import(("json",)), "src/a/main.py") == []


def test_standard_library_names_match_no_file_unless_the_import_is_relative() -> None:
    files = {"pkg/json.py": "", "pkg/a.py": "import json\n", "pkg/b.py": "from . import json\n"}
    assert graphs.import_graph(files) == {"pkg/b.py": {"pkg/json.py": 1}}


REPOSITORIES = {
    "javascript": (
        {
            "src/a.js": 'import {b} from "./lib/b";\nconst c = require("../c.js");\nb(c);\n',
            "src/lib/b.ts": "", "c.js": "", "b.js": "",
        },
        {"src/a.js": {"src/lib/b.ts", "c.js"}},
    ),
    "index file": ({"ui/index.tsx": "", "app.tsx": 'export {Ui} from "./ui";\n'}, {"app.tsx": {"ui/index.tsx"}}),
    "java": (
        {
            "src/org/x/A.java": "import org.x.util.B;\nimport static org.x.C.make;\nclass A { B b; }\n",
            "src/org/x/util/B.java": "", "src/org/x/C.java": "",
        },
        {"src/org/x/A.java": {"src/org/x/util/B.java", "src/org/x/C.java"}},
    ),
    "kotlin": ({"k/A.kt": "import k.B\n\nval x = B()\n", "k/B.kt": ""}, {"k/A.kt": {"k/B.kt"}}),
    "c": (
        {
            "src/a.c": '#include "a.h"\n#include <b.h>\n#include "sub/c.h"\n',
            "include/a.h": "", "b.h": "", "src/sub/c.h": "",
        },
        {"src/a.c": {"include/a.h", "src/sub/c.h"}},
    ),
    "go": (
        {
            "main.go": 'package main\nimport (\n\t"fmt"\n\t"github.com/me/it/pkg/q"\n)\n',
            "pkg/q/a.go": "", "pkg/q/b.go": "", "q/c.go": "",
        },
        {"main.go": {"pkg/q/a.go", "pkg/q/b.go"}},
    ),
    "rust": (
        {
            "src/main.rs": "mod args;\nuse crate::net::{client::Client, server};\n",
            "src/args.rs": "", "src/net/client.rs": "", "src/net/server.rs": "",
        },
        {"src/main.rs": {"src/args.rs", "src/net/client.rs", "src/net/server.rs"}},
    ),
    "ruby": (
        {"lib/a.rb": 'require_relative "b/c"\nrequire "json"\n', "lib/b/c.rb": ""},
        {"lib/a.rb": {"lib/b/c.rb"}},
    ),
    "php": (
        {
            "src/A.php": '<?php\nuse App\\Model\\User;\nrequire_once __DIR__ . "/x.php";\n',
            "src/Model/User.php": "", "src/x.php": "",
        },
        {"src/A.php": {"src/Model/User.php", "src/x.php"}},
    ),
    "csharp": ({"A.cs": "using Shop.Money;\n", "Money.cs": ""}, {"A.cs": {"Money.cs"}}),
    "bash": (
        {"a.sh": 'source ./lib/b.sh\n. "$HERE/c.sh"\n', "lib/b.sh": "", "c.sh": ""},
        {"a.sh": {"lib/b.sh", "c.sh"}},
    ),
    "css": ({"a.css": '@import "b.css";\n', "b.css": ""}, {"a.css": {"b.css"}}),
    "html": (
        {"i.html": '<html><script src="js/a.js"></script><link href="s.css"></html>', "js/a.js": "", "s.css": ""},
        {"i.html": {"js/a.js", "s.css"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPOSITORIES)
def test_imports_of_other_languages_find_their_files(name: str) -> None:
    pytest.importorskip("tree_sitter")
    files, expected = REPOSITORIES[name]
    graph = graphs.import_graph(files)
    assert {path: set(targets) for path, targets in graph.items()} == expected


def test_relative_import_that_leads_out_of_the_repository_is_none() -> None:
    assert imports_of("a/b.py", "from ....x import y\nfrom ... import z\n") == []
    files = {"a/b.py": "from ...x import y\n", "x.py": ""}
    assert graphs.import_graph(files) == {}


def test_file_that_does_not_parse_imports_nothing() -> None:
    assert imports_of("a.py", "import os\ndef (") == []
