"""Small matrix products, widenings and reductions in vector registers, generated for any register width.

This file owns the machine code of attention's inner loops. It knows addresses and strides, no pages and no queries.
Invariant: every sum is one chain in ascending order of its index, so a result does not depend on the number of rows in
a tile nor on how a product was cut along its inner dimension, and each width of register gives the same bits.

The functions made here take addresses (intp) and are called from compiled code alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cg_local.kernels.activation_groups import EXP_COEFFICIENTS, EXP_LIMIT, LN2_HIGH, LN2_LOW, LOG2_E
from cg_local.kernels.llvm_vectors import F32, I8, I16, I32, I64, call, call_shared, loop, splat, splat_constant, vector

# Columns of a tile: the keys of a page of 16, or 16 of a value's columns.
TILE_COLUMNS = 16
# Steps along the inner dimension that a tile product writes out.
BLOCK_STEPS = 8
_BYTES = {"float32": 4, "float16": 2, "int8": 1}
# A float16's bits moved to a float32's places are too small by the difference of the exponents' biases.
_REBIAS = 2.0**112


class RegisterTile:
    """Emits code on TILE_COLUMNS float32 columns held in `parts` registers.

    Args:
        lanes: float32 values of one register: 4, 8 or 16.
        is_rich: the processor has fused multiply-add and converts float16; else both are composed of plain operations.
        builder: where to emit.
    """

    def __init__(self, lanes: int, is_rich: bool, builder: ir.IRBuilder) -> None:
        self.lanes, self.is_rich, self.b = lanes, is_rich, builder
        self.parts = TILE_COLUMNS // lanes
        self.floats, self.ints = vector(F32, lanes), vector(I32, lanes)

    def load(self, address: ir.Value, element: ir.Type, part: int, size: int) -> ir.Value:
        """Load one part of a line of elements of `size` bytes."""
        return self.b.load(self._pointer(address, element, part, size), align=1)

    def store(self, value: ir.Value, address: ir.Value, part: int) -> None:
        """Store float32 values as one part of a line."""
        self.b.store(value, self._pointer(address, self.floats, part, 4), align=4)

    def prefetch(self, address: ir.Value) -> None:
        """Ask for the line of memory at an address, which need not be valid."""
        flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]
        call(self.b, "llvm.prefetch.p0", ir.VoidType(), self.b.inttoptr(address, I8.as_pointer()), *flags)

    def _pointer(self, address: ir.Value, element: ir.Type, part: int, size: int) -> ir.Value:
        offset = ir.Constant(I64, part * self.lanes * size)
        return self.b.inttoptr(self.b.add(address, offset), element.as_pointer())

    def widened(self, address: ir.Value, element: str, part: int) -> ir.Value:
        """Load one part of a line of float32, float16 or int8 values as float32."""
        if element == "float32":
            return self.load(address, self.floats, part, 4)
        if element == "int8":
            codes = self.load(address, vector(I8, self.lanes), part, 1)
            return self.b.sitofp(self.b.sext(codes, self.ints), self.floats)
        return self.widened_halves(self.load(address, vector(I16, self.lanes), part, 2))

    def widened_halves(self, halves: ir.Value) -> ir.Value:
        """Return the float32 values of float16 bits; without hardware as `bits.portable_float32_from_half`."""
        if self.is_rich:
            return self.b.fpext(self.b.bitcast(halves, vector(ir.HalfType(), self.lanes)), self.floats)
        b, bits = self.b, self.b.zext(halves, self.ints)
        magnitude = b.shl(b.and_(bits, splat_constant(self.ints, 0x7FFF)), splat_constant(self.ints, 13))
        scaled = b.fmul(b.bitcast(magnitude, self.floats), splat_constant(self.floats, _REBIAS))
        sign = b.shl(b.and_(bits, splat_constant(self.ints, 0x8000)), splat_constant(self.ints, 16))
        return b.bitcast(b.or_(b.bitcast(scaled, self.ints), sign), self.floats)

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """Return x * y + z, rounded once where the processor can."""
        if self.is_rich:
            return call(self.b, f"llvm.fma.v{self.lanes}f32", self.floats, x, y, z)
        return self.b.fadd(self.b.fmul(x, y), z)

    def exp(self, x: ir.Value) -> ir.Value:
        """Return exp(x) for x <= 0: `activations.exp32` in registers."""
        b, full = self.b, lambda value: splat_constant(self.floats, float(value))
        x = self.largest(x, full(-EXP_LIMIT))
        n = call(b, f"llvm.rint.v{self.lanes}f32", self.floats, b.fmul(x, full(LOG2_E)))
        r = b.fsub(b.fsub(x, b.fmul(n, full(LN2_HIGH))), b.fmul(n, full(LN2_LOW)))
        p = full(EXP_COEFFICIENTS[0])
        for coefficient in EXP_COEFFICIENTS[1:]:
            p = self.multiply_add(p, r, full(coefficient))
        p = self.multiply_add(b.fmul(p, r), r, b.fadd(r, full(1)))
        exponent = b.add(b.fptosi(n, self.ints), splat_constant(self.ints, 127))
        return b.fmul(p, b.bitcast(b.shl(exponent, splat_constant(self.ints, 23)), self.floats))

    def largest(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Return the larger value of each lane."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def below(self, first: ir.Value, part: int, count: ir.Value) -> ir.Value:
        """Return which lanes of a part have an index, counted from `first`, below `count`."""
        b = self.b
        lane_ids = ir.Constant(self.ints, [part * self.lanes + lane for lane in range(self.lanes)])
        left = splat(b, b.trunc(b.sub(count, first), I32), self.lanes)
        return b.icmp_signed("<", lane_ids, left)


def lines_ahead(num_rows: int) -> int:
    """Return how many lines of 64 bytes a tile product of float16 asks for in each BLOCK_STEPS steps.

    A tile of one row passes over B once, so it asks for as much as it reads; more rows do it in two or more passes.
    """
    return BLOCK_STEPS * TILE_COLUMNS * _BYTES["float16"] // 64 // (1 if num_rows == 1 else 2)


def make_tile_product(lanes: int, is_rich: bool, num_rows: int, element: str) -> Any:
    """Return the intrinsic of C = A B or C += A B for num_rows rows and TILE_COLUMNS columns.

    Its arguments: address of A (float32, num_rows rows) and its stride between rows, address of B (`element`, `inner`
    rows) and its stride, address of C (float32) and its stride, `adds`: 0 begins at zero, 1 at C, and `ahead`. Strides
    count elements. A B of float16 is taken as it comes from memory: while it is read, inner / BLOCK_STEPS times
    `lines_ahead(num_rows)` lines of memory from the address `ahead` on, which need not be valid, are asked for.
    """

    def emit(builder: ir.IRBuilder, arguments: list[ir.Value]) -> None:
        a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead = arguments
        tile = RegisterTile(lanes, is_rich, builder)
        row_bytes = builder.mul(a_stride, ir.Constant(I64, 4))
        # Three rows to a pointer: the processor adds a stride or two of them for nothing.
        pointers = [builder.add(a, builder.mul(row_bytes, ir.Constant(I64, row))) for row in range(0, num_rows, 3)]
        c_rows = [builder.add(c, builder.mul(c_stride, ir.Constant(I64, 4 * row))) for row in range(num_rows)]
        line_bytes = builder.mul(b_stride, ir.Constant(I64, _BYTES[element]))
        keeps, zero = builder.trunc(adds, ir.IntType(1)), splat_constant(tile.floats, 0.0)
        places = [(row, part) for row in range(num_rows) for part in range(tile.parts)]
        sums = [builder.select(keeps, tile.load(c_rows[row], tile.floats, part, 4), zero) for row, part in places]

        def steps(index: ir.Value, carried: list[ir.Value], count: int) -> list[ir.Value]:
            line, wanted, pointers, sums = carried[0], carried[1], carried[2:first_sum], carried[first_sum:]
            for nth in range(count):
                columns = [tile.widened(line, element, part) for part in range(tile.parts)]
                for (row, part), total in zip(places, list(sums), strict=True):
                    at = builder.add(pointers[row // 3], ir.Constant(I64, 4 * nth))
                    at = builder.add(at, builder.mul(row_bytes, ir.Constant(I64, row % 3)))
                    factor = splat(builder, builder.load(builder.inttoptr(at, F32.as_pointer()), align=4), lanes)
                    sums[row * tile.parts + part] = tile.multiply_add(factor, columns[part], total)
                line = builder.add(line, line_bytes)
                if element == "float16" and count > 1 and nth % (count // lines_ahead(num_rows)) == 0:
                    tile.prefetch(wanted)
                    wanted = builder.add(wanted, ir.Constant(I64, 64))
            return [line, wanted, *(builder.add(at, ir.Constant(I64, 4 * count)) for at in pointers), *sums]

        carried, begin = [b, ahead, *pointers, *sums], ir.Constant(I64, 0)
        first_sum = 2 + len(pointers)
        if element == "float16":
            # Written out because a page has few tokens: most of a short loop is its beginning and its end. For float32
            # LLVM's own unrolling is twice as fast.
            whole = builder.and_(inner, ir.Constant(I64, -BLOCK_STEPS))
            carried = loop(builder, begin, whole, BLOCK_STEPS, carried, partial(steps, count=BLOCK_STEPS))
            begin = whole
        sums = loop(builder, begin, inner, 1, carried, partial(steps, count=1))[first_sum:]
        for (row, part), total in zip(places, sums, strict=True):
            tile.store(total, c_rows[row], part)

    @intrinsic
    def tile_product(typing_context, a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            name = f"cg_local.tile_product.{lanes}.{int(is_rich)}.{num_rows}.{element}"
            call_shared(builder, name, arguments, emit)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return tile_product


def make_widen(lanes: int, is_rich: bool, element: str) -> Any:
    """Return the intrinsic that writes TILE_COLUMNS stored values as float32; its arguments: their address, out's."""

    @intrinsic
    def widen(typing_context, source, out):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            tile = RegisterTile(lanes, is_rich, builder)
            for part in range(tile.parts):
                tile.store(tile.widened(arguments[0], element, part), arguments[1], part)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return widen


