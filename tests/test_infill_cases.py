"""The corpus of cursors: what is kept of a model's text, and how stop and cuts are called, case by case."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

import pytest
from infill_corpus import InfillCase, read_cases

from cg_local import grammars
from cg_local.infill.postprocess import MiddleTrimmer

CASES = read_cases()
# Code within a string, which a parser alone can tell from the string's text.
NEEDS_GRAMMAR = ("a string with braces in it", "an f-string's expression ends before its brace", "a quoted expansion")


def trimmed(case: InfillCase, size: int) -> MiddleTrimmer:
    """Give the model's text to a trimmer, in pieces of a size, until it stops."""
    trimmer = MiddleTrimmer(case.prefix, case.suffix, case.mode, case.path)
    shown = ""
    for start in range(0, len(case.written), size):
        if trimmer.stop_reason is None:
            shown += trimmer.push(case.written[start : start + size])
    shown += trimmer.finish()
    assert shown == trimmer.text  # a terminal shows nothing that is taken back
    return trimmer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_person_would_keep_is_kept(case: InfillCase) -> None:
    found = trimmed(case, len(case.written) or 1)
    assert (found.text, found.stop_reason or "-", found.trimmed) == (case.kept, case.stop_reason, case.trimmed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pieces_change_nothing(case: InfillCase) -> None:
    assert {trimmed(case, size).text for size in (1, 3)} == {case.kept}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_kept_would_be_kept_again(case: InfillCase) -> None:
    again = MiddleTrimmer(case.prefix, case.suffix, case.mode, case.path)
    again.push(case.kept)
    again.finish()
    assert again.text == case.kept


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.reason not in NEEDS_GRAMMAR],
    ids=lambda case: case.name,
)
def test_rules_do_as_well_without_grammars(case: InfillCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cg_local.infill.trees.find_parser", lambda language: None)
    assert trimmed(case, 1).text == case.kept


def test_corpus_is_large_and_broad() -> None:
    languages = Counter(PurePath(case.path).suffix for case in CASES)
    assert len(CASES) >= 150
    assert sum(count >= 4 for count in languages.values()) >= 12
    assert len({case.name for case in CASES}) == len(CASES)


def test_grammars_are_there() -> None:
    """They come with the package; only SQL's may be missing."""
    missing = [language for language in grammars.GRAMMARS if grammars.find_parser(language) is None]
    assert set(missing) <= {"sql"}
