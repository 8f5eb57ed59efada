"""Products of several packed matrices with one input, in one parallel region: what a layer does between two barriers.

This file owns how tiles are shared among threads and what becomes of their results: written, added to the residual
stream, or gated and quantized as the input of the next product. The arithmetic of a tile stands in `matmul.py`. It
does not know layers. Invariant: a tile's result does not depend on the thread that computes it, nor on their number.

Threads take runs of tiles from a common counter instead of fixed halves, so that a thread which loses its core to
another process for a while does not hold up the others.

The parts of `multiply_units` are inlined by Numba: as functions of their own each would be optimized once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from cg_local.kernels import matmul, matmul_codebook, matmul_six_bits
from cg_local.kernels.activation_groups import address_of, group_places, quantize_gated
from cg_local.kernels.matmul import BLOCK_TOKENS, INSTRUCTION_SET
from cg_local.kernels.matmul_codebook import CodebookFormat
from cg_local.kernels.workers import WORKER, load_arguments, pack, run_workers, take, worker_address
from cg_local.packing import CODEBOOK_SIZES, GROUP, SUPER_GROUP, TILE_ROWS, PackedMatrix, num_tiles

Floats = NDArray[np.float32]
# Codes, scales, sums and corrections in the block layout of `matmul.py`.
Quantized = tuple[NDArray[np.int8], Floats, NDArray[np.int32], NDArray[np.int32]]

# What becomes of a product: stored, added to what is there, or (first gate, then up) gated and quantized.
STORE, ADD, GATE = 0, 1, 2
# Columns of the table of jobs, one row a matrix; addresses are of the parts of `packing.part_layout`.
FORMAT, CODES, SCALES, SUPER_SCALES, CODEBOOK, CODE_BYTES, SCALE_BYTES, TILES, GROUPS, OUT, STRIDE, JOB_FIELDS = range(
    12
)
C4G32, C4G16, C3G32, I8G64, I6G32 = range(5)
FORMAT_IDS = {"c4g32": C4G32, "c4g16": C4G16, "c3g32": C3G32, "i8g64": I8G64, "i6g32": I6G32}
_PART_FIELDS = {"codes": CODES, "scales": SCALES, "super_scales": SUPER_SCALES, "codebook": CODEBOOK}
# Tiles whose results a worker holds at a time: two of the gate and two of the up projection, one group of columns.
SCRATCH_TILES = 4
# Runs of tiles per thread: fewer would leave threads waiting at the end, more would meet at the counter too often.
_RUNS = 16
# How many tokens of a block the tiles multiply that look up codes where they use them, or that take part of a block:
# two cost little more than one, and with four the registers are full.
FEW_TOKENS = {**dict.fromkeys(CODEBOOK_SIZES, (2, 3)), "i8g64": (2, BLOCK_TOKENS), "i6g32": (2, BLOCK_TOKENS)}
_SUBGROUPS = SUPER_GROUP // GROUP
_PANEL_GROUPS = matmul_codebook.PANEL_COLUMNS // GROUP


def table_of_jobs(matrices: Sequence[PackedMatrix]) -> NDArray[np.int64]:
    """Return the table that `run_products` reads, OUT and STRIDE left zero; the matrices must outlive it.

    Args:
        matrices: of the formats of FORMAT_IDS, with equal numbers of columns.
    """
    table = np.zeros((len(matrices), JOB_FIELDS), np.int64)
    for row, matrix in zip(table, matrices, strict=True):
        row[FORMAT] = FORMAT_IDS[matrix.format]
        row[TILES], row[GROUPS] = num_tiles(matrix.shape[0]), matrix.shape[1] // GROUP
        # Of 16 rows and 32 columns.
        for part, field in (("codes", CODE_BYTES), ("scales", SCALE_BYTES)):
            row[field] = matrix.parts[part].nbytes // (row[TILES] * row[GROUPS])
        for part, field in _PART_FIELDS.items():
            if part in matrix.parts:
                row[field] = matrix.parts[part].ctypes.data
    return table


@cache
def scratch_floats(padded_tokens: int) -> int:
    """Return how many float32 of scratch memory each worker needs."""
    return SCRATCH_TILES * padded_tokens * TILE_ROWS + (matmul_codebook.PANEL_BYTES + 64) // 4


if INSTRUCTION_SET is not None:
    _sizes = {format: ((1, 1), *((few, BLOCK_TOKENS) for few in counts)) for format, counts in FEW_TOKENS.items()}
    (_c4_one, _c4_two, _c4_three), (_c4g16_one, _c4g16_two, _c4g16_three), (_c3_one, _c3_two, _c3_three) = (
        [matmul_codebook.make_codebook_tile(INSTRUCTION_SET, CodebookFormat.named(f), *s) for s in _sizes[f]]
        for f in ("c4g32", "c4g16", "c3g32")
    )
    _c4_unpack, _c3_unpack = (matmul_codebook.make_unpack(INSTRUCTION_SET, bits) for bits in (4, 3))
    # Tiles of one and of two sub-scales in a group; what is unpacked no longer tells its bits.
    _panel, _panel_g16 = (matmul_codebook.make_panel_tile(INSTRUCTION_SET, count, BLOCK_TOKENS) for count in (1, 2))
    _i8_one, _i8_two, _i8_block = (matmul.make_i8g64_tile(INSTRUCTION_SET, *s) for s in _sizes["i8g64"])
    _i6_one, _i6_two, _i6_block = (matmul_six_bits.make_i6g32_tile(INSTRUCTION_SET, *s) for s in _sizes["i6g32"])


@njit(inline="always")
def multiply_panels(job, codes, scales, supers, x, shape, blocks, panel, out, stride):
    """Multiply one tile of a format with a codebook, whose parts stand at the addresses, by the first blocks."""
    code_bytes, scale_bytes, book = job[CODE_BYTES], job[SCALE_BYTES], job[CODEBOOK]
    _, groups, tokens = shape
    for first in range(0, groups, _PANEL_GROUPS):
        count = min(_PANEL_GROUPS, groups - first)
        if job[FORMAT] == C3G32:
            _c3_unpack(codes + first * code_bytes, book, panel, count)
        else:
            _c4_unpack(codes + first * code_bytes, book, panel, count)
        # Codes of a matrix lie one behind the other, so a tile's last panel is followed by the next tile's first.
        following = codes + (first + count) * code_bytes
        panel_scales, panel_supers = scales + first * scale_bytes, supers + first // _SUBGROUPS * (2 * TILE_ROWS)
        for block in range(blocks):
            xs, xc, xt, xo = group_places(x, (block * groups + first) * tokens)
            y, is_first = out + block * tokens * stride * 4, np.int64(first == 0)
            if job[FORMAT] == C4G16:
                _panel_g16(
                    panel, panel_scales, panel_supers, is_first, following, code_bytes, xs, xc, xt, xo, y, count, stride
                )
            else:
                _panel(
                    panel, panel_scales, panel_supers, is_first, following, code_bytes, xs, xc, xt, xo, y, count, stride
                )


@njit(inline="always")
def compute_tile(job, tile, x, shape, num_tokens, panel, out, stride):
    """Multiply one tile by all blocks of activations.

    Args:
        job: int64 [JOB_FIELDS], a row of the table; tile: which 16 rows of its matrix.
        x: addresses of the activations' four parts; shape: their blocks, groups and tokens of a block.
        num_tokens: of the activations, without those that fill up the last block.
        panel: address of PANEL_BYTES bytes to unpack weights into.
        out: address of the first token's 16 results; stride: floats from one token's to the next. Of the last block
            some tokens that fill it up may be written too.
    """
    format = job[FORMAT]
    blocks, groups, tokens = shape
    codes = job[CODES] + tile * groups * job[CODE_BYTES]
    scales = job[SCALES] + tile * groups * job[SCALE_BYTES]
    supers, book = job[SUPER_SCALES] + tile * (groups // _SUBGROUPS) * (2 * TILE_ROWS), job[CODEBOOK]
    through_panel = 0
    if book != 0 and 1 < tokens <= num_tokens:
        through_panel = num_tokens // tokens
        multiply_panels(job, codes, scales, supers, x, shape, through_panel, panel, out, stride)
    for block in range(through_panel, blocks):
        y = out + block * tokens * stride * 4
        xs, xc, xt, xo = group_places(x, block * groups * tokens)
        left = num_tokens - block * tokens
        if format == C4G32:
            if tokens == 1:
                _c4_one(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
            elif left <= 2:
                _c4_two(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
            else:
                _c4_three(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
        elif format == C4G16:
            if tokens == 1:
                _c4g16_one(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
            elif left <= 2:
                _c4g16_two(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
            else:
                _c4g16_three(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
        elif format == C3G32:
            if tokens == 1:
                _c3_one(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
            elif left <= 2:
                _c3_two(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
            else:
                _c3_three(codes, scales, supers, book, xs, xc, xt, xo, y, groups, stride)
        elif format == I8G64:
            if tokens == 1:
                _i8_one(codes, scales, xs, xc, xt, y, groups, stride)
            elif left <= 2:
                _i8_two(codes, scales, xs, xc, xt, y, groups, stride)
            else:
                _i8_block(codes, scales, xs, xc, xt, y, groups, stride)
        elif tokens == 1:
            _i6_one(codes, scales, supers, xs, xc, xt, y, groups, stride)
        elif left <= 2:
            _i6_two(codes, scales, supers, xs, xc, xt, y, groups, stride)
        else:
            _i6_block(codes, scales, supers, xs, xc, xt, y, groups, stride)


@njit(inline="always")
def add_tile(results, tile, num_tokens, total):
    """Add a tile's results [tokens, 16] to its columns of total, the padding of a last tile left out."""
    first = tile * TILE_ROWS
    for token in range(num_tokens):
        for row in range(min(TILE_ROWS, total.shape[1] - first)):
            total[token, first + row] += results[token * TILE_ROWS + row]


