"""Proves the generated inner loops of attention against NumPy, and that every register width gives the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import EPS
from numba import njit
from numpy.typing import NDArray

from cg_local.kernels import tile_product
from cg_local.kernels.pages import IS_RICH
from cg_local.kernels.tile_product import TILE_COLUMNS

WIDTHS = (4, 8, 16)
# Fused multiply-add and half conversion are only there where the host has them: elsewhere LLVM calls a library.
KINDS = [False, True] if IS_RICH else [False]
INNER = 37


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def compiled_product(lanes: int, is_rich: bool, num_rows: int, element: str) -> Any:
    product = tile_product.make_tile_product(lanes, is_rich, num_rows, element)

    @njit
    def run(a, a_stride, b, b_stride, inner, c, c_stride, adds):
        product(a, a_stride, b, b_stride, inner, c, c_stride, adds, 0)

    return run


@pytest.mark.parametrize("is_rich", KINDS)
@pytest.mark.parametrize("element", ["float32", "float16"])
def test_tile_product_equals_numpys_and_every_width_gives_the_same_bits(is_rich: bool, element: str) -> None:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((5, 50)).astype(np.float32), random.standard_normal((INNER, 24)).astype(element)
    start = random.standard_normal((5, 20)).astype(np.float32)
    results = []
    for lanes in WIDTHS:
        found = start.copy()
        run = compiled_product(lanes, is_rich, 3, element)
        run(address(a), 50, address(b), 24, INNER, address(found), 20, 1)
        results.append(found)

    exact = start.astype(np.float64)
    exact[:3, :TILE_COLUMNS] += a[:3, :INNER].astype(np.float64) @ b[:, :TILE_COLUMNS].astype(np.float64)
    bound = 2 * INNER * EPS * (np.abs(a).max() * np.abs(b.astype(np.float64)).max() * INNER)
    assert np.abs(results[0] - exact).max() < bound
    np.testing.assert_array_equal(results[0][:, TILE_COLUMNS:], start[:, TILE_COLUMNS:])
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


def test_tile_product_that_does_not_add_ignores_what_was_there() -> None:
    a, b = np.ones((1, 4), np.float32), np.ones((4, TILE_COLUMNS), np.float32)
    found = np.full((1, TILE_COLUMNS), np.nan, np.float32)

    compiled_product(8, False, 1, "float32")(address(a), 4, address(b), TILE_COLUMNS, 4, address(found), 16, 0)

    np.testing.assert_array_equal(found, np.full((1, TILE_COLUMNS), 4, np.float32))


@pytest.mark.parametrize("is_rich", KINDS)
@pytest.mark.parametrize("lanes", WIDTHS)
def test_widened_values_are_those_of_numpy(lanes: int, is_rich: bool) -> None:
    widen = tile_product.make_widen(lanes, is_rich, "float16")
    scaled = tile_product.make_scaled_widen(lanes, is_rich)
    split = tile_product.make_split_half_widen(lanes, is_rich)

    @njit
    def run(halves, codes, low, high, out):
        widen(halves, out)
        split(low, high, out + 64)
        scaled(codes, out + 64, out + 128)
        scaled(codes, np.float32(0.5), out + 192)

    halves = np.array([0, -0.0, 1, -65504, 2**-24, 6e-5, 3.14, *range(9)], np.float16)
    codes = np.linspace(-127, 127, 16).astype(np.int8)
    pieces = halves.view(np.uint8).reshape(-1, 2).T.copy()
    out = np.empty((4, TILE_COLUMNS), np.float32)
    run(address(halves), address(codes), address(pieces[0]), address(pieces[1]), address(out))

    wide, whole = halves.astype(np.float32), codes.astype(np.float32)
    np.testing.assert_array_equal(out, [wide, wide, whole * wide, whole * np.float32(0.5)])


@pytest.mark.parametrize("is_rich", KINDS)
@pytest.mark.parametrize(("seen", "length"), [(1, 1), (5, 5), (16, 16), (21, 40), (40, 40), (0, 3)])
def test_weights_are_the_exponentials_of_what_is_seen_and_every_width_gives_the_same_bits(
    is_rich: bool, seen: int, length: int
) -> None:
    scores = np.random.default_rng(1).normal(0, 20, 48).astype(np.float32)
    results = []
    for lanes in WIDTHS:
        line_peak = tile_product.make_line_peak(lanes, is_rich)
        weigh = tile_product.make_line_weights(lanes, is_rich)

        @njit
        def run(line, seen, length, line_peak=line_peak, weigh=weigh):
            peak = line_peak(line, seen, np.float32(-1e30)) if seen > 0 else np.float32(-1e30)
            return peak, weigh(line, seen, length, peak)

        line = scores.copy()
        line[seen:] = np.nan
        results.append((*run(address(line), seen, length), line))

    peak, mass, line = results[0]
    padded = -(-length // TILE_COLUMNS) * TILE_COLUMNS
    expected = np.exp((scores[:seen] - peak).astype(np.float64))
    assert peak == scores[:seen].max(initial=np.float32(-1e30))
    np.testing.assert_allclose(line[:seen], expected, rtol=3e-7, atol=2e-38)
    assert (line[seen:padded] == 0).all()
    assert np.isnan(line[padded:]).all()
    np.testing.assert_allclose(mass, expected.sum(), rtol=1e-6)
    for other in results[1:]:
        assert other[:2] == (peak, mass)
        np.testing.assert_array_equal(other[2], line)
