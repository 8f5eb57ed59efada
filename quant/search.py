"""The data-free search for codes and scales, in Numba.

This file owns which scale and which codes stand for a group of weights, by least squares on the weights alone. It knows
neither the packed layout (`packing`) nor how scales are rounded (`encode`), and reads no file. Invariant: a row's result
depends on that row (and the codebook) only, and every sum has a fixed order, so results are the same bytes for every
number of threads, every cut into slabs and every vector width.

Kernels work on LANES rows at a time, one row a lane: `block[column, lane]`. All sums then run down the columns of a
lane, and the compiler vectorizes across lanes without reordering one addition. The kernels release the GIL; callers run
them on different rows in different threads.

A grid is what a scaled weight may be rounded to: either `book`, 16 ascending values with their 15 midpoints `middle`, or
(book and middle None) the integers low..high.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cg_local.packing import TILE_ROWS

LANES = TILE_ROWS
# Adding and subtracting 1.5 * 2^23 rounds a float32 below 2^22 to the nearest integer, ties to even; unlike a call of
# rint it vectorizes on every instruction set.
ROUNDER = np.float32(12582912.0)
EXPONENT = np.uint32(0x7F800000)


@njit(cache=True, nogil=True)
def nonfinite_row(x):
    """Return the first row of x, float32 [rows, columns], that holds a NaN or an infinity; -1 when none does."""
    bits = x.view(np.uint32)
    for row in range(x.shape[0]):
        found = 0
        for column in range(x.shape[1]):
            found += (bits[row, column] & EXPONENT) == EXPONENT
        if found:
            return row
    return -1


@njit(cache=True, nogil=True)
def search_scales(x, group, book, middle, low, high, trials, scales):
    """Find the scale of each group that leaves the least squared error after rounding to the grid.

    Each group is divided by its element of largest magnitude, sign included, before the search: so the search knows no
    underflow or overflow, and a negative scale lets the longer end of the grid serve the larger tail. A trial scale is
    refitted by least squares to the codes it gives, these codes are taken anew, and the refit of those is its result.

    Args:
        x: float32 [rows, columns], finite.
        group: columns that share a scale.
        book, middle, low, high: the grid (see the module); tuples of float32 or None, and float32.
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
                _fit(block, scale, book, middle, low, high, product, square)
                for lane in range(LANES):
                    scale[lane] = product[lane] / square[lane] if product[lane] * trial > 0.0 else trial
                _fit(block, scale, book, middle, low, high, product, square)
                for lane in range(LANES):
                    # The squared error of the refitted scale is the group's energy less this.
                    this = product[lane] * product[lane] / square[lane] if square[lane] > 0.0 else np.float32(0.0)
                    refit = product[lane] / square[lane] if this > 0.0 else np.float32(0.0)
                    best[lane] = refit if this > gain[lane] else best[lane]
                    gain[lane] = this if this > gain[lane] else gain[lane]
            for lane in range(min(LANES, x.shape[0] - row)):
                scales[row + lane, g] = best[lane] * largest[lane]


