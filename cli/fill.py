"""`cg-local fill`: the gap at a cursor, filled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import typer

from cg_local.cli import fill_options, options
from cg_local.cli.fill_answers import FillAnswers, ask, candidate_document, choose, refuse_unsure, show
from cg_local.cli.fill_conflicts import conflict
from cg_local.cli.fill_context import compilation_watched, fill_prompt, remember_speed, show_prompt
from cg_local.cli.fill_delivery import MAX_TOGETHER, Document, compute_together, deliver
from cg_local.cli.fill_places import Place, read_places, without_refused
from cg_local.cli.render import end_answer, print_json, speculation_counts, timings
from cg_local.cli.session import keep_fill, kv_store, load_model
from cg_local.errors import CapacityError

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Infill
    from cg_local.cli.fill_options import FillArguments
    from cg_local.runtime import LocalModel

    Output = Callable[[dict[int, Infill | str], Document | None], None]


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
    json: options.Json = False,
) -> None:
    """Fill the gap at a cursor in a file; the text goes to stdout, the file is not touched without --write.

    FILE:LINE is the end of that line, FILE:LINE:COL the place before its COL-th character, both counted from 1.
    FILE:FIRST-LAST writes these lines anew. With -:LINE the text comes from standard input, with - alone a list of
    places. What grep -n, compilers and stack traces print is taken as it is. Several places are computed together.

    With -n, a terminal lets you choose with the arrow keys (Esc: status 130). A pipe gets the best one.

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
    if message := conflict(options.typed_parameters(command), candidates):
        options.refuse_usage(message)
    _fill(fill_options.FillArguments(**given))


def _fill(given: FillArguments) -> None:
    if given.undo:
        from cg_local.cli.fill_changes import undo_writes

        undo_writes(given.targets or [], is_dry=given.diff, as_json=given.json)
        return
    places = read_places(given.targets or [], given.path)
    given.check_several(is_single=places.is_single)
    if given.write:
        from cg_local.cli.fill_changes import check_writable

        places = without_refused(places, check_writable(places.good))
    output = partial(deliver, places, as_json=given.json, is_diff=given.diff, is_write=given.write)
    if not places.good:
        output({}, None)
        return
    loaded, limit = _loaded(given, len(places.good))
    if places.is_single:
        _fill_one(given, loaded, places.good[0], output)
        return
    answers = compute_together(places, partial(_start, given, loaded), limit)
    output(answers, lambda place, result: _document(given, loaded, place, FillAnswers([result], result)))


def _fill_one(given: FillArguments, loaded: LocalModel, place: Place, output: Output) -> None:
    prompt = fill_prompt(given, place, loaded)
    if given.show_prompt:
        show_prompt(prompt, loaded, as_json=given.json)
        return
    with compilation_watched() as has_compiled:
        answers = ask(loaded, prompt, given, place.source)
    keep_fill(loaded, answers.reader)
    remember_speed(given, loaded, answers.reader, has_compiled=has_compiled())
    if given.diff or given.write:
        chosen = choose(answers, place.gap, given, place.source)
        if chosen is not None:
            output({0: chosen}, lambda place, _: _document(given, loaded, place, answers))
    elif given.json:
        print_json(_document(given, loaded, place, answers))
    else:
        show(answers, loaded, place.gap, given, place.source)
    end_answer(answers.reader, is_quiet=given.json)
    refuse_unsure(answers, given.min_prob)


def _start(given: FillArguments, loaded: LocalModel, place: Place) -> AnswerStream[Infill]:
    from cg_local.config import SamplingParams

    arguments = fill_prompt(given, place, loaded).arguments
    params = SamplingParams(max_tokens=given.max_tokens, **given.sampling)
    return loaded.infill(**arguments, mode=given.mode.value, params=params, stream=True)


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


def _document(given: FillArguments, model: LocalModel, place: Place, answers: FillAnswers) -> dict[str, object]:
    result = answers.reader
    hidden = {"num_hidden": answers.num_hidden} if given.min_prob > 0 else {}
    return {
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
        "timings": timings(model.load_seconds, result),
        "speculation": speculation_counts(result),
    }
