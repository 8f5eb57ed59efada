"""What `cg-local fill` does to files: `--diff`, `--write`, `--undo`.

This file owns the way from answers to edits of files, and how edits are shown. The replacing itself and the journal are
`infill.journal`'s. Invariant: a file that several answers go into is written once.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cg_local.cli.app import PROGRAM
from cg_local.cli.fill_diff import DiffPaths, show_diff
from cg_local.cli.fill_places import BadPlace, Place
from cg_local.cli.render import notice, print_json, report_error
from cg_local.errors import SourceFileError
from cg_local.infill.cursor import STANDARD_INPUT
from cg_local.infill.edit import Edit, clashes, edit_of, unified_diff

if TYPE_CHECKING:
    from cg_local.infill.journal import Journal, Undo, Write


@dataclass
class Change:
    """All that goes into one file.

    Attributes:
        place: the first place of the file.
        edits: by the number of the answer.
        repeats: numbers of answers that are there already, because their place was named before, to the first one's.
    """

    place: Place
    edits: dict[int, Edit] = field(default_factory=dict)
    repeats: dict[int, int] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """Of all answers that the change holds."""
        return [*self.edits, *self.repeats]

    @property
    def file(self) -> Path | None:
        """What a difference names; None: a text of standard input without a name."""
        if self.place.target.file != STANDARD_INPUT:
            return Path(self.place.target.file)
        return Path(self.place.path) if self.place.path else None

    def diff(self, paths: DiffPaths, number: int | None = None) -> str:
        """Return the difference that all edits make, or one of them."""
        edits = list(self.edits.values()) if number is None else [self.edits[self.repeats.get(number, number)]]
        name = paths.name(self.file) if self.file is not None else STANDARD_INPUT
        return unified_diff(name, self.place.source.data, edits)


def refused_changes(places: Sequence[Place | BadPlace], *, is_write: bool) -> dict[int, BadPlace]:
    """Judge, before a model is loaded, which places cannot be changed.

    Args:
        places: what is asked for.
        is_write: the files are to be written, not only compared.

    Returns:
        Those in files that may not be written, and of two places that overlap the second, by number.
    """
    refused, taken = {}, dict[Path, list[tuple[str, Edit]]]()
    for number, place in enumerate(places):
        if not isinstance(place, Place):
            continue
        edit = edit_of(place.source, place.gap, "")
        others = taken.setdefault(_key(place), [])
        clashing = next((name for name, other in others if edit != other and clashes([other], edit)), None)
        others.append((place.name, edit))
        error = _write_error(place.target.file) if is_write else None
        if error is not None:
            refused[number] = BadPlace(place.text, error, is_usage=place.target.file == STANDARD_INPUT, name=place.name)
        elif clashing is not None:
            error = f"{place.name}: overlaps {clashing}; fill one after the other"
            refused[number] = BadPlace(place.text, error, is_usage=True, name=place.name)
    return refused


def _write_error(file: str) -> str | None:
    from cg_local.atomic_file import check_replaceable

    if file == STANDARD_INPUT:
        return "--write needs a file; standard input has none"
    try:
        check_replaceable(Path(file))
    except SourceFileError as error:
        return str(error)
    return None


def _key(place: Place) -> Path:
    file = Path(place.target.file)
    return file.resolve() if file.exists() else file


def changes_of(places: Sequence[Place], texts: Mapping[int, str]) -> list[Change]:
    """Turn answers into changes of files.

    Args:
        places: none of which overlap (`refused_changes`).
        texts: the answers, by the numbers of their places; an empty one changes nothing.
    """
    changes: dict[Path, Change] = {}
    for number, text in texts.items():
        place = places[number]
        change = changes.setdefault(_key(place), Change(place))
        edit = edit_of(place.source, place.gap, text)
        if not text or edit.after == edit.before:
            notice(f"{place.name}: the answer {'is empty' if not text else 'is what stands there'}; nothing to change")
        elif (first := _number_of(edit, change)) is not None:
            notice(f"{place.name}: named twice; filled once")
            change.repeats[number] = first
        else:
            change.edits[number] = edit
    return [change for change in changes.values() if change.edits]


def write_changes(changes: Sequence[Change]) -> dict[int, str]:
    """Write the files, as one write for `--undo`.

    Returns:
        Errors, by the numbers of the answers that were not written.
    """
    from cg_local.infill.journal import FileEdits

    files = [
        FileEdits(Path(each.place.target.file), each.place.source.data, tuple(each.edits.values())) for each in changes
    ]
    try:
        found = _journal().write_together(files) if files else []
    except SourceFileError as error:
        found = [error] * len(changes)
    failed = [(change, error) for change, error in zip(changes, found, strict=True) if error is not None]
    return {number: str(error) for change, error in failed for number in change.numbers}


def tell_written(files: Sequence[str]) -> None:
    """Tell which files were written, and what takes them back from here."""
    scope = _scope()
    is_here = any(Path(file).resolve().is_relative_to(scope) for file in files)
    command = f"{PROGRAM} fill --undo" + ("" if is_here else f" {shlex.join(files)}")
    for file in files[:-1]:
        notice(f"{file}: written")
    if files:
        back = "it" if len(files) == 1 else f"all {len(files)}"
        notice(f"{files[-1]}: written; `{command}` takes {back} back")


def undo_writes(words: Sequence[str], *, is_dry: bool, as_json: bool, is_forgotten: bool = False) -> None:
    """Take the last writes back: `fill --undo [N] [FILE]...`; without a file, those made here.

    Args:
        words: of the command line; what one call of `--write` did counts as one write.
        is_dry: show as a difference what would change, and do nothing.
        as_json: print a document for each write.
        is_forgotten: strike the writes from the journal instead.

    Raises:
        SourceFileError: there is nothing to take back, or the journal cannot be read.
        Exit: with status 1, when a write was refused.
    """
    count, files = (int(words[0]), words[1:]) if words and words[0].isdecimal() else (1, words)
    if count < 1:
        raise typer.BadParameter(f"{count} writes cannot be taken back.", param_hint="--undo")
    for word in files:
        _check_file(word)
    arguments = count, [Path(file) for file in files]
    try:
        undone = _journal().undo(*arguments, folder=_scope(), is_dry=is_dry, is_forgotten=is_forgotten)
    except SourceFileError as error:
        if as_json:
            print_json({"file": None, "time": None, "undone": False, "error": str(error)})
        raise
    if is_forgotten:
        for undo in undone:
            notice(f"{_relative(undo.write.file)}: the write of {undo.write.clock} is forgotten; the file is as it was")
        return
    paths = DiffPaths.of([undo.write.file for undo in undone])
    try:
        for undo in undone:
            _tell(undo, _difference(undo, paths) if is_dry else None, as_json=as_json)
    except BrokenPipeError:
        raise
    except OSError as error:  # the files are as they are whether anybody can be told or not
        done = dict.fromkeys(_relative(undo.write.file) for undo in undone if undo.error is None and not is_dry)
        told = f"; taken back all the same: {', '.join(done)}" if done else ""
        report_error(f"{error.filename}: {error.strerror}{told}")
        raise typer.Exit(1) from error
    if is_dry:
        paths.tell()
    num_writes = len({undo.write.group for undo in undone})
    if num_writes < count:
        notice(f"{count} writes were asked for; the journal has {num_writes}{' of these files' if files else ''}")
    if any(undo.error for undo in undone):
        raise typer.Exit(1)


def _scope() -> Path:
    """The folder whose writes are taken back where no file is named: the git work tree, else the current folder."""
    from cg_local.repository.work_tree import find_work_tree

    here = Path.cwd().resolve()
    tree = find_work_tree(here / "file")
    return tree.root if tree.is_git else here


def _check_file(word: str) -> None:
    """Refuse what was meant as a place, or as the number of writes.

    Raises:
        BadParameter: there is no file of that name, and the word reads like one of them.
    """
    from cg_local.infill.targets import parse_place

    if os.path.exists(word):
        return
    if word.isdecimal():
        raise typer.BadParameter(f"the number of writes comes first: --undo {word} FILE.", param_hint="--undo")
    try:
        file = parse_place(word).file
    except ValueError:
        return
    raise typer.BadParameter(f"takes whole writes of a file back, not places: --undo {file}", param_hint="--undo")


def _tell(undo: Undo, difference: str | None, *, as_json: bool) -> None:
    """Tell what became of a write; `difference`: nothing was done, and this would be."""
    name, clock, is_dry = _relative(undo.write.file), undo.write.clock, difference is not None
    if undo.error is not None:
        report_error(str(undo.error))
    elif not undo.edits:
        notice(f"{name}: the text is as it was before the write of {clock} already")
    elif not is_dry and not as_json:
        notice(f"{name}: the write of {clock} is taken back")
    if as_json:
        document: dict[str, object] = {"file": name, "time": clock, "undone": undo.error is None and not is_dry}
        document |= {"error": str(undo.error)} if undo.error is not None else {}
        print_json(document | ({"diff": difference} if is_dry else {}))
    elif difference:
        show_diff(difference)


def _difference(undo: Undo, paths: DiffPaths) -> str:
    """Return what taking back changes; of a refused write, the texts of the journal, numbered from its first line."""
    name = paths.name(undo.write.file)
    if undo.data is not None:
        return unified_diff(name, undo.data, undo.edits)
    return "".join(unified_diff(name, *_excerpt(undo.write, number)) for number in range(len(undo.write.edits)))


def _excerpt(write: Write, number: int) -> tuple[bytes, list[Edit]]:
    edit, around = write.edits[number], write.surroundings[number]
    return around.left + edit.after + around.right, [Edit(len(around.left), edit.after, edit.before)]


def _journal() -> Journal:
    from cg_local.infill.journal import Journal
    from cg_local.model_store import state_folder

    return Journal(state_folder() / "writes")


def _number_of(edit: Edit, change: Change) -> int | None:
    return next((number for number, other in change.edits.items() if other == edit), None)


def _relative(path: Path) -> str:
    """The path from here, where the file lies in or below this folder."""
    try:
        return path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
