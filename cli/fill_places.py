"""The places that `cg-local fill` is asked to fill: read, decoded and located before a model is loaded.

This file owns what one bad place does among several: it is told, and the others are filled. Invariant: each file, and
standard input, is read once.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from cg_local.cli.render import notice
from cg_local.cli.session import read_text
from cg_local.errors import SourceFileError
from cg_local.infill.cursor import MAX_SOURCE_BYTES, STANDARD_INPUT, Gap, SourceText, Target, locate
from cg_local.infill.targets import parse_place, places_in

HINT = "FILE:LINE[:COL]"
_LINE = re.compile("[0-9]{1,9}(?:[:-][0-9]{1,9})?")


@dataclass(frozen=True)
class Place:
    """A gap to fill.

    Attributes:
        target: as asked for.
        source: the file.
        gap: where it is cut.
        path: the file's name for the model; None: it has none.
    """

    target: Target
    source: SourceText
    gap: Gap
    path: str | None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.target.file}:{self.gap.line}:{self.gap.column}"


@dataclass(frozen=True)
class BadPlace:
    """What cannot be filled: the words of the command line or the line of a list, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class Places:
    """What is to be filled.

    Attributes:
        items: in the order in which they were given.
        is_single: one place was asked for, and its answer stands alone.
    """

    items: list[Place | BadPlace]
    is_single: bool

    @property
    def good(self) -> list[Place]:
        """Those that can be filled."""
        return [place for place in self.items if isinstance(place, Place)]


def read_places(words: Sequence[str], path: str | None) -> Places:
    """Read what is to be filled.

    Args:
        words: of the command line; "-" alone: a list on standard input.
        path: the file's name for the model, as asked for.

    Raises:
        SourceFileError: the only place cannot be read, or the list holds none.
        BadParameter: no place, or the only one cannot be understood.
    """
    if not words:
        raise typer.BadParameter("name a place, or - to read places from standard input.", param_hint=HINT)
    _refuse_missing_colon(words)
    is_list = list(words) == [STANDARD_INPUT]
    texts = _listed() if is_list else list(words)
    read = functools.cache(read_text)
    if not is_list and len(texts) == 1:
        return Places([_place(_parsed(texts[0]), path, read)], is_single=True)
    places: list[Place | BadPlace] = []
    for text in texts:
        try:
            places.append(_place(parse_place(text), path, read))
        except (SourceFileError, ValueError) as error:
            places.append(BadPlace(text.strip(), str(error)))
    files = {place.target.file for place in places if isinstance(place, Place)}
    if path is not None and len(files) > 1:
        raise typer.BadParameter(f"names one file, and {len(files)} are to be filled.", param_hint="--path")
    return Places(places, is_single=False)


def without_refused(places: Places, refused: dict[str, str]) -> Places:
    """Return the places with those in files that may not be written as bad ones.

    Args:
        places: from `read_places`.
        refused: files, and why they are refused.

    Raises:
        SourceFileError: the only place is among them.
    """
    items: list[Place | BadPlace] = []
    for place in places.items:
        reason = refused.get(place.target.file) if isinstance(place, Place) else None
        if reason is not None and places.is_single:
            raise SourceFileError(reason)
        items.append(BadPlace(place.name, reason) if reason is not None else place)
    return Places(items, places.is_single)


def _listed() -> list[str]:
    if sys.stdin is None:
        raise SourceFileError("standard input: closed; pipe a list of places into it, or name places")
    if sys.stdin.isatty():
        notice("places are read from the keyboard, one a line; end with Ctrl-D")
    lines = sys.stdin.buffer.read(MAX_SOURCE_BYTES).decode("utf-8", "surrogateescape").splitlines()
    texts, num_others = places_in(lines)
    if not texts:
        raise SourceFileError(
            f"standard input: no line of {len(lines)} names a place in a file; give FILE:LINE, as `grep -Hn` prints it"
        )
    if num_others and sys.stderr.isatty():
        notice(f"standard input: {num_others} lines name no place in a file and are passed over")
    return texts


def _refuse_missing_colon(words: Sequence[str]) -> None:
    """Tell who writes a file and a line as two words, which is a usual slip, what to write.

    Raises:
        BadParameter: an existing file is followed by a line.
    """
    for file, line in itertools.pairwise(words):
        if _LINE.fullmatch(line) and Path(file).is_file() and not Path(line).exists():
            raise typer.BadParameter(f"a colon is missing: write {file}:{line}", param_hint=HINT)


def _parsed(text: str) -> Target:
    try:
        return parse_place(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=HINT) from error


def _place(target: Target, path: str | None, read: functools._lru_cache_wrapper[SourceText]) -> Place:
    source = read(target.file)
    return Place(target, source, locate(source, target), path or path_for_model(target.file))


def path_for_model(file: str) -> str | None:
    """The path as the model knows paths: relative, with slashes; of a file elsewhere only the name."""
    if file == STANDARD_INPUT:
        return None
    path = Path(file)
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except (ValueError, OSError):
        return path.name
