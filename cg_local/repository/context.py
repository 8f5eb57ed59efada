"""Which files of a repository help to fill a gap in one of them, and how much of each.

Owns the ranking and the packing. Which files may be read is `work_tree`'s, what is cut out of them `excerpts`'. It
knows no gap: everything follows from the file's text as a whole. Invariant: the same text and the same budget give the
same files with the same texts in the same order, wherever in the file the cursor stands, so that the K and V of the
prompt's start stay valid from call to call.

Source of the kinds of files and of their places: arXiv 2406.11409, section on multi-file packing: what is imported
stands before what imports it, a test beside what it tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from cg_local.languages import language_of
from cg_local.repository.definitions import units_of
from cg_local.repository.drafts import draft_imports
from cg_local.repository.excerpts import Count, excerpt
from cg_local.repository.imports import PathIndex
from cg_local.repository.partners import are_related, partners_of, tested_name
from cg_local.repository.work_tree import WorkTree

MIN_FILE_TOKENS = 32
"""Less than this is not worth a path line and a separator."""

MAX_FILES = 12
MAX_SIBLINGS = 3
MAX_SIBLINGS_READ = 24
"""So many neighbours are read to see which of them the file speaks of."""

MIN_SIBLING_NAME = 4
"""Shorter names (`add`, `get`) stand in many files by chance."""

MAX_REEXPORTS = 2
"""A name is followed through so many files that only pass it on (`__init__.py`, `index.ts`)."""


@dataclass
class Candidate:
    """A file that may help.

    Attributes:
        path: in the repository.
        kind: "import", "partner" or "sibling".
        wanted: names that the current file takes from it; empty: all may matter.
    """

    path: str
    kind: str
    wanted: set[str]


@dataclass(frozen=True)
class ContextFile:
    """What of a file stands in a prompt.

    Attributes:
        path: in the repository.
        text: whole lines of it.
        kind: as of its candidate.
        num_tokens: with the path line and the separator.
        is_whole: nothing is left out.
    """

    path: str
    text: str
    kind: str
    num_tokens: int
    is_whole: bool


def candidates(tree: WorkTree, path: str, text: str) -> list[Candidate]:
    """The files that may help, the most helpful first.

    Imports in the order of their statements; the file that this one tests comes before them, and the one that tests it
    after them; last neighbours that define what this file speaks of.

    Args:
        tree: the repository.
        path: the file that is being edited; it need not be on disk.
        text: all of its text.
    """
    paths = [other for other in tree.paths() if are_related(language_of(path), language_of(other))]
    known = {other: Candidate(other, "import", wanted) for other, wanted in imported(tree, path, text, paths).items()}
    partners = [Candidate(other, "partner", set()) for other in partners_of(path, paths)[:1]]
    for partner in partners:
        if partner.path in known:
            partner.wanted = known.pop(partner.path).wanted
    found = [*partners, *known.values()] if tested_name(path) else [*known.values(), *partners]
    taken = {path, *(candidate.path for candidate in found)}
    return (found + list(siblings(tree, path, text, [other for other in paths if other not in taken])))[:MAX_FILES]


def imported(tree: WorkTree, path: str, text: str, paths: list[str]) -> dict[str, set[str]]:
    """The imported files in the order of the statements, each with the names that are taken from it."""
    index = PathIndex(paths)
    named: dict[str, set[str]] = {}
    for wanted in draft_imports(path, text):
        for target in index.find(wanted, path) if wanted.parts else []:
            named.setdefault(target, set()).update({*wanted.names, wanted.parts[-1]})
    found: dict[str, set[str]] = {}
    for target, names in named.items():
        for place in definers(tree, index, target, names):
            if place != path:
                found.setdefault(place, set()).update(names)
    return found


def definers(tree: WorkTree, index: PathIndex, path: str, names: set[str]) -> list[str]:
    """The files that define names imported from `path`: itself, and those that it takes the others from.

    A file that defines none of them and passes none on is meant as a whole.
    """
    found: list[str] = []
    waiting = [(path, names)]
    for _ in range(MAX_REEXPORTS):
        following: dict[str, set[str]] = {}
        for place, wanted in waiting:
            text = tree.read(place) or ""
            missing = wanted - {name for unit in units_of(place, text) for name in unit.names}
            is_needed = missing != wanted
            for passed_on in draft_imports(place, text) if missing else []:
                shared = missing & {*passed_on.names, passed_on.parts[-1]} if passed_on.parts else set()
                for target in index.find(passed_on, place) if shared else []:
                    following.setdefault(target, set()).update(shared)
                    missing -= shared
            if is_needed or missing == wanted:
                found.append(place)
        waiting = list(following.items())
    return list(dict.fromkeys([*found, *(place for place, _ in waiting)]))


def siblings(tree: WorkTree, path: str, text: str, paths: list[str]) -> Iterator[Candidate]:
    """Files of the same folder and language that define what this file speaks of, those that define most first."""
    folder, language = PurePosixPath(path).parent, language_of(path)
    beside = [other for other in paths if PurePosixPath(other).parent == folder and language_of(other) == language]
    words = set(re.findall(r"\w+", text))
    shared: list[tuple[int, str, set[str]]] = []
    for other in beside[:MAX_SIBLINGS_READ]:
        defined = {
            name for unit in units_of(other, tree.read(other) or "") for name in unit.names if unit.is_definition
        }
        names = {name for name in defined & words if len(name) >= MIN_SIBLING_NAME}
        if names:
            shared.append((-len(names), other, names))
    yield from (Candidate(other, "sibling", names) for _, other, names in sorted(shared)[:MAX_SIBLINGS])


def pack(tree: WorkTree, found: list[Candidate], max_tokens: int, count: Count) -> list[ContextFile]:
    """Read the candidates and cut them to a budget.

    A file gets at most half of what the ones before it have left, unless it is the last: one large file must not be
    all that the model sees.

    Args:
        tree: the repository.
        found: the most helpful first.
        max_tokens: most tokens of all files with their path lines and separators.
        count: counts the tokens of whole lines.

    Returns:
        In the order of the prompt: the most helpful last, nearest to the gap.
    """
    packed: list[ContextFile] = []
    room = max_tokens
    for number, candidate in enumerate(found):
        share = room if number == len(found) - 1 else room // 2
        frame = count(f"{candidate.path}\n") + 1
        text = tree.read(candidate.path) if share - frame >= MIN_FILE_TOKENS else None
        shown = excerpt(candidate.path, text, candidate.wanted, share - frame, count) if text else ""
        num_tokens = count(f"{candidate.path}\n{shown}") + 1
        if shown.strip() and num_tokens <= share:
            packed.append(ContextFile(candidate.path, shown, candidate.kind, num_tokens, shown == text))
            room -= num_tokens
    return packed[::-1]
