"""Proves that the products of packed weights equal the float64 product, on the host's path and on the portable one."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from kernel_cases import (
    Codes,
    expected_product,
    extreme_matrix,
    extreme_weight,
    multiply,
    random_codes,
    random_matrix,
)

from cg_local import kernels
from cg_local.kernels import matmul, portable
from cg_local.packing import CODEBOOK_SIZES, FORMATS, PackedMatrix

# The generated path where the host has one; the portable one must prove itself everywhere.
PATHS = [portable] if matmul.INSTRUCTION_SET is None else [kernels, portable]
SHAPES = [(16, 256), (40, 512), (7, 2048)]
T = kernels.BLOCK_TOKENS


def block_of(num_tokens: int) -> int:
    return 1 if num_tokens == 1 else T


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rsplit(".")[-1])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 9])
def test_product_equals_the_float64_product(
    format: str, path: ModuleType, shape: tuple[int, int], num_tokens: int
) -> None:
    random = np.random.default_rng([*shape, num_tokens])
    matrix, x = random_matrix(format, random, shape), random_codes(random, num_tokens, shape[1])
    expected, tolerance = expected_product(matrix, x)

    result = multiply(path, matrix, x, block_of(num_tokens))[:, : shape[0]]

    assert (np.abs(result - expected) <= tolerance).all()


@pytest.mark.skipif(matmul.INSTRUCTION_SET is None, reason="the host has no generated path")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 9])
def test_generated_product_equals_the_portable_one_where_sums_are_exact(format: str, num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    # With scales of 1 every partial sum is an integer below 2**24: float32 holds it, in whatever order it is summed.
    matrix = random_matrix(format, random, (24, 512), is_exact=True)
    x = random_codes(random, num_tokens, 512, is_exact=True)

    generated, plain = (multiply(path, matrix, x, block_of(num_tokens)) for path in PATHS)

    np.testing.assert_array_equal(generated, plain)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rsplit(".")[-1])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("weight_sign", [-1, 1])
@pytest.mark.parametrize("activation_sign", [-1, 1])
def test_extreme_codes_do_not_overflow(format: str, path: ModuleType, weight_sign: int, activation_sign: int) -> None:
    columns = 512  # 512 * 127 * 127 < 2**24, so float32 sums are exact
    x = Codes(np.full((5, columns), activation_sign * 127, np.int8), np.ones((5, columns // 32), np.float32))
    matrix = extreme_matrix(format, (16, columns), weight_sign)

    result = multiply(path, matrix, x, T)

    np.testing.assert_array_equal(result, extreme_weight(format, weight_sign) * activation_sign * 127 * columns)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rsplit(".")[-1])
@pytest.mark.parametrize("format", [*CODEBOOK_SIZES, "i6g32"])
@pytest.mark.parametrize("weight_sign", [-1, 1])
@pytest.mark.parametrize("scale", [-127, 127])
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 9])
def test_extreme_codes_under_extreme_scales_do_not_overflow(
    format: str, path: ModuleType, weight_sign: int, scale: int, num_tokens: int
) -> None:
    columns = 1280
    x = Codes(np.full((num_tokens, columns), 127, np.int8), np.ones((num_tokens, columns // 32), np.float32))
    matrix = extreme_matrix(format, (16, columns), weight_sign)
    matrix.parts["scales"][:] = scale
    expected, tolerance = expected_product(matrix, x)

    result = multiply(path, matrix, x, block_of(num_tokens))

    assert (np.abs(result - expected) <= tolerance).all()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rsplit(".")[-1])
@pytest.mark.parametrize("format", FORMATS)
def test_zero_activations_give_exactly_zero(format: str, path: ModuleType) -> None:
    matrix = random_matrix(format, np.random.default_rng(1), (16, 256))
    x = Codes(np.zeros((3, 256), np.int8), np.zeros((3, 8), np.float32))

    assert not multiply(path, matrix, x, T).any()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rsplit(".")[-1])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("num_tokens", [2, 3, 4, 5, 6, 9, 11])
@pytest.mark.parametrize("columns", [512, 1280, 2048])  # of part of a panel, of one and a part, of two
def test_token_alone_equals_the_token_in_a_batch_bit_for_bit(
    format: str, path: ModuleType, num_tokens: int, columns: int
) -> None:
    random = np.random.default_rng(num_tokens)
    matrix, x = random_matrix(format, random, (24, columns)), random_codes(random, num_tokens, columns)

    alone = [multiply(path, matrix, Codes(x.codes[t : t + 1], x.scales[t : t + 1]), 1)[0] for t in range(num_tokens)]

    np.testing.assert_array_equal(multiply(path, matrix, x, T), np.stack(alone))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rsplit(".")[-1])
@pytest.mark.parametrize("format", FORMATS)
def test_rows_that_fill_the_last_tile_give_zero(format: str, path: ModuleType) -> None:
    random = np.random.default_rng(2)
    matrix: PackedMatrix = random_matrix(format, random, (19, 256))

    assert not multiply(path, matrix, random_codes(random, 2, 256), T)[:, 19:].any()


def test_package_offers_the_products_of_the_selected_path() -> None:
    has_generators = matmul.INSTRUCTION_SET is not None

    assert ({*FORMATS} - {"bf16"} if has_generators else set()) == kernels.FUSED_FORMATS
    assert set(kernels.MATMUL) == set(FORMATS)
    assert (kernels.MATMUL["bf16"] is portable.matmul_bf16) != has_generators
