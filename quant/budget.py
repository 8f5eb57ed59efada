"""A plan for a given number of bits a weight: what each matrix would lose in each format, and the best of it.

This file owns how the loss is estimated. The choice is `allocation`'s. Invariant: a plan's bytes, gains included, are
at most what was asked for.

The expected divergence of a matrix in a format is its relative output error on a sample of rows times the matrix's
sensitivity: as an importance pack tells it, or, without one, as it was measured for matrices of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cg_local.checkpoint import Checkpoint
from cg_local.errors import QuantizeError
from cg_local.model_folder import matrix_shapes
from cg_local.packing import COLUMN_MULTIPLE, packed_bytes
from cg_local.quant.allocation import CANDIDATES, Choice, allocate
from cg_local.quant.encoder import guide_by, sample_rows
from cg_local.quant.fixed_order import in_order, single_threaded_blas, usable_cores
from cg_local.quant.importance import ImportancePack
from cg_local.quant.rounded_rows import relative_error, rounded
from cg_local.quant.schemes import QuantizationPlan, kind_of, plan_checkpoint, plan_formats

SMALLEST_BITS, LARGEST_BITS = 3.0, 16.0
UNUSED_BITS = 0.5  # bits a weight left over that are worth a word
# Geometric means over the layers of nano, measured by `calibration.sensitivities_of` on 4,096 tokens.
KIND_SENSITIVITIES: Mapping[str, float] = {
    **{"q_proj": 0.094, "k_proj": 0.30, "v_proj": 0.23, "o_proj": 0.29},
    **{"gate_proj": 0.17, "up_proj": 0.13, "down_proj": 0.39, "embedding": 5.5},
}


@single_threaded_blas()
def plan_budget(checkpoint: Checkpoint, bits_per_weight: float, pack: ImportancePack | None) -> QuantizationPlan:
    """Choose the format of every tensor so that the whole has at most so many bits a weight.

    Args:
        checkpoint: the source.
        bits_per_weight: mean over all weights, scales and padding included.
        pack: statistics of the inputs; None: all columns count alike.

    Raises:
        QuantizeError: fewer bits than the smallest formats need, or more than published weights have.
    """
    if not SMALLEST_BITS <= bits_per_weight <= LARGEST_BITS:
        raise QuantizeError(f"{bits_per_weight:g} bits a weight; give {SMALLEST_BITS:g} to {LARGEST_BITS:g}")
    whole = plan_checkpoint(checkpoint, "bf16")
    gain_bytes = sum(tensor.num_bytes for tensor in whole.tensors if tensor.name not in whole.formats)
    budget = int(bits_per_weight * whole.num_weights / 8) - gain_bytes
    shapes = matrix_shapes(checkpoint.config, has_separate_head=checkpoint.has_separate_head)
    tables = list(in_order(lambda name: _choices(checkpoint, name, shapes[name], pack), shapes, usable_cores()))
    formats = allocate(dict(zip(shapes, tables, strict=True)), budget)
    plan = plan_formats(checkpoint, f"{bits_per_weight:g}bpw", formats.__getitem__)
    if plan.bits_per_weight < bits_per_weight - UNUSED_BITS:
        text = f"{plan.bits_per_weight:.2f} bits a weight are the most that the formats take; --scheme bf16 is exact"
        return replace(plan, notices=(*plan.notices, text))
    return plan


def _choices(checkpoint: Checkpoint, name: str, shape: tuple[int, int], pack: ImportancePack | None) -> list[Choice]:
    """What a matrix would lose in each format that its width allows."""
    x = sample_rows(checkpoint, name, shape)
    guide, statistics = (None, None) if pack is None else (guide_by(pack, name, checkpoint), pack.of(name))
    sensitivity = _sensitivity(name, pack)

    def divergence(format: str) -> float:
        return sensitivity * relative_error(x, rounded(format, x, guide), statistics)

    return [Choice(format, packed_bytes(format, shape), divergence(format)) for format in _possible(shape[1])]


def _possible(columns: int) -> Iterable[str]:
    found = [format for format in CANDIDATES if columns % COLUMN_MULTIPLE[format] == 0]
    return found or ["bf16"]


def _sensitivity(name: str, pack: ImportancePack | None) -> float:
    if pack is not None and name in pack.sensitivities:
        return pack.sensitivities[name]
    return KIND_SENSITIVITIES[kind_of(name)]
