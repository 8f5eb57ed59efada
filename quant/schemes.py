"""Which format each matrix gets: the schemes q4, q4s, q8 and bf16.

This file owns the choice of formats and the sizes that follow from it. It reads no weights. Invariant: a plan names
every matrix of the checkpoint once, in the order of the file, with a format that divides its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cg_local.checkpoint import Checkpoint
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING, HEAD, gain_shapes, matrix_shapes
from cg_local.packing import COLUMN_MULTIPLE, packed_bytes

SCHEMES = ("q4", "q4s", "q8", "bf16")
GAIN_FORMAT = "f32"  # of a norm gain, which is no matrix and has no format of packing
# Formats by kind of matrix, "" the others. q4 keeps embedding, k and v at 8 bits: the first is also the output head and
# the most sensitive tensor of Gemma, the others are 0.8 % of 2B and every later token reads their error. q4s is for the
# least error in the bytes of llama.cpp's Q4_0 (0.999 of them for 2B). Source of both: quant/README.md.
SCHEME_FORMATS: Mapping[str, Mapping[str, str]] = {
    "q4": {"": "c4g32", "embedding": "i8g64", "k_proj": "i8g64", "v_proj": "i8g64"},
    "q4s": {
        **{"": "c4g16", "embedding": "i6g32", "q_proj": "c4g32", "k_proj": "i6g32", "v_proj": "i6g32"},
        **{"o_proj": "c4g32"},
    },
    "q8": {"": "i8g64"},
    "bf16": {"": "bf16"},
}
# Where every head has its own k and v (7B) they are as large as q, and as little sensitive.
UNSHARED_FORMATS: Mapping[str, Mapping[str, str]] = {
    "q4s": {**SCHEME_FORMATS["q4s"], "k_proj": "c4g32", "v_proj": "c4g32"},
}
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
        scheme: of SCHEMES, or the bits a weight that were asked for: "4.5bpw".
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
    is_shared = config.num_kv_heads < config.num_heads
    formats = SCHEME_FORMATS[scheme] if is_shared else UNSHARED_FORMATS.get(scheme, SCHEME_FORMATS[scheme])
    return plan_formats(checkpoint, scheme, lambda name: formats.get(kind_of(name), formats[""]))


def plan_formats(checkpoint: Checkpoint, scheme: str, wanted: Callable[[str], str]) -> QuantizationPlan:
    """Make the plan of given formats.

    Args:
        checkpoint: the source.
        scheme: what the choice is called.
        wanted: name of a matrix -> format; where its groups do not divide the columns, a fallback is taken.
    """
    config = checkpoint.config
    tensors = [TensorPlan(name, GAIN_FORMAT, shape, 4 * shape[0]) for name, shape in gain_shapes(config).items()]
    notices = list(checkpoint.notices)
    for name, shape in matrix_shapes(config, has_separate_head=checkpoint.has_separate_head).items():
        format = divisible_format(wanted(name), shape[1])
        if format != wanted(name):
            notices.append(
                f"{name}: {shape[1]} columns do not divide into groups of {wanted(name)}; stored as {format}"
            )
        tensors.append(TensorPlan(name, format, shape, packed_bytes(format, shape)))
    num_weights = sum(_count(tensor.shape) for tensor in tensors)
    return QuantizationPlan(scheme, tuple(tensors), num_weights, tuple(notices))


def kind_of(name: str) -> str:
    """Return the kind of a matrix: "embedding" (and head), "q_proj", "gate_proj", ..."""
    return "embedding" if name in (EMBEDDING, HEAD) else name.split(".")[-2]


def divisible_format(format: str, columns: int) -> str:
    """Return the format, or the first of its fallbacks whose groups divide the columns."""
    while columns % COLUMN_MULTIPLE[format]:
        format = FALLBACK[format]
    return format


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)
