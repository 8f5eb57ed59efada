"""Proves the conversions between float32 and float16 bits against NumPy's, for every half and every kind of tie."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from cg_local.kernels.bits import (
    bits_from_float32,
    float32_from_bits,
    float32_from_half,
    half_from_float32,
    portable_float32_from_half,
    portable_half_from_float32,
)

HALVES = np.arange(1 << 16, dtype=np.uint16)
FINITE_HALVES = HALVES[np.isfinite(HALVES.view(np.float16))]
POSITIVE_HALVES = FINITE_HALVES[FINITE_HALVES < 0x8000].view(np.float16).astype(np.float32)


@njit
def widen_all(halves, out, portable):
    for i in range(halves.size):
        out[i] = float32_from_half(halves[i])
        portable[i] = portable_float32_from_half(halves[i])


@njit
def round_all(values, out, portable):
    for i in range(values.size):
        out[i] = half_from_float32(values[i])
        portable[i] = portable_half_from_float32(values[i])


@njit
def there_and_back(values, out):
    for i in range(values.size):
        out[i] = float32_from_bits(bits_from_float32(values[i]))


def rounded(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    out, portable = np.empty((2, values.size), np.uint16)
    round_all(values, out, portable)
    np.testing.assert_array_equal(out, portable)
    return out


def numpys_rounding(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.clip(values, -65504, 65504).astype(np.float16).view(np.uint16)


def test_every_finite_half_widens_to_the_same_bits_as_numpys() -> None:
    out, portable = np.empty((2, FINITE_HALVES.size), np.float32)

    widen_all(FINITE_HALVES, out, portable)

    expected = FINITE_HALVES.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(portable.view(np.uint32), expected.view(np.uint32))


def test_every_finite_half_rounds_to_itself() -> None:
    values = FINITE_HALVES.view(np.float16).astype(np.float32)

    np.testing.assert_array_equal(rounded(values), FINITE_HALVES)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("step", [-1, 0, 1], ids=["below", "tie", "above"])
def test_midpoints_of_neighbouring_halves_round_as_numpys(sign: int, step: int) -> None:
    middles = (POSITIVE_HALVES[:-1] + POSITIVE_HALVES[1:]) / 2  # exact in float32
    values = (middles.view(np.int32) + step).view(np.float32) * np.float32(sign)

    np.testing.assert_array_equal(rounded(values), numpys_rounding(values))


def test_dense_sample_of_all_float32_rounds_as_numpys() -> None:
    values = np.arange(0, 1 << 32, 4099, dtype=np.int64).astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values)]

    np.testing.assert_array_equal(rounded(values), numpys_rounding(values))


@pytest.mark.parametrize("value", [65504, 65519.996, 65520, 1e10, 3.4e38])
def test_magnitudes_beyond_the_largest_half_become_the_largest_half(value: float) -> None:
    assert rounded(np.array([value, -value], np.float32)).view(np.float16).tolist() == [65504, -65504]


def test_float32_bits_are_reinterpreted_unchanged() -> None:
    values = np.arange(0, 1 << 32, 65521, dtype=np.int64).astype(np.uint32).view(np.float32)
    out = np.empty_like(values)

    there_and_back(values, out)

    np.testing.assert_array_equal(out.view(np.uint32), values.view(np.uint32))
