"""Sums over columns for LANES rows at a time, in vector registers, where Numba's own loops do not keep them.

This file owns three loops whose accumulators must stay in registers, written in LLVM's vectors without regard to a
processor. It knows nothing of quantization. Invariant: every sum runs over rising indices, one product after another
and each rounded by itself, so the result is the same on every machine and does not depend on the other lanes.

A loop over LANES elements of an array, as the compiler sees it, may change any other array: it loads and stores the
accumulator in every round, and took twelve times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from cg_local.kernels.llvm_vectors import F32, I64, loop, splat, vector
from cg_local.packing import TILE_ROWS

LANES = TILE_ROWS
PANEL = 16  # columns whose sums are computed together
_AT_ONCE = 4  # accumulators of LANES floats: with AVX2's 16 registers 8 for these, the others for the operands
_VECTOR = vector(F32, LANES)

Generator = Callable[[Any, ir.IRBuilder, Any, Any], ir.Value]


@intrinsic
def panel_sums(typing: Any, panel: Any, rows: Any, first: Any, count: Any, sums: Any, start: Any) -> Any:
    """Set sums[start + i] to the sum of panel[first + j, i] * rows[j] over j < count, for i < PANEL.

    Args:
        typing: Numba's, not passed by callers.
        panel: float32 [n, PANEL].
        rows, sums: float32 [*, LANES].
        first, count, start: int.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        weights, values, out = (_pointer(context, builder, signature, arguments, n) for n in (0, 1, 4))
        _, _, begin, number, _, to = arguments

        def products(column: int) -> None:
            def step(j: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
                value = _load(builder, values, j)
                at = builder.add(builder.mul(builder.add(begin, j), _int(PANEL)), _int(column))
                found = []
                for offset, total in enumerate(totals):
                    weight = builder.load(builder.gep(weights, [builder.add(at, _int(offset))]))
                    found.append(builder.fadd(total, builder.fmul(splat(builder, weight, LANES), value)))
                return found

            zeros = [ir.Constant(_VECTOR, [0.0] * LANES)] * _AT_ONCE
            for offset, total in enumerate(loop(builder, _int(0), number, 1, zeros, step)):
                _store(builder, total, out, builder.add(to, _int(column + offset)))

        for column in range(0, PANEL, _AT_ONCE):
            products(column)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(panel, rows, integer, integer, sums, integer), generate


@intrinsic
def add_products(typing: Any, weights: Any, first: Any, value: Any, sums: Any, start: Any) -> Any:
    """Add weights[i] * value to sums[start + i], for i from first to PANEL.

    Args:
        typing: Numba's, not passed by callers.
        weights: float32 [PANEL].
        value: float32 [LANES].
        sums: float32 [*, LANES].
        first, start: int.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        factors, values, out = (_pointer(context, builder, signature, arguments, n) for n in (0, 2, 3))
        factor = _load(builder, values, _int(0))

        def step(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            weight = builder.load(builder.gep(factors, [i]))
            at = builder.add(arguments[4], i)
            product = builder.fmul(splat(builder, weight, LANES), factor)
            _store(builder, builder.fadd(_load(builder, out, at), product), out, at)
            return carried

        loop(builder, arguments[1], _int(PANEL), 1, [], step)
        return context.get_dummy_value()

    return types.void(weights, types.int64, value, sums, types.int64), generate


@intrinsic
def nearest_values(typing: Any, ratios: Any, values: Any, middles: Any, found: Any) -> Any:
    """Set found to the value nearest to each ratio.

    Args:
        typing: Numba's, not passed by callers.
        ratios, found: float32 [LANES].
        values: float32 [n], ascending.
        middles: float32 [n - 1], between two values each; a ratio there goes to the lower one.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        ratio_at, choices, limits, out = (_pointer(context, builder, signature, arguments, n) for n in range(4))
        ratio = _load(builder, ratio_at, _int(0))
        count = context.make_array(signature.args[2])(context, builder, arguments[2]).nitems

        def step(k: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            limit = splat(builder, builder.load(builder.gep(limits, [k])), LANES)
            choice = splat(builder, builder.load(builder.gep(choices, [builder.add(k, _int(1))])), LANES)
            return [builder.select(builder.fcmp_ordered(">", ratio, limit), choice, carried[0])]

        lowest = splat(builder, builder.load(choices), LANES)
        _store(builder, loop(builder, _int(0), count, 1, [lowest], step)[0], out, _int(0))
        return context.get_dummy_value()

    return types.void(ratios, values, middles, found), generate


def _int(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _pointer(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, number: int) -> ir.Value:
    return context.make_array(signature.args[number])(context, builder, arguments[number]).data


def _load(builder: ir.IRBuilder, base: ir.Value, row: ir.Value) -> ir.Value:
    at = builder.gep(base, [builder.mul(row, _int(LANES))])
    return builder.load(builder.bitcast(at, _VECTOR.as_pointer()), align=4)


def _store(builder: ir.IRBuilder, value: ir.Value, base: ir.Value, row: ir.Value) -> None:
    at = builder.gep(base, [builder.mul(row, _int(LANES))])
    builder.store(value, builder.bitcast(at, _VECTOR.as_pointer()), align=4)
