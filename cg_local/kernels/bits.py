"""Bits of floating-point numbers inside Numba code: reinterpretation, and float16 with and without hardware support.

This file owns the conversions that NumPy's `view` and float16 do outside Numba. Everything here is inlined and
vectorizes in the caller's loop. Invariant: conversions round to nearest, ties to even, and the portable ones give the
bits of the hardware's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from cg_local.kernels.instruction_set import select_instruction_set

# Functions that only compiled code calls need no wrappers, and no check of divisors, which are never 0 here.
INNER = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
_REBIAS = np.float32(2.0**112)
_SMALLEST_NORMAL_HALF = np.float32(2.0**-14)
_LARGEST_HALF = np.float32(65504.0)
_HALF = np.float32(0.5)


@intrinsic
def float32_from_bits(typing_context, bits):
    """Return the float32 whose bits are the low 32 of the given integer."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        number = builder.trunc(arguments[0], ir.IntType(32)) if arguments[0].type.width > 32 else arguments[0]
        return builder.bitcast(number, ir.FloatType())

    return types.float32(bits), generate


@intrinsic
def bits_from_float32(typing_context, value):
    """Return the bits of a float32 as uint32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def hardware_float32_from_half(typing_context, half):
    """Widen the bits of a float16 by the processor's own instruction (x86: vcvtph2ps)."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _rounded_half(typing_context, value):
    """Round a float32 within float16's range to the bits of a float16 by the processor's own instruction."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@njit(inline="always")
def hardware_half_from_float32(value):
    """Round a float32 to the bits of a float16; magnitudes beyond 65504 become 65504."""
    return _rounded_half(min(max(value, -_LARGEST_HALF), _LARGEST_HALF))


@njit(inline="always")
def portable_float32_from_half(half):
    """Widen the bits of a finite float16: exponent and mantissa move into place, a product rebiases them."""
    magnitude = float32_from_bits(np.uint32(half & np.uint16(0x7FFF)) << np.uint32(13)) * _REBIAS
    return -magnitude if half & np.uint16(0x8000) else magnitude


@njit(inline="always")
def portable_half_from_float32(value):
    """Round a float32 to the bits of a float16; magnitudes beyond 65504 become 65504."""
    magnitude = min(abs(value), _LARGEST_HALF)
    bits = bits_from_float32(magnitude)
    # Normal results: rebias the exponent by 112, add half a unit less the tie bit, cut 13 bits. Subnormal results: the
    # last bit of 0.5 + x weighs 2**-24, a subnormal float16's unit, so the addition itself rounds.
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    normal = (bits - np.uint32(112 << 23) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    subnormal = bits_from_float32(magnitude + _HALF) - np.uint32(126 << 23)
    half = normal if magnitude >= _SMALLEST_NORMAL_HALF else subnormal
    sign = (bits_from_float32(value) >> np.uint32(16)) & np.uint32(0x8000)
    return np.uint16(half | sign)


# Every instruction set with a class of its own converts float16; without one LLVM would call a library function that
# Numba cannot link.
_has_hardware = select_instruction_set() is not None
float32_from_half = hardware_float32_from_half if _has_hardware else portable_float32_from_half
half_from_float32 = hardware_half_from_float32 if _has_hardware else portable_half_from_float32
