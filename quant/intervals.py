"""Figures over many tokens with their confidence intervals, and ratios of two models on the same tokens.

Owns the bootstrap and what each summary means. It computes no logits. Invariant: whole documents are drawn, because
tokens of one text err alike; every figure of a sample uses the same draws, so that ratios are paired; and the draws
follow from the documents' number and SEED alone.

Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cg_local.quant.divergence import TokenFigures

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

SEED = 20240401
NUM_DRAWS = 1000
LEVEL = 0.95
QUANTILES: Mapping[str, float] = {"kl_median": 0.5, "kl_90": 0.9, "kl_99": 0.99, "kl_999": 0.999}


@dataclass(frozen=True)
class Estimate:
    """A figure and the bounds of its 95 % interval; equal to it where there is a single document."""

    value: float
    low: float
    high: float

    def document(self) -> dict[str, float | None]:
        """Return it as JSON; what is no finite number is null."""
        members = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in members.items()}


class Sample:
    """The scored tokens of some windows, and the draws of their documents.

    Args:
        documents: int64 [num_tokens], which document each token is of; any numbers.

    Attributes:
        num_tokens: tokens.
        num_documents: distinct documents.
    """

    def __init__(self, documents: Integers) -> None:
        names, self._of_token = np.unique(documents, return_inverse=True)
        self._of_token = self._of_token.reshape(-1)
        self.num_tokens, self.num_documents = len(documents), len(names)
        self._sizes = np.bincount(self._of_token, minlength=self.num_documents)
        generator = np.random.Generator(np.random.PCG64(SEED))
        even = np.full(self.num_documents, 1 / max(1, self.num_documents))
        # [num_draws, num_documents]: how often a draw holds each document.
        self._counts = generator.multinomial(self.num_documents, even, NUM_DRAWS)

    def mean(self, values: Doubles) -> tuple[float, Doubles]:
        """Return the mean over the tokens, and that of every draw."""
        sums = np.bincount(self._of_token, values, self.num_documents)
        drawn: Doubles = (self._counts @ sums) / (self._counts @ self._sizes)
        return float(values.mean()), drawn

    def quantiles(self, values: Doubles, shares: Sequence[float]) -> tuple[Doubles, Doubles]:
        """Return quantiles [len(shares)] and those of every draw [num_draws, len(shares)].

        A quantile is the smallest value that at least this share of the tokens does not exceed.
        """
        order = np.argsort(values, kind="stable")
        ordered, owners = values[order], self._of_token[order]
        drawn = np.empty((NUM_DRAWS, len(shares)))
        for draw, counts in enumerate(self._counts):
            drawn[draw] = _weighted_quantiles(ordered, counts[owners], shares)
        return _weighted_quantiles(ordered, np.ones(len(ordered)), shares), drawn


Statistic = tuple[float, Doubles]
"""A figure and the same figure of every draw."""


def statistics(sample: Sample, figures: TokenFigures) -> dict[str, Statistic]:
    """Return every figure of a sample with its draws.

    Returns:
        By name: "kl_mean", those of QUANTILES, "kl_max" (whose draws cannot go beyond it), "top1_agreement",
        "top1_mismatch", "probability_rms" (root mean square of the difference of the true token's probability),
        "perplexity", "reference_perplexity", "ln_perplexity_ratio" (model over reference), "abs_ln_perplexity_ratio".
    """
    found: dict[str, Statistic] = {"kl_mean": sample.mean(figures.kl)}
    values, drawn = sample.quantiles(figures.kl, (*QUANTILES.values(), 1.0))
    for index, name in enumerate((*QUANTILES, "kl_max")):
        found[name] = float(values[index]), drawn[:, index]
    mismatch, mismatches = sample.mean((~figures.is_same_top).astype(np.float64))
    found["top1_agreement"], found["top1_mismatch"] = (1 - mismatch, 1 - mismatches), (mismatch, mismatches)
    found["probability_rms"] = _map(np.sqrt, sample.mean(figures.probability_difference**2))
    found["perplexity"] = _map(_exp, sample.mean(figures.model_loss))
    found["reference_perplexity"] = _map(_exp, sample.mean(figures.reference_loss))
    # Of the differences, not the difference of two rounded figures: paired.
    ratio = sample.mean(figures.model_loss - figures.reference_loss)
    found["ln_perplexity_ratio"] = ratio
    found["abs_ln_perplexity_ratio"] = _map(np.abs, ratio)
    return found


def estimate(statistic: Statistic) -> Estimate:
    """Return a figure with the percentile interval of its draws."""
    value, drawn = statistic
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return Estimate(value, value, value)
    low, high = np.quantile(finite, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value, float(low), float(high))


RATIOS = ("kl_mean", "kl_999", "top1_mismatch", "probability_rms", "abs_ln_perplexity_ratio")
"""The figures of which a ratio to another model says something: 0 is without error."""


def ratios(ours: Mapping[str, Statistic], theirs: Mapping[str, Statistic]) -> dict[str, Estimate]:
    """Return ours over theirs, draw by draw, of two models on the same sample; nan where theirs is 0."""
    return {name: estimate(_divided(ours[name], theirs[name])) for name in RATIOS}


def difference(ours: Statistic, theirs: Statistic) -> Estimate:
    """Return ours less theirs, draw by draw, of two models on the same sample."""
    return estimate((ours[0] - theirs[0], ours[1] - theirs[1]))


def _divided(ours: Statistic, theirs: Statistic) -> Statistic:
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = ours[1] / theirs[1]
    return (ours[0] / theirs[0] if theirs[0] else math.nan), drawn


def _exp(loss: Doubles) -> Doubles:
    """Beyond 700 nats a token, of a model that is destroyed, the exponential is no float64."""
    return np.exp(np.minimum(loss, 700.0))


def _map(function: Callable[[Doubles], Doubles], statistic: Statistic) -> Statistic:
    return float(function(np.array(statistic[0]))), function(statistic[1])


def _weighted_quantiles(ordered: Doubles, weights: Doubles | Integers, shares: Sequence[float]) -> Doubles:
    cumulated = np.cumsum(weights)
    # Rounding must not push the last share beyond the last value.
    places = np.searchsorted(cumulated, np.array(shares) * cumulated[-1] * (1 - 1e-12))
    found: Doubles = ordered[np.minimum(places, len(ordered) - 1)]
    return found
