"""What a package offers is written in its `__all__`, and nothing else."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT, SourceFile, source_files

import cg_local

PACKAGES = [file for file in source_files(installed_only=True) if file.path.endswith("__init__.py")]
MAX_PUBLIC_NAMES = 15


def listed_names(file: SourceFile) -> list[str]:
    """Return the names of a file's `__all__`; empty when it has none."""
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def public_names(file: SourceFile) -> set[str]:
    """Return the public names that a package binds, without modules and what comes from outside the project."""
    modules = {other.module for other in source_files(installed_only=True)}
    names: set[str] = set()
    for node in file.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cg_local":
            names |= {
                alias.asname or alias.name for alias in node.names if f"{node.module}.{alias.name}" not in modules
            }
    return {name for name in names if not name.startswith("_")}


def test_import_of_the_package_binds_nothing_but_the_lazy_names() -> None:
    code = "import cg_local; print(sorted(set(vars(cg_local)) - set(cg_local.__all__)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    public = [name for name in ast.literal_eval(result.stdout) if not name.startswith("_")]
    assert set(public) <= {"annotations", "import_module", "TYPE_CHECKING"}


def test_public_names_of_the_package_resolve_and_are_few() -> None:
    assert [name for name in cg_local.__all__ if getattr(cg_local, name, None) is None] == []
    assert dir(cg_local) == sorted(cg_local.__all__)
    assert len(cg_local.__all__) <= MAX_PUBLIC_NAMES


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        cg_local.lode  # noqa: B018 (the access is what is tested)


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: str(file.module))
def test_all_is_sorted_and_names_what_exists(file: SourceFile) -> None:
    listed = listed_names(file)
    # Constants, then classes, then the rest: the order that ruff keeps.
    assert listed == sorted(listed, key=lambda name: (not name.isupper(), name.islower(), name))
    module = importlib.import_module(str(file.module))
    assert [name for name in listed if not hasattr(module, name)] == []


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: str(file.module))
def test_all_names_everything_public(file: SourceFile) -> None:
    listed = set(listed_names(file))
    assert public_names(file) <= listed or not listed


def test_checkout_is_complete_for_a_python_started_in_it() -> None:
    code = "import cg_local.cli.app, cg_local.quant.schemes; print(cg_local.__file__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert Path(result.stdout.strip()).parent == ROOT / "cg_local"
