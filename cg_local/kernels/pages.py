"""Writing K and V into pages and reading them back as float32.

This file owns the places of values inside a page, as `kv_cache.py` describes them; which page belongs to whom is told
by block tables. Invariant: reading gives the value that was stored, widened exactly, by whatever route.

Pages of one layer, a key's columns running down a page so that the keys of a page lie side by side in a register:

    keys    [num_pages, num_kv_heads, key_rows, page_size]      values  [num_pages, num_kv_heads, page_size, columns]

float32, the bits of float16 (uint16), or int8 codes. A value's columns are padded to whole tiles. In int8 the codes of
a key or value are followed by the two bytes, low one first, of a float16 scale for each KV_GROUP columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from cg_local.kernels.bits import INNER, float32_from_half, half_from_float32
from cg_local.kernels.instruction_set import select_instruction_set
from cg_local.kernels.llvm_vectors import I64
from cg_local.kernels.tile_product import TILE_COLUMNS, make_scaled_widen, make_split_half_widen, make_widen
from cg_local.packing import KV_GROUP

INSTRUCTION_SET = select_instruction_set()
# Without an instruction set of its own a processor gets 4 lanes, which LLVM has on every one.
LANES = 4 if INSTRUCTION_SET is None else INSTRUCTION_SET.register_rows
IS_RICH = INSTRUCTION_SET is not None


@intrinsic
def element_bytes(typing_context, array):
    """Return the size of an array's element as a constant, so that code for other types is dropped."""
    size = array.dtype.bitwidth // 8

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        return ir.Constant(I64, size)

    return types.intp(array), generate


_widen_float = make_widen(LANES, IS_RICH, "float32")
_widen_half = make_widen(LANES, IS_RICH, "float16")
_widen_codes = make_scaled_widen(LANES, IS_RICH)
_widen_split_half = make_split_half_widen(LANES, IS_RICH)
_ZERO, _LARGEST_CODE = np.float32(0), np.float32(127)


@njit(nogil=True, cache=True)
def write_pages(k, v, keys, values, slots):
    """Write new tokens' keys and values into their page slots.

    Args:
        k, v: float32 [num_tokens, num_kv_heads, head_dim].
        keys, values: one layer's pages, as in the module's docstring.
        slots: int64 [num_tokens]; page id * page_size + place in the page.
    """
    page_size = keys.shape[3]
    for token in range(k.shape[0]):
        page, place = slots[token] // page_size, slots[token] % page_size
        for head in range(k.shape[1]):
            write_line(k[token, head], keys[page, head, :, place])
            write_line(v[token, head], values[page, head, place])


@njit(**INNER)
def write_line(x, line):
    """Store one token's key or value of one head: float32 [head_dim] into a line of a page."""
    head_dim = x.shape[0]
    if element_bytes(line) == 4:
        for i in range(head_dim):
            line[i] = x[i]
    elif element_bytes(line) == 2:
        for i in range(head_dim):
            line[i] = half_from_float32(x[i])
    else:
        write_codes(x, line)


@njit(**INNER)
def write_codes(x, line):
    """Round one key or value to int8 codes, KV_GROUP columns to a scale: largest magnitude / 127, as float16."""
    head_dim = x.shape[0]
    num_groups = (head_dim + KV_GROUP - 1) // KV_GROUP
    first_scale = line.shape[0] - 2 * num_groups
    for group in range(num_groups):
        first, end = group * KV_GROUP, min((group + 1) * KV_GROUP, head_dim)
        largest = _ZERO
        for i in range(first, end):
            largest = max(largest, abs(x[i]))
        half = half_from_float32(largest / _LARGEST_CODE)
        scale = float32_from_half(half)
        inverse = np.float32(1) / scale if scale > _ZERO else _ZERO
        for i in range(first, end):
            # A scale that was rounded down would make 128 of the largest.
            line[i] = np.int8(min(max(np.rint(x[i] * inverse), -_LARGEST_CODE), _LARGEST_CODE))
        line[first_scale + 2 * group] = np.int8(half & np.uint16(0xFF))
        line[first_scale + 2 * group + 1] = np.int8(half >> np.uint16(8))


