"""The answers of a fill: asked for, hidden where they are not sure enough, shown or chosen from.

This file owns which of them reach a person, and how. Invariant: an answer that is hidden reaches neither stdout nor a
document, and leaving the picker leaves nothing behind.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from cg_local.cli.app import INTERRUPTED
from cg_local.cli.render import AnswerWriter, Status, follow, notice, rounded_logprob, write_at_once, write_stdout
from cg_local.cli.terminal_text import visible_text

if TYPE_CHECKING:
    from cg_local.answers import Infill
    from cg_local.cli.fill_context import FillPrompt
    from cg_local.cli.fill_options import FillArguments
    from cg_local.infill.cursor import Gap, SourceText
    from cg_local.runtime import LocalModel

NO_ANSWER = 3
"""Exit status when every answer is less probable than --min-prob."""


@dataclass(frozen=True)
class FillAnswers:
    """What a model wrote into a gap.

    Attributes:
        results: what may be shown, the best first.
        reader: the answer whose figures hold the reading of the prompt.
        num_hidden: how many were less probable than asked for; best_hidden: the highest probability of these.
        is_shown: it stands on stdout already.
    """

    results: list[Infill]
    reader: Infill
    num_hidden: int = 0
    best_hidden: float = 0.0
    is_shown: bool = False


def ask(model: LocalModel, prompt: FillPrompt, given: FillArguments, source: SourceText) -> FillAnswers:
    """Ask the model for as many answers as are wanted; a single one that needs no judgement is shown as it comes.

    An interrupt ends the answers and keeps what there is; their stop_reason is then "interrupted".
    """
    from cg_local.config import SamplingParams

    params = SamplingParams(max_tokens=given.max_tokens, **given.sampling, top_logprobs=given.num_shown)
    how: dict[str, Any] = prompt.arguments | {"mode": given.mode.value, "params": params}
    if given.candidates == 1:
        stream = model.infill(**how, stream=True)
        is_silent = given.is_held_back
        result = follow(stream, AnswerWriter(source.newline, is_silent=is_silent))
        return replace(sift([result], result, given.min_prob), is_shown=not is_silent)
    candidates = model.infill_candidates(**how, num_candidates=given.candidates)
    try:
        with Status().waiting(f"writing {given.candidates} candidates ..."):
            candidates.run()
    except KeyboardInterrupt:
        interrupted = candidates.first  # closes them
        return sift(candidates.results, replace(interrupted, stop_reason="interrupted"), given.min_prob)
    return sift(candidates.results, candidates.first, given.min_prob)


def sift(results: list[Infill], reader: Infill, min_prob: float) -> FillAnswers:
    """Hide the answers that are less probable than `min_prob`; see `FillAnswers`."""
    kept = [result for result in results if _probability(result) >= min_prob]
    best_hidden = max((_probability(result) for result in results if result not in kept), default=0.0)
    return FillAnswers(kept, reader, len(results) - len(kept), best_hidden)


def _probability(result: Infill) -> float:
    """Mean probability of a token: the geometric mean, which does not sink with the length of an answer."""
    return 0.0 if result.mean_logprob is None else math.exp(result.mean_logprob)


def show(answers: FillAnswers, model: LocalModel, gap: Gap, given: FillArguments, source: SourceText) -> Infill | None:
    """Show the answers that are not on stdout yet, or let a person choose one.

    Returns:
        The one that was taken of several; None where all are shown, or there is none.

    Raises:
        typer.Exit: with status 130 when nothing was chosen.
    """
    if answers.is_shown or not answers.results:
        return None
    if given.explain:
        _explain(answers, model, given, source)
    elif given.all:
        _write_all(answers.results, given, source)
    elif (chosen := choose(answers, gap, given, source)) is not None:
        write_at_once(chosen.untrimmed if given.untrimmed else chosen.text, source.newline)
        return chosen
    return None


def shown_text(result: Infill, model: LocalModel, given: FillArguments, source: SourceText) -> str:
    """Return what is printed of one of several answers."""
    if given.explain:
        from cg_local.cli.explain import explained_tokens, explanation
        from cg_local.cli.repl.ink import Ink, ink_level

        return explanation(explained_tokens(result, model.tokenizer), Ink(ink_level(sys.stdout.isatty())))
    text = (result.untrimmed if given.untrimmed else result.text).replace("\r\n", "\n")
    return visible_text(text) if sys.stdout.isatty() else text.replace("\n", source.newline)


def choose(answers: FillAnswers, gap: Gap, given: FillArguments, source: SourceText) -> Infill | None:
    """Return the best answer, or the one that a person at a terminal picks; None: there is none.

    Raises:
        typer.Exit: with status 130 when nothing was chosen.
    """
    results = answers.results
    if len(results) < 2 or given.json or answers.reader.stop_reason == "interrupted" or not _has_person(source):
        return results[0] if results else None
    from cg_local.cli.picker import pick

    replaced = source.text[len(gap.prefix) : len(source.text) - len(gap.suffix)]
    picked = pick(results, gap.prefix, gap.suffix, replaced)
    if picked is None:
        raise typer.Exit(INTERRUPTED)
    return picked


def tell_hidden(answers: FillAnswers, min_prob: float, name: str) -> None:
    """Tell that no answer for a place of this name was probable enough."""
    notice(f"{name}: no answer with a probability of {min_prob:g} or more; the best has {answers.best_hidden:.2f}")


def tell_empty(results: Sequence[Infill], given: FillArguments, name: str) -> None:
    """Tell that nothing was printed for a place of this name, where that is so, and what may be seen all the same."""
    texts = [result.untrimmed if given.untrimmed else result.text for result in results]
    if not results or any(texts) or any(result.stop_reason == "interrupted" for result in results):
        return
    is_cut = not given.untrimmed and any(result.untrimmed for result in results)
    notice(f"{name}: the answer is empty{'; --untrimmed shows what was cut off' if is_cut else ''}")


def candidate_document(result: Infill, model: LocalModel, given: FillArguments, source: SourceText) -> dict[str, Any]:
    """Return one member of `candidates` in the document."""
    document: dict[str, Any] = {
        "text": result.text.replace("\n", source.newline),
        "stop_reason": result.stop_reason,
        "mean_logprob": rounded_logprob(result.mean_logprob),
        "num_tokens": result.num_tokens,
        "trimmed": list(result.trimmed),
    }
    if given.untrimmed:
        document["untrimmed"] = result.untrimmed
    if given.candidates > 1:
        errors = result.num_parse_errors
        document |= {"num_copies": result.num_copies, "parses": None if errors is None else errors == 0}
    if given.explain:
        from cg_local.cli.explain import explained_tokens, token_documents

        document["tokens"] = token_documents(explained_tokens(result, model.tokenizer))
    return document


def _explain(answers: FillAnswers, model: LocalModel, given: FillArguments, source: SourceText) -> None:
    for number, result in enumerate(answers.results, 1):
        if len(answers.results) > 1:
            write_stdout(f"{'' if number == 1 else chr(10)}{_title(number, result, len(answers.results))}\n")
        write_stdout(shown_text(result, model, given, source))


def _write_all(results: list[Infill], given: FillArguments, source: SourceText) -> None:
    """Write all candidates: with titles on a terminal; into a pipe as they are, separated by NUL characters."""
    is_terminal = sys.stdout.isatty()
    for number, result in enumerate(results, 1):
        if is_terminal:
            write_stdout(f"{_title(number, result, len(results))}\n")
        elif number > 1:
            write_stdout("\0")
        write_at_once(result.untrimmed if given.untrimmed else result.text, source.newline)


def _title(number: int, result: Infill, total: int) -> str:
    errors = {None: "", 0: ", no syntax error"}.get(result.num_parse_errors, ", adds a syntax error")
    copies = f", {result.num_copies} times" if result.num_copies > 1 else ""
    return f"--- {number} of {total}: probability {_probability(result):.2f}{errors}{copies}"


def _has_person(source: SourceText) -> bool:
    """Whether a picker can be shown and answered; a file on standard input leaves the terminal to be read."""
    from cg_local.infill.cursor import STANDARD_INPUT_NAME

    if os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return False
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    if source.name != STANDARD_INPUT_NAME:
        return False
    from cg_local.cli.picker import has_keyboard

    return has_keyboard()
