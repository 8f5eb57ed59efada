"""Rows of weights in, codes and rounded scales out, with the error they leave.

This file owns how each format rounds its scales (float16, signed int8 sub-scales) and how a codebook is learned; the
searches themselves are `search`, the byte layout is `packing`. Invariant: codes are taken last, with the scales exactly
as the kernels will read them, so the reported error is the error of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.kernels.cache_folder import caching_for
from cg_local.packing import (
    CODEBOOK_BYTES,
    CODEBOOK_LIMIT,
    CODEBOOK_SIZES,
    INT6_OFFSET,
    INT8_GROUP,
    SCALE_GROUPS,
    SUPER_GROUP,
    Array,
    bfloat16_from_float32,
    float32_from_bfloat16,
    pack_codes,
    pack_scales,
)
from cg_local.quant.feedback import DenseFeedback, Feedback
from cg_local.quant.work_plan import COMPILED_IN

with caching_for(Path(__file__).parent, *COMPILED_IN):
    from cg_local.quant import search

FLOAT16_MAX = 65504.0
SUB_SCALE_LIMIT = 127
INT8_LIMIT = 127
# Trial scales relative to the one that maps a group's largest element to the end of the grid.
# Source of the span for codebooks: the measurement of the format; finer steps or a wider span gained under 0.02 dB.
CODEBOOK_FACTORS = np.linspace(0.8, 1.3, 9)
LLOYD_FACTORS = np.linspace(0.8, 1.3, 7)
INT6_FACTORS = np.linspace(0.85, 1.15, 13)
INT8_FACTORS = np.linspace(0.94, 1.02, 13)
# Sub-scales that the revision tries to either side: on nano a reach of 1 left 1 % more error of the outputs.
REVISION_REACH = 3
LLOYD_ROUNDS = 10
LLOYD_STRIDE = 1.8
# What Lloyd's iteration converges to, after some 300 rounds from equidistant values, on normal and on Laplace weights.
START_BOOKS = (
    (-49, -39, -31, -24, -17, -11, -5, 0, 5, 11, 17, 24, 31, 40, 51, 63),
    (-46, -34, -26, -19, -13, -8, -4, 0, 4, 8, 13, 19, 27, 37, 51, 63),
)
START_BOOKS_OF_8 = (
    (-49, -30, -16, -3, 9, 23, 39, 63),
    (-44, -24, -11, -1, 7, 19, 36, 63),
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedRows:
    """Whole tiles of a packed matrix.

    Attributes:
        parts: the arrays of `packing.part_layout` for these rows, by name, without the codebook.
        errors: float64 [rows, 3]: squared error, squared weights, largest absolute error of each row.
    """

    parts: dict[str, Array]
    errors: NDArray[np.float64]


@dataclass(frozen=True)
class Guide:
    """What is known of the inputs that a matrix is multiplied with.

    Attributes:
        importance: float32 [columns], at least 0: what the squared error of each column counts.
        feedback: how later columns make up for the errors of earlier ones; None: each is rounded to the nearest value.
    """

    importance: Floats
    feedback: Feedback | None = None


def encode_rows(
    format: str, x: Floats, book: NDArray[np.int64] | None = None, guide: Guide | None = None
) -> EncodedRows:
    """Quantize rows and arrange them for the kernels.

    Args:
        format: one of `packing.FORMATS`.
        x: float32 [rows, columns], finite; rows from a tile's boundary on.
        book: the tensor's codebook, ascending integers in -63..63, as many as `packing.CODEBOOK_SIZES` tells; only for
            the formats named there.
        guide: of the tensor; None: its columns count alike. Without effect on bf16.

    Raises:
        OverflowError: a weight is too large for the format.
    """
    if format == "bf16":
        return _encode_bfloat16(x)
    guide = guide or _plain_guide(x)
    if format == "i8g64":
        return _encode_int8(x, guide)
    grid: Grid = _book_grid(book) if book is not None else _integer_grid(-INT6_OFFSET, INT6_OFFSET - 1)
    start = 1.0 / np.abs(book).max() if book is not None else -1.0 / INT6_OFFSET
    factors = CODEBOOK_FACTORS if book is not None else INT6_FACTORS
    group = SCALE_GROUPS[format]
    scales = np.empty((len(x), x.shape[1] // group), np.float32)
    search.search_scales(x, guide.importance, group, *grid, (factors * start).astype(np.float32), scales)
    candidates, super_scales = _sub_scale_candidates(scales, SUPER_GROUP // group)
    units = np.repeat(super_scales.astype(np.float32), SUPER_GROUP // group, axis=1)
    sub_scales, codes, errors = _take_codes(x, guide, group, grid, candidates, _SubScales(units))
    if book is None:
        codes += np.int8(INT6_OFFSET)
    parts = {
        "codes": pack_codes(format, codes.view(np.uint8)),
        "scales": pack_scales(sub_scales),
        "super_scales": pack_scales(super_scales),
    }
    return EncodedRows(parts, errors)


def learn_codebook(x: Floats, format: str = "c4g32", guide: Guide | None = None) -> NDArray[np.int64]:
    """Learn a tensor's codebook from a sample of its rows.

    Starts from the better of START_BOOKS and alternates the search for scales with Lloyd's step: each value becomes the
    weighted mean of the elements that round to it. The result is rounded to integers with the largest magnitude at 63;
    where that is no better than a start, the start is taken.

    Args:
        x: float32 [rows, columns], finite.
        format: of `packing.CODEBOOK_SIZES`.
        guide: of the tensor; None: its columns count alike.

    Returns:
        Ascending integers in -63..63, as many as the format has.

    Source: Lloyd, Least Squares Quantization in PCM, 1982.
    """
    size, group, guide = CODEBOOK_SIZES[format], SCALE_GROUPS[format], guide or _plain_guide(x)
    starts = [np.array(book, np.int64) for book in (START_BOOKS if size == 16 else START_BOOKS_OF_8)]
    errors = [_lloyd_step(x, book.astype(np.float64), group, guide)[0] for book in starts]
    values = starts[int(np.argmin(errors))].astype(np.float64)
    for _ in range(LLOYD_ROUNDS):
        _, moved = _lloyd_step(x, values, group, guide)
        # Alternating minimization creeps; steps of more than the full way arrive sooner.
        values = np.sort(values + LLOYD_STRIDE * (moved - values))
        values *= CODEBOOK_LIMIT / np.abs(values).max()
    starts.append(np.rint(values).astype(np.int64))
    errors.append(_lloyd_step(x, starts[-1].astype(np.float64), group, guide)[0])
    return starts[int(np.argmin(errors))]


def _lloyd_step(x: Floats, values: NDArray[np.float64], group: int, guide: Guide) -> tuple[float, NDArray[np.float64]]:
    """Return the weighted error with a codebook, its scales searched, and the means of the elements of each code."""
    codebook, limits = _book_grid(values)
    scales = np.empty((len(x), x.shape[1] // group), np.float32)
    trials = (LLOYD_FACTORS / np.abs(values).max()).astype(np.float32)
    search.search_scales(x, guide.importance, group, codebook, limits, trials, scales)
    nearest = Guide(guide.importance)
    _, codes, _ = _take_codes(x, nearest, group, (codebook, limits), scales[None], _PlainScales())
    weights = np.empty_like(x)
    search.weigh(x, guide.importance, group, weights)
    scale = np.repeat(scales.astype(np.float64), group, axis=1)
    mass = np.bincount(codes.ravel(), (weights * scale * scale).ravel(), len(values))
    moment = np.bincount(codes.ravel(), (weights * scale * x).ravel(), len(values))
    error = weights * (values[codes] * scale - x) ** 2
    return float(error.sum()), np.where(mass > 0, moment / np.where(mass > 0, mass, 1.0), values)


Grid = tuple["search.Codebook | None", "search.Limits"]


def _book_grid(values: NDArray[np.int64] | NDArray[np.float64]) -> tuple[search.Codebook, search.Limits]:
    book = values.astype(np.float32)
    # The search knows 16 values and 15 midpoints; what a smaller book lacks are values that no weight reaches.
    missing = CODEBOOK_BYTES - len(book)
    middle = np.append((book[1:] + book[:-1]) / np.float32(2.0), np.full(missing, np.inf, np.float32))
    return (tuple(np.append(book, np.repeat(book[-1], missing))), tuple(middle)), (np.float32(0.0), np.float32(0.0))


def _integer_grid(low: int, high: int) -> Grid:
    return None, (np.float32(low), np.float32(high))


def _plain_guide(x: Floats) -> Guide:
    return Guide(np.ones(x.shape[1], np.float32))


@dataclass(frozen=True)
class _SubScales:
    """Scales as the formats with super-scales store them; units: float32 [rows, groups], a sub-scale of 1."""

    units: Floats

    def values(self, stored: Array) -> Floats:
        return np.ascontiguousarray(stored.astype(np.float32) * self.units)

    def around(self, stored: Array) -> Array:
        """Stack the sub-scales from REVISION_REACH below to REVISION_REACH above."""
        steps = np.arange(-REVISION_REACH, REVISION_REACH + 1)[:, None, None]
        return (stored + steps).clip(-SUB_SCALE_LIMIT, SUB_SCALE_LIMIT).astype(np.int8)


class _PlainScales:
    """Scales that are stored as floating-point numbers."""

    def values(self, stored: Array) -> Floats:
        return np.ascontiguousarray(stored, np.float32)

    def around(self, stored: Array) -> Array:
        """Stack the next smaller scales, the scales and the next larger ones, sign aside; 0 and the largest stay.

        One to either side and not REVISION_REACH: they are at most 0.1 % apart, an eighth of a step of the largest int8
        codes, where sub-scales are 0.8 % apart or more. What further ones would give is not measured."""
        smaller, larger = (
            np.nextafter(stored, np.float16(0)),
            np.nextafter(stored, np.copysign(np.float16(np.inf), stored)),
        )
        is_kept = (stored == 0) | ~np.isfinite(larger)
        return np.stack([smaller, stored, np.where(is_kept, stored, larger)])


def _take_codes(
    x: Floats, guide: Guide, group: int, grid: Grid, candidates: Array, kind: _SubScales | _PlainScales
) -> tuple[Array, NDArray[np.int8], NDArray[np.float64]]:
    """Take the codes with, in each group, the best of the stored scales candidates [n, rows, groups].

    Returns the candidates taken, the codes and the rows' errors."""
    scales = kind.values(candidates)
    chosen, codes = np.zeros(scales.shape[1:], np.uint8), np.empty(x.shape, np.int8)
    errors = np.empty((len(x), 3), np.float64)
    search.take_codes(x, guide.importance, group, *grid, scales, chosen, codes, errors)
    taken = _picked(candidates, chosen)
    if guide.feedback is not None:
        values = _grid_values(grid)
        guide.feedback.round(x, _picked(scales, chosen), values, codes)
        if isinstance(guide.feedback, DenseFeedback):
            candidates = kind.around(taken)
            scales = kind.values(candidates)
            chosen[:] = len(candidates) // 2
            guide.feedback.revise(x, scales, values, chosen, codes)
            taken = _picked(candidates, chosen)
        rounded = values[codes.view(np.uint8)] * np.repeat(kind.values(taken), group, axis=1)
        search.measure_rows(x, rounded, errors)
        if grid[0] is None:
            codes += np.int8(grid[1][0])  # from the index to the integer itself; int8 wraps as it should
    return taken, codes, errors


