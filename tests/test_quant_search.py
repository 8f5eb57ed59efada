"""The search against brute force and plain NumPy, its independence of slabs, and degenerate groups."""

import numpy as np
import pytest

from cg_local.quant import search

BOOK = np.array([-49, -39, -31, -24, -17, -11, -5, 0, 5, 11, 17, 24, 31, 40, 51, 63], np.float32)
MIDDLE = (BOOK[1:] + BOOK[:-1]) / 2
ZERO = np.float32(0)
GRIDS = {
    "codebook": ((tuple(BOOK), tuple(MIDDLE)), (ZERO, ZERO)),
    "integers": (None, (np.float32(-32), np.float32(31))),
}
TRIALS = {
    "codebook": (np.linspace(0.8, 1.3, 9) / 63).astype(np.float32),
    "integers": (-np.linspace(0.85, 1.15, 13) / 32).astype(np.float32),
}


def rounded(grid, v):
    """The nearest value of a grid, by plain NumPy; v float64."""
    if grid == "codebook":
        return BOOK.astype(np.float64)[np.searchsorted(MIDDLE, v)]
    return np.clip(np.rint(v), -32, 31)


def element_weights(x, group=32, importance=None):
    """What each squared error counts, by plain NumPy."""
    groups = x.astype(np.float64).reshape(len(x), -1, group)
    relative = groups / np.abs(groups).max(axis=2, keepdims=True)
    weights = np.sqrt((relative**2).mean(axis=2, keepdims=True) + relative**2).reshape(x.shape)
    return weights if importance is None else weights * importance


def weighted_error(grid, x, scales, group=32, importance=None):
    scale = np.repeat(scales.astype(np.float64), group, axis=1)
    errors = element_weights(x, group, importance) * (x - rounded(grid, x / scale) * scale) ** 2
    return errors.reshape(len(x), -1, group).sum(axis=2)


def ones(x):
    return np.ones(x.shape[1], np.float32)


