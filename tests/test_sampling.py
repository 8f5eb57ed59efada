"""Proves the choice of a token against hand-computed distributions and the published definitions of the filters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cg_local.config import SamplingParams
from cg_local.sampling import filtered_distribution, logprob_of, penalize_repetition, sample, top_logprobs

HALVES = np.log(np.array([0.125, 0.5, 0.125, 0.25])).astype(np.float32)  # probabilities of ids 0..3


class FixedRandom:
    """A random source that draws one given number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def distribution(logits: NDArray[np.float32], **params: Any) -> dict[int, float]:
    token_ids, probabilities = filtered_distribution(logits, SamplingParams(**{"temperature": 1.0, **params}))
    return dict(zip(token_ids.tolist(), probabilities.tolist(), strict=True))


def draw(logits: NDArray[np.float32], number: float, **params: Any) -> int:
    fixed: Any = FixedRandom(number)
    return sample(logits, SamplingParams(**{"temperature": 1.0, **params}), fixed).token_id


def published_distribution(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float64]:
    """Temperature, top-k, top-p and min-p one after the other as transformers' warpers define them, in float64.

    Source: transformers, generation/logits_process.py. Top-k there keeps all that equal the k-th; callers avoid ties.
    """
    scores = logits.astype(np.float64) / params.temperature
    if params.top_k:
        scores[scores < np.sort(scores)[-min(params.top_k, len(scores))]] = -np.inf
    if params.top_p < 1:
        order = np.argsort(scores, kind="stable")
        cumulative = np.cumsum(softmax(scores[order]))
        is_removed = cumulative <= 1 - params.top_p
        is_removed[-1] = False
        scores[order[is_removed]] = -np.inf
    if params.min_p > 0:
        probabilities = softmax(scores)
        scores[probabilities < params.min_p * probabilities.max()] = -np.inf
    return softmax(scores)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def test_greedy_takes_the_largest_logit() -> None:
    assert sample(HALVES, SamplingParams(), np.random.default_rng(0)).token_id == 1


def test_greedy_takes_the_smallest_id_among_equals() -> None:
    assert sample(np.array([0, 2, 1, 2], np.float32), SamplingParams(), np.random.default_rng(0)).token_id == 1


def test_greedy_draws_no_random_number() -> None:
    random = np.random.default_rng(0)

    sample(HALVES, SamplingParams(), random)

    assert random.random() == np.random.default_rng(0).random()


def test_unfiltered_distribution_is_the_softmax() -> None:
    assert distribution(HALVES) == pytest.approx({0: 0.125, 1: 0.5, 2: 0.125, 3: 0.25}, rel=1e-6)


def test_temperature_divides_the_logits() -> None:
    # At 1/2 probabilities are squared: 1, 16, 1, 4 of 22.
    expected = {0: 1 / 22, 1: 16 / 22, 2: 1 / 22, 3: 4 / 22}

    assert distribution(HALVES, temperature=0.5) == pytest.approx(expected, rel=1e-6)


def test_tiny_temperature_is_greedy_without_overflow() -> None:
    assert distribution(HALVES, temperature=1e-300)[1] == 1


def test_top_k_keeps_the_k_most_probable_and_rescales() -> None:
    assert distribution(HALVES, top_k=2) == pytest.approx({1: 2 / 3, 3: 1 / 3}, rel=1e-6)


@pytest.mark.parametrize("top_k", [0, 4, 5, 1000])
def test_top_k_of_zero_or_at_least_the_vocabulary_keeps_all(top_k: int) -> None:
    assert distribution(HALVES, top_k=top_k) == distribution(HALVES)


def test_top_k_keeps_the_smallest_ids_among_equals() -> None:
    # Three tokens share the second place; enough others that a partition does not happen to keep their order.
    logits = np.full(200, -5, np.float32)
    logits[[150, 90, 20, 70]] = 3, 2, 2, 2

    assert sorted(distribution(logits, top_k=3)) == [20, 70, 150]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=300))
