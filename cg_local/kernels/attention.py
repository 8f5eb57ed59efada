"""Attention of new tokens over the pages of their sequence, and the writing of K and V into pages.

This file owns the arithmetic on pages; which page belongs to whom is told by block tables. Keys and values of one layer
stand as [num_pages, num_kv_heads, page_size, head_dim], float32 or the bits of float16 (uint16).

The context is walked in partitions of PARTITION tokens. Within one, softmax runs page by page with a running maximum;
partitions are then joined in order. Invariant: a token's result depends on its query and its context alone, bit for
bit: decode computes partitions in parallel and prefill one after the other, both through the same two functions.

Method: Dao et al., FlashAttention, arXiv 2205.14135 (running maximum), and its split of the context for decode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from cg_local.kernels.activations import exp32
from cg_local.kernels.bits import float32_from_half, half_from_float32

PARTITION = 256
# Query rows (tokens times heads of one KV head) that share one widened page in prefill.
_BLOCK_ROWS = 64
_FAST = {"reassoc", "contract", "nsz"}
_LOWEST = np.float32(-1e30)
_ZERO = np.float32(0)


def widen(stored: Any, out: Any) -> None:
    """Copy a stored row of K or V to float32; the implementation is chosen by the stored type when Numba compiles."""
    raise NotImplementedError("only compiled code calls this")


@overload(widen)
def _widen(stored: Any, out: Any) -> Any:
    if stored.dtype == types.uint16:

        def from_half(stored: Any, out: Any) -> None:
            for i in range(out.shape[0]):
                out[i] = float32_from_half(stored[i])

        return from_half

    def from_float(stored: Any, out: Any) -> None:
        for i in range(out.shape[0]):
            out[i] = stored[i]

    return from_float


def narrow(value: Any, stored: Any, i: Any) -> None:
    """Store a float32 as element i of a row of K or V."""
    raise NotImplementedError("only compiled code calls this")


@overload(narrow)
def _narrow(value: Any, stored: Any, i: Any) -> Any:
    if stored.dtype == types.uint16:

        def to_half(value: Any, stored: Any, i: Any) -> None:
            stored[i] = half_from_float32(value)

        return to_half

    def to_float(value: Any, stored: Any, i: Any) -> None:
        stored[i] = value

    return to_float


@njit(nogil=True, cache=True)
def write_pages(x, pages, slots):
    """Write new tokens' keys or values into their page slots.

    Args:
        x: float32 [num_tokens, num_kv_heads, head_dim].
        pages: one layer's pages, as in the module's docstring.
        slots: int64 [num_tokens]; page id * page_size + place in the page.
    """
    page_size = pages.shape[2]
    for token in range(x.shape[0]):
        page, place = slots[token] // page_size, slots[token] % page_size
        for head in range(x.shape[1]):
            stored = pages[page, head, place]
            for i in range(x.shape[2]):
                narrow(x[token, head, i], stored, i)


@njit(nogil=True, cache=True, fastmath=_FAST)
def attend_partition(queries, positions, keys, values, block_table, kv_head, start, stop, peak, mass, total):
    """Attend over the context tokens start..stop-1, causally.

    Args:
        queries: float32 [rows, head_dim], already scaled; positions: int64 [rows].
        keys, values: one layer's pages; block_table: int32, the sequence's pages; kv_head: whose K and V.
        start, stop: context range; start is a multiple of the page size.
        peak, mass: float32 [rows]; written with the largest score and the sum of exp(score - peak).
        total: float32 [rows, head_dim]; written with the sum of exp(score - peak) * value.
    """
    rows, head_dim = queries.shape
    page_size = keys.shape[2]
    key_page = np.empty((page_size, head_dim), np.float32)
    value_page = np.empty((page_size, head_dim), np.float32)
    scores = np.empty(page_size, np.float32)
    peak[:] = _LOWEST
    mass[:] = _ZERO
    total[:] = _ZERO
    for first in range(start, stop, page_size):
        page = block_table[first // page_size]
        filled = min(page_size, stop - first)
        for place in range(filled):
            widen(keys[page, kv_head, place], key_page[place])
            widen(values[page, kv_head, place], value_page[place])
        for row in range(rows):
            seen = min(filled, positions[row] + 1 - first)
            if seen <= 0:
                continue
            query, sums = queries[row], total[row]
            highest = peak[row]
            for place in range(seen):
                key = key_page[place]
                score = _ZERO
                for i in range(head_dim):
                    score += query[i] * key[i]
                scores[place] = score
                highest = max(highest, score)
            if highest > peak[row]:
                shrink = exp32(peak[row] - highest)
                mass[row] *= shrink
                for i in range(head_dim):
                    sums[i] *= shrink
                peak[row] = highest
            for place in range(seen):
                scores[place] = exp32(scores[place] - highest)
                mass[row] += scores[place]
            add_weighted_values(scores, value_page, seen, sums)


@njit(inline="always", fastmath=_FAST)
def add_weighted_values(weights, values, count, sums):
    """Add weights[j] * values[j] for j < count to sums, four rows at a time so that sums is read and written less."""
    head_dim = sums.shape[0]
    fours = count - count % 4
    for j in range(0, fours, 4):
        w0, w1, w2, w3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
        for i in range(head_dim):
            sums[i] += (w0 * v0[i] + w1 * v1[i]) + (w2 * v2[i] + w3 * v3[i])
    for j in range(fours, count):
        w, v = weights[j], values[j]
        for i in range(head_dim):
            sums[i] += w * v[i]


@njit(nogil=True, cache=True)
def join_partition(peak, mass, total, all_peak, all_mass, all_total):
    """Join one partition's result into that of the partitions before it; arrays as in `attend_partition`."""
    for row in range(peak.shape[0]):
        highest = max(peak[row], all_peak[row])
        old, new = exp32(all_peak[row] - highest), exp32(peak[row] - highest)
        all_mass[row] = all_mass[row] * old + mass[row] * new
        for i in range(total.shape[1]):
            all_total[row, i] = all_total[row, i] * old + total[row, i] * new
        all_peak[row] = highest


