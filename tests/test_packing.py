"""The bit layout: hand-computed byte positions, pack and unpack as identity, dequantization by the plain formula."""

import numpy as np
import pytest

from cg_local.packing import (
    BITS_PER_WEIGHT,
    CODEBOOK_SIZES,
    COLUMN_MULTIPLE,
    FORMATS,
    SCALE_GROUPS,
    PackedMatrix,
    bfloat16_from_float32,
    dequantize,
    dequantize_rows,
    float32_from_bfloat16,
    pack_codebook,
    pack_codes,
    pack_scales,
    packed_bytes,
    part_layout,
    unpack_codes,
    unpack_scales,
)

CODE_RANGES = {
    "c4g32": (0, 15, np.uint8),
    "c4g16": (0, 15, np.uint8),
    "c3g32": (0, 7, np.uint8),
    "i6g32": (0, 63, np.uint8),
    "i8g64": (-127, 127, np.int8),
}
SHAPES = [(1, 256), (15, 256), (16, 512), (17, 768), (50, 2048)]


def random_codes(format, shape, seed=0):
    rng = np.random.default_rng(seed)
    if format == "bf16":
        return bfloat16_from_float32(rng.standard_normal(shape).astype(np.float32))
    low, high, dtype = CODE_RANGES[format]
    return rng.integers(low, high + 1, shape).astype(dtype)


