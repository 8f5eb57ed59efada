"""Quality of every format on three tail shapes, agreement of the reported error with the file, extreme weights."""

import numpy as np
import pytest

from cg_local.packing import (
    CODEBOOK_SIZES,
    FORMATS,
    SCALE_GROUPS,
    PackedMatrix,
    dequantize,
    pack_codebook,
    unpack_codes,
)
from cg_local.quant import search
from cg_local.quant.encode import START_BOOKS, START_BOOKS_OF_8, encode_rows, learn_codebook

DRAWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape),
}
# Signal to error in dB that the first measurement of the c4g32 format reached with a slower search (512 x 2048
# weights, seed 0); this search must not fall behind it, and keeps what it has gained.
FIRST_MEASUREMENT = {"normal": 22.39, "laplace": 21.34, "t5": 21.27}
# The weights' own, and with each element weighed as the search does, which is what it seeks.
REACHED = {
    "c4g32": {"normal": (22.52, 23.85), "laplace": (21.63, 23.73), "t5": (21.60, 23.70)},
    "c4g16": {"normal": (23.79, 25.21), "laplace": (23.23, 25.33), "t5": (23.15, 25.21)},
    "c3g32": {"normal": (16.16, 17.48), "laplace": (15.22, 17.18), "t5": (15.20, 17.15)},
    "i6g32": {"normal": (34.03, 35.80), "laplace": (31.87, 34.71), "t5": (31.80, 34.66)},
    "i8g64": {"normal": (45.02, 46.78), "laplace": (42.49, 45.41), "t5": (42.18, 45.26)},
    "bf16": {"normal": (55.5, 55.5), "laplace": (55.5, 55.5), "t5": (55.5, 55.5)},
}


def draw(name, shape=(512, 2048), scale=0.02):
    return (scale * DRAWS[name](np.random.default_rng(0), shape)).astype(np.float32)


def start_book(format):
    """A codebook that the format may have, or None for one without."""
    books = {8: START_BOOKS_OF_8, 16: START_BOOKS}
    return np.array(books[CODEBOOK_SIZES[format]][0]) if format in CODEBOOK_SIZES else None


def encoded(format, x):
    """The dequantized matrix and the errors reported."""
    book = learn_codebook(x[: min(len(x), 64)], format) if format in CODEBOOK_SIZES else None
    rows = encode_rows(format, x, book)
    parts = {**rows.parts, **({"codebook": pack_codebook(book)} if book is not None else {})}
    return dequantize(PackedMatrix(format, x.shape, parts)), rows.errors


def decibels(x, y, weights=1.0):
    x = x.astype(np.float64)
    return 10 * np.log10((weights * x**2).sum() / (weights * (x - y) ** 2).sum())


def element_weights(format, x):
    weights = np.ones_like(x)
    if format in SCALE_GROUPS:
        search.weigh(x, np.ones(x.shape[1], np.float32), SCALE_GROUPS[format], weights)
    return weights


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("format", FORMATS)
def test_signal_to_error_of_random_weights(format, name):
    x = draw(name)
    y, _ = encoded(format, x)
    plain, weighted = REACHED[format][name]
    assert decibels(x, y) >= plain
    assert decibels(x, y, element_weights(format, x)) >= weighted
    if format == "c4g32":
        assert decibels(x, y) >= FIRST_MEASUREMENT[name] - 0.05


