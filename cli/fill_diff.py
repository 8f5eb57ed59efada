"""Differences as `cg-local fill` prints them: by which path a file is named, and how they look on a terminal.

This file owns the folder that the paths count from. Invariant: all files of one output are named from the same folder,
and no name has "..": one `git apply` or `patch -p1` in that folder takes it all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cg_local.cli.render import notice, write_stdout
from cg_local.cli.terminal_text import visible_text

_KINDS = {"@": "code", "+": "added", "-": "error"}


@dataclass(frozen=True)
class DiffPaths:
    """Names of files in a difference.

    Attributes:
        folder: where the difference is to be applied; None: there is none, because Windows has the files on two drives.
    """

    folder: Path | None

    @classmethod
    def of(cls, files: Sequence[Path]) -> DiffPaths:
        """Choose the folder for some files.

        It is the current one where it holds all of them; else the top of the git work tree that does, because git
        leaves alone what lies outside of the folder it is called in; else their common folder.
        """
        here, real = Path.cwd().resolve(), [_real(file) for file in files]
        if all(file.is_relative_to(here) for file in real):  # none at all, too
            return cls(here)
        try:
            common = Path(os.path.commonpath([file.parent for file in real]))
        except ValueError:
            return cls(None)
        from cg_local.repository.work_tree import find_work_tree

        tree = find_work_tree(common / "file")
        return cls(tree.root if tree.is_git else common)

    def name(self, file: Path) -> str:
        """Return a file's path with forward slashes; of a link, that of the file itself, which `patch` asks for."""
        real = _real(file)
        return (real.relative_to(self.folder) if self.folder is not None else real).as_posix()

    def tell(self) -> None:
        """Say where the difference is to be applied, unless that is the current folder."""
        if self.folder is not None and self.folder != Path.cwd().resolve():
            notice(f"the paths of the difference count from {self.folder}; apply it there")


def show_diff(text: str) -> None:
    """Write a difference to stdout, coloured on a terminal; a pipe gets what `patch` and `git apply` take."""
    if not sys.stdout.isatty():
        write_stdout(text)
        return
    from cg_local.cli.repl.ink import Ink, ink_level

    ink = Ink(ink_level(True))
    lines = [visible_text(line) for line in text.split("\n")[:-1]]
    kinds = ["bold" if line.startswith(("--- ", "+++ ")) and number < 2 else "" for number, line in enumerate(lines)]
    drawn = [ink.draw(line, kind or _KINDS.get(line[:1], "")) for line, kind in zip(lines, kinds, strict=True)]
    write_stdout("".join(f"{line}\n" for line in drawn))


def _real(file: Path) -> Path:
    return Path(os.path.realpath(file))
