"""What a quantization did: the error of each tensor, sizes and time.

This file owns the figures and their form in the metadata. It computes no error itself (`encode` does). Invariant: a
figure in the metadata is rounded, never wider than the draft that reserved its room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# No figure is written longer than this one.
WIDEST_FIGURE = -1.23456e-300


@dataclass(frozen=True)
class TensorReport:
    """The error that a format leaves in one matrix.

    Attributes:
        name: Hugging Face name.
        format: of packing.FORMATS.
        relative_error: squared error over squared weights; 0 for a matrix of zeros.
        max_abs_error: largest absolute difference of one weight.
    """

    name: str
    format: str
    relative_error: float
    max_abs_error: float

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in dB; infinite for an exact copy."""
        return -10 * math.log10(self.relative_error) if self.relative_error else math.inf

    @classmethod
    def from_errors(cls, name: str, format: str, errors: NDArray[np.float64]) -> TensorReport:
        """Sum up the rows of `encode.EncodedRows.errors`; the sum is exact, so it does not depend on the slabs."""
        squared_error, squared_weights = math.fsum(errors[:, 0]), math.fsum(errors[:, 1])
        return cls(name, format, squared_error / squared_weights if squared_weights else 0.0, float(errors[:, 2].max()))


@dataclass(frozen=True)
class QuantizationReport:
    """The result of `quantize`.

    Attributes:
        destination: the folder written.
        scheme: of schemes.SCHEMES, or "4.5bpw".
        tensors: of every matrix, in the order of the file.
        num_bytes: of all tensors.
        bits_per_weight: mean over all weights.
        elapsed_seconds: wall time.
        notices: one-line things that a user should be told.
    """

    destination: Path
    scheme: str
    tensors: tuple[TensorReport, ...]
    num_bytes: int
    bits_per_weight: float
    elapsed_seconds: float
    notices: tuple[str, ...]


def quality_document(tensors: tuple[TensorReport, ...]) -> dict[str, dict[str, float | None]]:
    """Return the figures of each tensor as JSON values of six digits; an infinite SQNR is null."""
    return {
        tensor.name: {
            "relative_error": _six_digits(tensor.relative_error),
            "sqnr_db": _six_digits(tensor.sqnr_db) if tensor.relative_error else None,
            "max_abs_error": _six_digits(tensor.max_abs_error),
        }
        for tensor in tensors
    }


def quality_draft(names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return a document at least as long as any `quality_document` of these tensors."""
    figures = dict.fromkeys(("relative_error", "sqnr_db", "max_abs_error"), WIDEST_FIGURE)
    return dict.fromkeys(names, figures)


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