@pytest.mark.parametrize("format", FORMATS)
def test_reported_error_is_the_error_of_the_dequantized_matrix(format):
    x = draw("t5", (37, 512))
    y, errors = encoded(format, x)
    difference = y.astype(np.float64) - x
    np.testing.assert_allclose(errors[:, 0], (difference**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(errors[:, 1], (x.astype(np.float64) ** 2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(errors[:, 2], np.abs(difference).max(1), rtol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_encoding_in_slabs_equals_encoding_at_once(format):
    x = draw("laplace", (64, 256))
    book = start_book(format)
    whole = encode_rows(format, x, book)
    slabs = [encode_rows(format, x[start : start + 16], book) for start in range(0, 64, 16)]
    for name, part in whole.parts.items():
        np.testing.assert_array_equal(np.concatenate([slab.parts[name] for slab in slabs]), part)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_exactly_zero(format):
    x = draw("normal", (20, 512))
    x[3] = 0.0
    x[4, :300] = -0.0
    y, errors = encoded(format, x)
    assert (y[3] == 0).all()
    assert (y[4, :256] == 0).all()
    assert errors[3].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(encoded(format, np.zeros((16, 256), np.float32))[0], 0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("format", SCALE_GROUPS)
def test_quality_hardly_depends_on_the_magnitude(format, scale):
    x = draw("normal", (64, 512))
    # At 1e-3 (weights of 2e-5) scales of i8g64 are float16 subnormals of three to eight bits: 1.2 dB.
    floor = decibels(x, encoded(format, x)[0]) - 1.5
    assert decibels(x * scale, encoded(format, x * np.float32(scale))[0]) >= floor


@pytest.mark.parametrize("scale", [1e-9, 1e-20, 1e-38, 1e-44])
@pytest.mark.parametrize("format", FORMATS)
def test_tiny_weights_never_grow(format, scale):
    x = draw("normal", (16, 256), scale)
    y, _ = encoded(format, x)
    assert np.isfinite(y).all()
    # Half of the smallest step that float16 scales allow: nothing is rounded away from zero by more than that.
    assert np.abs(y - x).max() <= max(np.abs(x).max(), 6e-8)


@pytest.mark.parametrize("format", SCALE_GROUPS)
def test_groups_of_very_different_magnitude_keep_their_own_scale(format):
    x = draw("normal", (32, 512))
    x[:, 64:128] *= 1e-2
    y, _ = encoded(format, x)
    floor = {"i8g64": 40}.get(format, 12)
    assert decibels(x[:, 64:128], y[:, 64:128]) > floor


@pytest.mark.parametrize(
    ("format", "weight"),
    [*((format, 1e10) for format in (*CODEBOOK_SIZES, "i6g32")), ("i8g64", 1e7), ("bf16", 3.4e38)],
)
def test_weights_beyond_the_range_of_the_format_are_refused(format, weight):
    x = draw("normal", (16, 256))
    x[5, 77] = weight
    with pytest.raises(OverflowError, match="float16 ends at 65504" if format != "bf16" else "beyond bfloat16"):
        encode_rows(format, x, start_book(format))


def test_large_weights_within_the_range_are_kept():
    x = draw("normal", (16, 256), 1e6)
    assert decibels(x, encoded("i8g64", x)[0]) > 44
    assert decibels(x, encoded("c4g32", x)[0]) > 22
    assert decibels(x, encoded("c3g32", x)[0]) > 16


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("format", CODEBOOK_SIZES)
def test_learned_codebook_is_ascending_and_ends_at_the_limit(format, name):
    book = learn_codebook(draw(name, (64, 512)), format)
    assert len(book) == CODEBOOK_SIZES[format]
    assert np.abs(book).max() == 63
    assert (np.diff(book) >= 0).all()


@pytest.mark.parametrize(("format", "books"), [("c4g32", START_BOOKS), ("c3g32", START_BOOKS_OF_8)])
def test_learned_codebook_beats_the_starts_on_other_shapes(format, books):
    x = (np.random.default_rng(0).uniform(-1, 1, (64, 1024))).astype(np.float32)
    starts = [encode_rows(format, x, np.array(book)).errors[:, 0].sum() for book in books]
    # 0.5 dB
    assert encode_rows(format, x, learn_codebook(x, format)).errors[:, 0].sum() < 0.89 * min(starts)


@pytest.mark.parametrize("format", CODEBOOK_SIZES)
def test_codes_stay_within_the_codebook(format):
    x = draw("t5", (32, 512))
    x[7, 100] = 1e3
    codes = unpack_codes(format, encode_rows(format, x, start_book(format)).parts["codes"], x.shape)
    assert codes.max() == CODEBOOK_SIZES[format] - 1


def test_codebook_of_zeros_and_of_few_values_is_valid():
    for x in (np.zeros((16, 256), np.float32), np.ones((16, 256), np.float32), -np.eye(16, 256, dtype=np.float32)):
        for format in CODEBOOK_SIZES:
            pack_codebook(learn_codebook(x, format))
            np.testing.assert_allclose(encoded(format, x)[0], x, rtol=1e-3)
