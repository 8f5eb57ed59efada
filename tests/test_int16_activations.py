"""Proves activations of 16 bits: their rounding, their product, and that the engine keeps its promises with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from kernel_cases import Codes, expected_product, extreme_matrix, multiply, random_codes, random_matrix
from toy_engines import DequantizedFolder, divergence, engine_of, generate, relative_error, result_of, toy_prompt

from cg_local import kernels, reference
from cg_local.errors import ConfigError
from cg_local.kernels import matmul, portable
from cg_local.kernels.int16_activations import CODE_LIMIT
from cg_local.model import Model
from cg_local.model_folder import open_model_folder

FolderMaker = Callable[[str, str], Path]
PATHS = [portable] if matmul.INSTRUCTION_SET is None else [kernels, portable]
MODELS = [("mqa", "q4"), ("mha", "q8")]
PROMPT = toy_prompt(150)
T = kernels.BLOCK_TOKENS
on_each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rsplit(".")[-1])


def block_of(num_tokens: int) -> int:
    return 1 if num_tokens == 1 else T


@on_each_path
@pytest.mark.parametrize("shape", [(16, 256), (40, 512), (7, 2048), (16, 64)], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 5, 9])
def test_product_equals_the_float64_product(path: ModuleType, shape: tuple[int, int], num_tokens: int) -> None:
    random = np.random.default_rng([*shape, num_tokens])
    matrix, x = random_matrix("i8g64", random, shape), random_codes(random, num_tokens, shape[1], is_int16=True)
    expected, tolerance = expected_product(matrix, x)

    result = multiply(path, matrix, x, block_of(num_tokens))[:, : shape[0]]

    assert (np.abs(result - expected) <= tolerance).all()


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_generated_product_equals_the_portable_one_where_sums_are_exact(num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    matrix = random_matrix("i8g64", random, (24, 512), is_exact=True)
    x = random_codes(random, num_tokens, 512, is_exact=True, is_int16=True)

    first, last = (multiply(path, matrix, x, block_of(num_tokens)) for path in (PATHS[0], PATHS[-1]))

    np.testing.assert_array_equal(first, last)


@on_each_path
@pytest.mark.parametrize("weight_sign", [-1, 1])
@pytest.mark.parametrize("code", [-CODE_LIMIT, CODE_LIMIT, -128, 128, -129, 127, 255, 256])
def test_extreme_codes_do_not_overflow(path: ModuleType, weight_sign: int, code: int) -> None:
    x = Codes(np.full((5, 64), code, np.int16), np.ones((5, 2), np.float32))
    matrix = extreme_matrix("i8g64", (16, 64), weight_sign)

    # A group's sum is exact in int32 and rounded once when it becomes a float32, then the two groups are added.
    group_sum = np.float32(weight_sign * code * 127 * 32)
    np.testing.assert_array_equal(multiply(path, matrix, x, T), group_sum + group_sum)


@on_each_path
@pytest.mark.parametrize("num_tokens", [2, 4, 9])
def test_token_alone_equals_the_token_in_a_batch_bit_for_bit(path: ModuleType, num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    matrix, x = random_matrix("i8g64", random, (24, 512)), random_codes(random, num_tokens, 512, is_int16=True)

    alone = [multiply(path, matrix, Codes(x.codes[t : t + 1], x.scales[t : t + 1]), 1)[0] for t in range(num_tokens)]

    np.testing.assert_array_equal(multiply(path, matrix, x, T), np.stack(alone))


@pytest.mark.parametrize("tokens", [1, T])
def test_rounding_is_that_of_numpy_in_the_order_of_the_layout(tokens: int) -> None:
    x = np.random.default_rng(5).standard_normal((5, 96)).astype(np.float32) * np.float32(
        [[1e3], [1], [1e-3], [0], [7]]
    )
    x[4, 32:64] = 0
    shape = -(-5 // tokens), 3, tokens
    codes, scales = np.full((*shape, 32), 9, np.int16), np.full(shape, 9, np.float32)

    kernels.quantize_activations_int16(x, codes, scales)

    largest = np.abs(x.reshape(5, 3, 32)).max(axis=2)
    inverse = np.divide(np.float32(CODE_LIMIT), largest, out=np.zeros_like(largest), where=largest > 0)
    expected = Codes(
        np.rint(x * np.repeat(inverse, 32, axis=1)).astype(np.int16), (largest / np.float32(CODE_LIMIT))
    ).in_int16_blocks(tokens)
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scales, expected[1])


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-38, 1e-34])
def test_groups_of_nearly_zero_are_zero(magnitude: float) -> None:
    codes, scales = np.full((1, 1, 1, 32), 9, np.int16), np.empty((1, 1, 1), np.float32)

    kernels.quantize_activations_int16(np.full((1, 32), magnitude, np.float32), codes, scales)

    assert not codes.any()


@pytest.mark.parametrize(("family", "scheme"), MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_equals_prefill_at_once_bit_for_bit(
    family: str, scheme: str, chunk: int, toy_folder: FolderMaker
) -> None:
    folder = toy_folder(family, scheme)

    whole, cut = (engine_of(folder, activations="int16", prefill_chunk=size).logits(PROMPT) for size in (512, chunk))

    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize(("family", "scheme"), MODELS)
def test_cached_prefix_and_decoding_give_the_result_of_a_cold_run_bit_for_bit(
    family: str, scheme: str, toy_folder: FolderMaker
) -> None:
    folder = toy_folder(family, scheme)
    other_end = [*PROMPT[:90], *toy_prompt(30, seed=9)[1:]]
    cold = generate(engine_of(folder, activations="int16"), other_end, max_tokens=12)
    engine = engine_of(folder, activations="int16")
    generate(engine, PROMPT[:130], max_tokens=3)

    warm = generate(engine, other_end, max_tokens=12)

    assert warm.num_cached == 80
    assert result_of(warm) == result_of(cold)


@pytest.mark.parametrize("family", ["mqa", "mha"])
def test_q8_logits_equal_those_of_the_dequantized_weights(family: str, toy_folder: FolderMaker) -> None:
    folder = toy_folder(family, "q8")
    exact = reference.logits(DequantizedFolder(folder), PROMPT)

    fine, coarse = (
        engine_of(folder, activations=rounding, kv_dtype="float32").logits(PROMPT) for rounding in ("int16", "int8")
    )

    # Codes are 257 times finer; measured 4.1e-5 against 1.0e-2, and divergences of 5e-11 against 3e-6.
    assert relative_error(exact, fine) < 2e-4 < 20 * relative_error(exact, coarse)
    assert divergence(exact, fine) < 1e-3 * divergence(exact, coarse)


def test_unknown_activations_are_refused(toy_folder: FolderMaker) -> None:
    with pytest.raises(ConfigError, match="activations is 'int4'; give int8 or int16"):
        Model(open_model_folder(toy_folder("mqa", "q8")), activations="int4")
