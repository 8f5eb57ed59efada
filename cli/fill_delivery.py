"""The answers of `cg-local fill` on their way out: alone as they come, several in the order of their places.

This file owns the order of output and the exit status of several places. Invariant: an answer that is there is never
lost because another failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cg_local.cli.app import INTERRUPTED, PROGRAM
from cg_local.cli.fill_places import Place, print_error
from cg_local.cli.render import Status, notice, print_json, report_error, write_stdout

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Infill
    from cg_local.cli.fill_changes import Change
    from cg_local.cli.fill_diff import DiffPaths

# Answers that the engine computes as one batch; more wait their turn.
MAX_TOGETHER = 8

Answers = dict[int, "Infill | str"]
"""Answers, or why there is none, by number of the place."""
Start = Callable[[Place], "AnswerStream[Infill]"]
Document = Callable[[Place, "Infill"], dict[str, object]]
Text = Callable[[Place, "Infill"], str]


def compute_together(places: Sequence[Place], start: Start, limit: int) -> Answers:
    """Fill several places as one batch.

    Args:
        places: what was asked for.
        start: begins an answer.
        limit: answers under way at the same time.

    Returns:
        What there is, in the order of the places; an interrupt leaves out the answers that have not ended.
    """
    from cg_local.answers import read_together

    repeated = _repeated(places)
    numbers = [number for number in range(len(places)) if number not in repeated]
    starts = [lambda place=places[number]: start(place) for number in numbers]
    answers: Answers = {}
    status = Status()
    try:
        for number, answer in read_together(starts, limit):
            status.show(f"{len(answers) + 1} of {len(numbers)} places filled")
            answers[numbers[number]] = str(answer) if isinstance(answer, Exception) else answer
    except KeyboardInterrupt:
        pass
    finally:
        status.clear()
    answers |= {number: answers[first] for number, first in repeated.items() if first in answers}
    return dict(sorted(answers.items()))


def _repeated(places: Sequence[Place]) -> dict[int, int]:
    """Numbers of places that were named before, to the first one's: one place gets one answer."""
    first: dict[tuple[Path, int, int], int] = {}
    repeated = {}
    for number, place in enumerate(places):
        if first.setdefault(place.key, number) != number:
            repeated[number] = first[place.key]
    return repeated


@dataclass(frozen=True)
class Delivery:
    """What is done with answers, and what is printed.

    Attributes:
        document: makes an answer's document.
        text: makes what is printed of an answer.
        as_json: print documents, one a line, also for what failed.
        is_diff: print differences in place of texts.
        is_write: write the answers into their files.
    """

    document: Document
    text: Text
    as_json: bool
    is_diff: bool
    is_write: bool

    def deliver(self, places: Sequence[Place], answers: Answers, hidden: Collection[int] = ()) -> None:
        """Write files, and print what was asked for.

        Args:
            places: what was asked for.
            answers: of the places.
            hidden: numbers of answers that are neither shown nor written.

        Raises:
            Exit: with status 130, when places were left out by an interrupt, else 1, when anything failed.
        """
        is_interrupted = len(answers) < len(places)
        outcome = _Outcome.of(answers, hidden)
        if self.is_diff or self.is_write:
            outcome.find_changes(places)
        if self.is_write:
            outcome.write(is_quiet=self.as_json)
        try:
            self._print(places, outcome)
        except BrokenPipeError:
            raise
        except OSError as error:
            told = _told_written(outcome.written_files if self.is_write else [])
            report_error(f"{error.filename}: {error.strerror}{told}")
            raise typer.Exit(INTERRUPTED if is_interrupted else 1) from error
        finally:
            for message in dict.fromkeys(outcome.errors[number] for number in sorted(outcome.errors)):
                report_error(message)
        if is_interrupted or outcome.errors:
            raise typer.Exit(INTERRUPTED if is_interrupted else 1)

    def _print(self, places: Sequence[Place], outcome: _Outcome) -> None:
        if self.as_json:
            self._print_documents(places, outcome)
        elif self.is_diff:
            _show_diffs(outcome)
        elif not self.is_write:
            for number, answer in outcome.shown.items():
                print_under(places[number], self.text(places[number], answer))

    def _print_documents(self, places: Sequence[Place], outcome: _Outcome) -> None:
        """Print a line for each place, also for those that failed."""
        change_of = {number: change for change in outcome.changes for number in change.numbers}
        paths = outcome.paths
        for number, place in enumerate(places):
            error: dict[str, object] = {"error": outcome.errors[number]} if number in outcome.errors else {}
            if number not in outcome.filled:
                print_error(place.identity, outcome.errors.get(number, "interrupted"))
                continue
            members: dict[str, object] = {"written": number in change_of and not error} if self.is_write else {}
            if self.is_diff:
                members["diff"] = change_of[number].diff(paths, number) if number in change_of else ""
            print_json(self.document(place, outcome.filled[number]) | members | error)
        if self.is_diff:
            paths.tell()


