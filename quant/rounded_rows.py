"""What is left of weights after rounding, in memory: for choosing formats before anything is written.

This file owns nothing but the way through `encode` and `packing` and back, and the measure of the error. Invariant: the
values are those that a model folder with these rows would hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cg_local.packing import CODEBOOK_SIZES, PackedMatrix, dequantize, pack_codebook
from cg_local.quant.encode import Guide, encode_rows, learn_codebook
from cg_local.quant.importance import InputStatistics

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rounding:
    """How the rows of one matrix are rounded.

    Attributes:
        format: of packing.FORMATS.
        book: codebook of the matrix, where the format has one.
        guide: what is known of the inputs; None: nothing.
    """

    format: str
    book: NDArray[np.int64] | None
    guide: Guide | None

    @classmethod
    def learned(cls, format: str, sample: Floats, guide: Guide | None) -> Rounding:
        """Learn the codebook from rows of the matrix, float32 [rows, columns]."""
        return cls(format, learn_codebook(sample, format, guide) if format in CODEBOOK_SIZES else None, guide)

    def of(self, x: Floats) -> Floats:
        """Return rows after quantization, float32 [rows, columns]; each row's values depend on this row alone."""
        parts = dict(encode_rows(self.format, x, self.book, self.guide).parts)
        if self.book is not None:
            parts["codebook"] = pack_codebook(self.book)
        return dequantize(PackedMatrix(self.format, (len(x), x.shape[1]), parts))


def rounded(format: str, x: Floats, guide: Guide | None) -> Floats:
    """Return rows after quantization to a format, float32 [rows, columns]; the codebook is learned from the rows."""
    return Rounding.learned(format, x, guide).of(x)


def relative_error(x: Floats, y: Floats, statistics: InputStatistics | None) -> float:
    """Return the expected squared error of the outputs over their squares when rows y stand for rows x; 0 for zeros.

    Args:
        x, y: float32 [rows, columns].
        statistics: of the inputs; None: uncorrelated ones of the same size.
    """
    return relative_errors([(x, y)], statistics)


def relative_errors(pieces: Iterable[tuple[Floats, Floats]], statistics: InputStatistics | None) -> float:
    """Return `relative_error` of a matrix that comes in pieces: rows x and what they are rounded to."""
    error, energy = 0.0, 0.0
    for x, y in pieces:
        energy += _output_squares(x.astype(np.float64), statistics)
        error += _output_squares(y.astype(np.float64) - x, statistics)
    return error / energy if energy else 0.0


def _output_squares(rows: NDArray[np.float64], statistics: InputStatistics | None) -> float:
    if statistics is None:
        return float((rows * rows).sum())
    diagonal, directions = statistics.as_doubles
    return float((rows * rows @ diagonal).sum() + ((rows @ directions) ** 2).sum())
