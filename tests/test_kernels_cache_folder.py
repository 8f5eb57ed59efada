"""The folder of compiled code: the first that can be written, named after the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import numba
import pytest

from cg_local.kernels import cache_folder
from cg_local.kernels.cache_folder import caching_for


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    folder.joinpath("a.py").write_text("x = 1")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("CG_LOCAL_CACHE", raising=False)
    return folder


def test_package_keeps_its_own_compiled_code(package: Path) -> None:
    assert cache_folder.cache_folder(package).parent == package / "__pycache__"


def test_changed_source_gets_another_folder(package: Path) -> None:
    before = cache_folder.cache_folder(package)
    package.joinpath("a.py").write_text("x = 2")

    assert cache_folder.cache_folder(package) != before


def test_changed_source_elsewhere_gets_another_folder(package: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "b.py"
    elsewhere.write_text("x = 1")
    before = cache_folder.cache_folder(package, elsewhere)
    assert cache_folder.cache_folder(package, elsewhere) == before
    assert cache_folder.cache_folder(package) != before
    elsewhere.write_text("x = 2")

    assert cache_folder.cache_folder(package, elsewhere) != before


def test_named_cache_serves_an_installation_that_cannot_be_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.joinpath("__pycache__").write_text("")  # a file in the folder's place refuses even the superuser
    monkeypatch.setenv("CG_LOCAL_CACHE", str(tmp_path / "named"))

    assert cache_folder.cache_folder(package).parent == tmp_path / "named"


def test_named_cache_may_begin_with_a_tilde(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.joinpath("__pycache__").write_text("")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("CG_LOCAL_CACHE", "~/named")

    assert cache_folder.cache_folder(package).parent == tmp_path / "named"


def test_process_gets_a_temporary_folder_where_nothing_can_be_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.joinpath("__pycache__").write_text("")
    tmp_path.joinpath("home").write_text("")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")

    folder = cache_folder.cache_folder(package)

    assert folder.is_dir()
    assert tmp_path not in folder.parents
    folder.rmdir()


def test_folder_is_numbas_only_within_the_block(package: Path) -> None:
    before = numba.config.CACHE_DIR
    with caching_for(package, Path(__file__)):
        assert str(cache_folder.cache_folder(package, Path(__file__))) == numba.config.CACHE_DIR
    assert before == numba.config.CACHE_DIR


def test_kernels_are_kept_apart_by_all_that_is_compiled_into_them() -> None:
    trees = {file.name: ast.parse(file.read_text("utf-8")) for file in Path(cache_folder.__file__).parent.glob("*.py")}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name for name in names if name.startswith("cg_local.") and not name.startswith("cg_local.kernels")}
    assert others == {"cg_local.packing"}
    calls = [ast.unparse(node) for node in ast.walk(trees["__init__.py"]) if isinstance(node, ast.Call)]
    assert "cache_folder.caching_for(Path(__file__).parent, Path(packing.__file__))" in calls
