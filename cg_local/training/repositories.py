"""Reads folders of repositories as training text.

Owns which files of a repository count, and the licence that governs each. The quality filter is `corpus`'.
Invariant: a file is read only where the nearest licence file above it, up to the repository's root, is permissive,
unless the user states that the text is theirs to train on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cg_local.errors import TrainingError
from cg_local.languages import language_of
from cg_local.training.corpus import Package, SourceFile, is_permissive, normalise

MAX_FILE_BYTES = 1_000_000
"""Larger files are data or generated; none of them would pass the quality filter."""

SKIPPED_FOLDERS = frozenset(
    ["__pycache__", "build", "dist", "node_modules", "site-packages", "target", "third_party", "vendor", "venv"]
)
"""Folders with other people's text or with build results; those with a leading dot are skipped as well."""

LICENCE_FILE = re.compile(r"^(licen[cs]e|copying|unlicense)\b", re.I)
# The most telling words of each licence's text, tried in order: copyleft texts quote phrases of the others.
LICENCE_TEXTS = (
    ("GPL", re.compile(r"GNU (AFFERO |LESSER |LIBRARY )?GENERAL PUBLIC LICENSE", re.I)),
    ("MPL", re.compile(r"Mozilla Public License", re.I)),
    ("EPL", re.compile(r"Eclipse Public License", re.I)),
    ("Creative Commons", re.compile(r"Creative Commons", re.I)),
    ("Apache-2.0", re.compile(r"Apache License\s+Version 2\.0", re.I)),
    ("MIT", re.compile(r"Permission is hereby granted, free of charge", re.I)),
    ("BSD", re.compile(r"Redistribution and use in source and binary forms", re.I)),
    ("ISC", re.compile(r"Permission to use, copy, modify, and(/or)? distribute this software", re.I)),
    ("PSF-2.0", re.compile(r"Python Software Foundation License", re.I)),
    ("Unlicense", re.compile(r"free and unencumbered software", re.I)),
)
UNKNOWN_LICENCE = "none found"


def licence_of_text(text: str) -> str:
    """The short name of the licence that `text` is the text of, or "none found"."""
    return next((name for name, pattern in LICENCE_TEXTS if pattern.search(text)), UNKNOWN_LICENCE)


def folder_licence(folder: Path) -> str | None:
    """The licence that a folder's own licence files state, or None where it has none.

    Where several files stand beside each other, a copyleft one governs: its conditions hold for the whole.
    """
    named = sorted(path for path in folder.iterdir() if LICENCE_FILE.match(path.name) and path.is_file())
    files = [path for path in named if language_of(path.name) in (None, "markdown")]  # license_plate.py is no licence
    found = [licence_of_text(path.read_text(encoding="utf-8", errors="replace")) for path in files]
    known = [licence for licence in found if licence != UNKNOWN_LICENCE]
    if not known:
        return UNKNOWN_LICENCE if found else None
    return next((licence for licence in known if not is_permissive(licence)), known[0])


def repositories_in(folder: Path) -> list[Path]:
    """The repositories that a user's folder stands for.

    Returns:
        The folder itself where it has a `.git`, a licence file or source files of its own, else its folders by name.

    Raises:
        TrainingError: the folder is missing.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder. Name a folder of source code under [corpus] folders.")
    is_single = (folder / ".git").exists() or folder_licence(folder) is not None
    if is_single or any(path.is_file() and language_of(path.name) for path in folder.iterdir()):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def walk(root: Path, *, any_licence: bool) -> Iterator[tuple[Path, list[str]]]:
    """Every folder of a repository that may be read, with its file names, in sorted order."""
    licences: dict[str, str] = {}
    for place, folders, files in os.walk(root):
        own = None if any_licence else folder_licence(Path(place))
        licence = own or licences.get(str(Path(place).parent), UNKNOWN_LICENCE)
        licences[place] = licence
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not name.startswith(".") and not Path(place, name).is_symlink()
        )
        if any_licence or is_permissive(licence):
            yield Path(place), sorted(files)


def read_repository(
    root: Path, languages: frozenset[str], *, any_licence: bool = False
) -> tuple[Package, Iterator[SourceFile]]:
    """Open a repository.

    Args:
        root: its top folder.
        languages: names of languages to read, as in `languages.LANGUAGES`.
        any_licence: read it whatever its licence: the user's own code.

    Returns:
        The package (its version is unknown to a folder and thus empty), and an iterator over its files.
    """
    licence = "as the user states" if any_licence else folder_licence(root) or UNKNOWN_LICENCE
    package = Package(root.name, "", licence)

    def files() -> Iterator[SourceFile]:
        for folder, names in walk(root, any_licence=any_licence):
            for name in names:
                path = folder / name
                if language_of(name) in languages and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                    yield SourceFile(package, path.relative_to(root).as_posix(), normalise(path.read_bytes()))

    return package, files()
