"""The data-free search for codes and scales, in Numba.

This file owns which scale and which codes stand for a group of weights, by least squares on the weights alone. It
knows neither the packed layout (`packing`) nor how scales are rounded (`encode`), and reads no file. Invariant: a row's
result depends on that row (and the codebook) only, and every sum has a fixed order, so results are the same bytes for
every number of threads, every cut into slabs and every vector width.

Kernels work on LANES rows at a time, one row a lane: `block[column, lane]`. All sums then run down the columns of a
lane, and the compiler vectorizes across lanes without reordering one addition. The kernels release the GIL; callers run
them on different rows in different threads.

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


@njit(cache=True, nogil=True)
def search_scales(
    x: Floats,
    group: int,
    codebook: Codebook | None,
    limits: Limits,
    trials: Floats,
    scales: Floats,
) -> None:
    """Find the scale of each group that leaves the least squared error after rounding to the grid.

    Each group is divided by its element of largest magnitude, sign included, before the search: so the search knows no
    underflow or overflow, and a negative scale lets the longer end of the grid serve the larger tail. A trial scale is
    refitted by least squares to the codes it gives, these codes are taken anew, and the refit of those is its result.

    Args:
        x: float32 [rows, columns], finite.
        group: columns that share a scale.
        codebook, limits: the grid (see the module).
        trials: float32 [n], scales to try for a group whose largest element is 1.
        scales: float32 [rows, columns // group], receives the results; 0 for a group of zeros.
    """
    block = np.empty((group, LANES), np.float32)
    largest, scale, product, square, gain, best = [np.empty(LANES, np.float32) for _ in range(6)]
    for row in range(0, x.shape[0], LANES):
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            _normalize(block, largest)
            gain[:] = -1.0
            for trial in trials:
                scale[:] = trial
                _fit(block, scale, codebook, limits, product, square)
                for lane in range(LANES):
                    scale[lane] = product[lane] / square[lane] if product[lane] * trial > 0.0 else trial
                _fit(block, scale, codebook, limits, product, square)
                for lane in range(LANES):
                    # The squared error of the refitted scale is the group's energy less this.
                    this = product[lane] * product[lane] / square[lane] if square[lane] > 0.0 else np.float32(0.0)
                    refit = product[lane] / square[lane] if this > 0.0 else np.float32(0.0)
                    best[lane] = refit if this > gain[lane] else best[lane]
                    gain[lane] = this if this > gain[lane] else gain[lane]
            for lane in range(min(LANES, x.shape[0] - row)):
                scales[row + lane, g] = best[lane] * largest[lane]


@njit(cache=True, nogil=True)
def choose_scales(
    x: Floats,
    group: int,
    codebook: Codebook | None,
    limits: Limits,
    candidates: Floats,
    chosen: NDArray[np.uint8],
) -> None:
    """Find which of a few representable scales of each group leaves the least squared error.

    Args:
        x, group, codebook, limits: as for search_scales.
        candidates: float32 [n, rows, columns // group].
        chosen: uint8 [rows, columns // group], receives the index of the best, the first of equals.
    """
    block = np.empty((group, LANES), np.float32)
    scale, product, square, least = [np.empty(LANES, np.float32) for _ in range(4)]
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            least[:] = np.inf
            scale[:] = 0.0
            for n in range(candidates.shape[0]):
                for lane in range(lanes):
                    scale[lane] = candidates[n, row + lane, g]
                _fit(block, scale, codebook, limits, product, square)
                for lane in range(lanes):
                    # Squared error less the group's energy, the same for every candidate.
                    error = scale[lane] * (scale[lane] * square[lane] - np.float32(2.0) * product[lane])
                    if error < least[lane]:
                        least[lane] = error
                        chosen[row + lane, g] = n


@njit(cache=True, nogil=True)
def take_codes(
    x: Floats,
    group: int,
    codebook: Codebook | None,
    limits: Limits,
    scales: Floats,
    codes: NDArray[np.int8],
    errors: Doubles,
) -> None:
    """Round to the grid with final scales, and measure the error.

    Args:
        x, group, codebook, limits: as for search_scales.
        scales: float32 [rows, columns // group], exactly as the kernels will see them.
        codes: int8 [rows, columns], receives the index into book, or the integer of the grid.
        errors: float64 [rows, 3], receives each row's squared error, squared weights and largest absolute error.
    """
    table = _values(codebook)
    block, values = np.empty((group, LANES), np.float32), np.empty((group, LANES), np.float32)
    taken = np.empty((group, LANES), np.int8)
    scale, squared_error, squared_weights, largest = [np.zeros(LANES, np.float32) for _ in range(4)]
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        errors[row : row + lanes] = 0.0
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            for lane in range(lanes):
                scale[lane] = scales[row + lane, g]
            _take(block, scale, codebook, limits, taken)
            for lane in range(lanes):
                for i in range(group):
                    codes[row + lane, g * group + i] = taken[i, lane]
            for i in range(group):
                for lane in range(LANES):
                    values[i, lane] = table[taken[i, lane] & 255]
            squared_error[:] = 0.0
            squared_weights[:] = 0.0
            for i in range(group):
                for lane in range(LANES):
                    error = values[i, lane] * scale[lane] - block[i, lane]
                    squared_error[lane] += error * error
                    squared_weights[lane] += block[i, lane] * block[i, lane]
                    largest[lane] = max(largest[lane], abs(error))
            for lane in range(lanes):
                errors[row + lane, 0] += squared_error[lane]
                errors[row + lane, 1] += squared_weights[lane]
        errors[row : row + lanes, 2] = largest[:lanes]
        largest[:] = 0.0


@njit(cache=True, nogil=True)
def lloyd_sums(
    x: Floats, group: int, codebook: Codebook, limits: Limits, scales: Floats, mass: Doubles, moment: Doubles
) -> float:
    """Add up, for each codebook value, the weights that round to it: one step of Lloyd's iteration.

    Args:
        x, group, codebook, limits: as for search_scales.
        scales: float32 [rows, columns // group].
        mass: float64 [16], receives the sum of scale^2 over the elements with this code.
        moment: float64 [16], receives the sum of scale * element; moment / mass is the best value for the code.

    Returns:
        The squared error with this codebook and these scales.
    """
    table = _values(codebook)
    block, scale = np.empty((group, LANES), np.float32), np.zeros(LANES, np.float32)
    taken = np.empty((group, LANES), np.int8)
    mass[:] = 0.0
    moment[:] = 0.0
    squared_error = 0.0
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            for lane in range(lanes):
                scale[lane] = scales[row + lane, g]
            _take(block, scale, codebook, limits, taken)
            for i in range(group):
                for lane in range(lanes):
                    code = taken[i, lane]
                    mass[code] += np.float64(scale[lane]) * scale[lane]
                    moment[code] += np.float64(scale[lane]) * block[i, lane]
                    error = table[code] * scale[lane] - block[i, lane]
                    squared_error += np.float64(error) * error
    return squared_error


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _load(x: Floats, row: int, column: int, block: Floats) -> None:
    """Fill block [columns, LANES] with rows row.. of x; rows past the end are zero."""
    lanes = min(LANES, x.shape[0] - row)
    for lane in range(lanes):
        for i in range(block.shape[0]):
            block[i, lane] = x[row + lane, column + i]
    for lane in range(lanes, LANES):
        for i in range(block.shape[0]):
            block[i, lane] = 0.0


@njit(cache=True, nogil=True)
def _normalize(block: Floats, largest: Floats) -> None:
    """Divide each lane by its element of largest magnitude, which `largest` receives; a lane of zeros stays."""
    largest[:] = 0.0
    for i in range(block.shape[0]):
        for lane in range(LANES):
            value = block[i, lane]
            largest[lane] = value if abs(value) > abs(largest[lane]) else largest[lane]
    for i in range(block.shape[0]):
        for lane in range(LANES):
            block[i, lane] = block[i, lane] / (largest[lane] if largest[lane] != 0.0 else np.float32(1.0))


@njit(cache=True, nogil=True)
def _inverse(scale: np.float32) -> np.float32:
    inverse: np.float32 = np.float32(1.0) / scale if scale else np.float32(0.0)
    return inverse


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _fit(
    block: Floats,
    scale: Floats,
    codebook: Codebook | None,
    limits: Limits,
    product: Floats,
    square: Floats,
) -> None:
    """Sums over each lane of q * g and q * q, where q is the value of the grid nearest to g / scale."""
    inverse = np.empty(LANES, np.float32)
    for lane in range(LANES):
        product[lane] = 0.0
        square[lane] = 0.0
        inverse[lane] = _inverse(scale[lane])
    if codebook is None:
        for i in range(block.shape[0]):
            for lane in range(LANES):
                q = min(max((block[i, lane] * inverse[lane] + ROUNDER) - ROUNDER, limits[0]), limits[1])
                product[lane] += q * block[i, lane]
                square[lane] += q * q
    else:
        _fit_book(block, inverse, codebook, product, square)


@njit(cache=True, nogil=True)
def _fit_book(block: Floats, inverse: Floats, codebook: Codebook, product: Floats, square: Floats) -> None:
    """`_fit` for a codebook. Comparing with all 15 midpoints takes 30 vector instructions for LANES weights and no
    table lookup, which the compiler would not vectorize; the selects are written out to keep them in
    registers."""
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
            product[lane] += q * block[i, lane]
            square[lane] += q * q
