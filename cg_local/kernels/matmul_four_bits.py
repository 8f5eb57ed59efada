"""The product of 4-bit weights (c4g32) and quantized activations, generated for the host's instruction set.

This file owns how nibbles become codebook values and where they are kept. The activations, the loops and the registers
are those of `matmul.py`. Invariant: that of `matmul.py`; one token and many give the same bits.

For one to three tokens the nibbles are looked up where they are used. For full blocks, a panel of PANEL_COLUMNS columns
of a tile is looked up once, into memory that stays in the first-level cache, and multiplied by all of them from there.

Values are unsigned (stored + 64). Where the instruction set has 16-bit pairs only (AVX2), two sums of pairs are
added before they are widened: their true value fits, as 4 * 63 * 127 = 32004 < 2**15, while the offset's share does
not; it is taken away in the same arithmetic modulo 2**16 (the corrections of `matmul.py`). Widening multiplies by the
group's sub-scale at the same time: 127 * 8 * 32004 < 2**31.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cg_local.kernels.instruction_set import InstructionSet, PairProducts
from cg_local.kernels.llvm_vectors import F32, I8, I32, I64, splat, splat_constant, vector
from cg_local.kernels.matmul import PREFETCH_BYTES, TileBuilder
from cg_local.packing import CODEBOOK_OFFSET, GROUP, SUPER_GROUP, TILE_ROWS

# Columns of a tile that are unpacked at a time: 16 KiB, half of the smallest first-level cache.
PANEL_COLUMNS = 1024
PANEL_BYTES = PANEL_COLUMNS * TILE_ROWS
_LINE_COLUMNS, _LINES = 8, GROUP // 8
_CODE_BYTES, _SCALE_BYTES, _SUPER_BYTES = TILE_ROWS * GROUP // 2, TILE_ROWS, 2 * TILE_ROWS
_PANEL_LINE = TILE_ROWS * _LINE_COLUMNS
_SUBGROUPS = SUPER_GROUP // GROUP

# Gives the two registers of values of (address of a group, line, part): columns 0..3 and 4..7 of the line.
Values = Callable[[ir.Value, "ir.Value | int", int], tuple[ir.Value, ir.Value]]


class FourBits:
    """Emits the group loop of c4g32 over values from wherever they come.

    Args:
        emit: of the tile.
        isa: the instruction set.
        addresses: of scales, super_scales and the activations' codes, scales, sums and corrections.
    """

    def __init__(self, emit: TileBuilder, isa: InstructionSet, addresses: list[ir.Value]) -> None:
        self.emit, self.isa = emit, isa
        self.scales, self.super_scales, self.x_codes, self.x_scales, self.x_sums, self.x_corrections = addresses

    def group(self, index: ir.Value, sums: list[ir.Value], address: ir.Value, values: Values) -> list[ir.Value]:
        """Add one group of 32 columns to the float sums; address: where the group's codes or values begin."""
        emit, isa, b = self.emit, self.isa, self.emit.b
        codes = b.add(self.x_codes, emit.times(index, GROUP * emit.block_tokens))
        first = emit.times(index, emit.block_tokens)
        scale_bytes = b.add(self.scales, emit.times(index, _SCALE_BYTES))
        loaded = [emit.load(scale_bytes, emit.rows * part, vector(I8, emit.rows), 1) for part in range(emit.parts)]
        scales = [b.sext(scale, emit.ints) for scale in loaded]
        if not isa.folds_scales:
            dots = self._dots(codes, emit.starts(self.x_sums, first, CODEBOOK_OFFSET), address, values)
            factors = [b.sitofp(scale, emit.floats) for scale in scales]
            return emit.accumulate(sums, dots, factors, self.x_scales, first)
        pairs = [cast(PairProducts, isa).pair(b, scale) for scale in scales]
        corrections = b.add(self.x_corrections, emit.times(first, 4 * _LINES))
        dots = self._folded_dots(codes, corrections, pairs, address, values)
        results = []
        for token in range(emit.num_tokens):
            offset = emit.times(b.add(first, ir.Constant(I64, token)), 4)
            factor = splat(b, emit.load(self.x_scales, offset, F32, 4), emit.rows)
            for at in range(token * emit.parts, (token + 1) * emit.parts):
                results.append(emit.fma(b.sitofp(dots[at], emit.floats), factor, sums[at]))
        return results

    def _dots(self, codes: ir.Value, dots: list[ir.Value], address: ir.Value, values: Values) -> list[ir.Value]:
        emit, b = self.emit, self.emit.b
        for line in range(_LINES):
            for part in range(emit.parts):
                for half, value in enumerate(values(address, line, part)):
                    for token in range(emit.num_tokens):
                        at = token * emit.parts + part
                        lane = emit.code_lane(codes, token, _LINE_COLUMNS * line + 4 * half)
                        dots[at] = self.isa.dot(b, dots[at], value, lane)
        return dots

    def _folded_dots(
        self, codes: ir.Value, corrections: ir.Value, pairs: list[ir.Value], address: ir.Value, values: Values
    ) -> list[ir.Value]:
        emit, b, isa = self.emit, self.emit.b, cast(PairProducts, self.isa)

        def line(index: ir.Value, dots: list[ir.Value]) -> list[ir.Value]:
            results = list(dots)
            weights = [values(address, index, part) for part in range(emit.parts)]
            lanes = b.add(codes, emit.times(index, _LINE_COLUMNS))
            line_corrections = b.add(corrections, emit.times(index, 4))
            for token in range(emit.num_tokens):
                signed = emit.code_lane(lanes, token, 0), emit.code_lane(lanes, token, 4)
                correction = splat(b, emit.load(line_corrections, 4 * _LINES * token, I32, 4), emit.rows)
                for part in range(emit.parts):
                    at = token * emit.parts + part
                    results[at] = isa.dot_corrected(b, dots[at], weights[part], signed, correction, pairs[part])
            return results

        dots = [splat_constant(emit.ints, 0)] * (emit.num_tokens * emit.parts)
        for index in range(_LINES):
            # Else LLVM would reorder a whole group token by token and run out of registers.
            dots = isa.in_order(b, line(ir.Constant(I64, index), dots))
        return dots

    def sums(self, groups: ir.Value, totals: list[ir.Value], group_bytes: int, start: ir.Value, values: Values) -> Any:
        """Run over `groups` groups, a multiple of 8, whose codes or values begin at `start`; return the new totals."""
        emit, b = self.emit, self.emit.b

        def super_group(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            base = emit.times(index, _SUBGROUPS)

            def subgroup(step: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                at = b.add(base, step)
                address = b.add(start, emit.times(at, group_bytes))
                return self.group(at, sums, address, values)

            sums = emit.loop(ir.Constant(I64, _SUBGROUPS), emit.zeros(), subgroup)
            supers = emit.half_scales(self.super_scales, emit.times(index, _SUPER_BYTES))
            return [emit.fma(s, supers[at % emit.parts], t) for at, (s, t) in enumerate(zip(sums, totals, strict=True))]

        return emit.loop(b.udiv(groups, ir.Constant(I64, _SUBGROUPS)), totals, super_group)


def looked_up(emit: TileBuilder, isa: InstructionSet, table: ir.Value) -> Values:
    """Return how values come from a line of nibbles: low nibbles are columns k..k+3, high ones k+4..k+7."""
    b, nibble = emit.b, splat_constant(emit.ints, 0x0F0F0F0F)

    def values(address: ir.Value, line: ir.Value | int, part: int) -> tuple[ir.Value, ir.Value]:
        index = ir.Constant(I64, line) if isinstance(line, int) else line
        both = emit.load(b.add(address, emit.times(index, 64)), 4 * emit.rows * part, emit.ints, 1)
        high = b.and_(b.lshr(both, splat_constant(emit.ints, 4)), nibble)
        return isa.lookup(b, table, b.and_(both, nibble)), isa.lookup(b, table, high)

    return values


def emit_c4g32_tile(
    builder: ir.IRBuilder, isa: InstructionSet, num_tokens: int, block_tokens: int, arguments: list[ir.Value]
) -> None:
    """Emit one c4g32 tile whose nibbles are looked up where they are used.

    The arguments are addresses (intp) of codes, scales, super_scales, codebook, activation codes, scales, sums and
    corrections, and of the output, then the number of groups of 32 columns and the output's stride in floats between
    tokens.
    """
    codes, scales, super_scales, codebook, *x, out, groups, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder, block_tokens)
    lookup = looked_up(emit, isa, emit.load(codebook, 0, emit.ints, 1))

    def values(address: ir.Value, line: ir.Value | int, part: int) -> tuple[ir.Value, ir.Value]:
        if part == 0 and (not isinstance(line, int) or line == 0):
            emit.prefetch(address, 64 if not isinstance(line, int) else _CODE_BYTES, line)
        return lookup(address, line, part)

    tile = FourBits(emit, isa, [scales, super_scales, *x])
    emit.store(tile.sums(groups, emit.zeros(), _CODE_BYTES, codes, values), out, stride)


def emit_c4g32_unpack(builder: ir.IRBuilder, isa: InstructionSet, arguments: list[ir.Value]) -> None:
    """Emit the lookup of a tile's columns into a panel.

    The arguments are the addresses of codes, codebook and panel, and the number of groups. The panel holds, for each
    line of 8 columns, the values of columns 0..3 of all rows and then those of columns 4..7.
    """
    codes, codebook, panel, groups = arguments
    emit = TileBuilder(isa, 1, builder)
    b = builder
    values = looked_up(emit, isa, emit.load(codebook, 0, emit.ints, 1))

    def line(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        target = b.add(panel, emit.times(index, _PANEL_LINE))
        for part in range(emit.parts):
            for half, value in enumerate(values(codes, index, part)):
                b.store(value, emit.pointer(target, 64 * half + 4 * emit.rows * part, emit.ints), align=4)
        return carried

    emit.loop(emit.times(groups, _LINES), [], line)


def emit_c4g32_panel_tile(
    builder: ir.IRBuilder, isa: InstructionSet, num_tokens: int, arguments: list[ir.Value]
) -> None:
    """Emit the product of one panel, added to what the output holds unless it is the first of its tile.

    The arguments are those of `emit_c4g32_tile`, with the panel's address for codes and, for the codebook, two: 1 for
    the tile's first panel and 0 for the others, and the address of the codes that are unpacked next, to be asked for.
    """
    panel, scales, super_scales, is_first, following, *x, out, groups, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder)
    b = builder
    # Line i of the panel asks for byte 64 i behind `following`: with few tokens, memory must be read while the
    # processor computes.
    shift = b.sub(following, ir.Constant(I64, PREFETCH_BYTES))

    def values(address: ir.Value, line: ir.Value | int, part: int) -> tuple[ir.Value, ir.Value]:
        index = ir.Constant(I64, line) if isinstance(line, int) else line
        if part == 0:
            nibbles = b.lshr(b.sub(address, panel), ir.Constant(I64, 1))
            emit.prefetch(b.add(shift, nibbles), 64, index if not isinstance(line, int) else ir.Constant(I64, line))
        at = b.add(address, emit.times(index, _PANEL_LINE))
        first, second = (emit.load(at, 64 * half + 4 * emit.rows * part, emit.ints, 1) for half in (0, 1))
        return first, second

    before = emit.load_sums(out, stride)
    first = b.icmp_unsigned("!=", is_first, ir.Constant(I64, 0))
    totals = [b.select(first, zero, value) for zero, value in zip(emit.zeros(), before, strict=True)]
    tile = FourBits(emit, isa, [scales, super_scales, *x])
    emit.store(tile.sums(groups, totals, _LINES * _PANEL_LINE, panel, values), out, stride)


def make_c4g32_tile(instruction_set: InstructionSet, num_tokens: int, block_tokens: int) -> Any:
    """Return the intrinsic of `emit_c4g32_tile`; num_tokens and block_tokens as in `TileBuilder`."""

    @intrinsic
    def tile(
        typing_context, codes, scales, supers, codebook, x_codes, x_scales, x_sums, x_corrections, out, groups, stride
    ):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            emit_c4g32_tile(builder, instruction_set, num_tokens, block_tokens, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), generate

    return tile


def make_c4g32_unpack(instruction_set: InstructionSet) -> Any:
    """Return the intrinsic of `emit_c4g32_unpack`."""

    @intrinsic
    def unpack(typing_context, codes, codebook, panel, groups):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            emit_c4g32_unpack(builder, instruction_set, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    return unpack


def make_c4g32_panel_tile(instruction_set: InstructionSet, num_tokens: int) -> Any:
    """Return the intrinsic of `emit_c4g32_panel_tile`."""

    @intrinsic
    def tile(
        typing_context,
        panel,
        scales,
        supers,
        is_first,
        following,
        x_codes,
        x_scales,
        x_sums,
        x_corrections,
        out,
        groups,
        stride,
    ):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            emit_c4g32_panel_tile(builder, instruction_set, num_tokens, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 12), generate

    return tile
