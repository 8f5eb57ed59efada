"""`cg-local quantize`: published weights to a model folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import options
from cg_local.cli.published import checkpoint_path, progress_bar
from cg_local.cli.quantize_conflicts import conflict
from cg_local.cli.render import notice, write_stdout

if TYPE_CHECKING:
    from cg_local.quant import Options
    from cg_local.quant.dry_run import Estimate
    from cg_local.quant.report import QuantizationReport
    from cg_local.quant.schemes import QuantizationPlan


class Method(str, Enum):
    """How codes and scales are found: from the weights alone, with an importance pack, or with texts."""

    fast = "fast"
    imp = "imp"
    gptq = "gptq"


NOT_ESTIMATED = "time and memory of gptq are not estimated: the model reads its texts whole; fewer --tokens need less\n"

Destination = Annotated[Path, typer.Argument(metavar="DEST", help="Model folder to write.")]
Scheme = Annotated[options.Scheme, typer.Option(help="4 bits, 8 bits, or the weights as they are.")]
BitsPerWeight = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--bits-per-weight", metavar="BITS", help="Instead of a scheme: the best formats in this size."),
]
MethodOption = Annotated[
    Optional[Method],  # noqa: UP045
    typer.Option("--method", help="How codes are found; default: imp where there is an importance pack, else fast."),
]
Importance = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE", help="Pack of `cg-local calibrate`; default: importance.safetensors in SOURCE."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only show what would be written; time and memory from a sample (not of gptq)."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model folder at DEST.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Discard what an interrupted run has done, instead of continuing it.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Read the result back and compare its digests.")]


def quantize(
    command: typer.Context,
    source: options.PublishedSource,
    destination: Destination,
    scheme: Scheme = options.Scheme.q4,
    bits_per_weight: BitsPerWeight = None,
    method: MethodOption = None,
    importance: Importance = None,
    corpus: options.Corpus = None,
    tokens: options.CalibrationTokens = 16384,
    window: options.WindowTokens = 512,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    verify: Verify = False,
    threads: options.QuantizerThreads = None,
) -> None:
    """Turn published weights (Hugging Face layout, or GGUF) into a model folder that cg-local runs.

    fast looks at the weights alone; imp also weighs and feeds back errors by the pack that `cg-local calibrate` made of
    these very weights;
    gptq lets the model read texts (code, gaps, prose, chat of --corpus; their names and digests go into the model).
    --bits-per-weight gives bits to the matrices that need them.

    Needs at most 512 MiB of memory for 2B (gptq: 4 GiB). DEST appears whole or not at all; an interrupted run, killed
    ones too, is continued by the same command. The result is the same bytes, whatever happened on the way.

    \b
    Examples:
      cg-local quantize ~/Downloads/codegemma-2b ~/models/codegemma-2b-q4
      cg-local quantize ~/Downloads/codegemma-2b ~/models/codegemma-2b-q8 --scheme q8 --verify
      cg-local quantize ~/Downloads/codegemma-2b-f16.gguf ~/models/codegemma-2b-q4
      cg-local quantize ~/Downloads/codegemma-2b ~/models/codegemma-2b-q4s --scheme q4s --method gptq
      cg-local quantize ~/Downloads/codegemma-7b ~/models/codegemma-7b-4bit --bits-per-weight 4.5 --dry-run
    """
    from cg_local.quant import Options

    if message := conflict(options.typed_parameters(command, with_defaults=True), method, scheme.value):
        options.refuse_usage(message)
    name = method.value if method else None
    how = Options(scheme.value, name, importance, bits_per_weight, corpus, tokens, window)
    if dry_run:
        _show_plan(checkpoint_path(source), how, threads)
        return
    report = _quantized(checkpoint_path(source), destination, how, overwrite, restart, threads)
    if verify:
        from cg_local.model_folder import open_model_folder

        open_model_folder(destination, verify=True)
    write_stdout(_report_text(report, is_verified=verify))


def _show_plan(checkpoint: Path, how: Options, threads: int | None) -> None:
    from cg_local import quant

    estimate = None if how.method == "gptq" else quant.estimate(checkpoint, how, num_threads=threads)
    plan = quant.plan(checkpoint, how) if estimate is None else estimate.plan
    for text in plan.notices:
        notice(text)
    told = NOT_ESTIMATED if estimate is None else _estimate_text(estimate)
    write_stdout(_plan_text(plan) + told)


def _quantized(
    checkpoint: Path, destination: Path, how: Options, overwrite: bool, restart: bool, threads: int | None
) -> QuantizationReport:
    from cg_local import quant

    with progress_bar() as on_progress:
        return quant.quantize(
            checkpoint,
            destination,
            how,
            overwrite=overwrite,
            restart=restart,
            on_progress=on_progress,
            on_notice=notice,
            num_threads=threads,
        )


def _plan_text(plan: QuantizationPlan) -> str:
    """One line for each format, and the sum."""
    from cg_local.memory import readable_size

    lines = []
    for format in dict.fromkeys(tensor.format for tensor in plan.tensors):
        sizes = [tensor.num_bytes for tensor in plan.tensors if tensor.format == format]
        lines.append(f"{format:<8}{len(sizes):>5} tensors  {readable_size(sum(sizes)):>10}\n")
    total = f"{plan.scheme:<8}{len(plan.tensors):>5} tensors  {readable_size(plan.num_bytes):>10}"
    return "".join(lines) + f"{total}  {plan.bits_per_weight:.2f} bits a weight\n"


def _estimate_text(estimate: Estimate) -> str:
    from cg_local.memory import readable_size

    threads = f"{estimate.num_threads} thread{'s' if estimate.num_threads > 1 else ''}"
    memory = f", at most {readable_size(estimate.peak_bytes)} of memory" if estimate.peak_bytes is not None else ""
    return f"about {_readable_time(estimate.seconds)} on {threads}{memory}\n"


def _readable_time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _report_text(report: QuantizationReport, *, is_verified: bool) -> str:
    from cg_local.memory import readable_size

    worst = min(report.tensors, key=lambda tensor: tensor.sqnr_db)
    quality = "exact" if worst.relative_error == 0 else f"noisiest {worst.name} at {worst.sqnr_db:.1f} dB"
    return (
        f"{report.destination}: {report.scheme}, {readable_size(report.num_bytes)}, {report.bits_per_weight:.2f} bits "
        f"a weight, {report.elapsed_seconds:.1f} s; {quality}{'; verified' if is_verified else ''}\n"
    )
