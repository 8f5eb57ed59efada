"""The product of 6-bit weights (i6g32) and quantized activations, generated for the host's instruction set.

This file owns how six bits are put together from a plane of four and a plane of two. The activations, the loops and the
registers are those of `matmul.py`. Invariant: that of `matmul.py`; integer sums equal the portable ones.

The weights stay unsigned (0..63) in the dot products. On AVX2 two 16-bit sums of pairs can then be added before they
are widened, as 4 * 63 * 127 = 32004 < 2**15; elsewhere it does not matter. The offset of 32 is repaid once per group.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cg_local.kernels.instruction_set import InstructionSet
from cg_local.kernels.llvm_vectors import I8, I64, splat_constant, vector
from cg_local.kernels.matmul import TileBuilder
from cg_local.packing import GROUP, INT6_OFFSET, SUPER_GROUP, TILE_ROWS

# Bytes of one tile: 16 columns are two lines of nibbles and one line of upper bits.
_LINES_COLUMNS, _LINES_BYTES = 16, 192
_CODE_BYTES, _SCALE_BYTES, _SUPER_BYTES = GROUP // _LINES_COLUMNS * _LINES_BYTES, TILE_ROWS, 2 * TILE_ROWS
_SUBGROUPS = SUPER_GROUP // GROUP


def six_bits(emit: TileBuilder, lines: ir.Value, part: int) -> list[ir.Value]:
    """Return four registers of weights 0..63: columns k..k+3, k+4..k+7, k+8..k+11, k+12..k+15 of a part's rows.

    Args:
        emit: of the tile.
        lines: address of the three lines of columns k..k+15.
        part: which register of a line's rows.
    """
    b = emit.b
    nibble, upper = splat_constant(emit.ints, 0x0F0F0F0F), splat_constant(emit.ints, 0x30303030)
    first, second, bits = (emit.load(lines, 64 * line + 4 * emit.rows * part, emit.ints, 1) for line in range(3))

    def shifted(value: ir.Value, left: int) -> ir.Value:
        # Shifts run over whole lanes; the masks take away what came from the neighbouring byte.
        shift = splat_constant(emit.ints, abs(left))
        return b.shl(value, shift) if left > 0 else b.lshr(value, shift) if left else value

    return [
        b.or_(b.and_(shifted(first, 0), nibble), b.and_(shifted(bits, 4), upper)),
        b.or_(b.and_(shifted(first, -4), nibble), b.and_(shifted(bits, 2), upper)),
        b.or_(b.and_(shifted(second, 0), nibble), b.and_(shifted(bits, 0), upper)),
        b.or_(b.and_(shifted(second, -4), nibble), b.and_(shifted(bits, -2), upper)),
    ]


def emit_i6g32_tile(
    builder: ir.IRBuilder, isa: InstructionSet, num_tokens: int, block_tokens: int, arguments: list[ir.Value]
) -> None:
    """Emit one i6g32 tile.

    The arguments are addresses (intp) of codes, scales, super_scales, activation codes, scales and sums, and of the
    output, then the number of groups of 32 columns and the output's stride in floats between tokens.
    """
    codes, scales, super_scales, x_codes, x_scales, x_sums, out, groups, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder, block_tokens)
    b = builder

    def lines(address: ir.Value, codes: ir.Value, dots: list[ir.Value]) -> list[ir.Value]:
        dots = list(dots)
        for part in range(emit.parts):
            weights = six_bits(emit, address, part)
            for quarter in (0, 2):
                pair = weights[quarter], weights[quarter + 1]
                for token in range(num_tokens):
                    at = token * emit.parts + part
                    lanes = emit.code_lane(codes, token, 4 * quarter), emit.code_lane(codes, token, 4 * quarter + 4)
                    dots[at] = isa.dot_two(b, dots[at], pair, lanes)
        return dots

    def group(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        group_lines = b.add(codes, emit.times(index, _CODE_BYTES))
        group_codes = b.add(x_codes, emit.times(index, GROUP * block_tokens))
        first = emit.times(index, block_tokens)
        dots = emit.starts(x_sums, first, INT6_OFFSET)
        emit.prefetch(group_lines, _CODE_BYTES)
        dots = emit.in_steps(
            GROUP // _LINES_COLUMNS,
            1,
            dots,
            lambda step, dots: lines(
                b.add(group_lines, emit.times(step, _LINES_BYTES)),
                b.add(group_codes, emit.times(step, _LINES_COLUMNS)),
                dots,
            ),
        )
        scale_bytes = b.add(scales, emit.times(index, _SCALE_BYTES))
        loaded = [emit.load(scale_bytes, emit.rows * part, vector(I8, emit.rows), 1) for part in range(emit.parts)]
        weight_scales = [b.sitofp(b.sext(scale, emit.ints), emit.floats) for scale in loaded]
        return emit.accumulate(sums, dots, weight_scales, x_scales, first)

    def super_group(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        base = emit.times(index, _SUBGROUPS)
        sums = emit.loop(
            ir.Constant(I64, _SUBGROUPS), emit.zeros(), lambda step, carried: group(b.add(base, step), carried)
        )
        supers = emit.half_scales(super_scales, emit.times(index, _SUPER_BYTES))
        return [emit.fma(s, supers[at % emit.parts], t) for at, (s, t) in enumerate(zip(sums, totals, strict=True))]

    emit.store(emit.loop(b.udiv(groups, ir.Constant(I64, _SUBGROUPS)), emit.zeros(), super_group), out, stride)


def make_i6g32_tile(instruction_set: InstructionSet, num_tokens: int, block_tokens: int) -> Any:
    """Return the intrinsic of `emit_i6g32_tile`; num_tokens and block_tokens as in `TileBuilder`."""

    @intrinsic
    def tile(typing_context, codes, scales, super_scales, x_codes, x_scales, x_sums, out, groups, stride):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            emit_i6g32_tile(builder, instruction_set, num_tokens, block_tokens, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return tile
