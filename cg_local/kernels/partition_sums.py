"""Sums over partitions of a context, and how they are joined into the result of attention.

This file owns the running maximum. Of a query's row over some tokens there is the largest score (peak), the sum of
exp(score - peak) (mass) and the sum of exp(score - peak) * value (total). Invariant: joining is a chain in the order of
the partitions, so whoever joins them, the bits are the same.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cg_local.kernels.activations import exp32
from cg_local.kernels.bits import INNER

LOWEST = np.float32(-1e30)
_ZERO = np.float32(0)


@njit(**INNER)
def empty_sums(rows, columns):
    """Return room for peak, mass and total."""
    return np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty((rows, columns), np.float32)


@njit(**INNER)
def clear_sums(peak, mass, total):
    """Make of three arrays the sums over no token at all."""
    for row in range(peak.shape[0]):
        peak[row], mass[row] = LOWEST, _ZERO
        for i in range(total.shape[1]):
            total[row, i] = _ZERO


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
def scatter_results(mass, total, kv_head, group_heads, first_token, head_dim, out):
    """Write total / mass of each row to its token and head of out."""
    for row in range(mass.shape[0]):
        token, head = first_token + row // group_heads, kv_head * group_heads + row % group_heads
        inverse = np.float32(1) / mass[row]
        for i in range(head_dim):
            out[token, head * head_dim + i] = total[row, i] * inverse


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
