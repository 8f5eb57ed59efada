"""`cg-local complete`: a text, continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import batch, options
from cg_local.cli.render import (
    AnswerWriter,
    end_answer,
    follow,
    print_json,
    rounded_logprob,
    speculation_counts,
    timings,
)
from cg_local.cli.session import load_model, read_text, sampling

if TYPE_CHECKING:
    from cg_local.answers import Completion
    from cg_local.config import SamplingParams
    from cg_local.runtime import LocalModel


def complete(
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="The text to continue; - is standard input.")] = "-",
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
    json: options.Json = False,
    requests: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--input", "-i", metavar="FILE.jsonl", help="Answer a file of requests instead."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FILE.jsonl", help="With --input: write the results here."),
    ] = None,
    overwrite: batch.Overwrite = False,
    backend: batch.BackendOption = batch.BackendName.engine,
    mesh: batch.Mesh = None,
    dtype: batch.DtypeOption = None,
    batch_size: batch.BatchSize = None,
    coordinator: batch.Coordinator = None,
    num_processes: batch.NumProcesses = None,
    process_id: batch.ProcessId = None,
) -> None:
    """Continue a text, without a prompt format; what is written after it goes to stdout.

    With --input, each line of a file is a request: {"prompt"} is continued, {"prefix", "suffix"} filled ("path" says
    which file the gap is in). Each result is a line of its own in the same order; a run that was cut off goes on where
    it was when --output is given.

    \b
    Examples:
      printf 'def add(a, b):\\n' | cg-local complete
      cg-local complete notes.py --max-tokens 64 --temperature 0.4 --seed 7
      cg-local complete --input prompts.jsonl --output answers.jsonl --backend jax --mesh 2x4
    """
    params = sampling(max_tokens, seed, temperature, top_k=top_k, top_p=top_p, min_p=min_p, penalty=repetition_penalty)
    processes = (coordinator, num_processes, process_id)
    computer = batch.Computer(model, scheme, backend, mesh, dtype, batch_size, processes, threads, kv_dtype)
    if requests is not None or output is not None or backend != batch.BackendName.engine:
        _answer_requests(file, requests, output, computer, params, overwrite, context_tokens + max_tokens)
        return
    computer.check()
    source = read_text(file)
    loaded = load_model(model, scheme, context_tokens + max_tokens, threads, kv_dtype, speculation)
    stream = loaded.complete(source.text, params=params, stream=True)
    result = follow(stream, AnswerWriter(source.newline, is_silent=json))
    if json:
        print_json(_document(file, source.newline, loaded, result))
    end_answer(result, is_quiet=json)


def _answer_requests(
    file: str,
    requests: Path | None,
    output: Path | None,
    computer: batch.Computer,
    params: SamplingParams,
    overwrite: bool,
    max_context: int,
) -> None:
    if requests is None:
        raise typer.BadParameter("needs a file of requests: add --input FILE.jsonl", param_hint="--backend, --output")
    if file != "-":
        raise typer.BadParameter("give either a text or --input", param_hint="--input")
    batch.run_requests(
        requests, output, computer, params, overwrite=overwrite, max_context=max_context, is_evaluation=False
    )


def _document(file: str, newline: str, model: LocalModel, result: Completion) -> dict[str, object]:
    return {
        "file": file,
        "model": model.name,
        "scheme": model.scheme,
        "text": result.text.replace("\n", newline),
        "stop_reason": result.stop_reason,
        "mean_logprob": rounded_logprob(result.mean_logprob),
        "num_tokens": result.num_tokens,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "truncated": result.truncated,
        "timings": timings(model.load_seconds, result),
        "speculation": speculation_counts(result),
    }
