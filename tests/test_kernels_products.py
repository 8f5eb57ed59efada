"""Proves that fused products give what the products alone give, whatever the number of threads and tokens."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import (
    Blocks,
    Codes,
    expected_product,
    multiply,
    random_codes,
    random_matrix,
    run_products,
)

from cg_local import kernels
from cg_local.packing import GROUP

pytestmark = pytest.mark.skipif(not kernels.FUSED_FORMATS, reason="the host has no generated path")
T = kernels.BLOCK_TOKENS


def garbage(num_blocks: int, columns: int, tokens: int) -> Blocks:
    shape = num_blocks, columns // GROUP, tokens
    codes, corrections = np.full((*shape, GROUP), 99, np.int8), np.full((*shape, GROUP // 8), 99, np.int32)
    return codes, np.full(shape, np.nan, np.float32), np.full(shape, 99, np.int32), corrections


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_matrices_of_several_formats_give_each_their_own_product(num_tokens: int, num_workers: int) -> None:
    random = np.random.default_rng(num_tokens)
    rows = {"c4g32": 80, "i8g64": 24, "c3g32": 40, "i6g32": 33, "c4g16": 16}
    matrices = [random_matrix(format, random, (count, 512)) for format, count in rows.items()]
    x = random_codes(random, num_tokens, 512)
    tokens = 1 if num_tokens == 1 else T
    blocks = x.in_blocks(tokens)
    outs = [np.full((len(blocks[0]) * tokens, -(-m.shape[0] // 16) * 16), np.nan, np.float32) for m in matrices]

    run_products(matrices, blocks, num_tokens, outs=outs, num_workers=num_workers)

    for matrix, out in zip(matrices, outs, strict=True):
        np.testing.assert_array_equal(out[:num_tokens], multiply(kernels, matrix, x, tokens))
        expected, tolerance = expected_product(matrix, x)
        assert (np.abs(out[:num_tokens, : matrix.shape[0]] - expected) <= tolerance).all()


@pytest.mark.parametrize("format", sorted(kernels.FUSED_FORMATS))
@pytest.mark.parametrize("num_tokens", [1, 6])
def test_added_product_is_the_sum_and_touches_nothing_else(format: str, num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    matrix, x = random_matrix(format, random, (40, 256)), random_codes(random, num_tokens, 256)
    tokens = 1 if num_tokens == 1 else T
    residual = random.standard_normal((num_tokens, 40)).astype(np.float32)
    total = residual.copy()

    run_products([matrix], x.in_blocks(tokens), num_tokens, total=total)

    np.testing.assert_array_equal(total, residual + multiply(kernels, matrix, x, tokens)[:, :40])


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("formats", [("c4g32", "c4g32"), ("c4g16", "c3g32")], ids="-".join)
def test_gated_products_equal_gate_and_quantization_one_after_the_other(
    formats: tuple[str, str], num_tokens: int, num_workers: int
) -> None:
    random = np.random.default_rng(num_tokens)
    gate, up = (random_matrix(format, random, (96, 256)) for format in formats)
    x = random_codes(random, num_tokens, 256)
    x = Codes(x.codes, x.scales * 1e-4)
    tokens = 1 if num_tokens == 1 else T
    blocks = x.in_blocks(tokens)
    gated, expected = (garbage(len(blocks[0]), 96, tokens) for _ in range(2))

    run_products([gate, up], blocks, num_tokens, gated=gated, num_workers=num_workers)

    alone = [multiply(kernels, matrix, x, tokens).copy() for matrix in (gate, up)]
    kernels.geglu(alone[0], alone[1], alone[0])
    no_gain = np.zeros(0, np.float32)
    no_gain.flags.writeable = False
    kernels.quantize_activations(alone[0], no_gain, np.float32(0), *expected)
    for found, separate in zip(gated, expected, strict=True):
        np.testing.assert_array_equal(found, separate)


def test_more_workers_than_tiles_compute_each_tile_once() -> None:
    random = np.random.default_rng(1)
    matrix, x = random_matrix("c4g32", random, (16, 256)), random_codes(random, 1, 256)
    total = np.zeros((1, 16), np.float32)

    run_products([matrix], x.in_blocks(1), 1, total=total, num_workers=2)

    np.testing.assert_array_equal(total, multiply(kernels, matrix, x, 1))
