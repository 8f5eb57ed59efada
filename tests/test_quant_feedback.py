"""Rounding with error feedback against the textbook form: the inverse of H over the columns that are left."""

import numpy as np
import pytest

from cg_local.quant.feedback import DAMPING, DenseFeedback, LowRankFeedback

VALUES = np.array([-49, -39, -31, -24, -17, -11, -5, 0, 5, 11, 17, 24, 31, 40, 51, 63], np.float32)


def nearest(target, scale):
    """The index of the value of the grid nearest to a scaled weight; scale not 0."""
    return np.abs(VALUES.astype(np.float64) * scale - target).argmin()


def rounded_by_the_book(x, scales, h, order):
    """Optimal brain quantization: round a column, move those left by its row of the inverse of H over them."""
    w, group = x.astype(np.float64), x.shape[1] // scales.shape[1]
    codes = np.zeros(x.shape, int)
    for position, j in enumerate(order):
        left = order[position:]
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        for row in range(len(x)):
            scale = float(scales[row, j // group])
            codes[row, j] = nearest(w[row, j], scale)
            error = w[row, j] - VALUES[codes[row, j]] * scale
            w[row, left] -= error * inverse[0] / inverse[0, 0]
    return codes


def problem(rows=21, columns=64, group=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    scales = (
        np.abs(x).reshape(rows, -1, group).max(axis=2) / 63 * rng.choice([-1, 1], (rows, columns // group))
    ).astype(np.float32)
    mixing = rng.standard_normal((columns, columns)) * np.exp(rng.standard_normal(columns))
    return x, scales, mixing @ mixing.T / columns


def taken(feedback, x, scales):
    codes = np.full(x.shape, -1, np.int8)
    feedback.round(x, scales, VALUES, codes)
    return codes


def error_of(x, scales, codes, h):
    difference = VALUES[codes] * np.repeat(scales, x.shape[1] // scales.shape[1], axis=1) - x
    return np.einsum("ri,ij,rj->", difference, h, difference)


def test_dense_feedback_is_optimal_brain_quantization():
    x, scales, h = problem()
    damped = h + DAMPING * np.diag(h).mean() * np.eye(len(h))
    expected = rounded_by_the_book(x, scales, damped, np.argsort(-np.diag(h), kind="stable"))
    codes = taken(DenseFeedback.of((h,)), x, scales)
    assert (codes == expected).mean() > 0.999  # float32 sums fall on the other side of a tie now and then


def test_low_rank_feedback_is_that_of_the_whole_product():
    x, scales, _ = problem(seed=1)
    rng = np.random.default_rng(2)
    diagonal, directions = np.exp(rng.standard_normal(64)), rng.standard_normal((64, 5))
    h = np.diag(diagonal) + directions @ directions.T
    damped = h + DAMPING * np.diag(h).mean() * np.eye(64)
    expected = rounded_by_the_book(x, scales, damped, np.argsort(-np.diag(h), kind="stable"))
    codes = taken(LowRankFeedback.of(diagonal, directions), x, scales)
    assert (codes == expected).mean() > 0.999


def test_feedback_leaves_a_smaller_error_of_the_output_than_rounding_to_the_nearest():
    x, scales, h = problem(rows=64)
    wide = np.repeat(scales, 16, axis=1).astype(np.float64)
    plain = np.abs(VALUES[:, None, None] * wide - x).argmin(axis=0)
    assert error_of(x, scales, taken(DenseFeedback.of((h,)), x, scales), h) < 0.5 * error_of(x, scales, plain, h)


def revised_by_the_book(x, candidates, chosen, codes, h):
    """Group after group: for each scale, a sweep of coordinate descent from the codes as they are; the best is kept."""
    chosen, codes, group = chosen.copy(), codes.copy(), x.shape[1] // candidates.shape[2]
    for row, column in np.ndindex(len(x), candidates.shape[2]):
        scales = [candidates[chosen[row, g], row, g] for g in range(candidates.shape[2])]
        wide, part = np.repeat(scales, group).astype(np.float64), slice(column * group, (column + 1) * group)

        def error(values, row=row):
            return (values - x[row]) @ h @ (values - x[row])

        now = VALUES[codes[row]] * wide
        least, start = error(now), codes[row, part].copy()
        for n, scale in enumerate(candidates[:, row, column].astype(np.float64)):
            trial, taken = now.copy(), start.copy()
            trial[part] = VALUES[taken] * scale
            for i in range(group):
                j = part.start + i
                taken[i] = nearest(trial[j] - (h[j] @ (trial - x[row])) / h[j, j], scale)
                trial[j] = VALUES[taken[i]] * scale
            if error(trial) < least:
                least, chosen[row, column], codes[row, part] = error(trial), n, taken
    return chosen, codes


def revision(group=16, rows=21):
    """A feedback with its damped H in two blocks, and rows rounded with the middle one of five scales each."""
    x, scales, h = problem(rows=rows, group=group)
    blocks = (h[:32, :32], h[32:, 32:])
    feedback, whole = DenseFeedback.of(blocks), np.zeros_like(h)
    for block, part in zip(blocks, (slice(0, 32), slice(32, 64)), strict=True):
        whole[part, part] = block + DAMPING * np.diag(block).mean() * np.eye(32)
    candidates = np.stack([scales * np.float32(factor) for factor in (0.9, 0.96, 1.0, 1.05, 1.1)])
    return feedback, whole, x, candidates, np.full(scales.shape, 2, np.uint8), taken(feedback, x, scales)


@pytest.mark.parametrize("group", [16, 32])
def test_revision_is_coordinate_descent_over_groups(group):
    feedback, h, x, candidates, chosen, codes = revision(group)
    expected_chosen, expected_codes = revised_by_the_book(x, candidates, chosen, codes, h)
    feedback.revise(x, candidates, VALUES, chosen, codes)
    assert (expected_chosen != 2).mean() > 0.2
    assert (chosen == expected_chosen).mean() > 0.99  # float32 sums choose otherwise between equals now and then
    assert (codes == expected_codes).mean() > 0.99


def test_revision_never_raises_a_rows_error():
    feedback, h, x, candidates, chosen, codes = revision(rows=64)

    def errors():
        scales = np.take_along_axis(candidates, chosen[None].astype(np.intp), axis=0)[0]
        difference = VALUES[codes] * np.repeat(scales, 16, axis=1).astype(np.float64) - x
        return np.einsum("ri,ij,rj->r", difference, h, difference)

    found = [errors()]
    for _ in range(12):
        feedback.revise(x, candidates, VALUES, chosen, codes)
        found.append(errors())
        assert (found[-1] <= found[-2] * (1 + 1e-6)).all()
    assert found[1].sum() < 0.97 * found[0].sum()
    before = chosen.copy(), codes.copy()
    feedback.revise(x, candidates, VALUES, chosen, codes)
    np.testing.assert_array_equal((chosen == before[0]).mean(), 1.0)  # at a minimum nothing moves any more
    np.testing.assert_array_equal(codes, before[1])


def test_a_rows_revision_depends_on_that_row_alone():
    feedback, _, x, candidates, chosen, codes = revision(rows=37)
    some, some_codes = chosen[5:22].copy(), codes[5:22].copy()
    feedback.revise(x, candidates, VALUES, chosen, codes)
    feedback.revise(x[5:22].copy(), candidates[:, 5:22].copy(), VALUES, some, some_codes)
    np.testing.assert_array_equal(some, chosen[5:22])
    np.testing.assert_array_equal(some_codes, codes[5:22])


def test_revision_leaves_scales_of_zero_to_zeros():
    feedback, _, x, candidates, chosen, codes = revision()
    candidates[:, 3] = 0.0
    x[3] = 0.0
    with np.errstate(all="raise"):
        feedback.revise(x, candidates, VALUES, chosen, codes)
    assert (chosen[3] == 2).all()


def test_blocks_are_rounded_each_by_itself():
    x, scales, h = problem()
    blocks = (h[:32, :32], h[32:, 32:])
    whole = taken(DenseFeedback.of(blocks), x, scales)
    for block, part in zip(blocks, (slice(0, 32), slice(32, 64)), strict=True):
        groups = slice(part.start // 16, part.stop // 16)
        alone = taken(DenseFeedback.of((block,)), x[:, part].copy(), scales[:, groups].copy())
        np.testing.assert_array_equal(whole[:, part], alone)


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_a_rows_codes_depend_on_that_row_alone(kind):
    x, scales, h = problem(rows=37)
    feedback = DenseFeedback.of((h,)) if kind == "dense" else LowRankFeedback.of(np.diag(h), h[:, :3].copy())
    whole = taken(feedback, x, scales)
    np.testing.assert_array_equal(taken(feedback, x[5:22].copy(), scales[5:22].copy()), whole[5:22])


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_without_correlations_feedback_rounds_to_the_nearest(kind):
    x, scales, _ = problem()
    wide = np.repeat(scales, 16, axis=1).astype(np.float64)
    nearest_codes = np.abs(VALUES[:, None, None] * wide - x).argmin(axis=0)
    ones = np.ones(64)
    feedback = DenseFeedback.of((np.diag(ones),)) if kind == "dense" else LowRankFeedback.of(ones, np.zeros((64, 2)))
    np.testing.assert_array_equal(taken(feedback, x, scales), nearest_codes)


def test_degenerate_products_and_scales_of_zero():
    x, scales, _ = problem()
    scales[:, 1] = 0.0
    x[:, 16:32] = 0.0
    dead = np.zeros((64, 64))
    dead[:8, :8] = np.outer(np.arange(8.0), np.arange(8.0))  # rank 1, 56 inputs that are always 0
    codes = taken(DenseFeedback.of((dead,)), x, scales)
    assert (codes >= 0).all()
    assert (codes < 16).all()
    assert (taken(DenseFeedback.of((np.zeros((64, 64)),)), x, scales) >= 0).all()


def test_inputs_that_are_always_zero_leave_rounding_to_the_nearest():
    x, scales, _ = problem()
    wide = np.repeat(scales, 16, axis=1).astype(np.float64)
    nearest_codes = np.abs(VALUES[:, None, None] * wide - x).argmin(axis=0)
    with np.errstate(all="raise"):
        low_rank = LowRankFeedback.of(np.zeros(64), np.zeros((64, 2)))
        dense = DenseFeedback.of((np.zeros((64, 64)),))
    np.testing.assert_array_equal(taken(low_rank, x, scales), nearest_codes)
    np.testing.assert_array_equal(taken(dense, x, scales), nearest_codes)
