"""The loops of `feedback`: LANES rows at a time, one row a lane, as in `search`.

This file owns the arithmetic of error feedback over columns. It knows no formats. Invariant: as in `feedback`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cg_local.quant.lanes import LANES, PANEL, add_products, nearest_values, panel_sums

INDEX_OFFSET = 128  # values of a grid are integers from -INDEX_OFFSET below INDEX_OFFSET

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Codes = NDArray[np.int8]
Indices = NDArray[np.int64]


@njit(cache=True, nogil=True, error_model="numpy")
def low_rank_steps(diagonal: Doubles, directions: Doubles, order: Indices, steps: Doubles) -> None:
    """Fill `steps` (see `feedback.LowRankFeedback`), from the last column back to the first.

    With F the columns from j on and M = I + sum over F of v v' / d, the inverse of H over F has the diagonal element
    (1 - v'u / d) / d and the row -(V u)' / d / d at j, where u = M^-1 v. Adding columns from the end only shrinks
    M^-1, so nothing cancels.
    """
    rank = directions.shape[1]
    inverse = np.eye(rank)
    product = np.empty(rank)
    for position in range(len(order) - 1, -1, -1):
        j = order[position]
        norm = 0.0
        for a in range(rank):
            total = 0.0
            for b in range(rank):
                total += inverse[a, b] * directions[j, b]
            product[a] = total
            norm += total * directions[j, a]
        # `inverse` is M^-1 of the later columns: u = inverse v / (1 + norm / d) and 1 - v'u / d = d / (d + norm).
        # What e at j adds to the others, e (V u) / (d (1 - v'u / d)) / d_i, is then e (V inverse v) / d_i.
        for a in range(rank):
            steps[j, a] = product[a]
        for a in range(rank):
            for b in range(rank):
                inverse[a, b] -= product[a] * product[b] / (diagonal[j] + norm)


@njit(cache=True, nogil=True, error_model="numpy")
def round_low_rank(
    x: Floats, scales: Floats, values: Floats, order: Indices, directions: Floats, steps: Floats, codes: Codes
) -> None:
    """Round rows with the feedback of a diagonal and directions; arguments as in `feedback`."""
    rank, group = directions.shape[1], x.shape[1] // scales.shape[1]
    moved = np.empty((rank, LANES), np.float32)
    target, error = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        moved[:] = 0.0
        for j in order:
            for lane in range(lanes):
                target[lane] = x[row + lane, j]
            for a in range(rank):
                direction = directions[j, a]
                for lane in range(LANES):
                    target[lane] += direction * moved[a, lane]
            _round(x, scales, values, row, lanes, j, group, target, error, codes)
            for a in range(rank):
                step = steps[j, a]
                for lane in range(LANES):
                    moved[a, lane] += step * error[lane]


@njit(cache=True, nogil=True, error_model="numpy")
def round_dense(
    x: Floats, scales: Floats, values: Floats, middles: Floats, order: Indices, panels: Floats, codes: Codes
) -> None:
    """Round the columns of one block with the feedback of its factor; arguments as in `feedback`.

    The columns of a panel take the errors of all those before it at once, and those of the panel one by one.
    """
    group, count = x.shape[1] // scales.shape[1], len(order)
    weights, wide = np.empty((count, LANES), np.float32), np.empty((count, LANES), np.float32)
    errors, taken = np.empty((count, LANES), np.float32), np.empty((count, LANES), np.float32)
    sums, ratio = np.empty((PANEL, LANES), np.float32), np.empty(LANES, np.float32)
    indices = indices_of(values)
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        weights[:] = wide[:] = 0.0
        for lane in range(lanes):
            for position in range(count):
                weights[position, lane] = x[row + lane, order[position]]
                wide[position, lane] = scales[row + lane, order[position] // group]
        for start in range(0, count, PANEL):
            panel = panels[start // PANEL]
            panel_sums(panel, errors, 0, start, sums, 0)
            for i in range(PANEL):
                position = start + i
                for lane in range(LANES):
                    weights[position, lane] -= sums[i, lane]
                divide(weights[position], wide[position], ratio)
                nearest_values(ratio, values, middles, taken[position])
                for lane in range(LANES):
                    errors[position, lane] = weights[position, lane] - taken[position, lane] * wide[position, lane]
                add_products(panel[position], i + 1, errors[position], sums, 0)
        for lane in range(lanes):
            for position in range(count):
                codes[row + lane, order[position]] = indices[np.int64(taken[position, lane]) + INDEX_OFFSET]


@njit(cache=True, nogil=True, error_model="numpy")
def indices_of(values: Floats) -> Indices:
    """Return the index of each value at INDEX_OFFSET + value."""
    indices = np.zeros(2 * INDEX_OFFSET, np.int64)
    for index in range(len(values)):
        indices[np.int64(values[index]) + INDEX_OFFSET] = index
    return indices


@njit(cache=True, nogil=True, error_model="numpy")
def divide(weights: Floats, scales: Floats, ratios: Floats) -> None:
    """Set ratios to weights / scales, all float32 [LANES]; 0 where the scale is 0."""
    for lane in range(LANES):
        ratios[lane] = weights[lane] / scales[lane] if scales[lane] != 0.0 else np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _round(
    x: Floats,
    scales: Floats,
    values: Floats,
    row: int,
    lanes: int,
    column: int,
    group: int,
    target: Floats,
    error: Floats,
    codes: Codes,
) -> None:
    """Take the codes of one column that are nearest to `target`, and leave in `error` how far they miss it."""
    for lane in range(LANES):
        error[lane] = 0.0
    for lane in range(lanes):
        scale = scales[row + lane, column // group]
        ratio = target[lane] / scale if scale != 0.0 else np.float32(0.0)
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            if ratio > (values[middle] + values[middle + 1]) * np.float32(0.5):
                low = middle + 1
            else:
                high = middle
        codes[row + lane, column] = low
        error[lane] = target[lane] - values[low] * scale
