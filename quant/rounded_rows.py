"""What is left of weights after rounding, in memory: for choosing formats before anything is written.

This file owns nothing but the way through `encode` and `packing` and back, and the measure of the error. Invariant: the
values are those that a model folder with these rows would hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cg_local.packing import CODEBOOK_SIZES, PackedMatrix, dequantize, pack_codebook
from cg_local.quant.encode import Guide, encode_rows, learn_codebook
from cg_local.quant.importance import InputStatistics

Floats = NDArray[np.float32]


def rounded(format: str, x: Floats, guide: Guide | None) -> Floats:
    """Return rows after quantization to a format, float32 [rows, columns]; the codebook is learned from the rows."""
    book = learn_codebook(x, format, guide) if format in CODEBOOK_SIZES else None
    parts = dict(encode_rows(format, x, book, guide).parts)
    if book is not None:
        parts["codebook"] = pack_codebook(book)
    return dequantize(PackedMatrix(format, (len(x), x.shape[1]), parts))


def relative_error(x: Floats, y: Floats, statistics: InputStatistics | None) -> float:
    """Return the expected squared error of the outputs over their squares when rows y stand for rows x; 0 for zeros.

    Args:
        x, y: float32 [rows, columns].
        statistics: of the inputs; None: uncorrelated ones of the same size.
    """
    energy = _output_squares(x.astype(np.float64), statistics)
    return _output_squares(y.astype(np.float64) - x, statistics) / energy if energy else 0.0


def _output_squares(rows: NDArray[np.float64], statistics: InputStatistics | None) -> float:
    if statistics is None:
        return float((rows * rows).sum())
    diagonal, directions = statistics.as_doubles
    return float((rows * rows @ diagonal).sum() + ((rows @ directions) ** 2).sum())
