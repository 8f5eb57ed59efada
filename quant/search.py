"""The search for codes and scales, in Numba.

This file owns which scale and which codes stand for a group of weights, by weighted least squares. It knows neither
the packed layout (`packing`) nor how scales are rounded (`encode`), and reads no file. Invariant: a row's
result depends on that row (and the codebook) only, and every sum has a fixed order, so results are the same bytes for
every number of threads, every cut into slabs and every vector width.

Kernels work on LANES rows at a time, one row a lane: `block[column, lane]`. All sums then run down the columns of a
lane, and the compiler vectorizes across lanes without reordering one addition. The kernels release the GIL; callers run
them on different rows in different threads.

An element's squared error counts importance[column] * sqrt(m + v * v), where v is the element and m the mean square of
its group, both relative to the group's largest element. The importance is the mean square of what the column is
multiplied with, where that is known, and 1 otherwise; the second factor keeps the search from clipping the large
weights of a group, which plain least squares does too readily. Source of the second factor: ggml-org/llama.cpp,
ggml-quants.c (sqrtf(sigma2 + x * x)).

A grid is what a scaled weight may be rounded to: either a `codebook`, 16 ascending values and their 15 midpoints, or
(codebook None) the integers from limits[0] to limits[1].
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cg_local.packing import TILE_ROWS

LANES = TILE_ROWS
# Adding and subtracting 1.5 * 2^23 rounds a float32 below 2^22 to the nearest integer, ties to even; unlike a call of
# rint it vectorizes on every instruction set.
ROUNDER = np.float32(12582912.0)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Codebook = tuple[tuple[np.float32, ...], tuple[np.float32, ...]]
Limits = tuple[np.float32, np.float32]


@njit(cache=True, nogil=True, error_model="numpy")
def search_scales(
    x: Floats,
    importance: Floats,
    group: int,
    codebook: Codebook | None,
    limits: Limits,
    trials: Floats,
    scales: Floats,
) -> None:
    """Find the scale of each group that leaves the least weighted squared error after rounding to the grid.

    Each group is divided by its element of largest magnitude, sign included, before the search: so the search knows no
    underflow or overflow, and a negative scale lets the longer end of the grid serve the larger tail. A trial scale is
    refitted by least squares to the codes it gives, these codes are taken anew, and the refit of those is its result.

    Args:
        x: float32 [rows, columns], finite.
        importance: float32 [columns], at least 0.
        group: columns that share a scale.
        codebook, limits: the grid (see the module).
        trials: float32 [n], scales to try for a group whose largest element is 1.
        scales: float32 [rows, columns // group], receives the results; 0 for a group of zeros.
    """
    # One allocation each: rows of one array straddle cache lines, which made this loop five times slower.
    block, weight = np.empty((group, LANES), np.float32), np.empty((group, LANES), np.float32)
    largest = np.empty(LANES, np.float32)
    scale = np.empty(LANES, np.float32)
    product = np.empty(LANES, np.float32)
    square = np.empty(LANES, np.float32)
    gain = np.empty(LANES, np.float32)
    best = np.empty(LANES, np.float32)
    for row in range(0, x.shape[0], LANES):
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            _normalize(block, largest)
            _weigh(block, importance[g * group : (g + 1) * group], weight)
            for lane in range(LANES):
                gain[lane] = -1.0
            for trial in trials:
                for lane in range(LANES):
                    scale[lane] = trial
                for _ in range(2):
                    _fit(block, weight, scale, codebook, limits, product, square)
                    for lane in range(LANES):
                        scale[lane] = product[lane] / square[lane] if product[lane] * trial > 0.0 else trial
                for lane in range(LANES):
                    # The weighted error of the refitted scale is the group's weighted energy less this.
                    this = product[lane] * product[lane] / square[lane] if square[lane] > 0.0 else np.float32(0.0)
                    best[lane] = scale[lane] if this > gain[lane] else best[lane]
                    gain[lane] = this if this > gain[lane] else gain[lane]
            for lane in range(min(LANES, x.shape[0] - row)):
                scales[row + lane, g] = best[lane] * largest[lane]


@njit(cache=True, nogil=True, error_model="numpy")
def take_codes(
    x: Floats,
    importance: Floats,
    group: int,
    codebook: Codebook | None,
    limits: Limits,
    candidates: Floats,
    chosen: NDArray[np.uint8],
    codes: NDArray[np.int8],
    errors: Doubles,
) -> None:
    """Choose each group's scale from a few representable ones, round to the grid with it, and measure the error.

    Args:
        x, importance, group, codebook, limits: as for search_scales.
        candidates: float32 [n, rows, columns // group], scales exactly as the kernels will see them.
        chosen: uint8 [rows, columns // group], receives the index of the candidate of least weighted error, the
            first of equals.
        codes: int8 [rows, columns], receives the index into the codebook, or the integer of the grid.
        errors: float64 [rows, 3], receives each row's squared error (not weighted), squared weights and largest
            absolute error.
    """
    table = _values(codebook)
    block, values = np.empty((group, LANES), np.float32), np.empty((group, LANES), np.float32)
    relative, weight = np.empty((group, LANES), np.float32), np.empty((group, LANES), np.float32)
    taken = np.empty((group, LANES), np.int8)
    scale = np.zeros(LANES, np.float32)
    product = np.zeros(LANES, np.float32)
    square = np.zeros(LANES, np.float32)
    least = np.zeros(LANES, np.float32)
    best = np.zeros(LANES, np.float32)
    largest = np.zeros(LANES, np.float32)
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        for lane in range(LANES):
            largest[lane] = best[lane] = 0.0
        for lane in range(lanes):
            errors[row + lane, 0] = errors[row + lane, 1] = 0.0
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            relative[:] = block
            _normalize(relative, scale)
            _weigh(relative, importance[g * group : (g + 1) * group], weight)
            for lane in range(LANES):
                least[lane] = np.inf
            for n in range(candidates.shape[0]):
                for lane in range(lanes):
                    scale[lane] = candidates[n, row + lane, g]
                _fit(block, weight, scale, codebook, limits, product, square)
                for lane in range(lanes):
                    # Weighted error less the group's weighted energy, the same for every candidate.
                    error = scale[lane] * (scale[lane] * square[lane] - np.float32(2.0) * product[lane])
                    if error < least[lane]:
                        least[lane], best[lane], chosen[row + lane, g] = error, scale[lane], n
            _take(block, best, codebook, limits, taken)
            for i in range(group):
                for lane in range(LANES):
                    values[i, lane] = table[taken[i, lane] & 255]
            _measure(block, values, best, product, square, largest)
            for lane in range(lanes):
                errors[row + lane, 0] += product[lane]
                errors[row + lane, 1] += square[lane]
                for i in range(group):
                    codes[row + lane, g * group + i] = taken[i, lane]
        for lane in range(lanes):
            errors[row + lane, 2] = largest[lane]


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(x: Floats, importance: Floats, group: int, weights: Floats) -> None:
    """Write what the squared error of each element counts in its group; weights is float32 like x."""
    block, weight = np.empty((group, LANES), np.float32), np.empty((group, LANES), np.float32)
    largest = np.empty(LANES, np.float32)
    for row in range(0, x.shape[0], LANES):
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            _normalize(block, largest)
            _weigh(block, importance[g * group : (g + 1) * group], weight)
            for lane in range(min(LANES, x.shape[0] - row)):
                for i in range(group):
                    weights[row + lane, g * group + i] = weight[i, lane]


@njit(cache=True, nogil=True, error_model="numpy")
def measure_rows(x: Floats, y: Floats, errors: Doubles) -> None:
    """Measure the error of values y for weights x, both float32 [rows, columns]; `errors` as in take_codes."""
    for row in range(x.shape[0]):
        squared_error = squared_weights = largest = 0.0
        for column in range(x.shape[1]):
            weight, error = np.float64(x[row, column]), np.float64(y[row, column]) - np.float64(x[row, column])
            squared_error += error * error
            squared_weights += weight * weight
            largest = max(largest, abs(error))
        errors[row, 0], errors[row, 1], errors[row, 2] = squared_error, squared_weights, largest


@njit(cache=True, nogil=True, error_model="numpy")
def _load(x: Floats, row: int, column: int, block: Floats) -> None:
    """Fill block [columns, LANES] with rows row.. of x; rows past the end are zero."""
    lanes = min(LANES, x.shape[0] - row)
    for lane in range(lanes):
        for i in range(block.shape[0]):
            block[i, lane] = x[row + lane, column + i]
    for lane in range(lanes, LANES):
        for i in range(block.shape[0]):
            block[i, lane] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _normalize(block: Floats, largest: Floats) -> None:
    """Divide each lane by its element of largest magnitude, which `largest` receives; a lane of zeros stays."""
    for lane in range(LANES):
        largest[lane] = 0.0
    for i in range(block.shape[0]):
        for lane in range(LANES):
            value = block[i, lane]
            largest[lane] = value if abs(value) > abs(largest[lane]) else largest[lane]
    for i in range(block.shape[0]):
        for lane in range(LANES):
            block[i, lane] = block[i, lane] / (largest[lane] if largest[lane] != 0.0 else np.float32(1.0))


@njit(cache=True, nogil=True, error_model="numpy")
def _weigh(block: Floats, importance: Floats, weight: Floats) -> None:
    """What the squared error of each element of a normalized block counts (see the module)."""
    square = np.zeros(LANES, np.float32)
    for i in range(block.shape[0]):
        for lane in range(LANES):
            square[lane] += block[i, lane] * block[i, lane]
    for lane in range(LANES):
        square[lane] /= np.float32(block.shape[0])
    for i in range(block.shape[0]):
        for lane in range(LANES):
            weight[i, lane] = importance[i] * np.sqrt(square[lane] + block[i, lane] * block[i, lane])


@njit(cache=True, nogil=True, error_model="numpy")
def _inverse(scale: np.float32) -> np.float32:
    inverse: np.float32 = np.float32(1.0) / scale if scale else np.float32(0.0)
    return inverse


@njit(cache=True, nogil=True, error_model="numpy")
def _values(codebook: Codebook | None) -> Floats:
    """What each int8 code stands for, by the code's lower 8 bits."""
    table = np.zeros(256, np.float32)
    if codebook is None:
        for code in range(-128, 128):
            table[code & 255] = code
    else:
        for code in range(len(codebook[0])):
            table[code] = codebook[0][code]
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def _take(block: Floats, scale: Floats, codebook: Codebook | None, limits: Limits, taken: NDArray[np.int8]) -> None:
    """Codes of the values of the grid nearest to block / scale."""
    inverse = np.empty(LANES, np.float32)
    for lane in range(LANES):
        inverse[lane] = _inverse(scale[lane])
    if codebook is None:
        for i in range(block.shape[0]):
            for lane in range(LANES):
                taken[i, lane] = min(max((block[i, lane] * inverse[lane] + ROUNDER) - ROUNDER, limits[0]), limits[1])
    else:
        m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14 = codebook[1]
        for i in range(block.shape[0]):
            for lane in range(LANES):
                v = block[i, lane] * inverse[lane]
                low = (v > m0) + (v > m1) + (v > m2) + (v > m3) + (v > m4) + (v > m5) + (v > m6) + (v > m7)
                taken[i, lane] = low + (v > m8) + (v > m9) + (v > m10) + (v > m11) + (v > m12) + (v > m13) + (v > m14)


@njit(cache=True, nogil=True, error_model="numpy")
def _measure(
    block: Floats, values: Floats, scale: Floats, squared_error: Floats, squared_weights: Floats, largest: Floats
) -> None:
    """Sums of squares of each lane's error and weights; `largest` grows to the largest absolute error."""
    for lane in range(LANES):
        squared_error[lane] = squared_weights[lane] = 0.0
    for i in range(block.shape[0]):
        for lane in range(LANES):
            error = values[i, lane] * scale[lane] - block[i, lane]
            squared_error[lane] += error * error
            squared_weights[lane] += block[i, lane] * block[i, lane]
            largest[lane] = max(largest[lane], abs(error))


@njit(cache=True, nogil=True, error_model="numpy")
def _fit(
    block: Floats,
    weight: Floats,
    scale: Floats,
    codebook: Codebook | None,
    limits: Limits,
    product: Floats,
    square: Floats,
) -> None:
    """Weighted sums over each lane of q * g and q * q, where q is the value of the grid nearest to g / scale.

    Comparing with all 15 midpoints of a codebook takes 30 vector instructions for LANES weights and no table lookup,
    which the compiler would not vectorize; the selects are written out to keep values and midpoints in registers."""
    inverse = np.empty(LANES, np.float32)
    for lane in range(LANES):
        product[lane] = 0.0
        square[lane] = 0.0
        inverse[lane] = _inverse(scale[lane])
    if codebook is None:
        for i in range(block.shape[0]):
            for lane in range(LANES):
                q = min(max((block[i, lane] * inverse[lane] + ROUNDER) - ROUNDER, limits[0]), limits[1])
                product[lane] += weight[i, lane] * q * block[i, lane]
                square[lane] += weight[i, lane] * q * q
    else:
        b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15 = codebook[0]
        m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14 = codebook[1]
        for i in range(block.shape[0]):
            for lane in range(LANES):
                v = block[i, lane] * inverse[lane]
                q = b1 if v > m0 else b0
                q = b2 if v > m1 else q
                q = b3 if v > m2 else q
                q = b4 if v > m3 else q
                q = b5 if v > m4 else q
                q = b6 if v > m5 else q
                q = b7 if v > m6 else q
                q = b8 if v > m7 else q
                q = b9 if v > m8 else q
                q = b10 if v > m9 else q
                q = b11 if v > m10 else q
                q = b12 if v > m11 else q
                q = b13 if v > m12 else q
                q = b14 if v > m13 else q
                q = b15 if v > m14 else q
                product[lane] += weight[i, lane] * q * block[i, lane]
                square[lane] += weight[i, lane] * q * q
