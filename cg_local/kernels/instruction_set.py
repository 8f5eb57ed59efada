"""The vector instructions that the matmul generators are written in: what an instruction set is, and which one is used.

This file owns the interface and the choice. How each operation is said stands in `instruction_set_x86.py` and
`instruction_set_arm.py`; weight formats and loops stand in the generators. Invariant: for the same operands every class
computes the same 32-bit integers; where a sub-scale is folded into them, float results differ by rounding.

A new instruction set is a new class with the members of `InstructionSet` and a line in `select_instruction_set`.
"""

from __future__ import annotations

from typing import Any, Protocol

from llvmlite import ir
from numba.core import registry

from cg_local.kernels.instruction_set_arm import NeonDotprod, request_dotprod
from cg_local.kernels.instruction_set_x86 import Avx2, Avx512Vnni, AvxVnni


class InstructionSet(Protocol):
    """How products of bytes are said on a processor; all vectors have `register_rows` int32 lanes.

    Attributes:
        name: what `cg-local info` and results call it.
        register_rows: int32 lanes of a register; a divisor of `packing.TILE_ROWS`.
        signed_offset: what `signed_weights` adds to each weight; the caller repays it through the codes' sums.
        folds_scales: whether the class is a `PairProducts`.
        value_offset: what `dot` wants added to codebook values: packing.CODEBOOK_OFFSET, or 0 where it takes signed
            bytes. One that is not 0 makes the class a `PairProducts` or an `UnsignedValues`.
    """

    name: str
    register_rows: int
    signed_offset: int
    folds_scales: bool
    value_offset: int

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """Add to each lane the sum of its four products unsigned byte (0..127) * signed byte (-127..127)."""

    def dot_two(
        self,
        builder: ir.IRBuilder,
        total: ir.Value,
        unsigned: tuple[ir.Value, ir.Value],
        signed: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Add two dot products whose unsigned bytes are 0..63."""

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """Replace each byte 0..15 of `codes` by the table's byte; the table repeats every 16 bytes."""

    def signed_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Prepare int8 weights -127..127 for `signed_dot`, once for all tokens."""

    def signed_dot(self, builder: ir.IRBuilder, total: ir.Value, weights: Any, codes: ir.Value) -> ir.Value:
        """Add the products (weight + signed_offset) * code of prepared weights."""

    def word_weights(self, builder: ir.IRBuilder, weights: ir.Value) -> Any:
        """Prepare int8 weights -127..127 for `word_dot`, once for all tokens."""

    def word_zero(self) -> Any:
        """Return an empty total of `word_dot`."""

    def word_dot(self, builder: ir.IRBuilder, total: Any, weights: Any, codes: tuple[ir.Value, ir.Value]) -> Any:
        """Add four products weight * 16-bit code to each lane of a total.

        codes: in each lane two codes, of the columns of bytes 0 and 2 of a lane of weights, and of bytes 1 and 3.
        """

    def word_sum(self, builder: ir.IRBuilder, total: Any) -> ir.Value:
        """Return the int32 lanes of a total."""


class UnsignedValues(InstructionSet, Protocol):
    """What an instruction set has that needs the offset of values taken away from half a group's integer sum."""

    def add_words(self, builder: ir.IRBuilder, total: ir.Value, words: ir.Value) -> ir.Value:
        """Add the two signed 16-bit halves of each lane of words, the corrections of 8 columns."""


class PairProducts(InstructionSet, Protocol):
    """What an instruction set has whose dot products go through 16-bit pairs: a sub-scale multiplied in on the way."""

    def pair(self, builder: ir.IRBuilder, scales: ir.Value) -> ir.Value:
        """Return each int32 lane's value -127..127 twice, as int16: the last operand of `dot_corrected`."""

    def in_order(self, builder: ir.IRBuilder, values: list[ir.Value]) -> list[ir.Value]:
        """Return the values; what is computed from one of them is computed after all of them."""

    def dot_corrected(
        self,
        builder: ir.IRBuilder,
        total: ir.Value,
        unsigned: tuple[ir.Value, ir.Value],
        signed: tuple[ir.Value, ir.Value],
        correction: ir.Value,
        scales: ir.Value,
    ) -> ir.Value:
        """Add scale * (two dot products of unsigned bytes 1..127, their offset of 64 taken away).

        Args:
            builder, total, unsigned, signed: as in `dot_two`.
            correction: -64 times the sum of the codes that meet in each 16-bit lane, modulo 2**16.
            scales: of `pair`.
        """


def compiled_features() -> set[str]:
    """Return the processor features that Numba compiles for.

    They are the host's, unless NUMBA_CPU_FEATURES names others, NUMBA_CPU_NAME is generic or NUMBA_ENABLE_AVX is 0;
    another NUMBA_CPU_NAME alone changes the scheduling, not the features.
    """
    # Numba's own answer: where it differs from the host's, an instruction of the host ends the process in LLVM.
    features = registry.cpu_target.target_context.codegen().magic_tuple()[2]
    return {feature[1:] for feature in features.split(",") if feature.startswith("+")}


def select_instruction_set() -> InstructionSet | None:
    """Return the best instruction set that has a generator class here, or None for the portable path."""
    request_dotprod()
    features = compiled_features()
    if {"avx512f", "avx512bw", "avx512vnni"} <= features:
        return Avx512Vnni()
    # Without f16c LLVM calls a library function to widen float16 scales; Numba cannot link it, the process would end.
    if {"avx2", "fma", "f16c", "avxvnni"} <= features:
        return AvxVnni()
    if {"avx2", "fma", "f16c"} <= features:
        return Avx2()
    if "dotprod" in features:
        return NeonDotprod()
    return None
