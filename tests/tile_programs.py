"""Tiles of the matrix products as plain functions, compiled by LLVM alone: for instruction sets the host need not have.

This file owns building a tile for any processor, running it here or under qemu's user emulation, and instruction sets
said in LLVM's generic operations. It judges nothing. Invariant: the code comes from the generators that the kernels
use; only the loops over tiles and blocks are this file's own.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from kernel_cases import corrections
from llvmlite import ir
from numpy.typing import NDArray

from cg_local.kernels import int16_activations, matmul, matmul_codebook, matmul_six_bits
from cg_local.kernels.instruction_set import InstructionSet
from cg_local.kernels.instruction_set_arm import NeonDotprod
from cg_local.kernels.instruction_set_x86 import Avx512Vnni, AvxVnni
from cg_local.kernels.llvm_vectors import I8, I32, I64, splat, splat_constant, vector
from cg_local.kernels.matmul import BLOCK_TOKENS
from cg_local.kernels.matmul_codebook import CodebookFormat
from cg_local.kernels.products import FEW_TOKENS
from cg_local.packing import CODEBOOK_SIZES, GROUP, TILE_ROWS, part_layout

# Groups of 32 columns that fit into the panel of a test program.
PANEL_GROUPS = 32


def emit_through_panel(
    format: CodebookFormat, builder: ir.IRBuilder, isa: InstructionSet, num_tokens: int, arguments: list[ir.Value]
) -> None:
    """Emit a codebook tile as many tokens take it: unpacked into a panel, multiplied from there in two halves."""
    codes, scales, super_scales, codebook, *x, out, groups, stride = arguments
    b, half = builder, builder.udiv(groups, ir.Constant(I64, 2))
    memory = b.alloca(I8, size=PANEL_GROUPS * TILE_ROWS * GROUP)
    memory.align = 64
    panel = b.ptrtoint(memory, I64)

    def after(address: ir.Value, bytes_per_group: int) -> ir.Value:
        return b.add(address, b.mul(half, ir.Constant(I64, bytes_per_group)))

    matmul_codebook.emit_unpack(b, isa, format.bits, [codes, codebook, panel, groups])
    first, second, code_bytes = ir.Constant(I64, 1), ir.Constant(I64, 0), ir.Constant(I64, format.code_bytes)
    tile = [panel, scales, super_scales, first, codes, code_bytes, *x, out, half, stride]
    matmul_codebook.emit_panel_tile(b, isa, format.num_scales, num_tokens, tile)
    x_bytes = [GROUP * num_tokens, 4 * num_tokens, 4 * num_tokens, GROUP // 2 * num_tokens]
    rest = [after(address, size) for address, size in zip(x, x_bytes, strict=True)]
    scale_bytes = TILE_ROWS * format.num_scales
    weights = after(panel, TILE_ROWS * GROUP), after(scales, scale_bytes), after(super_scales, 2 * TILE_ROWS // 8)
    tile = [*weights, second, codes, code_bytes, *rest, out, half, stride]
    matmul_codebook.emit_panel_tile(b, isa, format.num_scales, num_tokens, tile)


def of_a_block(emit: Callable[..., None], at_most: int) -> Callable[..., None]:
    """Return a tile's generator for the first tokens of a block; what it takes is how many a block holds."""
    return lambda builder, isa, tokens, arguments: emit(builder, isa, min(tokens, at_most), tokens, arguments)


def of_codebook(name: str) -> Callable[..., None]:
    """Return the generator of a tile of a format with a codebook."""

    def emit(builder: ir.IRBuilder, isa: InstructionSet, *rest: Any) -> None:
        matmul_codebook.emit_codebook_tile(builder, isa, CodebookFormat.named(name), *rest)

    return emit