def make_scaled_widen(lanes: int, is_rich: bool) -> Any:
    """Return the intrinsic that writes TILE_COLUMNS int8 codes times their scales as float32.

    Its arguments: the address of the codes; of one float32 scale for each, or a float32 for all; the address of out.
    """

    @intrinsic
    def scaled_widen(typing_context, source, scales, out):
        is_shared = isinstance(scales, types.Float)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            source, scales, out = arguments
            tile = RegisterTile(lanes, is_rich, builder)
            for part in range(tile.parts):
                factors = splat(builder, scales, lanes) if is_shared else tile.load(scales, tile.floats, part, 4)
                tile.store(builder.fmul(tile.widened(source, "int8", part), factors), out, part)
            return context.get_dummy_value()

        return types.void(types.intp, scales, types.intp), generate

    return scaled_widen


def make_split_half_widen(lanes: int, is_rich: bool) -> Any:
    """Return the intrinsic that writes TILE_COLUMNS float16 as float32.

    Its arguments: the address of their low bytes, of their high bytes, and of out.
    """

    @intrinsic
    def split_half_widen(typing_context, low, high, out):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            tile = RegisterTile(lanes, is_rich, builder)
            words = vector(I16, lanes)
            for part in range(tile.parts):
                low, high = (builder.zext(tile.load(at, vector(I8, lanes), part, 1), words) for at in arguments[:2])
                halves = builder.or_(low, builder.shl(high, splat_constant(words, 8)))
                tile.store(tile.widened_halves(halves), arguments[2], part)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp), generate

    return split_half_widen


