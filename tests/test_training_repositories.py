"""Folders of repositories as a corpus: which files count, under which licence, in which order, and what is held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cg_local.errors import TrainingError
from cg_local.training import corpus, prepare, repositories

MIT = "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\n"
GPL = "GNU GENERAL PUBLIC LICENSE\nVersion 3\n\nPermission is hereby granted, free of charge, is not said here.\n"
BODY = '''def {name}(items):
    """Return the {name} of the items, one after another."""
    found = []
    for item in items:
        if item not in found:
            found.append(item)
    return found
'''
PYTHON = frozenset(["python"])


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def paths_of(root: Path, **options: bool) -> list[str]:
    return [file.path for file in repositories.read_repository(root, PYTHON, **options)[1]]


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (MIT, "MIT"), (GPL, "GPL"), ("Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ("Redistribution and use in source and binary forms, with", "BSD"), ("All rights reserved.", "none found"),
        ("GNU Lesser General Public License", "GPL"),
    ],
)  # fmt: skip
def test_licences_are_known_by_their_text(text: str, licence: str) -> None:
    assert repositories.licence_of_text(text) == licence
    assert corpus.is_permissive(licence) == (licence in ("MIT", "Apache-2.0", "BSD"))


def test_the_nearest_licence_governs_and_other_peoples_folders_are_skipped(tmp_path: Path) -> None:
    files = ["a.py", "sub/b.py", "taken/c.py", "taken/deep/d.py", "vendor/e.py", ".hidden/f.py", "license_plate.py"]
    root = write(tmp_path / "repo", {"LICENSE": MIT, "taken/COPYING": GPL, **dict.fromkeys(files, "x = 1\n")})
    assert paths_of(root) == ["a.py", "license_plate.py", "sub/b.py"]
    assert paths_of(root, any_licence=True) == ["a.py", "license_plate.py", "sub/b.py", "taken/c.py", "taken/deep/d.py"]


def test_without_a_licence_nothing_is_read_unless_it_is_the_users_own(tmp_path: Path) -> None:
    root = write(tmp_path / "repo", {"a.py": "x = 1\n"})
    assert paths_of(root) == []
    assert paths_of(root, any_licence=True) == ["a.py"]
    assert repositories.read_repository(root, PYTHON, any_licence=True)[0].licence == "as the user states"


def test_copyleft_beside_a_permissive_licence_governs(tmp_path: Path) -> None:
    assert repositories.folder_licence(write(tmp_path, {"LICENSE.MIT": MIT, "LICENSE.GPL": GPL})) == "GPL"


def test_a_folder_stands_for_itself_or_for_its_repositories(tmp_path: Path) -> None:
    many = write(tmp_path / "many", {"two/a.py": "", "one/LICENSE": MIT, ".cache/x.py": ""})
    assert [path.name for path in repositories.repositories_in(many)] == ["one", "two"]
    assert repositories.repositories_in(many / "one") == [many / "one"]
    with pytest.raises(TrainingError, match=r"missing: no such folder"):
        repositories.repositories_in(tmp_path / "missing")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    files = {
        "LICENSE": MIT,
        "zeta.py": BODY.format(name="zeta"),
        "alpha.py": "from zeta import zeta\n\n\n" + BODY.format(name="alpha"),
        "test_beta.py": BODY.format(name="check_beta"),
        "beta.py": BODY.format(name="beta"),
        "gamma.py": BODY.format(name="gamma"),
    }
    return write(tmp_path / "shop", files)


def lines_of(folder: Path) -> list[dict[str, object]]:
    names = ("train.jsonl", "held_out.jsonl")
    return [json.loads(line) for name in names for line in (folder / name).read_text().splitlines()]


def test_corpus_holds_a_repository_in_reading_order(tmp_path: Path, shop: Path) -> None:
    recipe = prepare.CorpusRecipe(folders=(str(shop),), held_out_share=0.0)
    record = prepare.prepare(tmp_path / "out", recipe)
    order = [(line["group"], line["path"]) for line in lines_of(tmp_path / "out")]
    assert order == [(0, "zeta.py"), (0, "alpha.py"), (1, "beta.py"), (1, "test_beta.py"), (1, "gamma.py")]
    size = sum(path.stat().st_size for path in shop.glob("*.py"))
    assert record.sources == [{"name": "shop", "version": "", "licence": "MIT", "files": 5, "bytes": size}]


def test_held_out_files_are_chosen_by_path_alone_and_never_trained_on(tmp_path: Path, shop: Path) -> None:
    for number in range(300):
        (shop / f"part{number}.py").write_text(BODY.format(name=f"part{number}"))
    record = prepare.prepare(tmp_path / "out", prepare.CorpusRecipe(folders=(str(shop),), held_out_share=0.1))
    trained = {json.loads(line)["path"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()}
    held_out = {path.removeprefix("shop/") for path in record.held_out}
    assert trained.isdisjoint(held_out)
    assert len(trained | held_out) == 305
    # Five standard deviations of a binomial with 305 draws of 0.1 are 26.
    assert abs(len(held_out) - 30.5) <= 26
    assert len(held_out) > 0


def test_corpus_made_with_other_options_is_not_taken_for_this_one(tmp_path: Path, shop: Path) -> None:
    recipe = prepare.CorpusRecipe(folders=(str(shop),))
    out = tmp_path / "out"
    assert not prepare.is_prepared(out, recipe)
    prepare.prepare(out, recipe)
    assert prepare.is_prepared(out, recipe)
    assert prepare.is_prepared(out, replace(recipe, tokenizer="other"))
    with pytest.raises(TrainingError, match="made with another held_out_share"):
        prepare.is_prepared(out, replace(recipe, held_out_share=0.5))


def test_refused_repository_is_named_with_its_licence(tmp_path: Path, shop: Path) -> None:
    (shop / "LICENSE").write_text(GPL)
    with pytest.raises(TrainingError, match="shop has the licence 'GPL'"):
        prepare.prepare(tmp_path / "out", prepare.CorpusRecipe(folders=(str(shop),)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "names no source"),
        ({"folders": ("x",), "languages": ("cobol",)}, "'cobol' is unknown"),
        ({"folders": ("x",), "held_out_share": 1.0}, "held_out_share is 1.0"),
        ({"standard_libraries": ("3.11",)}, "must be VERSION=FOLDER"),
        ({"wheels": ("/no/such/folder",)}, "no such folder"),
        ({"folders": ("x",), "evaluation": ("/no/such/file.jsonl",)}, "not readable as JSON lines"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        prepare.prepare(tmp_path / "out", prepare.CorpusRecipe(**options))  # type: ignore[arg-type]


def test_other_languages_are_read_when_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tree_sitter")
    main = 'package main\n\nimport "me/q"\n\nfunc main() {\n\tvalue := q.Value()\n\tprintln(value, value, value)\n}\n'
    helper = (
        "package q\n\nfunc Value() int {\n\tvar total int\n\tfor range 10 {\n\t\ttotal += 2\n\t}\n\treturn total\n}\n"
    )
    files = {"LICENSE": MIT, "main.go": main, "q/value.go": helper, "a.py": BODY.format(name="a")}
    root = write(tmp_path / "repo", files)
    recipe = prepare.CorpusRecipe(folders=(str(root),), languages=("go",), held_out_share=0.0)
    prepare.prepare(tmp_path / "out", recipe)
    assert [(line["group"], line["path"]) for line in lines_of(tmp_path / "out")] == [(0, "q/value.go"), (0, "main.go")]


@pytest.mark.parametrize(
    "text", ["# Copyright 2020 X\n\nx = 1\n", "/* Copyright X */\nint x;\n", "// Licence: MIT\n// more\nx()\n"]
)
def test_licence_headers_are_dropped(text: str) -> None:
    assert corpus.without_licence_header(text) in ("x = 1\n", "int x;\n", "x()\n")
    assert corpus.without_licence_header("# A list of primes\nx = 1\n") == "# A list of primes\nx = 1\n"
