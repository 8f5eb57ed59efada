"""From published weights to a model folder: schemes, the data-free search, streaming conversion, quality report.

This package owns the choice of formats, scales and codes. It reads published weights only through `checkpoint` and
writes only through `model_folder_writer`. Invariant: importing it loads neither NumPy nor Numba; `quantize` and `plan`
do so when called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cg_local.quant.report import QuantizationReport
    from cg_local.quant.schemes import QuantizationPlan

__all__ = ["plan", "quantize"]


def quantize(
    source: str | Path,
    destination: str | Path,
    scheme: str = "q4",
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
    num_threads: int | None = None,
) -> QuantizationReport:
    """Quantize published weights into a model folder.

    Memory stays below 1 GiB for any model. The destination appears whole or not at all.

    Args:
        source: folder in the Hugging Face layout, with tokenizer.model.
        destination: folder to create.
        scheme: "q4", "q8" or "bf16".
        overwrite: replace a model folder at the destination; anything else there is never touched.
        on_progress: called with (bytes done, bytes in all, name of the tensor), bytes of the model folder's tensors.
        num_threads: threads that search; None takes one for each core that this process may use. The result does not
            depend on it.

    Raises:
        CheckpointError, ConfigError: the source cannot be read as published weights.
        QuantizeError: unknown scheme, no tokenizer, weights beyond the format's range, or the destination exists, is
            being written by another process, or cannot be written.
    """
    from cg_local.quant.convert import convert

    return convert(
        Path(source), Path(destination), scheme, overwrite=overwrite, on_progress=on_progress, num_threads=num_threads
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
