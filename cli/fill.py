"""`cg-local fill`: the gap at a cursor, filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cg_local.cli import fill_options, options
from cg_local.cli.fill_answers import FillAnswers, ask, candidate_document, refuse_unsure, show
from cg_local.cli.fill_context import fill_prompt, remember_speed, show_prompt
from cg_local.cli.render import end_answer, print_json, speculation_counts, timings
from cg_local.cli.session import keep_fill, kv_store, load_model, read_text
from cg_local.infill.cursor import Gap, SourceText, Target, locate, parse_target

# As `candidates.SPARE_TOKENS`, whose file would bring NumPy with it.
_SPARE_TOKENS = 32

if TYPE_CHECKING:
    from cg_local.cli.fill_options import FillArguments
    from cg_local.runtime import LocalModel


def fill(
    target: fill_options.Target,
    path: fill_options.Path = None,
    mode: fill_options.ModeOption = options.Mode.auto,
    order: fill_options.OrderOption = options.Order.psm,
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
    json: options.Json = False,
) -> None:
    """Fill the gap at a cursor in a file; the text goes to stdout, the file is not touched.

    FILE:LINE is the end of that line, FILE:LINE:COL the place before its COL-th character, both counted from 1.
    FILE:FIRST-LAST writes these lines anew. With -:LINE the text comes from standard input.

    With -n, a terminal lets you choose with the arrow keys: Enter takes the candidate, Esc leaves with status 130 and
    nothing done. A pipe gets the best one. Best is what leaves the file without syntax errors, then what is most
    probable.

    \b
    Examples:
      cg-local fill src/parser.py:42
      cg-local fill src/parser.py:42:9 --mode line
      cg-local fill src/parser.py:10-14 --json
      cg-local fill src/parser.py:42 -n 3
      cg-local fill src/parser.py:42 --explain
      git show HEAD:a.py | cg-local fill -:7 --path a.py
      cg-local fill src/parser.py:42 --context repo --show-prompt
    """
    _fill(fill_options.FillArguments(**locals()))


def _fill(given: FillArguments) -> None:
    place = _parse(given.target)
    source = read_text(place.file)
    gap = locate(source, place)
    context = given.prompt_tokens(given.model) + given.max_tokens
    # Room for candidates that share the prompt: their answers, and pages that they share or fill in part.
    spare = (given.candidates - 1) * (given.max_tokens + _SPARE_TOKENS)
    loaded = load_model(given.model, given.scheme, context, given.threads, given.kv_dtype, given.speculation, spare)
    if given.cache:
        loaded.use_kv_store(kv_store(given.kv_cache_size))
    prompt = fill_prompt(given, gap, source, loaded)
    if given.show_prompt:
        show_prompt(prompt, loaded, as_json=given.json)
        return
    answers = ask(loaded, prompt, given, source)
    if given.json:
        print_json(_document(place, gap, source, loaded, answers, given))
    keep_fill(loaded, answers.reader)
    remember_speed(given, loaded, answers.reader)
    if not given.json:
        show(answers, loaded, gap, given, source)
    end_answer(answers.reader, is_quiet=given.json)
    refuse_unsure(answers, given.min_prob)


def _parse(target: str) -> Target:
    try:
        return parse_target(target)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FILE:LINE[:COL]") from error


def _document(
    place: Target, gap: Gap, source: SourceText, model: LocalModel, answers: FillAnswers, given: FillArguments
) -> dict[str, object]:
    result = answers.reader
    hidden = {"num_hidden": answers.num_hidden} if given.min_prob > 0 else {}
    return {
        "file": place.file,
        "line": gap.line,
        "col": gap.column,
        "model": model.name,
        "scheme": model.scheme,
        "candidates": [candidate_document(each, model, given, source) for each in answers.results],
        **hidden,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "truncated": result.truncated,
        "timings": timings(model.load_seconds, result),
        "speculation": speculation_counts(result),
    }
