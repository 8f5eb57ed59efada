"""Logits to a token id.

This file owns the choice of the next token. It keeps no state: the random source is passed in. Invariant: the reported
log-probability is that of the model itself (temperature 1, no filter), so it compares across settings.

The filters act in the order repetition penalty, temperature, top-k, top-p, min-p, as transformers' generate does.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cg_local.config import SamplingParams

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SampledToken:
    """A chosen token.

    Attributes:
        token_id: the choice.
        logprob: natural logarithm of the model's own probability of it.
    """

    token_id: int
    logprob: float


def sample(
    logits: Floats, params: SamplingParams, random: np.random.Generator, seen: Collection[int] = ()
) -> SampledToken:
    """Choose the next token.

    Args:
        logits: float32 [vocab_size]; not altered.
        params: temperature 0 chooses the largest logit (the smallest id among equals) and ignores the other filters.
        random: the source of the one uniform number that a draw takes; greedy takes none.
        seen: token ids that the repetition penalty applies to.
    """
    adjusted = penalize_repetition(logits, params.repetition_penalty, seen)
    if params.temperature == 0:
        token_id = int(np.argmax(adjusted))
    else:
        token_ids, probabilities = filtered_distribution(adjusted, params)
        # The draw is below the last cumulative sum, which rounding may leave a little under 1.
        cumulative = np.cumsum(probabilities)
        drawn = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
        token_id = int(token_ids[min(int(drawn), len(token_ids) - 1)])
    return SampledToken(token_id, logprob_of(logits, token_id))


def logprob_of(logits: Floats, token_id: int) -> float:
    """Return the natural logarithm of softmax(logits)[token_id]."""
    peak = float(logits.max())
    return float(logits[token_id]) - peak - math.log(float(np.exp(logits - np.float32(peak)).sum(dtype=np.float64)))


def top_logprobs(logits: Floats, count: int) -> list[SampledToken]:
    """Return the `count` most probable tokens, most probable first, the smallest id first among equals."""
    return [SampledToken(int(token_id), logprob_of(logits, int(token_id))) for token_id in _largest(logits, count)]


def penalize_repetition(logits: Floats, penalty: float, seen: Collection[int]) -> Floats:
    """Divide positive logits of seen tokens by the penalty and multiply negative ones.

    Source: Keskar et al., CTRL, arXiv 1909.05858, section 4.1, in transformers' form. It harms code, so 1.0 (off) is
    the default everywhere.
    """
    if penalty == 1.0 or not seen:
        return logits
    token_ids = np.fromiter(set(seen), np.int64)
    adjusted: Floats = logits.copy()
    values = adjusted[token_ids]
    adjusted[token_ids] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
    return adjusted


def filtered_distribution(logits: Floats, params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that survive the filters and their probabilities, which sum to 1.

    top_p keeps the most probable tokens until their sum reaches it (the token that crosses it stays); min_p keeps those
    with at least min_p times the largest probability (Nguyen et al., arXiv 2407.01082).
    """
    # The largest logit becomes 0 first: a tiny temperature then sends the others to -inf and leaves it.
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - np.float64(logits.max())) / params.temperature
    token_ids = _largest(scaled, params.top_k or len(scaled))
    probabilities = np.exp(scaled[token_ids])
    probabilities /= probabilities.sum()
    if params.top_p < 1:
        before = np.cumsum(probabilities) - probabilities
        kept = max(1, int(np.searchsorted(before, params.top_p, side="left")))
        token_ids, probabilities = token_ids[:kept], probabilities[:kept]
    if params.min_p > 0:
        kept = max(1, int((probabilities >= params.min_p * probabilities[0]).sum()))
        token_ids, probabilities = token_ids[:kept], probabilities[:kept]
    return token_ids, probabilities / probabilities.sum()


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return the ids of the `count` largest values, largest first, the smallest id first among equals."""
    candidates = np.arange(len(values))
    if count < len(values):
        # A partition alone would take any of several values equal to the last one.
        candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    order: NDArray[np.int64] = candidates[np.argsort(-values[candidates], kind="stable")]
    return order[:count]