def test_top_k_of_one_is_greedy(values: list[int]) -> None:
    logits = np.array(values, np.float32)

    assert draw(logits, 0.999, top_k=1) == sample(logits, SamplingParams(), np.random.default_rng(0)).token_id


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.49, {1}), (0.51, {1, 3}), (0.74, {1, 3}), (0.76, {0, 1, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_token_that_crosses_it(top_p: float, kept: set[int]) -> None:
    assert set(distribution(HALVES, top_p=top_p)) == kept


def test_top_p_rescales_what_it_keeps() -> None:
    assert distribution(HALVES, top_p=0.6) == pytest.approx({1: 2 / 3, 3: 1 / 3}, rel=1e-6)


@pytest.mark.parametrize(
    ("min_p", "kept"), [(0.0, {0, 1, 2, 3}), (0.24, {0, 1, 2, 3}), (0.26, {1, 3}), (0.51, {1}), (1.0, {1})]
)
def test_min_p_drops_tokens_far_below_the_most_probable(min_p: float, kept: set[int]) -> None:
    assert set(distribution(HALVES, min_p=min_p)) == kept


def test_top_p_acts_on_what_top_k_left() -> None:
    # Of 1/2 and 1/4 the first alone has 2/3 and reaches 0.6; without top_k it would take both.
    assert set(distribution(HALVES, top_k=2, top_p=0.6)) == {1}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.5),
)
def test_filters_equal_their_published_definitions(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = np.random.default_rng(seed).normal(0, 3, 40).astype(np.float32)
    token_ids, probabilities = filtered_distribution(logits, params)
    dense = np.zeros(40)
    dense[token_ids] = probabilities

    np.testing.assert_allclose(dense, published_distribution(logits, params), atol=1e-12)


def plain_draw(logits: NDArray[np.float32], params: SamplingParams, number: float) -> int:
    """The draw by sorting the whole vocabulary: most probable first, the smallest id first among equals."""
    scaled = (logits.astype(np.float64) - np.float64(logits.max())) / params.temperature
    token_ids = np.argsort(-scaled, kind="stable")[: params.top_k or len(scaled)]
    probabilities = softmax(scaled[token_ids])
    if params.top_p < 1:
        probabilities[np.cumsum(probabilities) - probabilities >= params.top_p] = 0
    if params.min_p > 0:
        probabilities[probabilities < params.min_p * probabilities[0]] = 0
    cumulative = np.cumsum(probabilities)
    return int(token_ids[np.searchsorted(cumulative, number * cumulative[-1], side="right")])


LANDSCAPES = {
    "flat": np.random.default_rng(0).normal(0, 0.1, 5000),
    "peaked": np.random.default_rng(0).normal(0, 4, 5000),
    "one token": np.where(np.arange(5000) == 77, 60.0, np.random.default_rng(0).normal(0, 1, 5000)),
    "ties": np.random.default_rng(0).integers(-3, 4, 5000) * 1.5,
    "equal": np.zeros(5000),
}
FILTERS: list[dict[str, Any]] = [
    *({}, {"temperature": 0.3}, {"temperature": 3.0}),
    *({"top_k": 1}, {"top_k": 19}, {"top_k": 20}, {"top_k": 700}, {"top_k": 4999}, {"top_k": 9000}),
    *({"top_p": 0.01}, {"top_p": 0.5}, {"top_p": 0.999}, {"min_p": 1e-6}, {"min_p": 0.1}, {"min_p": 1.0}),
    {"top_k": 40, "top_p": 0.7, "min_p": 0.02, "temperature": 0.7},
    {"top_p": 0.9, "min_p": 0.2},
]


@pytest.mark.parametrize("landscape", LANDSCAPES)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draw_equals_that_of_sorting_the_whole_vocabulary(landscape: str, filters: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **filters})
    logits = LANDSCAPES[landscape].astype(np.float32)
    numbers = [*np.random.default_rng(1).random(40).tolist(), 0.0, 1e-9, 0.9999]

    drawn = [draw(logits, number, **{"temperature": 1.0, **filters}) for number in numbers]

    assert drawn == [plain_draw(logits, params, number) for number in numbers]


@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000, 40000])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 100])
def test_top_logprobs_are_those_of_a_stable_sort(length: int, count: int) -> None:
    logits = np.random.default_rng(length).integers(0, 50, length).astype(np.float32)

    found = [token.token_id for token in top_logprobs(logits, count)]

    assert found == np.argsort(-logits, kind="stable")[:count].tolist()


