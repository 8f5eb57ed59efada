"""Attention of new tokens over the pages of their sequence.

This file owns the order of attention's arithmetic; `pages.py` knows how K and V are stored, `tile_product.py` the inner
loops. The context is walked in partitions of PARTITION tokens. Within one, the scores of a block of query rows are a
matrix product with the keys, their softmax weights another one with the values; partitions are then joined in order.

Invariant: a token's result depends on its query and its context alone, bit for bit. Each score is one chain of
additions over the columns, each sum of weighted values one chain over the keys of a partition, whatever the block, and
what a row must not see has weight 0. So decode may compute partitions in parallel and prefill one after the other.

Method: Dao et al., FlashAttention, arXiv 2205.14135 (running maximum), and its split of the context for decode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from cg_local.kernels.activations import exp32
from cg_local.kernels.bits import INNER
from cg_local.kernels.pages import (
    IS_RICH,
    LANES,
    element_bytes,
    key_tile,
    value_offset,
    widen_keys,
    widen_values,
)
from cg_local.kernels.tile_product import TILE_COLUMNS, make_line_peak, make_line_weights, make_tile_product

Floats = NDArray[np.float32]

PARTITION = 256
# Query rows (tokens times heads of one KV head) that share widened keys and values in prefill: a multiple of each
# MANY_ROWS, and few enough that their scores, queries and sums stay in a second-level cache of 512 KiB.
_BLOCK_ROWS = 96
# Rows of the largest tile of sums: as many as the registers hold beside a line of B and a factor.
_MANY_ROWS = {4: 6 if IS_RICH else 2, 8: 6, 16: 12}[LANES]
_FEW_ROWS = 4
# Up to so many rows K and V are taken page by page, as they come from memory; widening them first does not pay.
_PAGEWISE_ROWS = 24
_LOWEST = np.float32(-1e30)
_ZERO = np.float32(0)

_many, _few, _one = (make_tile_product(LANES, IS_RICH, rows, "float32") for rows in (_MANY_ROWS, _FEW_ROWS, 1))
_few_half, _one_half = (make_tile_product(LANES, IS_RICH, rows, "float16") for rows in (_FEW_ROWS, 1))
_line_peak, _line_weights = make_line_peak(LANES, IS_RICH), make_line_weights(LANES, IS_RICH)


@njit(**INNER)
def rows_of_tile(rows, row, size):
    """Return how many of a block's rows the tile that begins at `row` has; size as in `multiply`."""
    if size == 4 and rows % _MANY_ROWS == 0:
        return _MANY_ROWS
    return _FEW_ROWS if rows - row >= _FEW_ROWS else 1


@njit(**INNER)
def multiply(rows, size, a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead):
    """Compute one tile of C = A B (adds = 0) or C += A B (1); B is float32 (size = 4) or float16 (2).

    Arguments as in `tile_product.make_tile_product`.
    """
    if size == 4:
        if rows == _MANY_ROWS:
            _many(a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead)
        elif rows == _FEW_ROWS:
            _few(a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead)
        else:
            _one(a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead)
    elif rows == _FEW_ROWS:
        _few_half(a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead)
    else:
        _one_half(a, a_stride, b, b_stride, inner, c, c_stride, adds, ahead)


@njit(**INNER)
def score_keys(queries, positions, keys, block_table, kv_head, start, stop, scratch, scores):
    """Write the products of all queries and the keys start..stop-1; those of keys that no row of a tile sees stay.

    Args:
        queries, positions, keys, block_table, kv_head, start, stop: as in `attend_partition`.
        scratch: from `scratch_of`.
        scores: float32 [rows, PARTITION].
    """
    rows, head_dim = queries.shape
    panel, joined, scales = scratch
    is_direct = rows <= _PAGEWISE_ROWS and (element_bytes(keys) == 4 or (element_bytes(keys) == 2 and IS_RICH))
    size = element_bytes(keys) if is_direct else 4
    for first in range(start, stop, TILE_COLUMNS):
        source, stride = key_tile(keys, block_table, kv_head, first, stop, joined)
        if not is_direct:
            widen_keys(keys, head_dim, source, stride, scales, panel)
            source, stride = panel.ctypes.data, TILE_COLUMNS
        following, ahead = first + TILE_COLUMNS, 0
        if is_direct and following < stop and keys.shape[3] % TILE_COLUMNS == 0:
            ahead = key_tile(keys, block_table, kv_head, following, stop, joined)[0] - source
        row = 0
        while row < rows:
            count = rows_of_tile(rows, row, size)
            if positions[row + count - 1] >= first:
                a = queries.ctypes.data + 4 * row * head_dim
                c = scores.ctypes.data + 4 * (row * PARTITION + first - start)
                multiply(count, size, a, head_dim, source, stride, head_dim, c, PARTITION, 0, ahead)
            row += count


