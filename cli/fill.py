"""`cg-local fill`: the gap at a cursor, filled."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cg_local.cli import fill_options, options
from cg_local.cli.fill_answers import MAX_TOGETHER, compute_together, deliver
from cg_local.cli.fill_places import Place, read_places, without_refused
from cg_local.cli.render import AnswerWriter, end_answer, follow, rounded_logprob, speculation_counts, timings
from cg_local.cli.session import keep_fill, kv_store, load_model
from cg_local.errors import CapacityError

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Infill
    from cg_local.cli.fill_options import FillArguments
    from cg_local.runtime import LocalModel


def fill(
    targets: fill_options.Targets = None,
    path: fill_options.Path = None,
    mode: fill_options.ModeOption = options.Mode.auto,
    order: fill_options.OrderOption = options.Order.psm,
    model: options.Model = "nano",
    scheme: options.OptionalScheme = None,
    max_tokens: options.MaxTokens = 128,
    context_tokens: options.ContextTokens = 2048,
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
    diff: fill_options.Diff = False,
    write: fill_options.Write = False,
    undo: fill_options.Undo = False,
    json: options.Json = False,
) -> None:
    """Fill the gap at a cursor in a file; the text goes to stdout, the file is not touched without --write.

    FILE:LINE is the end of that line, FILE:LINE:COL the place before its COL-th character, both counted from 1.
    FILE:FIRST-LAST writes these lines anew. With -:LINE the text comes from standard input, with - alone a list of
    places. What grep -n and compilers print is taken as it is. Several places are computed together.

    \b
    Examples:
      cg-local fill src/parser.py:42
      cg-local fill src/parser.py:42:9 --mode line
      cg-local fill src/parser.py:10-14 --json
      cg-local fill src/parser.py:42 --write --diff
      cg-local fill --undo
      cg-local fill --undo 3 src/parser.py
      grep -n 'raise NotImplementedError' src/*.py | cg-local fill - --diff
      git show HEAD:a.py | cg-local fill -:7 --path a.py
    """
    _fill(fill_options.FillArguments(**locals()))


def _fill(given: FillArguments) -> None:
    if given.undo:
        from cg_local.cli.fill_changes import undo_writes

        undo_writes(given.targets or [], is_dry=given.diff, as_json=given.json)
        return
    places = read_places(given.targets or [], given.path)
    if given.write:
        from cg_local.cli.fill_changes import check_writable

        places = without_refused(places, check_writable(places.good))
    output = partial(deliver, places, as_json=given.json, is_diff=given.diff, is_write=given.write)
    if not places.good:
        output({}, None)
        return
    loaded, limit = _loaded(given, len(places.good))
    start = partial(_start, given, loaded)
    if not places.is_single:
        output(compute_together(places, start, limit), partial(_document, loaded))
        return
    place, is_silent = places.good[0], given.json or given.diff or given.write
    result = follow(start(place), AnswerWriter(place.source.newline, is_silent=is_silent))
    if is_silent:
        output({0: result}, partial(_document, loaded))
    keep_fill(loaded, result)
    end_answer(result, is_quiet=given.json)


def _start(given: FillArguments, loaded: LocalModel, place: Place) -> AnswerStream[Infill]:
    from cg_local.config import SamplingParams

    return loaded.infill(
        place.gap.prefix,
        place.gap.suffix,
        place.path,
        mode=given.mode.value,
        order=given.order.value,
        params=SamplingParams(**given.sampling),
        stream=True,
    )


def _loaded(given: FillArguments, num_places: int) -> tuple[LocalModel, int]:
    """Load the model with room for a batch, or, where memory does not hold that, for one answer after the other."""
    context, limit = given.context_tokens + given.max_tokens, max(1, min(num_places, MAX_TOGETHER))
    arguments = given.model, given.scheme, context, given.threads, given.kv_dtype, given.speculation
    try:
        loaded = load_model(*arguments, num_sequences=limit)
    except CapacityError:
        if limit == 1:
            raise
        loaded, limit = load_model(*arguments), 1
    if given.cache:
        loaded.use_kv_store(kv_store(given.kv_cache_size))
    return loaded, limit


def _document(model: LocalModel, place: Place, result: Infill) -> dict[str, object]:
    candidate = {
        "text": result.text.replace("\n", place.source.newline),
        "stop_reason": result.stop_reason,
        "mean_logprob": rounded_logprob(result.mean_logprob),
        "num_tokens": result.num_tokens,
        "trimmed": list(result.trimmed),
    }
    return {
        "file": place.target.file,
        "line": place.gap.line,
        "col": place.gap.column,
        "model": model.name,
        "scheme": model.scheme,
        "candidates": [candidate],
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "truncated": result.truncated,
        "timings": timings(model.load_seconds, result),
        "speculation": speculation_counts(result),
    }
