"""The places that `cg-local fill` is asked to fill: read, decoded and located before a model is loaded.

This file owns what a bad place does among several: all bad ones are told, and nothing is filled. Invariant: each file,
by whatever path it is named, and standard input, is read once.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from cg_local.cli.render import notice, print_json, report_error
from cg_local.cli.session import read_text
from cg_local.errors import SourceFileError
from cg_local.infill.columns import character_column
from cg_local.infill.cursor import MAX_SOURCE_BYTES, STANDARD_INPUT, Gap, SourceText, Target, locate
from cg_local.infill.targets import missing_file, parse_place, places_in

HINT = "FILE:LINE[:COL]"
_LINE = re.compile("[0-9]{1,9}(?:[:-][0-9]{1,9})?")


@dataclass(frozen=True)
class Place:
    """A gap to fill.

    Attributes:
        text: the word of the command line, or the line of a list.
        target: what it means.
        source: the file.
        gap: where it is cut.
        path: the file's name for the model; None: it has none.
    """

    text: str
    target: Target
    source: SourceText
    gap: Gap
    path: str | None

    @property
    def key(self) -> tuple[Path, int, int]:
        """The same for the same gap, however it was named."""
        return Path(self.target.file).resolve(), len(self.gap.prefix), len(self.gap.suffix)

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.target.last_line is not None:
            return f"{self.target.file}:{self.target.line}-{self.target.last_line}"
        return f"{self.target.file}:{self.gap.line}:{self.gap.column}"

    @property
    def identity(self) -> dict[str, object]:
        """The members of documents by which a reader finds it again."""
        return identity_of(self.text, self.name)


@dataclass(frozen=True)
class BadPlace:
    """What cannot be filled.

    Attributes:
        text: the word of the command line, or the line of a list.
        error: why.
        is_usage: whatever the files hold: it names no place, or the places contradict each other.
        cause: what --debug shows.
        name: of the place; None: it is in no file.
    """

    text: str
    error: str
    is_usage: bool = False
    cause: SourceFileError | None = None
    name: str | None = None

    @property
    def identity(self) -> dict[str, object]:
        """As a place's that can be filled."""
        return identity_of(self.text, self.name)


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

    def checked(self, refused: Mapping[int, BadPlace], *, as_json: bool) -> list[Place]:
        """Return the places if all of them can be filled; else tell which cannot, and why.

        Args:
            refused: more that cannot, by their numbers.
            as_json: print a document for each place, too.

        Raises:
            SourceFileError: the only one cannot be read.
            Exit: with status 2 when one of them is wrong usage, else 1.
        """
        items = [refused.get(number, place) for number, place in enumerate(self.items)]
        bad = [place for place in items if isinstance(place, BadPlace)]
        if not bad:
            return self.good
        rest = f"not filled: {len(bad)} of {len(items)} places cannot be"
        if as_json:
            for place in items:
                print_error(place.identity, place.error if isinstance(place, BadPlace) else rest)
        if len(items) == 1 and bad[0].cause is not None:
            raise bad[0].cause
        for message in dict.fromkeys(place.error for place in bad):
            report_error(message)
        if len(bad) < len(items):
            them = "it" if len(bad) == 1 else "them"
            report_error(f"nothing was filled: {len(bad)} of {len(items)} places cannot be; leave {them} out")
        raise typer.Exit(2 if any(place.is_usage for place in bad) else 1)


def identity_of(text: str, name: str | None = None) -> dict[str, object]:
    """Return what each document begins with: what was asked for, and which place that is, if it is one."""
    return {"target": text, "place": name}


def print_error(identity: Mapping[str, object], error: str) -> None:
    """Print the document of a place that has no answer."""
    print_json({**identity, "error": error})