def searched(grid, x, group=32, importance=None):
    scales = np.empty((len(x), x.shape[1] // group), np.float32)
    search.search_scales(x, ones(x) if importance is None else importance, group, *GRIDS[grid], TRIALS[grid], scales)
    return scales


def weights(shape, seed=0):
    return np.random.default_rng(seed).standard_t(5, shape).astype(np.float32)


def test_elements_are_weighed_by_their_size_and_the_importance_of_their_column():
    x, importance = weights((21, 64)), np.arange(64, dtype=np.float32)
    found = np.empty_like(x)
    search.weigh(x, importance, 32, found)
    np.testing.assert_allclose(found, element_weights(x, importance=importance), rtol=1e-5)


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_searched_scale_is_nearly_the_best_of_a_dense_scan(grid, is_weighted):
    x = weights((7, 64))
    importance = np.exp(np.random.default_rng(3).standard_normal(64)).astype(np.float32) if is_weighted else None
    error = weighted_error(grid, x, searched(grid, x, importance=importance), importance=importance).sum()
    largest = np.take_along_axis(
        x.reshape(7, 2, 32), np.abs(x.reshape(7, 2, 32)).argmax(axis=2, keepdims=True), axis=2
    )[:, :, 0]
    unit = 63 if grid == "codebook" else -32
    scan = [
        weighted_error(grid, x, largest * factor / unit, importance=importance)
        for factor in np.linspace(0.7, 1.6, 2000)
    ]
    # 3 %: the trials are few, and a refit by least squares finds most of what lies between them.
    assert error <= 1.03 * np.min(scan, axis=0).sum()


@pytest.mark.parametrize("grid", GRIDS)
def test_a_rows_result_depends_on_that_row_alone(grid):
    x = weights((37, 256))
    whole = searched(grid, x)
    np.testing.assert_array_equal(searched(grid, x[5:22].copy()), whole[5:22])
    np.testing.assert_array_equal(searched(grid, x[::-1].copy())[::-1], whole)


@pytest.mark.parametrize("grid", GRIDS)
def test_search_is_free_of_scale(grid):
    x = weights((16, 64))
    scales = searched(grid, x)
    for exponent in (-100, -30, 40, 100):
        np.testing.assert_array_equal(searched(grid, np.ldexp(x, exponent)), np.ldexp(scales, exponent))


@pytest.mark.parametrize("grid", GRIDS)
def test_search_gives_zero_for_zeros_and_negative_zeros(grid):
    x = weights((16, 96))
    x[3, 32:64] = 0.0
    x[4, 32:64] = -0.0
    scales = searched(grid, x)
    assert (scales[3:5, 1] == 0).all()
    assert (scales[[3, 4], 0] != 0).all()
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_search_is_exact_for_weights_on_the_grid(grid):
    rng = np.random.default_rng(1)
    values = BOOK if grid == "codebook" else np.arange(-32, 32, dtype=np.float32)
    x = rng.choice(values, (16, 64)) * np.float32(0.25)
    x[:, ::32] = 0.25 * (values[-1] if grid == "codebook" else values[0])
    np.testing.assert_allclose(np.abs(searched(grid, x)), 0.25, rtol=1e-6)


def taken(grid, x, candidates):
    """What take_codes gives: the candidates chosen, the codes and the errors."""
    chosen, codes = np.zeros(candidates.shape[1:], np.uint8), np.empty(x.shape, np.int8)
    errors = np.empty((len(x), 3))
    search.take_codes(x, ones(x), 32, *GRIDS[grid], candidates, chosen, codes, errors)
    return chosen, codes, errors


@pytest.mark.parametrize("grid", GRIDS)
def test_take_codes_takes_the_candidate_of_least_error(grid):
    x = weights((19, 128))
    base = searched(grid, x)
    candidates = np.stack([base * np.float32(factor) for factor in (1.3, 0.9, 1.0, 1.1)])
    chosen, _, reported = taken(grid, x, candidates)
    errors = np.stack([weighted_error(grid, x, candidate) for candidate in candidates])
    best = np.take_along_axis(errors, chosen[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(best, errors.min(axis=0), rtol=1e-4)  # float32 sums may swap near equals
    scale = np.repeat(
        np.take_along_axis(candidates, chosen[None].astype(int), axis=0)[0].astype(np.float64), 32, axis=1
    )
    plain = ((x - rounded(grid, x / scale) * scale) ** 2).sum(axis=1)
    np.testing.assert_allclose(reported[:, 0], plain, rtol=1e-4)  # what is reported is not weighted


@pytest.mark.parametrize("grid", GRIDS)
def test_take_codes_rounds_to_the_nearest_value_and_measures_the_error(grid):
    x = weights((21, 96))
    scales = searched(grid, x)
    scales[2, 1] = 0.0
    _, codes, errors = taken(grid, x, scales[None])
    values = BOOK[codes] if grid == "codebook" else codes.astype(np.float32)
    scale = np.repeat(scales, 32, axis=1)
    difference = values * scale - x
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.abs(rounded(grid, np.nan_to_num(x / scale.astype(np.float64))) * scale - x)
    np.testing.assert_allclose(np.abs(difference), best, atol=1e-6)
    expected = [(difference.astype(float) ** 2).sum(1), (x.astype(float) ** 2).sum(1), np.abs(difference).max(1)]
    np.testing.assert_allclose(errors, np.stack(expected, axis=1), rtol=1e-5)


def test_measure_rows_sums_in_float64():
    x, y = weights((5, 1000)), weights((5, 1000), seed=1)
    errors = np.empty((5, 3))
    search.measure_rows(x, y, errors)
    difference = y.astype(float) - x
    np.testing.assert_allclose(errors[:, 0], (difference**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(errors[:, 1], (x.astype(float) ** 2).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(errors[:, 2], np.abs(difference).max(1))
