"""Summaries equal their formulas, their intervals are those of plain resampling, and ratios are paired."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cg_local.quant.divergence import TokenFigures
from cg_local.quant.intervals import NUM_DRAWS, SEED, Estimate, Sample, difference, estimate, ratios, statistics

Doubles = NDArray[np.float64]


def figures(seed: int = 0, size: int = 400) -> TokenFigures:
    """Return random figures of tokens."""
    random = np.random.default_rng(seed)
    return TokenFigures(
        kl=random.exponential(0.05, size),
        is_same_top=random.random(size) < 0.9,
        reference_loss=random.exponential(1.0, size),
        model_loss=random.exponential(1.1, size),
    )


def documents(size: int = 400) -> NDArray[np.int64]:
    """Return documents of unequal lengths, not in the order of their numbers."""
    return np.sort(np.random.default_rng(9).integers(0, 23, size))[::-1] * 10


def test_values_are_their_formulas() -> None:
    data, found = figures(), statistics(Sample(documents()), figures())
    difference_of_p = np.exp(-data.model_loss) - np.exp(-data.reference_loss)
    ordered = np.sort(data.kl)
    expected = {
        "kl_mean": data.kl.mean(),
        "kl_median": ordered[math.ceil(0.5 * 400) - 1],
        "kl_90": ordered[math.ceil(0.9 * 400) - 1],
        "kl_99": ordered[math.ceil(0.99 * 400) - 1],
        "kl_999": ordered[math.ceil(0.999 * 400) - 1],
        "kl_max": data.kl.max(),
        "top1_agreement": data.is_same_top.mean(),
        "top1_mismatch": 1 - data.is_same_top.mean(),
        "probability_rms": math.sqrt((difference_of_p**2).mean()),
        "perplexity": math.exp(data.model_loss.mean()),
        "reference_perplexity": math.exp(data.reference_loss.mean()),
        "ln_perplexity_ratio": data.model_loss.mean() - data.reference_loss.mean(),
        "abs_ln_perplexity_ratio": abs(data.model_loss.mean() - data.reference_loss.mean()),
    }
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(expected, rel=1e-12)


def test_draws_are_those_of_plain_resampling_of_documents() -> None:
    data, owners = figures(), documents()
    found = statistics(Sample(owners), data)
    names = np.unique(owners)
    counts = np.random.Generator(np.random.PCG64(SEED)).multinomial(len(names), np.full(len(names), 1 / len(names)), 5)
    for draw, count in enumerate(counts):
        rows = np.concatenate(
            [np.tile(np.flatnonzero(owners == name), n) for name, n in zip(names, count, strict=True)]
        )
        assert found["kl_mean"][1][draw] == pytest.approx(data.kl[rows].mean(), rel=1e-12)
        ordered = np.sort(data.kl[rows])
        assert found["kl_99"][1][draw] == ordered[math.ceil(0.99 * len(rows) * (1 - 1e-12)) - 1]
        assert found["perplexity"][1][draw] == pytest.approx(math.exp(data.model_loss[rows].mean()), rel=1e-12)


def test_same_tokens_give_the_same_intervals() -> None:
    first, second = (statistics(Sample(documents()), figures()) for _ in range(2))
    assert {name: estimate(each) for name, each in first.items()} == {
        name: estimate(each) for name, each in second.items()
    }


def test_interval_covers_the_mean_of_a_known_distribution() -> None:
    covered = 0
    for seed in range(60):
        values = np.random.default_rng(seed).exponential(1.0, 300)
        found = estimate(Sample(np.arange(300)).mean(values))
        covered += found.low <= 1.0 <= found.high
    assert 50 <= covered <= 60  # 57 expected; 50 is four standard errors below


def test_one_document_has_no_interval() -> None:
    found = estimate(Sample(np.zeros(400, np.int64)).mean(figures().kl))
    assert found.low == pytest.approx(found.value)
    assert found.high == pytest.approx(found.value)


def test_ratio_is_paired() -> None:
    data, sample = figures(), Sample(documents())
    half = TokenFigures(data.kl / 2, data.is_same_top, data.reference_loss, data.model_loss)
    found = ratios(statistics(sample, half), statistics(sample, data))
    assert found["kl_mean"] == Estimate(0.5, 0.5, 0.5)
    assert found["kl_999"] == Estimate(0.5, 0.5, 0.5)
    assert found["top1_mismatch"] == Estimate(1.0, 1.0, 1.0)


def test_difference_is_paired() -> None:
    sample, kl = Sample(documents()), figures().kl
    found = difference(sample.mean(kl + 0.25), sample.mean(kl))
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_ratio_to_a_model_without_error_is_no_number() -> None:
    data, sample = figures(), Sample(documents())
    exact = TokenFigures(np.zeros(400), np.ones(400, bool), data.reference_loss, data.reference_loss)
    found = ratios(statistics(sample, data), statistics(sample, exact))
    assert math.isnan(found["kl_mean"].value)
    assert found["kl_mean"].document()["value"] is None


def test_draws_have_their_number() -> None:
    assert len(Sample(documents()).mean(figures().kl)[1]) == NUM_DRAWS