@njit(**INNER)
def key_tile(keys, block_table, kv_head, first, stop, joined):
    """Return where TILE_COLUMNS keys from token `first` stand side by side, as (address, keys in a line).

    Args:
        keys: one layer's pages; block_table: int32, the sequence's pages; kv_head: whose keys.
        first: a multiple of TILE_COLUMNS; stop: no key from here on is needed.
        joined: room for a page of TILE_COLUMNS keys, where keys of smaller pages are brought together.
    """
    page_size = keys.shape[3]
    if page_size % TILE_COLUMNS == 0:
        page = keys[block_table[first // page_size], kv_head]
        return page.ctypes.data + first % page_size * element_bytes(page), page_size
    for token in range(first, min(stop, first + TILE_COLUMNS)):
        page = keys[block_table[token // page_size], kv_head]
        for row in range(page.shape[0]):
            joined[row, token - first] = page[row, token % page_size]
    return joined.ctypes.data, TILE_COLUMNS


@njit(**INNER)
def widen_keys(keys, head_dim, source, stride, scales, out):
    """Write the keys that `key_tile` found as float32 [head_dim, TILE_COLUMNS].

    Args:
        keys: one layer's pages; head_dim: columns of a key.
        source, stride: the tile's address and the keys in a line.
        scales: room for float32 [TILE_COLUMNS]; out: float32, at least head_dim * TILE_COLUMNS long.
    """
    target = out.ctypes.data
    if element_bytes(keys) == 4:
        for row in range(head_dim):
            _widen_float(source + 4 * row * stride, target + 4 * TILE_COLUMNS * row)
    elif element_bytes(keys) == 2:
        for row in range(head_dim):
            _widen_half(source + 2 * row * stride, target + 4 * TILE_COLUMNS * row)
    else:
        low = source + (keys.shape[2] - 2 * ((head_dim + KV_GROUP - 1) // KV_GROUP)) * stride
        for first in range(0, head_dim, KV_GROUP):
            _widen_split_half(low, low + stride, scales.ctypes.data)
            low += 2 * stride
            for row in range(first, min(first + KV_GROUP, head_dim)):
                _widen_codes(source + row * stride, scales.ctypes.data, target + 4 * TILE_COLUMNS * row)


@njit(**INNER)
def value_offset(values, block_table, kv_head, token):
    """Return how many bytes behind the first page a token's value begins."""
    num_heads, page_size, line_length = values.shape[1:]
    page = block_table[token // page_size] * num_heads + kv_head
    return (page * page_size + token % page_size) * line_length * element_bytes(values)


@njit(**INNER)
def widen_values(values, head_dim, block_table, kv_head, first, stop, first_column, num_columns, out):
    """Write values of the tokens first..stop-1 as float32 [stop - first, num_columns].

    Args:
        values: one layer's pages; head_dim: columns of a value that are not padding.
        block_table: int32, the sequence's pages; kv_head: whose values; first, stop: which tokens.
        first_column, num_columns: which columns, multiples of TILE_COLUMNS.
        out: float32, at least (stop - first) * num_columns long.
    """
    page_size, line_length = values.shape[2:]
    size, target, token = element_bytes(values), out.ctypes.data, first
    while token < stop:
        page, place = block_table[token // page_size], token % page_size
        count = min(page_size - place, stop - token)
        source = values.ctypes.data + value_offset(values, block_table, kv_head, token)
        for nth in range(count):
            for column in range(first_column, first_column + num_columns, TILE_COLUMNS):
                at = target + 4 * (column - first_column)
                if size == 4:
                    _widen_float(source + 4 * column, at)
                elif size == 2:
                    _widen_half(source + 2 * column, at)
                else:
                    line = values[page, kv_head, place + nth]
                    _widen_codes(source + column, value_scale(line, head_dim, column), at)
            source += line_length * size
            target += 4 * num_columns
        token += count


@njit(inline="always")
def value_scale(line, head_dim, column):
    """Return the scale of one column of an int8 value, whose line ends in its scales."""
    at = line.shape[0] - 2 * ((head_dim + KV_GROUP - 1) // KV_GROUP - column // KV_GROUP)
    low, high = np.uint16(np.uint8(line[at])), np.uint16(np.uint8(line[at + 1]))
    return float32_from_half(np.uint16(low | np.uint16(high << np.uint16(8))))
