"""`cg-local fill`: the gap at a cursor, filled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cg_local.cli import fill_options, options
from cg_local.cli.render import (
    AnswerWriter,
    end_answer,
    follow,
    print_json,
    rounded_logprob,
    speculation_counts,
    timings,
)
from cg_local.cli.session import keep_fill, kv_store, load_model, read_text
from cg_local.infill.cursor import STANDARD_INPUT, Gap, SourceText, Target, locate, parse_target

if TYPE_CHECKING:
    from cg_local.answers import Infill
    from cg_local.cli.fill_options import FillArguments
    from cg_local.runtime import LocalModel


def fill(
    target: fill_options.Target,
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
    json: options.Json = False,
) -> None:
    """Fill the gap at a cursor in a file; the text goes to stdout, the file is not touched.

    FILE:LINE is the end of that line, FILE:LINE:COL the place before its COL-th character, both counted from 1.
    FILE:FIRST-LAST writes these lines anew. With -:LINE the text comes from standard input.

    \b
    Examples:
      cg-local fill src/parser.py:42
      cg-local fill src/parser.py:42:9 --mode line
      cg-local fill src/parser.py:10-14 --json
      git show HEAD:a.py | cg-local fill -:7 --path a.py
    """
    _fill(fill_options.FillArguments(**locals()))


def _fill(given: FillArguments) -> None:
    from cg_local.config import SamplingParams

    place = _parse(given.target)
    source = read_text(place.file)
    gap = locate(source, place)
    params = SamplingParams(**given.sampling)
    context = given.context_tokens + given.max_tokens
    loaded = load_model(given.model, given.scheme, context, given.threads, given.kv_dtype, given.speculation)
    if given.cache:
        loaded.use_kv_store(kv_store(given.kv_cache_size))
    stream = loaded.infill(
        gap.prefix,
        gap.suffix,
        given.path or _path_for_model(place.file),
        mode=given.mode.value,
        order=given.order.value,
        params=params,
        stream=True,
    )
    result = follow(stream, AnswerWriter(source.newline, is_silent=given.json))
    if given.json:
        print_json(_document(place, gap, source, loaded, result))
    keep_fill(loaded, result)
    end_answer(result, is_quiet=given.json)


def _parse(target: str) -> Target:
    try:
        return parse_target(target)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FILE:LINE[:COL]") from error


def _path_for_model(file: str) -> str | None:
    """The path as the model knows paths: relative, with slashes; of a file elsewhere only the name."""
    if file == STANDARD_INPUT:
        return None
    path = Path(file)
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except (ValueError, OSError):
        return path.name


def _document(place: Target, gap: Gap, source: SourceText, model: LocalModel, result: Infill) -> dict[str, object]:
    candidate = {
        "text": result.text.replace("\n", source.newline),
        "stop_reason": result.stop_reason,
        "mean_logprob": rounded_logprob(result.mean_logprob),
        "num_tokens": result.num_tokens,
        "trimmed": list(result.trimmed),
    }
    return {
        "file": place.file,
        "line": gap.line,
        "col": gap.column,
        "model": model.name,
        "scheme": model.scheme,
        "candidates": [candidate],
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "truncated": result.truncated,
        "timings": timings(model.load_seconds, result),
        "speculation": speculation_counts(result),
    }
