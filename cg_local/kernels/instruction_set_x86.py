"""The instruction sets of x86 processors: AVX2, AVX-VNNI and AVX512-VNNI.

This file owns how `instruction_set.InstructionSet` is said in x86 instructions; the meaning of each attribute and
method stands there. Invariant: each class computes the same 32-bit integers as the others.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cg_local.kernels.llvm_vectors import I8, I16, I32, call, splat_constant, vector
from cg_local.packing import CODEBOOK_OFFSET


def even_and_odd_words(builder: ir.IRBuilder, weights: ir.Value, words: ir.VectorType) -> tuple[ir.Value, ir.Value]:
    """Sign-extend the bytes 0 and 2, and the bytes 1 and 3, of each int32 lane to 16 bits."""
    eight, pairs = splat_constant(words, 8), builder.bitcast(weights, words)
    return builder.ashr(builder.shl(pairs, eight), eight), builder.ashr(pairs, eight)


class Avx2:
    """AVX2: 256-bit registers; products through 16-bit pairs (pmaddubsw, pmaddwd).

    pmaddubsw saturates at 16 bits, so the unsigned operand must stay in 0..127 (2 * 127 * 127 < 2**15): codebook values
    do by design, and 8-bit weights are made so by `signed_weights`.
    """

    name = "avx2"
    register_rows = 8
    signed_offset = 0
    folds_scales = True
    value_offset = CODEBOOK_OFFSET

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """Sum pairs of products in 16 bits, pairs of pairs in 32."""
        return self._add_pairs(builder, total, self._pairs(builder, unsigned, signed))

    def dot_two(
        self,
        builder: ir.IRBuilder,
        total: ir.Value,
        unsigned: tuple[ir.Value, ir.Value],
        signed: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Add both pairs in 16 bits, as 4 * 63 * 127 < 2**15: one pmaddwd and one addition less than two `dot`."""
        first, second = (self._pairs(builder, *operands) for operands in zip(unsigned, signed, strict=True))
        return self._add_pairs(builder, total, builder.add(first, second))

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """Look up in both 128-bit halves at once (pshufb)."""
        bytes_type = vector(I8, 32)
        operands = builder.bitcast(table, bytes_type), builder.bitcast(codes, bytes_type)
        return builder.bitcast(call(builder, "llvm.x86.avx2.pshuf.b", bytes_type, *operands), codes.type)

    def signed_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Keep the weights beside their magnitudes, which are computed once for all tokens."""
        as_bytes = builder.bitcast(weights, vector(I8, 32))
        negated = builder.sub(splat_constant(vector(I8, 32), 0), as_bytes)
        negative = builder.icmp_signed("<", as_bytes, splat_constant(vector(I8, 32), 0))
        return as_bytes, builder.select(negative, negated, as_bytes)

    def signed_dot(self, builder: ir.IRBuilder, total: ir.Value, weights: Any, codes: ir.Value) -> ir.Value:
        """Move the weights' signs to the activation codes (psignb), which never are -128."""
        as_bytes, magnitudes = weights
        bytes_type = vector(I8, 32)
        moved = call(builder, "llvm.x86.avx2.psign.b", bytes_type, builder.bitcast(codes, bytes_type), as_bytes)
        return self.dot(builder, total, magnitudes, moved)

    def pair(self, builder: ir.IRBuilder, scales: ir.Value) -> ir.Value:
        """Put the lower 16 bits into both halves."""
        low = builder.and_(scales, splat_constant(scales.type, 0xFFFF))
        return builder.bitcast(builder.or_(low, builder.shl(scales, splat_constant(scales.type, 16))), vector(I16, 16))

    def in_order(self, builder: ir.IRBuilder, values: list[ir.Value]) -> list[ir.Value]:
        """Pass the values through an empty piece of assembly, in the registers where they are."""
        types = [value.type for value in values]
        outputs, inputs = ["=x"] * len(values), [str(index) for index in range(len(values))]
        kind = ir.FunctionType(ir.LiteralStructType(types), types)
        passed = builder.asm(kind, "", ",".join(outputs + inputs), values, False)
        return [builder.extract_value(passed, index) for index in range(len(values))]

    def dot_corrected(
        self,
        builder: ir.IRBuilder,
        total: ir.Value,
        unsigned: tuple[ir.Value, ir.Value],
        signed: tuple[ir.Value, ir.Value],
        correction: ir.Value,
        scales: ir.Value,
    ) -> ir.Value:
        """Add both pairs and the correction modulo 2**16; pmaddwd multiplies by the scale as it widens."""
        first, second = (self._pairs(builder, *operands) for operands in zip(unsigned, signed, strict=True))
        corrected = builder.add(builder.add(first, builder.bitcast(correction, vector(I16, 16))), second)
        return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), corrected, scales))

    def word_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Widen even and odd bytes to 16 bits."""
        return even_and_odd_words(builder, weights, vector(I16, 16))

    def word_zero(self) -> Any:
        """One register."""
        return splat_constant(vector(I32, 8), 0)

    def word_dot(self, builder: ir.IRBuilder, total: Any, weights: Any, codes: tuple[ir.Value, ir.Value]) -> Any:
        """Two pmaddwd: as many instructions as `signed_dot` has, for twice the bits."""
        for words, pair in zip(weights, codes, strict=True):
            products = builder.bitcast(pair, vector(I16, 16))
            total = builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), words, products))
        return total

    def word_sum(self, builder: ir.IRBuilder, total: Any) -> ir.Value:
        """The register itself."""
        return total

    @staticmethod
    def _pairs(builder: ir.IRBuilder, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        bytes_type = vector(I8, 32)
        operands = builder.bitcast(unsigned, bytes_type), builder.bitcast(signed, bytes_type)
        return call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16), *operands)

    @staticmethod
    def _add_pairs(builder: ir.IRBuilder, total: ir.Value, pairs: ir.Value) -> ir.Value:
        ones = splat_constant(vector(I16, 16), 1)
        return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), pairs, ones))


class AvxVnni:
    """AVX-VNNI (Alder Lake, Zen 5): four byte products summed into each int32 lane of 256 bits by one vpdpbusd.

    vpdpbusd does not saturate, so an unsigned byte may have any value.
    """

    name = "avxvnni"
    register_rows = 8
    signed_offset = 128
    folds_scales = False
    value_offset = CODEBOOK_OFFSET

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """One vpdpbusd."""
        # LLVM has one intrinsic for both encodings and chooses VEX where there is no AVX-512.
        return call(builder, "llvm.x86.avx512.vpdpbusd.256", vector(I32, 8), total, unsigned, signed)

    def dot_two(
        self,
        builder: ir.IRBuilder,
        total: ir.Value,
        unsigned: tuple[ir.Value, ir.Value],
        signed: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Two vpdpbusd."""
        return self.dot(builder, self.dot(builder, total, unsigned[0], signed[0]), unsigned[1], signed[1])

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """As AVX2."""
        return Avx2().lookup(builder, table, codes)

    def signed_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Add 128 to each byte: xor with its sign bit."""
        return builder.xor(weights, splat_constant(weights.type, 0x80808080))

    def signed_dot(self, builder: ir.IRBuilder, total: ir.Value, weights: Any, codes: ir.Value) -> ir.Value:
        """Add (weight + signed_offset) * code products."""
        return self.dot(builder, total, weights, codes)

    def word_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Widen even and odd bytes to 16 bits."""
        return even_and_odd_words(builder, weights, vector(I16, 2 * self.register_rows))

    def word_zero(self) -> Any:
        """One register."""
        return splat_constant(vector(I32, self.register_rows), 0)

    def word_dot(self, builder: ir.IRBuilder, total: Any, weights: Any, codes: tuple[ir.Value, ir.Value]) -> Any:
        """Two vpdpwssd."""
        for words, pair in zip(weights, codes, strict=True):
            total = self.word_pairs(builder, total, builder.bitcast(words, pair.type), pair)
        return total

    def word_pairs(self, builder: ir.IRBuilder, total: ir.Value, words: ir.Value, pair: ir.Value) -> ir.Value:
        """One vpdpwssd."""
        return call(builder, "llvm.x86.avx512.vpdpwssd.256", total.type, total, words, pair)

    def word_sum(self, builder: ir.IRBuilder, total: Any) -> ir.Value:
        """The register itself."""
        return total

    def add_words(self, builder: ir.IRBuilder, total: ir.Value, words: ir.Value) -> ir.Value:
        """One vpdpwssd with ones."""
        return self.word_pairs(builder, total, words, splat_constant(total.type, 0x00010001))


class Avx512Vnni(AvxVnni):
    """AVX-512 with VNNI: the same in 512-bit registers."""

    name = "avx512vnni"
    register_rows = 16

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """One vpdpbusd."""
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", vector(I32, 16), total, unsigned, signed)

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """Look up in all four 128-bit parts at once (vpshufb)."""
        bytes_type = vector(I8, 64)
        operands = builder.bitcast(table, bytes_type), builder.bitcast(codes, bytes_type)
        return builder.bitcast(call(builder, "llvm.x86.avx512.pshuf.b.512", bytes_type, *operands), codes.type)

    def word_pairs(self, builder: ir.IRBuilder, total: ir.Value, words: ir.Value, pair: ir.Value) -> ir.Value:
        """One vpdpwssd."""
        return call(builder, "llvm.x86.avx512.vpdpwssd.512", total.type, total, words, pair)