def _picked(candidates: Array, chosen: NDArray[np.uint8]) -> Array:
    """Return each group's candidate."""
    picked: Array = np.take_along_axis(candidates, chosen[None].astype(np.intp), axis=0)[0]
    return picked


def _grid_values(grid: Grid) -> Floats:
    """Return what a weight may be rounded to, ascending."""
    codebook, (low, high) = grid
    if codebook is not None:
        values, middles = (np.array(part, np.float32) for part in codebook)
        return values[: 1 + np.isfinite(middles).sum()]
    return np.arange(low, high + 1, dtype=np.float32)


def _sub_scale_candidates(scales: Floats, per_super: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Split scales [rows, groups] into a float16 super-scale for each `per_super` and the three nearest sub-scales."""
    blocks = scales.reshape(len(scales), -1, per_super)
    super_scales = _float16_at_least(np.abs(blocks).max(axis=2) / np.float32(SUB_SCALE_LIMIT))
    units = np.repeat(super_scales.astype(np.float32), per_super, axis=1)
    ratios = np.divide(scales, units, out=np.zeros_like(scales), where=units > 0)
    nearest = np.rint(ratios)
    candidates = np.stack([nearest, nearest - 1, nearest + 1]).clip(-SUB_SCALE_LIMIT, SUB_SCALE_LIMIT)
    return candidates.astype(np.int8), super_scales


def _float16_at_least(values: Floats) -> NDArray[np.float16]:
    """Round up to float16, so that a quotient by the result stays in its range.

    Raises:
        OverflowError: a value is beyond float16.
    """
    if values.size and values.max() > FLOAT16_MAX:
        raise OverflowError(f"a scale of {values.max():.3g} is needed, float16 ends at 65504")
    rounded = values.astype(np.float16)
    return np.where(rounded.astype(np.float32) < values, np.nextafter(rounded, np.float16(np.inf)), rounded)


def _encode_int8(x: Floats, guide: Guide) -> EncodedRows:
    grid = _integer_grid(-INT8_LIMIT, INT8_LIMIT)
    scales = np.empty((len(x), x.shape[1] // INT8_GROUP), np.float32)
    search.search_scales(x, guide.importance, INT8_GROUP, *grid, (INT8_FACTORS / INT8_LIMIT).astype(np.float32), scales)
    upper = _float16_at_least(np.abs(scales))
    candidates = np.stack([upper, np.nextafter(upper, np.float16(0))])
    taken, codes, errors = _take_codes(x, guide, INT8_GROUP, grid, candidates, _PlainScales())
    return EncodedRows({"codes": pack_codes("i8g64", codes), "scales": pack_scales(taken)}, errors)


def _encode_bfloat16(x: Floats) -> EncodedRows:
    codes = bfloat16_from_float32(x)
    errors = np.empty((len(x), 3), np.float64)
    search.measure_rows(x, float32_from_bfloat16(codes), errors)
    if not np.isfinite(errors[:, 2]).all():
        raise OverflowError(f"a weight of {np.abs(x).max():.7g} is beyond bfloat16")
    return EncodedRows({"codes": pack_codes("bf16", codes)}, errors)
