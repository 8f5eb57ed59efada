"""Products of packed weights and activations, generated for the host's instruction set or in portable Numba.

This file owns the inner loops over the tile layout of `packing.py` and the layout of quantized activations. It does not
know layers or sequences. Invariant: the sum of one output over its groups runs in one fixed order whatever the number
of tokens, threads or the instruction set's width, so a token's result does not depend on its neighbours in a batch.

Activations of n tokens stand in blocks of T tokens (T = 1 for one token, else BLOCK_TOKENS, filled up with zeros):

    codes   int8    [blocks, groups, T, 32]     round(x / scale), -127..127
    scales  float32 [blocks, groups, T]         max |x| of the group / 127
    sums    int32   [blocks, groups, T]         sum of the group's codes
    corrections  int32 [blocks, groups, T, 4]   of 8 columns c each: in the lower half -64 (c0 + c1 + c4 + c5)
                                                modulo 2**16, in the upper half the same of c2, c3, c6 and c7

Sums and corrections repay the offset of unsigned weight values. Method: LLVM intrinsics through
`numba.extending.intrinsic`, which hands a Python function an LLVM builder: a loop there is an unrolled loop in the
machine code.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from cg_local.kernels.instruction_set import InstructionSet, select_instruction_set
from cg_local.kernels.llvm_vectors import F32, I8, I32, I64, call, splat, splat_constant, vector
from cg_local.packing import GROUP, INT8_GROUP, TILE_ROWS

BLOCK_TOKENS = 4
INSTRUCTION_SET = select_instruction_set()

# Bytes of one tile and one group of 32 columns.
_I8_CODE_BYTES, _I8_SCALE_BYTES = TILE_ROWS * GROUP, 2 * TILE_ROWS
# How far a decode kernel asks ahead in its stream of codes: what two threads read while memory answers, and a page.
PREFETCH_BYTES = 4096


class TileBuilder:
    """Emits the machine code of one tile: TILE_ROWS rows times the first tokens of a block over all input columns.

    Rows lie across the lanes of `parts` registers. Float sums live in the block's phi nodes, one per token and part.

    Args:
        instruction_set: to emit.
        num_tokens: to multiply, the first of a block.
        builder: where to emit.
        block_tokens: T of the activations' layout; num_tokens unless given.
    """

    def __init__(
        self, instruction_set: InstructionSet, num_tokens: int, builder: ir.IRBuilder, block_tokens: int = 0
    ) -> None:
        self.isa, self.num_tokens, self.b = instruction_set, num_tokens, builder
        self.block_tokens = block_tokens or num_tokens
        self.rows = instruction_set.register_rows
        self.parts = TILE_ROWS // self.rows
        self.ints, self.floats = vector(I32, self.rows), vector(F32, self.rows)
        self._align_stack()

    def _align_stack(self) -> None:
        """Make LLVM keep spilled registers at addresses that are multiples of their size.

        It decides so before it knows of spills, and else takes what alignment the caller left: a register that lies in
        two cache lines makes a tile half as slow again, in one process and not in the next.
        """
        with self.b.goto_entry_block():
            aligned = self.b.alloca(self.floats)
            aligned.align = 4 * self.rows
            self.b.asm(ir.FunctionType(ir.VoidType(), [aligned.type]), "", "r", [aligned], True)

    def pointer(self, address: ir.Value, offset: ir.Value | int, element: ir.Type) -> ir.Value:
        """Return address + offset bytes as a pointer to `element`."""
        offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
        return self.b.inttoptr(self.b.add(address, offset), element.as_pointer())

    def load(self, address: ir.Value, offset: ir.Value | int, element: ir.Type, align: int) -> ir.Value:
        """Load `element` from address + offset bytes."""
        return self.b.load(self.pointer(address, offset, element), align=align)

    def times(self, value: ir.Value, factor: int) -> ir.Value:
        """Multiply an index by a constant."""
        return self.b.mul(value, ir.Constant(I64, factor))

    def loop(self, count: ir.Value, carried: list[ir.Value], body: Any) -> list[ir.Value]:
        """Run body(index, carried) -> carried for index 0..count-1 (count >= 1); return the last carried values."""
        b = self.b
        entry, block, end = b.block, b.append_basic_block("loop"), b.append_basic_block("end")
        b.branch(block)
        b.position_at_end(block)
        index = b.phi(I64)
        index.add_incoming(ir.Constant(I64, 0), entry)
        phis = [b.phi(value.type) for value in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, entry)
        results = body(index, phis)
        following = b.add(index, ir.Constant(I64, 1))
        index.add_incoming(following, b.block)
        for phi, value in zip(phis, results, strict=True):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_unsigned("<", following, count), block, end)
        b.position_at_end(end)
        return list(results)

    def in_steps(self, count: int, length: int, carried: list[Any], body: Any) -> list[Any]:
        """Run body(index, carried) -> carried for index 0..count-1, `length` of them after each test of a loop.

        Unrolled for one token and where a dot product is one instruction. Elsewhere LLVM would reorder a whole group
        token by token and run out of registers; it would unroll the loop too, if it could see how long it is.
        """

        def several(first: ir.Value, carried: list[Any], number: int) -> list[Any]:
            for index in range(number):
                carried = body(self.b.add(first, ir.Constant(I64, index)), carried)
            return list(carried)

        if self.num_tokens == 1 or not self.isa.folds_scales:
            return several(ir.Constant(I64, 0), carried, count)
        hidden = self.b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [ir.Constant(I64, count // length)], False)
        return self.loop(hidden, carried, lambda index, values: several(self.times(index, length), values, length))

    def prefetch(self, address: ir.Value, num_bytes: int, line: ir.Value | int = 0) -> None:
        """Ask for bytes of a weight stream PREFETCH_BYTES ahead of 64-byte `line`."""
        start = address if isinstance(line, int) else self.b.add(address, self.times(line, 64))
        for byte in range(0, num_bytes, 64):
            target = self.pointer(start, PREFETCH_BYTES + byte, I8)
            flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]
            call(self.b, "llvm.prefetch.p0", ir.VoidType(), target, *flags)

    def zeros(self) -> list[ir.Value]:
        """Return a zero float sum for each token and part."""
        return [splat_constant(self.floats, 0.0)] * (self.num_tokens * self.parts)

    def starts(self, sums: ir.Value, first: ir.Value, offset: int) -> list[ir.Value]:
        """Return each token's integer sum to begin a group with: -offset * sum of its codes, in every lane."""
        if offset == 0:
            return [splat_constant(self.ints, 0)] * (self.num_tokens * self.parts)
        starts: list[ir.Value] = []
        for token in range(self.num_tokens):
            total = self.load(sums, self.times(self.b.add(first, ir.Constant(I64, token)), 4), I32, 4)
            repaid = splat(self.b, self.b.mul(total, ir.Constant(I32, -offset)), self.rows)
            starts += [repaid] * self.parts
        return starts

    def code_lane(self, group_codes: ir.Value, token: int, column: int) -> ir.Value:
        """Return four activation codes of a token, columns column..column+3 of the group, in every lane."""
        return splat(self.b, self.load(group_codes, token * GROUP + column, I32, 4), self.rows)

    def accumulate(
        self, sums: list[ir.Value], dots: list[ir.Value], scales: list[ir.Value], code_scales: ir.Value, first: ir.Value
    ) -> list[ir.Value]:
        """Add dot * weight scale * activation scale of one group to the float sums."""
        b, results = self.b, []
        for token in range(self.num_tokens):
            offset = self.times(b.add(first, ir.Constant(I64, token)), 4)
            token_scale = splat(b, self.load(code_scales, offset, F32, 4), self.rows)
            for part in range(self.parts):
                at = token * self.parts + part
                factor = b.fmul(token_scale, scales[part])
                results.append(self.fma(b.sitofp(dots[at], self.floats), factor, sums[at]))
        return results

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """Return x * y + z with one rounding."""
        return call(self.b, f"llvm.fma.v{self.rows}f32", self.floats, x, y, z)

    def half_scales(self, address: ir.Value, offset: ir.Value) -> list[ir.Value]:
        """Load TILE_ROWS float16 scales as float32, by parts."""
        halves = vector(ir.HalfType(), self.rows)
        return [
            self.b.fpext(
                self.load(address, self.b.add(offset, ir.Constant(I64, 2 * self.rows * part)), halves, 2), self.floats
            )
            for part in range(self.parts)
        ]

    def load_sums(self, out: ir.Value, stride: ir.Value) -> list[ir.Value]:
        """Load what `store` stored."""
        return [
            self.load(
                out, self.b.add(self.times(stride, 4 * token), ir.Constant(I64, 4 * self.rows * part)), self.floats, 4
            )
            for token in range(self.num_tokens)
            for part in range(self.parts)
        ]

    def store(self, sums: list[ir.Value], out: ir.Value, stride: ir.Value) -> None:
        """Store the sums at out[token * stride + row], the stride counted in floats."""
        for token in range(self.num_tokens):
            for part in range(self.parts):
                offset = self.b.add(self.times(stride, 4 * token), ir.Constant(I64, 4 * self.rows * part))
                self.b.store(sums[token * self.parts + part], self.pointer(out, offset, self.floats), align=4)