@njit(nogil=True, cache=True)
def gather_queries(q, kv_head, group_heads, first_token, num_tokens, first_position, scale, queries, positions):
    """Collect the query rows of some tokens and one KV head's group of heads, scaled."""
    for token in range(num_tokens):
        for head in range(group_heads):
            row = token * group_heads + head
            positions[row] = first_position + first_token + token
            for i in range(q.shape[2]):
                queries[row, i] = q[first_token + token, kv_head * group_heads + head, i] * scale


@njit(nogil=True, cache=True)
def scatter_results(mass, total, kv_head, group_heads, first_token, num_tokens, out):
    """Write total / mass of each row to its token and head of out."""
    head_dim = total.shape[1]
    for token in range(num_tokens):
        for head in range(group_heads):
            row = token * group_heads + head
            inverse = np.float32(1) / mass[row]
            column = (kv_head * group_heads + head) * head_dim
            for i in range(head_dim):
                out[first_token + token, column + i] = total[row, i] * inverse


@njit(parallel=True, nogil=True, cache=True)
def attend_prefill(q, keys, values, block_table, first_position, scale, out):
    """Causal attention of a run of new tokens of one sequence, whose K and V are already in the pages.

    Args:
        q: float32 [num_tokens, num_heads, head_dim], rotated.
        keys, values: one layer's pages; block_table: int32, the sequence's pages.
        first_position: position of the first token; scale: float32, 1 / sqrt(head_dim).
        out: float32 [num_tokens, num_heads * head_dim], fully written.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    group_heads = num_heads // num_kv_heads
    block_tokens = max(1, _BLOCK_ROWS // group_heads)
    num_blocks = (num_tokens + block_tokens - 1) // block_tokens
    for unit in prange(num_blocks * num_kv_heads):
        # Late blocks see more context: pairing the first with the last gives threads equal shares.
        nth, kv_head = unit // num_kv_heads, unit % num_kv_heads
        block = nth // 2 if nth % 2 == 0 else num_blocks - 1 - nth // 2
        first = block * block_tokens
        count = min(block_tokens, num_tokens - first)
        rows = count * group_heads
        queries, positions = np.empty((rows, head_dim), np.float32), np.empty(rows, np.int64)
        gather_queries(q, kv_head, group_heads, first, count, first_position, scale, queries, positions)
        peak, mass, total = (
            np.empty(rows, np.float32),
            np.empty(rows, np.float32),
            np.empty((rows, head_dim), np.float32),
        )
        all_peak, all_mass = np.full(rows, _LOWEST), np.zeros(rows, np.float32)
        all_total = np.zeros((rows, head_dim), np.float32)
        end = first_position + first + count
        for start in range(0, end, PARTITION):
            stop = min(end, start + PARTITION)
            attend_partition(queries, positions, keys, values, block_table, kv_head, start, stop, peak, mass, total)
            join_partition(peak, mass, total, all_peak, all_mass, all_total)
        scatter_results(all_mass, all_total, kv_head, group_heads, first, count, out)


@njit(parallel=True, nogil=True, cache=True)
def attend_decode(q, keys, values, block_table, first_position, scale, out):
    """The same as `attend_prefill` for one or a few tokens: the partitions of a long context run in parallel."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    group_heads = num_heads // num_kv_heads
    rows = num_tokens * group_heads
    end = first_position + num_tokens
    num_partitions = (end + PARTITION - 1) // PARTITION
    peak = np.empty((num_kv_heads, num_partitions, rows), np.float32)
    mass = np.empty((num_kv_heads, num_partitions, rows), np.float32)
    total = np.empty((num_kv_heads, num_partitions, rows, head_dim), np.float32)
    for unit in prange(num_partitions * num_kv_heads):
        partition, kv_head = unit // num_kv_heads, unit % num_kv_heads
        queries, positions = np.empty((rows, head_dim), np.float32), np.empty(rows, np.int64)
        gather_queries(q, kv_head, group_heads, 0, num_tokens, first_position, scale, queries, positions)
        start = partition * PARTITION
        attend_partition(
            queries, positions, keys, values, block_table, kv_head, start, min(end, start + PARTITION),
            peak[kv_head, partition], mass[kv_head, partition], total[kv_head, partition],
        )  # fmt: skip
    for kv_head in range(num_kv_heads):
        all_peak, all_mass = np.full(rows, _LOWEST), np.zeros(rows, np.float32)
        all_total = np.zeros((rows, head_dim), np.float32)
        for partition in range(num_partitions):
            join_partition(
                peak[kv_head, partition],
                mass[kv_head, partition],
                total[kv_head, partition],
                all_peak,
                all_mass,
                all_total,
            )
        scatter_results(all_mass, all_total, kv_head, group_heads, 0, num_tokens, out)
