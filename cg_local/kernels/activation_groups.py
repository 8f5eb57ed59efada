"""One group of 32 activations at a time, in vectors: normalized or gated, then rounded to int8 and stored.

This file owns the machine code of a group; the loops over groups and tokens stand in `activations.py` and
`products.py`. It is said in LLVM's generic vectors, which every processor has: left to itself LLVM unrolls the 32 steps
and computes them one by one, three times as slowly. Invariant: a group's result depends on its own 32 values alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from cg_local.kernels.llvm_vectors import F32, I8, I16, I32, call, splat, splat_constant, vector
from cg_local.packing import CODEBOOK_OFFSET, GROUP, TILE_ROWS

CODE_LIMIT = 127
# 2**-120: the float32 quotient CODE_LIMIT / SMALLEST is finite.
SMALLEST = 2.0**-120
# tanh-GELU: x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))); source in `activations.py`.
GELU_FACTOR, GELU_CUBIC = -1.5957691216057308, 0.044715
# exp(x) = 2**n exp(r): ln 2 in two parts, so that x - n ln 2 is exact for |n| < 2**9; a minimax polynomial of exp on
# [-ln2/2, ln2/2], relative error 2e-8 before rounding. Source: Cephes, expf.
LOG2_E, LN2_HIGH, LN2_LOW, EXP_LIMIT = 1.4426950408889634, 0.693359375, -2.12194440e-4, 87.0
EXP_COEFFICIENTS = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
)  # fmt: skip
# 1.5 * 2**23: a float32 near it has no fraction left, so adding it rounds to the nearest, ties to even.
ROUNDING = 12582912.0

_FLOATS, _INTS = vector(F32, GROUP), vector(I32, GROUP)


class GroupBuilder:
    """Emits the arithmetic of a group; every method takes and gives vectors of GROUP lanes."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def load(self, address: ir.Value, count: int = GROUP) -> ir.Value:
        """Load `count` float32 from an address."""
        kind = vector(F32, count)
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=4)

    def store(self, value: ir.Value, address: ir.Value) -> None:
        """Store a value of any type."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=1)

    def full(self, value: float) -> ir.Constant:
        """Return a constant in every lane."""
        return splat_constant(_FLOATS, value)

    def joined(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """Put two half groups side by side."""
        return self.b.shuffle_vector(first, second, ir.Constant(_INTS, list(range(GROUP))))

    def rounded(self, x: ir.Value) -> ir.Value:
        """Round to the nearest integer, ties to even, |x| < 2**22."""
        return self.b.fsub(self.b.fadd(x, self.full(ROUNDING)), self.full(ROUNDING))

    def exp(self, x: ir.Value) -> ir.Value:
        """Return exp(x), x clamped to [-87, 87]; relative error below 2e-7."""
        b = self.b
        for predicate, limit in ((">", -EXP_LIMIT), ("<", EXP_LIMIT)):
            x = b.select(b.fcmp_ordered(predicate, x, self.full(limit)), x, self.full(limit))
        n = self.rounded(b.fmul(x, self.full(LOG2_E)))
        r = b.fsub(b.fsub(x, b.fmul(n, self.full(LN2_HIGH))), b.fmul(n, self.full(LN2_LOW)))
        p = self.full(EXP_COEFFICIENTS[0])
        for coefficient in EXP_COEFFICIENTS[1:]:
            p = b.fadd(b.fmul(p, r), self.full(coefficient))
        p = b.fadd(b.fadd(b.fmul(b.fmul(p, r), r), r), self.full(1.0))
        exponent = b.add(b.fptosi(n, _INTS), splat_constant(_INTS, 127))
        return b.fmul(p, b.bitcast(b.shl(exponent, splat_constant(_INTS, 23)), _FLOATS))

    def gelu_tanh(self, x: ir.Value) -> ir.Value:
        """Return the tanh approximation of GELU."""
        b = self.b
        cube = b.fmul(b.fmul(b.fmul(self.full(GELU_CUBIC), x), x), x)
        exponential = self.exp(b.fmul(self.full(GELU_FACTOR), b.fadd(x, cube)))
        return b.fdiv(x, b.fadd(self.full(1.0), exponential))

    def quantize(self, values: ir.Value, targets: list[ir.Value]) -> None:
        """Round values to int8 and store them: targets are addresses of codes, scale, sum and corrections."""
        b = self.b
        codes, scale, total, corrections = targets
        # Magnitudes compare as the integers of their bits.
        bits = b.and_(b.bitcast(values, _INTS), splat_constant(_INTS, 0x7FFFFFFF))
        largest = b.bitcast(call(b, f"llvm.vector.reduce.umax.v{GROUP}i32", I32, bits), F32)
        limit, zero = ir.Constant(F32, float(CODE_LIMIT)), ir.Constant(F32, 0.0)
        # Below it limit / largest is no float32 any more; such a group is 0.
        is_more = b.fcmp_ordered(">", largest, ir.Constant(F32, SMALLEST))
        inverse = b.select(is_more, b.fdiv(limit, largest), zero)
        self.store(b.fdiv(largest, limit), scale)
        numbers = b.fptosi(self.rounded(b.fmul(values, splat(b, inverse, GROUP))), _INTS)
        self.store(b.trunc(numbers, vector(I8, GROUP)), codes)
        self.store(call(b, f"llvm.vector.reduce.add.v{GROUP}i32", I32, numbers), total)
        self.store(self._corrections(numbers), corrections)

    def _corrections(self, numbers: ir.Value) -> ir.Value:
        """Return -64 times the sums of columns 0, 1, 4, 5 and of 2, 3, 6, 7 of each 8, as pairs of int16."""
        places = [
            [8 * line + start for line in range(GROUP // 8) for start in (column, column + 2)]
            for column in (0, 1, 4, 5)
        ]
        count = GROUP // 4
        picked = [self.b.shuffle_vector(numbers, numbers, ir.Constant(vector(I32, count), at)) for at in places]
        total = picked[0]
        for part in picked[1:]:
            total = self.b.add(total, part)
        return self.b.trunc(self.b.mul(total, splat_constant(total.type, -CODEBOOK_OFFSET)), vector(I16, count))


@njit(inline="always")
def address_of(array):
    """Return where an array begins, signed as addresses are everywhere in the kernels."""
    return types.int64(array.ctypes.data)


@njit(inline="always")
def group_places(parts, number):
    """Return where the codes, scale, sum and corrections of one group stand.

    Args:
        parts: addresses of the four arrays; number: of the group and token, counted through the blocks in `matmul.py`.
    """
    codes, scales, sums, corrections = parts
    return codes + number * GROUP, scales + number * 4, sums + number * 4, corrections + number * (GROUP // 2)


@intrinsic
def quantize_plain(typing_context, x, codes, scale, total, corrections):
    """Quantize 32 float32 at an address; the others are the addresses to store to."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        x, *targets = arguments
        emit = GroupBuilder(builder)
        emit.quantize(emit.load(x), targets)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@intrinsic
def quantize_normalized(typing_context, x, scale, gain, codes, code_scale, total, corrections):
    """Quantize x * scale * gain; x and gain are addresses of 32 float32, scale is a float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        x, scale, gain, *targets = arguments
        emit = GroupBuilder(builder)
        scaled = builder.fmul(emit.load(x), splat(builder, scale, GROUP))
        emit.quantize(builder.fmul(scaled, emit.load(gain)), targets)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, *[types.intp] * 5), generate


@intrinsic
def quantize_gated(typing_context, first, second, up_distance, codes, scale, total, corrections):
    """Quantize gelu_tanh(gate) * up; first and second are addresses of 16 gates each, up stands up_distance behind."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        first, second, distance, *targets = arguments
        emit = GroupBuilder(builder)
        gate = emit.joined(emit.load(first, TILE_ROWS), emit.load(second, TILE_ROWS))
        halves = (emit.load(builder.add(half, distance), TILE_ROWS) for half in (first, second))
        emit.quantize(builder.fmul(emit.gelu_tanh(gate), emit.joined(next(halves), next(halves))), targets)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate
