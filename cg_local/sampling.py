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
Doubles = NDArray[np.float64]

# Values that `log_sum_exp` works on at a time: 64 KiB.
CHUNK_VALUES = 1 << 14
# How far below the largest scaled logit the most probable tokens are looked for, one after the other.
SEARCH_DEPTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Values of which `_largest` takes the maximum first.
BLOCK_VALUES = 256
# More than float64 sums and logarithms over a vocabulary are off by.
ROUNDING = 1e-9


@dataclass(frozen=True)
class SampledToken:
    """A chosen token.

    Attributes:
        token_id: the choice.
        logprob: natural logarithm of the model's own probability of it.
        alternatives: the most probable tokens, the choice among them if it is one; empty where nobody asked.
    """

    token_id: int
    logprob: float
    alternatives: tuple[SampledToken, ...] = ()


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
    token_id = int(np.argmax(adjusted)) if params.temperature == 0 else _draw(adjusted, params, random.random())
    alternatives = tuple(top_logprobs(logits, params.top_logprobs)) if params.top_logprobs else ()
    return SampledToken(token_id, logprob_of(logits, token_id), alternatives)


def logprob_of(logits: Floats, token_id: int) -> float:
    """Return the natural logarithm of softmax(logits)[token_id]."""
    return float(logits[token_id]) - log_sum_exp(logits)


def log_sum_exp(logits: Floats) -> float:
    """Return the natural logarithm of the sum of exp(logits), what a logit lacks to be a log-probability.

    The vocabulary is walked in chunks that stay in the processor's cache: 256,000 temporary values would not.
    """
    peak = np.float32(logits.max())
    buffer = np.empty(min(CHUNK_VALUES, len(logits)), np.float32)
    total = 0.0
    for first in range(0, len(logits), CHUNK_VALUES):
        chunk = logits[first : first + CHUNK_VALUES]
        shifted = np.subtract(chunk, peak, out=buffer[: len(chunk)])
        total += float(np.exp(shifted, out=shifted).sum(dtype=np.float64))
    return float(peak) + math.log(total)


def top_logprobs(logits: Floats, count: int) -> list[SampledToken]:
    """Return the `count` most probable tokens, most probable first, the smallest id first among equals."""
    normalizer = log_sum_exp(logits)
    return [SampledToken(int(token_id), float(logits[token_id]) - normalizer) for token_id in _largest(logits, count)]


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
    if params.top_k:
        token_ids = _largest(logits, params.top_k)
        probabilities = np.exp(_scaled(logits[token_ids], params.temperature))
        probabilities /= probabilities.sum()
    else:
        scaled = _scaled(logits, params.temperature)
        weights = np.exp(scaled)
        probabilities = weights / weights.sum()
        # What the filters below remove for certain is not sorted; they decide about the rest.
        mass = params.top_p if params.top_p < 1 else np.inf
        token_ids = _most_probable(scaled, probabilities, mass, params.min_p)
        probabilities = probabilities[token_ids]
    if params.top_p < 1:
        before = np.cumsum(probabilities) - probabilities
        kept = max(1, int(np.searchsorted(before, params.top_p, side="left")))
        token_ids, probabilities = token_ids[:kept], probabilities[:kept]
    if params.min_p > 0:
        kept = max(1, int((probabilities >= params.min_p * probabilities[0]).sum()))
        token_ids, probabilities = token_ids[:kept], probabilities[:kept]
    return token_ids, probabilities / probabilities.sum()


def _draw(logits: Floats, params: SamplingParams, number: float) -> int:
    """Invert the cumulative distribution, most probable tokens first, at a number of 0..1."""
    if params.top_k or params.top_p < 1 or params.min_p > 0:
        token_ids, weights = filtered_distribution(logits, params)
        total = weights.sum()
    else:
        scaled = _scaled(logits, params.temperature)
        all_weights = np.exp(scaled)
        total = all_weights.sum()
        token_ids = _most_probable(scaled, all_weights, number * total)
        weights = all_weights[token_ids]
    drawn = int(np.searchsorted(np.cumsum(weights), number * total, side="right"))
    # The draw is below the total, but rounding may leave the last cumulative sum a little under that.
    return int(token_ids[min(drawn, len(token_ids) - 1)])


def _scaled(logits: Floats, temperature: float) -> Doubles:
    """Return (logits - the largest) / temperature: a tiny temperature then sends the others to -inf and leaves 0."""
    scaled = logits.astype(np.float64)
    scaled -= np.float64(logits.max())
    with np.errstate(over="ignore"):
        scaled /= temperature
    return scaled


def _most_probable(scaled: Doubles, weights: Doubles, mass: float, min_share: float = 0.0) -> NDArray[np.int64]:
    """Return the first ids in the order of `_largest`, so many that their weights sum past `mass`, or all.

    Args:
        scaled: logarithms of the weights, but for a constant; the largest is 0.
        weights: what is summed.
        mass: infinite for all tokens.
        min_share: tokens with less than this share of the largest weight may be left out.
    """
    lowest = math.log(min_share) - ROUNDING if min_share > 0 else -math.inf
    # Few tokens hold nearly all of the mass: only those are sorted.
    for bound in (*(-depth for depth in SEARCH_DEPTHS if mass < math.inf and -depth > lowest), lowest):
        candidates = np.flatnonzero(scaled >= bound)
        if bound == lowest or weights[candidates].sum() * (1 - ROUNDING) > mass:
            break
    order: NDArray[np.int64] = candidates[np.argsort(-scaled[candidates], kind="stable")]
    return order


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return the ids of the `count` largest values, largest first, the smallest id first among equals."""
    candidates = np.arange(len(values))
    if count <= len(values) // BLOCK_VALUES:
        # As many blocks have a maximum of at least the count-th largest one: nothing below it is wanted.
        whole = len(values) - len(values) % BLOCK_VALUES
        maxima = values[:whole].reshape(-1, BLOCK_VALUES).max(axis=1)
        candidates = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
    if count < len(candidates):
        # A partition alone would take any of several values equal to the last one.
        found = values[candidates]
        candidates = candidates[found >= np.partition(found, -count)[-count]]
    order: NDArray[np.int64] = candidates[np.argsort(-values[candidates], kind="stable")]
    return order[:count]
