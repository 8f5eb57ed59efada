"""What is installed: the package, whole and alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_tree import ROOT, source_files


def installed_paths() -> set[str]:
    """Return the path inside site-packages of every Python file that must be installed."""
    files = source_files(installed_only=True)
    paths = {str(file.module).replace(".", "/"): file.path.endswith("__init__.py") for file in files}
    return {f"{path}/__init__.py" if is_package else f"{path}.py" for path, is_package in paths.items()}


def test_every_package_is_listed_for_installation() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.rsplit("/", 1)[0].replace("/", ".") for path in installed_paths()}
    assert folders | {"cg_local.models.nano"} == set(settings["packages"])


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("cg_local", "quant", "cli"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Without isolation nothing is downloaded: setuptools comes with the extra "dev".
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("cg_local-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    assert {name for name in names if name.endswith(".py")} == installed_paths()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cg_local"}
    nano_files = ("README.md", "config.json", "importance.safetensors", "model.safetensors", "tokenizer.model")
    model_files = {f"cg_local/models/{model}/{name}" for model in ("nano", "nano-it") for name in nano_files}
    assert {"cg_local/py.typed", "cg_local/training/instruction/families/lists.toml", *model_files} <= names