def make_line_peak(lanes: int, is_rich: bool) -> Any:
    """Return the intrinsic of the largest of `count` float32 values, a line padded to whole tiles.

    Its arguments: the line's address, count >= 1, and the value to begin with.
    """

    @intrinsic
    def line_peak(typing_context, line, count, lowest):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            line, count, lowest = arguments
            tile = RegisterTile(lanes, is_rich, builder)
            floor = splat(builder, lowest, lanes)

            def step(index: ir.Value, peaks: list[ir.Value]) -> list[ir.Value]:
                base = builder.add(line, builder.mul(index, ir.Constant(I64, 4)))
                results = []
                for part, peak in enumerate(peaks):
                    value = tile.load(base, tile.floats, part, 4)
                    counted = builder.select(tile.below(index, part, count), value, floor)
                    results.append(tile.largest(counted, peak))
                return results

            peaks = loop(builder, ir.Constant(I64, 0), count, TILE_COLUMNS, [floor] * tile.parts, step)
            values = _values(builder, peaks, lanes)
            peak = values[0]
            for value in values[1:]:
                peak = builder.select(builder.fcmp_ordered(">", value, peak), value, peak)
            return peak

        return types.float32(types.intp, types.intp, types.float32), generate

    return line_peak


def make_line_weights(lanes: int, is_rich: bool) -> Any:
    """Return the intrinsic that replaces scores by exp(score - peak) and returns their sum, of TILE_COLUMNS chains.

    Its arguments: the address of a line of float32 padded to whole tiles; how many of its scores count; how long the
    line is, at least 1, whose other scores become 0, its padding too; and the peak, no score that counts is above it.
    """

    @intrinsic
    def line_weights(typing_context, line, seen, length, peak):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            line, seen, length, peak = arguments
            tile = RegisterTile(lanes, is_rich, builder)
            shift, zero = splat(builder, peak, lanes), splat_constant(tile.floats, 0.0)

            def step(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                base = builder.add(line, builder.mul(index, ir.Constant(I64, 4)))
                results = []
                for part, total in enumerate(sums):
                    weight = tile.exp(builder.fsub(tile.load(base, tile.floats, part, 4), shift))
                    weight = builder.select(tile.below(index, part, seen), weight, zero)
                    tile.store(weight, base, part)
                    results.append(builder.fadd(total, weight))
                return results

            sums = loop(builder, ir.Constant(I64, 0), length, TILE_COLUMNS, [zero] * tile.parts, step)
            values = _values(builder, sums, lanes)
            # Halves are added until one value is left: the same pairs for every width.
            while len(values) > 1:
                half = len(values) // 2
                values = [builder.fadd(x, y) for x, y in zip(values[:half], values[half:], strict=True)]
            return values[0]

        return types.float32(types.intp, types.intp, types.intp, types.float32), generate

    return line_weights


def _values(builder: ir.IRBuilder, parts: list[ir.Value], lanes: int) -> list[ir.Value]:
    """Return the TILE_COLUMNS single values of a line in registers."""
    return [builder.extract_element(part, ir.Constant(I32, lane)) for part in parts for lane in range(lanes)]