@pytest.mark.parametrize(("number", "token_id"), [(0.0, 1), (0.49, 1), (0.51, 3), (0.74, 3), (0.76, 0), (0.99999, 2)])
def test_draw_inverts_the_cumulative_distribution_of_the_most_probable_first(number: float, token_id: int) -> None:
    assert draw(HALVES, number) == token_id


def test_draw_of_the_largest_random_number_stays_within_the_tokens() -> None:
    logits = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)

    assert 0 <= draw(logits, np.nextafter(1, 0)) < 1000


def test_drawn_frequencies_are_the_probabilities() -> None:
    random, params = np.random.default_rng(0), SamplingParams(temperature=1.0)
    drawn = np.bincount([sample(HALVES, params, random).token_id for _ in range(4000)], minlength=4) / 4000

    # 5 standard deviations of a binomial share: a right sampler fails once in 10**6 seeds, and this seed is fixed.
    probabilities = np.array([0.125, 0.5, 0.125, 0.25])
    assert (np.abs(drawn - probabilities) < 5 * np.sqrt(probabilities * (1 - probabilities) / 4000)).all()


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    logits = np.array([4, -4, 4, -4], np.float32)

    assert penalize_repetition(logits, 2.0, [0, 1, 0]).tolist() == [2, -8, 4, -4]


def test_repetition_penalty_leaves_the_given_logits_alone() -> None:
    logits = np.array([4, -4], np.float32)

    penalize_repetition(logits, 2.0, [0, 1])

    assert logits.tolist() == [4, -4]


@pytest.mark.parametrize(("penalty", "seen"), [(1.0, [0, 1]), (2.0, [])])
def test_repetition_penalty_of_one_or_without_seen_tokens_changes_nothing(penalty: float, seen: list[int]) -> None:
    assert penalize_repetition(HALVES, penalty, seen) is HALVES


def test_greedy_obeys_the_repetition_penalty() -> None:
    logits = np.array([3, 4], np.float32)

    assert sample(logits, SamplingParams(repetition_penalty=2.0), np.random.default_rng(0), [1]).token_id == 0


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.5, top_k=1, repetition_penalty=1.1)])
def test_reported_logprob_is_the_models_own(params: SamplingParams) -> None:
    chosen = sample(HALVES, params, np.random.default_rng(0), [1])

    assert chosen.logprob == pytest.approx(math.log(0.5), rel=1e-6)


def test_logprobs_of_large_logits_do_not_overflow() -> None:
    logits = np.array([3000, 2999, -3000], np.float32)

    assert logprob_of(logits, 0) == pytest.approx(-math.log(1 + math.exp(-1)), rel=1e-6)
    assert logprob_of(logits, 2) == pytest.approx(-6000, rel=1e-3)


def test_logprobs_are_those_of_the_float64_softmax() -> None:
    # More values than one chunk of the sum.
    logits = np.random.default_rng(0).normal(0, 4, 40000).astype(np.float32)
    expected = np.log(softmax(logits.astype(np.float64)))

    found = [logprob_of(logits, token_id) for token_id in range(0, 40000, 97)]

    # Each exp is off by an ulp or two of float32, and so is their sum, which the logarithm makes an absolute error.
    np.testing.assert_allclose(found, expected[::97], atol=4e-7)


def test_top_logprobs_come_most_probable_first_with_the_smallest_id_among_equals() -> None:
    assert [token.token_id for token in top_logprobs(HALVES, 4)] == [1, 3, 0, 2]


def test_top_logprobs_keep_the_smallest_ids_among_equals() -> None:
    logits = np.zeros(300, np.float32)
    logits[200] = 1

    assert [token.token_id for token in top_logprobs(logits, 3)] == [200, 0, 1]


def test_top_logprobs_give_at_most_the_vocabulary() -> None:
    assert len(top_logprobs(HALVES, 10)) == 4


def test_tiniest_temperature_is_greedy() -> None:
    assert distribution(HALVES, temperature=5e-324) == {1: 1.0, 0: 0.0, 2: 0.0, 3: 0.0}
