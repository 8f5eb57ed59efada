"""`cg-local fill`: the gap at a cursor, filled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import options
from cg_local.cli.render import (
    AnswerWriter,
    end_answer,
    follow,
    print_json,
    rounded_logprob,
    speculation_counts,
    timings,
    write_at_once,
)
from cg_local.cli.session import load_model, read_text, sampling
from cg_local.infill.cursor import STANDARD_INPUT, Gap, SourceText, Target, locate, parse_target

if TYPE_CHECKING:
    from cg_local.answers import Infill
    from cg_local.runtime import LocalModel


def fill(
    target: Annotated[
        str, typer.Argument(metavar="FILE:LINE[:COL]", help="Where to write; or FILE:FIRST-LAST, or -:LINE.")
    ],
    path: Annotated[
        Optional[str], typer.Option("--path", help="The file's name for the model; default: FILE.")  # noqa: UP045
    ] = None,
    mode: Annotated[options.Mode, typer.Option(help="How much to write: the line, the block, or what fits.")] = (
        options.Mode.auto
    ),
    order: Annotated[options.Order, typer.Option(help="Order of the prompt; spm is experimental.")] = options.Order.psm,
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
    untrimmed: options.Untrimmed = False,
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
    place = _parse(target)
    source = read_text(place.file)
    gap = locate(source, place)
    params = sampling(max_tokens, seed, temperature, top_k=top_k, top_p=top_p, min_p=min_p, penalty=repetition_penalty)
    loaded = load_model(model, scheme, context_tokens + max_tokens, threads, kv_dtype, speculation)
    stream = loaded.infill(
        gap.prefix,
        gap.suffix,
        path or _path_for_model(place.file),
        mode=mode.value,
        order=order.value,
        params=params,
        stream=True,
    )
    result = follow(stream, AnswerWriter(source.newline, is_silent=json or untrimmed))
    if json:
        print_json(_document(place, gap, source, loaded, result, untrimmed))
    elif untrimmed:
        write_at_once(result.untrimmed, source.newline)
    end_answer(result, is_quiet=json)


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


def _document(
    place: Target, gap: Gap, source: SourceText, model: LocalModel, result: Infill, untrimmed: bool
) -> dict[str, object]:
    candidate: dict[str, object] = {
        "text": result.text.replace("\n", source.newline),
        "stop_reason": result.stop_reason,
        "mean_logprob": rounded_logprob(result.mean_logprob),
        "num_tokens": result.num_tokens,
        "trimmed": list(result.trimmed),
    }
    if untrimmed:
        candidate["untrimmed"] = result.untrimmed
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
