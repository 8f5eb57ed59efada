"""The files of a repository, and the reading of those that may be read.

Owns where a repository begins, which of its files count, and what is refused: files that git ignores, links, secrets,
binary and generated files. What a file is good for is `context`'s. Invariant: no path leads out of the root, and
nothing is written or run but `git ls-files`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cg_local.languages import language_of
from cg_local.repository.secrets import secret_in, secret_name

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MAX_FILE_BYTES = 262_144
"""Larger files are data or generated; reading them would take longer than they can help."""

MAX_LINE_CHARS = 1000
"""A longer line is minified or data."""

MAX_FILES = 50_000
"""More files than this are not looked at: the listing must stay below what a person waits for without a thought."""

GIT_SECONDS = 10.0
ROOT_MARKS = ("pyproject.toml", "setup.py", "package.json", "go.mod", "Cargo.toml", "pom.xml", "build.gradle", ".hg")
"""What stands at the top of a project that is no git work tree."""

SKIPPED_FOLDERS = frozenset(["__pycache__", "node_modules", "site-packages", "venv"])
"""Not walked where git does not tell which files count; folders with a leading dot are skipped as well."""


class WorkTree:
    """A repository on disk.

    Attributes:
        root: its top folder, absolute.
        is_git: it is a git work tree.
        refused: path to reason, for files that were asked for and not read.
    """

    def __init__(self, root: Path, *, is_git: bool, extra_suffixes: Sequence[str] = ()) -> None:
        """Take the root as it is; `find_work_tree` finds it. Files of `extra_suffixes` (".rst") count as well."""
        self.root, self.is_git, self._extra_suffixes = root, is_git, frozenset(extra_suffixes)
        self.refused: dict[str, str] = {}
        self._texts: dict[str, str | None] = {}
        self._paths: list[str] | None = None

    def relative(self, file: Path) -> str | None:
        """A file's path in the repository with forward slashes; None where it lies elsewhere."""
        try:
            return file.resolve().relative_to(self.root).as_posix()
        except (ValueError, OSError):
            return None

    def paths(self) -> list[str]:
        """The source files that git tracks or would track, sorted; those with a secret's name are left out."""
        if self._paths is None:
            listed = self._listed_by_git() if self.is_git else None
            found = listed if listed is not None else self._walked()
            self._paths = sorted({path for path in found if self._is_known(path) and not secret_name(path)})
        return self._paths

    def _is_known(self, path: str) -> bool:
        return language_of(path) is not None or PurePosixPath(path).suffix.lower() in self._extra_suffixes

    def read(self, path: str) -> str | None:
        """The text of a file with newlines only; None, and an entry in `refused`, where it must not be read.

        Args:
            path: one of `paths`.
        """
        if path not in self._texts:
            text, reason = self._read(path)
            self._texts[path] = text
            if reason is not None:
                self.refused[path] = reason
        return self._texts[path]

    def _read(self, path: str) -> tuple[str | None, str | None]:
        file = self.root / path
        try:
            # A link may lead anywhere, also one of the folders above.
            if not file.is_file() or file.resolve() != file:
                return None, "a link, or no file"
            with file.open("rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            return None, f"cannot be read ({error.strerror})"
        if len(data) > MAX_FILE_BYTES:
            return None, f"larger than {MAX_FILE_BYTES:,} bytes"
        try:
            text = data.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError:
            return None, "not UTF-8"
        if "\0" in text:
            return None, "binary"
        if any(len(line) > MAX_LINE_CHARS for line in text.split("\n")):
            return None, f"has a line of more than {MAX_LINE_CHARS:,} characters"
        secret = secret_in(text)
        return (None, f"holds what looks like {secret}") if secret else (text, None)

    def _listed_by_git(self) -> list[str] | None:
        """What `git ls-files` lists; None where git is missing or refuses."""
        git = shutil.which("git")
        if git is None:
            return None
        # core.fsmonitor is a program that a foreign repository's config could name.
        command = [git, "-c", "core.fsmonitor=false", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        try:
            done = subprocess.run(
                command,
                cwd=self.root,
                env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=GIT_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return [os.fsdecode(name) for name in done.stdout.split(b"\0")[:MAX_FILES] if name]

    def _walked(self) -> list[str]:
        """The files below the root less what the .gitignore files on the way name."""
        found: list[str] = []
        for path in self._walk():
            found.append(path)
            if len(found) >= MAX_FILES:
                break
        return found

    def _walk(self) -> Iterator[str]:
        from pathspec import GitIgnoreSpec as Spec

        specs: dict[str, list[tuple[str, GitIgnoreSpec]]] = {}
        for place, folders, names in os.walk(self.root):
            here = Path(place).relative_to(self.root).as_posix()
            prefix = "" if here == "." else f"{here}/"
            inherited = specs.pop(here, [])
            own = _ignore_lines(Path(place))
            if not prefix:
                own = _ignore_lines(Path(place, ".git", "info"), "exclude") + own
            rules = [*inherited, (prefix, Spec.from_lines(own))] if own else inherited
            folders[:] = [
                name
                for name in sorted(folders)
                if name not in SKIPPED_FOLDERS
                and not name.startswith(".")
                and not Path(place, name).is_symlink()
                and not _is_ignored(f"{prefix}{name}/", rules)
            ]
            specs.update({f"{prefix}{name}": rules for name in folders})
            yield from (f"{prefix}{name}" for name in sorted(names) if not _is_ignored(f"{prefix}{name}", rules))


def find_work_tree(file: Path) -> WorkTree:
    """The repository that a file belongs to.

    Args:
        file: it need not exist.

    Returns:
        The nearest git work tree above it; without one the nearest folder that looks like the top of a project, and
        without that the file's own folder.
    """
    folder = file.resolve().parent
    folders = [folder, *folder.parents]
    for above in folders:
        if (above / ".git").exists():
            return WorkTree(above, is_git=True)
    marked = (above for above in folders if any((above / mark).exists() for mark in ROOT_MARKS))
    return WorkTree(next(marked, folder), is_git=False)


def lies_in_git(folder: Path) -> bool:
    """Whether a folder is in a git work tree; of an ignored folder in one git lists nothing."""
    return any((above / ".git").exists() for above in (folder, *folder.parents))


def _ignore_lines(folder: Path, name: str = ".gitignore") -> list[str]:
    try:
        return folder.joinpath(name).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _is_ignored(path: str, rules: list[tuple[str, GitIgnoreSpec]]) -> bool:
    """Whether the last rule that speaks of a path ignores it; a rule of a folder counts from there."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path[len(prefix) :]).include
        if verdict is not None:
            return bool(verdict)
    return False
