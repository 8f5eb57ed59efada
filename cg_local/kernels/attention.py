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
from numba import get_num_threads, njit, types
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

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
from cg_local.kernels.partition_sums import (
    LOWEST,
    clear_sums,
    empty_sums,
    join_partition,
    join_partitions,
    scatter_results,
)
from cg_local.kernels.tile_product import (
    BLOCK_STEPS,
    TILE_COLUMNS,
    lines_ahead,
    make_line_peak,
    make_line_weights,
    make_tile_product,
)
from cg_local.kernels.workers import WORKER, load_arguments, pack, run_workers, take, worker_address

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
# Bytes that a tile of one row, and of a few, asks for ahead in each step.
_AHEAD_OF_ONE, _AHEAD_OF_FEW = (64 * lines_ahead(rows) // BLOCK_STEPS for rows in (1, _FEW_ROWS))

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
        following, ahead = first + TILE_COLUMNS, source
        if is_direct and following < stop and keys.shape[3] % TILE_COLUMNS == 0:
            ahead = key_tile(keys, block_table, kv_head, following, stop, joined)[0]
        row = 0
        while row < rows:
            count = rows_of_tile(rows, row, size)
            if positions[row + count - 1] >= first:
                a = queries.ctypes.data + 4 * row * head_dim
                c = scores.ctypes.data + 4 * (row * PARTITION + first - start)
                multiply(count, size, a, head_dim, source, stride, head_dim, c, PARTITION, 0, ahead)
            ahead += head_dim * (_AHEAD_OF_ONE if count == 1 else _AHEAD_OF_FEW)
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
        peak[row] = _line_peak(line, seen, LOWEST) if seen > 0 else LOWEST
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
        end, ahead = min(stop, first + TILE_COLUMNS), panel.ctypes.data
        if is_direct:
            source, stride = values.ctypes.data + value_offset(values, block_table, kv_head, first), line_length
            if end < stop:
                ahead = values.ctypes.data + value_offset(values, block_table, kv_head, end)
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
                ahead += (end - first) * (_AHEAD_OF_ONE if count == 1 else _AHEAD_OF_FEW)
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
def gather_queries(q, kv_head, group_heads, first_token, first_position, scale, queries, positions):
    """Collect the query rows of some tokens and one KV head's group of heads, scaled."""
    for row in range(queries.shape[0]):
        token, head = first_token + row // group_heads, kv_head * group_heads + row % group_heads
        positions[row] = first_position + token
        for i in range(q.shape[2]):
            queries[row, i] = q[token, head, i] * scale


@njit(**WORKER)
def attend_units(pointer, worker):
    """Take blocks of tokens, or partitions of the context, from the common counter until it has run out.

    Args:
        pointer: of the arguments of `attend`, the common counter, and the sums of spread work, as `attend` packs them.
        worker: not needed, whoever comes takes the next unit.
    """
    q, keys, values, block_table, first_position, scale, block_tokens, is_spread, out, counter, sums = load_arguments(
        pointer
    )
    num_tokens, head_dim, num_kv_heads = q.shape[0], q.shape[2], keys.shape[1]
    group_heads, columns = q.shape[1] // num_kv_heads, padded_columns(head_dim)
    most_rows = min(block_tokens, num_tokens) * group_heads
    # Made once for all units: an allocator may take memory from the system and give it back each time.
    all_queries, all_positions = np.empty((most_rows, head_dim), np.float32), np.empty(most_rows, np.int64)
    all_scores, scratch = np.empty((most_rows, PARTITION), np.float32), scratch_of(keys, values)
    own_sums, joined_sums = empty_sums(most_rows, columns), empty_sums(most_rows, columns)
    num_blocks = (num_tokens + block_tokens - 1) // block_tokens
    num_units = num_kv_heads * (sums[0].shape[1] if is_spread else num_blocks)
    while True:
        unit = take(counter.ctypes.data, 1)
        if unit >= num_units:
            break
        nth, kv_head = unit // num_kv_heads, unit % num_kv_heads
        # Late blocks see more of the context: the longest first, so that no thread ends long after the others.
        first = 0 if is_spread else (num_blocks - 1 - nth) * block_tokens
        rows = min(block_tokens, num_tokens - first) * group_heads
        queries, positions, scores = all_queries[:rows], all_positions[:rows], all_scores[:rows]
        gather_queries(q, kv_head, group_heads, first, first_position, scale, queries, positions)
        peak, mass, total = own_sums[0][:rows], own_sums[1][:rows], own_sums[2][:rows]
        all_peak, all_mass, all_total = joined_sums[0][:rows], joined_sums[1][:rows], joined_sums[2][:rows]
        begin, end = 0, positions[rows - 1] + 1
        if is_spread:
            peak, mass, total = sums[0][kv_head, nth], sums[1][kv_head, nth], sums[2][kv_head, nth]
            begin = nth * PARTITION
            end = min(end, begin + PARTITION)
        else:
            clear_sums(all_peak, all_mass, all_total)
        for start in range(begin, end, PARTITION):
            attend_partition(
                queries, positions, keys, values, block_table, kv_head, start, min(end, start + PARTITION),
                scores, scratch, peak, mass, total,
            )  # fmt: skip
            if not is_spread:
                join_partition(peak, mass, total, all_peak, all_mass, all_total)
        if not is_spread:
            scatter_results(all_mass, all_total, kv_head, group_heads, first, head_dim, out)


@njit(nogil=True, cache=True, error_model="numpy")
def attend(address, num_workers, q, keys, values, block_table, first_position, scale, is_spread, out):
    """Causal attention of a run of new tokens of one sequence, whose K and V are already in the pages.

    Args:
        address: of `attend_units`, compiled for the type of K and V; num_workers: how many of it may run at once.
        q: float32 [num_tokens, num_heads, head_dim], rotated.
        keys, values: one layer's pages; block_table: int32, the sequence's pages.
        first_position: position of the first token; scale: float32, 1 / sqrt(head_dim).
        is_spread: give threads partitions of the context instead of blocks of tokens; the result is the same.
        out: float32 [num_tokens, num_heads * head_dim], fully written.
    """
    num_tokens, num_kv_heads = q.shape[0], keys.shape[1]
    group_heads = q.shape[1] // num_kv_heads
    block_tokens = num_tokens if is_spread else max(1, _BLOCK_ROWS // group_heads)
    num_slots = (first_position + num_tokens + PARTITION - 1) // PARTITION if is_spread else 0
    shape = num_kv_heads, num_slots, num_tokens * group_heads
    columns = padded_columns(q.shape[2])
    sums = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty((*shape, columns), np.float32)
    num_units = num_kv_heads * (num_slots if is_spread else (num_tokens + block_tokens - 1) // block_tokens)
    counter = np.empty(1, np.int64)
    counter[0] = 0
    packed = q, keys, values, block_table, first_position, scale, block_tokens, is_spread, out, counter, sums
    run_workers(address, pack(packed), min(num_units, num_workers))
    if is_spread:
        join_partitions(sums, group_heads, q.shape[2], out)
    # Numba gives memory back after the last line that names it.
    return counter[0] + sums[0].size


def attend_address(stored: np.dtype[Any]) -> int:
    """Return the address of `attend_units` for pages whose elements are `stored`."""
    address = _addresses.get(stored)
    if address is None:
        pages = types.Array(from_dtype(stored), 4, "C")
        floats = {ndim: types.Array(types.float32, ndim, "C") for ndim in (2, 3, 4)}
        sums = types.Tuple((floats[3], floats[3], floats[4]))
        table, counter = types.Array(types.int32, 1, "C"), types.Array(types.int64, 1, "C")
        arguments = (
            floats[3], pages, pages, table, types.int64, types.float32, types.int64, types.boolean, floats[2], counter,
            sums,
        )  # fmt: skip
        address = _addresses[stored] = worker_address(attend_units, arguments)
    return address


_addresses: dict[Any, int] = {}


def attend_prefill(
    q: Floats, keys: Any, values: Any, block_table: Any, first_position: int, scale: np.float32, out: Floats
) -> None:
    """`attend` for many tokens: their blocks run in parallel."""
    address, num_workers = attend_address(keys.dtype), get_num_threads()
    # A product whose rows fill no whole tile leaves padding between tokens.
    queries = np.ascontiguousarray(q)
    attend(address, num_workers, queries, keys, values, block_table, first_position, scale, False, out)


def attend_decode(
    q: Floats, keys: Any, values: Any, block_table: Any, first_position: int, scale: np.float32, out: Floats
) -> None:
    """`attend` for one or a few tokens: the partitions of a long context run in parallel."""
    address, num_workers = attend_address(keys.dtype), get_num_threads()
    queries = np.ascontiguousarray(q)
    attend(address, num_workers, queries, keys, values, block_table, first_position, scale, True, out)