@dataclass
class _Outcome:
    """What became of the places, each by its number.

    Attributes:
        filled: answers.
        shown: those of them that are shown.
        errors: why a place was not filled, or its answer not written.
        changes: of files.
    """

    filled: dict[int, Infill]
    shown: dict[int, Infill]
    errors: dict[int, str]
    changes: list[Change] = field(default_factory=list)

    @classmethod
    def of(cls, answers: Answers, hidden: Collection[int]) -> _Outcome:
        """Tell answers from errors."""
        errors = {number: answer for number, answer in answers.items() if isinstance(answer, str)}
        filled = {number: each for number, each in sorted(answers.items()) if not isinstance(each, str)}
        return cls(filled, {number: each for number, each in filled.items() if number not in hidden}, errors)

    def find_changes(self, places: Sequence[Place]) -> None:
        """Turn answers into changes of files; what an interrupt cut is shown and changes nothing."""
        # Not at the top: an answer that is only printed does without what compares and writes files.
        from cg_local.cli.fill_changes import changes_of

        texts = {number: each.text for number, each in self.shown.items() if each.stop_reason != "interrupted"}
        self.changes = changes_of(places, texts)

    def write(self, *, is_quiet: bool) -> None:
        """Write the files."""
        from cg_local.cli.fill_changes import tell_written, write_changes

        self.errors |= write_changes(self.changes)
        # A pipe hears of it only where it would otherwise hear of the failures alone.
        if sys.stderr.isatty() or (self.errors and not is_quiet):
            tell_written(self.written_files)

    @property
    def written_files(self) -> list[str]:
        """The files that were changed; one is written whole or not at all."""
        return [change.place.target.file for change in self.changes if not self.errors.keys() & change.edits.keys()]

    @property
    def paths(self) -> DiffPaths:
        """How the files are named in differences."""
        from cg_local.cli.fill_diff import DiffPaths

        return DiffPaths.of([change.file for change in self.changes if change.file is not None])


def _told_written(files: Sequence[str]) -> str:
    """Return what is added to an error that kept a person from seeing what was written."""
    if not files:
        return ""
    are, back = ("is", "it") if len(files) == 1 else ("are", "them")
    return f"; {', '.join(files)} {are} written all the same; `{PROGRAM} fill --undo` takes {back} back"


def _show_diffs(outcome: _Outcome) -> None:
    from cg_local.cli.fill_diff import show_diff

    paths = outcome.paths
    for change in outcome.changes:
        show_diff(change.diff(paths))
        if change.file is None:
            notice("the difference names no file, so nothing can apply it; --path FILE names one")
    paths.tell()


def print_under(place: Place, text: str) -> None:
    """Print one of several texts under its place, as `head` prints the beginnings of several files."""
    write_stdout(f"==> {place.name} <==\n{text}" + "\n" * (not text.endswith("\n")))
