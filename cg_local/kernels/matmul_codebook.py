"""The product of codebook weights (c4g32, c4g16, c3g32) and quantized activations, generated for the instruction set.

This file owns how codes become codebook values and where they are kept. The activations, the loops and the registers
are those of `matmul.py`. Invariant: that of `matmul.py`; one token and many give the same bits.

For one to three tokens the codes are looked up where they are used. For full blocks, a panel of PANEL_COLUMNS columns
of a tile is looked up once, into memory that stays in the first-level cache, and multiplied by all of them from there.

Values are unsigned (stored + 64) except where dot products take signed bytes. Where the instruction set has 16-bit
pairs only (AVX2), two sums of pairs are added before they are widened: their true value fits, as 4 * 63 * 127 = 32004 <
2**15, while the offset's share does not; it is taken away in the same arithmetic modulo 2**16 (the corrections of
`matmul.py`). Widening multiplies by the sub-scale of these 8 columns at the same time: 127 * 8 * 32004 < 2**31. So a
second sub-scale in a group costs its loading alone. Elsewhere each sub-scale has an integer sum of its own, whose
product with it is exact in float32: 16 * 63 * 127 * 127 < 2**24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cg_local.kernels.instruction_set import InstructionSet, PairProducts, UnsignedValues
from cg_local.kernels.llvm_vectors import F32, I8, I32, I64, call_shared, splat, splat_constant, vector
from cg_local.kernels.matmul import PREFETCH_BYTES, TileBuilder
from cg_local.packing import CODE_BITS, CODEBOOK_OFFSET, GROUP, SCALE_GROUPS, SUPER_GROUP, TILE_ROWS

# Columns of a tile that are unpacked at a time: 16 KiB, half of the smallest first-level cache.
PANEL_COLUMNS = 1024
PANEL_BYTES = PANEL_COLUMNS * TILE_ROWS
_LINE_COLUMNS, _LINES = 8, GROUP // 8
_PANEL_LINE = TILE_ROWS * _LINE_COLUMNS
_SUPER_BYTES = 2 * TILE_ROWS
_SUBGROUPS = SUPER_GROUP // GROUP

# Gives the two registers of values of (address of a group, line, part): columns 0..3 and 4..7 of the line.
Values = Callable[[ir.Value, int, int], tuple[ir.Value, ir.Value]]


@dataclass(frozen=True)
class CodebookFormat:
    """What the kernels know of a format with a codebook.

    Attributes:
        bits: of a code.
        num_scales: sub-scales of a row in a group of 32 columns.
    """

    bits: int
    num_scales: int

    @classmethod
    def named(cls, name: str) -> CodebookFormat:
        """Return the format of this name in `packing.CODEBOOK_SIZES`."""
        return cls(CODE_BITS[name], GROUP // SCALE_GROUPS[name])

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of 16 rows and a group of 32 columns."""
        return TILE_ROWS * GROUP * self.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Bytes of their sub-scales."""
        return TILE_ROWS * self.num_scales


class CodebookTile:
    """Emits the group loop over values from wherever they come.

    Args:
        emit: of the tile.
        isa: the instruction set.
        num_scales: of the format.
        addresses: of scales, super_scales and the activations' codes, scales, sums and corrections.
    """

    def __init__(self, emit: TileBuilder, isa: InstructionSet, num_scales: int, addresses: list[ir.Value]) -> None:
        self.emit, self.isa, self.num_scales = emit, isa, num_scales
        self.scales, self.super_scales, self.x_codes, self.x_scales, self.x_sums, self.x_corrections = addresses

    def group(self, index: ir.Value, sums: list[ir.Value], address: ir.Value, values: Values) -> list[ir.Value]:
        """Add one group of 32 columns to the float sums; address: where the group's codes or values begin."""
        emit, b = self.emit, self.emit.b
        codes = b.add(self.x_codes, emit.times(index, GROUP * emit.block_tokens))
        first = emit.times(index, emit.block_tokens)
        corrections = b.add(self.x_corrections, emit.times(first, 4 * _LINES))
        if self.isa.folds_scales:
            dots = self._folded_dots(index, codes, corrections, address, values)
        elif self.num_scales > 1:
            dots = self._scaled_dots(index, codes, first, corrections, address, values)
        else:
            # One sub-scale is cheaper multiplied with the activations', which does not wait for the sum.
            dots = self._starts(first, corrections, range(_LINES))
            for line in range(_LINES):
                dots = self._line(line, codes, dots, address, values)
            scales = [b.sitofp(scale, emit.floats) for scale in self._sub_scales(index, 0)]
            return emit.accumulate(sums, dots, scales, self.x_scales, first)
        results = []
        for token in range(emit.num_tokens):
            offset = emit.times(b.add(first, ir.Constant(I64, token)), 4)
            factor = splat(b, emit.load(self.x_scales, offset, F32, 4), emit.rows)
            for at in range(token * emit.parts, (token + 1) * emit.parts):
                dot = b.sitofp(dots[at], emit.floats) if self.isa.folds_scales else dots[at]
                results.append(emit.fma(dot, factor, sums[at]))
        return results

    def _sub_scales(self, index: ir.Value, nth: int) -> list[ir.Value]:
        """Return the nth sub-scales of a group as int32, by parts."""
        emit, b = self.emit, self.emit.b
        address = b.add(self.scales, emit.times(index, TILE_ROWS * self.num_scales))
        offsets = [TILE_ROWS * nth + emit.rows * part for part in range(emit.parts)]
        return [b.sext(emit.load(address, offset, vector(I8, emit.rows), 1), emit.ints) for offset in offsets]

    def _scaled_dots(
        self,
        index: ir.Value,
        codes: ir.Value,
        first: ir.Value,
        corrections: ir.Value,
        address: ir.Value,
        values: Values,
    ) -> list[ir.Value]:
        """Return the float sums over the group's sub-scales of dot * sub-scale, one for each token and part."""
        emit, b = self.emit, self.emit.b
        num_lines = _LINES // self.num_scales
        totals: list[ir.Value] = []
        for nth in range(self.num_scales):
            dots = self._starts(first, corrections, range(nth * num_lines, (nth + 1) * num_lines))
            for line in range(nth * num_lines, (nth + 1) * num_lines):
                dots = self._line(line, codes, dots, address, values)
            scales = [b.sitofp(scale, emit.floats) for scale in self._sub_scales(index, nth)]
            floats = [b.sitofp(dot, emit.floats) for dot in dots]
            if nth == 0:
                totals = [b.fmul(dot, scales[at % emit.parts]) for at, dot in enumerate(floats)]
            else:
                totals = [emit.fma(dot, scales[at % emit.parts], totals[at]) for at, dot in enumerate(floats)]
        return totals

    def _starts(self, first: ir.Value, corrections: ir.Value, lines: range) -> list[ir.Value]:
        """Return each token's integer sum to begin some lines with, so that the values' offset is repaid."""
        emit, isa = self.emit, self.isa
        if len(lines) == _LINES or isa.value_offset == 0:
            return emit.starts(self.x_sums, first, isa.value_offset)
        starts: list[ir.Value] = []
        for token in range(emit.num_tokens):
            start = splat_constant(emit.ints, 0)
            for line in lines:
                words = splat(emit.b, emit.load(corrections, 4 * (_LINES * token + line), I32, 4), emit.rows)
                start = cast(UnsignedValues, isa).add_words(emit.b, start, words)
            starts += [start] * emit.parts
        return starts

    def _line(
        self, line: int, codes: ir.Value, dots: list[ir.Value], address: ir.Value, values: Values
    ) -> list[ir.Value]:
        """Add the 8 columns of a line to each token's integer sums."""
        emit, results = self.emit, list(dots)
        for part in range(emit.parts):
            for half, value in enumerate(values(address, line, part)):
                for token in range(emit.num_tokens):
                    at = token * emit.parts + part
                    lane = emit.code_lane(codes, token, _LINE_COLUMNS * line + 4 * half)
                    results[at] = self.isa.dot(emit.b, results[at], value, lane)
        return results

    def _folded_dots(
        self, index: ir.Value, codes: ir.Value, corrections: ir.Value, address: ir.Value, values: Values
    ) -> list[ir.Value]:
        """Return the integer sums over the group's sub-scales of dot * sub-scale, one for each token and part."""
        emit, b, isa = self.emit, self.emit.b, cast(PairProducts, self.isa)
        dots = [splat_constant(emit.ints, 0)] * (emit.num_tokens * emit.parts)
        pairs: list[ir.Value] = []
        for line in range(_LINES):
            if line % (_LINES // self.num_scales) == 0:
                nth = line * self.num_scales // _LINES
                pairs = [isa.pair(b, scale) for scale in self._sub_scales(index, nth)]
            weights = [values(address, line, part) for part in range(emit.parts)]
            for token in range(emit.num_tokens):
                column = _LINE_COLUMNS * line
                signed = emit.code_lane(codes, token, column), emit.code_lane(codes, token, column + 4)
                words = splat(b, emit.load(corrections, 4 * (_LINES * token + line), I32, 4), emit.rows)
                for part in range(emit.parts):
                    at = token * emit.parts + part
                    dots[at] = isa.dot_corrected(b, dots[at], weights[part], signed, words, pairs[part])
            # Else LLVM would reorder a whole group token by token and run out of registers.
            dots = isa.in_order(b, dots)
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


def looked_up(emit: TileBuilder, isa: InstructionSet, bits: int, codebook: ir.Value) -> Values:
    """Return how values come from the codes of a group: low nibbles are columns k..k+3, high ones k+4..k+7.

    Of three bits, a nibble's upper bit belongs to one of the last 8 columns; the codebook, stored twice, hides it.
    """
    b = emit.b
    table = emit.load(codebook, 0, emit.ints, 1)
    if isa.value_offset != CODEBOOK_OFFSET:
        as_bytes = vector(I8, 4 * emit.rows)
        surplus = splat_constant(as_bytes, CODEBOOK_OFFSET - isa.value_offset)
        table = b.bitcast(b.sub(b.bitcast(table, as_bytes), surplus), emit.ints)

    def nibbles(address: ir.Value, line: int, part: int) -> ir.Value:
        return emit.load(address, 64 * line + 4 * emit.rows * part, emit.ints, 1)

    def upper_bits(address: ir.Value, part: int) -> ir.Value:
        """Put the upper bits of three lines of nibbles together to one line."""
        joined = splat_constant(emit.ints, 0)
        for line in range(3):
            upper = b.and_(nibbles(address, line, part), splat_constant(emit.ints, 0x88888888))
            joined = b.or_(joined, b.lshr(upper, splat_constant(emit.ints, 3 - line)))
        return joined

    def values(address: ir.Value, line: int, part: int) -> tuple[ir.Value, ir.Value]:
        both = upper_bits(address, part) if line == bits else nibbles(address, line, part)
        nibble = splat_constant(emit.ints, 0x0F0F0F0F)
        high = b.and_(b.lshr(both, splat_constant(emit.ints, 4)), nibble)
        return isa.lookup(b, table, b.and_(both, nibble)), isa.lookup(b, table, high)

    return values


def emit_codebook_tile(
    builder: ir.IRBuilder,
    isa: InstructionSet,
    format: CodebookFormat,
    num_tokens: int,
    block_tokens: int,
    arguments: list[ir.Value],
) -> None:
    """Emit one tile whose codes are looked up where they are used.

    The arguments are addresses (intp) of codes, scales, super_scales, codebook, activation codes, scales, sums and
    corrections, and of the output, then the number of groups of 32 columns and the output's stride in floats between
    tokens.
    """
    codes, scales, super_scales, codebook, *x, out, groups, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder, block_tokens)
    lookup = looked_up(emit, isa, format.bits, codebook)

    def values(address: ir.Value, line: int, part: int) -> tuple[ir.Value, ir.Value]:
        if part == 0 and line < format.bits:
            emit.prefetch(emit.b.add(address, ir.Constant(I64, 64 * line)), 64)
        return lookup(address, line, part)

    tile = CodebookTile(emit, isa, format.num_scales, [scales, super_scales, *x])
    emit.store(tile.sums(groups, emit.zeros(), format.code_bytes, codes, values), out, stride)


