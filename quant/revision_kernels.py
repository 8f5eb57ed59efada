"""The loops of `feedback`'s revision: scales and codes of a group at a time, so that the error of the row falls.

This file owns the descent after rounding. For the error e of a row, e H e is what counts. With all other groups of the
row as they stand it changes by d (2 g + H d) when the group's values change by d, where g is what H e has at its
columns. For each scale that the group may have, the codes it has by now are the start of a coordinate descent over its
columns, and the scale whose result lowers the error most is taken; none is, where all would raise it.

Invariant: no group's step raises e H e, whatever steps came before; a row's result depends on that row alone.

The arithmetic is over LANES rows at a time, one row a lane. Sources: the closed form of a column's best value given all
others is coordinate descent's (Chee et al., QuIP, arXiv 2307.13304, appendix; Behdin et al., QuantEase, 2309.01885).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cg_local.quant.feedback_kernels import INDEX_OFFSET, divide, indices_of
from cg_local.quant.lanes import LANES, PANEL, add_products, nearest_values, panel_sums

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Choices = NDArray[np.uint8]


@njit(cache=True, nogil=True, error_model="numpy")
def revise(
    x: Floats,
    candidates: Floats,
    values: Floats,
    middles: Floats,
    start: int,
    stop: int,
    products: Floats,
    chosen: Choices,
    codes: Codes,
) -> None:
    """Revise the columns of one block of H in rows.

    Args:
        x: float32 [rows, columns], what the rows shall be, finite.
        candidates: float32 [n, rows, groups], scales that a group may have; a group is columns / groups wide.
        values: float32 [m], the grid in ascending order: integers from -INDEX_OFFSET below INDEX_OFFSET.
        middles: float32 [m - 1], between two values each.
        start, stop: first column of the block and end, multiples of a group's width and of PANEL.
        products: float32 [(stop - start) / PANEL, stop - start, PANEL], the block: `feedback.DenseFeedback.products`.
        chosen: uint8 [rows, groups], the index of each group's scale, receives the new ones.
        codes: int8 [rows, columns], indices into values as the lower 8 bits, receives the new ones.
    """
    group = x.shape[1] // candidates.shape[2]
    taken, errors = np.empty((stop - start, LANES), np.float32), np.empty((stop - start, LANES), np.float32)
    slopes, scales = np.empty((group, LANES), np.float32), np.empty((len(candidates), LANES), np.float32)
    indices, current = indices_of(values), np.zeros(LANES, np.int64)
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        taken[:] = errors[:] = scales[:] = 0.0
        for lane in range(lanes):
            for column in range(start, stop):
                scale = candidates[chosen[row + lane, column // group], row + lane, column // group]
                taken[column - start, lane] = values[np.uint8(codes[row + lane, column])]
                errors[column - start, lane] = taken[column - start, lane] * scale - x[row + lane, column]
        for first in range(0, stop - start, group):
            number = (start + first) // group
            for lane in range(lanes):
                current[lane] = chosen[row + lane, number]
                for n in range(len(candidates)):
                    scales[n, lane] = candidates[n, row + lane, number]
            for column in range(0, group, PANEL):
                panel_sums(products[(first + column) // PANEL], errors, 0, stop - start, slopes, column)
            _descend(products, first, scales, values, middles, slopes, current, taken, errors)
            for lane in range(lanes):
                chosen[row + lane, number] = current[lane]
        for lane in range(lanes):
            for column in range(start, stop):
                codes[row + lane, column] = indices[np.int64(taken[column - start, lane]) + INDEX_OFFSET]


@njit(cache=True, nogil=True, error_model="numpy")
def _descend(
    products: Floats,
    first: int,
    scales: Floats,
    values: Floats,
    middles: Floats,
    slopes: Floats,
    current: NDArray[np.int64],
    taken: Floats,
    errors: Floats,
) -> None:
    """Choose among scales, and codes for them, for the group from column `first` on; update its values and errors.

    Each sweep takes what the columns before have done to a column's slope into account (`moved`), and the error's
    change is summed up column by column, none of which raises it.

    Args:
        products, values, middles: as in `revise`.
        first: the group's first column, counted from the block's.
        scales: float32 [n, LANES], what the group's scale may be in each row.
        slopes: float32 [group, LANES], what H e has at the group's columns.
        current: int64 [LANES], the index of the scale, receives the new one.
        taken: float32 [stop - start, LANES], the grid's values of the block's columns, receives the group's new ones.
        errors: float32 [stop - start, LANES], e of the block's columns, receives the group's new ones.
    """
    group = len(slopes)
    trial, moves = np.empty((group, LANES), np.float32), np.empty((group, LANES), np.float32)
    best, moved = np.empty((group, LANES), np.float32), np.empty((group, LANES), np.float32)
    ratio, change, least = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    previous, best_scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        previous[lane] = best_scale[lane] = scales[current[lane], lane]
    for i in range(group):
        for lane in range(LANES):
            best[i, lane] = taken[first + i, lane]
    for n in range(len(scales)):
        scale = scales[n]
        for lane in range(LANES):
            change[lane] = 0.0
        for i in range(group):
            for lane in range(LANES):
                moves[i, lane] = (scale[lane] - previous[lane]) * taken[first + i, lane]
        for column in range(0, group, PANEL):
            panel_sums(products[(first + column) // PANEL], moves, first, group, moved, column)
        for i in range(group):
            for lane in range(LANES):
                change[lane] += moves[i, lane] * (np.float32(2.0) * slopes[i, lane] + moved[i, lane])
                moved[i, lane] += slopes[i, lane]
        for i in range(group):
            weights = products[(first + i) // PANEL, first + i]
            curvature = weights[i % PANEL]
            for lane in range(LANES):
                ratio[lane] = taken[first + i, lane] * scale[lane] - moved[i, lane] / curvature
            divide(ratio, scale, ratio)
            nearest_values(ratio, values, middles, trial[i])
            for lane in range(LANES):
                step = (trial[i, lane] - taken[first + i, lane]) * scale[lane]
                change[lane] += step * (np.float32(2.0) * moved[i, lane] + curvature * step)
                ratio[lane] = step
            add_products(weights, i % PANEL + 1, ratio, moved, i // PANEL * PANEL)
            for column in range(i // PANEL * PANEL + PANEL, group, PANEL):
                add_products(products[(first + column) // PANEL, first + i], 0, ratio, moved, column)
        for lane in range(LANES):
            if change[lane] < least[lane]:
                least[lane], current[lane], best_scale[lane] = change[lane], n, scale[lane]
                for i in range(group):
                    best[i, lane] = trial[i, lane]
    for i in range(group):
        for lane in range(LANES):
            errors[first + i, lane] += best[i, lane] * best_scale[lane] - taken[first + i, lane] * previous[lane]
            taken[first + i, lane] = best[i, lane]
