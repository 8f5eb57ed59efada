"""`cg-local fill`: the gap at a cursor, filled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cg_local.cli import fill_options, options
from cg_local.cli.app import INTERRUPTED
from cg_local.cli.fill_answers import (
    NO_ANSWER,
    FillAnswers,
    ask,
    candidate_document,
    choose,
    show,
    shown_text,
    sift,
    tell_empty,
    tell_hidden,
)
from cg_local.cli.fill_conflicts import conflict
from cg_local.cli.fill_context import (
    compilation_watched,
    fill_prompt,
    limit_members,
    remember_speed,
    show_prompt,
    tell_limit,
)
from cg_local.cli.fill_delivery import MAX_TOGETHER, Delivery, compute_together
from cg_local.cli.fill_places import Place, identity_of, is_single, print_error, read_places
from cg_local.cli.render import end_answer, print_json, speculation_counts, tell_cut, timings
from cg_local.cli.session import keep_fill, kv_store, load_model
from cg_local.errors import CapacityError, CgLocalError

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Infill
    from cg_local.cli.fill_context import FillPrompt
    from cg_local.cli.fill_options import FillArguments
    from cg_local.runtime import LocalModel

    Prompts = dict[tuple[Path, int, int], FillPrompt]


def fill(
    command: typer.Context,
    targets: fill_options.Targets = None,
    path: fill_options.Path = None,
    mode: fill_options.ModeOption = options.Mode.auto,
    order: fill_options.OrderOption = None,
    candidates: fill_options.Candidates = 1,
    all: fill_options.All = False,
    explain: fill_options.Explain = False,
    min_prob: fill_options.MinProb = 0.0,
    model: options.Model = "nano",
    scheme: options.OptionalScheme = None,
    max_tokens: options.MaxTokens = 128,
    context_tokens: fill_options.ContextTokens = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    threads: options.Threads = None,
    kv_dtype: options.OptionalKvDtype = None,
    speculation: options.Speculation = True,
    cache: fill_options.Cache = True,
    kv_cache_size: options.KvCacheSize = "4 GiB",
    context: fill_options.ContextOption = fill_options.Context.auto,
    max_wait: fill_options.MaxWait = None,
    show_prompt: fill_options.ShowPrompt = False,
    untrimmed: fill_options.Untrimmed = False,
    diff: fill_options.Diff = False,
    write: fill_options.Write = False,
    undo: fill_options.Undo = False,
    forget: fill_options.Forget = False,
    json: options.Json = False,
) -> None:
    """Fill the gap at a cursor in a file; the text goes to stdout, the file is not touched without --write.

    FILE:LINE is the end of that line, FILE:LINE:COL the place before its COL-th character, both counted from 1.
    FILE:FIRST-LAST writes these lines anew. With -:LINE the text comes from standard input, with - alone a list of
    places. What grep -n, compilers and stack traces print is taken as it is. Several places are computed together,
    once all of them are judged: where one cannot be filled, none is. Status 0: done, 1: error, 2: usage, 3: unsure.

    With -n, for one place alone, a terminal lets you choose by arrow keys (Esc: status 130); a pipe gets the best.

    \b
    Examples:
      cg-local fill src/parser.py:42
      cg-local fill src/parser.py:10-14 --json
      cg-local fill src/parser.py:42 -n 3
      cg-local fill src/parser.py:42:9 --mode line --explain
      cg-local fill src/parser.py:42 --write --diff
      cg-local fill --undo
      grep -Hn '^def .*:$' src/stubs.py | cg-local fill - --diff
      git show HEAD:a.py | cg-local fill -:7 --path a.py
      cg-local fill src/parser.py:42 --context repo --show-prompt
    """
    given = {name: value for name, value in locals().items() if name != "command"}
    if message := conflict(options.typed_parameters(command), candidates, is_single=is_single(targets or [])):
        options.refuse_usage(message)
    _fill(fill_options.FillArguments(**given))


def _fill(given: FillArguments) -> None:
    if given.undo:
        from cg_local.cli.fill_changes import undo_writes

        undo_writes(given.targets or [], is_dry=given.diff, as_json=given.json, is_forgotten=given.forget)
        return
    with _documented(given, map(identity_of, given.targets or [])):
        places = read_places(given.targets or [], given.path)
    refused = {}
    if given.diff or given.write:
        from cg_local.cli.fill_changes import refused_changes

        refused = refused_changes(places.items, is_write=given.write)
    checked = places.checked(refused, as_json=given.json)
    with _documented(given, [place.identity for place in checked]):
        if given.show_prompt:
            loaded, _ = _loaded(given, 1)
            for place in checked:
                show_prompt(fill_prompt(given, place, loaded), place, loaded, given, is_single=places.is_single)
        elif places.is_single:
            loaded, _ = _loaded(given, 1)
            _fill_one(given, loaded, checked[0])
        else:
            loaded, limit = _loaded(given, len(checked))
            _fill_several(given, loaded, checked, limit)


@contextmanager
def _documented(given: FillArguments, identities: Iterable[Mapping[str, object]]) -> Iterator[None]:
    """With --json, let an error that ends the command stand in a document for each place, too."""
    try:
        yield
    except CgLocalError as error:
        for identity in identities if given.json else []:
            print_error(identity, str(error))
        raise


def _fill_one(given: FillArguments, loaded: LocalModel, place: Place) -> None:
    prompt = fill_prompt(given, place, loaded)
    with compilation_watched() as has_compiled:
        answers = ask(loaded, prompt, given, place.source)
    prompts, chosen = {place.key: prompt}, None
    tell_limit(prompt, given, truncated=answers.reader.truncated)
    keep_fill(loaded, answers.reader)
    remember_speed(given, loaded, answers.reader, has_compiled=has_compiled())
    if given.diff or given.write:
        chosen = choose(answers, place.gap, given, place.source)
        hidden = [0] if chosen is None else []
        delivery = _delivery(given, loaded, prompts, lambda _: answers)
        delivery.deliver([place], {0: chosen or answers.reader}, hidden)
    elif given.json:
        print_json(_document(given, loaded, place, answers, prompt))
    else:
        chosen = show(answers, loaded, place.gap, given, place.source)
        tell_empty([chosen] if chosen is not None else answers.results, given, place.name)
    end_answer(answers.reader, is_quiet=given.json, chosen=chosen)
    if not answers.results:
        tell_hidden(answers, given.min_prob, place.name)
        raise typer.Exit(NO_ANSWER)


def _fill_several(given: FillArguments, loaded: LocalModel, places: list[Place], limit: int) -> None:
    prompts: Prompts = {}
    computed = compute_together(places, partial(_start, given, loaded, prompts), limit)
    if len(computed) < len(places) and (given.diff or given.write):  # half of the changes is not what was asked for
        raise typer.Exit(INTERRUPTED)
    sifted = {n: sift([each], each, given.min_prob) for n, each in computed.items() if not isinstance(each, str)}
    hidden = [number for number, answers in sifted.items() if not answers.results]
    for number, answers in sifted.items():
        name, truncated = places[number].name, answers.reader.truncated
        tell_limit(prompts[places[number].key], given, truncated=truncated, name=name)
        tell_cut(answers.reader, name)
        if not answers.results:
            tell_hidden(answers, given.min_prob, name)
        elif not (given.json or given.diff or given.write):
            tell_empty(answers.results, given, name)
    delivery = _delivery(given, loaded, prompts, lambda result: sift([result], result, given.min_prob))
    delivery.deliver(places, computed, hidden)
    if hidden:
        raise typer.Exit(NO_ANSWER)


def _delivery(
    given: FillArguments, loaded: LocalModel, prompts: Prompts, answers_of: Callable[[Infill], FillAnswers]
) -> Delivery:
    return Delivery(
        document=lambda place, result: _document(given, loaded, place, answers_of(result), prompts[place.key]),
        text=lambda place, result: shown_text(result, loaded, given, place.source),
        as_json=given.json,
        is_diff=given.diff,
        is_write=given.write,
    )


def _start(given: FillArguments, loaded: LocalModel, prompts: Prompts, place: Place) -> AnswerStream[Infill]:
    from cg_local.config import SamplingParams

    prompts[place.key] = fill_prompt(given, place, loaded)
    params = SamplingParams(max_tokens=given.max_tokens, **given.sampling, top_logprobs=given.num_shown)
    return loaded.infill(**prompts[place.key].arguments, mode=given.mode.value, params=params, stream=True)


def _loaded(given: FillArguments, num_places: int) -> tuple[LocalModel, int]:
    """Load the model with room for a batch, or, where memory does not hold that, for one answer after the other."""
    from cg_local.candidates import SPARE_TOKENS

    context, limit = given.prompt_tokens(given.model) + given.max_tokens, max(1, min(num_places, MAX_TOGETHER))
    # Room for candidates that share the prompt: their answers, and pages that they share or fill in part.
    spare = (given.candidates - 1) * (given.max_tokens + SPARE_TOKENS)
    arguments = given.model, given.scheme, context, given.threads, given.kv_dtype, given.speculation, spare
    try:
        loaded = load_model(*arguments, num_sequences=limit)
    except CapacityError:
        if limit == 1:
            raise
        loaded, limit = load_model(*arguments), 1
    if given.cache:
        loaded.use_kv_store(kv_store(given.kv_cache_size))
    return loaded, limit


def _document(
    given: FillArguments, model: LocalModel, place: Place, answers: FillAnswers, prompt: FillPrompt
) -> dict[str, object]:
    result = answers.reader
    hidden = {"num_hidden": answers.num_hidden} if given.min_prob > 0 else {}
    return {
        **place.identity,
        "file": place.target.file,
        "line": place.gap.line,
        "col": place.gap.column,
        "model": model.name,
        "scheme": model.scheme,
        "candidates": [candidate_document(each, model, given, place.source) for each in answers.results],
        **hidden,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "truncated": result.truncated,
        **limit_members(prompt, given, truncated=result.truncated),
        "timings": timings(model.load_seconds, result),
        "speculation": speculation_counts(result),
    }