def read_places(words: Sequence[str], path: str | None) -> Places:
    """Read what is to be filled.

    Args:
        words: of the command line; "-" alone: a list on standard input.
        path: the file's name for the model, as asked for.

    Returns:
        All of them; those that cannot be understood, read or found in their files as bad ones.

    Raises:
        SourceFileError: the list holds none.
        BadParameter: no place, or --path for several files.
    """
    if not words:
        raise typer.BadParameter("name a place, or - to read places from standard input.", param_hint=HINT)
    _refuse_missing_colon(words)
    read = _reader()
    places: list[Place | BadPlace] = []
    seen = set()
    for text in _listed() if is_list(words) else words:
        if text == STANDARD_INPUT:
            places.append(BadPlace(text, "'-' reads a list of places and stands alone", is_usage=True))
            continue
        try:
            place = _place(text, path, read)
            # Programs name one place in several ways: Node by its line and, below that, with its column.
            if not is_list(words) or place.key not in seen:
                places.append(place)
            seen.add(place.key)
        except SourceFileError as error:
            places.append(BadPlace(text, str(error), cause=error))
        except ValueError as error:
            places.append(BadPlace(text, str(error), is_usage=True))
    files = {place.key[0] for place in places if isinstance(place, Place)}
    if path is not None and len(files) > 1:
        raise typer.BadParameter(f"names one file, and {len(files)} are to be filled.", param_hint="--path")
    return Places(places, is_single=is_single(words))


def is_list(words: Sequence[str]) -> bool:
    """Whether the words of the command line ask for a list on standard input."""
    return list(words) == [STANDARD_INPUT]


def is_single(words: Sequence[str]) -> bool:
    """Whether the words of the command line are one place, whose answer stands alone."""
    return len(words) == 1 and not is_list(words)


def _listed() -> list[str]:
    if sys.stdin is None:
        raise SourceFileError("standard input: closed; pipe a list of places into it, or name places")
    if sys.stdin.isatty():
        notice("places are read from the keyboard, one a line; end with Ctrl-D")
    lines = sys.stdin.buffer.read(MAX_SOURCE_BYTES).decode("utf-8", "surrogateescape").splitlines()
    texts, num_others = places_in(lines)
    if not lines:
        raise SourceFileError(
            "standard input: empty, so there is no place to fill; pipe lines that begin with FILE:LINE"
        )
    if not texts:
        gone = missing_file(lines)
        remedy = "give FILE:LINE, as `grep -Hn` prints it"
        if gone is not None:
            remedy = f"{gone} does not exist, seen from {Path.cwd()}"
        raise SourceFileError(f"standard input: no line of {len(lines)} names a place in a file; {remedy}")
    if num_others and sys.stderr.isatty():
        notice(f"standard input: {num_others} lines name no place in a file and are passed over")
    return texts


def _refuse_missing_colon(words: Sequence[str]) -> None:
    """Tell who writes a file and a line as two words, which is a usual slip, what to write.

    Raises:
        BadParameter: an existing file is followed by a line.
    """
    for file, line in itertools.pairwise(words):
        if _LINE.fullmatch(line) and os.path.isfile(file) and not os.path.exists(line):
            raise typer.BadParameter(f"a colon is missing: write {file}:{line}", param_hint=HINT)


def _reader() -> Callable[[str], SourceText]:
    """Return what reads a file, or standard input, and knows what it has read."""
    found: dict[str, SourceText] = {}

    def read(file: str) -> SourceText:
        if file == STANDARD_INPUT:
            return found.get(file) or found.setdefault(file, read_text(file))
        try:
            real = os.path.realpath(file)
        except (OSError, ValueError):  # reading it has the words for that
            real = file
        source = found.get(real) or found.setdefault(real, read_text(file))
        return replace(source, name=file)

    return read


def _place(text: str, path: str | None, read: Callable[[str], SourceText]) -> Place:
    target = parse_place(text)
    source = read(target.file)
    target = _in_characters(text, target, source)
    return Place(text, target, source, locate(source, target), path or path_for_model(target.file))


def _in_characters(text: str, target: Target, source: SourceText) -> Target:
    """Turn the column that another program printed into one of characters.

    Raises:
        SourceFileError: it may mean several.
    """
    lines = source.text.split("\n")
    if target.column is None or not 1 <= target.line <= len(lines):
        return target
    column = character_column(text, target.file, lines[target.line - 1], target.column)
    if column is None:
        place = f"{target.file}:{target.line}"
        raise SourceFileError(
            f"{place}: column {target.column:,} may count characters, bytes or, as gcc does, a tab as 8, and they "
            f"differ in this line; give {place}, the end of the line, or {place}:COL in characters"
        )
    return replace(target, column=column)


def path_for_model(file: str) -> str | None:
    """The path as the model knows paths: relative, with slashes; of a file elsewhere only the name."""
    if file == STANDARD_INPUT:
        return None
    path = Path(file)
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except (ValueError, OSError):
        return path.name