def emit_i8g64_tile(
    builder: ir.IRBuilder, isa: InstructionSet, num_tokens: int, block_tokens: int, arguments: list[ir.Value]
) -> None:
    """Emit one i8g64 tile.

    The arguments are addresses (intp) of codes, scales, activation codes, scales and sums, and of the output,
    then the number of groups of 32 columns and the output's stride in floats between tokens.
    """
    codes, scales, x_codes, x_scales, x_sums, out, groups, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder, block_tokens)
    b = builder

    def line(lines: ir.Value, group_codes: ir.Value, dots: list[ir.Value]) -> list[ir.Value]:
        dots = list(dots)
        loaded = [emit.load(lines, 4 * emit.rows * part, emit.ints, 1) for part in range(emit.parts)]
        weights = [isa.signed_weights(b, values) for values in loaded]
        for token in range(num_tokens):
            lane = emit.code_lane(group_codes, token, 0)
            for part in range(emit.parts):
                at = token * emit.parts + part
                dots[at] = isa.signed_dot(b, dots[at], weights[part], lane)
        return dots

    def group(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        lines = b.add(codes, emit.times(index, _I8_CODE_BYTES))
        group_codes = b.add(x_codes, emit.times(index, GROUP * block_tokens))
        first = emit.times(index, block_tokens)
        emit.prefetch(lines, _I8_CODE_BYTES)
        dots = emit.in_steps(
            GROUP // 4,
            2,
            emit.starts(x_sums, first, isa.signed_offset),
            lambda at, dots: line(b.add(lines, emit.times(at, 64)), b.add(group_codes, emit.times(at, 4)), dots),
        )
        scale_group = b.udiv(index, ir.Constant(I64, INT8_GROUP // GROUP))
        weight_scales = emit.half_scales(scales, emit.times(scale_group, _I8_SCALE_BYTES))
        return emit.accumulate(sums, dots, weight_scales, x_scales, first)

    emit.store(emit.loop(groups, emit.zeros(), group), out, stride)


def make_i8g64_tile(instruction_set: InstructionSet, num_tokens: int, block_tokens: int) -> Any:
    """Return the intrinsic of `emit_i8g64_tile`; num_tokens and block_tokens as in `TileBuilder`."""

    @intrinsic
    def tile(typing_context, codes, scales, x_codes, x_scales, x_sums, out, groups, stride):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            emit_i8g64_tile(builder, instruction_set, num_tokens, block_tokens, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return tile


def emit_bf16_tile(builder: ir.IRBuilder, isa: InstructionSet, num_tokens: int, arguments: list[ir.Value]) -> None:
    """Emit one bf16 tile on float32 activations [columns][num_tokens].

    The arguments are addresses of codes, activations and the output, the number of columns and the output's stride.
    """
    codes, x, out, columns, stride = arguments
    emit = TileBuilder(isa, num_tokens, builder)
    b = builder
    words = vector(ir.IntType(16), emit.rows)

    def column(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        line = b.add(codes, emit.times(index, 2 * TILE_ROWS))
        results = list(sums)
        for part in range(emit.parts):
            bits = b.zext(emit.load(line, 2 * emit.rows * part, words, 1), emit.ints)
            weights = b.bitcast(b.shl(bits, splat_constant(emit.ints, 16)), emit.floats)
            for token in range(num_tokens):
                at = token * emit.parts + part
                offset = b.add(emit.times(index, 4 * num_tokens), ir.Constant(I64, 4 * token))
                value = splat(b, emit.load(x, offset, F32, 4), emit.rows)
                results[at] = emit.fma(weights, value, sums[at])
        return results

    emit.store(emit.loop(columns, emit.zeros(), column), out, stride)


def make_bf16_tile(instruction_set: InstructionSet, num_tokens: int) -> Any:
    """Return the intrinsic of `emit_bf16_tile`."""

    @intrinsic
    def tile(typing_context, codes, x, out, columns, stride):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            emit_bf16_tile(builder, instruction_set, num_tokens, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    return tile


if INSTRUCTION_SET is not None:
    _bf16_one, _bf16_block = (make_bf16_tile(INSTRUCTION_SET, tokens) for tokens in (1, BLOCK_TOKENS))


@njit(parallel=True, nogil=True, cache=True)
def matmul_bf16(codes, x, out):
    """Multiply a bf16 matrix by float32 activations.

    Args:
        codes: uint16 [tiles, columns, 16].
        x: float32 [blocks, columns, T].
        out: float32 [blocks * T, tiles * 16], fully written.
    """
    stride = out.shape[1]
    blocks, columns, tokens = x.shape
    for tile in prange(codes.shape[0]):
        code = codes.ctypes.data + tile * columns * 2 * TILE_ROWS
        for block in range(blocks):
            y = out.ctypes.data + (block * tokens * stride + tile * TILE_ROWS) * 4
            if tokens == 1:
                _bf16_one(code, x.ctypes.data + block * columns * tokens * 4, y, columns, stride)
            else:
                _bf16_block(code, x.ctypes.data + block * columns * tokens * 4, y, columns, stride)
