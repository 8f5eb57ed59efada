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
from cg_local.kernels.attention import PARTITION

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
    shape = num_pages + 3, num_kv_heads, page_size, HEAD_DIM
    stored = [np.full(shape, np.nan, dtype).view(np.uint16 if dtype == "float16" else np.float32) for _ in range(2)]
    positions = np.arange(context)
    slots = block_table[positions // page_size].astype(np.int64) * page_size + positions % page_size
    kernels.write_pages(keys, stored[0], slots)
    kernels.write_pages(values, stored[1], slots)
    exact_keys, exact_values = (array.astype(dtype).astype(np.float64) for array in (keys, values))
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
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_prefill_attention_equals_the_float64_softmax(
    heads: tuple[int, int], span: tuple[int, int], dtype: str
) -> None:
    case = make_case(heads, span, dtype=dtype)
    expected, tolerance = expected_attention(case)

    assert (np.abs(attend(kernels.attend_prefill, case) - expected) <= tolerance).all()


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("span", [span for span in SPANS if span[1] <= 10], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_decode_attention_equals_the_float64_softmax(heads: tuple[int, int], span: tuple[int, int], dtype: str) -> None:
    case = make_case(heads, span, dtype=dtype)
    expected, tolerance = expected_attention(case)

    assert (np.abs(attend(kernels.attend_decode, case) - expected) <= tolerance).all()


@pytest.mark.parametrize("page_size", [1, 2, 64, PARTITION])
@pytest.mark.parametrize("attention", [kernels.attend_prefill, kernels.attend_decode], ids=["prefill", "decode"])
def test_attention_equals_the_float64_softmax_for_every_page_size(attention: Any, page_size: int) -> None:
    case = make_case((4, 1), (300, 4), page_size=page_size)
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
@pytest.mark.parametrize("dtype", ["float32", "float16"])
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


def test_pages_of_float16_hold_the_rounded_values() -> None:
    x = np.random.default_rng(0).normal(0, 100, (3, 2, HEAD_DIM)).astype(np.float32)
    pages = np.zeros((2, 2, 16, HEAD_DIM), np.uint16)

    kernels.write_pages(x, pages, np.array([31, 0, 17]))

    expected = x.astype(np.float16)
    stored = pages.view(np.float16)[[1, 0, 1], :, [15, 0, 1]]
    np.testing.assert_array_equal(stored, expected)


def test_writing_pages_leaves_other_slots_alone() -> None:
    pages = np.full((2, 1, 16, HEAD_DIM), -1, np.float32)

    kernels.write_pages(np.ones((1, 1, HEAD_DIM), np.float32), pages, np.array([17]))

    assert (pages == 1).sum() == HEAD_DIM
    assert (pages[1, 0, 1] == 1).all()