def random_matrix(format, shape, seed=0):
    """A packed matrix of random codes and scales, and its weights by the plain formula of the format."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    codes = random_codes(format, shape, seed)
    parts = {"codes": pack_codes(format, codes)}
    if format == "bf16":
        return PackedMatrix(format, shape, parts), float32_from_bfloat16(codes)
    if format == "i8g64":
        scales = rng.uniform(1e-3, 1e-2, (rows, columns // 64)).astype(np.float16)
        parts["scales"] = pack_scales(scales)
        group = np.arange(columns) // 64
        return PackedMatrix(format, shape, parts), codes.astype(np.float32) * scales.astype(np.float32)[:, group]
    group = 16 if format == "c4g16" else 32
    scales = rng.integers(-127, 128, (rows, columns // group)).astype(np.int8)
    super_scales = rng.uniform(1e-6, 1e-4, (rows, columns // 256)).astype(np.float16)
    parts |= {"scales": pack_scales(scales), "super_scales": pack_scales(super_scales)}
    values = codes.astype(np.float32) - 32
    if format != "i6g32":
        book = np.sort(rng.integers(-63, 64, CODEBOOK_SIZES[format]))
        parts["codebook"] = pack_codebook(book)
        values = book.astype(np.float32)[codes]
    column = np.arange(columns)
    scale = scales.astype(np.float32)[:, column // group] * super_scales.astype(np.float32)[:, column // 256]
    return PackedMatrix(format, shape, parts), values * scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_unpack_codes_undoes_pack_codes(format, shape):
    codes = random_codes(format, shape)
    packed = pack_codes(format, codes)
    dtype, expected_shape = part_layout(format, shape)["codes"]
    assert (packed.dtype, packed.shape) == (dtype, expected_shape)
    np.testing.assert_array_equal(unpack_codes(format, packed, shape), codes)


@pytest.mark.parametrize("rows", [1, 15, 16, 33])
def test_unpack_scales_undoes_pack_scales(rows):
    scales = np.arange(rows * 7, dtype=np.float16).reshape(rows, 7)
    packed = pack_scales(scales)
    assert packed[0, 3, 0] == scales[0, 3]
    np.testing.assert_array_equal(unpack_scales(packed, rows), scales)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_dequantize_follows_the_plain_formula(format, shape):
    matrix, weights = random_matrix(format, shape)
    np.testing.assert_array_equal(dequantize(matrix), weights)


@pytest.mark.parametrize("format", FORMATS)
def test_dequantize_rows_equals_the_rows_of_dequantize(format):
    matrix, weights = random_matrix(format, (50, 512))
    rows = np.array([49, 0, 16, 15, 16, 31])
    np.testing.assert_array_equal(dequantize_rows(matrix, rows), weights[rows])


@pytest.mark.parametrize("format", FORMATS)
def test_packed_bytes_counts_the_parts_and_the_padding_of_the_last_tile(format):
    matrix, _ = random_matrix(format, (17, 512))
    assert packed_bytes(format, (17, 512)) == matrix.num_bytes == packed_bytes(format, (32, 512))


@pytest.mark.parametrize("format", FORMATS)
def test_bits_per_weight_are_those_of_the_parts(format):
    shape = 64, 2048
    sizes = {name: dtype.itemsize * np.prod(part) for name, (dtype, part) in part_layout(format, shape).items()}
    sizes.pop("codebook", None)
    assert 8 * sum(sizes.values()) / (64 * 2048) == BITS_PER_WEIGHT[format]


# (row, column) -> byte within the packed codes and its bits, counted by hand from the table of the module:
# second tile, first row = row 16; lane r begins at byte 4 r of each 64-byte line.
@pytest.mark.parametrize(
    ("row", "column", "byte", "shift"),
    [
        (0, 0, 0, 0),
        (0, 3, 3, 0),
        (0, 4, 0, 4),
        (0, 7, 3, 4),
        (0, 8, 64, 0),
        (5, 2, 5 * 4 + 2, 0),
        (15, 255, 31 * 64 + 15 * 4 + 3, 4),
        (16, 0, 32 * 64, 0),
        (18, 13, 32 * 64 + 64 + 2 * 4 + 1, 4),
    ],
)
@pytest.mark.parametrize("format", ["c4g32", "c4g16"])
def test_four_bit_code_lies_in_its_nibble(format, row, column, byte, shift):
    codes = np.zeros((32, 256), np.uint8)
    codes[row, column] = 0b1011
    packed = pack_codes(format, codes).reshape(-1)
    assert packed[byte] == 0b1011 << shift
    assert np.count_nonzero(packed) == 1


@pytest.mark.parametrize(
    ("row", "column", "byte", "shift"),
    [
        (0, 0, 0, 0),
        (0, 6, 2, 4),
        (5, 9, 64 + 5 * 4 + 1, 0),
        (0, 23, 128 + 3, 4),
        (2, 32, 192 + 2 * 4, 0),
        (31, 247, 7 * 192 + 128 + 63, 4),
    ],
)
def test_c3g32_code_of_the_first_24_columns_lies_in_its_nibble(row, column, byte, shift):
    codes = np.zeros((32, 256), np.uint8)
    codes[row, column] = 0b101
    packed = pack_codes("c3g32", codes).reshape(-1)
    # A second tile begins behind the 8 groups of the first.
    byte += 8 * 192 * (row // 16)
    assert packed[byte] == 0b101 << shift
    assert np.count_nonzero(packed) == 1


@pytest.mark.parametrize(
    ("row", "column", "byte", "bit"),
    [(0, 24, 0, 3), (0, 28, 0, 7), (3, 27, 3 * 4 + 3, 3), (1, 62, 192 + 4 + 2, 7), (16, 31, 8 * 192 + 3, 7)],
)
def test_c3g32_code_of_the_last_8_columns_lies_in_the_upper_bits_of_three_lines(row, column, byte, bit):
    codes = np.zeros((32, 256), np.uint8)
    codes[row, column] = 0b101
    packed = pack_codes("c3g32", codes).reshape(-1)
    assert [packed[byte + 64 * line] for line in range(3)] == [1 << bit, 0, 1 << bit]
    assert np.count_nonzero(packed) == 2


@pytest.mark.parametrize(
    ("row", "column", "low_byte", "low_shift", "high_byte", "high_shift"),
    [
        (0, 0, 0, 0, 128, 0),
        (0, 5, 1, 4, 128 + 1, 2),
        (0, 8, 64, 0, 128, 4),
        (3, 15, 64 + 3 * 4 + 3, 4, 128 + 3 * 4 + 3, 6),
        (1, 18, 192 + 4 + 2, 0, 192 + 128 + 4 + 2, 0),
        (31, 255, 16 * 192 + 15 * 192 + 64 + 63, 4, 16 * 192 + 15 * 192 + 128 + 63, 6),
    ],
)
def test_i6g32_code_lies_in_its_nibble_and_its_two_high_bits(row, column, low_byte, low_shift, high_byte, high_shift):
    codes = np.zeros((32, 256), np.uint8)
    codes[row, column] = 0b101001
    packed = pack_codes("i6g32", codes).reshape(-1)
    assert packed[low_byte] == 0b1001 << low_shift
    assert packed[high_byte] == 0b10 << high_shift
    assert np.count_nonzero(packed) == 2


@pytest.mark.parametrize(
    ("row", "column", "byte"),
    [(0, 0, 0), (0, 3, 3), (0, 4, 64), (7, 1, 29), (15, 63, 15 * 64 + 63), (17, 6, 16 * 64 + 64 + 4 + 2)],
)
def test_i8g64_code_lies_in_its_byte(row, column, byte):
    codes = np.zeros((32, 64), np.int8)
    codes[row, column] = -77
    packed = pack_codes("i8g64", codes).reshape(-1)
    assert packed[byte] == -77
    assert np.count_nonzero(packed) == 1


@pytest.mark.parametrize(("row", "column", "word"), [(0, 0, 0), (0, 1, 16), (15, 2, 47), (16, 0, 48)])
def test_bf16_code_lies_in_its_word(row, column, word):
    codes = np.zeros((17, 3), np.uint16)
    codes[row, column] = 0x3F80
    assert pack_codes("bf16", codes).reshape(-1)[word] == 0x3F80


def test_scales_stand_by_tile_then_group_then_row():
    scales = np.zeros((32, 8), np.int8)
    scales[18, 3] = 99
    assert pack_scales(scales).reshape(-1)[8 * 16 + 3 * 16 + 2] == 99


def test_codebook_of_eight_values_is_stored_twice_in_each_sixteen_bytes():
    assert pack_codebook(np.arange(-4, 4)).tolist() == 4 * [2 * list(range(60, 68))]


def test_codebook_is_stored_four_times_with_its_offset():
    values = np.arange(-8, 8)
    packed = pack_codebook(values)
    assert packed.nbytes == 64
    assert packed.tolist() == 4 * [list(range(56, 72))]


@pytest.mark.parametrize(
    "values", [np.arange(15), np.arange(16).reshape(2, 8), np.arange(49, 65), np.arange(16)[::-1], np.arange(-64, -48)]
)
def test_codebook_refuses_other_lengths_orders_and_ranges(values):
    with pytest.raises(ValueError, match=r"8 or 16 ascending integers in -63\.\.63"):
        pack_codebook(values)


@pytest.mark.parametrize("format", SCALE_GROUPS)
def test_part_layout_refuses_columns_that_groups_do_not_divide(format):
    columns = COLUMN_MULTIPLE[format] * 3 // 2
    with pytest.raises(ValueError, match=f"needs a multiple of {COLUMN_MULTIPLE[format]} columns, not {columns}"):
        part_layout(format, (16, columns))


def test_part_layout_refuses_an_unknown_format():
    with pytest.raises(ValueError, match="unknown weight format 'q3'; known: c4g32"):
        part_layout("q3", (16, 256))


def test_bfloat16_rounds_to_nearest_ties_to_even():
    ulp = 2.0**-7  # of values from 1 to 2
    values = np.array([1 + ulp / 2, 1 + ulp * 1.5, 1 + ulp * 0.51, -1 - ulp * 1.5, 0.0, -0.0, np.inf], np.float32)
    expected = np.array([1.0, 1 + 2 * ulp, 1 + ulp, -1 - 2 * ulp, 0.0, -0.0, np.inf], np.float32)
    rounded = float32_from_bfloat16(bfloat16_from_float32(values))
    np.testing.assert_array_equal(rounded.view(np.uint32), expected.view(np.uint32))


def test_bfloat16_keeps_nan_and_every_bfloat16_value():
    assert np.isnan(float32_from_bfloat16(bfloat16_from_float32(np.array([np.nan], np.float32))))[0]
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = float32_from_bfloat16(bits)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(bfloat16_from_float32(values[finite]), bits[finite])
