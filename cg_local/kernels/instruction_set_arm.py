"""The instruction set of 64-bit Arm processors: NEON with the dot product extension, and how to find it.

This file owns how `instruction_set.InstructionSet` is said in NEON instructions, and the question whether the host has
`dotprod`: LLVM does not ask it. Invariant: the class computes the same 32-bit integers as those of x86.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

import numba
from llvmlite import ir
from numba.core import codegen

from cg_local.kernels.llvm_vectors import I8, I32, call, splat_constant, vector

# getauxval(AT_HWCAP) of Linux; source: arch/arm64/include/uapi/asm/hwcap.h, HWCAP_ASIMDDP.
_AT_HWCAP, _HWCAP_ASIMDDP = 16, 1 << 20
# Source: winnt.h, PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE.
_PF_ARM_V82_DP = 43

# Where a shuffle of two vectors of bytes finds the first byte of each 16-bit word, alternating between the vectors.
INTERLEAVED = [2 * word + start for word in range(8) for start in (0, 16)]


class NeonDotprod:
    """NEON with dotprod (Cortex-A75, Neoverse N1, Apple M1 and later): 128-bit registers, sdot.

    sdot multiplies signed bytes. The "unsigned" operands of `dot` are below 128 everywhere and so are the same signed.
    """

    name = "neon-dotprod"
    register_rows = 4
    signed_offset = 0
    folds_scales = False
    value_offset = 0

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """One sdot."""
        bytes_type = vector(I8, 16)
        operands = builder.bitcast(unsigned, bytes_type), builder.bitcast(signed, bytes_type)
        return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", vector(I32, 4), total, *operands)

    def dot_two(
        self,
        builder: ir.IRBuilder,
        total: ir.Value,
        unsigned: tuple[ir.Value, ir.Value],
        signed: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Two sdot."""
        return self.dot(builder, self.dot(builder, total, unsigned[0], signed[0]), unsigned[1], signed[1])

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """One tbl."""
        bytes_type = vector(I8, 16)
        operands = builder.bitcast(table, bytes_type), builder.bitcast(codes, bytes_type)
        return builder.bitcast(call(builder, "llvm.aarch64.neon.tbl1.v16i8", bytes_type, *operands), codes.type)

    def signed_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Signed bytes are what sdot takes."""
        return weights

    def signed_dot(self, builder: ir.IRBuilder, total: ir.Value, weights: Any, codes: ir.Value) -> ir.Value:
        """One sdot."""
        return self.dot(builder, total, weights, codes)

    def word_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Signed bytes are what sdot takes."""
        return weights

    def word_zero(self) -> Any:
        """Sums of the codes' upper and lower bytes."""
        return (splat_constant(vector(I32, self.register_rows), 0),) * 2

    def word_dot(self, builder: ir.IRBuilder, total: Any, weights: Any, codes: tuple[ir.Value, ir.Value]) -> Any:
        """Split code = 256 * upper + lower, both signed, and take one sdot of each."""
        bytes_type = vector(I8, 16)
        even, odd = (builder.bitcast(pair, bytes_type) for pair in codes)
        # trn1 and trn2: byte 0 (or 1) of an even code, then of the odd code behind it.
        lower, upper = (
            builder.shuffle_vector(even, odd, ir.Constant(vector(I32, 16), [at + byte for at in INTERLEAVED]))
            for byte in (0, 1)
        )
        # A lower byte taken as signed is 256 too small where its top bit is set: one more in the upper byte (usra).
        carried = builder.add(upper, builder.lshr(lower, splat_constant(bytes_type, 7)))
        upper, lower = (builder.bitcast(plane, weights.type) for plane in (carried, lower))
        return self.dot(builder, total[0], weights, upper), self.dot(builder, total[1], weights, lower)

    def word_sum(self, builder: ir.IRBuilder, total: Any) -> ir.Value:
        """256 * upper + lower."""
        return builder.add(builder.shl(total[0], splat_constant(total[0].type, 8)), total[1])


def request_dotprod() -> None:
    """Make Numba compile for `dotprod` where the processor has it and nobody named other features.

    LLVM reports no dotprod for an Arm host, on Linux from an incomplete list and on macOS from none at all; it would
    know the extension only from processor models that it recognizes. Must run before Numba's first jitted function.
    """
    if numba.config.CPU_FEATURES is None and has_dotprod():
        found = codegen.get_host_cpu_features()
        numba.config.CPU_FEATURES = f"{found},+dotprod" if found else "+dotprod"


def has_dotprod() -> bool:
    """Ask the operating system whether this is an Arm processor with the dot product extension."""
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return False
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(_PF_ARM_V82_DP))
    library = ctypes.CDLL(None)
    if sys.platform == "darwin":
        value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        name = b"hw.optional.arm.FEAT_DotProd"
        failed = library.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        # macOS 11 does not know the name; every Mac with an Arm processor has the extension.
        return bool(failed or value.value)
    if not hasattr(library, "getauxval"):
        return False
    library.getauxval.restype = ctypes.c_ulong
    return bool(library.getauxval(ctypes.c_ulong(_AT_HWCAP)) & _HWCAP_ASIMDDP)