@njit(**INNER)
def weigh_scores(scores, positions, start, stop, peak, mass):
    """Replace each row's scores by exp(score - peak), and by 0 where the row does not see the key.

    Args:
        scores: float32 [rows, PARTITION]; positions, start, stop, peak, mass: as in `attend_partition`.
    """
    for row in range(scores.shape[0]):
        line = scores.ctypes.data + 4 * row * PARTITION
        seen = min(stop, positions[row] + 1) - start
        peak[row] = _line_peak(line, seen, _LOWEST) if seen > 0 else _LOWEST
        mass[row] = _line_weights(line, seen, stop - start, peak[row])


@njit(**INNER)
def add_values_by_columns(scores, positions, values, head_dim, block_table, kv_head, start, stop, panel, total):
    """Write the sums of weighted values for many rows: the values of a partition are widened tile by tile of columns.

    Args:
        scores: float32 [rows, PARTITION], from `weigh_scores`; head_dim: columns of a head.
        positions, values, block_table, kv_head, start, stop, total: as in `attend_partition`.
        panel: room for float32 [PARTITION, TILE_COLUMNS].
    """
    rows, columns = total.shape
    for column in range(0, columns, TILE_COLUMNS):
        widen_values(values, head_dim, block_table, kv_head, start, stop, column, TILE_COLUMNS, panel)
        row = 0
        while row < rows:
            count = rows_of_tile(rows, row, 4)
            # A tile that sees nothing multiplies its weights, all 0, by one value.
            seen = max(1, min(stop, positions[row + count - 1] + 1) - start)
            a, c = scores.ctypes.data + 4 * row * PARTITION, total.ctypes.data + 4 * (row * columns + column)
            multiply(count, 4, a, PARTITION, panel.ctypes.data, TILE_COLUMNS, seen, c, columns, 0, 0)
            row += count


@njit(**INNER)
def add_values_by_pages(scores, values, head_dim, block_table, kv_head, start, stop, panel, total):
    """The same for few rows: values are taken in the order in which they lie in memory, TILE_COLUMNS tokens at a time.

    Args:
        scores, values, head_dim, block_table, kv_head, start, stop, total: as in `add_values_by_columns`.
        panel: room for float32 [TILE_COLUMNS, columns].
    """
    rows, columns = total.shape
    page_size, line_length = values.shape[2:]
    size = element_bytes(values)
    is_direct = page_size % TILE_COLUMNS == 0 and (size == 4 or (size == 2 and IS_RICH))
    for first in range(start, stop, TILE_COLUMNS):
        end, ahead = min(stop, first + TILE_COLUMNS), 0
        if is_direct:
            source, stride = values.ctypes.data + value_offset(values, block_table, kv_head, first), line_length
            if end < stop:
                ahead = values.ctypes.data + value_offset(values, block_table, kv_head, end) - source
        else:
            widen_values(values, head_dim, block_table, kv_head, first, end, 0, columns, panel)
            source, stride, size = panel.ctypes.data, columns, 4
        for column in range(0, columns, TILE_COLUMNS):
            row = 0
            while row < rows:
                count = rows_of_tile(rows, row, size)
                a = scores.ctypes.data + 4 * (row * PARTITION + first - start)
                c = total.ctypes.data + 4 * (row * columns + column)
                b = source + column * size
                multiply(count, size, a, PARTITION, b, stride, end - first, c, columns, int(first > start), ahead)
                row += count


