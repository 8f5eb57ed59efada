"""Proves attention over pages against a float64 softmax, and decode against prefill bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kernel_cases import EPS
from numpy.typing import NDArray

from cg_local import kernels
from cg_local.config import KV_DTYPES
from cg_local.kernels.attention import PARTITION
from cg_local.kernels.tile_product import TILE_COLUMNS
from cg_local.kv_cache import VALUE_TILE_COLUMNS, line_lengths

HEAD_DIM = 64
SCALE = np.float32(1 / math.sqrt(HEAD_DIM))
HEADS = [(4, 1), (6, 6), (4, 2)]
# (position of the first new token, number of new tokens): alone, at and across page and partition borders.
SPANS = [(0, 1), (0, 7), (0, 300), (254, 1), (255, 1), (256, 1), (250, 10), (511, 3), (600, 70)]


@dataclass(frozen=True)
class Case:
    """New queries over a context whose K and V lie in shuffled pages; everything unwritten is NaN."""

    queries: NDArray[np.float32]
    keys: NDArray[Any]
    values: NDArray[Any]
    block_table: NDArray[np.int32]
    first_position: int
    exact_keys: NDArray[np.float64]
    exact_values: NDArray[np.float64]


def empty_pages(num_pages: int, num_kv_heads: int, page_size: int, dtype: str) -> list[NDArray[Any]]:
    """Pages of K and of V of which nothing was written: NaN, or codes and scales that spoil what they touch."""
    key_length, value_length = line_lengths(HEAD_DIM, dtype)
    shape = num_pages, num_kv_heads
    shapes = (*shape, key_length, page_size), (*shape, page_size, value_length)
    if dtype == "int8":
        return [np.full(shape, 0x7E, np.int8) for shape in shapes]  # scales of 0x7e7e are NaN
    return [np.full(shape, np.nan, dtype).view(np.uint16 if dtype == "float16" else np.float32) for shape in shapes]


def stored_values(x: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """What remains of K or V in pages of a type, computed in plain NumPy."""
    if dtype != "int8":
        return x.astype(dtype).astype(np.float32)
    groups = x.reshape(*x.shape[:-1], -1, 32)
    scales = (np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    return (np.clip(np.rint(groups * inverse), -127, 127) * scales).reshape(x.shape)


def make_case(
    heads: tuple[int, int], span: tuple[int, int], *, dtype: str = "float32", page_size: int = 16, spread: float = 1.0
) -> Case:
    num_heads, num_kv_heads = heads
    first_position, num_tokens = span
    random = np.random.default_rng([*heads, *span, page_size])
    context = first_position + num_tokens
    queries = (random.standard_normal((num_tokens, num_heads, HEAD_DIM)) * spread).astype(np.float32)
    keys, values = random.standard_normal((2, context, num_kv_heads, HEAD_DIM)).astype(np.float32)
    num_pages = -(-context // page_size)
    block_table = random.permutation(num_pages + 3)[:num_pages].astype(np.int32)
    stored = empty_pages(num_pages + 3, num_kv_heads, page_size, dtype)
    positions = np.arange(context)
    slots = block_table[positions // page_size].astype(np.int64) * page_size + positions % page_size
    kernels.write_pages(keys, values, stored[0], stored[1], slots)
    exact_keys, exact_values = (stored_values(array, dtype).astype(np.float64) for array in (keys, values))
    return Case(queries, stored[0], stored[1], block_table, first_position, exact_keys, exact_values)


def attend(
    attention: Any, case: Case, queries: NDArray[np.float32] | None = None, first: int = 0
) -> NDArray[np.float32]:
    """Run an attention kernel on the case's queries, or on some of them from `first`."""
    queries = case.queries if queries is None else queries
    out = np.full((len(queries), queries.shape[1] * HEAD_DIM), np.nan, np.float32)
    attention(queries, case.keys, case.values, case.block_table, case.first_position + first, SCALE, out)
    return out


