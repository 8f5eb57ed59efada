"""From published weights to a model folder: schemes, the data-free search, streaming conversion, quality report.

This package owns the choice of formats, scales and codes. It reads published weights only through `checkpoint` and
writes only through `model_folder_writer`. Invariant: importing it loads neither NumPy nor Numba; its functions do so
when called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cg_local.quant.dry_run import Estimate
    from cg_local.quant.report import QuantizationReport
    from cg_local.quant.schemes import QuantizationPlan

__all__ = ["estimate", "plan", "quantize"]


def quantize(
    source: str | Path,
    destination: str | Path,
    scheme: str = "q4",
    *,
    overwrite: bool = False,
    restart: bool = False,
    is_resumable: bool = True,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    num_threads: int | None = None,
) -> QuantizationReport:
    """Quantize published weights into a model folder, or go on with doing so where an earlier call was interrupted.

    Memory stays below 512 MiB for CodeGemma 2B. The destination appears whole or not at all, and its bytes depend on
    the source, the scheme and the version of cg-local alone. What an interrupted call has done lies beside it, in
    `.NAME.partial`.

    Args:
        source: folder in the Hugging Face layout, with tokenizer.model.
        destination: folder to create.
        scheme: "q4", "q8" or "bf16".
        overwrite: replace a model folder at the destination; anything else there is never touched.
        restart: discard what an interrupted call has done.
        is_resumable: False leaves nothing behind when it is interrupted, and is quicker for small models.
        on_progress: called with (bytes done, bytes in all, name of the tensor), bytes of the model folder's tensors.
        on_notice: called with one line about interrupted work: that it continues, is begun anew, or is kept.
        num_threads: threads that search; None takes one for each core that this process may use. The result does not
            depend on it.

    Raises:
        CheckpointError, ConfigError: the source cannot be read as published weights.
        QuantizeError: unknown scheme, no tokenizer, weights beyond the format's range, or the destination exists, is
            being written by another process, or cannot be written.
    """
    from cg_local.quant.convert import convert

    return convert(
        Path(source),
        Path(destination),
        scheme,
        overwrite=overwrite,
        restart=restart,
        is_resumable=is_resumable,
        on_progress=on_progress,
        on_notice=on_notice,
        num_threads=num_threads,
    )


def plan(source: str | Path, scheme: str = "q4") -> QuantizationPlan:
    """Say what `quantize` would write: tensors, formats, bytes.

    Raises:
        CheckpointError, ConfigError: the source cannot be read as published weights.
        QuantizeError: the scheme is unknown.
    """
    from cg_local.checkpoint import open_checkpoint
    from cg_local.quant.schemes import plan_checkpoint

    return plan_checkpoint(open_checkpoint(source), scheme)


def estimate(source: str | Path, scheme: str = "q4", *, num_threads: int | None = None) -> Estimate:
    """Say how long `quantize` will take and how much memory, measured on a sample of the source.

    Args:
        source, scheme, num_threads: as for `quantize`.

    Raises:
        CheckpointError, ConfigError: the source cannot be read as published weights.
        QuantizeError: the scheme is unknown, or weights are beyond the format's range.
    """
    from cg_local.checkpoint import open_checkpoint
    from cg_local.quant.dry_run import measure
    from cg_local.quant.schemes import plan_checkpoint

    checkpoint = open_checkpoint(source)
    return measure(checkpoint, plan_checkpoint(checkpoint, scheme), num_threads)
