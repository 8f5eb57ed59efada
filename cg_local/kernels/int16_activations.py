"""Activations of 16 bits for 8-bit weights: their rounding, their layout, and their product with i8g64 weights.

This file owns what the choice `activations="int16"` adds to the kernels. Activations of 8 bits and the tile builder are
those of `matmul.py`. Invariant: that of `matmul.py`; a product's integer sums are exact.

Activations of n tokens stand in blocks of T tokens as in `matmul.py`:

    codes   int16   [blocks, groups, T, 32]     round(x / scale); of columns 4k..4k+3 in the order 4k, 4k+2, 4k+1, 4k+3
    scales  float32 [blocks, groups, T]         max |x| of the group / CODE_LIMIT

The order puts the codes of even and of odd bytes side by side, so that weights are widened within their lanes. Sixteen
bits cost AVX2 as many instructions as eight (two pmaddwd instead of psignb, pmaddubsw and pmaddwd) and the others two
dot products instead of one. 32 * 127 * CODE_LIMIT < 2**31: a group's sum does not overflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from cg_local.kernels.instruction_set import InstructionSet
from cg_local.kernels.llvm_vectors import I32, I64, splat
from cg_local.kernels.matmul import BLOCK_TOKENS, INSTRUCTION_SET, TileBuilder
from cg_local.packing import GROUP, INT8_GROUP, TILE_ROWS

# 256 * 127 + 127: the largest number whose upper and lower byte, both signed, lie in -127..127 for either sign.
CODE_LIMIT = 32639

_LIMIT = np.float32(CODE_LIMIT)
# Below it CODE_LIMIT / largest is no float32 any more; such a group is 0.
_SMALLEST = np.float32(1e-33)
_CODE_BYTES, _SCALE_BYTES = TILE_ROWS * GROUP, 2 * TILE_ROWS


@njit(parallel=True, nogil=True, cache=True)
def quantize_activations_int16(x, codes, scales):
    """Round activations to 16 bits by groups of 32 columns.

    Args:
        x: float32 [num_tokens, columns].
        codes: int16 [blocks, groups, T, 32], scales: float32 [blocks, groups, T]; fully written, with zeros for the
            tokens that fill up the last block.
    """
    num_tokens = x.shape[0]
    blocks, groups, tokens = codes.shape[:3]
    for row in prange(blocks * tokens):
        block, token = row // tokens, row % tokens
        for group in range(groups):
            largest = np.float32(0)
            if row < num_tokens:
                for column in range(GROUP):
                    largest = max(largest, abs(x[row, group * GROUP + column]))
            scales[block, group, token] = largest / _LIMIT
            if largest < _SMALLEST:
                codes[block, group, token, :] = 0
                continue
            inverse = _LIMIT / largest
            for first in range(0, GROUP, 4):
                for place in range(4):
                    # Places 0, 1, 2, 3 hold columns 0, 2, 1, 3.
                    column = group * GROUP + first + (place & 1) * 2 + (place >> 1)
                    codes[block, group, token, first + place] = np.int32(np.rint(x[row, column] * inverse))


def emit_i8g64_int16_tile(
    builder: ir.IRBuilder, isa: InstructionSet, num_tokens: int, arguments: list[ir.Value]
) -> None:
    """Emit one i8g64 tile on 16-bit activations.

    The arguments are addresses (intp) of codes, scales, activation codes and scales, and of the output, then the number
    of groups of 32 columns and the output's stride in floats between tokens.
    """
    codes, scales, x_codes, x_scales, out, groups, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder)
    b = builder

    def line(lines: ir.Value, group_codes: ir.Value, dots: list[Any]) -> list[Any]:
        dots = list(dots)
        for part in range(emit.parts):
            weights = isa.word_weights(b, emit.load(lines, 4 * emit.rows * part, emit.ints, 1))
            for token in range(num_tokens):
                at = token * emit.parts + part
                pairs = _pair(emit, group_codes, token, 0), _pair(emit, group_codes, token, 2)
                dots[at] = isa.word_dot(b, dots[at], weights, pairs)
        return dots

    def group(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        lines = b.add(codes, emit.times(index, _CODE_BYTES))
        group_codes = b.add(x_codes, emit.times(index, 2 * GROUP * num_tokens))
        dots: list[Any] = [isa.word_zero()] * (num_tokens * emit.parts)
        emit.prefetch(lines, _CODE_BYTES)
        dots = emit.in_steps(
            GROUP // 4,
            2,
            dots,
            lambda at, dots: line(b.add(lines, emit.times(at, 64)), b.add(group_codes, emit.times(at, 8)), dots),
        )
        scale_group = b.udiv(index, ir.Constant(I64, INT8_GROUP // GROUP))
        weight_scales = emit.half_scales(scales, emit.times(scale_group, _SCALE_BYTES))
        totals = [isa.word_sum(b, total) for total in dots]
        return emit.accumulate(sums, totals, weight_scales, x_scales, emit.times(index, num_tokens))

    emit.store(emit.loop(groups, emit.zeros(), group), out, stride)


def _pair(emit: TileBuilder, group_codes: ir.Value, token: int, place: int) -> ir.Value:
    """Two neighbouring codes of a token in every lane."""
    return splat(emit.b, emit.load(group_codes, 2 * (token * GROUP + place), I32, 4), emit.rows)


def make_i8g64_int16_tile(instruction_set: InstructionSet, num_tokens: int) -> Any:
    """Return the intrinsic of `emit_i8g64_int16_tile`."""

    @intrinsic
    def tile(typing_context, codes, scales, x_codes, x_scales, out, groups, stride):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            emit_i8g64_int16_tile(builder, instruction_set, num_tokens, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), generate

    return tile


if INSTRUCTION_SET is not None:
    _one, _block = (make_i8g64_int16_tile(INSTRUCTION_SET, tokens) for tokens in (1, BLOCK_TOKENS))


@njit(parallel=True, nogil=True, cache=True)
def matmul_i8g64_int16(codes, scales, x_codes, x_scales, out):
    """Multiply an i8g64 matrix by 16-bit activations.

    Args:
        codes, scales: the parts of `packing.part_layout`; float16 as its uint16 bits.
        x_codes, x_scales: activations as `quantize_activations_int16` writes them.
        out: float32 [blocks * T, tiles * 16], fully written.
    """
    stride = out.shape[1]
    blocks, groups, tokens = x_codes.shape[:3]
    for tile in prange(codes.shape[0]):
        code = codes.ctypes.data + tile * groups * _CODE_BYTES
        scale = scales.ctypes.data + tile * scales.shape[1] * _SCALE_BYTES
        for block in range(blocks):
            x = x_codes.ctypes.data + block * groups * tokens * GROUP * 2
            xs = x_scales.ctypes.data + block * groups * tokens * 4
            y = out.ctypes.data + (block * tokens * stride + tile * TILE_ROWS) * 4
            if tokens == 1:
                _one(code, scale, x, xs, y, groups, stride)
            else:
                _block(code, scale, x, xs, y, groups, stride)
