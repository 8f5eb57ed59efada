"""The project's own Python files, parsed, for the tests that keep its rules.

This file owns where the files are and what they are called when installed. Invariant: every Python file below the
source folders is listed, so a new file falls under every rule.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Folder of the repository -> name of the package that it is installed as; None: it is not installed.
FOLDERS = {"cg_local": "cg_local", "quant": "cg_local.quant", "cli": "cg_local.cli", "benchmarks": None, "tests": None}


@dataclass(frozen=True)
class SourceFile:
    """One Python file.

    Attributes:
        path: relative to the repository's root, with "/".
        module: dotted name when installed, packages without ".__init__"; None for tests and benchmarks.
        text: its source.
        tree: its syntax tree.
    """

    path: str
    module: str | None
    text: str
    tree: ast.Module


@cache
def source_files(*, installed_only: bool = False) -> tuple[SourceFile, ...]:
    """Return all Python files of the project, or those that are installed."""
    files: list[SourceFile] = []
    for folder, package in FOLDERS.items():
        if installed_only and package is None:
            continue
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT / folder).with_suffix("")
            parts = [part for part in relative.parts if part != "__init__"]
            module = ".".join([package, *parts]) if package else None
            text = path.read_text(encoding="utf-8")
            files.append(SourceFile(path.relative_to(ROOT).as_posix(), module, text, ast.parse(text)))
    return tuple(files)


def imported_modules(file: SourceFile, *, module_level_only: bool = False) -> Iterator[str]:
    """Give the dotted name of everything a file imports, the imported name included: "cg_local.errors.ConfigError".

    Imports under `if TYPE_CHECKING:` are left out: they are not executed.

    Args:
        file: whose imports.
        module_level_only: leave out imports within functions.
    """
    for node in _nodes(file.tree, enter_functions=not module_level_only):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = (file.module or "").split(".")
                is_package = file.path.endswith("__init__.py")
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, base]) if base else ".".join(package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST, *, enter_functions: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if is_typing or (is_function and not enter_functions):
            continue
        yield node
        yield from _nodes(node, enter_functions=enter_functions)