def expected_attention(case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the float64 result and the error that the kernels may have at most, [num_tokens, num_heads * HEAD_DIM].

    A score of d products is off by at most d = (HEAD_DIM + 2) EPS sum |q k|, its weight relatively by that, and by
    exp32's 2e-7 once per page, since a new maximum rescales it; adding n weights and weighted values adds n roundings.
    Sum and quotient together double the relative error.
    """
    num_tokens, num_heads, _ = case.queries.shape
    context = len(case.exact_keys)
    group = num_heads // case.exact_keys.shape[1]
    keys, values = (np.repeat(array, group, axis=1) for array in (case.exact_keys, case.exact_values))
    queries = case.queries.astype(np.float64) * float(SCALE)
    scores = np.einsum("thd,chd->htc", queries, keys, optimize=True)
    magnitudes = np.einsum("thd,chd->htc", np.abs(queries), np.abs(keys), optimize=True)
    future = np.arange(context)[None, :] > case.first_position + np.arange(num_tokens)[:, None]
    scores[:, future] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    num_pages = len(case.block_table)
    relative = 2 * (2 * (HEAD_DIM + 4) * EPS * magnitudes.max() + (num_pages + 2) * 2e-7 + (context + 8) * EPS)
    result = np.einsum("htc,chd->thd", weights, values, optimize=True)
    bound = np.einsum("htc,chd->thd", weights, np.abs(values), optimize=True) * relative + 1e-30
    return result.reshape(num_tokens, -1), bound.reshape(num_tokens, -1)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_prefill_attention_equals_the_float64_softmax(
    heads: tuple[int, int], span: tuple[int, int], dtype: str
) -> None:
    case = make_case(heads, span, dtype=dtype)
    expected, tolerance = expected_attention(case)

    assert (np.abs(attend(kernels.attend_prefill, case) - expected) <= tolerance).all()


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("span", [span for span in SPANS if span[1] <= 10], ids=str)
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_decode_attention_equals_the_float64_softmax(heads: tuple[int, int], span: tuple[int, int], dtype: str) -> None:
    case = make_case(heads, span, dtype=dtype)
    expected, tolerance = expected_attention(case)

    assert (np.abs(attend(kernels.attend_decode, case) - expected) <= tolerance).all()


@pytest.mark.parametrize("page_size", [1, 2, 64, PARTITION])
@pytest.mark.parametrize("attention", [kernels.attend_prefill, kernels.attend_decode], ids=["prefill", "decode"])
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_attention_equals_the_float64_softmax_for_every_page_size(attention: Any, page_size: int, dtype: str) -> None:
    case = make_case((4, 1), (300, 4), page_size=page_size, dtype=dtype)
    expected, tolerance = expected_attention(case)

    assert (np.abs(attend(attention, case) - expected) <= tolerance).all()


@pytest.mark.parametrize("attention", [kernels.attend_prefill, kernels.attend_decode], ids=["prefill", "decode"])
@pytest.mark.parametrize("spread", [0, 30, 1000])
def test_attention_bears_flat_and_steep_scores(attention: Any, spread: float) -> None:
    # At 1000 scores span thousands: nearly all weights vanish, and exp of an unshifted score would overflow.
    case = make_case((4, 1), (300, 4), spread=spread)
    expected, tolerance = expected_attention(case)

    assert (np.abs(attend(attention, case) - expected) <= tolerance).all()


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("spread", [1, 30])
def test_decode_attention_equals_prefill_bit_for_bit(heads: tuple[int, int], dtype: str, spread: float) -> None:
    case = make_case(heads, (0, 530), dtype=dtype, spread=spread)
    whole = attend(kernels.attend_prefill, case)

    for position in [0, 1, 15, 16, 255, 256, 300, 511, 512, 529]:
        alone = attend(kernels.attend_decode, case, case.queries[position : position + 1], position)
        np.testing.assert_array_equal(alone[0], whole[position])


@pytest.mark.parametrize("attention", [kernels.attend_prefill, kernels.attend_decode], ids=["prefill", "decode"])
@pytest.mark.parametrize("cut", [1, 3, 16, 64, 257])
def test_attention_of_chunks_equals_that_of_the_whole_bit_for_bit(attention: Any, cut: int) -> None:
    case = make_case((6, 6), (0, 270))
    whole = attend(kernels.attend_prefill, case)

    parts = [attend(attention, case, case.queries[:cut]), attend(attention, case, case.queries[cut:], cut)]

    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_page_size_does_not_change_the_result(dtype: str) -> None:
    small, large = (make_case((4, 2), (260, 9), dtype=dtype, page_size=size) for size in (4, 64))
    # The same values in other pages: every sum is one chain over the tokens, wherever they lie.
    keys, values = np.random.default_rng(1).standard_normal((2, 269, 2, HEAD_DIM)).astype(np.float32)
    for case, size in ((small, 4), (large, 64)):
        slots = case.block_table[np.arange(269) // size].astype(np.int64) * size + np.arange(269) % size
        kernels.write_pages(keys, values, case.keys, case.values, slots)

    found = [attend(kernels.attend_prefill, case, small.queries) for case in (small, large)]

    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("num_tokens", [1, 5, 17, 40])
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_spreading_partitions_over_threads_changes_no_bit_for_any_number_of_tokens(num_tokens: int, dtype: str) -> None:
    case = make_case((8, 1), (500, num_tokens), dtype=dtype)

    np.testing.assert_array_equal(attend(kernels.attend_decode, case), attend(kernels.attend_prefill, case))


def test_pages_of_float16_hold_the_rounded_values() -> None:
    k, v = np.random.default_rng(0).normal(0, 100, (2, 3, 2, HEAD_DIM)).astype(np.float32)
    keys, values = empty_pages(2, 2, 16, "float16")

    kernels.write_pages(k, v, keys, values, np.array([31, 0, 17]))

    np.testing.assert_array_equal(keys.view(np.float16)[[1, 0, 1], :, :, [15, 0, 1]], k.astype(np.float16))
    np.testing.assert_array_equal(values.view(np.float16)[[1, 0, 1], :, [15, 0, 1]], v.astype(np.float16))


def test_writing_pages_leaves_other_slots_alone() -> None:
    keys, values = empty_pages(2, 1, 16, "float32")
    keys[:], values[:] = -1, -1

    kernels.write_pages(*np.ones((2, 1, 1, HEAD_DIM), np.float32), keys, values, np.array([17]))

    assert (keys == 1).sum() == (values == 1).sum() == HEAD_DIM
    assert (keys[1, 0, :, 1] == 1).all()
    assert (values[1, 0, 1] == 1).all()


@pytest.mark.parametrize("magnitude", [0.0, 1e-7, 1e-3, 1.0, 3e4, 1e6])
def test_int8_codes_never_reach_minus_128_and_zeros_stay_zeros(magnitude: float) -> None:
    k = np.linspace(-1, 1, 2 * HEAD_DIM, dtype=np.float32).reshape(2, 1, HEAD_DIM) * np.float32(magnitude)
    keys, values = empty_pages(1, 1, 16, "int8")

    kernels.write_pages(k, k, keys, values, np.array([0, 1]))

    codes = keys[0, 0, :HEAD_DIM, :2].T
    groups = k.reshape(2, -1, 32)
    scales = (np.abs(groups).max(axis=2) / np.float32(127)).clip(0, 65504).astype(np.float16)
    wide = scales[:, :, None].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nan_to_num(np.clip(np.rint(groups * (np.float32(1) / wide)), -127, 127))
    np.testing.assert_array_equal(codes, np.where(wide > 0, expected, 0).reshape(2, HEAD_DIM))
    np.testing.assert_array_equal(codes, values[0, 0, :2, :HEAD_DIM])
    np.testing.assert_array_equal(values[0, 0, :2, HEAD_DIM:].copy().view(np.float16), scales)


def test_tiles_of_values_are_as_wide_as_the_kernels() -> None:
    assert VALUE_TILE_COLUMNS == TILE_COLUMNS
