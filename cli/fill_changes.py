"""What `cg-local fill` does to files: `--diff`, `--write`, `--undo`.

This file owns the way from answers to edits of files, and how edits are shown. The replacing itself and the journal are
`infill.journal`'s. Invariant: a file that several answers go into is written once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cg_local.cli.app import PROGRAM
from cg_local.cli.fill_places import HINT, Place
from cg_local.cli.render import notice, print_json, write_stdout
from cg_local.cli.terminal_text import visible_text
from cg_local.errors import SourceFileError
from cg_local.infill.cursor import STANDARD_INPUT
from cg_local.infill.edit import Edit, clashes, edit_of, unified_diff

if TYPE_CHECKING:
    from cg_local.infill.journal import Journal, Undo, Write

_KINDS = {"@": "code", "+": "added", "-": "error"}


@dataclass
class Change:
    """All that goes into one file.

    Attributes:
        place: the first place of the file.
        edits: by the number of the answer.
    """

    place: Place
    edits: dict[int, Edit] = field(default_factory=dict)

    def diff(self, number: int | None = None) -> str:
        """Return the difference that all edits make, or one of them."""
        edits = list(self.edits.values()) if number is None else [self.edits[number]]
        return unified_diff(_shown_path(self.place), self.place.source.data, edits)


def check_writable(places: Sequence[Place]) -> dict[str, str]:
    """Judge, before a model is loaded, which files may be written.

    Returns:
        Those that may not, and why.

    Raises:
        BadParameter: standard input cannot be written.
    """
    from cg_local.atomic_file import check_replaceable

    refused = {}
    for file in {place.target.file for place in places}:
        if file == STANDARD_INPUT:
            raise typer.BadParameter("--write needs a file; standard input has none.", param_hint=HINT)
        try:
            check_replaceable(Path(file))
        except SourceFileError as error:
            refused[file] = str(error)
    return refused


def changes_of(places: Mapping[int, Place], texts: Mapping[int, str]) -> tuple[list[Change], dict[int, str]]:
    """Turn answers into changes of files.

    Args:
        places: by number.
        texts: the answers, by the same numbers; an empty one changes nothing.

    Returns:
        The changes, and errors by number: of two answers for one place the second is refused.
    """
    changes: dict[Path, Change] = {}
    errors = {}
    for number, text in texts.items():
        place = places[number]
        file = Path(place.target.file)
        change = changes.setdefault(file.resolve() if file.exists() else file, Change(place))
        edit = edit_of(place.source, place.gap, text)
        if not text or edit.after == edit.before:
            notice(f"{place.name}: the answer {'is empty' if not text else 'is what stands there'}; nothing to change")
        elif clashes(list(change.edits.values()), edit):
            errors[number] = f"{place.name}: another answer goes to the same place; name each place once"
        else:
            change.edits[number] = edit
    return [change for change in changes.values() if change.edits], errors


def write_changes(changes: Sequence[Change]) -> dict[int, str]:
    """Write the files.

    Returns:
        Errors, by the numbers of the answers that were not written.
    """
    journal, errors = _journal(), {}
    for change in changes:
        try:
            journal.write(Path(change.place.target.file), change.place.source.data, list(change.edits.values()))
        except SourceFileError as error:
            errors.update(dict.fromkeys(change.edits, str(error)))
    return errors


def tell_written(changes: Sequence[Change], errors: Mapping[int, str]) -> None:
    """Tell which files were written; `errors` are by the numbers of the answers, and a file is written whole."""
    for change in changes:
        if not errors.keys() & change.edits.keys():
            notice(f"{change.place.target.file}: written; `{PROGRAM} fill --undo` takes it back")


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


def undo_writes(words: Sequence[str], *, is_dry: bool, as_json: bool) -> None:
    """Take the last writes back: `fill --undo [N] [FILE]...`.

    Args:
        words: of the command line.
        is_dry: show as a difference what would change, and do nothing.
        as_json: print a document for each write.

    Raises:
        SourceFileError: there is nothing to take back, or the journal cannot be read.
        Exit: with status 1, when a write was refused.
    """
    count, files = (int(words[0]), words[1:]) if words and words[0].isdecimal() else (1, words)
    if count < 1:
        raise typer.BadParameter(f"{count} writes cannot be taken back.", param_hint="--undo")
    undone = _journal().undo(count, [Path(file) for file in files], is_dry=is_dry)
    for undo in undone:
        _tell(undo, is_dry=is_dry, as_json=as_json)
    if any(undo.error for undo in undone):
        raise typer.Exit(1)


def report_error(message: str) -> None:
    """Tell an error that does not end the command."""
    notice(f"error: {' '.join(message.split())}")


def _tell(undo: Undo, *, is_dry: bool, as_json: bool) -> None:
    name, clock = _relative(undo.write.file), undo.write.clock
    difference = _difference(undo, name) if is_dry else ""
    if undo.error is not None:
        report_error(str(undo.error))
    elif not undo.edits:
        notice(f"{name}: the text is as it was before the write of {clock} already")
    elif not is_dry and sys.stderr.isatty():
        notice(f"{name}: the write of {clock} is taken back")
    if as_json:
        document: dict[str, object] = {"file": name, "time": clock, "undone": undo.error is None and not is_dry}
        document |= {"error": str(undo.error)} if undo.error is not None else {}
        print_json(document | ({"diff": difference} if is_dry else {}))
    elif difference:
        show_diff(difference)


def _difference(undo: Undo, name: str) -> str:
    """Return what taking back changes; of a refused write, the texts of the journal, numbered from its first line."""
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


def _shown_path(place: Place) -> str:
    return place.path or STANDARD_INPUT if place.target.file == STANDARD_INPUT else _relative(Path(place.target.file))


def _relative(path: Path) -> str:
    """The path from here, where the file lies in or below this folder."""
    try:
        return path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