@njit(**INNER)
def attend_partition(
    queries, positions, keys, values, block_table, kv_head, start, stop, scores, scratch, peak, mass, total
):
    """Attend over the context tokens start..stop-1, causally.

    Args:
        queries: float32 [rows, head_dim], already scaled; positions: int64 [rows], ascending.
        keys, values: one layer's pages; block_table: int32, the sequence's pages; kv_head: whose K and V.
        start, stop: context range within one partition; start is a multiple of PARTITION.
        scores: room for float32 [rows, PARTITION]; scratch: from `scratch_of`.
        peak, mass: float32 [rows]; written with the largest score and the sum of exp(score - peak).
        total: float32 [rows, columns], head_dim padded to whole tiles; written with the sum of exp(score - peak) *
            value.
    """
    rows, head_dim = queries.shape
    score_keys(queries, positions, keys, block_table, kv_head, start, stop, scratch, scores)
    weigh_scores(scores, positions, start, stop, peak, mass)
    if rows <= _PAGEWISE_ROWS:
        add_values_by_pages(scores, values, head_dim, block_table, kv_head, start, stop, scratch[0], total)
    else:
        add_values_by_columns(scores, positions, values, head_dim, block_table, kv_head, start, stop, scratch[0], total)


@njit(**INNER)
def scratch_of(keys, values):
    """Return room for widened keys or values, for the keys of small pages, and for scales."""
    panel = np.empty(max(keys.shape[2], values.shape[3], PARTITION) * TILE_COLUMNS, np.float32)
    return panel, np.empty((keys.shape[2], TILE_COLUMNS), keys.dtype), np.empty(TILE_COLUMNS, np.float32)


