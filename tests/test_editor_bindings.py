"""The bindings of cli/editors.md, run in the editors that this machine has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest
from source_tree import ROOT

import cg_local

PAGE = (ROOT / "cli" / "editors.md").read_text(encoding="utf-8")
TEXT = "def f(x):\n    yé = \n    return y\n"
# The bindings name no model; the command on the path gets these on top.
OPTIONS = "--max-tokens 8 --temperature 3 --seed 11 --model toy"


def binding(language: str) -> list[str]:
    """Return the lines of the block in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].splitlines()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a file, and a command `cg-local` on the path."""
    program = tmp_path / "bin" / "cg-local"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cg_local.cli "$@" {OPTIONS}\n')
    program.chmod(0o755)
    tmp_path.joinpath("a b.py").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.mark.skipif(shutil.which("vim") is None, reason="needs vim")
def test_lines_for_vim_fill_at_the_cursor_and_write_lines_anew(
    home: Path, toy_folder: Callable[[str, str], Path]
) -> None:
    folder = toy_folder("mqa", "q4")
    environment = {**command_line.environment(home), "LC_ALL": "C.UTF-8"}
    home.joinpath("data", "models").mkdir(parents=True)
    home.joinpath("data", "models", "toy").symlink_to(folder)
    environment["PATH"] = f"{home / 'bin'}{os.pathsep}{environment['PATH']}"
    home.joinpath("vimrc").write_text("set nocompatible encoding=utf-8 autoindent\n" + "\n".join(binding("vim")) + "\n")
    params = cg_local.SamplingParams(max_tokens=8, temperature=3.0, seed=11)
    model = cg_local.load(folder)

    def vim(keys: str) -> str:
        script = f'call feedkeys("{keys}", "tx")'
        command = ["vim", "-Nu", "vimrc", "-n", "-i", "NONE", "-es", "-c", script, "-c", "wq!", "a b.py"]
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, timeout=120, stdin=subprocess.DEVNULL
        )
        return home.joinpath("a b.py").read_text(encoding="utf-8") + done.stderr.decode()

    answer = model.infill("def f(x):\n    yé = ", "\n    return y\n", "a b.py", params=params).text
    assert answer
    assert vim(r"2GA\<C-F>\<Esc>") == TEXT.replace("= \n", f"= {answer}\n")
    home.joinpath("a b.py").write_text(TEXT, encoding="utf-8")
    answer = model.infill("def f(x):\n", "\n", "a b.py", params=params).text
    assert vim(r"2GVj\<C-F>") == f"def f(x):\n{answer}\n"


@pytest.mark.skipif(shutil.which("emacs") is None, reason="needs emacs")
def test_lines_for_emacs_are_balanced(home: Path) -> None:
    home.joinpath("init.el").write_text("\n".join(binding("elisp")))
    subprocess.run(["emacs", "--batch", "-l", str(home / "init.el")], check=True, timeout=60)


def test_each_editor_has_two_lines() -> None:
    for language in ("vim", "lua", "elisp", "toml", "json"):
        assert len(binding(language)) == 2, language
    for line in binding("json"):
        json.loads(line)


def test_lines_for_helix_are_toml() -> None:
    tomlkit = pytest.importorskip("tomlkit")
    keys = tomlkit.parse("\n".join(binding("toml")))["keys"]["normal"]["space"]["f"]
    assert [key.split()[0] for key in keys] == [":write", ":run-shell-command", ":reload"]
