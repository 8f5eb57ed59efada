"""The answers of `cg-local fill` on their way out: alone as they come, several in the order of their places.

This file owns the order of output and the exit status of several places. Invariant: an answer that is there is never
lost because another failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cg_local.cli.fill_places import BadPlace, Place, Places
from cg_local.cli.render import Status, notice, print_json, report_error, write_stdout
from cg_local.cli.terminal_text import visible_text

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Infill
    from cg_local.cli.fill_changes import Change
    from cg_local.cli.fill_diff import DiffPaths

# Answers that the engine computes as one batch; more wait their turn.
MAX_TOGETHER = 8

Start = Callable[[Place], "AnswerStream[Infill]"]
Document = Callable[[Place, "Infill"], dict[str, object]]


def compute_together(places: Places, start: Start, limit: int) -> dict[int, Infill | str]:
    """Fill several places as one batch.

    Args:
        places: what was asked for.
        start: begins an answer.
        limit: answers under way at the same time.

    Returns:
        Answers, or why there is none, by number of the place; bad places are left out.
    """
    from cg_local.answers import read_together

    repeated = _repeated(places)
    numbers = [n for n, place in enumerate(places.items) if isinstance(place, Place) and n not in repeated]
    starts = [lambda place=places.items[number]: start(place) for number in numbers]
    answers: dict[int, Infill | str] = {}
    status = Status()
    try:
        for number, answer in read_together(starts, limit):
            status.show(f"{len(answers) + 1} of {len(numbers)} places filled")
            answers[numbers[number]] = str(answer) if isinstance(answer, Exception) else answer
    finally:
        status.clear()
    return answers | {number: answers[first] for number, first in repeated.items() if first in answers}


def _repeated(places: Places) -> dict[int, int]:
    """Numbers of places that were named before, to the first one's: one place gets one answer."""
    first: dict[tuple[Path, int, int], int] = {}
    repeated = {}
    for number, place in enumerate(places.items):
        if isinstance(place, Place):
            key = Path(place.target.file).resolve(), len(place.gap.prefix), len(place.gap.suffix)
            if first.setdefault(key, number) != number:
                repeated[number] = first[key]
    return repeated


def deliver(
    places: Places,
    answers: dict[int, Infill | str],
    document: Document | None,
    *,
    as_json: bool,
    is_diff: bool,
    is_write: bool,
) -> None:
    """Write files, and print what was asked for.

    Args:
        places: what was asked for.
        answers: of the places that could be filled, or why there is none.
        document: makes an answer's document; None: there is no answer.
        as_json: print documents, one a line, also for what failed.
        is_diff: print differences in place of texts.
        is_write: write the answers into their files.

    Raises:
        Exit: with status 1, when anything failed.
    """
    outcome = _Outcome.of(places, answers)
    if is_diff or is_write:
        outcome.find_changes(places)
    if is_write:
        outcome.write(is_quiet=as_json)
    for number, answer in outcome.filled.items():
        if answer.notice is not None and not places.is_single:
            notice(f"{places.items[number].name}: {answer.notice}")
    if as_json:
        _print_documents(places, outcome, document, is_diff=is_diff, is_write=is_write)
    elif is_diff:
        _show_diffs(outcome)
    elif not is_write:
        for number, place in enumerate(places.items):
            if number in outcome.filled and isinstance(place, Place):
                _print_text(place, outcome.filled[number])
    for message in dict.fromkeys(outcome.errors[number] for number in sorted(outcome.errors)):
        report_error(message)
    if outcome.errors:
        raise typer.Exit(1)


@dataclass
class _Outcome:
    """What became of the places, each by its number.

    Attributes:
        filled: answers.
        errors: why a place was not filled, or its answer not written.
        changes: of files.
    """

    filled: dict[int, Infill]
    errors: dict[int, str]
    changes: list[Change] = field(default_factory=list)

    @classmethod
    def of(cls, places: Places, answers: dict[int, Infill | str]) -> _Outcome:
        """Tell answers from errors."""
        errors = {number: place.error for number, place in enumerate(places.items) if isinstance(place, BadPlace)}
        errors |= {number: answer for number, answer in answers.items() if isinstance(answer, str)}
        filled = {number: answers[number] for number in sorted(answers)}
        return cls({number: each for number, each in filled.items() if not isinstance(each, str)}, errors)

    def find_changes(self, places: Places) -> None:
        """Turn answers into changes of files; what an interrupt cut is shown and changes nothing."""
        # Not at the top: an answer that is only printed does without what compares and writes files.
        from cg_local.cli.fill_changes import changes_of

        good = {number: place for number, place in enumerate(places.items) if isinstance(place, Place)}
        texts = {number: each.text for number, each in self.filled.items() if each.stop_reason != "interrupted"}
        self.changes, clashing = changes_of(good, texts)
        self.errors |= clashing

    def write(self, *, is_quiet: bool) -> None:
        """Write the files."""
        from cg_local.cli.fill_changes import tell_written, write_changes

        self.errors |= write_changes(self.changes)
        # A pipe hears of it only where it would otherwise hear of the failures alone.
        if sys.stderr.isatty() or (self.errors and not is_quiet):
            tell_written(self.changes, self.errors)

    @property
    def paths(self) -> DiffPaths:
        """How the files are named in differences."""
        from cg_local.cli.fill_diff import DiffPaths

        return DiffPaths.of([change.file for change in self.changes if change.file is not None])


def _print_documents(
    places: Places, outcome: _Outcome, document: Document | None, *, is_diff: bool, is_write: bool
) -> None:
    """Print a line for each place, also for those that failed."""
    change_of = {number: change for change in outcome.changes for number in change.numbers}
    paths = outcome.paths
    for number, place in enumerate(places.items):
        error: dict[str, object] = {"error": outcome.errors[number]} if number in outcome.errors else {}
        if number not in outcome.filled or not isinstance(place, Place) or document is None:
            print_json({"target": place.name, **error})
            continue
        members: dict[str, object] = {"written": number in change_of and not error} if is_write else {}
        if is_diff:
            members["diff"] = change_of[number].diff(paths, number) if number in change_of else ""
        print_json(document(place, outcome.filled[number]) | members | error)
    if is_diff:
        paths.tell()


def _show_diffs(outcome: _Outcome) -> None:
    from cg_local.cli.fill_diff import show_diff

    paths = outcome.paths
    for change in outcome.changes:
        show_diff(change.diff(paths))
    paths.tell()


def _print_text(place: Place, answer: Infill) -> None:
    """Print one of several answers under its place, as `head` prints the beginnings of several files."""
    text = answer.text.replace("\n", place.source.newline)
    if sys.stdout.isatty():
        text = visible_text(answer.text)
    write_stdout(f"==> {place.name} <==\n{text}" + "\n" * (not text.endswith("\n")))
