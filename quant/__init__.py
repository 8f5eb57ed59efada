"""From published weights to a model folder: schemes, methods, streaming conversion, quality report.

This package owns the choice of formats, scales and codes. It reads published weights only through `checkpoint` and
writes only through `model_folder_writer`. Invariant: importing it loads neither NumPy nor Numba; its functions do so
when called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cg_local.quant.options import Options

if TYPE_CHECKING:
    from cg_local.quant.dry_run import Estimate
    from cg_local.quant.report import QuantizationReport
    from cg_local.quant.schemes import QuantizationPlan

__all__ = ["Options", "estimate", "plan", "quantize"]


def quantize(
    source: str | Path,
    destination: str | Path,
    scheme: str | Options = "q4",
    *,
    overwrite: bool = False,
    restart: bool = False,
    is_resumable: bool = True,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    num_threads: int | None = None,
) -> QuantizationReport:
    """Quantize published weights into a model folder, or go on with doing so where an earlier call was interrupted.

    Memory stays below 512 MiB for CodeGemma 2B (gptq: some GiB, by the tokens). The destination appears whole or not at
    all, and its bytes depend on the source, the options and the version of cg-local alone. What an interrupted call has
    done lies beside it, in `.NAME.partial`.

    Args:
        source: folder in the Hugging Face layout, with tokenizer.model.
        destination: folder to create.
        scheme: "q4", "q4s", "q8" or "bf16", or all options: scheme or size, method, importance pack, texts.
        overwrite: replace a model folder at the destination; anything else there is never touched.
        restart: discard what an interrupted call has done.
        is_resumable: False leaves nothing behind when it is interrupted, and is quicker for small models.
        on_progress: called with (bytes done, bytes in all, name of the tensor), bytes of the model folder's tensors.
        on_notice: called with one-line things that a user should be told: of the source, of a pack that does not fit,
            and of interrupted work, that it continues, is begun anew, or is kept.
        num_threads: threads that search; None takes one for each core that this process may use. The result does not
            depend on it.

    Raises:
        CheckpointError, ConfigError: the source cannot be read as published weights.
        CorpusError: texts to calibrate on cannot be read, or are too few.
        QuantizeError: unknown scheme, no tokenizer, weights beyond the format's range, or the destination exists, is
            being written by another process, or cannot be written.
    """
    from cg_local.quant.convert import convert

    return convert(
        Path(source),
        Path(destination),
        _options(scheme),
        overwrite=overwrite,
        restart=restart,
        is_resumable=is_resumable,
        on_progress=on_progress,
        on_notice=on_notice,
        num_threads=num_threads,
    )


def plan(source: str | Path, scheme: str | Options = "q4") -> QuantizationPlan:
    """Say what `quantize` would write: tensors, formats, bytes.

    Raises:
        CheckpointError, ConfigError: the source cannot be read as published weights.
        QuantizeError: as by `quantize`, as far as options are concerned.
    """
    from cg_local.checkpoint import open_checkpoint
    from cg_local.quant.methods import planned

    return planned(open_checkpoint(source), _options(scheme))


def estimate(source: str | Path, scheme: str | Options = "q4", *, num_threads: int | None = None) -> Estimate:
    """Say how long `quantize` will take and how much memory, measured on a sample of the source.

    Args:
        source, scheme, num_threads: as for `quantize`; the method gptq cannot be estimated.

    Raises:
        CheckpointError, ConfigError: the source cannot be read as published weights.
        QuantizeError: as by `quantize`, or the method is gptq.
    """
    from cg_local.checkpoint import open_checkpoint
    from cg_local.errors import QuantizeError
    from cg_local.quant.dry_run import measure

    options = _options(scheme)
    if options.method == "gptq":
        raise QuantizeError("how long gptq takes is not known from a sample; leave --dry-run out")
    return measure(open_checkpoint(source), options, num_threads)


def _options(scheme: str | Options) -> Options:
    return Options(scheme) if isinstance(scheme, str) else scheme
