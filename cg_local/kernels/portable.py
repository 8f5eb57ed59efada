"""The same products as the generated ones in plain Numba: for processors without a generator class, and an oracle.

This file owns no layout and no instruction. Invariant: its integer sums equal the generated kernels', its float sums
differ by rounding only.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from cg_local.kernels.bits import float32_from_bits, float32_from_half
from cg_local.packing import CODEBOOK_OFFSET, CODEBOOK_SIZES, GROUP, INT6_OFFSET, INT8_GROUP, SUPER_GROUP, TILE_ROWS


@njit(inline="always")
def _nibbles(lines, line, byte):
    """Return a byte of a line of 8 columns of a group of codes, uint8 [lines, 64]: two nibbles."""
    if line < lines.shape[0]:
        return lines[line, byte]
    # Codes of three bits: the last line is the upper bits of the other three.
    first, second, third = (lines[0, byte] & 0x88) >> 3, (lines[1, byte] & 0x88) >> 2, (lines[2, byte] & 0x88) >> 1
    return first | second | third


@njit(parallel=True, nogil=True, cache=True)
def matmul_codebook(codes, scales, super_scales, codebook, x_codes, x_scales, x_sums, out):
    """Multiply a matrix with a codebook by quantized activations of `matmul.py` into float32 [blocks * T, tiles * 16].

    The shapes of codes and scales tell the format.
    """
    per_super = SUPER_GROUP // GROUP
    blocks, groups, tokens = x_codes.shape[:3]
    num_lines, num_scales = codes.shape[1] // groups, scales.shape[1] // groups
    values = codebook[0].astype(np.int32) - CODEBOOK_OFFSET
    for tile in prange(codes.shape[0]):
        dots = np.empty(TILE_ROWS, np.int32)
        scaled = np.empty(TILE_ROWS, np.float32)
        sums = np.empty(TILE_ROWS, np.float32)
        totals = np.empty(TILE_ROWS, np.float32)
        for block in range(blocks):
            for token in range(tokens):
                totals[:] = 0
                for group in range(groups):
                    if group % per_super == 0:
                        sums[:] = 0
                    x = x_codes[block, group, token]
                    lines = codes[tile, group * num_lines : (group + 1) * num_lines]
                    scaled[:] = 0
                    for nth in range(num_scales):
                        dots[:] = 0
                        for line in range(nth * 4 // num_scales, (nth + 1) * 4 // num_scales):
                            for row in range(TILE_ROWS):
                                for byte in range(4):
                                    both = _nibbles(lines, line, 4 * row + byte)
                                    low, high = values[both & 15], values[both >> 4]
                                    dots[row] += low * x[8 * line + byte] + high * x[8 * line + 4 + byte]
                        for row in range(TILE_ROWS):
                            scaled[row] += np.float32(dots[row]) * np.float32(
                                scales[tile, group * num_scales + nth, row]
                            )
                    for row in range(TILE_ROWS):
                        sums[row] += scaled[row] * x_scales[block, group, token]
                        if group % per_super == per_super - 1:
                            totals[row] += sums[row] * float32_from_half(super_scales[tile, group // per_super, row])
                for row in range(TILE_ROWS):
                    out[block * tokens + token, tile * TILE_ROWS + row] = totals[row]


@njit(parallel=True, nogil=True, cache=True)
def matmul_i6g32(codes, scales, super_scales, x_codes, x_scales, x_sums, out):
    """Multiply an i6g32 matrix by quantized activations; arguments as in `matmul_codebook`."""
    groups, per_super = scales.shape[1], SUPER_GROUP // GROUP
    blocks, tokens = x_codes.shape[0], x_codes.shape[2]
    for tile in prange(codes.shape[0]):
        dots = np.empty(TILE_ROWS, np.int32)
        sums = np.empty(TILE_ROWS, np.float32)
        totals = np.empty(TILE_ROWS, np.float32)
        for block in range(blocks):
            for token in range(tokens):
                totals[:] = 0
                for group in range(groups):
                    if group % per_super == 0:
                        sums[:] = 0
                    x = x_codes[block, group, token]
                    dots[:] = -INT6_OFFSET * x_sums[block, group, token]
                    for column in range(GROUP):
                        quarter, byte = column % 16 // 4, column % 4
                        lanes = codes[tile, (group * GROUP + column) // 16]
                        for row in range(TILE_ROWS):
                            nibble = lanes[quarter // 2 * 64 + 4 * row + byte] >> (4 * (quarter % 2)) & 15
                            upper = lanes[128 + 4 * row + byte] >> (2 * quarter) & 3
                            dots[row] += np.int32(nibble | upper << 4) * x[column]
                    factor = x_scales[block, group, token]
                    for row in range(TILE_ROWS):
                        sums[row] += np.float32(dots[row]) * (factor * np.float32(scales[tile, group, row]))
                        if group % per_super == per_super - 1:
                            totals[row] += sums[row] * float32_from_half(super_scales[tile, group // per_super, row])
                for row in range(TILE_ROWS):
                    out[block * tokens + token, tile * TILE_ROWS + row] = totals[row]


@njit(parallel=True, nogil=True, cache=True)
def matmul_i8g64(codes, scales, x_codes, x_scales, x_sums, out):
    """Multiply an i8g64 matrix by quantized activations; arguments as in `matmul_codebook`."""
    blocks, groups, tokens = x_codes.shape[:3]
    for tile in prange(codes.shape[0]):
        dots = np.empty(TILE_ROWS, np.int32)
        sums = np.empty(TILE_ROWS, np.float32)
        for block in range(blocks):
            for token in range(tokens):
                sums[:] = 0
                for group in range(groups):
                    x = x_codes[block, group, token]
                    dots[:] = 0
                    for line in range(GROUP // 4):
                        lanes = codes[tile, group * (GROUP // 4) + line]
                        for row in range(TILE_ROWS):
                            for byte in range(4):
                                dots[row] += np.int32(lanes[4 * row + byte]) * x[4 * line + byte]
                    factor = x_scales[block, group, token]
                    for row in range(TILE_ROWS):
                        scale = float32_from_half(scales[tile, group * GROUP // INT8_GROUP, row])
                        sums[row] += np.float32(dots[row]) * (factor * scale)
                for row in range(TILE_ROWS):
                    out[block * tokens + token, tile * TILE_ROWS + row] = sums[row]


@njit(parallel=True, nogil=True, cache=True)
def matmul_i8g64_int16(codes, scales, x_codes, x_scales, out):
    """Multiply an i8g64 matrix by 16-bit activations; arguments as in `int16_activations.matmul_i8g64_int16`."""
    blocks, groups, tokens = x_codes.shape[:3]
    for tile in prange(codes.shape[0]):
        dots = np.empty(TILE_ROWS, np.int32)
        sums = np.empty(TILE_ROWS, np.float32)
        for block in range(blocks):
            for token in range(tokens):
                sums[:] = 0
                for group in range(groups):
                    x = x_codes[block, group, token]
                    dots[:] = 0
                    for line in range(GROUP // 4):
                        lanes = codes[tile, group * (GROUP // 4) + line]
                        for row in range(TILE_ROWS):
                            for byte in range(4):
                                # Column 4k + byte stands in place 0, 2, 1, 3 of its four.
                                place = (byte & 1) * 2 + (byte >> 1)
                                dots[row] += np.int32(lanes[4 * row + byte]) * x[4 * line + place]
                    factor = x_scales[block, group, token]
                    for row in range(TILE_ROWS):
                        scale = float32_from_half(scales[tile, group * GROUP // INT8_GROUP, row])
                        sums[row] += np.float32(dots[row]) * (factor * scale)
                for row in range(TILE_ROWS):
                    out[block * tokens + token, tile * TILE_ROWS + row] = sums[row]


@njit(parallel=True, nogil=True, cache=True)
def matmul_bf16(codes, x, out):
    """Multiply a bf16 matrix by float32 activations; arguments as in `matmul.matmul_bf16`."""
    blocks, columns, tokens = x.shape
    for tile in prange(codes.shape[0]):
        sums = np.empty(TILE_ROWS, np.float32)
        for block in range(blocks):
            for token in range(tokens):
                sums[:] = 0
                for column in range(columns):
                    value = x[block, column, token]
                    for row in range(TILE_ROWS):
                        sums[row] += float32_from_bits(np.uint32(codes[tile, column, row]) << np.uint32(16)) * value
                for row in range(TILE_ROWS):
                    out[block * tokens + token, tile * TILE_ROWS + row] = sums[row]


# The product of each format.
MATMUL = {
    **dict.fromkeys(CODEBOOK_SIZES, matmul_codebook),
    "i6g32": matmul_i6g32,
    "i8g64": matmul_i8g64,
    "bf16": matmul_bf16,
}
