"""The answers of `cg-local fill` on their way out: alone as they come, several in the order of their places.

This file owns the order of output and the exit status of several places. Invariant: an answer that is there is never
lost because another failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from cg_local.cli.fill_places import BadPlace, Place, Places
from cg_local.cli.render import Status, notice, print_json, write_stdout
from cg_local.cli.terminal_text import visible_text

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Infill

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

    numbers = [number for number, place in enumerate(places.items) if isinstance(place, Place)]
    starts = [lambda place=places.items[number]: start(place) for number in numbers]
    answers: dict[int, Infill | str] = {}
    status = Status()
    try:
        for number, answer in read_together(starts, limit):
            status.show(f"{len(answers) + 1} of {len(numbers)} places filled")
            answers[numbers[number]] = str(answer) if isinstance(answer, Exception) else answer
    finally:
        status.clear()
    return answers


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
    # Not at the top: an answer that is only printed does without what compares and writes files.
    from cg_local.cli.fill_changes import changes_of, report_error, show_diff, tell_written, write_changes

    errors = {number: place.error for number, place in enumerate(places.items) if isinstance(place, BadPlace)}
    errors |= {number: answer for number, answer in answers.items() if isinstance(answer, str)}
    filled = {number: answer for number, answer in answers.items() if not isinstance(answer, str)}
    good = {number: place for number, place in enumerate(places.items) if isinstance(place, Place)}
    # What an interrupt cut is shown and not written.
    whole = {number: filled[number].text for number in sorted(filled) if filled[number].stop_reason != "interrupted"}
    changes, clashing = changes_of(good, whole) if is_diff or is_write else ([], {})
    errors |= clashing
    if is_write:
        errors |= write_changes(changes)
        # A pipe hears of it only where it would otherwise hear of the failures alone.
        if sys.stderr.isatty() or (errors and not as_json):
            tell_written(changes, errors)
    change_of = {number: change for change in changes for number in change.edits}
    for number, place in enumerate(places.items):
        if number in filled and filled[number].notice is not None and not places.is_single:
            notice(f"{place.name}: {filled[number].notice}")
        if as_json and number in filled and isinstance(place, Place) and document is not None:
            members: dict[str, object] = {"written": number in change_of and number not in errors} if is_write else {}
            if is_diff:
                members["diff"] = change_of[number].diff(number) if number in change_of else ""
            members |= {"error": errors[number]} if number in errors else {}
            print_json(document(place, filled[number]) | members)
        elif as_json:
            print_json({"target": place.name, "error": errors[number]})
        elif number in filled and not is_diff and not is_write and isinstance(place, Place):
            _print_text(place, filled[number])
    if is_diff and not as_json:
        for change in changes:
            show_diff(change.diff())
    for message in dict.fromkeys(errors[number] for number in sorted(errors)):
        report_error(message)
    if errors:
        raise typer.Exit(1)


def _print_text(place: Place, answer: Infill) -> None:
    """Print one of several answers under its place, as `head` prints the beginnings of several files."""
    text = answer.text.replace("\n", place.source.newline)
    if sys.stdout.isatty():
        text = visible_text(answer.text)
    write_stdout(f"==> {place.name} <==\n{text}" + "\n" * (not text.endswith("\n")))