@njit(cache=True, nogil=True)
def choose_scales(x, group, book, middle, low, high, candidates, chosen):
    """Find which of a few representable scales of each group leaves the least squared error.

    Args:
        x, group, book, middle, low, high: as for search_scales.
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
                _fit(block, scale, book, middle, low, high, product, square)
                for lane in range(lanes):
                    # Squared error less the group's energy, the same for every candidate.
                    error = scale[lane] * (scale[lane] * square[lane] - np.float32(2.0) * product[lane])
                    if error < least[lane]:
                        least[lane] = error
                        chosen[row + lane, g] = n


@njit(cache=True, nogil=True)
def take_codes(x, group, book, middle, low, high, scales, codes, errors):
    """Round to the grid with final scales, and measure the error.

    Args:
        x, group, book, middle, low, high: as for search_scales.
        scales: float32 [rows, columns // group], exactly as the kernels will see them.
        codes: int8 [rows, columns], receives the index into book, or the integer of the grid.
        errors: float64 [rows, 3], receives each row's squared error, squared weights and largest absolute error.
    """
    block = np.empty((group, LANES), np.float32)
    scale, inverse = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for row in range(0, x.shape[0], LANES):
        lanes = min(LANES, x.shape[0] - row)
        errors[row : row + lanes] = 0.0
        for g in range(x.shape[1] // group):
            _load(x, row, g * group, block)
            for lane in range(lanes):
                scale[lane] = scales[row + lane, g]
                inverse[lane] = _inverse(scale[lane])
            for lane in range(lanes):
                for i in range(group):
                    code, value = _round(block[i, lane] * inverse[lane], book, middle, low, high)
                    codes[row + lane, g * group + i] = code
                    block[i, lane], weight = np.float32(value * scale[lane]) - block[i, lane], block[i, lane]
                    errors[row + lane, 0] += np.float64(block[i, lane]) * block[i, lane]
                    errors[row + lane, 1] += np.float64(weight) * weight
                    errors[row + lane, 2] = max(errors[row + lane, 2], abs(block[i, lane]))


@njit(cache=True, nogil=True)
def book_moments(x, group, book, middle, scales, mass, moment):
    """Add up, for each codebook value, the weights that round to it: one step of Lloyd's iteration.

    Args:
        x, group, book, middle: as for search_scales.
        scales: float32 [rows, columns // group].
        mass: float64 [16], increased by the sum of scale^2 over the elements with this code.
        moment: float64 [16], increased by the sum of scale * element; moment / mass is the best value for the code.
    """
    for row in range(x.shape[0]):
        for g in range(x.shape[1] // group):
            scale = scales[row, g]
            inverse = _inverse(scale)
            for i in range(g * group, (g + 1) * group):
                code, _ = _round(x[row, i] * inverse, book, middle, np.float32(0.0), np.float32(0.0))
                mass[code] += np.float64(scale) * scale
                moment[code] += np.float64(scale) * x[row, i]


@njit(cache=True, nogil=True)
def _load(x, row, column, block):
    """Fill block [columns, LANES] with rows row.. of x; rows past the end are zero."""
    lanes = min(LANES, x.shape[0] - row)
    for lane in range(lanes):
        for i in range(block.shape[0]):
            block[i, lane] = x[row + lane, column + i]
    for lane in range(lanes, LANES):
        for i in range(block.shape[0]):
            block[i, lane] = 0.0


@njit(cache=True, nogil=True)
def _normalize(block, largest):
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
def _inverse(scale):
    return np.float32(1.0) / scale if scale != 0.0 else np.float32(0.0)


@njit(cache=True, nogil=True)
def _round(v, book, middle, low, high):
    """The code and the value of the grid that is nearest to v."""
    if book is None:
        value = min(max((v + ROUNDER) - ROUNDER, low), high)
        return np.int8(value), value
    code = 0
    for boundary in middle:
        code += v > boundary
    return np.int8(code), book[code]


@njit(cache=True, nogil=True)
def _fit(block, scale, book, middle, low, high, product, square):
    """Sums over each lane of q * g and q * q, where q is the value of the grid nearest to g / scale."""
    inverse = np.empty(LANES, np.float32)
    for lane in range(LANES):
        product[lane] = 0.0
        square[lane] = 0.0
        inverse[lane] = _inverse(scale[lane])
    if book is None:
        for i in range(block.shape[0]):
            for lane in range(LANES):
                q = min(max((block[i, lane] * inverse[lane] + ROUNDER) - ROUNDER, low), high)
                product[lane] += q * block[i, lane]
                square[lane] += q * q
    else:
        _fit_book(block, inverse, book, middle, product, square)


@njit(cache=True, nogil=True)
def _fit_book(block, inverse, book, middle, product, square):
    """`_fit` for a codebook. Comparing with all 15 midpoints takes 30 vector instructions for LANES weights and no
    table lookup, which the compiler would not vectorize; the selects are written out to keep book and middle in
    registers."""
    b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15 = book
    m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14 = middle
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
