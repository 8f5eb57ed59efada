"""`cg-local eval`: losses of texts, and answers beside the expected ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cg_local.cli import batch, options
from cg_local.cli.render import print_json, write_stdout
from cg_local.cli.session import sampling


def eval(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Requests, one JSON document a line.")],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FILE.jsonl", help="Write a result for each request here."),
    ] = None,
    model: options.Model = "nano",
    scheme: options.OptionalScheme = None,
    backend: batch.BackendOption = batch.BackendName.engine,
    mesh: batch.Mesh = None,
    dtype: batch.DtypeOption = None,
    batch_size: batch.BatchSize = None,
    max_tokens: options.MaxTokens = 128,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--context", min=32, help="Tokens of prompt and answer, or of a text's window, at most."),
    ] = None,
    threads: options.Threads = None,
    kv_dtype: options.OptionalKvDtype = None,
    overwrite: batch.Overwrite = False,
    coordinator: batch.Coordinator = None,
    num_processes: batch.NumProcesses = None,
    process_id: batch.ProcessId = None,
    json: options.Json = False,
) -> None:
    """Evaluate a model on a file of requests: mean loss in nats a token, perplexity, exact match.

    A line {"text"} is scored. A line {"prompt", "expected"} or {"prefix", "suffix", "expected"} is answered (greedy)
    and compared with "expected" (or "canonical", "canonical_solution") but for white space at the ends, and the
    expected answer is scored. A run that was cut off goes on where it was when --output is given.
    `cg-local eval quality` compares models with their published weights instead (a file of that name: ./quality).

    \b
    Examples:
      cg-local eval held-out.jsonl --model ~/models/codegemma-2b-q4
      cg-local eval tasks.jsonl --backend jax --mesh 2x4 --dtype bfloat16 --output results.jsonl
    """
    from cg_local.evaluation import summary

    processes = (coordinator, num_processes, process_id)
    computer = batch.Computer(model, scheme, backend, mesh, dtype, batch_size, processes, threads, kv_dtype)
    params = sampling(max_tokens, None, 0.0, top_k=0, top_p=1.0, min_p=0.0, penalty=1.0)
    results = batch.run_requests(
        file, output, computer, params, overwrite=overwrite, max_context=context, is_evaluation=True
    )
    if not batch.is_first(computer):
        return
    figures = {"file": str(file), "model": model, "backend": backend.value, **summary(results)}
    if json:
        print_json(figures)
    else:
        write_stdout(_table(figures))


def _table(figures: dict[str, object]) -> str:
    rows = [("requests", "num_requests"), ("tokens scored", "num_scored"), ("mean loss (nats)", "mean_nll")]
    rows += [("perplexity", "perplexity"), ("answers", "num_answers"), ("exact match", "exact_match")]
    lines = []
    for label, key in rows:
        value = figures[key]
        text = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else "-"
        lines.append(f"{label:<17} {text}\n")
    return "".join(lines)