def emit_unpack(builder: ir.IRBuilder, isa: InstructionSet, bits: int, arguments: list[ir.Value]) -> None:
    """Emit the lookup of a tile's columns into a panel.

    The arguments are the addresses of codes, codebook and panel, and the number of groups. The panel holds, for each
    line of 8 columns, the values of columns 0..3 of all rows and then those of columns 4..7.
    """
    codes, codebook, panel, groups = arguments
    emit = TileBuilder(isa, 1, builder)
    b = builder
    values = looked_up(emit, isa, bits, codebook)

    def group(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        source = b.add(codes, emit.times(index, TILE_ROWS * GROUP * bits // 8))
        target = b.add(panel, emit.times(index, TILE_ROWS * GROUP))
        for line in range(_LINES):
            for part in range(emit.parts):
                for half, value in enumerate(values(source, line, part)):
                    offset = _PANEL_LINE * line + 64 * half + 4 * emit.rows * part
                    b.store(value, emit.pointer(target, offset, emit.ints), align=4)
        return carried

    emit.loop(groups, [], group)


def emit_panel_tile(
    builder: ir.IRBuilder, isa: InstructionSet, num_scales: int, num_tokens: int, arguments: list[ir.Value]
) -> None:
    """Emit the product of one panel, added to what the output holds unless it is the first of its tile.

    The arguments are those of `emit_codebook_tile`, with the panel's address for codes and, for the codebook, three: 1
    for the tile's first panel and 0 for the others, the address of the codes that are unpacked next, to be asked for,
    and the bytes of a group's codes.
    """
    panel, scales, super_scales, is_first, following, code_bytes, *x, out, groups, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder)
    b = builder
    shift = b.sub(following, ir.Constant(I64, PREFETCH_BYTES))

    def values(address: ir.Value, line: int, part: int) -> tuple[ir.Value, ir.Value]:
        if part == 0:
            # With few tokens, memory must be read while the processor computes.
            group = b.lshr(b.sub(address, panel), ir.Constant(I64, (TILE_ROWS * GROUP).bit_length() - 1))
            emit.prefetch(b.add(shift, b.add(b.mul(group, code_bytes), ir.Constant(I64, 64 * line))), 64)
        at = _PANEL_LINE * line + 4 * emit.rows * part
        return emit.load(address, at, emit.ints, 1), emit.load(address, at + 64, emit.ints, 1)

    before = emit.load_sums(out, stride)
    first = b.icmp_unsigned("!=", is_first, ir.Constant(I64, 0))
    totals = [b.select(first, zero, value) for zero, value in zip(emit.zeros(), before, strict=True)]
    tile = CodebookTile(emit, isa, num_scales, [scales, super_scales, *x])
    emit.store(tile.sums(groups, totals, TILE_ROWS * GROUP, panel, values), out, stride)


def make_codebook_tile(
    instruction_set: InstructionSet, format: CodebookFormat, num_tokens: int, block_tokens: int
) -> Any:
    """Return the intrinsic of `emit_codebook_tile`; num_tokens and block_tokens as in `TileBuilder`."""
    kind = f"{format.bits}.{format.num_scales}.{num_tokens}.{block_tokens}"
    name = f"cg_local.codebook_tile.{instruction_set.name}.{kind}"

    def emit(builder: ir.IRBuilder, arguments: list[ir.Value]) -> None:
        emit_codebook_tile(builder, instruction_set, format, num_tokens, block_tokens, arguments)

    @intrinsic
    def tile(
        typing_context, codes, scales, supers, codebook, x_codes, x_scales, x_sums, x_corrections, out, groups, stride
    ):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            call_shared(builder, name, arguments, emit)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), generate

    return tile


def make_unpack(instruction_set: InstructionSet, bits: int) -> Any:
    """Return the intrinsic of `emit_unpack`."""
    name = f"cg_local.codebook_unpack.{instruction_set.name}.{bits}"

    def emit(builder: ir.IRBuilder, arguments: list[ir.Value]) -> None:
        emit_unpack(builder, instruction_set, bits, arguments)

    @intrinsic
    def unpack(typing_context, codes, codebook, panel, groups):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            call_shared(builder, name, arguments, emit)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    return unpack


def make_panel_tile(instruction_set: InstructionSet, num_scales: int, num_tokens: int) -> Any:
    """Return the intrinsic of `emit_panel_tile`."""
    name = f"cg_local.codebook_panel.{instruction_set.name}.{num_scales}.{num_tokens}"

    def emit(builder: ir.IRBuilder, arguments: list[ir.Value]) -> None:
        emit_panel_tile(builder, instruction_set, num_scales, num_tokens, arguments)

    @intrinsic
    def tile(
        typing_context,
        panel,
        scales,
        supers,
        is_first,
        following,
        code_bytes,
        x_codes,
        x_scales,
        x_sums,
        x_corrections,
        out,
        groups,
        stride,
    ):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            call_shared(builder, name, arguments, emit)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 13), generate

    return tile
