"""The vector instructions that the matmul generator is written in, one class per instruction set.

This file owns how one integer dot product and one table lookup are said in LLVM for each processor family. It does not
know weight formats or loops. Invariant: for the same operands every class computes the same 32-bit integers, so results
do not depend on the machine.

A new instruction set is a new class with the attributes and methods of `Avx2` (see `matmul.py` for how they are used)
and a line in `select_instruction_set`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """Return the LLVM vector type of `count` elements."""
    return ir.VectorType(element, count)


def splat_constant(vector_type: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector constant with the same value in every lane."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """Copy a scalar into every lane of a new vector."""
    vector_type = vector(value.type, count)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(vector(I32, count), [0] * count))


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic by name, declaring it at its first use."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [operand.type for operand in operands]), name)
    return builder.call(function, operands)


class Avx2:
    """AVX2: 256-bit registers; products through 16-bit pairs (pmaddubsw, pmaddwd).

    pmaddubsw saturates at 16 bits, so the unsigned operand must stay in 0..127 (2 * 127 * 127 < 2**15): codebook values
    do by design, and 8-bit weights are made so by `signed_operands`.
    """

    name = "avx2"
    register_rows = 8
    signed_offset = 0

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """Add to each int32 lane the sum of its four products unsigned (0..127) * signed byte."""
        bytes_type, words = vector(I8, 32), vector(I16, 16)
        pairs = call(
            builder,
            "llvm.x86.avx2.pmadd.ub.sw",
            words,
            builder.bitcast(unsigned, bytes_type),
            builder.bitcast(signed, bytes_type),
        )
        fours = call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), pairs, splat_constant(words, 1))
        return builder.add(total, fours)

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """Replace each byte 0..15 of `codes` by the table's byte; the table repeats every 16 bytes."""
        bytes_type = vector(I8, 32)
        operands = builder.bitcast(table, bytes_type), builder.bitcast(codes, bytes_type)
        return builder.bitcast(call(builder, "llvm.x86.avx2.pshuf.b", bytes_type, *operands), codes.type)

    def signed_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Prepare int8 weights -127..127 for `signed_dot`: their magnitudes, computed once for all tokens."""
        as_bytes = builder.bitcast(weights, vector(I8, 32))
        negated = builder.sub(splat_constant(vector(I8, 32), 0), as_bytes)
        negative = builder.icmp_signed("<", as_bytes, splat_constant(vector(I8, 32), 0))
        return as_bytes, builder.select(negative, negated, as_bytes)

    def signed_dot(self, builder: ir.IRBuilder, total: ir.Value, weights: Any, codes: ir.Value) -> ir.Value:
        """Add int8 * int8 products: the weights' signs move to the activation codes (psignb), which never are -128."""
        as_bytes, magnitudes = weights
        bytes_type = vector(I8, 32)
        moved = call(builder, "llvm.x86.avx2.psign.b", bytes_type, builder.bitcast(codes, bytes_type), as_bytes)
        return self.dot(builder, total, magnitudes, moved)


class Avx512Vnni:
    """AVX-512 with VNNI: 512-bit registers, four byte products summed into each int32 lane by one vpdpbusd."""

    name = "avx512vnni"
    register_rows = 16
    signed_offset = 128

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """Add to each int32 lane the sum of its four products unsigned byte * signed byte."""
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", vector(I32, 16), total, unsigned, signed)

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """Replace each byte 0..15 of `codes` by the table's byte; the table repeats every 16 bytes."""
        bytes_type = vector(I8, 64)
        operands = builder.bitcast(table, bytes_type), builder.bitcast(codes, bytes_type)
        return builder.bitcast(call(builder, "llvm.x86.avx512.pshuf.b.512", bytes_type, *operands), codes.type)

    def signed_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Make int8 weights unsigned by adding `signed_offset`; the caller repays it through the codes' sums."""
        return builder.xor(weights, splat_constant(weights.type, 0x80808080))

    def signed_dot(self, builder: ir.IRBuilder, total: ir.Value, weights: Any, codes: ir.Value) -> ir.Value:
        """Add (weight + signed_offset) * code products."""
        return self.dot(builder, total, weights, codes)


class Emulated512(Avx512Vnni):
    """The AVX-512 code path in LLVM's generic vector operations, so that its structure can be tested on any machine."""

    name = "emulated512"

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """As Avx512Vnni.dot, through 64 widened products."""
        wide, bytes_type = vector(I32, 64), vector(I8, 64)
        products = builder.mul(
            builder.zext(builder.bitcast(unsigned, bytes_type), wide),
            builder.sext(builder.bitcast(signed, bytes_type), wide),
        )
        for byte in range(4):
            mask = ir.Constant(vector(I32, 16), [4 * lane + byte for lane in range(16)])
            total = builder.add(total, builder.shuffle_vector(products, products, mask))
        return total

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """As Avx512Vnni.lookup, by sixteen comparisons."""
        bytes_type = vector(I8, 64)
        table, as_bytes = builder.bitcast(table, bytes_type), builder.bitcast(codes, bytes_type)
        found = splat_constant(bytes_type, 0)
        for code in range(16):
            value = splat(builder, builder.extract_element(table, ir.Constant(I32, code)), 64)
            found = builder.select(
                builder.icmp_unsigned("==", as_bytes, splat_constant(bytes_type, code)), value, found
            )
        return builder.bitcast(found, codes.type)


InstructionSet = Avx2 | Avx512Vnni


def compiled_features() -> set[str]:
    """Return the processor features that Numba compiles for: the host's, unless NUMBA_CPU_FEATURES names others.

    NUMBA_CPU_NAME alone changes the scheduling, not the features.
    """
    if numba.config.CPU_FEATURES is not None:
        return {feature[1:] for feature in numba.config.CPU_FEATURES.split(",") if feature.startswith("+")}
    return {feature for feature, present in llvm.get_host_cpu_features().items() if present}


def select_instruction_set() -> InstructionSet | None:
    """Return the best instruction set that has a generator class here, or None for the portable path."""
    features = compiled_features()
    if {"avx512f", "avx512bw", "avx512vnni"} <= features:
        return Avx512Vnni()
    # Without f16c LLVM calls a library function to widen float16 scales; Numba cannot link it, the process would end.
    if {"avx2", "fma", "f16c"} <= features:
        return Avx2()
    return None