INTEGER_TILES: dict[str, Callable[..., None]] = {
    **{name: of_codebook(name) for name in CODEBOOK_SIZES},
    "i6g32": matmul_six_bits.emit_i6g32_tile,
    "i8g64": matmul.emit_i8g64_tile,
}
EMIT: dict[str, Callable[..., None]] = {
    **{product: of_a_block(emit, BLOCK_TOKENS) for product, emit in INTEGER_TILES.items()},
    **{
        f"{product}-{count}": of_a_block(emit, count)
        for product, emit in INTEGER_TILES.items()
        for count in FEW_TOKENS[product]
    },
    **{f"{name}-panel": partial(emit_through_panel, CodebookFormat.named(name)) for name in CODEBOOK_SIZES},
    "i8g64_int16": int16_activations.emit_i8g64_int16_tile,
    "bf16": matmul.emit_bf16_tile,
}
NUM_WEIGHT_PARTS = {**dict.fromkeys(CODEBOOK_SIZES, 4), "i6g32": 3, "i8g64": 2, "i8g64_int16": 2, "bf16": 1}
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Target:
    """A processor as LLVM names it."""

    triple: str
    cpu: str
    features: str = ""


def host() -> Target:
    return Target(llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


CORTEX_A76 = Target("aarch64-unknown-linux-gnu", "cortex-a76", "+dotprod")
QEMU = "qemu-aarch64"
BINUTILS = "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld"


def has_arm_emulator() -> bool:
    return all(shutil.which(tool) for tool in (QEMU, *BINUTILS))


class GenericOperations:
    """The operations of an instruction set in LLVM's generic vector operations, which any processor can run."""

    register_rows: int

    def dot(self, builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """Multiply byte by byte within each lane."""
        lanes = vector(I32, self.register_rows)
        top, low_byte = splat_constant(lanes, 24), splat_constant(lanes, 0xFF)
        for byte in range(4):
            down, up = splat_constant(lanes, 8 * byte), splat_constant(lanes, 24 - 8 * byte)
            first = builder.and_(builder.lshr(unsigned, down), low_byte)
            second = builder.ashr(builder.shl(signed, up), top)
            total = builder.add(total, builder.mul(self.widened(builder, first, top), second))
        return total

    def widened(self, builder: ir.IRBuilder, byte: ir.Value, top: ir.Value) -> ir.Value:
        """Take the first operand's byte as vpdpbusd does: unsigned."""
        return byte

    def word_pairs(self, builder: ir.IRBuilder, total: ir.Value, words: ir.Value, pair: ir.Value) -> ir.Value:
        """Multiply upper and lower halves within each lane."""
        sixteen = splat_constant(total.type, 16)
        for lower in (True, False):
            first, second = (
                builder.ashr(builder.shl(value, sixteen) if lower else value, sixteen) for value in (words, pair)
            )
            total = builder.add(total, builder.mul(first, second))
        return total

    def lookup(self, builder: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
        """Compare with each of the sixteen codes."""
        bytes_type = vector(I8, 4 * self.register_rows)
        table, as_bytes = builder.bitcast(table, bytes_type), builder.bitcast(codes, bytes_type)
        found = splat_constant(bytes_type, 0)
        for code in range(16):
            value = splat(builder, builder.extract_element(table, ir.Constant(I32, code)), bytes_type.count)
            is_code = builder.icmp_unsigned("==", as_bytes, splat_constant(bytes_type, code))
            found = builder.select(is_code, value, found)
        return builder.bitcast(found, codes.type)


class EmulatedAvx512Vnni(GenericOperations, Avx512Vnni):
    """AVX512-VNNI's registers, weights and offsets."""


class EmulatedAvxVnni(GenericOperations, AvxVnni):
    """AVX-VNNI's registers, weights and offsets."""


class EmulatedNeonDotprod(GenericOperations, NeonDotprod):
    """NEON's registers, weights and offsets."""

    def widened(self, builder: ir.IRBuilder, byte: ir.Value, top: ir.Value) -> ir.Value:
        """Take the first operand's byte as sdot does: signed."""
        return builder.ashr(builder.shl(byte, top), top)


@dataclass(frozen=True)
class Program:
    """One tile whose operands stand one after the other in a buffer.

    Attributes:
        product: a key of EMIT.
        num_tokens: of the tile.
        sizes: bytes of each operand; each begins at the next multiple of 64 bytes, the last one is the output.
        steps, stride: the tile's last arguments.
    """

    product: str
    num_tokens: int
    sizes: tuple[int, ...]
    steps: int
    stride: int

    @property
    def offsets(self) -> list[int]:
        ends = np.cumsum([-(-size // 64) * 64 for size in self.sizes]).tolist()
        return [0, *ends]

    def module(self, instruction_set: InstructionSet, target: Target) -> ir.Module:
        """Return a module with the function run(address of the buffer)."""
        module = ir.Module(f"{self.product}-{self.num_tokens}")
        module.triple = target.triple
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64]), "run")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        addresses = [builder.add(function.args[0], ir.Constant(I64, offset)) for offset in self.offsets[:-1]]
        numbers = [ir.Constant(I64, number) for number in (self.steps, self.stride)]
        EMIT[self.product](builder, instruction_set, self.num_tokens, [*addresses, *numbers])
        builder.ret_void()
        return module


def part_sizes(product: str, num_tokens: int, columns: int) -> tuple[int, ...]:
    """Return the bytes of a tile's operands: the parts of 16 rows, the activations, the output."""
    format = product.removesuffix("_int16").partition("-")[0]
    layout = part_layout(format, (TILE_ROWS, columns)).values()
    weights = (dtype.itemsize * int(np.prod(shape)) for dtype, shape in layout)
    codes, groups = columns * num_tokens, num_tokens * columns // GROUP
    int8 = codes, 4 * groups, 4 * groups
    others = {"bf16": (4 * codes,), "i8g64_int16": (2 * codes, 4 * groups)}
    others |= dict.fromkeys(CODEBOOK_SIZES, (*int8, GROUP // 2 * groups))
    x = others.get(product.partition("-")[0], int8)
    return *weights, *x, 4 * TILE_ROWS * num_tokens


def compiled(program: Program, instruction_set: InstructionSet, target: Target) -> tuple[Any, Any]:
    """Return a program's module and the target machine that emits it."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(str(program.module(instruction_set, target)))
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="static"
    )
    return module, machine


def assembly(program: Program, instruction_set: InstructionSet, target: Target) -> str:
    """Return the assembly of a program."""
    module, machine = compiled(program, instruction_set, target)
    return str(machine.emit_assembly(module))


Runner = Callable[[Program, Bytes], None]


class HostRunner:
    """Runs programs of an instruction set in this process."""

    def __init__(self, instruction_set: InstructionSet) -> None:
        self._instruction_set = instruction_set
        self._engines: dict[Program, Any] = {}

    def __call__(self, program: Program, buffer: Bytes) -> None:
        if program not in self._engines:
            self._engines[program] = llvm.create_mcjit_compiler(*compiled(program, self._instruction_set, host()))
        address = self._engines[program].get_function_address("run")
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)(buffer.ctypes.data)


# Linux system calls of AArch64: read 63, write 64, exit_group 94. Source: include/uapi/asm-generic/unistd.h.
START = """
    .globl _start
_start:
    ldr x19, =buffer
    ldr x20, ={num_bytes}
1:  mov x0, 0
    mov x1, x19
    mov x2, x20
    mov x8, 63
    svc 0
    cmp x0, 0
    ble 2f
    add x19, x19, x0
    subs x20, x20, x0
    bne 1b
    ldr x0, =buffer
    bl run
    mov x0, 1
    ldr x1, =buffer + {output}
    ldr x2, ={output_bytes}
    mov x8, 64
    svc 0
    mov x0, 0
    mov x8, 94
    svc 0
2:  mov x0, 1
    mov x8, 94
    svc 0
    .bss
    .balign 64
buffer: .skip {num_bytes}
"""


class ArmRunner:
    """Runs programs of an Arm instruction set as static executables under qemu's user emulation."""

    def __init__(self, instruction_set: InstructionSet, target: Target) -> None:
        self._instruction_set, self._target = instruction_set, target
        self._folder = tempfile.TemporaryDirectory()
        self._executables: dict[Program, Path] = {}

    def __enter__(self) -> ArmRunner:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def __call__(self, program: Program, buffer: Bytes) -> None:
        if program not in self._executables:
            self._executables[program] = self._build(program)
        command = [QEMU, "-cpu", "max", str(self._executables[program])]
        finished = subprocess.run(command, input=buffer.tobytes(), capture_output=True, timeout=60, check=True)
        output = program.offsets[-2]
        buffer[output : output + program.sizes[-1]] = np.frombuffer(finished.stdout, np.uint8)

    def _build(self, program: Program) -> Path:
        stem = Path(self._folder.name) / str(len(self._executables))
        start, tile, executable = stem.with_suffix(".start.o"), stem.with_suffix(".tile.o"), stem.with_suffix(".exe")
        source = START.format(num_bytes=program.offsets[-1], output=program.offsets[-2], output_bytes=program.sizes[-1])
        subprocess.run([BINUTILS[0], "-o", start, "-"], input=source, text=True, check=True, timeout=60)
        module, machine = compiled(program, self._instruction_set, self._target)
        tile.write_bytes(machine.emit_object(module))
        subprocess.run([BINUTILS[1], "-o", executable, start, tile], check=True, timeout=60)
        return executable


class TileProducts:
    """The products of all formats, their tiles run one by one; takes the place of a module of kernels.

    Args:
        run: runs a tile.
        few: how many tokens of each block to multiply, if not all; of `FEW_TOKENS`.
    """

    def __init__(self, run: Runner, few: int = 0) -> None:
        self._run, self._few = run, few

        self.MATMUL = {product: partial(self._multiply, product) for product in NUM_WEIGHT_PARTS}
        self.matmul_i8g64_int16 = self.MATMUL["i8g64_int16"]

    def _multiply(self, product: str, *arguments: NDArray[Any]) -> None:
        weights, x, out = (
            arguments[: NUM_WEIGHT_PARTS[product]],
            arguments[NUM_WEIGHT_PARTS[product] : -1],
            arguments[-1],
        )
        num_blocks, steps = x[0].shape[:2]
        num_tokens = x[-1].shape[2]
        if product in CODEBOOK_SIZES:
            x = *x, corrections(x[0])
            # Many tokens go through a panel.
            product = product if num_tokens == 1 or self._few else f"{product}-panel"
        product += f"-{self._few}" if self._few else ""
        for tile in range(len(weights[0])):
            parts = [part if part.ndim == 2 else part[tile] for part in weights]
            for block in range(num_blocks):
                result = np.full((num_tokens, TILE_ROWS), np.nan, np.float32)
                operands = [*parts, *(array[block] for array in x), result]
                self._run_on(product, num_tokens, operands, steps)
                rows = slice(block * num_tokens, (block + 1) * num_tokens)
                out[rows, tile * TILE_ROWS : (tile + 1) * TILE_ROWS] = result

    def _run_on(self, product: str, num_tokens: int, operands: list[NDArray[Any]], steps: int) -> None:
        program = Program(product, num_tokens, tuple(array.nbytes for array in operands), steps, TILE_ROWS)
        buffer = np.zeros(program.offsets[-1], np.uint8)
        for array, offset in zip(operands, program.offsets, strict=False):
            buffer[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._run(program, buffer)
        result, offset = operands[-1], program.offsets[-2]
        result[...] = buffer[offset : offset + result.nbytes].view(np.float32).reshape(result.shape)