@njit(inline="always")
def gate_group(results, group, y, shape):
    """Gate 32 rows by 32 others, quantize them and store them as one group of the next product's activations.

    Args:
        results: address of float32 [4, padded tokens, 16]: two tiles of the gate projection, two of the up projection.
        group: which 32 columns of the next product's input.
        y: addresses of its four parts; shape: its blocks, groups and tokens of a block.
    """
    blocks, groups, tokens = shape
    size = blocks * tokens * (4 * TILE_ROWS)
    for row in range(blocks * tokens):
        first = results + row * (4 * TILE_ROWS)
        codes, scale, total, corrections = group_places(y, (row // tokens * groups + group) * tokens + row % tokens)
        quantize_gated(first, first + size, 2 * size, codes, scale, total, corrections)


@njit(**WORKER)
def multiply_units(pointer, worker):
    """Compute units (a tile, or a group of gated columns) until the common counter has run out.

    Args:
        pointer: of the arguments of `run_products`, as `_multiply` packs them.
        worker: whose row of the scratch memory to use.
    """
    jobs, x, shape, num_tokens, mode, total, y, y_shape, scratch, counter, units, run = load_arguments(pointer)
    parts = SCRATCH_TILES if mode == GATE else 1
    size, own = shape[0] * shape[2] * TILE_ROWS, scratch[worker]
    results = own.ctypes.data
    # The panel stands behind the results, on a cache line.
    panel = (results + SCRATCH_TILES * size * 4 + 63) & ~63
    if mode == GATE:
        # Tokens that fill up the last block: not all are computed, and all are gated.
        for index in range(SCRATCH_TILES * size):
            own[index] = 0
    while True:
        start = take(counter, run)
        if start >= units:
            break
        for unit in range(start, min(start + run, units)):
            index, tile = 0, unit
            if mode != GATE:
                while tile >= jobs[index, TILES]:
                    tile -= jobs[index, TILES]
                    index += 1
            for part in range(parts):
                target, stride = results + part * size * 4, TILE_ROWS
                if mode == GATE:
                    index, tile = part // 2, 2 * unit + part % 2
                elif mode == STORE:
                    target, stride = jobs[index, OUT] + tile * (4 * TILE_ROWS), jobs[index, STRIDE]
                compute_tile(jobs[index], tile, x, shape, num_tokens, panel, target, stride)
            if mode == GATE:
                gate_group(results, unit, y, y_shape)
            elif mode == ADD:
                add_tile(own, tile, num_tokens, total)


@njit(nogil=True, cache=True, error_model="numpy")
def multiply(
    address, jobs, x_codes, x_scales, x_sums, x_corrections, num_tokens, mode, total,
    y_codes, y_scales, y_sums, y_corrections, scratch, num_workers,
):  # fmt: skip
    """Call `multiply_units`, compiled and found at an address, on the arguments of `run_products`."""
    units = jobs[0, TILES] // 2
    if mode != GATE:
        units = np.int64(0)
        for index in range(jobs.shape[0]):
            units += jobs[index, TILES]
    counter = np.zeros(1, np.int64)
    x = address_of(x_codes), address_of(x_scales), address_of(x_sums), address_of(x_corrections)
    y = address_of(y_codes), address_of(y_scales), address_of(y_sums), address_of(y_corrections)
    run = max(1, units // (_RUNS * num_workers))
    packed = (
        jobs, x, x_scales.shape, num_tokens, mode, total, y, y_scales.shape, scratch, address_of(counter), units, run,
    )  # fmt: skip
    run_workers(address, pack(packed), min(num_workers, units))
    # Numba gives memory back after the last line that names it.
    return counter[0]


def run_products(
    jobs: NDArray[np.int64], x: Quantized, num_tokens: int, mode: int, total: Floats, y: Quantized, scratch: Floats,
    num_workers: int,
) -> None:  # fmt: skip
    """Multiply quantized activations by every matrix of a table.

    Args:
        jobs: int64 [num_matrices, JOB_FIELDS]; all matrices have the same number of columns. GATE takes two, the gate
            projection first, of the same number of rows, a multiple of 32. ADD takes one.
        x: codes, scales, sums and corrections of the input, as in the docstring of `matmul.py`.
        num_tokens: of the input, without those that fill up the last block.
        mode: STORE (float32 at each job's OUT, of padded rows and perhaps of padded tokens too), ADD or GATE.
        total: float32 [num_tokens, rows]; ADD adds to it.
        y: of the same kind as x and in as many blocks; GATE writes it.
        scratch: float32 [at least num_workers, scratch_floats(padded tokens)].
        num_workers: how many threads share the tiles; at most Numba's.

    All arrays lie without gaps in memory.
    """
    multiply(products_address(), jobs, *x, num_tokens, mode, total, *y, scratch, num_workers)


@cache
def products_address() -> int:
    """Return the address of `multiply_units`."""
    table, floats = types.Array(types.int64, 2, "C"), types.Array(types.float32, 2, "C")
    parts, shape, number = types.UniTuple(types.int64, 4), types.UniTuple(types.int64, 3), types.int64
    arguments = (
        table, parts, shape, number, number, floats, parts, shape, floats, number, number, number,
    )  # fmt: skip
    return worker_address(multiply_units, arguments)