@njit(**INNER)
def padded_columns(head_dim):
    """Return head_dim filled up to whole tiles."""
    return (head_dim + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS


@njit(**INNER)
def join_partition(peak, mass, total, all_peak, all_mass, all_total):
    """Join one partition's result into that of the partitions before it; arrays as in `attend_partition`."""
    for row in range(peak.shape[0]):
        highest = max(peak[row], all_peak[row])
        old, new = exp32(all_peak[row] - highest), exp32(peak[row] - highest)
        all_mass[row] = all_mass[row] * old + mass[row] * new
        for i in range(total.shape[1]):
            all_total[row, i] = all_total[row, i] * old + total[row, i] * new
        all_peak[row] = highest


@njit(**INNER)
def gather_queries(q, kv_head, group_heads, first_token, first_position, scale, queries, positions):
    """Collect the query rows of some tokens and one KV head's group of heads, scaled."""
    for row in range(queries.shape[0]):
        token, head = first_token + row // group_heads, kv_head * group_heads + row % group_heads
        positions[row] = first_position + token
        for i in range(q.shape[2]):
            queries[row, i] = q[token, head, i] * scale


@njit(**INNER)
def scatter_results(mass, total, kv_head, group_heads, first_token, head_dim, out):
    """Write total / mass of each row to its token and head of out."""
    for row in range(mass.shape[0]):
        token, head = first_token + row // group_heads, kv_head * group_heads + row % group_heads
        inverse = np.float32(1) / mass[row]
        for i in range(head_dim):
            out[token, head * head_dim + i] = total[row, i] * inverse


@njit(**INNER)
def clear_sums(peak, mass, total):
    """Make of three arrays the sums over no token at all."""
    for row in range(peak.shape[0]):
        peak[row], mass[row] = _LOWEST, _ZERO
        for i in range(total.shape[1]):
            total[row, i] = _ZERO


@njit(**INNER)
def attend_unit(q, keys, values, block_table, first_position, scale, kv_head, first, count, slot, sums, out):
    """Attention of `count` tokens from `first` and one KV head, over one partition or the whole context.

    Args:
        slot: the partition, whose result goes to that place in `sums`; -1: walk over all of them and write to `out`.
        kv_head: whose K and V; first, count: which tokens.
        sums: for spread work, peak, mass and total of all KV heads and partitions, each as in `attend_partition`.
        q, keys, values, block_table, first_position, scale, out: as in `attend`.
    """
    head_dim, group_heads = q.shape[2], q.shape[1] // keys.shape[1]
    rows, columns = count * group_heads, padded_columns(head_dim)
    queries, positions = np.empty((rows, head_dim), np.float32), np.empty(rows, np.int64)
    gather_queries(q, kv_head, group_heads, first, first_position, scale, queries, positions)
    scores, scratch = np.empty((rows, PARTITION), np.float32), scratch_of(keys, values)
    peak, mass, total = empty_sums(rows, columns)
    all_peak, all_mass, all_total = empty_sums(rows, columns)
    begin, end = 0, first_position + first + count
    if slot >= 0:
        peak, mass, total = sums[0][kv_head, slot], sums[1][kv_head, slot], sums[2][kv_head, slot]
        begin = slot * PARTITION
        end = min(end, begin + PARTITION)
    else:
        clear_sums(all_peak, all_mass, all_total)
    for start in range(begin, end, PARTITION):
        attend_partition(
            queries, positions, keys, values, block_table, kv_head, start, min(end, start + PARTITION),
            scores, scratch, peak, mass, total,
        )  # fmt: skip
        if slot < 0:
            join_partition(peak, mass, total, all_peak, all_mass, all_total)
    if slot < 0:
        scatter_results(all_mass, all_total, kv_head, group_heads, first, head_dim, out)


@njit(**INNER)
def empty_sums(rows, columns):
    """Return room for peak, mass and total."""
    return np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty((rows, columns), np.float32)


@njit(**INNER)
def join_partitions(sums, group_heads, head_dim, out):
    """Join the partitions of spread work, in order, into out."""
    num_kv_heads, num_partitions, rows, columns = sums[2].shape
    all_peak, all_mass, all_total = empty_sums(rows, columns)
    for kv_head in range(num_kv_heads):
        clear_sums(all_peak, all_mass, all_total)
        for slot in range(num_partitions):
            peak, mass, total = sums[0][kv_head, slot], sums[1][kv_head, slot], sums[2][kv_head, slot]
            join_partition(peak, mass, total, all_peak, all_mass, all_total)
        scatter_results(all_mass, all_total, kv_head, group_heads, 0, head_dim, out)


@njit(parallel=True, nogil=True, cache=True)
def attend(q, keys, values, block_table, first_position, scale, is_spread, out):
    """Causal attention of a run of new tokens of one sequence, whose K and V are already in the pages.

    Args:
        q: float32 [num_tokens, num_heads, head_dim], rotated.
        keys, values: one layer's pages; block_table: int32, the sequence's pages.
        first_position: position of the first token; scale: float32, 1 / sqrt(head_dim).
        is_spread: give threads partitions of the context instead of blocks of tokens; the result is the same.
        out: float32 [num_tokens, num_heads * head_dim], fully written.
    """
    num_tokens, num_kv_heads = q.shape[0], keys.shape[1]
    group_heads = q.shape[1] // num_kv_heads
    block_tokens = num_tokens if is_spread else max(1, _BLOCK_ROWS // group_heads)
    num_blocks = (num_tokens + block_tokens - 1) // block_tokens
    num_slots = (first_position + num_tokens + PARTITION - 1) // PARTITION if is_spread else 0
    shape = num_kv_heads, num_slots, num_tokens * group_heads
    columns = padded_columns(q.shape[2])
    sums = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty((*shape, columns), np.float32)
    num_units = num_kv_heads * (num_slots if is_spread else num_blocks)
    for unit in prange(num_units):
        nth, kv_head = unit // num_kv_heads, unit % num_kv_heads
        # Late blocks see more context: pairing the first with the last gives threads equal shares.
        block = nth // 2 if nth % 2 == 0 else num_blocks - 1 - nth // 2
        first = 0 if is_spread else block * block_tokens
        slot = nth if is_spread else -1
        count = min(block_tokens, num_tokens - first)
        attend_unit(q, keys, values, block_table, first_position, scale, kv_head, first, count, slot, sums, out)
    if is_spread:
        join_partitions(sums, group_heads, q.shape[2], out)


def attend_prefill(
    q: Floats, keys: Any, values: Any, block_table: Any, first_position: int, scale: np.float32, out: Floats
) -> None:
    """`attend` for many tokens: their blocks run in parallel."""
    attend(q, keys, values, block_table, first_position, scale, False, out)


def attend_decode(
    q: Floats, keys: Any, values: Any, block_table: Any, first_position: int, scale: np.float32, out: Floats
) -> None:
    """`attend` for one or a few tokens: the partitions of a long context run in parallel."""
    attend(q, keys, values, block_table, first_position, scale, True, out)
