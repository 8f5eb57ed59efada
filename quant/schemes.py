"""Which format each matrix gets: the schemes q4, q8 and bf16.

This file owns the choice of formats and the sizes that follow from it. It reads no weights. Invariant: a plan names
every matrix of the checkpoint once, in the order of the file, with a format that divides its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cg_local.checkpoint import Checkpoint
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING, HEAD, gain_shapes, matrix_shapes
from cg_local.packing import COLUMN_MULTIPLE, packed_bytes

SCHEMES = ("q4", "q8", "bf16")
GAIN_FORMAT = "f32"  # of a norm gain, which is no matrix and has no format of packing
BODY_FORMATS: Mapping[str, str] = {"q4": "c4g32", "q8": "i8g64", "bf16": "bf16"}
# q4 keeps these at 8 bits. The embedding is also the output head and the most sensitive tensor of Gemma; k and v are
# 0.8 % of 2B and every later token reads their error. Source: ARCHITECTURE.md, section "Weight formats".
SENSITIVE_NAMES = (EMBEDDING, HEAD)
SENSITIVE_SUFFIXES = (".k_proj.weight", ".v_proj.weight")
# Where a format's groups do not divide the columns (never in the published sizes), the next one is taken.
FALLBACK: Mapping[str, str] = {**dict.fromkeys(("c4g32", "c4g16", "c3g32", "i6g32"), "i8g64"), "i8g64": "bf16"}


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of a plan.

    Attributes:
        name: Hugging Face name.
        format: of packing.FORMATS, or GAIN_FORMAT for a norm gain.
        shape: as published.
        num_bytes: in the model folder.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class QuantizationPlan:
    """What `quantize` would write.

    Attributes:
        scheme: of SCHEMES.
        tensors: every tensor, in the order of the file.
        num_weights: weights in all of them.
        notices: one-line things that a user should be told.
    """

    scheme: str
    tensors: tuple[TensorPlan, ...]
    num_weights: int
    notices: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean over all weights, scales and padding included."""
        return 8 * self.num_bytes / self.num_weights

    @property
    def formats(self) -> dict[str, str]:
        """Format of each matrix, without the gains."""
        return {tensor.name: tensor.format for tensor in self.tensors if tensor.format != GAIN_FORMAT}


def plan_checkpoint(checkpoint: Checkpoint, scheme: str) -> QuantizationPlan:
    """Choose the format of every tensor.

    Args:
        checkpoint: the source.
        scheme: of SCHEMES.

    Raises:
        QuantizeError: the scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise QuantizeError(f"unknown scheme {scheme!r}; known are {', '.join(SCHEMES)}")
    config = checkpoint.config
    tensors = [TensorPlan(name, GAIN_FORMAT, shape, 4 * shape[0]) for name, shape in gain_shapes(config).items()]
    notices = list(checkpoint.notices)
    for name, shape in matrix_shapes(config, has_separate_head=checkpoint.has_separate_head).items():
        wanted = format_of(name, scheme)
        format = divisible_format(wanted, shape[1])
        if format != wanted:
            notices.append(f"{name}: {shape[1]} columns do not divide into groups of {wanted}; stored as {format}")
        tensors.append(TensorPlan(name, format, shape, packed_bytes(format, shape)))
    num_weights = sum(_count(tensor.shape) for tensor in tensors)
    return QuantizationPlan(scheme, tuple(tensors), num_weights, tuple(notices))


def format_of(name: str, scheme: str) -> str:
    """Return the format that a scheme wants for a matrix."""
    is_sensitive = name in SENSITIVE_NAMES or name.endswith(SENSITIVE_SUFFIXES)
    return "i8g64" if scheme == "q4" and is_sensitive else BODY_FORMATS[scheme]


def divisible_format(format: str, columns: int) -> str:
    """Return the format, or the first of its fallbacks whose groups divide the columns."""
    while columns % COLUMN_MULTIPLE[format]:
        format = FALLBACK[format]
    return format


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)
